"""Events in a file: one CloudEvent per line, appended."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from edge.events import OutgoingEvent
from edge.sinks.append_file import AppendFile


class JsonlSink:
    """JSON Lines, UTF-8, in the order of emission. Raises OutboxError where the file cannot be written."""

    def __init__(self, path: Path) -> None:
        self._file = AppendFile(path, _is_json)

    def emit(self, events: Sequence[OutgoingEvent]) -> None:
        """Append the events."""
        if events:
            self._file.append(b"".join(event.payload + b"\n" for event in events))

    def flush(self) -> None:
        """Wait until the disk has them."""
        self._file.sync()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> JsonlSink:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
