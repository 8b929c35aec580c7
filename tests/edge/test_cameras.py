"""Several cameras in one daemon: each finds what it finds alone, and what one of them dies of stays its own."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import pytest
import yaml
from mqtt_inbox import until
from stations import events_in, start_daemon, station, told, write_strip
from toy_engines import steel, write_cell_gate, write_gate, write_relative_segmenter, write_streaming_segmenter

import edge.cameras
from edge.cameras import Cameras, Ending
from edge.cli import main
from edge.config import StationFile, parse_file, station_of
from edge.daemon import Daemon
from edge.engines import Engines
from edge.errors import ConfigError, ImageError, SessionError
from edge.ledger import Coverage
from edge.pipeline import Pipeline
from edge.sessions.ort import OrtSession, OrtStreamingSession

LINES = {"top": 1500, "bottom": 1200}
WIDTHS = {"top": 128, "bottom": 192}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge.cameras, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(edge.cameras, "LONGEST_PAUSE_S", 0.2)


@pytest.fixture
def strips(tmp_path: Path) -> Path:
    """A folder of images for each camera, of other widths and other defects."""
    for seed, (name, lines) in enumerate(LINES.items()):
        write_strip(tmp_path / name, lines=lines, seed=seed, width=WIDTHS[name])
    return tmp_path


def two(folder: Path, **changes: Any) -> dict[str, Any]:
    """A station's document with two cameras, of which the second has a scale and a rule of its own."""
    document = station(folder, session={"threads": 1, "backend": "ort"}, **changes)
    del document["camera"], document["source"]
    cameras: list[dict[str, Any]] = [
        {"camera": name, "source": {"kind": "folder", "path": str(folder / name), "frame_lines": 50}} for name in LINES
    ]
    cameras[1] |= {"scale": {"mm_per_column": 0.5}, "filters": {"default": {"min_area_mm2": 4.0}}, "queue_frames": 8}
    return document | {"cameras": cameras}


def parsed(document: dict[str, Any]) -> StationFile:
    return parse_file(document, "test")


def run(document: dict[str, Any], strip_id: str | None = "s1") -> tuple[Ending, ...]:
    with Cameras(parsed(document), "test", strip_id) as cameras:
        return cameras.run()


def alone(folder: Path, document: dict[str, Any], camera: str) -> list[dict[str, Any]]:
    """The events of a daemon that runs one camera of the station and nothing else."""
    reference = {"outbox": {"path": str(folder / "alone.db")}, "sinks": {"jsonl": str(folder / "alone.jsonl")}}
    config = station_of(parsed(document | reference), "test", camera)
    with Daemon(config, "test", f"s1-{camera}") as undisturbed:
        undisturbed.run()
    return events_in(folder / f"alone-{camera}.jsonl")


def ids(events: list[dict[str, Any]]) -> list[str]:
    return [event["id"] for event in events]


@pytest.mark.parametrize("way", ["streaming", "slabs", "cascade", "cells", "tiles"])
def test_two_cameras_of_other_widths_and_scales_find_what_each_finds_alone(strips: Path, way: str) -> None:
    ways: dict[str, dict[str, Any]] = {
        "streaming": {"bundle": str(write_streaming_segmenter(strips / "stream")), "dense": "streaming"},
        "slabs": {},
        "cascade": {"mode": "cascade", "gate": str(write_gate(strips / "gate")), "tiling": {"band_lines": 128}},
        "cells": {"mode": "cascade", "gate": str(write_cell_gate(strips / "cells")), "tiling": {"band_lines": 64}},
        "tiles": {"mode": "tiles", "bundle": str(write_relative_segmenter(strips / "pits", whole_tile="pool"))},
    }
    document = two(strips, **ways[way])
    top, bottom = run(document)
    assert [ending.summary.coverage.total for ending in (top, bottom)] == [1500, 1200]
    for camera in LINES:
        expected, found = alone(strips, document, camera), events_in(strips / f"events-{camera}.jsonl")
        assert ids(found) == ids(expected)
        assert told(found) == told(expected)
        assert len(found) > 20
        assert {event["source"] for event in found} == {f"/mill/one/{camera}"}


