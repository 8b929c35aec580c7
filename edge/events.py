"""What is published: CloudEvents 1.0 in structured JSON, with versioned data models.

Within a version, `v1`, fields are only added, and only optional ones: readers must ignore what they do not know.
Anything else is a new type, `v2`, beside the old one. JSON Schema and AsyncAPI are made from these models by
`edge.schema`; events are made from what the tracker reports by `edge.reporting`.

Source: CloudEvents 1.0.2, "Required Attributes", "Optional Attributes", and its JSON Event Format, section 3.1.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, NonNegativeInt, TypeAdapter, WithJsonSchema

from edge.topics import Channel

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Run = Annotated[
    tuple[NonNegativeInt, NonNegativeInt],
    # As plain items: AsyncAPI's own schema format is draft 07, which does not know the `prefixItems` of a tuple.
    WithJsonSchema({"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 2, "maxItems": 2}),
]


class Part(BaseModel):
    """A part of an event: frozen, finite numbers only; unknown fields of a later minor addition are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class PixelBox(Part):
    """Half-open box in px; lines counted from the strip's start, columns from the camera's first."""

    line_start: NonNegativeInt
    line_stop: NonNegativeInt
    column_start: NonNegativeInt
    column_stop: NonNegativeInt


class MillimetreBox(Part):
    """The same box in mm, from the strip's start and the camera's first column."""

    along_start: NonNegative
    along_stop: NonNegative
    across_start: NonNegative
    across_stop: NonNegative


class MillimetrePoint(Part):
    """A place on the strip in mm."""

    along: NonNegative
    across: NonNegative


class DefectData(Part):
    """One defect as it was known at `captured_at`."""

    schema_name: ClassVar[str] = "defect.v1"

    defect_id: str = Field(min_length=1, description="The same in all events of this defect, also after a restart.")
    revision: NonNegativeInt = Field(description="0 when opened, then counted up.")
    class_name: str = Field(min_length=1)
    ending: Literal["complete", "strip_end", "lines_lost", "merged", "lens"] | None = Field(
        None, description="Why it is closed; null while it is open."
    )
    merged_into: str | None = Field(None, description="The defect that took it over, if `ending` is `merged`.")
    confidence_mean: Fraction
    confidence_peak: Fraction
    gate_score: Fraction | None = Field(description="Highest score of its tiles; null without a gate.")
    area_mm2: NonNegative
    area_px: NonNegativeInt
    box_px: PixelBox
    box_mm: MillimetreBox
    centroid_mm: MillimetrePoint
    length_mm: NonNegative = Field(description="Major axis of the ellipse with the same second moments.")
    width_mm: NonNegative = Field(description="Its minor axis.")
    aspect_ratio: float = Field(ge=1.0)
    orientation_deg: float = Field(
        ge=-90.0, le=90.0, description="Of the major axis, 0 along the strip, positive towards higher columns."
    )
    fragments: int = Field(ge=1, description="Connected regions that make it up.")
    engine_hash: str = Field(description="sha256 of the segmentation bundle's manifest.")
    config_hash: str
    captured_at: AwareDatetime = Field(description="When its last line was read out by the camera.")
    latency_ms: NonNegative = Field(description="From `captured_at` until the event was written.")
    rle: tuple[Run, ...] = Field((), description="Mask in `box_px`, row-major `start, length` pairs.")
    rle_truncated: bool = Field(False, description="The mask had more runs than are kept.")
    crop_jpeg: str | None = Field(None, json_schema_extra={"contentEncoding": "base64", "contentMediaType": "image/jpeg"})


class LensData(Part):
    """The same columns were alarmed for too long: dirt on the lens or the window. They are no longer judged."""

    schema_name: ClassVar[str] = "lens.v1"

    alert_id: str = Field(min_length=1)
    column_start: NonNegativeInt
    column_stop: NonNegativeInt
    across_start_mm: NonNegative
    across_stop_mm: NonNegative
    over_mm: NonNegative = Field(description="Length of strip over which they were alarmed.")
    decided_at_line: NonNegativeInt
    engine_hash: str
    config_hash: str


class CoverageData(Part):
    """The coverage ledger in lines: each is exactly one of the first four; `total` is the strip's length."""

    inspected: NonNegativeInt
    gated: NonNegativeInt
    lost: NonNegativeInt
    shed: NonNegativeInt
    total: NonNegativeInt


class LatencyData(Part):
    """Percentiles of the strip's `latency_ms`."""

    p50: NonNegative
    p90: NonNegative
    p99: NonNegative


