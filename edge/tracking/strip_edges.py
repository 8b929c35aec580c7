"""Where the steel ends on each line: dark background beyond the strip's two edges."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from edge.frame import Lines

Ints = npt.NDArray[np.int64]

MAJORITY_COLUMNS = 15
"""Columns that vote on whether a pixel is steel: outvotes dust and dead pixels up to 7 px wide, on a line by itself."""

_FIRST_SPAN, _WIDER = 256, 4
"""Columns from either side that are looked at first, and how many times as many where a line shows no steel there."""


def find_strip_edges(lines: Lines, background_below: int) -> tuple[Ints, Ints]:
    """Per line, the first column of steel and one past the last; both 0 where a line shows no steel.

    lines: (h, w) uint8 grey. background_below: grey levels under it are background, 1 to 255. Returns two (h,) int64.

    A pixel is steel if most of the 15 columns around it are at or above the level (the outermost pixel repeated beyond
    the line). A vote over thresholded pixels, unlike a mean of grey levels, leaves a clean step where it is, whatever
    the contrast. Lines are judged each by itself, so that nothing depends on how they were cut; dark spots inside the
    strip do not matter, since only the outermost steel counts; so the search goes inwards from either side, and what lies
    between is not looked at.
    """
    height, width = lines.shape
    if height == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    span = min(_FIRST_SPAN, width)
    while True:
        seen = min(span + MAJORITY_COLUMNS // 2, width)
        from_left = _steel(lines[:, :seen], background_below)[:, :span]
        from_right = _steel(lines[:, width - seen :], background_below)[:, seen - span :]
        found = from_left.any(axis=1) & from_right.any(axis=1)
        if span == width or found.all():
            break
        span = min(_WIDER * span, width)
    left = from_left.argmax(axis=1).astype(np.int64)
    right = width - from_right[:, ::-1].argmax(axis=1).astype(np.int64)
    right[~found] = 0
    return left, right


def _steel(lines: Lines, background_below: int) -> npt.NDArray[np.bool_]:
    bright = cv2.threshold(lines, background_below - 1, 255, cv2.THRESH_BINARY)[1]
    votes: npt.NDArray[np.bool_] = cv2.blur(bright, (MAJORITY_COLUMNS, 1), borderType=cv2.BORDER_REPLICATE) >= 128
    return votes
