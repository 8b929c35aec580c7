import base64
import json
import re
from datetime import datetime, timezone

import pytest
from event_samples import CAPTURED_NS, change, context, event, story, strip_frame
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from edge.defects import Change, DefectChange, Ending, LensAlert, Tally
from edge.events import DefectClosed, HealthData, outgoing, parse_event, payload_of
from edge.ledger import Coverage
from edge.reporting import defect_event, health_event, instant, lens_event, status_event, strip_finished

MILLISECOND = 1_000_000
TYPES = (
    "io.rust-edge.defect.opened.v1",
    "io.rust-edge.defect.updated.v1",
    "io.rust-edge.defect.closed.v1",
    "io.rust-edge.strip.started.v1",
    "io.rust-edge.strip.finished.v1",
)


def every_kind() -> list[bytes]:
    lens = lens_event(context(), LensAlert("lens-1", 10, 14, 20_000.0, 4000), CAPTURED_NS)
    status = status_event("/linz/line3/top", "online", "connected", CAPTURED_NS)
    health = health_event("/linz/line3/top", HealthData(uptime_s=3.0), CAPTURED_NS)
    written = [*story(1), *strip_frame(), outgoing(lens)]
    return [one.payload for one in written] + [payload_of(status), payload_of(health)]


@pytest.mark.parametrize("payload", every_kind(), ids=lambda payload: json.loads(payload)["type"])
def test_every_event_keeps_the_rules_of_cloudevents_1_0(payload: bytes) -> None:
    document = json.loads(payload)
    attributes = {name: value for name, value in document.items() if name != "data"}
    assert attributes["specversion"] == "1.0"
    for required in ("id", "source", "type", "specversion"):
        assert isinstance(attributes[required], str)
        assert attributes[required]
    assert all(re.fullmatch(r"[a-z0-9]+", name) for name in attributes), "names are lower-case letters and digits"
    assert all(isinstance(value, str) and value for value in attributes.values())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", attributes["time"]), "RFC 3339"
    assert attributes["dataschema"].startswith("urn:"), "an absolute URI"
    assert attributes["datacontenttype"] == "application/json"


@pytest.mark.parametrize("payload", every_kind(), ids=lambda payload: json.loads(payload)["type"])
def test_the_cloudevents_sdk_reads_every_event(payload: bytes) -> None:
    formats = pytest.importorskip("cloudevents.core.formats.json", reason="the package cloudevents is not installed")
    from cloudevents.core.v1.event import CloudEvent

    read = formats.JSONFormat().read(CloudEvent, payload)
    document = json.loads(payload)
    assert (read.get_id(), read.get_type(), read.get_source()) == (document["id"], document["type"], document["source"])
    assert read.get_data() == document["data"]


@pytest.mark.parametrize("payload", every_kind(), ids=lambda payload: json.loads(payload)["type"])
def test_an_event_that_is_read_and_written_again_is_the_same(payload: bytes) -> None:
    assert payload_of(parse_event(payload)) == payload


def test_types_subject_and_source_are_those_of_the_contract() -> None:
    documents = [json.loads(one.payload) for one in [*story(1), *strip_frame()]]
    assert tuple(document["type"] for document in documents) == TYPES
    assert {document["subject"] for document in documents} == {"coil-1"}
    assert {document["source"] for document in documents} == {"/linz/line3/top"}


def test_a_defect_is_told_in_millimetres_of_the_strip() -> None:
    data = json.loads(event(2).payload)["data"]
    assert data["box_px"] == {"line_start": 20, "line_stop": 24, "column_start": 100, "column_stop": 110}
    assert data["box_mm"] == {"along_start": 10.0, "along_stop": 12.0, "across_start": 25.0, "across_stop": 27.5}
    # A box of lines 20 to 23 has its middle at line 22.0 of their edges: 11 mm, not 10.75.
    assert data["centroid_mm"] == {"along": 11.0, "across": 26.25}
    assert data["rle"] == [[0, 10], [12, 8], [20, 12]]
    assert data["aspect_ratio"] == 4.0


def test_latency_counts_from_the_capture_of_the_last_line_until_the_event_is_written() -> None:
    opened = defect_event(context(), change(), CAPTURED_NS, CAPTURED_NS + 7 * MILLISECOND)
    assert opened.data.latency_ms == 7.0
    assert opened.time == opened.data.captured_at == datetime(2023, 11, 14, 22, 13, 20, 123456, tzinfo=timezone.utc)


