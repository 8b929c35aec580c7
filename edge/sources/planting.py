"""Where the simulated strip's defects lie: random, yet a pure function of (seed, kind, cell), so that no strip need be scanned.

Every kind draws its candidates per cell of the strip. Of two that come too near each other the one of lower rank goes,
whether or not the other stays: so a cell depends on its neighbours alone, however long the strip is.
Source: B. Matérn, Spatial Variation, 1960 (the second hard-core process). Scratches outrank all others.
"""

from __future__ import annotations

import enum
import math
import random
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from edge.config import SimulatedDefects

EDGE_MM = 8.0
"""Steel this near to the strip's edges stays clean."""
GAP_MM = 10.0
"""Free steel between two defects: more than the distance at which the default filters merge fragments."""
SPOT_CELL_MM = 200.0
_MOST_PER_CELL = 256
"""Candidates of one kind in one cell; a strip asked to be denser is as dense as this allows."""
_SCRATCH_SHORTEST_MM = 20.0
_PATH_STEP_MM = 40.0
"""Distance between two knots of a scratch's path."""
_SLANT, _SWAY_MM, _SWAY_SHARE = 0.45, 1.5, 0.02
STEEPEST = _SLANT + 0.12
"""Steepest path of a scratch across over along, in mm per mm: its slant, and two sways of 1.5 mm between knots 26.7 mm apart.

Knots are nearest to each other, for their sway, in a scratch of just over two steps of 40 mm, which gets three.
"""


class DefectKind(enum.IntEnum):
    """What the simulator plants; the value is that of the truth mask, 0 being clean steel and background."""

    RUST = 1
    PIT = 2
    INCLUSION = 3
    SCRATCH = 4


SPOT_SIZES_MM = {DefectKind.RUST: (4.0, 40.0), DefectKind.PIT: (1.5, 5.0), DefectKind.INCLUSION: (5.0, 40.0)}
"""Smallest and largest extent along the strip."""
SCRATCH_WIDTHS_MM = (0.5, 1.5)


@dataclass(frozen=True, slots=True)
class Spot:
    """A defect that fits into one patch: rust, a pit or an inclusion.

    key: what its looks are drawn from. along_mm, across_mm: its centre. length_mm, width_mm: extent along and across
    that it does not exceed.
    """

    kind: DefectKind
    key: int
    along_mm: float
    across_mm: float
    length_mm: float
    width_mm: float


