"""Sinks: where events go. Every one of them takes the same written events."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, runtime_checkable

from edge.events import OutgoingEvent


@runtime_checkable
class EventSink(Protocol):
    """Takes events in strip order; keeps what it took. A context manager: opened once, at the top.

    What was kept before is still there when it is opened again, and new events follow it. Ids repeat after a restart.
    """

    def emit(self, events: Sequence[OutgoingEvent]) -> None:
        """Take all of `events`, so that a killed process loses none of them; or raise OutboxError and keep none."""
        ...

    def flush(self) -> None:
        """Wait until what was taken survives a power cut. Raises OutboxError."""
        ...

    def __enter__(self) -> EventSink: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...
