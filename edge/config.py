"""The station file: one YAML, parsed once into typed values; unknown keys and impossible values refused.

`load_config` reports every fault at once, each with file, key path, what was got and what is expected.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from edge.config_faults import explain, take_out
from edge.errors import ConfigError
from edge.station_document import apply_override, copy_apart, expand_variables, read_document

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Millimetres = Annotated[float, Field(ge=0.0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
"""A part of a topic and of an event's source: letters, digits, dot, dash, underscore."""
ChunkLines = Annotated[
    Annotated[int, Field(ge=1, le=4096), Tag("lines")] | Annotated[Literal["auto"], Tag("auto")],
    # told apart before they are judged: a number that is too large is then one fault, not two
    Discriminator(lambda value: "auto" if value == "auto" else "lines"),
]
QueueFrames = Annotated[int, Field(ge=2, le=4096)]


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


class SimulatedSensor(Section):
    """Lens, sensor and electronics between a scene and the lines of the simulated camera."""

    scene: Literal["strip", "dark", "bright", "target", "ladder"] = Field(
        "strip",
        description="dark: the lens covered; bright: an even target; target: bars along the motion; ladder: bars across it.",
    )
    light: float = Field(1.0, gt=0, le=64, description="Light, or exposure, against that of the camera without this section.")
    bright_grey: float = Field(180.0, gt=0, le=1024, description="Grey level of the even target, and of light bars.")
    pitch_mm: float = Field(5.0, gt=0, description="From one edge of a bar to the next.")
    tilt_deg: float = Field(0.0, ge=-45, le=45, description="Of the bars against the direction they are named by.")
    dark_grey: float = Field(3.0, ge=0, le=128, description="Mean dark signal.")
    dsnu_grey: float = Field(0.5, ge=0, le=32, description="Standard deviation of the columns' dark signals.")
    prnu_percent: float = Field(1.0, ge=0, le=25, description="Standard deviation of the columns' gains.")
    full_well_e: float = Field(15_000.0, ge=100, description="Electrons that are grey level 255: its noise is their square root.")
    read_noise_e: float = Field(15.0, ge=0, description="Temporal noise in the dark, before it becomes whole grey levels.")
    fall_off_deg: float = Field(0.0, ge=0, le=60, description="Angle of view from the middle to an end: light falls as cos^4.")
    distortion: float = Field(
        0.0, ge=-0.3, le=0.3, description="What is seen at u is at u + distortion * u^3; u is 0 in the middle, 1 at an end."
    )
    dead_columns: tuple[Annotated[int, Field(ge=0)], ...] = Field((), description="Columns that see no light.")
    hot_columns: tuple[Annotated[int, Field(ge=0)], ...] = Field((), description="Columns that are always white.")


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
    sensor: SimulatedSensor | None = Field(None, description="none: a sensor without faults.")

    @model_validator(mode="after")
    def _columns_there(self) -> SimulatedSource:
        for key in ("dead_columns", "hot_columns"):
            columns: tuple[int, ...] = getattr(self.sensor, key, ())
            if beyond := [column for column in columns if column >= self.width]:
                raise ValueError(f"sensor.{key}: got {beyond[0]}; expected columns from 0 to {self.width - 1}")
        return self


def _is_feature_value(value: object) -> object:
    if isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ValueError("expected true, false, a number or text, as the camera has the feature")


FeatureValue = Annotated[bool | int | float | str, BeforeValidator(_is_feature_value)]
"""Of a GenICam feature: an enumeration's entry is text, and a command is executed by true."""