class StripStartedData(Part):
    """A strip begins: what it is inspected with."""

    schema_name: ClassVar[str] = "strip.started.v1"

    width_px: int = Field(ge=1)
    mm_per_line: float = Field(gt=0)
    mm_per_column: float = Field(gt=0)
    mode: Literal["dense", "cascade", "tiles"]
    bundle: str
    engine_hash: str
    gate: str | None
    gate_hash: str | None
    config_hash: str


class FallbackStretch(Part):
    """Lines from line_start to the one before line_stop that a backend finished in place of the station's first choice."""

    line_start: NonNegativeInt
    line_stop: NonNegativeInt
    backend: str


class StripFinishedData(Part):
    """A strip has ended: its summary."""

    schema_name: ClassVar[str] = "strip.finished.v1"

    interrupted: bool = Field(description="The inspection was stopped before the strip's end.")
    lines: NonNegativeInt
    length_mm: NonNegative
    defects: dict[str, NonNegativeInt] = Field(description="Closed defects by class.")
    area_mm2: dict[str, NonNegative] = Field(description="Their area by class.")
    defective_area_fraction: Fraction = Field(description="Their area over that of all lines inspected or gated.")
    coverage: CoverageData
    fallback_lines: NonNegativeInt = Field(0, description="Lines that another engine than the station's first choice finished.")
    fallback: tuple[FallbackStretch, ...] = Field((), description="Where, the first 64 stretches.")
    fallback_unlisted: NonNegativeInt = Field(0, description="Stretches beyond those that are listed.")
    rejected: dict[str, NonNegativeInt] = Field(description="Regions that did not become defects, by reason.")
    lens_alerts: NonNegativeInt
    latency_ms: LatencyData | None = Field(description="null if the strip had no defect event.")
    engine_hash: str
    gate_hash: str | None
    config_hash: str


class StatusData(Part):
    """Whether the station is there. Retained; `offline` also comes from the broker as the last will."""

    schema_name: ClassVar[str] = "status.v1"

    state: Literal["online", "offline"]
    reason: str = Field(description="Why, in words: `started`, `connection lost`, `stopped by SIGTERM`.")
    version: str
    waiting: NonNegativeInt | None = Field(None, description="Events in the outbox; null in a last will.")
    dropped: dict[str, NonNegativeInt] = Field(
        default={}, description="Events that the outbox gave up, by type, since it was made."
    )


class OutboxHealth(Part):
    """The outbox now; `dropped` by event type since it was made."""

    waiting: NonNegativeInt
    megabytes: NonNegative
    dropped: dict[str, NonNegativeInt] = {}


class PublisherHealth(Part):
    """The publisher since its start; `reasons` counts every refusal and fault by its reason."""

    connected: bool
    connections: NonNegativeInt
    sent: NonNegativeInt
    acknowledged: NonNegativeInt
    no_matching_subscribers: NonNegativeInt = Field(description="Acknowledged, but nobody was subscribed (MQTT 5 reason 16).")
    reasons: dict[str, NonNegativeInt] = {}


class HealthData(Part):
    """Counters of the running daemon, every few seconds. `counters` holds those without a field of their own.

    engines: what the bundle runs on and why, then the same of the gate. fallback: of the strip so far, as in its summary.
    """

    schema_name: ClassVar[str] = "health.v1"

    uptime_s: NonNegative
    strip_id: str | None = None
    metres: NonNegative = 0.0
    lines_per_s: NonNegative = 0.0
    megapixels_per_s: NonNegative = 0.0
    engines: tuple[str, ...] = ()
    queue_frames: NonNegativeInt = 0
    queue_capacity_frames: NonNegativeInt = 0
    open_defects: NonNegativeInt = 0
    coverage: CoverageData | None = None
    fallback_lines: NonNegativeInt = 0
    fallback: tuple[FallbackStretch, ...] = ()
    fallback_unlisted: NonNegativeInt = 0
    outbox: OutboxHealth | None = None
    publisher: PublisherHealth | None = None
    counters: dict[str, float] = {}


class Envelope(Part):
    """The attributes of a CloudEvent. `id` with `source` tells duplicates: the same occurrence has the same both."""

    channel: ClassVar[Channel]

    specversion: Literal["1.0"] = "1.0"
    id: str = Field(min_length=1)
    source: str = Field(pattern=r"^/[^/]+/[^/]+/[^/]+$", description="/<site>/<line>/<camera>")
    time: AwareDatetime = Field(description="When the camera read out what this is about.")
    datacontenttype: Literal["application/json"] = "application/json"


class StripEnvelope(Envelope):
    """A CloudEvent that belongs to a strip."""

    subject: str = Field(min_length=1, description="The strip id.")


