"""Events as a daemon makes them, for tests of what carries them."""

from __future__ import annotations

from edge.config import Scale
from edge.defects import BoxPx, Change, Defect, DefectChange, Ending, Tally
from edge.events import OutgoingEvent, outgoing
from edge.ledger import Coverage
from edge.reporting import StripContext, defect_event, strip_finished, strip_started
from edge.topics import Topics

TOPICS = Topics("rust-edge", "linz", "line3", "top")
CAPTURED_NS = 1_700_000_000_123_456_789


def context(strip_id: str = "coil-1") -> StripContext:
    return StripContext(
        source=TOPICS.source,
        strip_id=strip_id,
        width=4096,
        scale=Scale(mm_per_line=0.5, mm_per_column=0.25),
        mode="cascade",
        bundle="steel-unet-int8",
        engine_hash="e" * 64,
        gate="steel-gate-int8",
        gate_hash="a" * 64,
        config_hash="c" * 64,
    )


def defect(number: int = 0, revision: int = 0) -> Defect:
    return Defect(
        id=f"defect-{number}",
        revision=revision,
        class_name="scratches",
        box=BoxPx(10 * number, 10 * number + 4, 100, 110),
        area_px=30,
        area_mm2=3.75,
        centroid_line=10 * number + 1.5,
        centroid_column=104.5,
        length_mm=5.0,
        width_mm=1.25,
        orientation_deg=30.0,
        confidence_mean=0.75,
        confidence_peak=0.9,
        gate_score=0.5,
        fragments=1,
        runs=((0, 10), (12, 8), (20, 12)),
    )


def change(number: int = 0, kind: Change = Change.OPENED, revision: int = 0) -> DefectChange:
    ending = Ending.COMPLETE if kind is Change.CLOSED else None
    return DefectChange(kind, defect(number, revision), decided_at_line=10 * number + 8, ending=ending)


def event(number: int = 0, kind: Change = Change.OPENED, revision: int = 0, strip_id: str = "coil-1") -> OutgoingEvent:
    written_ns = CAPTURED_NS + 5_000_000
    return outgoing(defect_event(context(strip_id), change(number, kind, revision), CAPTURED_NS, written_ns))


def story(number: int, strip_id: str = "coil-1") -> list[OutgoingEvent]:
    """One defect's life: opened, updated, closed."""
    kinds = (Change.OPENED, Change.UPDATED, Change.CLOSED)
    return [event(number, kind, revision, strip_id) for revision, kind in enumerate(kinds)]


def strip_frame(strip_id: str = "coil-1") -> tuple[OutgoingEvent, OutgoingEvent]:
    """Its first and last event."""
    tally = Tally({"scratches": 2}, {"scratches": 60}, {"area": 3}, 0)
    ledger = Coverage(inspected=900, gated=100, lost=20, shed=4)
    finished = strip_finished(context(strip_id), tally, ledger, (5.0, 7.0, 9.0), CAPTURED_NS)
    return outgoing(strip_started(context(strip_id), CAPTURED_NS)), outgoing(finished)
