"""What a gate's streaming engine answers to the reduced strip, chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from edge.segmenters.reduction import Reduction
from edge.segmenters.spans import Chunk
from edge.segmenters.state import Feed
from edge.sessions import Scores, StreamingSession
from edge.window import StripWindow


class MapReader(Protocol):
    """Asks the engine, one chunk after the other. For one thread."""

    def spans_kept(self, spans_before: int) -> int:
        """Spans before the newest one that the window must hold, of those that a state at rest is fed before it."""
        ...

    def begin(self) -> None:
        """A run begins."""
        ...

    def read(self, window: StripWindow, chunk: Chunk) -> Scores:
        """Scores (1, channels, rows, columns) of the run's next chunk, as the session gives them; valid until the next one."""
        ...


OpenMaps = Callable[[StreamingSession, Reduction], MapReader]
"""A session, and what it sees of the strip -> their reader."""


class HostMaps:
    """Averages on the CPU; implements `MapReader`. feed: by what kind of feed the session is used."""

    def __init__(self, session: StreamingSession, reduction: Reduction, feed: type[Feed] = Feed) -> None:
        self._feed = feed(session, reduction.columns, reduction.write)

    def spans_kept(self, spans_before: int) -> int:
        """As many as the feed wants."""
        return self._feed.spans_kept(spans_before)

    def begin(self) -> None:
        """A run begins."""
        self._feed.begin()

    def read(self, window: StripWindow, chunk: Chunk) -> Scores:
        """Average, step."""
        return self._feed.step(window, chunk)
