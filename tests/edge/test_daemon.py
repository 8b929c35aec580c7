from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import cv2
import pytest
from stations import events_in, start_daemon, station, told, write_strip

from edge.config import parse_config
from edge.daemon import PORTIONS_AHEAD, Daemon
from edge.errors import ImageError, OutboxError, StageError
from edge.ledger import Coverage


def daemon(document, strip_id="s1", **options) -> Daemon:
    return Daemon(parse_config(document, "test"), "test", strip_id, **options)


def reference(folder: Path, **changes) -> dict:
    """The events of an undisturbed run."""
    document = station(folder, **changes)
    document["outbox"] = {"path": str(folder / "reference.db")}
    document["sinks"] = {"jsonl": str(folder / "reference.jsonl")}
    with daemon(document) as undisturbed:
        undisturbed.run()
    return told(events_in(folder / "reference.jsonl"))


def test_a_folder_waits_for_the_pipeline_and_every_line_is_inspected(tmp_path):
    write_strip(tmp_path / "strip")
    with daemon(station(tmp_path, queue_frames=2)) as running:
        summary = running.run()
    assert summary.coverage == Coverage(inspected=3000)
    assert not summary.interrupted
    events = events_in(tmp_path / "events.jsonl")
    assert events[0]["type"] == "io.rust-edge.strip.started.v1"
    assert events[-1]["data"]["coverage"]["total"] == 3000
    longest = max((e["data"] for e in events if e["type"].endswith("closed.v1")), key=lambda data: data["length_mm"])
    assert (longest["box_px"]["line_start"], longest["box_px"]["line_stop"]) == (900, 1900)


def test_a_camera_does_not_wait_and_what_it_sheds_is_in_the_ledger(tmp_path):
    source = {"kind": "simulated", "width": 512, "line_rate_hz": 200_000, "lines": 60_000, "frame_lines": 100}
    with daemon(station(tmp_path, source=source, queue_frames=4)) as running:
        summary = running.run()
    assert summary.coverage.total == 60_000
    assert summary.coverage.shed > 0
    assert summary.coverage.lost == 0
    assert events_in(tmp_path / "events.jsonl")[-1]["data"]["coverage"]["shed"] == summary.coverage.shed


def test_stopped_in_the_middle_the_strip_is_closed_and_said_to_be_interrupted(tmp_path):
    write_strip(tmp_path / "strip")
    source = {"kind": "folder", "path": str(tmp_path / "strip"), "frame_lines": 50, "line_rate_hz": 2000}
    with daemon(station(tmp_path, source=source)) as running:
        threading.Timer(0.6, running.stop, args=("enough",)).start()
        summary = running.run()
    assert summary.interrupted
    assert 0 < summary.coverage.inspected < 3000
    assert events_in(tmp_path / "events.jsonl")[-1]["data"]["interrupted"]


def test_an_image_that_breaks_in_the_middle_ends_the_daemon_with_its_error_and_a_restart_goes_on_as_if_nothing_had_been(tmp_path):
    strip = write_strip(tmp_path / "strip")
    expected = reference(tmp_path)
    broken = tmp_path / "strip" / "0007.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    document = station(tmp_path)
    with daemon(document) as running, pytest.raises(ImageError, match=r"0007\.png"):
        running.run()
    partly = told(events_in(tmp_path / "events.jsonl"))
    assert 0 < len(partly) < len(expected)
    assert cv2.imwrite(str(broken), strip[1750:2000])
    with daemon(document, strip_id=None) as running:
        summary = running.run()
    assert summary.strip_id == "s1"
    assert summary.coverage == Coverage(inspected=3000)
    assert told(events_in(tmp_path / "events.jsonl")) == expected


def test_a_strip_left_by_another_station_file_is_given_up_and_a_new_one_begun(tmp_path, caplog):
    write_strip(tmp_path / "strip")
    (tmp_path / "strip" / "0007.png").write_bytes(b"broken")
    with daemon(station(tmp_path)) as running, pytest.raises(ImageError):
        running.run()
    for path in (tmp_path / "strip").glob("*.png"):
        path.unlink()
    write_strip(tmp_path / "strip", lines=500)
    with daemon(station(tmp_path, scale={"mm_per_line": 0.5}), strip_id="s2") as running:
        summary = running.run()
    assert "strip s1 was left unfinished" in caplog.text
    assert summary.strip_id == "s2"
    assert summary.coverage == Coverage(inspected=500)


