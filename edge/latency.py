"""Percentiles of latencies in constant memory."""

from __future__ import annotations

import math

_BUCKETS_PER_DECADE = 60
"""Neighbouring buckets differ by 10^(1/60), 4 %: a percentile is off by at most half of that."""
_SMALLEST_MS = 0.01
_DECADES = 8


class LatencyHistogram:
    """Counts of latencies in buckets of equal ratio, 0.01 ms to 10^6 ms; what lies beyond counts in the last bucket."""

    def __init__(self, counts: dict[int, int] | None = None) -> None:
        self._counts: dict[int, int] = dict(counts or {})

    def add(self, milliseconds: float) -> None:
        """Count one latency; a negative one (a clock that was set back) counts as the smallest."""
        ratio = max(milliseconds, _SMALLEST_MS) / _SMALLEST_MS
        bucket = min(int(math.log10(ratio) * _BUCKETS_PER_DECADE), _DECADES * _BUCKETS_PER_DECADE)
        self._counts[bucket] = self._counts.get(bucket, 0) + 1

    def __len__(self) -> int:
        return sum(self._counts.values())

    def percentile(self, share: float) -> float | None:
        """Latency in ms that `share` (0 to 1) of the counted ones do not exceed; None if there are none."""
        rank = math.ceil(share * len(self))
        for bucket in sorted(self._counts):
            rank -= self._counts[bucket]
            if rank <= 0:
                return _SMALLEST_MS * 10 ** ((bucket + 0.5) / _BUCKETS_PER_DECADE)
        return None

    @property
    def counts(self) -> dict[int, int]:
        """Bucket -> count, for a checkpoint."""
        return dict(self._counts)
