"""An export recipe: everything that `rust-edge export` can be told, from a YAML file or from the command line."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edge.config import apply_override
from edge.errors import ConfigError
from edge.manifest import Fraction, TileStep

Size = tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
"""Height and width, lines and columns."""

Channels = Annotated[tuple[float, ...], Field(min_length=1, max_length=16)]


class ExportRecipe(BaseModel):
    """One export. Paths are relative to the working directory; unknown keys are refused.

    What is not said comes from the checkpoint where it holds it, else from the architecture.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    checkpoint: Path = Field(description="The trained network: a file, or a SavedModel's folder.")
    weights: Path | None = Field(None, description="Weights of a Keras model.json; none: the file of its name beside it.")
    trust_checkpoint: bool = Field(False, description="Load a file that runs code of its own when it is loaded.")
    arch: str = Field(min_length=1, description="Name of the architecture (`rust-edge export --list`).")
    classes: tuple[str, ...] | None = Field(None, min_length=2, description="Names in index order, background or clean first.")
    clean: str | None = Field(None, description="Classifier: the class that is no defect; none: the first one.")
    tile: Size | None = Field(None, description="Height and width of the network's input.")
    strip_tile: Size | None = Field(None, description="Lines and columns of the strip that one tile covers.")
    mean: Channels | None = Field(None, description="Grey level 0 to 255 taken off each channel; as many as the network has.")
    deviation: Channels | None = Field(None, description="Grey levels that each channel is then divided by.")
    preparation: tuple[TileStep, ...] | None = Field(None, description="Steps on each tile before the engine; []: none.")
    pixel_threshold: Fraction | None = Field(None, description="Sigmoid segmenters: a class is there from this probability on.")
    gate_threshold: Fraction | None = Field(None, description="Classifier: a tile is defective from this probability on.")
    calibration: Path = Field(description="Representative images, defects among them.")
    masks: Path | None = Field(None, description="Masks of the same names, class index per pixel.")
    labels: Literal["folders"] | Path | None = Field(
        None, description="Classifier: `folders` named as its classes, or a table `image,class`."
    )
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    max_drop: float = Field(0.5, ge=0, description="Points that the result may lose.")
    recall: float = Field(0.999, gt=0, le=1, description="Share of defective tiles that a gate lets through.")
    defect_px: int = Field(16, ge=1, description="A tile is defective from so many defect pixels in its mask on.")
    head: Literal["logits", "probabilities", "mask"] = Field("logits", description="What the engine answers.")
    qat: Path | None = Field(None, description="Recipe of quantization-aware fine-tuning, where INT8 alone loses too much.")
    target: Literal["onnx", "tensorrt"] = "onnx"
    speed_s: float = Field(2.0, ge=0, description="Processor time for measuring speed; 0: not measured.")
    threads: int = Field(0, ge=0, description="Threads of one inference; 0: one per core.")
    out: Path = Field(description="Folder to make.")
    force: bool = Field(False, description="Replace a bundle that stands there.")

    @model_validator(mode="after")
    def _sound(self) -> ExportRecipe:
        if (self.mean is None) != (self.deviation is None) or len(self.mean or ()) != len(self.deviation or ()):
            raise ValueError("mean and deviation go together: expected as many of one as of the other")
        if self.masks is not None and self.labels is not None:
            raise ValueError("got masks and labels; expected one of them")
        return self


def load_recipe(path: Path, overrides: Iterable[str] = (), given: dict[str, Any] | None = None) -> ExportRecipe:
    """Read a recipe; `given` (the command line) and then `key.path=value` overrides stand above it.

    Raises ConfigError naming every fault.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); expected one such as configs/export/rust-cnn.yaml") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: expected keys and values at the top, got {type(document).__name__}")
    return parse_recipe(document | (given or {}), str(path), overrides)


def parse_recipe(document: dict[str, Any], origin: str, overrides: Iterable[str] = ()) -> ExportRecipe:
    """Validate what a recipe says. origin: names it in errors. Raises ConfigError naming every fault."""
    faults: list[str] = []
    for override in overrides:
        apply_override(document, override, faults)
    if faults:
        raise ConfigError("\n".join(f"{origin}: {fault}" for fault in faults))
    try:
        return ExportRecipe.model_validate(document)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{origin}: {_explain(fault)}" for fault in error.errors())) from error


def _explain(fault: Any) -> str:
    key = ".".join(map(str, fault["loc"]))
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "missing":
        return f"{key}: missing; expected {fault['loc'] and ExportRecipe.model_fields[key].description}"
    if fault["type"] == "extra_forbidden":
        return f"{key}: unknown key; expected one of {', '.join(ExportRecipe.model_fields)}"
    return f"{key}: got {fault['input']!r}; {message[:1].lower() + message[1:]}" if key else message
