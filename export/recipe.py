"""An export recipe: everything that `rust-edge export` can be told, from a YAML file or from the command line."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from edge.config_faults import explain
from edge.errors import ConfigError
from edge.manifest import Fraction, TileStep
from edge.station_document import apply_override
from export.simulated import SimulatedSteel

LARGEST_SIDE: Final = 1 << 14
"""Of a tile, px: far beyond what a box has memory for."""

MOST_THREADS: Final = 1024
"""More than any box has cores."""


def _listed(value: object) -> object:
    """`a, b`, as a command line has it, and one number as the lists that they stand for."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    return [value] if isinstance(value, int | float) else value


def _sized(value: object) -> object:
    """`256x1600` as height and width."""
    return value.lower().split("x") if isinstance(value, str) else value


def _counted(value: object) -> object:
    """A number of strips, as a command line has it, all else as it is by default."""
    return value if isinstance(value, dict | SimulatedSteel) else {"strips": value}


def _on_disk(path: Path) -> Path:
    if "\0" in str(path):
        raise ValueError("no file has a name with a zero byte in it")
    try:
        str(path).encode()
    except UnicodeEncodeError as error:  # Linux takes any bytes; reports and image decoders do not
        raise ValueError("expected a name in UTF-8: rename it") from error
    return path


Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
Size = Annotated[tuple[Side, Side], BeforeValidator(_sized)]
"""Height and width, lines and columns."""

Channels = Annotated[tuple[float, ...], Field(min_length=1, max_length=16), BeforeValidator(_listed)]
Deviations = Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1, max_length=16), BeforeValidator(_listed)]
Names = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=2), BeforeValidator(_listed)]
FilePath = Annotated[Path, AfterValidator(_on_disk)]
Simulated = Annotated[SimulatedSteel, BeforeValidator(_counted)]


class ExportRecipe(BaseModel):
    """One export. Paths are relative to the working directory; unknown keys are refused.

    What is not said comes from the checkpoint where it holds it, else from the architecture.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    checkpoint: FilePath = Field(description="The trained network: a file, or a SavedModel's folder.")
    weights: FilePath | None = Field(None, description="Weights of a Keras model.json; none: the file of its name beside it.")
    trust_checkpoint: bool = Field(False, description="Load a file that runs code of its own when it is loaded.")
    arch: str = Field(min_length=1, description="Name of the architecture (`rust-edge export --list`).")
    classes: Names | None = Field(None, description="Names in index order, background or clean first.")
    clean: str | None = Field(None, description="Classifier: the class that is no defect; none: the first one.")
    tile: Size | None = Field(None, description="Height and width of the network's input.")
    strip_tile: Size | None = Field(None, description="Lines and columns of the strip that one tile covers.")
    mean: Channels | None = Field(None, description="Grey level 0 to 255 taken off each channel; as many as the network has.")
    deviation: Deviations | None = Field(None, description="Grey levels that each channel is then divided by.")
    preparation: tuple[TileStep, ...] | None = Field(None, description="Steps on each tile before the engine; []: none.")
    pixel_threshold: Fraction | None = Field(None, description="Sigmoid segmenters: a class is there from this probability on.")
    gate_threshold: Fraction | None = Field(None, description="Classifier: a tile is defective from this probability on.")
    calibration: FilePath = Field(description="Representative images, defects among them.")
    masks: FilePath | None = Field(None, description="Masks of the same names, class index per pixel.")
    labels: Literal["folders"] | FilePath | None = Field(
        None, description="Classifier: `folders` named as its classes, or a table `image,class`."
    )
    simulated: Simulated | None = Field(None, description="Gate of cells: strips of the simulator beside the images.")
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    max_drop: float = Field(0.5, ge=0, description="Points that the result may lose.")
    recall: float = Field(0.999, gt=0, le=1, description="Share of defective tiles, or regions, that a gate lets through.")
    defect_px: int | None = Field(
        None,
        ge=1,
        description="A tile is defective from so many defect pixels in its mask on; none: 16. A gate of cells: a "
        "region of so many is to be found; none: 8.",
    )
    head: Literal["logits", "probabilities", "mask"] = Field("logits", description="What the engine answers.")
    qat: FilePath | None = Field(None, description="Recipe of quantization-aware fine-tuning, where INT8 alone loses too much.")
    target: Literal["onnx", "tensorrt", "triton"] = "onnx"
    model_repository: FilePath | None = Field(
        None, description="Target triton: Triton's model repository; none: model_repository."
    )
    speed_s: float = Field(2.0, ge=0, description="Processor time for measuring speed; 0: not measured.")
    threads: int = Field(0, ge=0, le=MOST_THREADS, description="Threads of one inference; 0: one per core.")
    out: FilePath = Field(description="Folder to make.")
    force: bool = Field(False, description="Replace a bundle that stands there.")

    @model_validator(mode="after")
    def _sound(self) -> ExportRecipe:
        means, deviations = (len(values or ()) for values in (self.mean, self.deviation))
        if means != deviations:
            raise ValueError(f"got {means} means and {deviations} deviations; expected one of each a channel, or neither")
        if self.model_repository is not None and self.target != "triton":
            raise ValueError(f"got a model_repository, and target {self.target}; expected target triton, or none")
        if self.masks is not None and self.labels is not None:
            raise ValueError("got masks and labels; expected one of them")
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes: got {', '.join(self.classes)}; expected every name once")
        return self


_EXPECTED: Final = {
    "classes": "two names or more, separated by commas (in a file yes, no, on, off and numbers in quotes)",
    "tile": f"height and width in px, 1 to {LARGEST_SIDE}, such as 256x256",
    "strip_tile": f"lines and columns in px, 1 to {LARGEST_SIDE}, such as 256x1600",
    "mean": "numbers, one a channel, separated by commas",
    "deviation": "numbers above 0, one a channel, separated by commas",
    "preparation": "a list of steps, each with its `kind`, clahe (clip_limit, grid_rows, grid_columns) or resize (method)",
    "simulated": "how many strips, or `strips` with width, lines, first_seed and defects of them",
    "labels": "`folders`, or a CSV file with the columns image and class",
}
"""Of values that are more than one number or word."""

_SHOWN: Final = reprlib.Repr()
_SHOWN.maxstring, _SHOWN.maxlevel = 80, 2


def load_recipe(path: Path, overrides: Iterable[str] = (), given: dict[str, Any] | None = None) -> ExportRecipe:
    """Read a recipe; `given` (the command line) and then `key.path=value` overrides stand above it.

    Raises ConfigError naming every fault.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); expected a recipe, keys and values in YAML") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is no text ({error.reason}); expected a recipe, keys and values in YAML") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that is none
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: expected keys and values at the top, got {type(document).__name__}")
    return parse_recipe(document, str(path), overrides, given)


