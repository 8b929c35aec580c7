"""A gate that classifies tiles: a row of them is looked at as soon as its lines are there."""

from __future__ import annotations

import cv2
import numpy as np

from edge.manifest import EngineInput
from edge.scores import Activation, Head
from edge.segmenters.gates import CellScores, read_cells
from edge.segmenters.spans import Spans
from edge.sessions import Scores, Session
from edge.window import StripWindow


class TileRowGate:
    """Cells are tiles, each judged by itself; implements `edge.segmenters.gates.Gate`.

    session: infers (tiles across, 1, tile_height, tile_width); a row goes in whole, so that its shape never changes.
    size: of the manifest; a cell is its tile, `reduce` times as large, averaged with cv2.INTER_AREA.
    What of a tile lies beyond the run or the strip's sides is reflected.
    """

    def __init__(self, session: Session, *, width: int, size: EngineInput, activation: Activation, head: Head) -> None:
        self.cell_lines, self.cell_columns = size.tile_height * size.reduce, size.tile_width * size.reduce
        self.cells_across = -(-width // self.cell_columns)
        # a tile is judged whole, hence by all that is reflected into it at a run's end
        self.spans = Spans(step=self.cell_lines, before=0, after=self.cell_lines, delay=0, mirrored=self.cell_lines - 1)
        self._session = session
        self._activation: Activation = activation
        self._head: Head = head
        self._lines = np.empty((self.cell_lines, self.cells_across * self.cell_columns), np.uint8)
        self._reduced = np.empty((size.tile_height, self.cells_across * size.tile_width), np.uint8)
        self._tiles = np.empty((self.cells_across, 1, size.tile_height, size.tile_width), np.uint8)
        session.prepare(self._tiles.shape)

    def begin(self) -> None:
        """Nothing is kept from one row to the next."""

    def look(self, window: StripWindow, span: int) -> Scores:
        """Answers (channels, 1, tiles across)."""
        line = span * self.cell_lines
        window.cut(line, line + self.cell_lines, 0, self._lines.shape[1], out=self._lines)
        reduced = self._lines
        if reduced.shape != self._reduced.shape:
            reduced = self._reduced
            cv2.resize(self._lines, reduced.shape[::-1], dst=reduced, interpolation=cv2.INTER_AREA)
        tiles, _, height, width = self._tiles.shape
        self._tiles[:, 0] = reduced.reshape(height, tiles, width).swapaxes(0, 1)
        answers: Scores = self._session.infer(self._tiles).T[:, None]
        return answers

    def read(self, answers: Scores) -> CellScores:
        """Probability of a defect of each tile."""
        return read_cells(answers, self._activation, self._head, self._session.steps)
