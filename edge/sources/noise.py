"""Random numbers that are a pure function of (seed, stream, cell): the ground of everything that is simulated.

Raw output of PCG64 only: NumPy promises its bits for ever, unlike the distributions built on them.
Source: NEP 19, "Random number generator policy".
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
GAUSSIAN_SIGMA = float(np.sqrt(4 * (256**2 - 1) / 12))
"""Standard deviation of `gaussian_like`: the sum of four independent bytes (Irwin-Hall)."""


def raw(count: int, *key: int) -> npt.NDArray[np.uint64]:
    """(count,) random 64-bit words of a key of integers >= 0."""
    words = np.random.PCG64(list(key)).random_raw(count)
    return np.asarray(words, dtype=np.uint64)


def uniform(count: int, *key: int) -> Floats:
    """(count,) float64 in [0, 1)."""
    return np.asarray((raw(count, *key) >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def gaussian_like(count: int, *key: int) -> npt.NDArray[np.int16]:
    """(count,) int16 of mean 0 and standard deviation GAUSSIAN_SIGMA, never beyond 3.5 of them."""
    words = raw((count + 1) // 2, *key).view(np.uint32)[:count]
    pairs = (words & np.uint32(0x00FF00FF)) + ((words >> np.uint32(8)) & np.uint32(0x00FF00FF))
    sums = (pairs + (pairs >> np.uint32(16))) & np.uint32(0xFFFF)
    return np.asarray(sums.astype(np.int16) - np.int16(510))


class ValueNoise:
    """An endless smooth random curve in [-1, 1]: random knots at every multiple of `period`, smoothstep between them."""

    def __init__(self, period: int, *key: int) -> None:
        self._period = period
        self._key = key
        self._cell = lru_cache(maxsize=64)(self._knots)

    def _knots(self, cell: int) -> Floats:
        return uniform(256, *self._key, cell) * 2.0 - 1.0

    def at(self, positions: npt.NDArray[np.int64]) -> Floats:
        """Values at integer positions >= 0; each depends on its position alone."""
        if positions.size == 0:
            return np.zeros(0)
        low = positions // self._period
        cells = range(int(low.min()) // 256, (int(low.max()) + 1) // 256 + 1)
        knots = np.concatenate([self._cell(cell) for cell in cells])
        index = low - cells[0] * 256
        t = (positions - low * self._period) / self._period
        t = t * t * (3.0 - 2.0 * t)
        return np.asarray(knots[index] * (1.0 - t) + knots[index + 1] * t)