@pytest.mark.parametrize("way", ["cascade", "tiles"])
def test_tiles_of_several_cameras_that_wait_for_the_engine_are_one_batch_and_change_no_event(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways: dict[str, dict[str, Any]] = {
        "cascade": {"mode": "cascade", "gate": str(write_gate(tmp_path / "gate")), "tiling": {"band_lines": 64}},
        "tiles": {
            "mode": "tiles",
            "bundle": str(write_relative_segmenter(tmp_path / "pits", whole_tile="pool")),
            "tiling": {"batch": 16},
        },
    }
    document = two(tmp_path, **ways[way])
    for name, width in WIDTHS.items():
        # a defect in every tile, so that the crops of every band are alike
        patches = [(line, column, 8, 8, 230) for line in range(10, 500, 32) for column in range(10, width, 32)]
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "strip.png"), steel(512, width, *patches))
    document["cameras"] += [camera | {"camera": f"{camera['camera']}-too"} for camera in document["cameras"]]
    names = [camera["camera"] for camera in document["cameras"]]
    expected = {camera: alone(tmp_path, document, camera) for camera in names}
    with Cameras(parsed(document), "test", "s1") as cameras:
        shared = cameras.engines._sessions[0]
        infer, first = OrtSession.infer, iter([True])

        def held(session: OrtSession, batch: Any) -> Any:
            if session is shared._session and next(first, False):
                until(lambda: len(shared._waiting) == len(names) - 1, "all others ask while one camera's tiles are there")
            return infer(session, batch)

        make, begun = Engines.pipeline, threading.Barrier(len(names))

        def together(engines: Engines, width: int, strip_id: str) -> Pipeline:
            pipeline = make(engines, width, strip_id)
            begun.wait(60)
            return pipeline

        monkeypatch.setattr(OrtSession, "infer", held)
        monkeypatch.setattr(Engines, "pipeline", together)
        cameras.run()
        assert 0 < cameras.engines.joint_batches < cameras.engines.batches
    for camera in names:
        found = events_in(tmp_path / f"events-{camera}.jsonl")
        assert ids(found) == ids(expected[camera])
        assert told(found) == told(expected[camera])
        assert len(found) > 20


@pytest.mark.parametrize("fault", ["removed", "torn"])
def test_a_camera_whose_image_is_gone_goes_on_once_it_is_back_and_the_other_never_notices(
    strips: Path, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    document = two(strips)
    expected = {camera: alone(strips, document, camera) for camera in LINES}
    image = strips / "bottom" / "0003.png"
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])
    with Cameras(parsed(document), "test", "s1") as cameras:
        endings: list[Ending] = []
        thread = threading.Thread(target=lambda: endings.extend(cameras.run()), daemon=True)
        thread.start()
        top = strips / "events-top.jsonl"
        until(lambda: top.exists() and len(top.read_text().splitlines()) == len(expected["top"]), "the other camera's strip")
        until(lambda: caplog.text.count("camera bottom: ") == 1, "the failure in the log")
        assert "0003.png" in caplog.text
        if fault == "removed":
            image.unlink()
            until(lambda: "No such file" in caplog.text, "the next attempt, which misses it")
        told_of = caplog.text.count("camera bottom: ")
        time.sleep(0.5)  # time for some attempts more: they are no news
        assert caplog.text.count("camera bottom: ") == told_of
        partly = told(events_in(strips / "events-bottom.jsonl"))
        assert 0 < len(partly) < len(expected["bottom"])
        assert thread.is_alive()
        image.write_bytes(whole)
        thread.join(60)
    assert [ending.summary.coverage for ending in endings] == [Coverage(inspected=1500), Coverage(inspected=1200)]
    assert [ending.summary.strip_id for ending in endings] == ["s1-top", "s1-bottom"]
    for camera in LINES:
        assert told(events_in(strips / f"events-{camera}.jsonl")) == told(expected[camera])
    assert ids(events_in(strips / "events-top.jsonl")) == ids(expected["top"])


