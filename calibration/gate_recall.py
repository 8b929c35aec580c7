"""What a gate that scores cells of the strip finds: defects by their best cell, clean steel by its alarmed cells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from edge.errors import RustEdgeError

SMALLEST_PX = 8
"""Truth regions below this are no defects: 0.5 mm2 at pixels of 0.25 mm, the least that stations report by default."""
RIM_PX = 8
"""A cell with a defect this near is not clean: the defect's rim, which nobody draws to the pixel, may lie in it."""

Scores = npt.NDArray[np.floating]
Mask = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class ScoredMap:
    """A gate's answer to one image and the truth about it.

    scores: (rows, columns), higher for rather defective, one per cell of `cell` x `cell` pixels.
    mask: (rows * cell, columns * cell) uint8, 0 where the steel is clean.
    Raises RustEdgeError where the two do not fit.
    """

    scores: Scores
    mask: Mask
    cell: int

    def __post_init__(self) -> None:
        wanted = tuple(side * self.cell for side in self.scores.shape)
        if self.mask.shape != wanted:
            raise RustEdgeError(f"mask is {self.mask.shape}, its scores {self.scores.shape} by {self.cell} px; expected {wanted}")


@dataclass(frozen=True, slots=True)
class GateRecall:
    """What a threshold does on validation.

    threshold: cells with at least this score are alarmed. regions: defects of at least `SMALLEST_PX`. recall: share of them
    with an alarmed cell. covered: share of the defect pixels that lie in alarmed cells. alarmed_clean: share of the clean
    cells that are alarmed, NaN without clean ones.
    """

    threshold: float
    regions: int
    recall: float
    covered: float
    clean_cells: int
    alarmed_clean: float


def pixels_around(mask: Mask, cell: int, rim: int) -> npt.NDArray[np.int32]:
    """Defect pixels in each cell grown by `rim` px on every side, (h, w) -> (h / cell, w / cell).

    >>> import numpy as np
    >>> mask = np.zeros((4, 8), np.uint8)
    >>> mask[1, 3:5] = 2
    >>> pixels_around(mask, 4, 0).tolist(), pixels_around(mask, 4, 1).tolist()
    ([[1, 1]], [[2, 2]])
    """
    rows, columns = (side // cell for side in mask.shape)
    sums = cv2.integral(cv2.copyMakeBorder((mask > 0).astype(np.uint8), rim, rim, rim, rim, cv2.BORDER_CONSTANT, value=0))
    top, left = np.arange(rows)[:, None] * cell, np.arange(columns)[None] * cell
    bottom, right = top + cell + 2 * rim, left + cell + 2 * rim
    return np.asarray(sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left], np.int32)


def region_peaks(scored: ScoredMap, smallest_px: int = SMALLEST_PX) -> npt.NDArray[np.float64]:
    """The best score of each defect: the highest among the cells that hold a pixel of the 8-connected region."""
    count, labels, statistics, _ = cv2.connectedComponentsWithStats((scored.mask > 0).astype(np.uint8), connectivity=8)
    peaks = np.full(count, -np.inf)
    lines, columns = np.nonzero(labels)
    np.maximum.at(peaks, labels[lines, columns].astype(np.intp), scored.scores[lines // scored.cell, columns // scored.cell])
    large = statistics[:, cv2.CC_STAT_AREA] >= smallest_px
    large[0] = False
    return peaks[large]


def clean_scores(scored: ScoredMap, rim: int = RIM_PX) -> npt.NDArray[np.float64]:
    """Scores of the cells without a defect pixel in them or within `rim` px of them."""
    return np.asarray(scored.scores[pixels_around(scored.mask, scored.cell, rim) == 0], np.float64)


def threshold_for(maps: Sequence[ScoredMap], recall: float, smallest_px: int = SMALLEST_PX) -> float:
    """The highest threshold at which at least `recall` of the defects have an alarmed cell.

    recall: above 0, up to 1. Raises RustEdgeError where there is no defect.
    """
    if not 0.0 < recall <= 1.0:
        raise RustEdgeError(f"recall is {recall}, expected above 0 and up to 1")
    peaks = np.sort(np.concatenate([region_peaks(scored, smallest_px) for scored in maps])) if maps else np.zeros(0)
    if not peaks.size:
        raise RustEdgeError(f"validation holds no defect of at least {smallest_px} px; expected some: the threshold keeps them")
    # the tolerance keeps 0.999 * 1000 from becoming 1000 by its last bit
    return float(peaks[math.floor(peaks.size * (1.0 - recall) + 1e-9)])


def recall_at(maps: Sequence[ScoredMap], threshold: float, smallest_px: int = SMALLEST_PX, rim: int = RIM_PX) -> GateRecall:
    """What a threshold does; without a defect recall and coverage are 1."""
    peaks = np.concatenate([np.zeros(0), *(region_peaks(scored, smallest_px) for scored in maps)])
    clean = np.concatenate([np.zeros(0), *(clean_scores(scored, rim) for scored in maps)])
    held = [pixels_around(scored.mask, scored.cell, 0) for scored in maps]
    defect_px = sum(int(cells.sum()) for cells in held)
    seen_px = sum(int(cells[scored.scores >= threshold].sum()) for cells, scored in zip(held, maps, strict=True))
    return GateRecall(
        threshold=threshold,
        regions=peaks.size,
        recall=float((peaks >= threshold).mean()) if peaks.size else 1.0,
        covered=seen_px / defect_px if defect_px else 1.0,
        clean_cells=clean.size,
        alarmed_clean=float((clean >= threshold).mean()) if clean.size else math.nan,
    )
