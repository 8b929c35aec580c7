"""A file that only grows, by whole lines: what both file sinks stand on."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from edge.errors import OutboxError

_log = logging.getLogger(__name__)
_TAIL_BLOCK = 65536


class AppendFile:
    """Appends whole lines, each call with one write; what a full disk or a power cut left of a line is taken back.

    whole: tells whether a last line without its newline is nevertheless complete (somebody edited the file); then the
    newline is added, else the torn line is cut off and that is logged. Raises OutboxError.
    """

    def __init__(self, path: Path, whole: Callable[[bytes], bool]) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise OutboxError(
                f"{path}: cannot be written ({error.strerror}); expected a file in a folder that this user may write to"
            ) from error
        try:
            self._mend(whole)
        except BaseException:
            os.close(self._file)
            raise

    def _mend(self, whole: Callable[[bytes], bool]) -> None:
        size = os.fstat(self._file).st_size
        tail = b""
        start = size
        while start > 0 and b"\n" not in tail:
            start = max(0, start - _TAIL_BLOCK)
            tail = os.pread(self._file, size - start, start)
        line = tail.rpartition(b"\n")[2]
        if not line:
            return
        if whole(line):
            self.append(b"\n")
        else:
            _log.warning("%s: the last line is torn (%d bytes), cut off", self.path, len(line))
            os.ftruncate(self._file, size - len(line))

    def first_line(self) -> bytes:
        """The first line without its end, empty if there is none. Headers are short: at most 64 KiB are read."""
        return os.pread(self._file, _TAIL_BLOCK, 0).partition(b"\n")[0].rstrip(b"\r")

    def append(self, lines: bytes) -> None:
        """All of `lines`, or nothing and OutboxError."""
        before = os.fstat(self._file).st_size
        try:
            written = 0
            while written < len(lines):
                written += os.write(self._file, memoryview(lines)[written:])
        except OSError as error:
            os.ftruncate(self._file, before)
            raise OutboxError(
                f"{self.path}: cannot append {len(lines)} bytes ({error.strerror}); make room on the disk, or name another path"
            ) from error

    def sync(self) -> None:
        """Wait until the disk has it. Raises OutboxError."""
        try:
            os.fsync(self._file)
        except OSError as error:
            raise OutboxError(
                f"{self.path}: cannot be stored ({error.strerror}); look at the disk, or name another path"
            ) from error

    def close(self) -> None:
        """Close it; harmless a second time."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
