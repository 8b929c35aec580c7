import csv
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from event_samples import event, story

from edge.defects import Change
from edge.errors import OutboxError
from edge.sinks.csv import HEADER, CsvSink
from edge.sinks.jsonl import JsonlSink


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """The system refuses to write files beyond `size`, as a full disk does: the first part fits, the rest does not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)


def test_a_line_that_does_not_fit_on_the_disk_leaves_none_of_itself(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with JsonlSink(path) as sink:
        sink.emit([event(0)])
        before = path.read_bytes()
        with files_end_at(len(before) + 100), pytest.raises(OutboxError, match="make room"):
            sink.emit([event(1)])
        assert path.read_bytes() == before
        sink.emit([event(2)])
    assert path.read_bytes() == event(0).payload + b"\n" + event(2).payload + b"\n"


def test_a_torn_last_line_of_json_is_cut_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(event(0).payload + b"\n" + event(1).payload[:50])
    with JsonlSink(path) as sink:
        sink.emit([event(2)])
    assert path.read_bytes() == event(0).payload + b"\n" + event(2).payload + b"\n"
    assert "torn" in caplog.text


def test_a_whole_last_line_without_its_newline_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(event(0).payload)
    with JsonlSink(path) as sink:
        sink.emit([event(1)])
    assert path.read_bytes() == event(0).payload + b"\n" + event(1).payload + b"\n"


def test_a_torn_last_row_of_the_table_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "defects.csv"
    with CsvSink(path) as sink:
        sink.emit(story(0))
    whole = path.read_bytes()
    path.write_bytes(whole + b"coil-1,defect-1,scratch")
    with CsvSink(path):
        pass
    assert path.read_bytes() == whole


def test_a_torn_header_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "defects.csv"
    path.write_bytes(b"strip_id,defect_id,cl")
    with CsvSink(path) as sink:
        sink.emit(story(0))
    with path.open(newline="") as file:
        assert [row["defect_id"] for row in csv.DictReader(file)] == ["defect-0"]


def test_the_table_holds_what_the_event_says(tmp_path: Path) -> None:
    with CsvSink(tmp_path / "defects.csv") as sink:
        sink.emit(story(3))
    with (tmp_path / "defects.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    closed = event(3, Change.CLOSED, 2)
    assert [tuple(row) for row in rows] == [HEADER]
    assert rows[0]["event_id"] == closed.event_id
    assert rows[0]["strip_id"] == "coil-1"
    assert (rows[0]["class"], rows[0]["ending"], rows[0]["merged_into"]) == ("scratches", "complete", "")
    assert [float(rows[0][name]) for name in ("along_start_mm", "along_stop_mm", "centroid_along_mm")] == [15.0, 17.0, 16.0]
    assert rows[0]["captured_at"] == "2023-11-14T22:13:20.123456+00:00"
