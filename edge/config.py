"""The station file: one YAML for one camera, parsed once into typed values; unknown keys and impossible values refused.

`load_config` reports every fault at once, each with file, key path, what was got and what is expected.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from edge.config_faults import explain, take_out
from edge.errors import ConfigError

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Millimetres = Annotated[float, Field(ge=0.0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
"""A part of a topic and of an event's source: letters, digits, dot, dash, underscore."""
ChunkLines = Annotated[
    Annotated[int, Field(ge=1, le=4096), Tag("lines")] | Annotated[Literal["auto"], Tag("auto")],
    # told apart before they are judged: a number that is too large is then one fault, not two
    Discriminator(lambda value: "auto" if value == "auto" else "lines"),
]


BackendName = Literal["tensorrt", "openvino", "ort", "kserve"]
Backends = Annotated[
    Annotated[Literal["auto", "tensorrt", "openvino", "ort", "kserve"], Tag("one")]
    | Annotated[tuple[BackendName, ...], Field(min_length=1), Tag("several")],
    Discriminator(lambda value: "several" if isinstance(value, list | tuple) else "one"),
]


class Section(BaseModel):
    """A part of the station file. Values are frozen; unknown keys are faults."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FolderSource(Section):
    """Images of a folder (or the ones listed), in name order, as one strip."""

    kind: Literal["folder"] = "folder"
    path: Path | list[Path] = Field(description="A folder, an image, or a list of both.")
    frame_lines: int = Field(128, ge=1, le=65536, description="Lines per frame that the source hands out.")
    loop: bool = Field(False, description="Begin again after the last image, without end.")
    line_rate_hz: float | None = Field(None, gt=0, description="Pace; none: as fast as the pipeline takes them.")


class SimulatedDefects(Section):
    """How often defects are planted on the simulated strip, as the mean distance between two of one kind."""

    rust_every_mm: float | None = Field(900.0, gt=0)
    pit_every_mm: float | None = Field(700.0, gt=0)
    inclusion_every_mm: float | None = Field(1100.0, gt=0)
    scratch_every_mm: float | None = Field(1500.0, gt=0)
    scratch_max_mm: float = Field(2500.0, gt=0, description="Longest scratch.")


class SimulatedSource(Section):
    """An endless steel strip made from a seed, with planted defects whose truth is known."""

    kind: Literal["simulated"] = "simulated"
    width: int = Field(4096, ge=64, le=16384)
    frame_lines: int = Field(128, ge=1, le=65536)
    line_rate_hz: float | None = Field(
        None, gt=0, description="Camera pace, lines shed when too slow; none: as fast as the pipeline takes them."
    )
    seed: int = Field(1, ge=0)
    lines: int | None = Field(None, ge=1, description="Length of the strip; none: endless.")
    defects: SimulatedDefects = SimulatedDefects()


Source = Annotated[FolderSource | SimulatedSource, Field(discriminator="kind")]


class Scale(Section):
    """Millimetres on the strip per pixel."""

    mm_per_line: float = Field(0.25, gt=0, description="Along the strip, from one line to the next.")
    mm_per_column: float = Field(0.25, gt=0, description="Across the strip, from one pixel to the next.")


class Tiling(Section):
    """The bands and crops of the cascade, and the grid of mode tiles, whose tiles may overlap."""

    tile_lines: int | None = Field(None, ge=1, le=16384, description="Lines of a tile in mode tiles; none: the bundle's.")
    tile_columns: int | None = Field(None, ge=1, le=16384, description="Columns of a tile in mode tiles; none: the bundle's.")
    step_lines: int | None = Field(None, ge=1, description="Lines from a tile to the next in mode tiles; none: no overlap.")
    step_columns: int | None = Field(None, ge=1, description="Columns from a tile to the next in mode tiles; none: no overlap.")
    merge: Literal["core", "union", "mean"] = Field("core", description="What a pixel is that several tiles hold, in mode tiles.")
    pixel_threshold: Fraction | None = Field(
        None, description="Sigmoid segmenters: a class is there from this probability on; none: the bundle's."
    )
    batch: int = Field(8, ge=1, le=256, description="Tiles, or crops of one size, that go through an engine at once.")
    band_lines: int | None = Field(
        None,
        ge=1,
        le=16384,
        description="Lines that the cascade finishes at once; none: 256, or the least multiple of the gate's tile above.",
    )
    halo: int | None = Field(
        None, ge=0, description="Margin of a crop in pixels, a multiple of the engine's stride; none: the bundle's."
    )
    gate_threshold: Fraction | None = Field(
        None, description="Tiles at or above go on, or are defective to a classifier without a gate; none: the bundle's own."
    )


AUTO: Final[tuple[BackendName, ...]] = ("tensorrt", "openvino", "ort")
"""What `backend: auto` tries, the fastest first; on x86 OpenVINO takes two thirds of ONNX Runtime's time for an INT8 U-Net."""