class GenicamCamera(Section):
    """What a GenICam camera is set to. A key that is none leaves the camera as it is."""

    frame_lines: int = Field(128, ge=1, le=65536, description="Lines per frame: the camera's Height is set to it.")
    width: int | None = Field(None, ge=1, le=65536, description="Columns; none: as the camera has it.")
    pixel_format: Literal["Mono8", "Mono10", "Mono10Packed", "Mono10p", "Mono12", "Mono12Packed", "Mono12p", "Mono16"] = Field(
        "Mono8", description="What the camera sends; more than 8 bits are cut to the 8 highest ones."
    )
    exposure_us: float | None = Field(None, gt=0, description="none: as the camera has it.")
    line_rate_hz: float | None = Field(
        None, gt=0, description="Lines per second; of a camera without a line rate its frame rate times the lines of a frame."
    )
    trigger: Literal["free", "encoder", "software"] = Field(
        "free",
        description="encoder: no lines come while the strip stands still, and that is no fault; "
        "software: a frame is asked for whenever the one before has come.",
    )
    trigger_source: str | None = Field(
        None,
        min_length=1,
        description="Input of trigger encoder, as the camera names it, such as Line1; none: as `features` has it.",
    )
    trigger_selector: str | None = Field(
        None, min_length=1, description="What is triggered; none: LineStart where the camera has it, else FrameStart."
    )
    features: dict[str, FeatureValue] = Field(
        {}, description="GenICam features by name, set in this order and read back; a command by true."
    )
    buffers: int = Field(32, ge=4, le=4096, description="Frames that may be on their way between the driver and capture.")
    frozen_s: float = Field(
        2.0, ge=0.1, le=3600, description="Without a frame for so long a free camera is opened again, one with an encoder asked."
    )

    @model_validator(mode="after")
    def _triggered(self) -> GenicamCamera:
        told = [key for key in ("trigger_source", "trigger_selector") if getattr(self, key) is not None]
        if told and self.trigger != "encoder":
            raise ValueError(
                f"{told[0]}: got {getattr(self, told[0])}, with trigger {self.trigger}; expected trigger encoder, or none"
            )
        return self

    @model_validator(mode="after")
    def _frames_often_enough(self) -> GenicamCamera:
        if self.line_rate_hz and self.trigger == "free" and self.frozen_s < 2 * self.frame_lines / self.line_rate_hz:
            frame_s = self.frame_lines / self.line_rate_hz
            raise ValueError(
                f"frozen_s: got {self.frozen_s:g}, and a frame of {self.frame_lines} lines takes {frame_s:g} s; "
                f"expected at least {2 * frame_s:g}, or fewer frame_lines"
            )
        return self


class GigeSource(GenicamCamera):
    """A GigE Vision camera, without a maker's library."""

    kind: Literal["gige"] = "gige"
    address: str | None = Field(None, min_length=1, description="IP address or host name of the camera.")
    serial: str | None = Field(None, min_length=1, description="In place of the address: found by its serial number.")
    name: str | None = Field(None, min_length=1, description="In place of the address: found by the name given to it.")
    transport: Literal["auto", "aravis", "telegenicam"] = Field(
        "auto", description="Which client receives its frames; auto: Aravis where it is installed, else telegenicam."
    )
    packet_size: int | None = Field(
        None, ge=576, le=16110, description="Bytes of a packet, headers included; none: what the client finds to come through."
    )
    reverse_x: bool | None = Field(None, description="Mirror the columns in the camera; none: as the camera has it.")

    @model_validator(mode="after")
    def _one_camera(self) -> GigeSource:
        told = [key for key in ("address", "serial", "name") if getattr(self, key) is not None]
        if len(told) != 1:
            raise ValueError(
                f"got {' and '.join(told) or 'none of address, serial and name'}; expected one of address, serial, name"
            )
        return self

    @model_validator(mode="after")
    def _runs_by_itself(self) -> GigeSource:
        if self.trigger == "software":
            raise ValueError("trigger: got software; expected free or encoder")
        return self


class BaslerSource(GenicamCamera):
    """A Basler camera, GigE or USB, through pylon."""

    kind: Literal["basler"] = "basler"
    serial: str | None = Field(None, min_length=1, description="Its serial number; none, and no name: the only one there is.")
    name: str | None = Field(None, min_length=1, description="In place of the serial number: the name given to it.")

    @model_validator(mode="after")
    def _one_camera(self) -> BaslerSource:
        if self.serial is not None and self.name is not None:
            raise ValueError("got serial and name; expected one of serial, name, or none of them")
        return self


