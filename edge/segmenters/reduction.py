"""The strip averaged over squares of pixels, as a gate sees it, chunk by chunk."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from edge.frame import Lines
from edge.window import StripWindow, reflect


class Reduction:
    """Chunks (lines, columns) of the strip averaged over factor x factor pixels, counted from the strip's first line and column.

    width: of the strip. halo: columns of the chunk before the strip's first one. What lies beyond is reflected, then averaged.
    """

    def __init__(self, width: int, factor: int, halo: int, lines: int, columns: int) -> None:
        self.factor, self.halo, self.lines, self.columns = factor, halo, lines, columns
        self._cut = np.empty((lines * factor, width), np.uint8)
        # columns of the chunk, and the strip's that are averaged for them: those that need no reflection, and beyond
        whole = width // factor
        self._whole = slice(halo, halo + whole), slice(0, whole * factor)
        beyond = (slice(0, halo), slice(halo + whole, columns))
        self._beyond = [(part, _reflected(part, halo, factor, width)) for part in beyond if part.start < part.stop]
        self._margin = np.empty((lines * factor, max(halo, columns - halo - whole) * factor), np.uint8)

    @property
    def strip_lines(self) -> int:
        """Lines of the strip that a chunk is made of."""
        return len(self._cut)

    def write(self, window: StripWindow, line: int, out: Lines) -> None:
        """Write the chunk that begins at a line of the strip, averaged by cv2.INTER_AREA."""
        stop, width, factor = line + self.strip_lines, self._cut.shape[1], self.factor
        pieces = window.pieces(line, stop)
        if any(rows.start % factor for rows, _ in pieces):
            # lines are averaged with some that lie in another piece: where a run begins or ends between two of the reduced strip
            window.cut(line, stop, 0, width, out=self._cut)
            pieces = [(slice(0, len(self._cut)), self._cut)]
        for rows, lines in pieces:
            self._average(lines, out[rows.start // factor : rows.stop // factor])

    def _average(self, lines: Lines, out: Lines) -> None:
        """Lines of the strip, (h, width), averaged and reflected to rows of the chunk, (h / factor, columns)."""
        columns, of_strip = self._whole
        if columns.start < columns.stop:
            area(lines[:, of_strip], out[:, columns])
        for columns, reflected in self._beyond:
            margin = self._margin[: len(lines), : (columns.stop - columns.start) * self.factor]
            margin[:] = lines[:, reflected]
            area(margin, out[:, columns])


def area(lines: Lines, out: Lines) -> None:
    """Average lines to the size of `out` by cv2.INTER_AREA."""
    cv2.resize(lines, out.shape[::-1], dst=out, interpolation=cv2.INTER_AREA)


def _reflected(columns: slice, halo: int, factor: int, width: int) -> slice | npt.NDArray[np.intp]:
    """The strip's columns that are averaged for some of the chunk's; a slice, which copies faster, where they fold once."""
    folded = reflect(np.arange((columns.start - halo) * factor, (columns.stop - halo) * factor), 0, width)
    if (np.diff(folded) == -1).all():
        return slice(int(folded[0]), int(folded[-1]) - 1 if folded[-1] else None, -1)
    return folded
