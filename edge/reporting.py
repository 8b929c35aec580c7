"""Events made from what the tracker and the daemon report: pixels become millimetres, nanoseconds become instants."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Literal

from edge import __version__
from edge.config import Scale
from edge.defects import BoxPx, Change, Defect, DefectChange, LensAlert, Tally
from edge.events import (
    CoverageData,
    DefectClosed,
    DefectData,
    DefectEvent,
    DefectOpened,
    DefectUpdated,
    FallbackStretch,
    Health,
    HealthData,
    LatencyData,
    LensAlerted,
    LensData,
    MillimetreBox,
    MillimetrePoint,
    PixelBox,
    Status,
    StatusData,
    StripFinished,
    StripFinishedData,
    StripStarted,
    StripStartedData,
    event_id,
)
from edge.fallback import NO_FALLBACK, Fallback
from edge.ledger import Coverage

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_EVENTS: dict[Change, type[DefectOpened] | type[DefectUpdated] | type[DefectClosed]] = {
    Change.OPENED: DefectOpened,
    Change.UPDATED: DefectUpdated,
    Change.CLOSED: DefectClosed,
}


@dataclass(frozen=True, slots=True)
class StripContext:
    """What all events of one strip have in common.

    source: `/<site>/<line>/<camera>`. engine_hash, gate_hash: sha256 of the bundles' manifests; gate_hash None without
    a gate. The strip id must not be used twice: ids of events are made from it.
    """

    source: str
    strip_id: str
    width: int
    scale: Scale
    mode: Literal["dense", "cascade", "tiles"]
    bundle: str
    engine_hash: str
    gate: str | None
    gate_hash: str | None
    config_hash: str


def instant(nanoseconds: int) -> datetime:
    """The UTC time of a `time.time_ns()`, to the microsecond, without the rounding of a float."""
    return EPOCH + timedelta(microseconds=nanoseconds // 1000)


def defect_event(
    context: StripContext, change: DefectChange, captured_ns: int, written_ns: int, crop_jpeg: bytes | None = None
) -> DefectEvent:
    """The event of a defect that was opened, updated or closed.

    captured_ns: when the camera read out the defect's last line; written_ns: now.
    """
    model = _EVENTS[change.change]
    type_ = str(model.model_fields["type"].default)
    return model(
        id=event_id(context.source, type_, context.strip_id, change.defect.id, change.defect.revision),
        source=context.source,
        subject=context.strip_id,
        time=instant(captured_ns),
        data=_defect_data(context, change, captured_ns, written_ns, crop_jpeg),
    )


def _defect_data(
    context: StripContext, change: DefectChange, captured_ns: int, written_ns: int, crop_jpeg: bytes | None
) -> DefectData:
    defect = change.defect
    return DefectData(
        defect_id=defect.id,
        revision=defect.revision,
        class_name=defect.class_name,
        ending=change.ending.value if change.ending else None,
        merged_into=change.merged_into,
        confidence_mean=defect.confidence_mean,
        confidence_peak=defect.confidence_peak,
        gate_score=defect.gate_score,
        area_mm2=defect.area_mm2,
        area_px=defect.area_px,
        box_px=PixelBox(
            line_start=defect.box.line_start,
            line_stop=defect.box.line_stop,
            column_start=defect.box.column_start,
            column_stop=defect.box.column_stop,
        ),
        box_mm=_millimetres(defect.box, context.scale),
        centroid_mm=_centroid(defect, context.scale),
        length_mm=defect.length_mm,
        width_mm=defect.width_mm,
        aspect_ratio=defect.aspect_ratio,
        orientation_deg=defect.orientation_deg,
        fragments=defect.fragments,
        engine_hash=context.engine_hash,
        config_hash=context.config_hash,
        captured_at=instant(captured_ns),
        latency_ms=max(0.0, (written_ns - captured_ns) / 1e6),
        rle=defect.runs,
        rle_truncated=defect.runs_truncated,
        crop_jpeg=base64.b64encode(crop_jpeg).decode() if crop_jpeg is not None else None,
    )


def _millimetres(box: BoxPx, scale: Scale) -> MillimetreBox:
    return MillimetreBox(
        along_start=box.line_start * scale.mm_per_line,
        along_stop=box.line_stop * scale.mm_per_line,
        across_start=box.column_start * scale.mm_per_column,
        across_stop=box.column_stop * scale.mm_per_column,
    )


def _centroid(defect: Defect, scale: Scale) -> MillimetrePoint:
    """The box is of pixels' outer edges, where pixel i spans [i, i + 1): its centre is at i + 0.5."""
    return MillimetrePoint(
        along=(defect.centroid_line + 0.5) * scale.mm_per_line, across=(defect.centroid_column + 0.5) * scale.mm_per_column
    )


