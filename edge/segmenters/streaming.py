"""Dense inspection, every line computed once: chunks of lines through the streaming engine, which carries its state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from edge.frame import Lines
from edge.scores import Reading
from edge.segmenters import MaskRows
from edge.segmenters.chunks import ChunkColumns, HostChunks, OpenChunks, Wanted
from edge.segmenters.spans import SpanFeed, check_geometry, spans_before
from edge.sessions import StreamingSession
from edge.window import padded_columns


class StreamingSegmenter:
    """The mask that one inference over the whole run, reflected by `halo` at its four sides, gives.

    session: made for chunks of `padded_columns(width, halo, stride)` columns; its chunk height is the one used here.
    halo: at least the engine's receptive radius, a multiple of the stride. reading: what the engine's answers mean.
    chunks: who reads the strip's chunks with it.
    Chunk k always holds the strip's lines [k * chunk_lines - before, (k + 1) * chunk_lines - before), so that a restart in
    the middle, and kernels whose rounding depends on a row's place in the chunk, give the same bits; `before` is the halo and
    a little more (`_lines_before`). Raises ConfigError.
    """

    def __init__(
        self,
        session: StreamingSession,
        *,
        width: int,
        halo: int,
        stride: int,
        reading: Reading,
        chunks: OpenChunks = HostChunks,
    ) -> None:
        check_geometry(halo=halo, stride=stride, chunk_lines=session.chunk_lines)
        step = session.chunk_lines
        before = _lines_before(halo, stride, step, session.lag_lines)
        self._delay = before + session.lag_lines
        self._chunks = chunks(session, reading, ChunkColumns(width, halo, padded_columns(width, halo, stride)))
        self._feed = SpanFeed(
            width,
            step=step,
            before=before,
            after=step - before,
            delay=self._delay,
            kept=self._chunks.spans_kept(spans_before(step, self._delay)),
            open_window=self._chunks.window,
        )

    @property
    def lag_lines(self) -> int:
        """Lines after a row at which its mask is out: the engine's lag and one chunk, at a run's begin the halo and one chunk."""
        return self._feed.lag_lines

    def context_lines(self, first_line: int) -> int:
        """Lines before `first_line` from which the state can be built up again."""
        return self._feed.context_lines(first_line)

    def start(self, first_line: int, context: Lines | None = None) -> None:
        """Begin a run; what the state held is forgotten."""
        self._chunks.begin()
        self._feed.start(first_line, context)

    def push(self, lines: Lines) -> list[MaskRows]:
        """Take the next lines, (h, width) uint8; finished rows come out chunk by chunk."""
        return self._read(self._feed.push(lines))

    def flush(self) -> list[MaskRows]:
        """End the run: reflected lines push the last rows out."""
        return self._read(self._feed.finish())

    def _read(self, spans: Iterable[int]) -> list[MaskRows]:
        read = self._chunks.read(self._feed.window, self._wanted(spans))
        return [MaskRows(wanted.first_line, mask, confidence) for wanted, mask, confidence in read]

    def _wanted(self, spans: Iterable[int]) -> Iterator[Wanted]:
        for span in spans:
            start, stop = self._feed.rows(span)
            top = span * self._feed.step - self._delay
            yield Wanted(self._feed.chunk(span), start - top, stop - top, start)


def _lines_before(halo: int, stride: int, chunk_lines: int, lag_lines: int) -> int:
    """How far chunk 0 reaches before the strip's first line: the halo, and the few lines more with which rows come out best.

    What is found is decided at whole multiples of lines. A chunk whose rows end a little beyond such a multiple lets it be
    decided at once, one whose rows end a little before it only with the next chunk.

    >>> _lines_before(112, 16, 64, 90)
    160
    """
    return min(range(halo, halo + chunk_lines, stride), key=lambda before: -(before + lag_lines) % chunk_lines)
