"""Classes of the strip chunk by chunk, out of an engine that carries its state from one to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from edge.frame import Lines
from edge.scores import Bytes, Reading
from edge.segmenters.spans import Chunk
from edge.segmenters.state import Feed
from edge.sessions import Scores, StreamingSession
from edge.window import StripWindow


@dataclass(frozen=True, slots=True)
class Wanted:
    """Rows of a chunk's answer whose classes are wanted, half-open; none where the stop is not above the start.

    first_line: where the first of them lies on the strip.
    """

    chunk: Chunk
    row_start: int
    row_stop: int
    first_line: int


@dataclass(frozen=True, slots=True)
class ChunkColumns:
    """What an engine sees of each line: `total` columns, of which the strip's own `width` come after the halo."""

    width: int
    halo: int
    total: int

    def fill(self, window: StripWindow, line: int, out: Lines) -> None:
        """Cut the chunk that begins at a line of the strip."""
        window.cut(line, line + out.shape[0], -self.halo, out.shape[1] - self.halo, out=out)

    def classes(self, reading: Reading, scores: Scores, wanted: Wanted) -> tuple[Bytes, Bytes]:
        """Class and confidence of the wanted rows of an answer (1, c, h, total)."""
        return reading.classes(scores[0, :, wanted.row_start : wanted.row_stop, self.halo : self.halo + self.width])


class ChunkReader(Protocol):
    """Says what a run shows, chunk by chunk. For one thread."""

    def spans_kept(self, spans_before: int) -> int:
        """Spans before the newest one that the window must hold, of those that a state at rest is fed before it."""
        ...

    def window(self, width: int, capacity: int) -> StripWindow:
        """A window that chunks can be read from."""
        ...

    def begin(self) -> None:
        """A run begins."""
        ...

    def read(self, window: StripWindow, wanted: Iterable[Wanted]) -> Iterator[tuple[Wanted, Bytes, Bytes]]:
        """Chunks in their order with class and confidence of the rows, (rows, width) uint8 each, new arrays.

        wanted: the run's chunks, every one once and in order; drawn as results are taken. Without rows it is left out.
        """
        ...


OpenChunks = Callable[[StreamingSession, Reading, ChunkColumns], ChunkReader]
"""A session, what its answers mean, what it sees of a line -> their reader."""


class HostChunks:
    """Cuts on the CPU; implements `ChunkReader`. feed: by what kind of feed the session is used."""

    def __init__(self, session: StreamingSession, reading: Reading, columns: ChunkColumns, feed: type[Feed] = Feed) -> None:
        self._reading = replace(reading, steps=session.steps)
        self._columns = columns
        self._feed = feed(session, columns.total, columns.fill)

    def spans_kept(self, spans_before: int) -> int:
        """As many as the feed wants."""
        return self._feed.spans_kept(spans_before)

    def window(self, width: int, capacity: int) -> StripWindow:
        """A window of the host."""
        return StripWindow(width, capacity)

    def begin(self) -> None:
        """A run begins."""
        self._feed.begin()

    def read(self, window: StripWindow, wanted: Iterable[Wanted]) -> Iterator[tuple[Wanted, Bytes, Bytes]]:
        """Cut, infer, classify."""
        for each in wanted:
            scores = self._feed.step(window, each.chunk)
            if each.row_start < each.row_stop:
                yield each, *self._columns.classes(self._reading, scores, each)
