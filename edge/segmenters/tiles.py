"""Inspection by tiles: each prepared and judged by itself, merged where they overlap; behind a gate if there is one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from edge.errors import ConfigError
from edge.frame import Lines
from edge.preparation import Preparation
from edge.scores import Activation, Head, Reading, gate_scores
from edge.segmenters import MaskRows
from edge.segmenters.canvases import Merge, canvas_for
from edge.segmenters.gate_record import GateRecord
from edge.segmenters.spans import SpanFeed
from edge.sessions import Scores, Session
from edge.tiling import TileAxis

TileScores = npt.NDArray[np.float32]


class TileEngine:
    """An engine that is asked tiles of the strip, each prepared by itself, at most `batch` at once. Raises ConfigError."""

    def __init__(self, session: Session, preparation: Preparation, batch: int) -> None:
        if batch < 1:
            raise ConfigError(f"tiling.batch: got {batch}; expected at least 1")
        self._session = session
        self.steps = session.steps
        self._preparation = preparation
        self._batch = np.empty((batch, 1, *preparation.engine_size), np.uint8)

    def answers(self, tiles: Sequence[Lines]) -> Iterator[Scores]:
        """The answer (c, h, w) to each tile (lines, columns) uint8, a classifier's (c, 1, 1); valid until the next one."""
        for first in range(0, len(tiles), len(self._batch)):
            some = tiles[first : first + len(self._batch)]
            for tile, prepared in zip(some, self._batch, strict=False):
                self._preparation.apply(tile, prepared[0])
            scores = self._session.infer(self._batch[: len(some)])
            yield from scores if scores.ndim == 4 else scores[:, :, None, None]


@dataclass(frozen=True, slots=True)
class TileGate:
    """A classifier that lets tiles through whose probability of a defect is at or above the threshold."""

    engine: TileEngine
    activation: Activation
    head: Head
    threshold: float

    def scores(self, tiles: Sequence[Lines]) -> TileScores:
        """Probability of a defect of each tile, (n,) float32."""
        answers = np.stack([answer[:, 0, 0].copy() for answer in self.engine.answers(tiles)])
        return gate_scores(answers, self.activation, self.head, self.engine.steps)


class TileSegmenter:
    """Masks from tiles that start at 0, step, 2 * step, ... of the strip's lines and columns, however a run begins and ends.

    A run's first tile row is the last one that begins at or before it, its last one the first that reaches its end; what
    of a tile lies beyond the run or the strip's sides is reflected. Every tile is prepared and judged by itself.

    engine: a segmenter, whose answer is brought to the tile's size where it has another, or a classifier, whose answer
        holds for the whole tile. reading, channels: of its answers.
    merge: what a pixel is that several tiles hold.
        core: what the tile says whose middle step x step pixels hold it; at the outer ends, the nearest tile.
        union: the class that any of its tiles is surest of, clean where all say so.
        mean: probabilities are averaged over its tiles, then classified.
    gate: sees every tile first; those that it stops are clean, and count for nothing in union and mean. Rows of which
        every tile was stopped count as gated.
    Raises ConfigError.
    """

    def __init__(
        self,
        engine: TileEngine,
        reading: Reading,
        channels: int,
        *,
        width: int,
        lines: TileAxis,
        columns: TileAxis,
        merge: Merge,
        gate: TileGate | None = None,
    ) -> None:
        self._engine = engine
        self._gate = gate
        self._width = width
        self._lines, self._columns = lines, columns
        self._canvas = canvas_for(merge, replace(reading, steps=engine.steps), channels, lines, columns, width)
        # a tile row finishes those of its rows that the one before did not reach
        self._feed = SpanFeed(
            width, step=lines.step, before=0, after=lines.tile, delay=lines.step - lines.tile, mirrored=lines.step - 1
        )
        self._row = np.empty((lines.tile, columns.covered(width)), np.uint8)
        starts = range(0, columns.count(width) * columns.step, columns.step)
        self._tiles = [self._row[:, start : start + columns.tile] for start in starts]
        self._record = GateRecord(lines, columns, width, merge)
        self._clean = np.zeros((lines.tile, width), np.uint8)
        self._clean.flags.writeable = False
        self._tile_row = self._next = 0
        self._fresh = True

    @property
    def lag_lines(self) -> int:
        """Lines after a row at which its mask is out: one tile."""
        return self._lines.tile

    def context_lines(self, first_line: int) -> int:
        """Lines before `first_line` that its tile rows look at, were the run to end at any later line."""
        return self._feed.context_lines(first_line)

    def start(self, first_line: int, context: Lines | None = None) -> None:
        """Begin a run."""
        self._feed.start(first_line, context)
        self._record.clear()
        self._next = first_line
        self._fresh = True

    def push(self, lines: Lines) -> list[MaskRows]:
        """Take the next lines, (h, width) uint8; finished rows come out tile row by tile row."""
        return [rows for tile_row in self._feed.push(lines) for rows in self._inspect(tile_row)]

    def flush(self) -> list[MaskRows]:
        """End the run: what its last tile row lacks is reflected, and its rows up to the run's end come out."""
        finished = [rows for tile_row in self._feed.finish() for rows in self._inspect(tile_row)]
        return finished + list(self._finish(self._feed.window.line_stop))

    def _inspect(self, tile_row: int) -> Iterator[MaskRows]:
        line = tile_row * self._lines.step
        self._feed.window.cut(line, line + self._lines.tile, 0, self._row.shape[1], out=self._row)
        self._canvas.begin(self._fresh)
        self._tile_row, self._fresh = tile_row, False
        passed = list(range(len(self._tiles)))
        if self._gate:
            scores = self._gate.scores(self._tiles)
            passed = np.flatnonzero(scores >= np.float32(self._gate.threshold)).tolist()
            self._record.add(tile_row, scores, bool(passed))
        for tile, answer in zip(passed, self._engine.answers([self._tiles[tile] for tile in passed]), strict=True):
            self._canvas.add(tile, answer)
        yield from self._finish(min(line + self._canvas.settled_rows, self._feed.window.line_stop))

    def _finish(self, stop: int) -> Iterator[MaskRows]:
        """The rows up to `stop` that are not out yet."""
        top = self._tile_row * self._lines.step
        while self._next < stop:
            start, self._next = self._next, stop
            if not self._gate:
                yield MaskRows(start, *self._canvas.rows(start - top, stop - top))
                continue
            self._next, scores, passed = self._record.alike(start, stop)
            clean = self._clean[: self._next - start]
            mask, confidence = self._canvas.rows(start - top, self._next - top) if passed else (clean, clean)
            yield MaskRows(start, mask, confidence, passed, scores, self._record.cell_columns)
