"""A gate that runs as the strip runs: one pass over the reduced strip, every row computed once, a score for every cell."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from edge.frame import Lines
from edge.scores import Activation, Head
from edge.segmenters.gates import CellScores, read_cells
from edge.segmenters.spans import Spans, check_geometry
from edge.sessions import Scores, StreamingSession
from edge.window import StripWindow, padded_columns, reflect


class StreamingGate:
    """The map that one inference over the whole run gives, reflected at its four sides; implements `edge.segmenters.gates.Gate`.

    session: made for `gate_columns(width, reduce, halo, stride)` columns.
    reduce: the strip is averaged over reduce x reduce pixels (cv2.INTER_AREA), counted from its first line and column.
    cell, halo, stride: of the engine, in pixels of its input: after `reduce`. halo: at least the engine's receptive radius.
    Chunk k always holds the same lines of the strip, wherever a run begins. Raises ConfigError.
    """

    def __init__(
        self,
        session: StreamingSession,
        *,
        width: int,
        reduce: int,
        cell: int,
        halo: int,
        stride: int,
        activation: Activation,
        head: Head,
    ) -> None:
        check_geometry(halo=halo, stride=stride, chunk_lines=session.chunk_lines)
        self.cell_lines = self.cell_columns = cell * reduce
        self.cells_across = -(-width // self.cell_columns)
        step, lag = session.chunk_lines, session.lag_lines
        # fed some lines earlier, a chunk ends where the rows before a multiple of `step` do: none waits for the next chunk
        before = halo + -(halo + lag) % step // stride * stride
        self.spans = Spans(
            step=step * reduce,
            before=before * reduce,
            after=(step - before) * reduce,
            delay=(before + lag) * reduce,
            mirrored=(halo + cell) * reduce,
        )
        self._session = session
        self._activation: Activation = activation
        self._head: Head = head
        self._cells = slice(halo // cell, halo // cell + self.cells_across)
        self._reduce = reduce
        self._width = width
        self._chunk = np.empty((1, 1, step, gate_columns(width, reduce, halo, stride)), np.uint8)
        self._lines = np.empty((step * reduce, width), np.uint8)
        # columns of the chunk, and the strip's that are averaged for them: those that need no reflection, and beyond
        whole = width // reduce
        self._whole = slice(halo, halo + whole), slice(0, whole * reduce)
        columns = self._chunk.shape[3]
        beyond = (slice(0, halo), slice(halo + whole, columns))
        self._beyond = [(part, _reflected(part, halo, reduce, width)) for part in beyond if part.start < part.stop]
        self._margin = np.empty((step * reduce, max(halo, columns - halo - whole) * reduce), np.uint8)

    def begin(self) -> None:
        """What the engine's state held is forgotten."""
        self._session.reset()

    def look(self, window: StripWindow, span: int) -> Scores:
        """Answers (channels, chunk lines / cell, cells across)."""
        first, reduce = span * self.spans.step, self._reduce
        pieces = window.pieces(first - self.spans.before, first + self.spans.after)
        if any(rows.start % reduce for rows, _ in pieces):
            # lines are averaged with some that lie in another piece: where a run begins or ends between two of the reduced strip
            window.cut(first - self.spans.before, first + self.spans.after, 0, self._width, out=self._lines)
            pieces = [(slice(0, len(self._lines)), self._lines)]
        for rows, lines in pieces:
            self._average(lines, self._chunk[0, 0, rows.start // reduce : rows.stop // reduce])
        return self._session.step(self._chunk)[0, :, :, self._cells]

    def read(self, answers: Scores) -> CellScores:
        """Probability of a defect of each cell."""
        return read_cells(answers, self._activation, self._head, self._session.steps)

    def _average(self, lines: Lines, out: Lines) -> None:
        """Lines of the strip, (h, width), averaged and reflected to rows of the chunk, (h / reduce, columns)."""
        columns, of_strip = self._whole
        if columns.start < columns.stop:
            _area(lines[:, of_strip], out[:, columns])
        for columns, reflected in self._beyond:
            margin = self._margin[: len(lines), : (columns.stop - columns.start) * self._reduce]
            margin[:] = lines[:, reflected]
            _area(margin, out[:, columns])


def _area(lines: Lines, out: Lines) -> None:
    cv2.resize(lines, out.shape[::-1], dst=out, interpolation=cv2.INTER_AREA)


def gate_columns(width: int, reduce: int, halo: int, stride: int) -> int:
    """Columns that a gate's engine gets: the reduced strip, a halo at either side, and what the stride wants at the right."""
    return padded_columns(-(-width // reduce), halo, stride)


def _reflected(columns: slice, halo: int, reduce: int, width: int) -> slice | npt.NDArray[np.intp]:
    """The strip's columns that are averaged for some of the chunk's; a slice, which copies faster, where they fold once."""
    folded = reflect(np.arange((columns.start - halo) * reduce, (columns.stop - halo) * reduce), 0, width)
    if (np.diff(folded) == -1).all():
        return slice(int(folded[0]), int(folded[-1]) - 1 if folded[-1] else None, -1)
    return folded
