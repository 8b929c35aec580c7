"""A file that is there whole or not at all: written beside its place under another name, then put there."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from edge.errors import ConfigError


class OutputFile:
    """`file` is open for binary writing at once, so that a path that cannot be written is a fault before any work.

    Nothing is at `path` (or what was there stays) until `commit`. As a context manager it commits on a clean exit and
    leaves no trace otherwise. Raises ConfigError that names `argument`.
    """

    def __init__(self, path: Path, argument: str) -> None:
        self.path = path
        target = path.resolve()  # a link stays a link: what it points at is replaced
        if target.exists() and not target.is_file():
            raise ConfigError(f"{argument}: got {path}, which is no file; expected the name of a file to write")
        self._target = target
        self._part = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            self.file: BinaryIO = self._part.open("w+b")
        except OSError as error:
            raise ConfigError(
                f"{argument}: got {path}, which cannot be written ({error.strerror}); expected another path"
            ) from error

    def commit(self) -> None:
        """Put the file in its place, replacing what was there."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        self._part.replace(self._target)

    def discard(self) -> None:
        """Leave no trace; harmless after `commit`."""
        with suppress(OSError):  # closing writes what is still buffered, which a full disk does not take
            self.file.close()
        self._part.unlink(missing_ok=True)

    def __enter__(self) -> OutputFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self.commit()
        finally:
            self.discard()
