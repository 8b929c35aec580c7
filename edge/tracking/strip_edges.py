"""Where the steel ends on each line: dark background beyond the strip's two edges."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from edge.frame import Lines

Ints = npt.NDArray[np.int64]

MAJORITY_COLUMNS = 15
"""Columns that vote on whether a pixel is steel: outvotes dust and dead pixels up to 7 px wide, on a line by itself."""


def find_strip_edges(lines: Lines, background_below: int) -> tuple[Ints, Ints]:
    """Per line, the first column of steel and one past the last; both 0 where a line shows no steel.

    lines: (h, w) uint8 grey. background_below: grey levels under it are background, 1 to 255. Returns two (h,) int64.

    A pixel is steel if most of the 15 columns around it are at or above the level (the outermost pixel repeated beyond
    the line). A vote over thresholded pixels, unlike a mean of grey levels, leaves a clean step where it is, whatever
    the contrast. Lines are judged each by itself, so that nothing depends on how they were cut; dark spots inside the
    strip do not matter, since only the outermost steel counts.
    """
    height, width = lines.shape
    if height == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    bright = cv2.threshold(lines, background_below - 1, 255, cv2.THRESH_BINARY)[1]
    votes = cv2.blur(bright, (MAJORITY_COLUMNS, 1), borderType=cv2.BORDER_REPLICATE)
    steel = votes >= 128
    left = steel.argmax(axis=1).astype(np.int64)
    right = width - steel[:, ::-1].argmax(axis=1).astype(np.int64)
    right[~steel[np.arange(height), left]] = 0
    return left, right