class GentlSource(GenicamCamera):
    """A camera of any maker through its GenTL producer."""

    kind: Literal["gentl"] = "gentl"
    producer: Path | Annotated[tuple[Path, ...], Field(min_length=1)] = Field(
        description="Its .cti file, or a list of them: the cameras of all of them are one list."
    )
    device: str | Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="Id or serial number in quotes, or place from 0 in the list of cameras; none: the only one there is.",
    )

    @property
    def producers(self) -> tuple[Path, ...]:
        """The .cti files, in order."""
        return (self.producer,) if isinstance(self.producer, Path) else self.producer


def _is_stream_url(value: str) -> str:
    scheme, _, rest = value.partition("://")
    if scheme not in ("rtsp", "rtsps", "http", "https", "udp", "tcp") or not rest or any(map(str.isspace, rest)):
        raise ValueError("expected an address such as rtsp://host/stream; rtsp, rtsps, http, https, udp and tcp are known")
    if "@" in rest.split("/")[0]:
        raise PydanticCustomError(
            "secret_in_url", "expected an address without a user: username and password have keys of their own"
        )
    return value


StreamUrl = Annotated[str, AfterValidator(_is_stream_url)]


class VideoSource(Section):
    """A video file as one strip, or the stream of a network camera."""

    kind: Literal["video"] = "video"
    path: Path | None = Field(None, description="A file; its images follow each other without a gap, and it waits.")
    url: StreamUrl | None = Field(None, description="In place of the file: a stream, such as `rtsp://host/stream`.")
    username: str | None = Field(None, min_length=1, description="Of the stream.")
    password: str | None = Field(None, repr=False, description="From the environment: `${CAMERA_PASSWORD}`.")
    frame_lines: int = Field(128, ge=1, le=65536, description="Lines per frame; of a stream: as many as its images have.")
    line_rate_hz: float | None = Field(None, gt=0, description="Pace of a file; none: as fast as the pipeline takes it.")
    frame_rate_hz: float | None = Field(
        None, gt=0, description="Of a stream, whose time stamps then say what images are missing; none: each is the next one."
    )
    frozen_s: float = Field(2.0, ge=0.1, le=3600, description="Without an image for so long a stream is opened again.")

    @model_validator(mode="after")
    def _file_or_stream(self) -> VideoSource:
        if (self.path is None) == (self.url is None):
            raise ValueError(f"got {'neither path nor' if self.path is None else 'path and'} url; expected one of path, url")
        only = ("line_rate_hz",) if self.path is None else ("frame_rate_hz", "frozen_s", "username", "password")
        for key in only:
            if getattr(self, key) != type(self).model_fields[key].default:
                of = "file" if self.path is None else "stream"
                raise ValueError(f"{key}: got one, and it is of a {of} only; expected none")
        return self


Source = Annotated[
    FolderSource | SimulatedSource | GigeSource | BaslerSource | GentlSource | VideoSource, Field(discriminator="kind")
]


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


class Tls(Section):
    """TLS towards a server."""

    ca: Path | None = Field(None, description="Certificate authority; none: the system's.")
    certificate: Path | None = None
    key: Path | None = None

    @model_validator(mode="after")
    def _paired(self) -> Tls:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key go together: expected both or neither")
        return self


def _is_address(value: str) -> str:
    # gRPC takes a port beyond 65535 for the one that its last 16 bits say
    found = re.fullmatch(r"(?:[^\s/:\[\]]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})", value)
    if found is None or not 0 < int(found[1]) < 2**16:
        raise ValueError("expected host:port of a gRPC service, such as inference:8001")
    return value


