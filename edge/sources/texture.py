"""Clean hot-rolled steel as a line camera sees it: grain, mill streaks, scale, lighting, the sensor's columns, both edges.

All per-pixel arithmetic is in integers, grey levels in 64ths, so that a line has the same bits whatever block it is
asked in. Two banks of grain with coprime periods repeat together only after 388,000 lines; streaks, blotches and drift
come from rows of an endless field, one every 64 lines, interpolated between.
"""

from __future__ import annotations

import random
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from edge.frame import Lines
from edge.sources.noise import GAUSSIAN_SIGMA, Floats, ValueNoise, gaussian_like

_PERIOD_A, _PERIOD_B = 509, 763
"""Lines in the two banks of grain; coprime."""
_KNOT_LINES = 64
"""Lines between two rows of the slow field."""
_REACH = 6
"""Rows of noise before and after that a row of the slow field is a mean of, at most."""
_BLOCK_PIXELS = 1 << 16
"""Pixels worked on at once: the int16 buffers then stay in a 1 MB second-level cache."""
_DARKEST_STEEL = 24
"""Clean steel is never darker: whoever looks for background below 20 finds only background."""
_FIELD_LIMIT = 240
"""Eighths of a grey level that the slow field may reach: 2 * 240 * 63 still fits int16."""

(
    _STREAM_LOOK,
    _STREAM_A,
    _STREAM_B,
    _STREAM_STREAKS,
    _STREAM_BLOTCHES,
    _STREAM_DRIFT,
    _STREAM_EDGE,
    _STREAM_DARK,
    _STREAM_COLUMN,
) = range(9)

Int16 = npt.NDArray[np.int16]