class SessionOptions(Section):
    """How engines run."""

    backend: Backends = Field(
        "auto",
        description="auto: TensorRT, else OpenVINO, else ONNX Runtime, whichever is there and answers the bundle's golden tiles; "
        "one of tensorrt, openvino, ort, kserve, which then has to do; or a list of them, the first that does.",
    )
    threads: int = Field(0, ge=0, le=256, description="Threads inside one inference; 0: as many as there are cores.")
    precision: Literal["f32", "bf16"] = Field(
        "f32", description="Of float operators; bundles are verified in f32. bf16: OpenVINO, on processors that have it."
    )
    cache: Path | None = Field(
        None, description="Folder for compiled engines; none: beside the bundle, or the user's cache where that is read-only."
    )

    @property
    def backends(self) -> tuple[BackendName, ...]:
        """Those that are tried, in order."""
        if self.backend == "auto":
            return AUTO
        return (self.backend,) if isinstance(self.backend, str) else self.backend

    @model_validator(mode="after")
    def _computable(self) -> SessionOptions:
        if self.precision == "bf16" and "openvino" not in self.backends:
            told = ", ".join(self.backends)
            raise ValueError(f"precision: got bf16, and backend {told} computes floats in f32 alone; expected f32, or openvino")
        if repeated := [name for name in AUTO if self.backends.count(name) > 1]:
            raise ValueError(f"backend: got {repeated[0]} twice; expected each one once")
        return self


class ClassRule(Section):
    """What a region of one class must be to become a defect. Lengths in mm."""

    low: Fraction | None = Field(None, description="Pixels below this confidence do not count; none: the bundle's.")
    high: Fraction | None = Field(None, description="The region's peak confidence must reach this; none: the bundle's.")
    min_area_mm2: float = Field(0.5, ge=0)
    min_length_mm: Millimetres = 0.0
    min_aspect_ratio: float | None = Field(None, ge=1, description="Length over width at least this.")
    max_aspect_ratio: float | None = Field(None, ge=1, description="Length over width at most this.")
    ignore: bool = Field(False, description="Regions of this class are counted and never become defects.")

    @model_validator(mode="after")
    def _ordered(self) -> ClassRule:
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}: expected low <= high")
        if self.min_aspect_ratio and self.max_aspect_ratio and self.min_aspect_ratio > self.max_aspect_ratio:
            raise ValueError(f"min_aspect_ratio {self.min_aspect_ratio} is above max_aspect_ratio {self.max_aspect_ratio}")
        return self


class StripEdges(Section):
    """Background beyond the strip: columns darker than `background_below` from a side inwards are not steel."""

    background_below: int | None = Field(None, ge=1, le=255, description="Grey level; none: the strip fills the camera's view.")
    margin_mm: Millimetres = Field(2.0, description="Steel this near to an edge is not judged.")


class Merge(Section):
    """Fragments of one class nearer than this become one defect."""

    along_mm: Millimetres = 5.0
    across_mm: Millimetres = 2.0


