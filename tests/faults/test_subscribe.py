"""`rust-edge subscribe` as a process of its own, at a real broker."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from event_samples import TOPICS, event, story, strip_frame
from mosquitto import Mosquitto

from edge.config import Mqtt
from edge.sinks.mqtt import MqttPublisher
from edge.sinks.outbox import Outbox

pytestmark = pytest.mark.broker
PROJECT = Path(__file__).parent.parent.parent


def subscribe(port: int, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "edge.cli", "subscribe", "--port", str(port), *arguments]
    return subprocess.Popen(
        command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )


def subscribed(process: "subprocess.Popen[str]") -> "subprocess.Popen[str]":
    assert process.stderr is not None
    assert "subscribed to" in process.stderr.readline()
    return process


def deliver(port: int, outbox: Path, **settings: str) -> None:
    with Outbox(outbox) as waiting, MqttPublisher(Mqtt.model_validate({"port": port, **settings}), TOPICS, waiting, 30):
        waiting.commit([strip_frame()[0], *story(0), strip_frame()[1]])


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_json_lines_are_the_messages_as_they_came(mosquitto: Mosquitto, tmp_path: Path, version: str) -> None:
    process = subscribed(subscribe(mosquitto.port, "--json", "--count", "7", "--mqtt", version))
    deliver(mosquitto.port, tmp_path / "outbox.db")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    events = [json.loads(line) for line in out.splitlines()]
    assert [one["id"] for one in events if one["type"].startswith("io.rust-edge.defect")] == [one.event_id for one in story(0)]
    assert [one["type"].split(".")[-2] for one in events] == [
        *("status", "started", "opened", "updated", "closed", "finished", "status")
    ]


def test_people_get_one_line_each_with_millimetres(mosquitto: Mosquitto, tmp_path: Path) -> None:
    process = subscribed(subscribe(mosquitto.port, "--count", "7"))
    deliver(mosquitto.port, tmp_path / "outbox.db")
    out, _ = process.communicate(timeout=60)
    lines = out.splitlines()
    assert len(lines) == 7
    assert "online: connected" in lines[0]
    assert "coil-1 strip started: 4096 px, cascade, steel-unet-int8" in lines[1]
    assert "closed  scratches  at     0.001 m,    26.2 mm across: 5.0 x 1.2 mm" in lines[4]
    assert "coil-1 strip finished: 0.51 m, 2 scratches; 97.66% looked at" in lines[5]


def test_a_repeated_event_is_told_as_such(mosquitto: Mosquitto, tmp_path: Path) -> None:
    process = subscribed(subscribe(mosquitto.port, "--count", "2", "--topic", "rust-edge/+/+/+/defect"))
    for name in ("first", "second"):
        with Outbox(tmp_path / name) as outbox, MqttPublisher(Mqtt(port=mosquitto.port), TOPICS, outbox, 30):
            outbox.commit([event(0)])
    out, _ = process.communicate(timeout=60)
    assert [line.endswith("(again)") for line in out.splitlines()] == [False, True]


def test_what_is_no_event_is_told_and_harms_nothing(mosquitto: Mosquitto) -> None:
    process = subscribed(subscribe(mosquitto.port, "--count", "1", "--topic", "#"))
    subprocess.run(["mosquitto_pub", "-p", str(mosquitto.port), "-q", "1", "-t", "a/b", "-m", "hello"], check=True)
    out, _ = process.communicate(timeout=60)
    assert out == "a/b: not an event of rust-edge (5 bytes)\n"


def test_the_password_comes_from_the_environment(start_mosquitto: Callable[..., Mosquitto], tmp_path: Path) -> None:
    broker = start_mosquitto(users={"reader": "read", "station": "write"})
    process = subscribed(subscribe(broker.port, "--username", "reader", "--count", "1", MQTT_PASSWORD="read"))
    deliver(broker.port, tmp_path / "outbox.db", username="station", password="write")
    assert process.wait(60) == 0


def test_a_wrong_password_is_one_line_and_an_exit_code(start_mosquitto: Callable[..., Mosquitto]) -> None:
    broker = start_mosquitto(users={"reader": "read"})
    process = subscribe(broker.port, "--username", "reader", MQTT_PASSWORD="guess")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 6
    assert said.startswith(f"rust-edge: broker 127.0.0.1:{broker.port} refuses this client: Not authorized")
    assert len(said.splitlines()) == 1


def test_a_broker_that_is_not_there_is_one_line_and_an_exit_code() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        process = subscribe(nobody.getsockname()[1])
        _, said = process.communicate(timeout=60)
    assert process.returncode == 6
    assert "connection refused; expected a broker to listen there" in said
    assert len(said.splitlines()) == 1


def test_a_key_without_its_certificate_is_a_fault_of_the_command_line() -> None:
    process = subscribe(1883, "--tls", "--tls-key", "station.key")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "certificate and key go together" in said


def test_an_interrupt_ends_it_without_a_traceback(mosquitto: Mosquitto) -> None:
    process = subscribed(subscribe(mosquitto.port))
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == ""
