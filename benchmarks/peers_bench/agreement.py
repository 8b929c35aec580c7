"""How far a mask is from the dense float result: pixels, intersection over union, defects found and added."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from benchmarks.peers_bench.slicing import SMALLEST_PX
from edge.frame import Lines
from edge.scores import Bytes

_SLAB_LINES = 1024


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of a mask with a reference.

    iou: mean over the classes that either holds. changed: share of pixels of another class. defects: connected regions of
    one class of the reference, at least 8 px. found: those of which the mask gives some pixel the same class. extra: such
    regions of the mask that share no pixel with the reference's class.
    """

    iou: float
    changed: float
    defects: int
    found: int
    extra: int

    @property
    def recall(self) -> float:
        """Share of the defects found; 1 where there are none."""
        return self.found / self.defects if self.defects else 1.0


def dense_reference(network: nn.Module, strip: Lines, halo: int) -> Bytes:
    """What one float inference over the strip, reflected by the halo, gives: in slabs with that halo, which is the same."""
    image = np.pad(strip, halo, mode="reflect")
    parts = []
    for first in range(0, len(strip), _SLAB_LINES):
        slab = image[first : min(first + _SLAB_LINES, len(strip)) + 2 * halo]
        with torch.inference_mode():
            best = network(torch.from_numpy(slab)[None, None])[0].argmax(dim=0)
        parts.append(best[halo:-halo, halo:-halo].to(torch.uint8).numpy())
    return np.concatenate(parts)


def agreement(mask: Bytes, reference: Bytes) -> Agreement:
    """Of a mask with a reference, both (h, w) uint8.

    >>> both = np.array([[0, 1, 1], [0, 0, 2]], np.uint8)
    >>> agreement(both, both).iou
    1.0
    """
    if mask.shape != reference.shape:
        raise ValueError(f"the mask is {mask.shape}, the reference {reference.shape}: expected one shape")
    count = int(max(mask.max(), reference.max())) + 1
    pairs = np.bincount(reference.ravel().astype(np.int64) * count + mask.ravel(), minlength=count * count).reshape(count, count)
    hits, union = np.diag(pairs), pairs.sum(axis=0) + pairs.sum(axis=1) - np.diag(pairs)
    defects = found = extra = 0
    for kind in range(1, count):
        wanted, met = _regions_met(reference == kind, mask == kind)
        offered, explained = _regions_met(mask == kind, reference == kind)
        defects, found, extra = defects + wanted, found + met, extra + offered - explained
    changed = 1.0 - float(hits.sum()) / mask.size
    return Agreement(float((hits[union > 0] / union[union > 0]).mean()), changed, defects, found, extra)


def _regions_met(of: npt.NDArray[np.bool_], by: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """Connected regions of at least 8 px, and how many of them some pixel of the other meets."""
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(of.view(np.uint8), connectivity=8)
    large = statistics[:, cv2.CC_STAT_AREA] >= SMALLEST_PX
    large[0] = False
    met = np.zeros(len(large), bool)
    met[labels[by]] = True
    return int(large.sum()), int((large & met).sum())
