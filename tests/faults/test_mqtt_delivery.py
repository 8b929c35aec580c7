"""Every event reaches the broker: real brokers, and what happens to them."""

import logging
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from event_samples import TOPICS, event, story, strip_frame
from mosquitto import Mosquitto
from mqtt_inbox import Inbox, first_of_each, until

from edge.broker import EmbeddedBroker
from edge.config import Mqtt
from edge.defects import Change
from edge.events import HealthData, OutgoingEvent, payload_of
from edge.reporting import health_event
from edge.sinks.mqtt import MqttPublisher
from edge.sinks.outbox import Outbox
from edge.topics import Channel

pytestmark = pytest.mark.broker
TESTS = Path(__file__).parent.parent
StartMosquitto = Callable[..., Mosquitto]


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    with Outbox(tmp_path / "outbox.db") as opened:
        yield opened


def stories(count: int) -> list[OutgoingEvent]:
    started, finished = strip_frame()
    return [started, *(one for number in range(count) for one in story(number)), finished]


def ids_of(events: list[OutgoingEvent], channel: str) -> list[str]:
    return [one.event_id for one in events if one.topic_suffix == channel]


def publisher(port: int, outbox: Outbox, drain_s: float = 10.0, **settings: object) -> MqttPublisher:
    config = Mqtt.model_validate({"port": port, "backoff_max_s": 0.5, **settings})
    return MqttPublisher(config, TOPICS, outbox, drain_s)


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_every_event_arrives_in_order_and_leaves_the_outbox(mosquitto: Mosquitto, outbox: Outbox, version: str) -> None:
    events = stories(20)
    with Inbox(mosquitto.port) as inbox:
        with publisher(mosquitto.port, outbox, version=version) as sending:
            for start in range(0, len(events), 5):
                outbox.commit(events[start : start + 5])
                sending.wake()
            until(lambda: sending.counters().acknowledged == len(events), "all are acknowledged")
        until(lambda: inbox.states() == ["online", "offline"], "the farewell")
        assert inbox.ids("defect") == ids_of(events, "defect")
        assert inbox.ids("strip") == ids_of(events, "strip")
        assert inbox.messages[0].topic == TOPICS.topic(Channel.STATUS)
    counters = sending.counters()
    assert (counters.sent, counters.acknowledged, counters.connections) == (len(events), len(events), 1)
    assert counters.reasons == {}
    assert counters.no_matching_subscribers == 0
    assert outbox.depth() == 0
    assert sending.failure is None


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_the_embedded_broker_delivers_alike(outbox: Outbox, version: str) -> None:
    pytest.importorskip("iotcore", reason="the embedded broker needs the extra demo")
    events = stories(20)
    with EmbeddedBroker() as broker, Inbox(broker.port) as inbox:
        outbox.commit(events)
        with publisher(broker.port if version == "5" else broker.port_311, outbox, version=version):
            until(lambda: len(inbox.ids()) >= 60, "all events")
        assert inbox.ids("defect") == ids_of(events, "defect")


def test_what_was_committed_before_the_broker_was_there_arrives(mosquitto: Mosquitto, outbox: Outbox) -> None:
    mosquitto.kill()
    outbox.commit(stories(5))
    with publisher(mosquitto.port, outbox) as sending:
        until(lambda: sending.counters().reasons.get("connect: refused", 0) >= 2, "two attempts in vain")
        mosquitto.start()
        with Inbox(mosquitto.port) as inbox:
            until(lambda: sending.counters().acknowledged >= 17, "all are acknowledged")
            outbox.commit([event(9)])
            sending.wake()
            until(lambda: inbox.ids()[-1:] == [event(9).event_id], "what came after")
    assert outbox.depth() == 0


def test_a_broker_that_is_gone_for_the_whole_run_keeps_nobody(outbox: Outbox) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        events = stories(3)
        with publisher(nobody.getsockname()[1], outbox) as sending:
            outbox.commit(events)
            sending.wake()
            until(lambda: sending.counters().reasons != {}, "an attempt in vain")
    assert sending.failure is None
    assert not sending.counters().connected
    assert [waiting.event for waiting in outbox.pending(limit=100)] == events


