"""Dense inspection, every line computed once: chunks of lines through the streaming engine, which carries its state."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edge.frame import Lines
from edge.scores import Reading
from edge.segmenters import MaskRows
from edge.segmenters.spans import SpanFeed, check_geometry
from edge.sessions import StreamingSession
from edge.window import padded_columns


class StreamingSegmenter:
    """The mask that one inference over the whole run, reflected by `halo` at its four sides, gives.

    session: made for chunks of `padded_columns(width, halo, stride)` columns; its chunk height is the one used here.
    halo: at least the engine's receptive radius, a multiple of the stride. reading: what the engine's answers mean.
    Chunk k always holds the strip's lines [k * chunk_lines - before, (k + 1) * chunk_lines - before), so that a restart in
    the middle, and kernels whose rounding depends on a row's place in the chunk, give the same bits; `before` is the halo and
    a little more (`_lines_before`). Raises ConfigError.
    """

    def __init__(self, session: StreamingSession, *, width: int, halo: int, stride: int, reading: Reading) -> None:
        check_geometry(halo=halo, stride=stride, chunk_lines=session.chunk_lines)
        chunk_lines = session.chunk_lines
        self._session = session
        self._reading = replace(reading, steps=session.steps)
        self._halo = halo
        self._columns = slice(halo, halo + width)
        self._before = _lines_before(halo, stride, chunk_lines, session.lag_lines)
        delay = self._before + session.lag_lines
        self._feed = SpanFeed(width, step=chunk_lines, before=self._before, after=chunk_lines - self._before, delay=delay)
        self._chunk = np.empty((1, 1, chunk_lines, padded_columns(width, halo, stride)), np.uint8)
        self._delay = delay

    @property
    def lag_lines(self) -> int:
        """Lines after a row at which its mask is out: the engine's lag and one chunk, at a run's begin the halo and one chunk."""
        return self._feed.lag_lines

    def context_lines(self, first_line: int) -> int:
        """Lines before `first_line` from which the state can be built up again."""
        return self._feed.context_lines(first_line)

    def start(self, first_line: int, context: Lines | None = None) -> None:
        """Begin a run; what the state held is forgotten."""
        self._session.reset()
        self._feed.start(first_line, context)

    def push(self, lines: Lines) -> list[MaskRows]:
        """Take the next lines, (h, width) uint8; finished rows come out chunk by chunk."""
        return [rows for span in self._feed.push(lines) for rows in self._step(span)]

    def flush(self) -> list[MaskRows]:
        """End the run: reflected lines push the last rows out."""
        return [rows for span in self._feed.finish() for rows in self._step(span)]

    def _step(self, span: int) -> list[MaskRows]:
        first = span * self._feed.step
        chunk = self._chunk[0, 0]
        begin, end = first - self._before, first + self._feed.after
        self._feed.window.cut(begin, end, -self._halo, chunk.shape[1] - self._halo, out=chunk)
        scores = self._session.step(self._chunk)
        start, stop = self._feed.rows(span)
        if stop <= start:
            return []
        top = first - self._delay
        mask, confidence = self._reading.classes(scores[0, :, start - top : stop - top, self._columns])
        return [MaskRows(start, mask, confidence)]


def _lines_before(halo: int, stride: int, chunk_lines: int, lag_lines: int) -> int:
    """How far chunk 0 reaches before the strip's first line: the halo, and the few lines more with which rows come out best.

    What is found is decided at whole multiples of lines. A chunk whose rows end a little beyond such a multiple lets it be
    decided at once, one whose rows end a little before it only with the next chunk.

    >>> _lines_before(112, 16, 64, 90)
    160
    """
    return min(range(halo, halo + chunk_lines, stride), key=lambda before: -(before + lag_lines) % chunk_lines)