def _is_number(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("expected 0 or 1, which of the two it is")
    return value


Address = Annotated[str, AfterValidator(_is_address)]


class Kserve(Section):
    """An inference server that speaks the Open Inference Protocol v2 by gRPC: Triton, OpenVINO Model Server, KServe, MLServer."""

    url: Address = Field(description="host:port of its gRPC service; Triton's is 8001.")
    model: str | None = Field(None, min_length=1, description="Name that it serves the bundle by; none: the bundle's own.")
    version: str | None = Field(None, min_length=1, description="Version of the model; none: the one that the server takes.")
    deadline_ms: float = Field(2000.0, gt=0, description="An answer that is not there by then is late.")
    retries: int = Field(
        2, ge=0, le=100, description="How often a call is tried again that the server was away, late or full for."
    )
    max_batch: int = Field(16, ge=1, le=4096, description="Tiles in one call; more go in several. No more than the server takes.")
    ask_again_max_s: float = Field(
        30.0, gt=0, description="Longest pause between two attempts to reach a server that was away, while another backend runs."
    )
    tls: Tls | None = Field(None, description="none: in clear text.")


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
    device: int = Field(0, ge=0, le=63, description="GPU of backend tensorrt, as NVIDIA's driver counts them.")
    dla: Annotated[int | None, BeforeValidator(_is_number)] = Field(
        None,
        ge=0,
        le=1,
        description="Deep learning accelerator of a Jetson that takes the layers it can from the GPU, 0 or 1; none: the GPU all.",
    )
    workspace_mib: int = Field(
        1024, ge=16, le=65536, description="GPU memory that TensorRT may use as scratch for one layer, when it builds an engine."
    )
    cache: Path | None = Field(
        None, description="Folder for compiled engines; none: beside the bundle, or the user's cache where that is read-only."
    )

    gate_backend: Backends | None = Field(
        None, description="As `backend`, for the gate: it can stay here while a server runs the bundle; none: the same."
    )
    kserve: Kserve | None = Field(None, description="The server of backend kserve.")

    @property
    def backends(self) -> tuple[BackendName, ...]:
        """Those that are tried, in order."""
        return _listed(self.backend)

    @property
    def of_gate(self) -> SessionOptions:
        """The same for the gate: on its own backend where one is named, and by its own name on a server."""
        changes: dict[str, Any] = {"backend": self.gate_backend or self.backend, "gate_backend": None}
        if self.kserve is not None:
            changes["kserve"] = self.kserve.model_copy(update={"model": None, "version": None})
        return self.model_copy(update=changes)

    @model_validator(mode="after")
    def _computable(self) -> SessionOptions:
        if self.dla is not None and "tensorrt" not in (*self.backends, *self.of_gate.backends):
            raise ValueError(f"dla: got {self.dla}, and backend {', '.join(self.backends)} uses none; expected tensorrt, or none")
        for key, names in {"backend": self.backends, "gate_backend": self.of_gate.backends}.items():
            told = f"{key} {', '.join(names)}"
            if self.precision == "bf16" and "openvino" not in names:
                raise ValueError(f"precision: got bf16, and {told} computes floats in f32 alone; expected f32, or openvino")
            if repeated := [name for name in names if names.count(name) > 1]:
                raise ValueError(f"{key}: got {repeated[0]} twice; expected each one once")
            if self.kserve is None and "kserve" in names:
                raise ValueError(f"kserve: got none, and {told}; expected kserve: {{url: host:8001}}")
        return self


def _listed(backend: Literal["auto"] | BackendName | tuple[BackendName, ...]) -> tuple[BackendName, ...]:
    if backend == "auto":
        return AUTO
    return (backend,) if isinstance(backend, str) else backend


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


class Station(Section):
    """What a station file says, whether for one camera or for each of several."""

    site: Name = "site"
    line: Name = "line"
    camera: Name = "camera"
    scale: Scale = Scale()
    source: Source | None = None
    flat_field: Path | None = Field(
        None, description="Flat field of the camera, made by `rust-edge calibrate flat-field`; none: lines as they are delivered."
    )
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
    queue_frames: QueueFrames = Field(64, description="Frames between capture and inference.")
    tiling: Tiling = Tiling()
    session: SessionOptions = SessionOptions()
    filters: Filters = Filters()
    events: Events = Events()
    outbox: Outbox = Outbox()
    sinks: Sinks = Sinks()

    @model_validator(mode="after")
    def _gate_for_cascade(self) -> Station:
        if self.mode == "cascade" and self.gate is None:
            raise ValueError("gate: got none; mode cascade needs one: expected steel-gate-int8 or a path")
        return self


class StationConfig(Station):
    """A station of one camera: its engines, its rules, its broker."""

    source: Source


class Camera(Section):
    """One of several cameras of a station. What it does not say is the station's, key by key."""

    camera: Name
    source: Source
    scale: Scale | None = Field(None, description="Keys that are other than the station's.")
    filters: Filters | None = Field(None, description="Keys that are other than the station's.")
    flat_field: Path | None = Field(None, description="Flat field of this camera; none: lines as they are delivered.")
    queue_frames: QueueFrames | None = Field(None, description="none: the station's.")


Cameras = Annotated[tuple[Camera, ...], BeforeValidator(lambda value: () if value is None else value)]
"""None of them may also be said by YAML's null."""


class StationFile(Station):
    """A station file: one camera (`camera`, `source`), or several (`cameras`) that share engines and broker."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["source"]}, {"required": ["cameras"], "not": {"required": ["camera"]}}]}
    )

    cameras: Cameras = Field((), description="Several cameras, each with a name of its own.")

    @model_validator(mode="after")
    def _one_or_several(self) -> StationFile:
        if self.source is None and not self.cameras:
            raise PydanticCustomError("no_camera", "source: missing; expected a section, or cameras")
        if self.source is not None and self.cameras:
            raise PydanticCustomError("source_beside_cameras", "source: got one beside cameras; expected one of the two")
        if self.cameras and "camera" in self.model_fields_set:
            raise PydanticCustomError(
                "camera_beside_cameras",
                "camera: got {name} beside cameras; expected none: each of them has a name of its own",
                {"name": repr(self.camera)},
            )
        if self.cameras and self.flat_field is not None:
            raise PydanticCustomError(
                "flat_field_beside_cameras",
                "flat_field: got {path} beside cameras; expected none: each of them has its own, cameras.N.flat_field",
                {"path": str(self.flat_field)},
            )
        return self

    @model_validator(mode="after")
    def _names_of_their_own(self) -> StationFile:
        names = [camera.camera for camera in self.cameras]
        for index, name in enumerate(names):
            if (first := names.index(name)) < index:
                raise PydanticCustomError(
                    "camera_twice",
                    "cameras.{index}.camera: got {name}, as cameras.{first} has it; expected another name",
                    {"index": index, "name": repr(name), "first": first},
                )
        return self


def stations_of(file: StationFile) -> tuple[StationConfig, ...]:
    """The station of each camera of a file: a station with that camera alone, in the file's order.

    Several cameras have files of their own, named after them: `out/outbox.db` of camera top is `out/outbox-top.db`, and so are
    `sinks.jsonl` and `sinks.csv`. So each file holds one strip after the other, and has one writer.
    """
    if not file.cameras:
        return (StationConfig.model_validate(_said(file)),)
    return tuple(StationConfig.model_validate(_document_of(file, camera)) for camera in file.cameras)


def station_of(file: StationFile, origin: str, camera: str | None = None) -> StationConfig:
    """The station of one camera of a file. camera: its name; None: the only one. origin: names the file in errors.

    Raises ConfigError where there is no such camera, or where it is not said which.
    """
    stations = stations_of(file)
    for station in stations:
        if camera == station.camera or (camera is None and len(stations) == 1):
            return station
    names = ", ".join(station.camera for station in stations)
    if camera is None:
        raise ConfigError(f"{origin}: cameras: got {len(stations)}; expected --camera with one of {names}")
    raise ConfigError(f"{origin}: --camera: got {camera}; expected {'one of ' if len(stations) > 1 else ''}{names}")


def path_of_camera(path: Path, camera: str) -> Path:
    """The file of one of several cameras, beside where the only camera of a station has it.

    >>> path_of_camera(Path("out/outbox.db"), "top").as_posix()
    'out/outbox-top.db'
    """
    return path.with_name(f"{path.stem}-{camera}{path.suffix}")


def _said(section: Section) -> dict[str, Any]:
    """What a file says of a section, without defaults: as many keys as stand there."""
    return section.model_dump(exclude_unset=True, exclude={"cameras"})


def _document_of(file: StationFile, camera: Camera) -> dict[str, Any]:
    own = {key: value for key, value in _said(camera).items() if value is not None}
    document: dict[str, Any] = _merged({key: value for key, value in _said(file).items() if key != "source"}, own)
    document["outbox"] = document.get("outbox", {}) | {"path": path_of_camera(file.outbox.path, camera.camera)}
    files = {"jsonl": file.sinks.jsonl, "csv": file.sinks.csv}
    named = {key: path_of_camera(path, camera.camera) for key, path in files.items() if path is not None}
    return document | {"sinks": document.get("sinks", {}) | named}


def _merged(base: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Keys of both, of sections too; where both say something, what stands above."""
    result = dict(base)
    for key, value in above.items():
        below = result.get(key)
        result[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result


def load_config(
    path: Path, overrides: Iterable[str] = (), environment: Mapping[str, str] | None = None, camera: str | None = None
) -> StationConfig:
    """The station of one camera, as `load_file` and `station_of` have it."""
    return station_of(load_file(path, overrides, environment), str(path), camera)


def load_file(path: Path, overrides: Iterable[str] = (), environment: Mapping[str, str] | None = None) -> StationFile:
    """Read a station file, apply `key.path=value` overrides, replace `${NAME}` by the environment.

    Relative paths in the file stay relative to the working directory. Raises ConfigError naming every fault.
    """
    return parse_file(read_document(path), str(path), overrides, environment)


def parse_config(
    document: dict[str, Any],
    origin: str,
    overrides: Iterable[str] = (),
    environment: Mapping[str, str] | None = None,
    camera: str | None = None,
) -> StationConfig:
    """The station of one camera, as `parse_file` and `station_of` have it."""
    return station_of(parse_file(document, origin, overrides, environment), origin, camera)


def parse_file(
    document: dict[str, Any], origin: str, overrides: Iterable[str] = (), environment: Mapping[str, str] | None = None
) -> StationFile:
    """Validate a parsed document. `origin` names it in errors. Raises ConfigError naming every fault."""
    file, faults = survey_file(document, overrides, environment)
    if faults or file is None:
        raise ConfigError("\n".join(f"{origin}: {fault}" for fault in faults))
    return file


def survey_file(
    document: dict[str, Any], overrides: Iterable[str] = (), environment: Mapping[str, str] | None = None
) -> tuple[StationFile | None, list[str]]:
    """Every fault of a document, and what the station would be with each faulty value taken out.

    A validator that compares several keys only runs once each of them is sound on its own; so faulty values are taken
    out and the rest is looked at again, until nothing new is found.
    """
    document = copy_apart(document)
    variables = os.environ if environment is None else environment
    faults: list[str] = []
    for override in overrides:
        apply_override(document, override, faults)
    rest = expand_variables(document, variables, faults)
    while errors := _errors_in(rest):
        found = {explain(error, StationFile): error for error in errors}
        faults += [fault for fault in found if fault not in faults]
        if not all([take_out(rest, error) for error in found.values()]):
            return None, faults
    return StationFile.model_validate(rest), faults


def _errors_in(document: dict[str, Any]) -> list[ErrorDetails]:
    """What is wrong with a file; where it is sound by itself, with what a camera makes of the station's keys."""
    try:
        file = StationFile.model_validate(document)
    except ValidationError as error:
        return error.errors()
    found: list[ErrorDetails] = []
    for index, camera in enumerate(file.cameras):
        try:
            StationConfig.model_validate(_document_of(file, camera))
        except ValidationError as error:
            found += [ErrorDetails({**each, "loc": ("cameras", index, *each["loc"])}) for each in error.errors()]
    return found
