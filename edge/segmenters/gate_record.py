"""What the gate said of the tiles that a row lies in, where tiles overlap."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge.segmenters.canvases import Merge
from edge.tiling import TileAxis

CellScores = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _TileRow:
    line_stop: int
    scores: CellScores
    passed: bool


class GateRecord:
    """Scores of the tile rows that rows to come still lie in, by cells of columns that lie in the same tiles.

    merge: core: a pixel's tile is the one whose core holds it; else all that it lies in, and the highest score counts.
    cell_columns: width of a cell.
    """

    def __init__(self, lines: TileAxis, columns: TileAxis, width: int, merge: Merge) -> None:
        self._lines = lines
        self._rows: deque[_TileRow] = deque(maxlen=1 if merge == "core" else None)
        self.cell_columns = math.gcd(columns.step, columns.margin if merge == "core" else columns.tile)
        cells = range(0, width, self.cell_columns)
        if merge == "core":
            last = columns.count(width) - 1
            tiles = [[min(max((cell - columns.margin) // columns.step, 0), last)] for cell in cells]
        else:
            most = -(-columns.tile // columns.step)
            tiles = [(list(columns.touching(cell, width)) * most)[:most] for cell in cells]
        self._tiles_of_cells = np.array(tiles, np.intp)

    def clear(self) -> None:
        """A new run begins."""
        self._rows.clear()

    def add(self, tile_row: int, scores: npt.NDArray[np.float32], passed: bool) -> None:
        """Note the scores (tiles across,) of the next tile row; passed: whether the gate let any tile of it through."""
        stop = tile_row * self._lines.step + self._lines.tile
        self._rows.append(_TileRow(stop, scores[self._tiles_of_cells].max(axis=1), passed))

    def alike(self, start: int, stop: int) -> tuple[int, CellScores, bool]:
        """How far the rows from `start` on, up to `stop`, lie in the same tile rows; their scores (cells,); if any tile passed.

        Rows come in order: what lies before `start` is forgotten.
        """
        while self._rows[0].line_stop <= start:
            self._rows.popleft()
        end = min([stop, *(row.line_stop for row in self._rows)])
        scores = np.maximum.reduce([row.scores for row in self._rows])
        return end, scores, any(row.passed for row in self._rows)