class FixedColumns(Section):
    """Dirt on the lens or the window: the same columns alarmed over many metres."""

    over_mm: float | None = Field(20_000.0, gt=0, description="Distance watched; none: off.")
    share: float = Field(0.8, gt=0, le=1, description="Share of that distance that a column must be alarmed.")


class Filters(Section):
    """False positives out, each with its reason and count. `classes` by name; `default` for those not named."""

    default: ClassRule = ClassRule()
    classes: dict[str, ClassRule] = {}
    strip_edges: StripEdges = StripEdges()
    merge: Merge = Merge()
    fixed_columns: FixedColumns = FixedColumns()


class Events(Section):
    """What is published about a defect, and how often."""

    update_every_mm: float = Field(1000.0, gt=0, description="An open defect is updated at most once per this much strip.")
    max_rle_runs: int = Field(4096, ge=0, description="Runs of a mask kept; beyond, `rle_truncated` says so.")
    crop: bool = Field(True, description="A JPEG of the defect when it is opened.")
    crop_max_px: int = Field(192, ge=16, le=2048, description="Longest side of that crop.")


class Outbox(Section):
    """Where events wait until the broker has acknowledged them."""

    path: Path = Path("out/outbox.db")
    max_mb: float = Field(512.0, gt=0, description="Updates go first, openings and closings last, when this is reached.")
    max_age_h: float = Field(24.0 * 30, gt=0)


class Tls(Section):
    """TLS towards the broker."""

    ca: Path | None = Field(None, description="Certificate authority; none: the system's.")
    certificate: Path | None = None
    key: Path | None = None

    @model_validator(mode="after")
    def _paired(self) -> Tls:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key go together: expected both or neither")
        return self


class Mqtt(Section):
    """The broker that gets the events. Secrets come from the environment: `password: ${MQTT_PASSWORD}`."""

    host: str = Field("127.0.0.1", min_length=1)
    port: int = Field(1883, ge=1, le=65535)
    version: Literal["5", "3.1.1"] = "5"
    username: str | None = None
    password: str | None = Field(None, repr=False)
    tls: Tls | None = None
    topic_root: Name = "rust-edge"
    keepalive_s: int = Field(30, ge=1, le=3600)
    inflight: int = Field(20, ge=1, le=1000, description="Messages under way and not yet acknowledged.")
    backoff_max_s: float = Field(30.0, gt=0, description="Longest pause between two attempts to connect.")


class Sinks(Section):
    """Where events go. The outbox stands before MQTT; files are appended."""

    mqtt: Mqtt | None = None
    jsonl: Path | None = None
    csv: Path | None = None


class StationConfig(Section):
    """A station: one camera, its engines, its rules, its broker."""

    site: Name = "site"
    line: Name = "line"
    camera: Name = "camera"
    scale: Scale = Scale()
    source: Source
    bundle: str = Field(
        "steel-unet-int8", min_length=1, description="A segmenter, in mode tiles also a classifier: a shipped name or a path."
    )
    gate: str | None = Field(
        None, min_length=1, description="Gate bundle: a shipped name or a path; needed by mode cascade, possible in mode tiles."
    )
    mode: Literal["dense", "cascade", "tiles"] = "dense"
    dense: Literal["streaming", "slabs"] = "streaming"
    chunk_lines: ChunkLines = Field(
        64,
        description="Lines per inference of the dense paths, a multiple of the engine's stride; the most of a gate that streams; "
        "auto: what `rust-edge bench` chose on this box, else 64.",
    )
    queue_frames: int = Field(64, ge=2, le=4096, description="Frames between capture and inference.")
    tiling: Tiling = Tiling()
    session: SessionOptions = SessionOptions()
    filters: Filters = Filters()
    events: Events = Events()
    outbox: Outbox = Outbox()
    sinks: Sinks = Sinks()

    @model_validator(mode="after")
    def _gate_for_cascade(self) -> StationConfig:
        if self.mode == "cascade" and self.gate is None:
            raise ValueError("gate: got none; mode cascade needs one: expected steel-gate-int8 or a path")
        return self


