"""The daemon killed at any moment, the broker with it: every event of an undisturbed run arrives, and none is made up."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from mqtt_inbox import Inbox, first_of_each, until
from stations import events_in, start_daemon, station, told, write_strip

pytestmark = pytest.mark.broker
KILLS = 10


def paced(folder: Path, line_rate_hz: float) -> dict:
    return {"kind": "folder", "path": str(folder / "strip"), "frame_lines": 50, "line_rate_hz": line_rate_hz}


def undisturbed(folder: Path, source: dict) -> dict[str, dict]:
    reference = folder / "reference"
    reference.mkdir()
    document = station(folder, source=source, outbox={"path": str(reference / "outbox.db")})
    document["sinks"] = {"jsonl": str(reference / "events.jsonl")}
    process = start_daemon(reference, document, "--strip-id", "s1")
    assert process.wait(120) == 0, process.stderr.read()
    return told(events_in(reference / "events.jsonl"))


def started(process, folder: Path, size_before: int) -> None:
    """Wait until this process has written an event of its own, so that a kill meets it at work."""
    path = folder / "events.jsonl"
    until(lambda: process.poll() is not None or (path.exists() and path.stat().st_size > size_before), "the daemon at work")


@pytest.mark.timeout(600)
def test_killed_ten_times_at_random_moments_every_event_arrives_and_without_duplicates_exactly_once(tmp_path, mosquitto):
    write_strip(tmp_path / "strip", lines=12_000)
    source = paced(tmp_path, 4000)
    expected = undisturbed(tmp_path, source)
    document = station(tmp_path, source=source)
    document["sinks"]["mqtt"] = {"host": "127.0.0.1", "port": mosquitto.port}
    rng = random.Random(11)
    with Inbox(mosquitto.port, "rust-edge/mill/one/top/#") as inbox:
        kills = 0
        while kills < KILLS:
            path = tmp_path / "events.jsonl"
            process = start_daemon(tmp_path, document, *(["--strip-id", "s1"] if kills == 0 else []))
            started(process, tmp_path, path.stat().st_size if path.exists() else 0)
            time.sleep(rng.uniform(0.0, 0.25))
            assert process.poll() is None, "the strip is too short to be killed in so often"
            process.kill()
            process.communicate()
            kills += 1
        process = start_daemon(tmp_path, document)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        until(lambda: expected.keys() <= {*inbox.ids("defect"), *inbox.ids("strip")}, "every event at the subscriber")
        arrived = inbox.documents("defect") + inbox.documents("strip")
    assert told(arrived) == expected
    assert sorted(first_of_each([event["id"] for event in arrived])) == sorted(expected)
    assert told(events_in(tmp_path / "events.jsonl")) == expected


@pytest.mark.timeout(300)
def test_the_broker_killed_and_restarted_during_a_strip_gets_every_event_in_order(tmp_path, start_mosquitto):
    write_strip(tmp_path / "strip", lines=6000)
    source = paced(tmp_path, 1500)
    expected = undisturbed(tmp_path, source)
    broker = start_mosquitto()
    with Inbox(broker.port, "rust-edge/mill/one/top/#") as inbox:
        document = station(tmp_path, source=source)
        document["sinks"]["mqtt"] = {"host": "127.0.0.1", "port": broker.port, "backoff_max_s": 1.0}
        process = start_daemon(tmp_path, document, "--strip-id", "s1")
        for _ in range(2):
            seen = len(inbox.messages)
            until(lambda seen=seen: len(inbox.messages) > seen + 5, "events before the broker dies")
            broker.kill()
            time.sleep(0.3)
            broker.start()
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        until(lambda: expected.keys() <= {*inbox.ids("defect"), *inbox.ids("strip")}, "every event at the subscriber")
        arrived = inbox.documents("defect")
    assert told(arrived) == {key: event for key, event in expected.items() if ".defect." in event["type"]}
    order = first_of_each([event["id"] for event in arrived])
    assert order == [key for key in expected if key in set(order)]


def test_a_broker_that_is_gone_for_the_whole_run_costs_nothing_but_time(tmp_path, mosquitto):
    write_strip(tmp_path / "strip", lines=1500)
    expected = undisturbed(tmp_path, paced(tmp_path, 5000))
    document = station(tmp_path, source=paced(tmp_path, 5000))
    document["sinks"]["mqtt"] = {"host": "127.0.0.1", "port": 1}
    process = start_daemon(tmp_path, document, "--strip-id", "s1")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "127.0.0.1:1" in err
    with Inbox(mosquitto.port, "rust-edge/mill/one/top/#") as inbox:
        document["sinks"]["mqtt"]["port"] = mosquitto.port
        write_strip(tmp_path / "strip", lines=100)
        process = start_daemon(tmp_path, document, "--strip-id", "s2")
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        until(lambda: expected.keys() <= {*inbox.ids("defect"), *inbox.ids("strip")}, "the first strip's events")
