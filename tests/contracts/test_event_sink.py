"""What every sink promises: the file sinks and the outbox."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from event_samples import story, strip_frame

from edge.defects import Change
from edge.errors import OutboxError
from edge.events import OutgoingEvent
from edge.sinks import EventSink
from edge.sinks.csv import CsvSink
from edge.sinks.jsonl import JsonlSink
from edge.sinks.outbox import Outbox

CLOSED = f"io.rust-edge.defect.{Change.CLOSED.value}.v1"


def ids_in_jsonl(path: Path) -> list[str]:
    return [json.loads(line)["id"] for line in path.read_text().splitlines()]


def ids_in_csv(path: Path) -> list[str]:
    with path.open(newline="") as file:
        return [row["event_id"] for row in csv.DictReader(file)]


def ids_in_outbox(path: Path) -> list[str]:
    with Outbox(path) as outbox:
        return [waiting.event.event_id for waiting in outbox.pending(limit=10_000)]


class Kind:
    def __init__(self, open_sink: Callable[[Path], EventSink], ids: Callable[[Path], list[str]], only: str | None = None) -> None:
        self.open = open_sink
        self.ids = ids
        self._only = only

    def kept(self, events: list[OutgoingEvent]) -> list[str]:
        """Ids of those that this sink keeps: a table holds closed defects alone."""
        return [event.event_id for event in events if self._only in (None, event.type)]


KINDS = {
    "jsonl": Kind(JsonlSink, ids_in_jsonl),
    "csv": Kind(CsvSink, ids_in_csv, only=CLOSED),
    "outbox": Kind(Outbox, ids_in_outbox),
}


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


def strip(defects: range) -> list[OutgoingEvent]:
    started, finished = strip_frame()
    return [started, *(event for number in defects for event in story(number)), finished]


def test_it_is_an_event_sink(kind: Kind, tmp_path: Path) -> None:
    with kind.open(tmp_path / "sink") as sink:
        assert isinstance(sink, EventSink)


def test_events_are_kept_in_the_order_they_came(kind: Kind, tmp_path: Path) -> None:
    events = strip(range(20))
    with kind.open(tmp_path / "sink") as sink:
        sink.emit(events[:7])
        sink.emit([])
        sink.emit(events[7:])
        sink.flush()
    assert kind.ids(tmp_path / "sink") == kind.kept(events)


def test_reopening_loses_nothing_and_goes_on_behind_it(kind: Kind, tmp_path: Path) -> None:
    events = strip(range(6))
    for part in (events[:9], events[9:10], events[10:]):
        with kind.open(tmp_path / "sink") as sink:
            sink.emit(part)
    assert kind.ids(tmp_path / "sink") == kind.kept(events)


def test_a_sink_that_got_nothing_is_empty_and_can_be_opened_again(kind: Kind, tmp_path: Path) -> None:
    for _ in range(2):
        with kind.open(tmp_path / "sink"):
            pass
    assert kind.ids(tmp_path / "sink") == []


def test_folders_on_the_way_are_made(kind: Kind, tmp_path: Path) -> None:
    path = tmp_path / "not" / "there" / "yet"
    with kind.open(path) as sink:
        sink.emit(story(0))
    assert kind.ids(path) == kind.kept(story(0))


def test_a_place_that_cannot_be_written_is_one_clear_line(kind: Kind, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OutboxError, match="expected") as caught:
        kind.open(tmp_path / "file" / "sink")
    assert str(tmp_path / "file" / "sink") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_in_its_place_is_one_clear_line(kind: Kind, tmp_path: Path) -> None:
    (tmp_path / "sink").mkdir()
    with pytest.raises(OutboxError, match=str(tmp_path / "sink")):
        kind.open(tmp_path / "sink")


@pytest.mark.parametrize("name", ["csv", "outbox"])  # JSON Lines have no header by which another file could be told
def test_another_kind_of_file_is_not_written_into(name: str, tmp_path: Path) -> None:
    path = tmp_path / "sink"
    path.write_text("dear diary, " * 1000 + "\n")
    before = path.read_bytes()
    with pytest.raises(OutboxError, match=str(path)):
        KINDS[name].open(path)
    assert path.read_bytes() == before
