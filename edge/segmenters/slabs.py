"""Dense inspection without state: slabs of the strip's full width, their halo computed again each time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edge.frame import Lines
from edge.scores import Reading
from edge.segmenters import MaskRows
from edge.segmenters.spans import SpanFeed, check_geometry
from edge.sessions import Session
from edge.window import padded_columns


class SlabSegmenter:
    """The masks of the streaming segmenter, for any engine: it costs (chunk_lines + 2 * halo) / chunk_lines times the work.

    session: infers (1, 1, chunk_lines + 2 * halo, padded_columns(width, halo, stride)).
    halo: at least the engine's receptive radius, a multiple of the stride. reading: what the engine's answers mean.
    Slab k finishes the strip's rows [k * chunk_lines, (k + 1) * chunk_lines), wherever the run begins. Raises ConfigError.
    """

    def __init__(self, session: Session, *, width: int, chunk_lines: int, halo: int, stride: int, reading: Reading) -> None:
        check_geometry(halo=halo, stride=stride, chunk_lines=chunk_lines)
        self._session = session
        self._reading = replace(reading, steps=session.steps)
        self._halo = halo
        self._columns = slice(halo, halo + width)
        self._feed = SpanFeed(width, step=chunk_lines, before=halo, after=chunk_lines + halo, delay=0)
        self._slab = np.empty((1, 1, chunk_lines + 2 * halo, padded_columns(width, halo, stride)), np.uint8)

    @property
    def lag_lines(self) -> int:
        """Lines after a row at which its mask is out: one chunk and the halo."""
        return self._feed.lag_lines

    def context_lines(self, first_line: int) -> int:
        """Lines before `first_line` that its slab looks at."""
        return self._feed.context_lines(first_line)

    def start(self, first_line: int, context: Lines | None = None) -> None:
        """Begin a run."""
        self._feed.start(first_line, context)

    def push(self, lines: Lines) -> list[MaskRows]:
        """Take the next lines, (h, width) uint8; finished rows come out slab by slab."""
        return [self._infer(span) for span in self._feed.push(lines)]

    def flush(self) -> list[MaskRows]:
        """End the run: its last slab is filled up with reflected lines."""
        return [self._infer(span) for span in self._feed.finish()]

    def _infer(self, span: int) -> MaskRows:
        slab = self._slab[0, 0]
        top = span * self._feed.step - self._halo
        self._feed.window.cut(top, top + slab.shape[0], -self._halo, slab.shape[1] - self._halo, out=slab)
        scores = self._session.infer(self._slab)
        start, stop = self._feed.rows(span)
        mask, confidence = self._reading.classes(scores[0, :, start - top : stop - top, self._columns])
        return MaskRows(start, mask, confidence)