def parse_recipe(
    document: dict[str, Any], origin: str, overrides: Iterable[str] = (), given: dict[str, Any] | None = None
) -> ExportRecipe:
    """Validate what a recipe says. origin: names it in errors. given: what flags say, which stands above it.

    Raises ConfigError naming every fault.
    """
    given = given or {}
    document = document | given
    faults: list[str] = []
    for override in overrides:
        apply_override(document, override, faults)
    if faults:
        raise ConfigError("\n".join(faults))
    flags = {key for key in given if document[key] is given[key]}
    try:
        return ExportRecipe.model_validate(document)
    except ValidationError as error:
        raise ConfigError("\n".join(_explained(error, document, origin, flags))) from error


def flag_of(key: str) -> str:
    """How the command line says what a recipe's key says.

    >>> flag_of("max_drop")
    '--max-drop'
    """
    return "CHECKPOINT" if key == "checkpoint" else f"--{key.replace('_', '-')}"


def _explained(error: ValidationError, document: dict[str, Any], origin: str, flags: Collection[str]) -> Iterator[str]:
    """A line for every key that has a fault."""
    told = set[str]()
    for fault in error.errors():
        key = str(fault["loc"][0]) if fault["loc"] else ""
        if key in told:
            continue
        told.add(key)
        where = flag_of(key) if key in flags else f"{origin}: {key}" if key else origin
        yield f"{where}: {_reason(key, fault, document)}"


def _reason(key: str, fault: Any, document: dict[str, Any]) -> str:
    known = ExportRecipe.model_fields
    if not key:
        return str(fault["msg"]).removeprefix("Value error, ")
    if key not in known:
        near = difflib.get_close_matches(key, known, 1)
        return f"unknown key; expected {near[0] if near else 'one of ' + ', '.join(known)}"
    if key not in document:
        description = str(known[key].description)
        return f"missing; expected {description[:1].lower()}{description[1:].rstrip('.')}"
    # without the value, which is shown shorter here: a recipe may hold anything
    expected = (
        f"expected {_EXPECTED[key]}" if key in _EXPECTED else explain(fault | {"input": None}, ExportRecipe).partition("; ")[2]
    )
    return f"got {_SHOWN.repr(document[key])}; {expected}"