def test_a_camera_that_waiting_does_not_mend_stays_off_and_is_said_so_once(
    strips: Path, caplog: pytest.LogCaptureFixture
) -> None:
    document = two(strips)
    with Cameras(parsed(document), "test") as cameras:
        shutil.rmtree(strips / "bottom")
        top, bottom = cameras.run()
    assert top.summary is not None
    assert top.summary.coverage == Coverage(inspected=1500)
    assert isinstance(bottom.failure, ConfigError)
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [
        f"camera bottom stays off: {strips / 'bottom'}: does not exist; expected an image or a folder of images"
    ]


def test_a_camera_whose_folder_is_still_empty_waits_for_its_images(strips: Path) -> None:
    document = two(strips)
    (strips / "bottom").rename(strips / "later")
    (strips / "bottom").mkdir()
    endings: list[Ending] = []
    with Cameras(parsed(document), "test", "s1") as cameras:
        thread = threading.Thread(target=lambda: endings.extend(cameras.run()), daemon=True)
        thread.start()
        until(lambda: "a folder without images" in cameras._cameras[1]._said, "the failure")
        (strips / "later").rename(strips / "bottom")  # all at once
        thread.join(60)
    assert [ending.summary.coverage.total for ending in endings if ending.summary] == [1500, 1200]


def test_stopped_in_a_pause_a_camera_leaves_its_strip_to_the_next_start(strips: Path) -> None:
    document = two(strips)
    expected = alone(strips, document, "bottom")
    image = strips / "bottom" / "0003.png"
    whole = image.read_bytes()
    image.write_bytes(b"")
    endings: list[Ending] = []
    with Cameras(parsed(document), "test", "s1") as cameras:
        thread = threading.Thread(target=lambda: endings.extend(cameras.run()), daemon=True)
        thread.start()
        until(lambda: cameras._cameras[1]._said != "", "the failure")
        cameras.stop("enough")
        thread.join(60)
    assert isinstance(endings[1].down, ImageError)
    assert endings[1].summary is None
    image.write_bytes(whole)
    _, bottom = run(document, strip_id=None)
    assert bottom.summary.strip_id == "s1-bottom"
    assert told(events_in(strips / "events-bottom.jsonl")) == told(expected)


