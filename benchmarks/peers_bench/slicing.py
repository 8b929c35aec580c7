"""How a strip is cut for a tiler, and the regions of a slice that libraries for detections want."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from edge.scores import Bytes

SMALLEST_PX = 8
"""Regions below this are not handed to libraries for detections, nor counted as defects: specks that come and go."""


@dataclass(frozen=True, slots=True)
class Slicing:
    """Slices of `tile` (lines, columns) pixels that overlap by `overlap` (lines, columns).

    border: pixels by which the strip is reflected at its sides first, and filled up to whole slices; 0: taken as it is.
    margin: pixels at each side of a slice whose answer is thrown away. With the network's receptive radius, a border as wide
    and an overlap of twice it, every pixel is what one inference over the whole strip gives.
    smallest_px: regions below are dropped.
    """

    tile: tuple[int, int]
    overlap: tuple[int, int]
    border: int = 0
    margin: int = 0
    smallest_px: int = SMALLEST_PX

    @property
    def step(self) -> tuple[int, int]:
        """Lines and columns from a slice to the next."""
        return self.tile[0] - self.overlap[0], self.tile[1] - self.overlap[1]

    def described(self) -> str:
        """In words, for tables."""
        size = f"{self.tile[0]} x {self.tile[1]} px"
        if self.margin:
            return f"{size}, halo of {self.margin} px thrown away"
        return f"{size}, overlap {self.overlap[0]} px"

    def slices(self, shape: tuple[int, ...]) -> int:
        """How many slices cover a framed strip of that shape.

        >>> Slicing((8, 8), (2, 2)).slices((14, 20))
        6
        """
        counts = [max(1, -(-(length - lap) // step)) for length, lap, step in zip(shape, self.overlap, self.step, strict=True)]
        return counts[0] * counts[1]


def core_slicing(core: tuple[int, int], halo: int, kept: int = 0, smallest_px: int = SMALLEST_PX) -> Slicing:
    """Slices a core apart with `halo` around it, of which `kept` at each side stay in the answer."""
    tile = (core[0] + 2 * halo, core[1] + 2 * halo)
    return Slicing(tile, (2 * halo, 2 * halo), halo, halo - kept, smallest_px)


def framed(strip: Bytes, slicing: Slicing) -> Bytes:
    """The strip as its tiler gets it: with its border, and whole slices; without a border as it is.

    >>> framed(np.zeros((10, 30), np.uint8), Slicing((8, 8), (4, 4), border=2)).shape
    (16, 36)
    """
    if not slicing.border:
        return strip
    ends = [slicing.border + -length % step for length, step in zip(strip.shape, slicing.step, strict=True)]
    return np.pad(strip, [(slicing.border, end) for end in ends], mode="reflect")


def unframed(mask: Bytes, slicing: Slicing, shape: tuple[int, ...]) -> Bytes:
    """The strip's part of a mask of the framed strip."""
    border = slicing.border
    return mask[border : border + shape[0], border : border + shape[1]]


def core(plane: Bytes, margin: int) -> Bytes:
    """A slice's answer without what is thrown away of it."""
    return plane[margin : plane.shape[0] - margin, margin : plane.shape[1] - margin]


def pieces(strip: Bytes, halo: int, lines: int) -> Iterator[Bytes]:
    """A strip as a line camera with a latency budget hands it to a tiler: `lines` at a time, each with its halo around it.

    Beyond the strip it is reflected. Every piece is (lines + 2 * halo, columns + 2 * halo).
    """
    image = np.pad(strip, ((halo, halo + -len(strip) % lines), (halo, halo)), mode="reflect")
    for first in range(0, len(strip), lines):
        yield image[first : first + lines + 2 * halo]


@dataclass(frozen=True, slots=True)
class Region:
    """Connected pixels of one class of a slice.

    left, top: of its box in the slice. mask: (h, w) bool of the box. score: highest probability.
    """

    kind: int
    left: int
    top: int
    mask: npt.NDArray[np.bool_]
    score: float


def regions(mask: Bytes, confidence: Bytes, smallest_px: int) -> list[Region]:
    """Regions (8-connected, of one class) of at least so many pixels; mask, confidence (h, w) uint8."""
    found = []
    for kind in np.flatnonzero(np.bincount(mask.ravel(), minlength=2)[1:]) + 1:
        _, labels, statistics, _ = cv2.connectedComponentsWithStats((mask == kind).view(np.uint8), connectivity=8)
        for label in np.flatnonzero(statistics[1:, cv2.CC_STAT_AREA] >= smallest_px) + 1:
            left, top, width, height = statistics[label, :4].tolist()
            box = (slice(top, top + height), slice(left, left + width))
            inside = labels[box] == label
            found.append(Region(int(kind), left, top, inside, float(confidence[box][inside].max()) / 255.0))
    return found
