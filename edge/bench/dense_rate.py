"""How fast one segmenter takes a strip: the doctor's figure, and the bench's first look at a box."""

from __future__ import annotations

import time

from edge.bench.strip_source import cut_there_and_back
from edge.frame import Lines
from edge.segmenters import Segmenter


def measure_lines_per_s(segmenter: Segmenter, strip: Lines, portion_lines: int, seconds: float) -> float:
    """Lines per second that a segmenter takes, measured for about so long once it runs.

    strip: (lines, width) uint8, gone through there and back. portion_lines: pushed at once, such as one chunk.
    """
    segmenter.start(0)
    # the first inferences set their memory up, and the first rows come out only when the lag has passed
    pushed = warm = -(-(segmenter.lag_lines + portion_lines) // portion_lines) * portion_lines
    segmenter.push(cut_there_and_back(strip, 0, warm))
    begun_s = time.perf_counter()
    while (elapsed_s := time.perf_counter() - begun_s) < seconds or pushed == warm:
        segmenter.push(cut_there_and_back(strip, pushed, portion_lines))
        pushed += portion_lines
    return (pushed - warm) / elapsed_s
