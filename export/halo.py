"""How many pixels change class when the crops of the cascade have less halo than the network can reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from edge.manifest import HaloShare
from edge.scores import classify
from edge.sessions import Session
from export.quality import Reading
from export.radius import Reach
from export.samples import Image, mosaic

LARGEST_SHARE = 1e-5
"""The default halo changes at most this share of the pixels."""

FEWEST_PIXELS = 300_000
"""With fewer pixels, none of them changed, a share of LARGEST_SHARE is not shown: the upper 95 % bound for 0 of n is 3 / n.
Source: rule of three, Hanley and Lippman-Hand, JAMA 249 (1983) 1743."""

CELL = 200
"""Side of the mosaic's cells, px: no divisor of the crops' core, so that cell borders and core borders do not coincide."""

CELLS = 72
"""Cells of the mosaic: 2.9 million pixels, so that the default's share is some 30 pixels and not a matter of one."""

CROPS_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class HaloMeasurement:
    """halo: the default, a multiple of the stride; shares: what each halo up to the full radius changes; pixels: compared."""

    halo: int
    shares: tuple[HaloShare, ...]
    pixels: int


def measure_halos(session: Session, images: Sequence[Image], reading: Reading, core: int) -> HaloMeasurement:
    """Compare crops of `core` + 2 halo px with one inference over a whole mosaic of the images, for every multiple of the stride.

    session: takes any height and width that are multiples of the stride. core: side of a crop's core, px.
    """
    reach = reading.reach
    strip = mosaic(images, CELL, CELLS)
    lines, columns = strip.shape
    # whole cores, and the full halo around them: every crop then lies inside
    padded = np.pad(strip, [(reach.halo, reach.halo + -side % core) for side in strip.shape], mode="reflect")
    whole = _classes(session, padded[None], reading)[0]
    shares = []
    for halo in tqdm(range(0, reach.halo + 1, reach.stride), desc="halos", leave=False, disable=None):
        changed = 0
        places = [(row, column) for row in range(0, lines, core) for column in range(0, columns, core)]
        for start in range(0, len(places), CROPS_AT_ONCE):
            batch = places[start : start + CROPS_AT_ONCE]
            first, side = reach.halo - halo, core + 2 * halo
            crops = np.stack([padded[first + row :, first + column :][:side, :side] for row, column in batch])
            for (row, column), classes in zip(batch, _classes(session, crops, reading), strict=True):
                height, width = min(core, lines - row), min(core, columns - column)
                expected = whole[reach.halo + row :, reach.halo + column :][:height, :width]
                changed += int(np.count_nonzero(classes[halo:, halo:][:height, :width] != expected))
        shares.append(HaloShare(halo=halo, changed=changed / strip.size))
    return HaloMeasurement(choose_halo(shares, reach, strip.size), tuple(shares), strip.size)


def choose_halo(shares: Sequence[HaloShare], reach: Reach, pixels: int) -> int:
    """The smallest halo from which on no larger one changes more than LARGEST_SHARE; the full one where too few pixels tell."""
    if pixels < FEWEST_PIXELS:
        return reach.halo
    chosen = reach.halo
    for share in sorted(shares, key=lambda share: share.halo, reverse=True):
        if share.halo < reach.halo and share.changed > LARGEST_SHARE:
            break
        chosen = share.halo
    return chosen


def _classes(session: Session, images: npt.NDArray[np.uint8], reading: Reading) -> list[npt.NDArray[np.uint8]]:
    scores = session.infer(np.ascontiguousarray(images[:, None]))
    return [classify(of_one, reading.activation, level=reading.pixel_threshold)[0] for of_one in scores]