_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def load_config(path: Path, overrides: Iterable[str] = (), environment: Mapping[str, str] | None = None) -> StationConfig:
    """Read a station file, apply `key.path=value` overrides, replace `${NAME}` by the environment.

    Relative paths in the file stay relative to the working directory. Raises ConfigError naming every fault.
    """
    return parse_config(read_document(path), str(path), overrides, environment)


def read_document(path: Path) -> dict[str, Any]:
    """The keys and values of a station file, not yet validated. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); expected a station file such as configs/demo.yaml") from error
    try:
        document = yaml.load(text, _UniqueKeys)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise ConfigError(f"{path}{where}: not YAML: {error.problem}; expected `key: value` lines") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        got = "an empty file" if document is None else type(document).__name__
        raise ConfigError(f"{path}: got {got}; expected keys and values, such as configs/demo.yaml")
    return document


def parse_config(
    document: dict[str, Any], origin: str, overrides: Iterable[str] = (), environment: Mapping[str, str] | None = None
) -> StationConfig:
    """Validate a parsed document. `origin` names it in errors. Raises ConfigError naming every fault."""
    config, faults = survey_config(document, overrides, environment)
    if faults or config is None:
        raise ConfigError("\n".join(f"{origin}: {fault}" for fault in faults))
    return config


def survey_config(
    document: dict[str, Any], overrides: Iterable[str] = (), environment: Mapping[str, str] | None = None
) -> tuple[StationConfig | None, list[str]]:
    """Every fault of a document, and what the station would be with each faulty value taken out.

    A validator that compares several keys only runs once each of them is sound on its own; so faulty values are taken
    out and the rest is looked at again, until nothing new is found.
    """
    document = copy.deepcopy(document)
    variables = os.environ if environment is None else environment
    faults: list[str] = []
    for override in overrides:
        apply_override(document, override, faults)
    rest = _expand(document, variables, "", faults)
    while True:
        try:
            return StationConfig.model_validate(rest), faults
        except ValidationError as error:
            found = {explain(fault, StationConfig): fault for fault in error.errors()}
        faults += [fault for fault in found if fault not in faults]
        if not all([take_out(rest, fault) for fault in found.values()]):
            return None, faults


class _UniqueKeys(yaml.SafeLoader):
    """A key that stands twice in one section is a fault: YAML would let the second one win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str):
                if key in seen:
                    raise yaml.MarkedYAMLError(problem=f"key {key} stands twice", problem_mark=key_node.start_mark)
                seen.add(key)
        return super().construct_mapping(node, deep)


def apply_override(document: dict[str, Any], override: str, faults: list[str]) -> None:
    """Set `key.path=value` in a parsed document; what cannot be set is added to `faults`."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        faults.append(f"--set {override}: expected key.path=value")
        return
    *parents, leaf = key.strip().split(".")
    node = document
    for part in parents:
        child = node.setdefault(part, {})
        if child is None:
            child = node[part] = {}
        if not isinstance(child, dict):
            faults.append(f"--set {override}: {part} is a value, not a section")
            return
        node = child
    try:
        node[leaf] = yaml.safe_load(text)
    except yaml.YAMLError:
        node[leaf] = text


def _expand(node: Any, variables: Mapping[str, str], where: str, faults: list[str]) -> Any:
    if isinstance(node, dict):
        return {key: _expand(value, variables, f"{where}.{key}".lstrip("."), faults) for key, value in node.items()}
    if isinstance(node, list):
        return [_expand(value, variables, f"{where}.{index}".lstrip("."), faults) for index, value in enumerate(node)]
    if not isinstance(node, str):
        return node
    for name in _VARIABLE.findall(node):
        if name not in variables:
            faults.append(f"{where}: got ${{{name}}}, which the environment does not hold; expected it to be set")
    return _VARIABLE.sub(lambda match: variables.get(match.group(1), ""), node)
