"""Gates: cheap networks that see every line and say how probable a defect is, cell by cell of a grid on the strip."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from edge.scores import Activation, Head, gate_scores
from edge.segmenters.spans import Spans
from edge.sessions import Scores, Steps
from edge.window import StripWindow

CellScores = npt.NDArray[np.float32]
"""(rows of cells, cells across), probabilities of a defect."""


@runtime_checkable
class Gate(Protocol):
    """Looks at spans of a run one after the other.

    Row j of the grid holds the strip's lines [j * cell_lines, (j + 1) * cell_lines), cell i of a row the columns
    [i * cell_columns, (i + 1) * cell_columns); the last cell of a row may reach beyond the strip.
    spans: which lines a look wants, and which ones it finishes the cells of: a multiple of cell_lines.
    """

    spans: Spans
    cell_lines: int
    cell_columns: int
    cells_across: int

    def begin(self) -> None:
        """A run begins: what was kept of the last one is forgotten."""
        ...

    def look(self, window: StripWindow, span: int) -> Scores:
        """The engine's answers for the rows of cells that the next span finishes, (channels, rows, cells across).

        Valid until the next look.
        """
        ...

    def read(self, answers: Scores) -> CellScores:
        """What answers mean, of any number of rows."""
        ...


def read_cells(answers: Scores, activation: Activation, head: Head, steps: Steps | None) -> CellScores:
    """Probability of a defect of each cell: answers (channels, rows, cells across) -> (rows, cells across)."""
    channels, rows, across = answers.shape
    return gate_scores(answers.reshape(channels, -1).T, activation, head, steps).reshape(rows, across)
