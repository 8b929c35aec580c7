"""A gate that classifies tiles: a row of them is looked at as soon as its lines are there."""

from __future__ import annotations

from edge.manifest import EngineInput
from edge.scores import Activation, Head
from edge.segmenters.gates import CellScores, read_cells
from edge.segmenters.spans import Spans
from edge.segmenters.tile_rows import HostTileRows, OpenTileRows, TileRow
from edge.sessions import Scores, Session
from edge.window import StripWindow


class TileRowGate:
    """Cells are tiles, each judged by itself; implements `edge.segmenters.gates.Gate`.

    session: infers (tiles across, 1, tile_height, tile_width); a row goes in whole, so that its shape never changes.
    size: of the manifest; a cell is its tile, `reduce` times as large, averaged with cv2.INTER_AREA.
    rows: who reads rows of tiles with the session.
    What of a tile lies beyond the run or the strip's sides is reflected.
    """

    def __init__(
        self,
        session: Session,
        *,
        width: int,
        size: EngineInput,
        activation: Activation,
        head: Head,
        rows: OpenTileRows = HostTileRows,
    ) -> None:
        self.cell_lines, self.cell_columns = size.tile_height * size.reduce, size.tile_width * size.reduce
        self.cells_across = -(-width // self.cell_columns)
        # a tile is judged whole, hence by all that is reflected into it at a run's end
        self.spans = Spans(step=self.cell_lines, before=0, after=self.cell_lines, delay=0, mirrored=self.cell_lines - 1)
        self._session = session
        self._activation: Activation = activation
        self._head: Head = head
        self._rows = rows(session, TileRow(self.cells_across, size.tile_height, size.tile_width, size.reduce))

    def begin(self) -> None:
        """Nothing is kept from one row to the next."""

    def look(self, window: StripWindow, span: int) -> Scores:
        """Answers (channels, 1, tiles across)."""
        answers: Scores = self._rows.read(window, span * self.cell_lines).T[:, None]
        return answers

    def read(self, answers: Scores) -> CellScores:
        """Probability of a defect of each tile."""
        return read_cells(answers, self._activation, self._head, self._session.steps)
