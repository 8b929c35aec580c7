"""A segmenter without an engine: bright pixels are class 1, dark ones class 2. What it needs of the lines around a row, and
how it cuts, are parameters, so that the pipeline can be tested for what it makes of a segmenter's ways."""

from __future__ import annotations

import numpy as np

from edge.segmenters import MaskRows


class BrightnessSegmenter:
    def __init__(self, lag: int = 40, rows_at_once: int = 24) -> None:
        self.lag_lines = lag + rows_at_once
        self._lag, self._step = lag, rows_at_once

    def context_lines(self, first_line: int) -> int:
        return min(first_line, self._lag)

    def start(self, first_line, context=None) -> None:
        self._next = first_line
        self._kept = [] if context is None else [context]
        self._start = first_line - (0 if context is None else len(context))

    def push(self, lines):
        self._kept = [np.concatenate([*self._kept, lines])]
        rows = []
        while self._next + self._step + self._lag <= self._start + len(self._kept[0]):
            rows.append(self._rows(self._step))
        self._kept, self._start = [self._kept[0][self._next - self._start :].copy()], self._next
        return rows

    def flush(self):
        left = self._start + sum(map(len, self._kept)) - self._next
        return [self._rows(left)] if left else []

    def _rows(self, count: int) -> MaskRows:
        offset = self._next - self._start
        lines = np.concatenate(self._kept)[offset : offset + count]
        mask = np.where(lines > 192, 1, np.where(lines < 64, 2, 0)).astype(np.uint8)
        rows = MaskRows(self._next, mask, np.where(mask > 0, 250, 0).astype(np.uint8))
        self._next += count
        return rows
