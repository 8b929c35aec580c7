"""Shapes of regions from exact integer sums: ellipse in mm, boxes that lie near each other."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge.defects import BoxPx

Ints = npt.NDArray[np.int64]

PIXEL_VARIANCE = 1.0 / 12.0
"""Variance in px² of a uniform distribution one pixel wide: what the extent of each pixel adds to that of their centres."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Exact sums over the centres (line, column) of pixels, strip coordinates; Python integers, which never overflow.

    area: pixels. line, column: first moments. line_line, line_column, column_column: second moments about the origin.
    """

    area: int
    line: int
    column: int
    line_line: int
    line_column: int
    column_column: int

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.area + other.area,
            self.line + other.line,
            self.column + other.column,
            self.line_line + other.line_line,
            self.line_column + other.line_column,
            self.column_column + other.column_column,
        )

    def moved_along(self, lines: int) -> Moments:
        """The sums of the same pixels `lines` further along the strip."""
        return Moments(
            self.area,
            self.line + lines * self.area,
            self.column,
            self.line_line + 2 * lines * self.line + lines * lines * self.area,
            self.line_column + lines * self.column,
            self.column_column,
        )


@dataclass(frozen=True, slots=True)
class Ellipse:
    """The uniform ellipse with the same second moments: axes in mm, angle in degrees.

    orientation_deg: of the major axis against the direction along the strip, in (-90, 90]; positive towards higher columns.
    """

    length_mm: float
    width_mm: float
    orientation_deg: float

    @property
    def aspect_ratio(self) -> float:
        """Length over width, at least 1."""
        return max(1.0, self.length_mm / self.width_mm)


def ellipse_of(moments: Moments, mm_per_line: float, mm_per_column: float) -> Ellipse:
    """Length, width and orientation of pixels, each a square of its own extent.

    A uniform ellipse with semi-axis a has the variance a²/4 along it, so its whole axis is 4 times the square root of
    the covariance's eigenvalue; covariances are scaled to mm before their eigenvalues are taken, since lines and
    columns may differ in size.

    Source: second moments of an ellipse (Haralick and Shapiro, Computer and Robot Vision I, appendix A), as in
    scikit-image's `axis_major_length`, which adds the same 1/12 px² per axis.

    >>> one_pixel = Moments(1, 5, 7, 25, 35, 49)
    >>> round(ellipse_of(one_pixel, 0.5, 0.5).length_mm, 4)
    0.5774
    """
    area = moments.area
    # The numerators are exact, whatever the distance from the strip's start: nothing cancels in floating point.
    along = ((area * moments.line_line - moments.line**2) / area**2 + PIXEL_VARIANCE) * mm_per_line**2
    across = ((area * moments.column_column - moments.column**2) / area**2 + PIXEL_VARIANCE) * mm_per_column**2
    mixed = (area * moments.line_column - moments.line * moments.column) / area**2 * mm_per_line * mm_per_column
    middle, half_difference = (along + across) / 2, (along - across) / 2
    radius = math.hypot(half_difference, mixed)
    # The product of the eigenvalues is the determinant: taken so, the small one of a very long scratch keeps its digits.
    major = middle + radius
    minor = max((along * across - mixed * mixed) / major, 0.0)
    # Both axes have at least a pixel's own extent (the smaller side, for pixels that are not square).
    minor = max(minor, PIXEL_VARIANCE * min(mm_per_line, mm_per_column) ** 2)
    angle = math.degrees(math.atan2(2 * mixed, 2 * half_difference)) / 2
    return Ellipse(4 * math.sqrt(major), 4 * math.sqrt(minor), angle if angle > -90.0 else 90.0)


def box_around(first: BoxPx, second: BoxPx) -> BoxPx:
    """The smallest box that holds both."""
    return BoxPx(
        min(first.line_start, second.line_start),
        max(first.line_stop, second.line_stop),
        min(first.column_start, second.column_start),
        max(first.column_stop, second.column_stop),
    )


def pairs_of_ranges(low: Ints, high: Ints) -> tuple[Ints, Ints]:
    """All (i, j) with low[i] <= j < high[i], ordered by i, then j.

    >>> [a.tolist() for a in pairs_of_ranges(np.array([0, 2]), np.array([2, 3]))]
    [[0, 0, 1], [0, 1, 2]]
    """
    counts = np.maximum(high - low, 0)
    index = np.repeat(np.arange(len(low), dtype=np.int64), counts)
    before = np.cumsum(counts) - counts
    return index, np.arange(len(index), dtype=np.int64) - before[index] + low[index]


def near_pairs(kind: Ints, boxes: Ints, along: int, across: int) -> tuple[Ints, Ints]:
    """Pairs of boxes of one kind with at most `along` empty lines and at most `across` empty columns between them.

    kind: (n,) what may pair. boxes: (n, 4) line_start, line_stop, column_start, column_stop, half-open. Returns indices
    (i, j), each pair once. A sweep over the columns, so that the cost follows the local density, not n².
    """
    if len(kind) < 2:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    # Kinds side by side on one axis, too far apart to pair.
    shift = kind * (int(boxes[:, 3].max()) + across + 1)
    order = np.argsort(shift + boxes[:, 2], kind="stable").astype(np.int64)
    start, stop = (shift + boxes[:, 2])[order], (shift + boxes[:, 3])[order]
    reach = np.searchsorted(start, stop + across, side="right").astype(np.int64)
    left, right = pairs_of_ranges(np.arange(1, len(kind) + 1, dtype=np.int64), reach)
    line_start, line_stop = boxes[order, 0], boxes[order, 1]
    near = (line_start[left] - line_stop[right] <= along) & (line_start[right] - line_stop[left] <= along)
    return order[left[near]], order[right[near]]
