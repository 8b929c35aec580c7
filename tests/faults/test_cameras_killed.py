"""Two cameras in one daemon before a real broker: killed together, and failing one by one."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from mosquitto import Mosquitto
from mqtt_inbox import Inbox, first_of_each, until
from stations import events_in, start_daemon, station, told, write_strip

pytestmark = pytest.mark.broker
CAMERAS = ("top", "bottom")
KILLS = 2


def two(folder: Path, broker: Mosquitto, line_rate_hz: float, lines: int) -> dict[str, Any]:
    document = station(folder, session={"threads": 1, "backend": "ort"})
    del document["camera"], document["source"]
    document["sinks"]["mqtt"] = {"host": "127.0.0.1", "port": broker.port}
    document["cameras"] = []
    for seed, camera in enumerate(CAMERAS):
        write_strip(folder / camera, lines=lines, seed=seed)
        source = {"kind": "folder", "path": str(folder / camera), "frame_lines": 50, "line_rate_hz": line_rate_hz}
        document["cameras"].append({"camera": camera, "source": source})
    return document


def undisturbed(folder: Path, document: dict[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """The events of each camera, of a daemon that nobody kills."""
    reference = folder / "reference"
    reference.mkdir()
    files = {"outbox": {"path": str(reference / "outbox.db")}, "sinks": {"jsonl": str(reference / "events.jsonl")}}
    fast = ["--set", "cameras.0.source.line_rate_hz=null", "--set", "cameras.1.source.line_rate_hz=null"]
    process = start_daemon(reference, document | files, "--strip-id", "s1", *fast)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return {camera: told(events_in(reference / f"events-{camera}.jsonl")) for camera in CAMERAS}


def statuses(inbox: Inbox, camera: str) -> list[tuple[str, str]]:
    """State and reason of each status of a camera, in order."""
    found = [json.loads(m.payload)["data"] for m in list(inbox.messages) if m.topic == f"rust-edge/mill/one/{camera}/status"]
    return [(data["state"], data["reason"]) for data in found]


def arrived(inbox: Inbox, camera: str) -> list[dict[str, Any]]:
    topics = {f"rust-edge/mill/one/{camera}/{channel}" for channel in ("defect", "strip")}
    return [json.loads(message.payload) for message in list(inbox.messages) if message.topic in topics]


@pytest.mark.timeout(300)
def test_killed_with_both_cameras_at_work_every_event_of_both_arrives_and_each_will_says_so(
    tmp_path: Path, mosquitto: Mosquitto
) -> None:
    document = two(tmp_path, mosquitto, line_rate_hz=2000, lines=3000)
    expected = undisturbed(tmp_path, document)
    files = [tmp_path / f"events-{camera}.jsonl" for camera in CAMERAS]
    rng = random.Random(7)
    with Inbox(mosquitto.port) as inbox:
        for kill in range(KILLS):
            sizes = [file.stat().st_size if file.exists() else 0 for file in files]
            process = start_daemon(tmp_path, document, *(["--strip-id", "s1"] if kill == 0 else []))
            until(lambda sizes=sizes: all(f.exists() and f.stat().st_size > s for f, s in zip(files, sizes, strict=True)), "work")
            until(lambda kill=kill: all(count(inbox, camera, "online") > kill for camera in CAMERAS), "both connected")
            time.sleep(rng.uniform(0.0, 0.2))
            assert process.poll() is None, "the strips are too short to be killed in so often"
            process.kill()
            process.communicate()
            until(lambda kill=kill: all(count(inbox, camera, "offline") > kill for camera in CAMERAS), "both wills")
        process = start_daemon(tmp_path, document)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        until(lambda: all(len(statuses(inbox, camera)) == 2 * KILLS + 2 for camera in CAMERAS), "the farewells")
        for camera in CAMERAS:
            found = arrived(inbox, camera)
            assert told(found) == expected[camera]
            assert sorted(first_of_each([event["id"] for event in found])) == sorted(expected[camera])
            lived = [("online", "connected"), ("offline", "connection lost")]
            assert statuses(inbox, camera) == [*lived * KILLS, ("online", "connected"), ("offline", "finished")]
    for camera, file in zip(CAMERAS, files, strict=True):
        assert told(events_in(file)) == expected[camera]


def count(inbox: Inbox, camera: str, state: str) -> int:
    return [told_state for told_state, _ in statuses(inbox, camera)].count(state)


@pytest.mark.timeout(120)
def test_a_camera_that_fails_is_offline_with_its_reason_and_the_others_stay_online(tmp_path: Path, mosquitto: Mosquitto) -> None:
    document = two(tmp_path, mosquitto, line_rate_hz=250, lines=2000)
    torn, empty = tmp_path / "bottom" / "0001.png", tmp_path / "empty"
    torn.write_bytes(torn.read_bytes()[:100])
    empty.mkdir()
    document["cameras"].append({"camera": "side", "source": {"kind": "folder", "path": str(empty)}})
    with Inbox(mosquitto.port) as inbox:
        process = start_daemon(tmp_path, document, "--strip-id", "s1")
        until(lambda: count(inbox, "bottom", "offline") >= 2, "a failure, and one more after it was begun again")
        until(lambda: count(inbox, "side", "offline") >= 1, "the farewell of a camera that never began")
        assert process.poll() is None
        assert statuses(inbox, "top") == [("online", "connected")]
        process.terminate()
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        until(lambda: count(inbox, "top", "offline") == 1, "the farewell")
        assert statuses(inbox, "top")[-1] == ("offline", "stopped by SIGTERM")
        for camera, reason in {"bottom": f"failed: {torn}: ", "side": f"failed: {empty}: a folder without images"}.items():
            told_why = [why for state, why in statuses(inbox, camera) if state == "offline"]
            assert all(why.startswith(reason) for why in told_why)
    top, bottom, side = out.splitlines()
    assert top.startswith("camera top: strip s1-top closed before its end: ")
    assert bottom.startswith(f"camera bottom: down when it was stopped, its strip goes on with the next start: {torn}: ")
    assert side.startswith("camera side: down when it was stopped, ")
    assert err.count("0001.png") == err.count("without images") == 1