class DefectOpened(StripEnvelope):
    """A defect is confirmed; it may still grow."""

    channel = Channel.DEFECT
    type: Literal["io.rust-edge.defect.opened.v1"] = "io.rust-edge.defect.opened.v1"
    dataschema: Literal["urn:rust-edge:schema:defect.v1"] = "urn:rust-edge:schema:defect.v1"
    data: DefectData


class DefectUpdated(StripEnvelope):
    """An open defect has grown."""

    channel = Channel.DEFECT
    type: Literal["io.rust-edge.defect.updated.v1"] = "io.rust-edge.defect.updated.v1"
    dataschema: Literal["urn:rust-edge:schema:defect.v1"] = "urn:rust-edge:schema:defect.v1"
    data: DefectData


class DefectClosed(StripEnvelope):
    """A defect is as it will stay."""

    channel = Channel.DEFECT
    type: Literal["io.rust-edge.defect.closed.v1"] = "io.rust-edge.defect.closed.v1"
    dataschema: Literal["urn:rust-edge:schema:defect.v1"] = "urn:rust-edge:schema:defect.v1"
    data: DefectData


class LensAlerted(StripEnvelope):
    """Columns are no longer judged: clean the lens or the window."""

    channel = Channel.DEFECT
    type: Literal["io.rust-edge.lens.v1"] = "io.rust-edge.lens.v1"
    dataschema: Literal["urn:rust-edge:schema:lens.v1"] = "urn:rust-edge:schema:lens.v1"
    data: LensData


class StripStarted(StripEnvelope):
    """A strip begins."""

    channel = Channel.STRIP
    type: Literal["io.rust-edge.strip.started.v1"] = "io.rust-edge.strip.started.v1"
    dataschema: Literal["urn:rust-edge:schema:strip.started.v1"] = "urn:rust-edge:schema:strip.started.v1"
    data: StripStartedData


class StripFinished(StripEnvelope):
    """A strip has ended."""

    channel = Channel.STRIP
    type: Literal["io.rust-edge.strip.finished.v1"] = "io.rust-edge.strip.finished.v1"
    dataschema: Literal["urn:rust-edge:schema:strip.finished.v1"] = "urn:rust-edge:schema:strip.finished.v1"
    data: StripFinishedData


class Status(Envelope):
    """The station has come, gone, or has something to announce."""

    channel = Channel.STATUS
    type: Literal["io.rust-edge.status.v1"] = "io.rust-edge.status.v1"
    dataschema: Literal["urn:rust-edge:schema:status.v1"] = "urn:rust-edge:schema:status.v1"
    data: StatusData


class Health(Envelope):
    """How the station is doing."""

    channel = Channel.HEALTH
    type: Literal["io.rust-edge.health.v1"] = "io.rust-edge.health.v1"
    dataschema: Literal["urn:rust-edge:schema:health.v1"] = "urn:rust-edge:schema:health.v1"
    data: HealthData


DefectEvent = DefectOpened | DefectUpdated | DefectClosed
StripEvent = DefectEvent | LensAlerted | StripStarted | StripFinished
"""Events that go through the outbox."""
Event = Annotated[
    DefectOpened | DefectUpdated | DefectClosed | LensAlerted | StripStarted | StripFinished | Status | Health,
    Field(discriminator="type"),
]
EVENT: TypeAdapter[Any] = TypeAdapter(Event)


@dataclass(frozen=True, slots=True)
class OutgoingEvent:
    """An event as sinks take it: written once, with what they need to know without reading it again."""

    topic_suffix: str
    event_id: str
    type: str
    strip_id: str
    payload: bytes

    @property
    def is_update(self) -> bool:
        """An update of an open defect: the first to go when room runs out, since a later event says more."""
        return self.type == "io.rust-edge.defect.updated.v1"


def event_id(source: str, type_: str, *parts: str | int) -> str:
    """The id of an occurrence: the same inputs give the same id on any machine, in any run. 128 bits of SHA-256, hex."""
    return hashlib.sha256("\n".join((source, type_, *map(str, parts))).encode()).hexdigest()[:32]


def payload_of(event: Envelope) -> bytes:
    """The event as one line of JSON, UTF-8."""
    return event.model_dump_json().encode()


def outgoing(event: StripEvent) -> OutgoingEvent:
    """The event written for the sinks."""
    return OutgoingEvent(event.channel.value, event.id, event.type, event.subject, payload_of(event))


def parse_event(payload: bytes | str) -> Envelope:
    """Read an event of any type of this version. Raises ValueError (pydantic's ValidationError) where it is none."""
    event: Envelope = EVENT.validate_json(payload)
    return event