class CleanSteel:
    """An endless clean strip, (width) columns; every line is a pure function of (width, seed, line).

    grey: (width,) float64, mean grey level per column without texture.
    contrast: standard deviation of the whole texture as a share of `grey`.
    """

    def __init__(self, width: int, seed: int) -> None:
        self.width = width
        self._seed = seed
        look = random.Random(f"{seed}/{_STREAM_LOOK}")
        mean = look.uniform(95.0, 175.0)
        self.contrast = 0.015 * (0.075 / 0.015) ** look.random()
        streaks, blotches = look.uniform(0.25, 0.6), look.uniform(0.1, 0.35)
        self._streak = self.contrast * streaks
        self._blotch = self.contrast * blotches
        self._grain = self.contrast * (1.0 - streaks**2 - blotches**2) ** 0.5
        self._drift_share = look.uniform(0.01, 0.05)
        self._streak_reach = look.randint(2, _REACH)
        self._streak_scales = (look.randint(1, 3), look.randint(7, 25))
        self._blotch_columns = look.randint(40, 160)
        self._drifts = (ValueNoise(4099, seed, _STREAM_DRIFT, 1), ValueNoise(23003, seed, _STREAM_DRIFT, 2))
        self._edges = tuple(_Edge(width, look.uniform(0.0235, 0.0365), seed, side) for side in (0, 1))

        across = (np.arange(width) + 0.5) / width * 2.0 - 1.0 - look.uniform(-0.15, 0.15)
        fall_off = 1.0 - look.uniform(0.12, 0.38) * np.abs(across) ** look.uniform(1.6, 3.0)
        gain = 1.0 + 0.012 * gaussian_like(width, seed, _STREAM_COLUMN, 0) / GAUSSIAN_SIGMA
        offset = 1.0 * gaussian_like(width, seed, _STREAM_COLUMN, 1) / GAUSSIAN_SIGMA
        self._gain = fall_off / fall_off.mean() * gain * mean
        self.grey: Floats = self._gain + offset

        split = look.uniform(0.4, 0.7)
        grain_a = _bank(_PERIOD_A, width, (seed, _STREAM_A), look.uniform(0.3, 0.6), look.randint(9, 31))
        grain_b = _bank(_PERIOD_B, width, (seed, _STREAM_B), look.uniform(0.3, 0.6), look.randint(31, 81))
        self._bank_a = np.rint(64.0 * (self.grey + split**0.5 * self._grain * self._gain * grain_a) + 32.0).astype(np.int16)
        self._bank_b = np.rint(64.0 * (1.0 - split) ** 0.5 * self._grain * self._gain * grain_b).astype(np.int16)
        zone = max(edge.zone_stop for edge in self._edges)
        dark = gaussian_like(_PERIOD_A * 2 * zone, seed, _STREAM_DARK).reshape(2, _PERIOD_A, zone) / GAUSSIAN_SIGMA
        self._dark = np.clip(np.rint(look.uniform(5.0, 10.0) + look.uniform(1.0, 2.0) * dark), 0, 18).astype(np.int16)
        self._streak_noise = lru_cache(maxsize=4 * _REACH + 8)(self._make_streak_noise)
        self._blotch_noise = lru_cache(maxsize=4 * _REACH + 8)(self._make_blotch_noise)
        self._field = lru_cache(maxsize=64)(self._make_field)

    def lines(self, first_line: int, count: int) -> Lines:
        """(count, width) uint8, the strip's lines from `first_line` on."""
        lines = np.empty((count, self.width), np.uint8)
        most = max(1, _BLOCK_PIXELS // self.width)
        line, stop = first_line, first_line + count
        while line < stop:
            knot, fraction = divmod(line, _KNOT_LINES)
            a, b = line % _PERIOD_A, line % _PERIOD_B
            n = min(most, stop - line, _KNOT_LINES - fraction, _PERIOD_A - a, _PERIOD_B - b)
            start, step = self._field(knot)
            grey = step * np.arange(fraction, fraction + n, dtype=np.int16)[:, None]
            grey += start
            grey >>= 3
            grey += self._bank_a[a : a + n]
            grey += self._bank_b[b : b + n]
            grey >>= 6
            np.clip(grey, _DARKEST_STEEL, 255, out=grey)
            lines[line - first_line : line - first_line + n] = grey
            line += n
        self._darken_beyond_edges(lines, first_line)
        return lines

    def edges(self, first_line: int, count: int) -> npt.NDArray[np.int64]:
        """(count, 2) int64: the first column of steel, and the one after the last, of every line."""
        left, right = (edge.at(first_line, count) for edge in self._edges)
        # a column is steel where the edge leaves at least half of it
        return np.stack([(left + 8) >> 4, self.width - ((right + 8) >> 4)], axis=1)

    @property
    def steel_columns(self) -> tuple[int, int]:
        """Columns that are steel on every line, half-open."""
        left, right = self._edges
        return left.zone_stop, self.width - right.zone_stop

    def _darken_beyond_edges(self, lines: Lines, first_line: int) -> None:
        rows = np.arange(first_line, first_line + lines.shape[0])
        for side, edge in enumerate(self._edges):
            view = (lines if side == 0 else lines[:, ::-1])[:, : edge.zone_stop]
            dark = self._dark[side].take(rows % _PERIOD_A, axis=0)[:, : edge.zone_stop]
            columns = np.arange(edge.zone_stop, dtype=np.int16)
            steel = np.clip((columns + 1)[None] * 16 - edge.at(first_line, lines.shape[0])[:, None], 0, 16).astype(np.int16)
            view[:] = dark + (((view.astype(np.int16) - dark) * steel) >> 4)

    def _make_streak_noise(self, row: int) -> Int16:
        return gaussian_like(self.width, self._seed, _STREAM_STREAKS, row)

    def _make_blotch_noise(self, row: int) -> Int16:
        return gaussian_like(self.width // self._blotch_columns + 3, self._seed, _STREAM_BLOTCHES, row)

    def _make_field(self, knot: int) -> tuple[Int16, Int16]:
        start, stop = self._field_row(knot), self._field_row(knot + 1)
        return start * np.int16(_KNOT_LINES), stop - start

    def _field_row(self, knot: int) -> Int16:
        """(width,) int16, eighths of a grey level: streaks, blotches and drift at line knot * _KNOT_LINES."""
        reach = self._streak_reach
        weights = reach + 1 - np.abs(np.arange(-reach, reach + 1))
        fine = np.zeros(self.width, np.int32)
        for weight, row in zip(weights.tolist(), range(knot + _REACH - reach, knot + _REACH + reach + 1), strict=True):
            fine += weight * self._streak_noise(row).astype(np.int32)
        power = float((weights**2).sum()) ** 0.5 * GAUSSIAN_SIGMA
        streaks = sum(_box_sum(fine, 2 * half + 1) / (power * (2 * half + 1) ** 0.5) for half in self._streak_scales)

        rows = [self._blotch_noise(row) for row in range(knot, knot + 2 * _REACH + 1)]
        coarse = np.asarray(np.sum(rows, axis=0, dtype=np.int32))
        columns = np.arange(self.width)
        low, inside = columns // self._blotch_columns, (columns % self._blotch_columns) / self._blotch_columns
        inside = inside * inside * (3.0 - 2.0 * inside)
        blotches = (coarse[low] * (1.0 - inside) + coarse[low + 1] * inside) / (GAUSSIAN_SIGMA * (2 * _REACH + 1) ** 0.5)

        line = np.array([knot * _KNOT_LINES], np.int64)
        drift = float(self._drifts[0].at(line)[0] * 0.5 + self._drifts[1].at(line)[0])
        share = self._streak * streaks / len(self._streak_scales) ** 0.5 + self._blotch * blotches + self._drift_share * drift
        return np.asarray(np.clip(np.rint(8.0 * self._gain * share), -_FIELD_LIMIT, _FIELD_LIMIT).astype(np.int16))


class _Edge:
    """One edge of the strip, counted in columns from its side of the camera's view.

    zone_stop: columns from the side that are not steel on every line.
    """

    def __init__(self, width: int, share: float, seed: int, side: int) -> None:
        self._middle = 16.0 * width * share
        self._wander = 16.0 * 0.0025 * width
        self._slow = ValueNoise(6007, seed, _STREAM_EDGE, side, 0)
        self._rough = ValueNoise(37, seed, _STREAM_EDGE, side, 1)
        self.zone_stop = int((self._middle + self._wander + 16.0) // 16) + 2

    def at(self, first_line: int, count: int) -> npt.NDArray[np.int64]:
        """(count,) int64: where steel begins on each line, in 16ths of a column."""
        lines = np.arange(first_line, first_line + count, dtype=np.int64)
        curve = self._middle + self._wander * self._slow.at(lines) + 16.0 * self._rough.at(lines)
        return np.maximum(np.rint(curve), 0.0).astype(np.int64)


def _bank(period: int, width: int, key: tuple[int, int], fine: float, streak_lines: int) -> npt.NDArray[np.float32]:
    """(period, width) float32 grain of unit variance that closes on itself.

    fine: share of its variance that is white; the rest is 3x3 grain and streaks of `streak_lines`.
    """
    white = gaussian_like(period * width, *key).reshape(period, width).astype(np.float32)
    half = streak_lines // 2
    closed = np.concatenate([white[-half - 1 :], white, white[: half + 1]])
    # sums of integers below 2**24: exact in float32, in any order
    soft = cv2.boxFilter(closed, cv2.CV_32F, (3, 3), normalize=False)[half + 1 : -half - 1]
    # the streaks' noise is that of other columns, else they would follow the white grain
    streaks = cv2.boxFilter(np.roll(closed, width // 2, axis=1), cv2.CV_32F, (1, 2 * half + 1), normalize=False)[
        half + 1 : -half - 1
    ]
    shares = np.array([fine, (1.0 - fine) * 0.65, (1.0 - fine) * 0.35], np.float32) ** np.float32(0.5)
    scale = shares / np.array([1.0, 3.0, (2 * half + 1) ** 0.5], np.float32) / np.float32(GAUSSIAN_SIGMA)
    return np.asarray(white * scale[0] + soft * scale[1] + streaks * scale[2], np.float32)


def _box_sum(row: npt.NDArray[np.int32], size: int) -> npt.NDArray[np.int64]:
    """(n,) sums of `size` neighbours, mirrored at both ends; in integers, so that no order of summing shows."""
    half = size // 2
    sums = np.cumsum(np.pad(row, (half + 1, half), mode="symmetric"), dtype=np.int64)
    return np.asarray(sums[size:] - sums[:-size])
