"""Strips of the simulator as labelled images: steel whose defects are known to the pixel, clean steel among it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from edge.config import Scale, SimulatedDefects
from edge.sources.steel_strip import SteelStrip

Image = npt.NDArray[np.uint8]


class SimulatedSteel(BaseModel):
    """Strips that stand beside the images of an export: how many, their size in px, and what is planted.

    first_seed: of the first strip; the trainer's are below 2,000,000, so that none of these was trained on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    strips: int = Field(ge=1)
    width: int = Field(2048, ge=64)
    lines: int = Field(2048, ge=64)
    first_seed: int = Field(2_000_000, ge=0)
    defects: SimulatedDefects = SimulatedDefects()


def simulated_strips(steel: SimulatedSteel) -> Iterator[tuple[str, Image, Image]]:
    """Name, grey image and truth of each strip, (lines, width) uint8; the truth is above 0 where a defect was planted."""
    for seed in range(steel.first_seed, steel.first_seed + steel.strips):
        strip = SteelStrip(steel.width, seed, steel.defects, Scale())
        yield f"simulated strip {seed}", strip.lines(0, steel.lines), strip.truth(0, steel.lines)
