"""How fast lines go through, over the last seconds."""

from __future__ import annotations

import time
from collections import deque

WINDOW_S = 3.0


class Throughput:
    """Lines per second over the last `WINDOW_S`, or since the first line where that is less."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._passed: deque[tuple[float, int]] = deque()

    def add(self, lines: int) -> None:
        """So many lines have gone through just now."""
        self._passed.append((time.monotonic(), lines))
        self._forget()

    def lines_per_s(self) -> float:
        """0.0 when nothing went through of late."""
        self._forget()
        span_s = min(WINDOW_S, time.monotonic() - self._began_s)
        return sum(lines for _, lines in self._passed) / span_s if span_s > 0 else 0.0

    def _forget(self) -> None:
        while self._passed and self._passed[0][0] < time.monotonic() - WINDOW_S:
            self._passed.popleft()