@dataclass(frozen=True, slots=True)
class Scratch:
    """A thin line along the strip.

    start_mm, length_mm: along the strip. path_mm: the knots of its path across, every `knot_mm` from the start on.
    """

    key: int
    start_mm: float
    length_mm: float
    width_mm: float
    knot_mm: float
    path_mm: tuple[float, ...]

    def across_mm(self, along_mm: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Where its middle lies across the strip: a uniform quadratic B-spline, which never leaves the span of its knots."""
        position = np.clip((along_mm - self.start_mm) / self.knot_mm, 0.0, len(self.path_mm) - 1)
        nearest = np.rint(position).astype(np.int64)
        t = position - nearest
        knots = np.asarray((self.path_mm[0], *self.path_mm, self.path_mm[-1]))
        before, at, after = (0.5 - t) * (0.5 - t) * 0.5, 0.75 - t * t, (0.5 + t) * (0.5 + t) * 0.5
        return np.asarray(before * knots[nearest] + at * knots[nearest + 1] + after * knots[nearest + 2])


class Planting:
    """The defects of an endless strip whose steel spans `steel_mm` across; no spot is longer than `longest_spot_mm`."""

    def __init__(self, defects: SimulatedDefects, steel_mm: tuple[float, float], longest_spot_mm: float, seed: int) -> None:
        self._defects = defects
        self._left, self._right = steel_mm[0] + EDGE_MM, steel_mm[1] - EDGE_MM
        self._seed = seed
        self._longest_spot_mm = longest_spot_mm
        self._scratch_cell_mm = max(defects.scratch_max_mm, SPOT_CELL_MM)
        self._scratch_candidates = lru_cache(maxsize=8)(self._draw_scratches)
        self._spot_candidates = lru_cache(maxsize=64)(self._draw_spots)
        self._scratches = lru_cache(maxsize=8)(self._keep_scratches)
        self._spots = lru_cache(maxsize=64)(self._keep_spots)

    def scratches(self, start_mm: float, stop_mm: float) -> list[Scratch]:
        """Scratches of which some part may lie in [start_mm, stop_mm) along the strip."""
        cell = self._scratch_cell_mm
        near = _cells(start_mm - cell, stop_mm, cell)
        return [s for c in near for s in self._scratches(c) if s.start_mm < stop_mm and s.start_mm + s.length_mm > start_mm]

    def spots(self, start_mm: float, stop_mm: float) -> list[Spot]:
        """Spots of which some part may lie in [start_mm, stop_mm) along the strip."""
        near = _cells(start_mm - SPOT_CELL_MM / 2, stop_mm + SPOT_CELL_MM / 2, SPOT_CELL_MM)
        return [
            spot
            for c in near
            for spot in self._spots(c)
            if spot.along_mm - spot.length_mm / 2 < stop_mm and spot.along_mm + spot.length_mm / 2 > start_mm
        ]

    def _draw_scratches(self, cell: int) -> list[Scratch]:
        chance = _chance(self._seed, DefectKind.SCRATCH, cell)
        longest = self._defects.scratch_max_mm
        shortest = min(_SCRATCH_SHORTEST_MM, longest)
        candidates = []
        for _ in range(_count(chance, self._scratch_cell_mm, self._defects.scratch_every_mm)):
            start = (cell + chance.random()) * self._scratch_cell_mm
            length = shortest * (longest / shortest) ** chance.random()
            width = chance.uniform(*SCRATCH_WIDTHS_MM)
            knots = max(2, math.ceil(length / _PATH_STEP_MM) + 1)
            slant = chance.uniform(-1.0, 1.0) * min(_SLANT * length, 120.0, 0.4 * max(0.0, self._right - self._left))
            middle = self._left + chance.random() * (self._right - self._left)
            sway = min(_SWAY_MM, _SWAY_SHARE * length)
            key = chance.getrandbits(48)
            path = [middle + slant * (i / (knots - 1) - 0.5) + chance.uniform(-sway, sway) for i in range(knots)]
            # moved inwards as a whole rather than bent at the margin
            low, high = min(path) - width / 2, max(path) + width / 2
            shift = max(0.0, self._left - low) - max(0.0, high - self._right)
            if high - low < self._right - self._left and start > GAP_MM:
                candidates.append(Scratch(key, start, length, width, length / (knots - 1), tuple(x + shift for x in path)))
        return candidates

    def _keep_scratches(self, cell: int) -> list[Scratch]:
        rivals = [s for c in range(max(0, cell - 1), cell + 2) for s in self._scratch_candidates(c)]
        return [
            mine
            for mine in self._scratch_candidates(cell)
            if not any(r.key > mine.key and _scratches_meet(r, mine) for r in rivals)
        ]

    def _draw_spots(self, cell: int) -> list[Spot]:
        every = {
            DefectKind.RUST: self._defects.rust_every_mm,
            DefectKind.PIT: self._defects.pit_every_mm,
            DefectKind.INCLUSION: self._defects.inclusion_every_mm,
        }
        candidates = []
        for kind, every_mm in every.items():
            chance = _chance(self._seed, kind, cell)
            shortest, longest = SPOT_SIZES_MM[kind]
            for _ in range(_count(chance, SPOT_CELL_MM, every_mm)):
                along = (cell + chance.random()) * SPOT_CELL_MM
                size = min(shortest * (longest / shortest) ** chance.random(), self._longest_spot_mm)
                slender = {DefectKind.RUST: (0.5, 1.0), DefectKind.PIT: (0.85, 1.0), DefectKind.INCLUSION: (0.1, 0.25)}[kind]
                width = size * chance.uniform(*slender)
                if kind is DefectKind.INCLUSION:
                    width = max(width, min(1.5, size))
                where = chance.random()
                key = chance.getrandbits(48)
                room = self._right - self._left - width
                if room > 0 and along - size / 2 > GAP_MM:
                    candidates.append(Spot(kind, key, along, self._left + width / 2 + where * room, size, width))
        return candidates

    def _keep_spots(self, cell: int) -> list[Spot]:
        mine = self._spot_candidates(cell)
        rivals = [spot for c in range(max(0, cell - 1), cell + 2) for spot in self._spot_candidates(c)]
        reach = SPOT_CELL_MM / 2 + GAP_MM
        scratches = self.scratches(cell * SPOT_CELL_MM - reach, (cell + 1) * SPOT_CELL_MM + reach)
        return [
            spot
            for spot in mine
            if not any(r.key > spot.key and _spots_meet(r, spot) for r in rivals)
            and not any(_scratch_meets_spot(scratch, spot) for scratch in scratches)
        ]


def _chance(seed: int, kind: DefectKind, cell: int) -> random.Random:
    # seeding with text hashes all of it, on every version and machine the same
    return random.Random(f"{seed}/{kind.name}/{cell}")


def _count(chance: random.Random, cell_mm: float, every_mm: float | None) -> int:
    """A Poisson number of mean cell_mm / every_mm, by counting exponential gaps."""
    if every_mm is None:
        return 0
    count, position = 0, chance.expovariate(1.0) * every_mm
    while position < cell_mm and count < _MOST_PER_CELL:
        count += 1
        position += chance.expovariate(1.0) * every_mm
    return count


def _cells(start_mm: float, stop_mm: float, cell_mm: float) -> range:
    return range(max(0, math.floor(start_mm / cell_mm)), max(0, math.floor(stop_mm / cell_mm)) + 1)


def _spots_meet(one: Spot, other: Spot) -> bool:
    along = abs(one.along_mm - other.along_mm) - (one.length_mm + other.length_mm) / 2
    across = abs(one.across_mm - other.across_mm) - (one.width_mm + other.width_mm) / 2
    return along < GAP_MM and across < GAP_MM


def _scratches_meet(one: Scratch, other: Scratch) -> bool:
    start = max(one.start_mm, other.start_mm) - GAP_MM
    stop = min(one.start_mm + one.length_mm, other.start_mm + other.length_mm) + GAP_MM
    if start >= stop:
        return False
    along = np.linspace(start, stop, 2 + int((stop - start) / GAP_MM))
    # between two of these places the paths come nearer by less than their steepest slants make of one step
    nearest = float(np.abs(one.across_mm(along) - other.across_mm(along)).min())
    return nearest < 2 * GAP_MM + (one.width_mm + other.width_mm) / 2


def _scratch_meets_spot(scratch: Scratch, spot: Spot) -> bool:
    half = spot.length_mm / 2 + GAP_MM
    start = max(scratch.start_mm, spot.along_mm - half)
    stop = min(scratch.start_mm + scratch.length_mm, spot.along_mm + half)
    if start >= stop:
        return False
    along = np.linspace(start, stop, 2 + int((stop - start) / GAP_MM))
    nearest = float(np.abs(scratch.across_mm(along) - spot.across_mm).min())
    return nearest < 2 * GAP_MM + (scratch.width_mm + spot.width_mm) / 2
