"""Strips made beforehand: simulated steel with a wanted share of clean tiles, and the truth about them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from edge.bench.results import StripTruth
from edge.config import Scale, SimulatedDefects
from edge.frame import Lines
from edge.scorecard import MIN_AREA_MM2
from edge.sources.steel_strip import PlantedDefect, SteelStrip

TILE_PX = 256
"""Side of the tiles whose share of clean ones is met; what a station's own gate looks at may be smaller."""
SEED = 20
CLEAN_SHARES = (0.90, 0.95, 0.99)
_RIM_PX = 4
"""How far a defect's shading reaches beyond its mask; 2.8 px at most were measured."""
_DEFECTIVE_SHARE = 0.3
"""About as many of the tiles hold a candidate, so that every wanted share can be chosen from them."""

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Strip:
    """lines: (lines, width) uint8, not to be written. planted: what is on it, whole, in the order of first lines."""

    lines: Lines
    planted: tuple[PlantedDefect, ...]
    truth: StripTruth


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A defect that may stay. mask: (h, w) bool in its box. tiles: (row, column) of those that it lies in."""

    defect: PlantedDefect
    mask: Mask
    tiles: frozenset[tuple[int, int]]


@lru_cache(maxsize=4)
def make_strip(width: int, lines: int, scale: Scale, clean_share: float, seed: int = SEED) -> Strip:
    """A strip of which as near as can be `clean_share` of the tiles hold no planted pixel; the same arguments, the same strip.

    lines: rounded up to whole tiles. Many defects are planted; in an order drawn from the seed each is kept where its
    tiles still fit, and the steel below the others is put back.
    """
    rows, across = -(-lines // TILE_PX), -(-width // TILE_PX)
    count = rows * TILE_PX
    full = SteelStrip(width, seed, _dense_defects(scale, count, across), scale)
    kept = _choose(list(_candidates(full, count)), round((1.0 - clean_share) * rows * across), seed)
    strip = SteelStrip(width, seed, SimulatedDefects(), scale, clean=True).lines(0, count)
    if kept:
        _plant(strip, full.lines(0, count), kept)
    strip.flags.writeable = False
    planted = tuple(
        candidate.defect for candidate in sorted(kept, key=lambda c: (c.defect.box.line_start, c.defect.box.column_start))
    )
    large = sum(defect.area_mm2 >= MIN_AREA_MM2 for defect in planted)
    defective = len({tile for candidate in kept for tile in candidate.tiles})
    truth = StripTruth(
        wanted_clean_share=clean_share,
        clean_share=1.0 - defective / (rows * across),
        tiles=rows * across,
        width_px=width,
        lines=count,
        seed=seed,
        planted=large,
        smaller=len(planted) - large,
    )
    return Strip(strip, planted, truth)


def fewest_lines(width: int) -> int:
    """Lines of the shortest strip on which one tile is no more than 1 % of all."""
    across = -(-width // TILE_PX)
    return -(-100 // across) * TILE_PX


def _dense_defects(scale: Scale, lines: int, across: int) -> SimulatedDefects:
    """Enough of every kind, however wide the strip: some 4 in 10 candidates are spots of about one tile."""
    tile_mm = TILE_PX * scale.mm_per_line
    every_mm = tile_mm / (across * _DEFECTIVE_SHARE)
    longest_mm = max(min(2500.0, lines * scale.mm_per_line / 4), 1.0)
    return SimulatedDefects(
        rust_every_mm=6 * every_mm,
        pit_every_mm=4 * every_mm,
        inclusion_every_mm=6 * every_mm,
        scratch_every_mm=12 * every_mm,
        scratch_max_mm=longest_mm,
    )


def _candidates(strip: SteelStrip, lines: int) -> Iterator[_Candidate]:
    """Defects that lie wholly on the strip's first lines."""
    truth = strip.truth(0, lines)
    for defect in strip.planted(0, lines):
        box = defect.box
        if box.line_stop > lines:
            continue
        mask = _own_mask(truth[box.line_start : box.line_stop, box.column_start : box.column_stop], defect)
        at_line, at_column = np.nonzero(mask)
        tiles = zip((at_line + box.line_start) // TILE_PX, (at_column + box.column_start) // TILE_PX, strict=True)
        yield _Candidate(defect, mask, frozenset((int(row), int(column)) for row, column in set(tiles)))


def _own_mask(truth: npt.NDArray[np.uint8], defect: PlantedDefect) -> Mask:
    """The defect's pixels in its box, in which parts of others may lie: its mask is one region, of a known area."""
    _, labels, statistics, _ = cv2.connectedComponentsWithStats((truth == defect.kind).astype(np.uint8), connectivity=8)
    nearest = int(np.abs(statistics[1:, cv2.CC_STAT_AREA] - defect.area_px).argmin()) + 1
    return np.asarray(labels == nearest)


def _choose(candidates: list[_Candidate], tiles_wanted: int, seed: int) -> list[_Candidate]:
    """Candidates whose tiles together are as many as wanted, or as near below as their order gives."""
    random.Random(f"{seed}/kept").shuffle(candidates)
    kept: list[_Candidate] = []
    taken: set[tuple[int, int]] = set()
    for candidate in candidates:
        if candidate.tiles <= taken or len(taken | candidate.tiles) <= tiles_wanted:
            kept.append(candidate)
            taken |= candidate.tiles
    return kept


def _plant(strip: Lines, defective: Lines, kept: list[_Candidate]) -> None:
    """Copy the kept defects with their rims from the defective strip onto the clean one."""
    size = 2 * _RIM_PX + 1
    rim = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    for candidate in kept:
        box = candidate.defect.box
        reach = cv2.dilate(np.pad(candidate.mask, _RIM_PX).astype(np.uint8), rim) > 0
        top, left = box.line_start - _RIM_PX, box.column_start - _RIM_PX
        cut = reach[max(0, -top) :, max(0, -left) :]
        rows = slice(max(0, top), max(0, top) + len(cut))
        columns = slice(max(0, left), max(0, left) + cut.shape[1])
        here = strip[rows, columns]
        np.copyto(here, defective[rows, columns], where=cut[: here.shape[0], : here.shape[1]])