def lens_event(context: StripContext, alert: LensAlert, captured_ns: int) -> LensAlerted:
    """The event of columns that are taken for dirt. captured_ns: of the last line that was looked at."""
    return LensAlerted(
        id=event_id(context.source, "io.rust-edge.lens.v1", context.strip_id, alert.id),
        source=context.source,
        subject=context.strip_id,
        time=instant(captured_ns),
        data=LensData(
            alert_id=alert.id,
            column_start=alert.column_start,
            column_stop=alert.column_stop,
            across_start_mm=alert.column_start * context.scale.mm_per_column,
            across_stop_mm=alert.column_stop * context.scale.mm_per_column,
            over_mm=alert.over_mm,
            decided_at_line=alert.decided_at_line,
            engine_hash=context.engine_hash,
            config_hash=context.config_hash,
        ),
    )


def strip_started(context: StripContext, captured_ns: int) -> StripStarted:
    """The event of a strip that begins. captured_ns: of its first frame."""
    return StripStarted(
        id=event_id(context.source, "io.rust-edge.strip.started.v1", context.strip_id),
        source=context.source,
        subject=context.strip_id,
        time=instant(captured_ns),
        data=StripStartedData(
            width_px=context.width,
            mm_per_line=context.scale.mm_per_line,
            mm_per_column=context.scale.mm_per_column,
            mode=context.mode,
            bundle=context.bundle,
            engine_hash=context.engine_hash,
            gate=context.gate,
            gate_hash=context.gate_hash,
            config_hash=context.config_hash,
        ),
    )


def strip_finished(
    context: StripContext,
    tally: Tally,
    coverage: Coverage,
    latency_ms: tuple[float, float, float] | None,
    captured_ns: int,
    interrupted: bool = False,
    fallback: Fallback = NO_FALLBACK,
) -> StripFinished:
    """The summary of a strip that has ended.

    latency_ms: p50, p90, p99 over its events; None if it had none. captured_ns: of its last frame.
    """
    mm2_per_px = context.scale.mm_per_line * context.scale.mm_per_column
    looked_at_px = (coverage.inspected + coverage.gated) * context.width
    return StripFinished(
        id=event_id(context.source, "io.rust-edge.strip.finished.v1", context.strip_id),
        source=context.source,
        subject=context.strip_id,
        time=instant(captured_ns),
        data=StripFinishedData(
            interrupted=interrupted,
            lines=coverage.total,
            length_mm=coverage.total * context.scale.mm_per_line,
            defects=dict(tally.defects),
            area_mm2={name: area * mm2_per_px for name, area in tally.area_px.items()},
            defective_area_fraction=sum(tally.area_px.values()) / looked_at_px if looked_at_px else 0.0,
            coverage=coverage_data(coverage),
            fallback_lines=fallback.lines,
            fallback=fallback_stretches(fallback),
            fallback_unlisted=fallback.unlisted,
            rejected=dict(tally.rejected),
            lens_alerts=tally.lens_alerts,
            latency_ms=LatencyData(p50=latency_ms[0], p90=latency_ms[1], p99=latency_ms[2]) if latency_ms else None,
            engine_hash=context.engine_hash,
            gate_hash=context.gate_hash,
            config_hash=context.config_hash,
        ),
    )


def coverage_data(coverage: Coverage) -> CoverageData:
    """The ledger as it is published."""
    return CoverageData(
        inspected=coverage.inspected, gated=coverage.gated, lost=coverage.lost, shed=coverage.shed, total=coverage.total
    )


def fallback_stretches(fallback: Fallback) -> tuple[FallbackStretch, ...]:
    """The stretches as they are published."""
    return tuple(
        FallbackStretch(line_start=stretch.line_start, line_stop=stretch.line_stop, backend=stretch.backend)
        for stretch in fallback.stretches
    )


def status_event(
    source: str,
    state: Literal["online", "offline"],
    reason: str,
    now_ns: int,
    waiting: int | None = None,
    dropped: dict[str, int] | None = None,
) -> Status:
    """The station's status. Every status is an occurrence of its own: its id is made from the moment."""
    return Status(
        id=event_id(source, "io.rust-edge.status.v1", state, now_ns),
        source=source,
        time=instant(now_ns),
        data=StatusData(state=state, reason=reason, version=__version__, waiting=waiting, dropped=dropped or {}),
    )


def health_event(source: str, data: HealthData, now_ns: int) -> Health:
    """The station's counters at a moment."""
    return Health(id=event_id(source, "io.rust-edge.health.v1", now_ns), source=source, time=instant(now_ns), data=data)