def test_a_clock_that_was_set_back_gives_no_negative_latency() -> None:
    assert defect_event(context(), change(), CAPTURED_NS, CAPTURED_NS - MILLISECOND).data.latency_ms == 0.0


def test_a_merged_defect_says_into_which() -> None:
    merged = DefectChange(Change.CLOSED, change(1).defect, 30, Ending.MERGED, merged_into="defect-0")
    closed = defect_event(context(), merged, CAPTURED_NS, CAPTURED_NS)
    assert isinstance(closed, DefectClosed)
    assert (closed.data.ending, closed.data.merged_into) == ("merged", "defect-0")


def test_a_crop_travels_as_base64() -> None:
    jpeg = b"\xff\xd8\xff\xe0 not quite a jpeg"
    data = defect_event(context(), change(), CAPTURED_NS, CAPTURED_NS, jpeg).data
    assert data.crop_jpeg is not None
    assert base64.b64decode(data.crop_jpeg) == jpeg


def test_the_id_does_not_depend_on_when_the_event_was_written() -> None:
    first, second = (defect_event(context(), change(), CAPTURED_NS + late, CAPTURED_NS + late) for late in (0, 9 * MILLISECOND))
    assert first.id == second.id


def test_the_id_is_the_same_on_every_machine_and_in_every_release() -> None:
    assert event(0).event_id == "69428fbe29889f024e70eeff1bee97c4"


@given(
    st.lists(
        st.tuples(st.integers(0, 20), st.integers(0, 5), st.sampled_from(["coil-1", "coil-2"])),
        unique=True,
        min_size=2,
        max_size=20,
    )
)
def test_different_strips_defects_and_revisions_have_different_ids(occurrences: list[tuple[int, int, str]]) -> None:
    ids = {event(number, Change.UPDATED, revision, strip).event_id for number, revision, strip in occurrences}
    assert len(ids) == len(occurrences)


@given(st.integers(0, 4_000_000_000_000_000_000))
def test_an_instant_keeps_every_microsecond(nanoseconds: int) -> None:
    passed = instant(nanoseconds) - instant(0)
    assert (passed.days * 86400 + passed.seconds) * 1_000_000 + passed.microseconds == nanoseconds // 1000


def test_the_summary_adds_up() -> None:
    tally = Tally({"rust": 2, "pit": 1}, {"rust": 600, "pit": 40}, {"area": 3, "edge": 1}, 1)
    ledger = Coverage(inspected=700, gated=100, lost=150, shed=50)
    summary = strip_finished(context(), tally, ledger, (1.0, 2.0, 3.0), CAPTURED_NS, interrupted=True).data
    assert summary.lines == summary.coverage.total == 1000
    assert summary.length_mm == 500.0
    assert summary.area_mm2 == {"rust": 75.0, "pit": 5.0}
    assert summary.defective_area_fraction == pytest.approx(640 / (800 * 4096))
    assert (summary.rejected, summary.lens_alerts, summary.interrupted) == ({"area": 3, "edge": 1}, 1, True)


def test_a_strip_of_which_nothing_was_looked_at_has_no_defective_area() -> None:
    summary = strip_finished(context(), Tally(), Coverage(lost=100), None, CAPTURED_NS).data
    assert summary.defective_area_fraction == 0.0
    assert summary.latency_ms is None


def test_fields_of_a_later_minor_addition_are_ignored() -> None:
    document = json.loads(event().payload)
    document["traceparent"] = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    document["data"]["hardness"] = 3
    assert payload_of(parse_event(json.dumps(document))) == event().payload


@pytest.mark.parametrize(
    ("field", "value"), [("confidence_peak", 1.5), ("area_px", -1), ("aspect_ratio", 0.5), ("length_mm", float("nan"))]
)
def test_a_value_outside_its_range_is_refused(field: str, value: float) -> None:
    document = json.loads(event().payload)
    document["data"][field] = value
    with pytest.raises(ValidationError, match=field):
        parse_event(json.dumps(document))


def test_an_event_of_an_unknown_type_is_refused() -> None:
    document = json.loads(event().payload)
    document["type"] = "io.rust-edge.defect.opened.v2"
    with pytest.raises(ValidationError, match=r"opened\.v2"):
        parse_event(json.dumps(document))


def test_only_updates_are_expendable() -> None:
    assert [one.is_update for one in story(1)] == [False, True, False]
    assert not any(one.is_update for one in strip_frame())
