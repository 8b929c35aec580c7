"""`rust-edge doctor`: what it says of this box is so."""

from __future__ import annotations

import importlib.metadata
import json
import os
import socket
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import yaml
from toy_engines import write_segmenter

from edge import diagnosis
from edge.cli import main
from edge.diagnosis import State


@pytest.fixture
def refused_port() -> int:
    """A port where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def parts_of(output: str) -> dict[str, Any]:
    return {finding["part"]: finding for finding in json.loads(output)["findings"]}


def test_findings_tell_versions_cores_disk_and_speed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], refused_port: int
) -> None:
    bundle = write_segmenter(tmp_path / "toy-unet")
    station = tmp_path / "station.yaml"
    document = {
        "source": {"kind": "simulated"},
        "outbox": {"path": str(tmp_path / "deep" / "outbox.db")},
        "sinks": {"mqtt": {"host": "127.0.0.1", "port": refused_port}},
    }
    station.write_text(yaml.safe_dump(document))
    main(["doctor", "-c", str(station), "--bundle", str(bundle), "--seconds", "0.1", "--json"])
    parts = parts_of(capsys.readouterr().out)
    assert onnxruntime.__version__ in parts["onnxruntime"]["told"]
    assert "CPUExecutionProvider" in parts["onnxruntime"]["told"]
    assert parts["cores"]["figures"]["cores"] == len(os.sched_getaffinity(0))
    assert str(tmp_path / "deep") in parts["disk"]["told"]
    assert parts["broker"]["state"] == "absent"
    assert f"127.0.0.1:{refused_port} is not reachable" in parts["broker"]["told"]
    assert parts["speed"]["state"] == "ok"
    assert parts["speed"]["figures"]["lines_per_s"] > 0
    assert "this box carries 4096 px at" in parts["speed"]["told"]


def test_every_shipped_bundle_is_asked_its_golden_tiles() -> None:
    found = {finding.part: finding.state for finding in diagnosis.bundles()}
    expected = [f"bundle {name}" for name in ("steel-gate-fp32", "steel-gate-int8", "steel-unet-fp32", "steel-unet-int8")]
    assert found == dict.fromkeys(expected, State.OK)


def test_an_engine_that_cannot_be_measured_is_a_fault_and_the_exit_code(
    capsys: pytest.CaptureFixture[str], refused_port: int
) -> None:
    assert main(["doctor", "--port", str(refused_port), "--bundle", "no-such-bundle"]) == 1
    (told,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAULT speed")]
    assert "not measured: no-such-bundle: no such bundle" in told


def test_an_extra_without_its_parts_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.metadata.version

    def version(name: str) -> str:
        if name == "iotcore":
            raise importlib.metadata.PackageNotFoundError(name)
        return there(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert diagnosis.missing_of_extras()["demo"] == ["iotcore"]
    (finding,) = [finding for finding in diagnosis.software() if finding.part == "extra demo"]
    assert finding.state is State.ABSENT
    assert finding.told == "lacks iotcore: pip install 'rust-edge[demo]'"


def test_something_that_listens_and_is_no_broker_is_told_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        finding = diagnosis.broker("127.0.0.1", mute.getsockname()[1], timeout_s=0.5)
    assert finding.state is State.ABSENT
    assert "answers, but not as an MQTT broker" in finding.told


def test_a_broker_is_told_with_its_answer() -> None:
    broker = pytest.importorskip("edge.broker", reason="the embedded broker comes with the demo")
    with broker.EmbeddedBroker() as running:
        finding = diagnosis.broker("127.0.0.1", running.port)
    assert finding.state is State.OK
    assert "Success" in finding.told


def test_a_disk_that_cannot_be_written_is_a_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    assert diagnosis.disk(tmp_path / "out").state is State.FAULT