def test_a_capture_thread_that_dies_of_anything_is_named_and_never_silent(tmp_path):
    write_strip(tmp_path / "strip")
    with daemon(station(tmp_path)) as running:
        frames = running._source.frames

        def dying(first_line=0):
            yield next(frames(first_line))
            raise RuntimeError("lens cap")

        running._source.frames = dying
        with pytest.raises(StageError, match="capture died: RuntimeError: lens cap"):
            running.run()


@pytest.mark.parametrize("portions", [0, 7, 23])
def test_inference_that_dies_is_named_and_after_a_restart_every_event_is_there_once(tmp_path, portions):
    write_strip(tmp_path / "strip")
    expected = reference(tmp_path)
    document = station(tmp_path)
    with daemon(document) as running:
        make = running._engines.pipeline

        def doomed(width, strip_id):
            pipeline = make(width, strip_id)
            segment = pipeline.segmentation._segmenter.push
            left = iter(range(portions))

            def push(lines):
                if next(left, None) is None:
                    raise RuntimeError("out of order")
                return segment(lines)

            pipeline.segmentation._segmenter.push = push
            return pipeline

        running._engines.pipeline = doomed
        with pytest.raises(StageError, match="inference died: RuntimeError: out of order"):
            running.run()
    with daemon(document) as running:
        assert running.run().coverage == Coverage(inspected=3000)
    events = events_in(tmp_path / "events.jsonl")
    assert told(events) == expected
    assert len(events) == len(expected)


def test_a_commit_that_fails_ends_every_thread_with_its_error_and_a_restart_goes_on(tmp_path):
    write_strip(tmp_path / "strip")
    expected = reference(tmp_path)
    document = station(tmp_path, queue_frames=2)
    before = threading.active_count()
    with daemon(document) as running:
        commit, left = running._outbox.commit, iter(range(3))

        def full(events, progress):
            if next(left, None) is None:
                raise OutboxError("no space left")
            commit(events, progress)

        running._outbox.commit = full
        with pytest.raises(OutboxError, match="no space left"):
            running.run()
        assert threading.active_count() == before
    with daemon(document, strip_id=None) as running:
        running.run()
    assert told(events_in(tmp_path / "events.jsonl")) == expected


def test_judgement_that_is_slower_than_inference_holds_it_back_and_changes_nothing(tmp_path):
    write_strip(tmp_path / "strip")
    expected = reference(tmp_path)
    ahead = []
    with daemon(station(tmp_path, queue_frames=2)) as running:
        make = running._engines.pipeline

        def slow(width, strip_id):
            pipeline = make(width, strip_id)
            judge = pipeline.judgement.judge

            def judge_slowly(segmented):
                ahead.append(pipeline.line_stop - segmented.line_stop)
                time.sleep(0.005)
                return judge(segmented)

            pipeline.judgement.judge = judge_slowly
            return pipeline

        running._engines.pipeline = slow
        assert running.run().coverage == Coverage(inspected=3000)
    assert told(events_in(tmp_path / "events.jsonl")) == expected
    # those taken together, those that wait, and the one under way; a frame of 50 lines is a portion
    assert 0 < max(ahead) <= (2 * PORTIONS_AHEAD + 1) * 50


def test_an_outbox_in_use_by_another_daemon_is_refused(tmp_path):
    write_strip(tmp_path / "strip", lines=200)
    with daemon(station(tmp_path)), pytest.raises(OutboxError, match="another process"), daemon(station(tmp_path)):
        pass


def test_counters_reach_the_observer(tmp_path):
    write_strip(tmp_path / "strip")
    seen = []
    with daemon(station(tmp_path, session={"backend": "ort"}), observe=seen.append, observe_every_s=0.0) as running:
        running.run()
    assert seen[-1].coverage.total == 3000
    assert seen[-1].metres == 3000 * 0.25 / 1000
    assert [health.coverage.total for health in seen] == sorted(health.coverage.total for health in seen)
    (engine,) = seen[-1].engines
    assert engine.startswith("ort ")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_closes_the_strip_and_the_process_leaves_with_zero(tmp_path, number):
    write_strip(tmp_path / "strip")
    source = {"kind": "folder", "path": str(tmp_path / "strip"), "frame_lines": 50, "line_rate_hz": 500}
    process = start_daemon(tmp_path, station(tmp_path, source=source), "--strip-id", "s1")
    until = time.monotonic() + 60
    while not (tmp_path / "events.jsonl").exists() or not (tmp_path / "events.jsonl").read_text():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "strip s1 closed before its end" in out
    assert events_in(tmp_path / "events.jsonl")[-1]["data"]["interrupted"]
