"""A training recipe: one YAML that says what is trained, on what, and how; the same recipe gives the same network."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge.config import SimulatedDefects
from edge.errors import ConfigError
from edge.station_document import apply_override


class Part(BaseModel):
    """A part of the recipe; frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Images(Part):
    """Images and masks of the same stem; a mask's pixels are class indices.

    validation and held_out are numbers of images set aside by the seed: the first choose the checkpoint, the second
    are never looked at until the end.
    """

    images: Path
    masks: Path
    validation: int = Field(240, ge=1)
    held_out: int = Field(240, ge=0)


class SimulatedStrips(Part):
    """Strips of the simulator, so that clean steel, strip edges and lighting are known to the network.

    strips: how many seeds. width, lines: size of each, px. share: of a batch. classes: simulator's kind -> class.
    """

    strips: int = Field(48, ge=1)
    width: int = Field(1280, ge=64)
    lines: int = Field(1536, ge=64)
    share: float = Field(0.25, ge=0, lt=1)
    validation_strips: int = Field(6, ge=1)
    defects: SimulatedDefects = SimulatedDefects()
    classes: dict[str, str]


class Augmentation(Part):
    """What is varied. Each value is the largest change."""

    scale: float = Field(1.35, ge=1, description="Factor of size, either way.")
    gain: float = Field(0.2, ge=0, description="Relative change of contrast.")
    offset: float = Field(20.0, ge=0, description="Change of brightness, grey levels.")
    gamma: float = Field(0.2, ge=0)
    noise: float = Field(6.0, ge=0, description="Standard deviation of added noise, grey levels.")
    column_noise: float = Field(4.0, ge=0, description="The same per column: a camera's fixed pattern.")
    mosaic: float = Field(0.3, ge=0, le=1, description="Share of images made of the corners of four.")


class Schedule(Part):
    """Optimisation: AdamW under a one-cycle rate (Smith and Topin, arXiv:1708.07120), weights averaged exponentially."""

    epochs: int = Field(ge=1)
    batch: int = Field(ge=1)
    rate: float = Field(gt=0)
    weight_decay: float = Field(0.01, ge=0)
    average: float = Field(0.999, gt=0, lt=1)
    class_weights: tuple[float, ...] = ()
    bfloat16: bool = True


class Recipe(Part):
    """One network's training."""

    arch: Literal["steel-unet", "steel-gate"]
    classes: tuple[str, ...] = Field(min_length=2)
    crop: int = Field(208, ge=16, description="Pixels of a training image's side.")
    seed: int = 0
    threads: int = Field(0, ge=0)
    images: Images
    simulated: SimulatedStrips
    augmentation: Augmentation = Augmentation()
    schedule: Schedule
    start_from: Path | None = Field(
        None, description="Weights to begin with, such as an earlier stage's best.pt; none: random ones."
    )
    defect_px: int = Field(16, ge=1, description="Gate: a tile with at least this many defect pixels is defective.")
    out: Path


def load_recipe(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read and validate a recipe after `key.path=value` overrides. Relative paths are relative to the working directory.

    Raises ConfigError naming every fault.
    """
    faults: list[str] = []
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict):
            raise ConfigError(f"{path}: expected keys and values at the top, got {type(document).__name__}")
        for override in overrides:
            apply_override(document, override, faults)
        if faults:
            raise ConfigError("\n".join(f"{path}: {fault}" for fault in faults))
        return Recipe.model_validate(document)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); expected a recipe such as configs/train/steel-unet.yaml") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    except ValidationError as error:
        named = ((".".join(map(str, fault["loc"])) or "(top)", fault) for fault in error.errors())
        raise ConfigError("\n".join(f"{path}: {key}: got {fault['input']!r}; {fault['msg']}" for key, fault in named)) from error
