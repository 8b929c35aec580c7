"""What a gate is taught of a mask: cells that hold or touch a defect, cells that do not, and which defect is whose."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from calibration.gate_recall import RIM_PX, pixels_around

CLEAN, DEFECT, UNTOLD = 0, 1, 2


def cell_truth(mask: npt.NDArray[np.uint8], cell: int, defect_px: int) -> npt.NDArray[np.uint8]:
    """Truth per cell, (h, w) class indices -> (2, h / cell, w / cell) uint8.

    First the kind: DEFECT with at least `defect_px` defect pixels in the cell or within RIM_PX of it, so that a defect is
    alarmed with its rim; CLEAN without any; UNTOLD between the two, where neither answer would be wrong. Then the number,
    from 1 on, of the defect with the most pixels in the cell; defects below `defect_px` have none, and 0 is no defect.
    """
    near = pixels_around(mask, cell, RIM_PX)
    kind = np.where(near >= defect_px, DEFECT, np.where(near > 0, UNTOLD, CLEAN))
    return np.stack([kind, _defect_numbers(mask, cell, defect_px)]).astype(np.uint8)


def _defect_numbers(mask: npt.NDArray[np.uint8], cell: int, defect_px: int) -> npt.NDArray[np.int64]:
    rows, columns = (side // cell for side in mask.shape)
    count, labels, statistics, _ = cv2.connectedComponentsWithStats((mask > 0).astype(np.uint8), connectivity=8)
    lines, across = np.nonzero(labels)
    places = (labels[lines, across] * rows + lines // cell) * columns + across // cell
    held = np.bincount(places, minlength=count * rows * columns).reshape(count, rows, columns)
    held[statistics[:, cv2.CC_STAT_AREA] < defect_px] = 0
    owners = held.argmax(axis=0)
    # numbered anew: a crop has fewer cells than a byte has values, so the owners fit it however many defects there are
    return np.unique(np.append(0, owners), return_inverse=True)[1][1:].reshape(rows, columns)
