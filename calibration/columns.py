"""What each column of a sensor says about a scene that does not change: mean and temporal noise, without what passed by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calibration.recordings import Flags, Floats, Levels

OUTLIER_SIGMAS = 5.0
"""Beyond it a sample is dust that passes, or a defect of the target. Of normal noise 6e-7 of the samples are, so that cutting
them off moves no mean that 1e5 lines could tell."""
_SMALLEST_SIGMA = 0.5
"""Grey levels: noise below it does not show between whole ones, and quantiles of 8 bits are whole."""
_COLUMNS_AT_ONCE = 256


@dataclass(frozen=True, slots=True, eq=False)
class ColumnSignal:
    """Of each column over all lines, in levels, outliers left out.

    mean, noise: (width,) float64; noise is the standard deviation over lines. kept: (width,) int64 samples that count.
    """

    mean: Floats
    noise: Floats
    kept: np.ndarray[tuple[int], np.dtype[np.int64]]
    lines: int

    @property
    def error(self) -> Floats:
        """Standard error of each mean."""
        return np.asarray(self.noise / np.sqrt(self.kept))

    @property
    def disturbed(self) -> Floats:
        """Share of each column's samples that were left out."""
        return np.asarray(1.0 - self.kept / self.lines)


def column_signal(levels: Levels, unit: int = 1) -> ColumnSignal:
    """Robust mean of each column of (n, width) levels, n >= 2: of the samples within 5 sigma of the column's median.

    sigma comes from the samples between which the middle 68 % lie, so that up to 16 % of disturbed lines do not widen it.
    unit: levels of a grey level.
    """
    lines, width = levels.shape
    mean, noise, kept = np.empty(width), np.empty(width), np.empty(width, np.int64)
    for first in range(0, width, _COLUMNS_AT_ONCE):
        some = slice(first, first + _COLUMNS_AT_ONCE)
        ordered = np.sort(levels[:, some], axis=0).astype(np.float64)
        low, middle, high = ordered[int(0.1587 * lines)], ordered[lines // 2], ordered[int(0.8413 * lines)]
        reach = OUTLIER_SIGMAS * np.maximum((high - low) / 2, _SMALLEST_SIGMA * unit) + 0.5 * unit
        counts = np.abs(ordered - middle) <= reach
        kept[some] = counts.sum(axis=0)
        mean[some] = np.where(counts, ordered, 0.0).sum(axis=0) / kept[some]
        squares = np.where(counts, (ordered - mean[some]) ** 2, 0.0).sum(axis=0)
        noise[some] = np.sqrt(squares / np.maximum(kept[some] - 1, 1))
    return ColumnSignal(mean, noise, kept, lines)


def local_median(values: Floats, reach: int) -> Floats:
    """(width,) median of the values up to `reach` columns away, mirrored at the ends."""
    reach = min(reach, len(values) - 1)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(values, reach, mode="reflect"), 2 * reach + 1)
    return np.asarray(np.median(windows, axis=1))


def runs_of(flags: Flags) -> list[tuple[int, int]]:
    """Half-open runs of True.

    >>> runs_of(np.array([True, False, True, True]))
    [(0, 1), (2, 4)]
    """
    bounds = np.flatnonzero(np.diff(flags, prepend=False, append=False)).tolist()
    return list(zip(bounds[::2], bounds[1::2], strict=True))
