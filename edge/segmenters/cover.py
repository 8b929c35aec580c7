"""Rectangles over the alarmed cells of a band, so that the pixels computed in them, their halo included, are nearly least."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SMALLEST_PX = 32
"""No side of a rectangle is smaller, were the cells finer: a halo is several times as large, and every size is an engine more."""

Alarms = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, order=True)
class Rectangle:
    """Cells of a band: `rows` x `columns` of them, the first one at `row`, `column`. Ordered by size first."""

    rows: int
    columns: int
    row: int
    column: int


@dataclass(frozen=True, slots=True)
class _Stack:
    """How some rows of cells are covered by rectangles above each other: spans of rows, and their pixels for each column's."""

    lines: int
    spans: tuple[tuple[int, int], ...]


def side_lengths(cell: int, most: int, across: int) -> tuple[int, ...]:
    """Sides that rectangles may have, in cells: doubling up to `most`, none larger than the `across` that there are.

    An engine is compiled for each size, so there can only be few: with cells of 32 px and a halo of 80 px powers of two cost 1.15
    times the pixels of free sizes. One engine for any size took 1.7 times as long per pixel where sizes changed (OpenVINO).

    >>> side_lengths(32, 8, 128), side_lengths(16, 16, 5)
    ((1, 2, 4, 8), (2, 4, 5))
    """
    side = 1
    while side * cell < SMALLEST_PX:
        side *= 2
    sides = []
    while side < most:
        sides.append(side)
        side *= 2
    return tuple(sorted({min(side, across) for side in [*sides, most]}))


class Cover:
    """Covers of bands of `rows` x `columns` cells.

    cell_lines, cell_columns: px of a cell. halo: px that each rectangle has at all four sides when it is computed.
    heights, widths: sides that a rectangle may have, in cells, rising; the highest are at most the band.

    The band is cut into stretches of columns, each stretch into spans of rows; of all such covers the cheapest is taken, by
    dynamic programming over the columns. Each rectangle then shrinks to the alarmed cells within it. One crop per cell is among
    the covers looked at, so none is dearer. What comes out depends on the alarmed cells alone.
    """

    def __init__(
        self,
        rows: int,
        columns: int,
        *,
        cell_lines: int,
        cell_columns: int,
        halo: int,
        heights: tuple[int, ...],
        widths: tuple[int, ...],
    ) -> None:
        self._rows, self._columns = rows, columns
        self._heights, self._widths = heights, widths
        self._lines_of = [0] + [_fitting(n, heights) * cell_lines + 2 * halo for n in range(1, heights[-1] + 1)]
        self._columns_of = [0] + [_fitting(n, widths) * cell_columns + 2 * halo for n in range(1, widths[-1] + 1)]
        self._bits = [1 << row for row in range(rows)]
        self._stacks: dict[int, _Stack] = {0: _Stack(0, ())}

    def rectangles(self, alarmed: Alarms) -> list[Rectangle]:
        """Rectangles that hold every alarmed cell of a band, (rows, columns) bool; in order, they may overlap."""
        columns = np.flatnonzero(alarmed.any(axis=0)).tolist()
        masks = [sum(bit for bit, on in zip(self._bits, column, strict=True) if on) for column in alarmed.T[columns].tolist()]
        found = []
        stop = len(columns)
        starts = self._stretches(columns, masks)
        while stop:
            start = starts[stop]
            found += self._of_stretch(columns[start:stop], masks[start:stop])
            stop = start
        return sorted(found)

    def _stretches(self, columns: list[int], masks: list[int]) -> list[int]:
        """For each number of alarmed columns, counted from the left, where the last stretch of their cheapest cover starts."""
        least = [0]
        starts = [0]
        for stop in range(1, len(columns) + 1):
            mask, best, best_start = 0, -1, 0
            for start in range(stop - 1, -1, -1):
                width = columns[stop - 1] - columns[start] + 1
                if width > self._widths[-1]:
                    break
                mask |= masks[start]
                cost = least[start] + self._columns_of[width] * self._stack(mask).lines
                if best < 0 or cost < best:
                    best, best_start = cost, start
            least.append(best)
            starts.append(best_start)
        return starts

    def _of_stretch(self, columns: list[int], masks: list[int]) -> list[Rectangle]:
        mask = 0
        for one in masks:
            mask |= one
        found = []
        for row_start, row_stop in self._stack(mask).spans:
            span = (1 << row_stop) - (1 << row_start)
            held = [column for column, one in zip(columns, masks, strict=True) if one & span]
            height = _fitting(row_stop - row_start, self._heights)
            width = _fitting(held[-1] - held[0] + 1, self._widths)
            found.append(Rectangle(height, width, min(row_start, self._rows - height), min(held[0], self._columns - width)))
        return found

    def _stack(self, mask: int) -> _Stack:
        """The cheapest way to cover rows of cells, bit i of `mask` is row i."""
        known = self._stacks.get(mask)
        if known is not None:
            return known
        first = (mask & -mask).bit_length() - 1
        best: _Stack | None = None
        for stop in range(first + 1, min(first + self._heights[-1], mask.bit_length()) + 1):
            if not mask >> (stop - 1) & 1:
                continue
            rest = self._stack(mask >> stop << stop)
            stack = _Stack(self._lines_of[stop - first] + rest.lines, ((first, stop), *rest.spans))
            if best is None or stack.lines <= best.lines:
                best = stack
        assert best is not None  # the first row alone is always among them
        self._stacks[mask] = best
        return best


def _fitting(cells: int, sides: tuple[int, ...]) -> int:
    """The smallest side that holds so many cells."""
    return sides[bisect_left(sides, cells)]
