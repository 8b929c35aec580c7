"""A station: its cameras, engines, rules and sinks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)
from pydantic_core import PydanticCustomError

from edge.config.section import ChunkLines, Fraction, Millimetres, Name, QueueFrames, Section
from edge.config.sessions import SessionOptions, Tls
from edge.config.sources import Source


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
    classes: dict[str, ClassRule] = Field({})
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