def test_a_listener_that_never_answers_keeps_nobody(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.sinks.mqtt.CONNECT_TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        with publisher(mute.getsockname()[1], outbox, drain_s=0.3) as sending:
            until(lambda: sending.counters().reasons.get("connect: no answer", 0) >= 1, "an attempt given up")
        assert sending.failure is None


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_a_broker_killed_and_restarted_in_the_middle_loses_nothing(mosquitto: Mosquitto, outbox: Outbox, version: str) -> None:
    events = stories(60)
    with Inbox(mosquitto.port) as inbox, publisher(mosquitto.port, outbox, version=version, inflight=10) as sending:
        for start in range(0, len(events), 6):
            outbox.commit(events[start : start + 6])
            sending.wake()
            if start in (48, 120):
                until(lambda at=start: sending.counters().acknowledged > at // 2, "some are acknowledged")
                mosquitto.kill()
                mosquitto.start()
        until(lambda: set(ids_of(events, "defect")) <= set(inbox.ids()), "every event")
        assert first_of_each(inbox.ids("defect")) == ids_of(events, "defect"), "in order, duplicates dropped"
        assert sending.counters().connections >= 3
    assert outbox.depth() == 0


def test_acknowledged_events_survive_a_kill_of_the_broker_while_the_subscriber_is_away(
    mosquitto: Mosquitto, outbox: Outbox
) -> None:
    with Inbox(mosquitto.port):
        pass
    events = stories(20)
    outbox.commit(events)
    with publisher(mosquitto.port, outbox) as sending:
        until(lambda: sending.counters().acknowledged == len(events), "all are acknowledged")
        mosquitto.kill()
        mosquitto.start()
    assert outbox.depth() == 0
    with Inbox(mosquitto.port) as inbox:
        until(lambda: set(ids_of(events, "defect")) <= set(inbox.ids()), "what waited for the subscriber")
        assert first_of_each(inbox.ids("defect")) == ids_of(events, "defect")


def test_nobody_listening_is_counted(mosquitto: Mosquitto, outbox: Outbox) -> None:
    outbox.commit(stories(4))
    with publisher(mosquitto.port, outbox) as sending:
        until(lambda: sending.counters().acknowledged == 14, "all are acknowledged")
    assert sending.counters().no_matching_subscribers == sending.counters().acknowledged == 14


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_the_right_password_is_let_in(start_mosquitto: StartMosquitto, outbox: Outbox, version: str) -> None:
    broker = start_mosquitto(users={"station": "right", "reader": "read"})
    outbox.commit(story(0))
    with (
        Inbox(broker.port, username="reader", password="read") as inbox,
        publisher(broker.port, outbox, version=version, username="station", password="right"),
    ):
        until(lambda: len(inbox.ids()) == 3, "the events")


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_a_wrong_password_is_one_line_and_the_inspection_goes_on(
    start_mosquitto: StartMosquitto, outbox: Outbox, version: str, caplog: pytest.LogCaptureFixture
) -> None:
    broker = start_mosquitto(users={"station": "right"})
    outbox.commit(story(0))
    with publisher(broker.port, outbox, version=version, username="station", password="guess") as sending:
        until(lambda: sending.counters().reasons.get("connect: not authorized", 0) >= 3, "refused three times")
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == 1, "once, however often it is refused"
    assert f"broker 127.0.0.1:{broker.port} refuses this client: Not authorized; got username station" in lines[0]
    assert "guess" not in lines[0]
    assert outbox.depth() == 3
    assert sending.failure is None


def test_a_password_that_is_set_right_at_the_broker_delivers_what_waited(start_mosquitto: StartMosquitto, outbox: Outbox) -> None:
    broker = start_mosquitto(users={"station": "old"})
    outbox.commit(story(0))
    with publisher(broker.port, outbox, username="station", password="new") as sending:
        until(lambda: sending.counters().reasons != {}, "refused")
        broker.set_password("station", "new")
        until(lambda: sending.counters().acknowledged == 3, "delivered")


def test_a_topic_that_is_not_allowed_is_counted_and_its_events_wait(
    start_mosquitto: StartMosquitto, outbox: Outbox, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    allowed = tmp_path / "allowed"
    allowed.write_text("topic write rust-edge/linz/line3/top/status\n")
    allowed.chmod(0o600)
    broker = start_mosquitto(f"acl_file {allowed}")
    outbox.commit(story(0))
    with publisher(broker.port, outbox, drain_s=0.2) as sending:
        until(lambda: sending.counters().reasons.get("publish: not authorized", 0) >= 2, "refused twice")
    assert outbox.depth() == 3
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "refuses events on rust-edge/linz/line3/top/defect: Not authorized" in line


def test_an_event_larger_than_the_broker_takes_is_given_up_and_does_not_hold_up_the_others(
    start_mosquitto: StartMosquitto, outbox: Outbox
) -> None:
    broker = start_mosquitto("max_packet_size 20000")
    huge = event(1)
    huge = OutgoingEvent(huge.topic_suffix, huge.event_id, huge.type, huge.strip_id, huge.payload + b" " * 30_000)
    with Inbox(broker.port) as inbox:
        outbox.commit([event(0), huge, event(2)])
        with publisher(broker.port, outbox) as sending:
            until(lambda: len(inbox.ids()) == 2, "the others")
    assert outbox.depth() == 0
    assert inbox.ids() == [event(0).event_id, event(2).event_id]
    assert outbox.dropped() == {huge.type: 1}
    assert sending.counters().reasons == {"publish: packet too large": 1}


def test_a_broker_that_hangs_is_left_for_a_new_connection(mosquitto: Mosquitto, outbox: Outbox) -> None:
    with publisher(mosquitto.port, outbox, keepalive_s=1) as sending:
        until(lambda: sending.counters().connected, "connected")
        mosquitto.pause()
        outbox.commit(story(0))
        sending.wake()
        until(lambda: not sending.counters().connected, "the missing answer to a ping is noticed")
        mosquitto.resume()
        until(lambda: sending.counters().acknowledged >= 3, "delivered over a new connection")


def test_status_is_retained_and_a_clean_stop_says_why(mosquitto: Mosquitto, outbox: Outbox) -> None:
    outbox.commit(story(0))
    with Inbox(mosquitto.port), publisher(mosquitto.port, outbox) as sending:
        until(lambda: sending.counters().acknowledged == 3, "delivered")
        with Inbox(mosquitto.port, client_id="late") as late:
            until(lambda: late.states() == ["online"], "the retained status")
            assert late.messages[0].retain
        sending.stop("stopped by SIGTERM")
    with Inbox(mosquitto.port, client_id="later") as later:
        until(lambda: later.states() == ["offline"], "the retained farewell")
        assert later.documents("status")[0]["data"]["reason"] == "stopped by SIGTERM"


def test_what_the_outbox_gave_up_is_announced_in_the_status(mosquitto: Mosquitto, tmp_path: Path) -> None:
    with Outbox(tmp_path / "small.db", max_mb=0.005) as outbox, Inbox(mosquitto.port) as inbox:
        outbox.commit(stories(10))
        given_up = outbox.dropped()
        assert sum(given_up.values()) > 10
        with publisher(mosquitto.port, outbox):
            until(lambda: inbox.states() == ["online"], "the status")
        assert inbox.documents("status")[0]["data"]["dropped"] == given_up


def test_counters_are_sent_while_connected_and_prove_what_was_acknowledged_before(mosquitto: Mosquitto, outbox: Outbox) -> None:
    outbox.commit([event(0)])
    with Inbox(mosquitto.port) as inbox, publisher(mosquitto.port, outbox) as sending:
        until(lambda: sending.counters().acknowledged == 1, "acknowledged")
        data = HealthData(uptime_s=1.0, publisher=sending.counters())
        sending.publish_health(payload_of(health_event(TOPICS.source, data, time.time_ns())))
        until(lambda: len(inbox.documents("health")) == 1, "the counters")
        assert inbox.documents("health")[0]["data"]["publisher"]["connections"] == 1
        until(lambda: outbox.depth() == 0, "the event leaves the outbox")


def test_a_failing_outbox_is_the_publishers_failure(mosquitto: Mosquitto, tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox.db")
    with publisher(mosquitto.port, outbox, drain_s=0.1) as sending:
        until(lambda: sending.counters().connected, "connected")
        outbox.close()
        sending.wake()
        until(lambda: sending.failure is not None, "the failure")
    assert "outbox.db" in str(sending.failure)


PUBLISHER = """
import sys
from pathlib import Path
from event_samples import TOPICS, story
from edge.config import Mqtt
from edge.sinks.mqtt import MqttPublisher
from edge.sinks.outbox import Outbox, Progress

with Outbox(Path(sys.argv[1])) as outbox:
    with MqttPublisher(Mqtt(port=int(sys.argv[2])), TOPICS, outbox, drain_s=60) as publisher:
        # Goes on before what may be missing, and so repeats ids, as the daemon does.
        left = outbox.unfinished_strip()
        for number in range(max(0, left.resume_line - 2) if left else 0, int(sys.argv[3])):
            outbox.commit(story(number), Progress("coil-1", number, b"", "config", "bundle"))
            publisher.wake()
            print(number, flush=True)
        if sys.argv[4:]:
            sys.stdin.read()
"""


def start_process(outbox: Path, port: int, count: int, *more: str) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(TESTS), str(TESTS.parent)))}
    command = [sys.executable, "-c", PUBLISHER, str(outbox), str(port), str(count), *more]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


def test_a_killed_station_is_offline_by_its_last_will(mosquitto: Mosquitto, tmp_path: Path) -> None:
    with Inbox(mosquitto.port) as inbox:
        process = start_process(tmp_path / "outbox.db", mosquitto.port, 1, "wait")
        until(lambda: inbox.states() == ["online"], "online")
        process.send_signal(signal.SIGKILL)
        process.wait()
        until(lambda: inbox.states() == ["online", "offline"], "the last will")
        will = inbox.documents("status")[1]
    assert will["data"]["reason"] == "connection lost"
    with Inbox(mosquitto.port, client_id="late") as late:
        until(lambda: late.states() == ["offline"], "the will is retained")


def test_a_process_killed_again_and_again_delivers_everything_once_duplicates_are_dropped(
    mosquitto: Mosquitto, tmp_path: Path
) -> None:
    count = 100
    expected = [one.event_id for number in range(count) for one in story(number)]
    chance = random.Random(3)
    with Inbox(mosquitto.port) as inbox:
        for _ in range(4):
            process = start_process(tmp_path / "outbox.db", mosquitto.port, count)
            assert process.stdout is not None
            for _ in range(chance.randrange(5, 25)):
                process.stdout.readline()
            time.sleep(chance.uniform(0, 0.05))
            process.send_signal(signal.SIGKILL)
            process.communicate()
        process = start_process(tmp_path / "outbox.db", mosquitto.port, count)
        process.communicate()
        assert process.returncode == 0
        until(lambda: set(expected) <= set(inbox.ids()), "every event")
        assert first_of_each(inbox.ids()) == expected, "nothing more, and in order"


def test_commits_never_wait_for_a_broker_that_hangs(mosquitto: Mosquitto, outbox: Outbox) -> None:
    with publisher(mosquitto.port, outbox, drain_s=0.1) as sending:
        until(lambda: sending.counters().connected, "connected")
        mosquitto.pause()
        committed = threading.Event()

        def commit() -> None:
            for number in range(100):
                outbox.commit([event(number, Change.CLOSED)])
                sending.wake()
            committed.set()

        threading.Thread(target=commit, daemon=True).start()
        # The broker answers nothing until this has happened: a commit that waited for it would never come back.
        assert committed.wait(60)
        mosquitto.resume()
