"""The strips that everybody segments: a real one where the development images are, and simulated ones, mostly clean."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from benchmarks.peers_bench.gate import TILE
from edge.config import Scale, SimulatedDefects
from edge.frame import Lines
from edge.scorecard import MIN_AREA_MM2, NEAR_MM
from edge.scores import Bytes
from edge.sources.images import read_image
from edge.sources.steel_strip import PlantedDefect, SteelStrip

SCALE = Scale()
LONGEST_SCRATCH_MM = 150.0
"""A scratch of metres would leave no tile of its columns clean."""
_STRIDE = 16


@dataclass(frozen=True, slots=True)
class Strip:
    """Lines (h, w) uint8, h and w multiples of 16.

    clean: share of 256 px tiles without a planted pixel; None: not known. planted, truth: what was planted, (h, w) uint8.
    """

    name: str
    lines: Lines
    clean: float | None = None
    planted: tuple[PlantedDefect, ...] = ()
    truth: Bytes | None = None

    @property
    def megapixels(self) -> float:
        """Of the whole strip."""
        return self.lines.size / 1e6

    @property
    def tiles(self) -> int:
        """Of 256 px, the last ones of a row or column as whole ones."""
        return -(-self.lines.shape[0] // TILE) * -(-self.lines.shape[1] // TILE)


def dense_strip(image: Path | None, lines: int, width: int) -> Strip:
    """The first lines of an image; without one a simulated strip with defects on most tiles."""
    if image is not None:
        whole = read_image(image)[:lines]
        return Strip(
            image.stem, np.ascontiguousarray(whole[: len(whole) // _STRIDE * _STRIDE, : whole.shape[1] // _STRIDE * _STRIDE])
        )
    return sparse_strip(0.25, lines, width, seed=7)


def sparse_strip(clean: float, lines: int, width: int, seed: int) -> Strip:
    """A simulated strip on which as nearly such a share of the tiles is clean as a search of the defects' spacing finds."""
    low, high = math.log(0.02), math.log(200.0)
    best, best_share = _steel(width, seed, 1.0), -1.0
    for _ in range(14):
        middle = (low + high) / 2
        steel = _steel(width, seed, math.exp(middle))
        share = clean_share(steel.truth(0, lines))
        if abs(share - clean) < abs(best_share - clean):
            best, best_share = steel, share
        low, high = (middle, high) if share < clean else (low, middle)
    planted = tuple(found for found in best.planted(0, lines) if found.box.line_stop <= lines)
    return Strip(f"simulated, {clean:.0%} clean", best.lines(0, lines), best_share, planted, best.truth(0, lines))


def clean_share(truth: Bytes) -> float:
    """Share of 256 px tiles without a defective pixel; a last tile that the strip does not fill counts as one.

    >>> clean_share(np.eye(512, 256, dtype=np.uint8))
    0.5
    """
    padded = np.pad(truth, [(0, -length % TILE) for length in truth.shape])
    tiles = padded.reshape(padded.shape[0] // TILE, TILE, padded.shape[1] // TILE, TILE)
    return float((~tiles.any(axis=(1, 3))).mean())


def planted_found(strip: Strip, mask: Bytes) -> tuple[int, int]:
    """Planted defects of at least the score card's smallest area, and how many of them the mask meets, within 2 mm."""
    assert strip.truth is not None
    reach = round(NEAR_MM / SCALE.mm_per_line)
    near = cv2.dilate((mask > 0).view(np.uint8), np.ones((2 * reach + 1, 2 * reach + 1), np.uint8))
    wanted = [found for found in strip.planted if found.area_mm2 >= MIN_AREA_MM2]
    return len(wanted), sum(_meets(found, strip.truth, near) for found in wanted)


def _meets(found: PlantedDefect, truth: Bytes, near: npt.NDArray[np.uint8]) -> bool:
    box = (slice(found.box.line_start, found.box.line_stop), slice(found.box.column_start, found.box.column_stop))
    return bool(near[box][truth[box] == found.kind].any())


def _steel(width: int, seed: int, spacing: float) -> SteelStrip:
    """A strip whose defects lie so many times as far apart as by default."""
    usual = SimulatedDefects()
    every = {
        name: getattr(usual, name) * spacing
        for name in ("rust_every_mm", "pit_every_mm", "inclusion_every_mm", "scratch_every_mm")
    }
    return SteelStrip(width, seed, SimulatedDefects(**every, scratch_max_mm=LONGEST_SCRATCH_MM), SCALE)