def test_an_engine_that_fails_ends_all_cameras_with_one_error_and_the_next_start_goes_on(
    strips: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    document = two(strips)
    expected = {camera: alone(strips, document, camera) for camera in LINES}
    left = iter(range(12))
    infer = OrtSession.infer

    def failing(session: OrtSession, batch: Any) -> Any:
        if next(left, None) is None:
            raise SessionError("the device has left the bus")
        return infer(session, batch)

    monkeypatch.setattr(OrtSession, "infer", failing)
    with pytest.raises(SessionError, match="the device has left the bus"):
        run(document)
    assert "camera" not in caplog.text
    monkeypatch.setattr(OrtSession, "infer", infer)
    run(document, strip_id=None)
    for camera in LINES:
        assert told(events_in(strips / f"events-{camera}.jsonl")) == told(expected[camera])


@pytest.mark.parametrize("way", ["slabs", "streaming"])
def test_where_another_backend_stands_in_no_camera_ends(
    strips: Path, way: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    from edge.sessions.ov import OvSession, OvStreamingSession

    document = two(strips)
    if way == "streaming":
        document |= {"bundle": str(write_streaming_segmenter(strips / "stream")), "dense": "streaming"}
    expected = {camera: alone(strips, document, camera) for camera in LINES}
    kind, name = (OvSession, "infer") if way == "slabs" else (OvStreamingSession, "step")
    ask, left = getattr(kind, name), iter(range(20))

    def failing(session: Any, batch: Any) -> Any:
        if next(left, None) is None:
            raise SessionError("the device has left the bus")
        return ask(session, batch)

    monkeypatch.setattr(kind, name, failing)
    top, bottom = run(document | {"session": {"threads": 1, "backend": ["openvino", "ort"]}})
    assert (top.summary.coverage.total, bottom.summary.coverage.total) == (1500, 1200)
    assert "the device has left the bus" in caplog.text
    assert "camera " not in caplog.text
    for camera in LINES:
        assert told_of_defects(strips / f"events-{camera}.jsonl") == {
            key: event for key, event in told(expected[camera]).items() if ".defect." in event["type"]
        }


def told_of_defects(path: Path) -> dict[str, dict[str, Any]]:
    return {key: event for key, event in told(events_in(path)).items() if ".defect." in event["type"]}


def test_a_camera_s_stream_that_fails_is_begun_again_without_the_others(strips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = two(strips, bundle=str(write_streaming_segmenter(strips / "stream")), dense="streaming")
    expected = {camera: alone(strips, document, camera) for camera in LINES}
    step, closed = OrtStreamingSession.step, OrtStreamingSession.__exit__
    steps: list[int] = []
    closings: list[int] = []

    def failing(session: OrtStreamingSession, chunk: Any) -> Any:
        steps.append(chunk.shape[3])
        if chunk.shape[3] > 150 and len(steps) > 30 and not closings:
            raise SessionError("out of memory")
        return step(session, chunk)

    def counted(session: OrtStreamingSession, *error: Any) -> None:
        closings.append(1)
        closed(session, *error)

    monkeypatch.setattr(OrtStreamingSession, "step", failing)
    monkeypatch.setattr(OrtStreamingSession, "__exit__", counted)
    top, bottom = run(document)
    assert (top.summary.coverage.total, bottom.summary.coverage.total) == (1500, 1200)
    assert len(closings) == 3
    for camera in LINES:
        assert told(events_in(strips / f"events-{camera}.jsonl")) == told(expected[camera])


def test_a_failure_after_the_strip_s_end_does_not_begin_it_again(strips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = two(strips)
    leave = Daemon.__exit__

    def stumbling(daemon: Daemon, *error: Any) -> None:
        leave(daemon, *error)
        raise OSError("the disk is gone")

    monkeypatch.setattr(Daemon, "__exit__", stumbling)
    endings = run(document)
    assert [ending.summary.coverage.total for ending in endings] == [1500, 1200]
    started = [event for event in events_in(strips / "events-top.jsonl") if event["type"].endswith("strip.started.v1")]
    assert len(started) == 1


def test_sigterm_closes_both_strips_and_a_line_says_so_of_each(strips: Path) -> None:
    document = two(strips)
    for camera in document["cameras"]:
        camera["source"]["line_rate_hz"] = 300
    process = start_daemon(strips, document, "--strip-id", "s1")
    files = [strips / f"events-{camera}.jsonl" for camera in LINES]
    until(lambda: process.poll() is not None or all(file.exists() and file.read_text() for file in files), "both at work")
    process.terminate()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert [line.split(" closed before its end: ")[0] for line in out.splitlines()] == [
        "camera top: strip s1-top",
        "camera bottom: strip s1-bottom",
    ]
    assert all(events_in(file)[-1]["data"]["interrupted"] for file in files)


def test_the_command_runs_the_one_camera_that_is_asked_for_as_it_runs_among_others(
    strips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = two(strips)
    (strips / "station.yaml").write_text(yaml.safe_dump(document))
    command = ["run", "-c", str(strips / "station.yaml"), "--set", "cameras.1.source.frame_lines=37"]
    assert main([*command, "--camera", "bottom", "--strip-id", "s1-bottom"]) == 0
    assert capsys.readouterr().out == "strip s1-bottom finished: 1200 lines, 1200 inspected, 0 gated, 0 lost, 0 shed\n"
    assert not (strips / "events-top.jsonl").exists()
    assert (strips / "outbox-bottom.db").exists()
    assert told(events_in(strips / "events-bottom.jsonl")) == told(alone(strips, document, "bottom"))
    assert main([*command, "--camera", "left"]) == 2
    assert capsys.readouterr().err == f"rust-edge: {strips / 'station.yaml'}: --camera: got left; expected one of top, bottom\n"


def test_the_command_fails_where_a_camera_stays_off(strips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = two(strips)
    (strips / "ca.pem").write_text("no certificate")
    document["sinks"]["mqtt"] = {"tls": {"ca": str(strips / "ca.pem")}}
    (strips / "station.yaml").write_text(yaml.safe_dump(document))
    assert main(["run", "-c", str(strips / "station.yaml")]) == 6
    assert [line.split(": ")[:2] for line in capsys.readouterr().out.splitlines()] == [
        ["camera top", "off"],
        ["camera bottom", "off"],
    ]
