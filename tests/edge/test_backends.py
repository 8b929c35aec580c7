"""Which runtime a bundle gets, what is said of it, and that a station finds the same on it however it is cut."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from stations import events_in, station, told, write_strip
from toy_engines import write_segmenter

from edge import backends
from edge.backends import BundleEngines, engines_folder
from edge.bundle import Bundle, open_bundle
from edge.config import SessionOptions, parse_config
from edge.daemon import Daemon
from edge.engine_cache import engines_beside
from edge.engines import Engines
from edge.errors import BundleError, ConfigError, SessionError
from edge.manifest import Streaming
from edge.sources.steel_strip import SteelStrip

NAMES = ["openvino", "ort"]


@pytest.fixture(autouse=True)
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Shipped bundles keep their engines here."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "rust-edge"


@pytest.fixture
def toy(tmp_path: Path) -> Bundle:
    return open_bundle(write_segmenter(tmp_path / "toy"))


def require(backend: str) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO is not installed")


def options(**keys: Any) -> SessionOptions:
    return SessionOptions(threads=1, **keys)


def without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "edge.sessions.ov", raising=False)
    monkeypatch.setitem(sys.modules, "openvino", None)


@pytest.mark.parametrize("backend", NAMES)
def test_a_backend_that_is_named_is_taken_and_told(toy: Bundle, backend: str, caplog: pytest.LogCaptureFixture) -> None:
    require(backend)
    with caplog.at_level(logging.INFO), BundleEngines(toy, options(backend=backend)) as engines:
        assert engines.tiles.backend == engines.choice.backend == backend
        assert str(engines.choice) == f"{backend} {engines.choice.version}, f32, 1 thread (session.backend)"
    assert f"toy: {engines.choice}" in caplog.messages


def test_openvino_comes_first_where_it_is_installed(toy: Bundle) -> None:
    require("openvino")
    with BundleEngines(toy, options()) as engines:
        assert engines.choice.backend == "openvino"
        assert engines.choice.reason.startswith("no TensorRT")


def test_without_openvino_onnx_runtime_runs_the_bundle_and_says_why(
    toy: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    without_openvino(monkeypatch)
    with caplog.at_level(logging.INFO), BundleEngines(toy, options()) as engines:
        assert engines.choice.backend == "ort"
        assert "install rust-edge[openvino]" in engines.choice.reason
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_a_backend_that_is_named_and_not_installed_is_an_error(toy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    without_openvino(monkeypatch)
    with pytest.raises(SessionError, match=r"install rust-edge\[openvino\], or choose another session.backend"):
        BundleEngines(toy, options(backend="openvino")).__enter__()


def altered_weights(model: Path) -> bytes:
    """The file with other weights, as if a backend computed wrongly."""
    altered = onnx.load(model)
    for tensor in altered.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.ndim == 4:
            tensor.CopyFrom(numpy_helper.from_array(values * np.float32(1.5), tensor.name))
    return bytes(altered.SerializeToString())


@pytest.fixture
def wrong_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO on this box answers otherwise than when the bundle was verified."""
    require("openvino")
    make = backends._RUNTIMES["openvino"]

    def mistaken(asked: SessionOptions) -> backends.Runtime:
        from edge.sessions.ov import OvSession

        return dataclasses.replace(
            make(asked), open_tiles=lambda bundle, folder: OvSession(altered_weights(bundle.model_path), 1)
        )

    monkeypatch.setattr(backends, "_RUNTIMES", {**backends._RUNTIMES, "openvino": mistaken})


@pytest.mark.usefixtures("wrong_openvino")
def test_a_backend_that_answers_otherwise_is_left_loudly(toy: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    with BundleEngines(toy, options()) as engines:
        assert engines.choice.backend == engines.tiles.backend == "ort"
        assert "openvino answers the golden tiles otherwise" in engines.choice.reason
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith("toy: not on openvino, ort comes next: ")
    assert "answers the golden tiles otherwise" in warning


@pytest.mark.usefixtures("wrong_openvino")
def test_a_backend_that_is_named_and_answers_otherwise_is_an_error(toy: Bundle) -> None:
    with pytest.raises(BundleError, match="openvino answers the golden tiles otherwise"):
        BundleEngines(toy, options(backend="openvino")).__enter__()


@pytest.mark.usefixtures("wrong_openvino")
def test_where_no_backend_is_left_every_reason_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = open_bundle(write_segmenter(tmp_path / "toy"))
    golden = dict(np.load(toy.path / "golden.npz"))
    np.savez(toy.path / "golden.npz", **(golden | {"scores": golden["scores"] + golden["scores"].max()}))
    with pytest.raises(BundleError, match=r"(?s)^tensorrt: no TensorRT.*\nopenvino: .+otherwise.+\nort: .+otherwise"):
        BundleEngines(toy, options()).__enter__()


def one_line_short(bundle: Bundle) -> tuple[Path, Streaming]:
    """A stream whose rows trail the newest line by one line more than is said."""
    path, streaming = bundle.streaming()
    return path, streaming.model_copy(update={"lag_lines": streaming.lag_lines - 1})


def test_a_stream_that_answers_otherwise_than_the_tiles_changes_the_backend(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    require("openvino")
    make = backends._RUNTIMES["openvino"]
    unet = open_bundle("steel-unet-int8")

    def mistaken(asked: SessionOptions) -> backends.Runtime:
        from edge.sessions.ov import OvStreamingSession

        return dataclasses.replace(
            make(asked),
            open_stream=lambda bundle, folder, width, lines: OvStreamingSession(*one_line_short(bundle), width, lines, 1),
        )

    monkeypatch.setattr(backends, "_RUNTIMES", {**backends._RUNTIMES, "openvino": mistaken})
    with BundleEngines(unet, options()) as engines:
        assert engines.tiles.backend == "openvino"
        assert engines.stream(320, 64).backend == "ort"
        assert engines.tiles.backend == engines.choice.backend == "ort"
    assert "openvino streams otherwise than it infers" in caplog.text
    with (
        pytest.raises(BundleError, match="use dense: slabs or another backend"),
        BundleEngines(unet, options(backend="openvino")) as engines,
    ):
        engines.stream(320, 64)


def test_bf16_is_refused_where_nothing_computes_in_it(toy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"session: .*got bf16.*backend ort.*expected f32, or openvino"):
        parse_config({"source": {"kind": "simulated"}, "session": {"backend": "ort", "precision": "bf16"}}, "station")
    without_openvino(monkeypatch)
    with pytest.raises(SessionError, match=r"(?s)openvino: .+ort: session.precision: got bf16.+expected f32"):
        BundleEngines(toy, options(precision="bf16")).__enter__()


def test_bf16_is_taken_where_it_is_asked_for_and_there(toy: Bundle) -> None:
    require("openvino")
    import openvino

    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(SessionError, match=r"does not compute in.+expected f32"):
            BundleEngines(toy, options(backend="openvino", precision="bf16")).__enter__()
    else:
        with BundleEngines(open_bundle("steel-gate-fp32"), options(backend="openvino", precision="bf16")) as engines:
            assert engines.choice.precision == "bf16"
            assert 0.0 < engines.golden.max_difference < 0.01


class TestEnginesKept:
    """Compiled engines on disk."""

    @pytest.fixture(autouse=True)
    def _openvino(self) -> None:
        require("openvino")

    @staticmethod
    def answers(bundle: Bundle, **keys: Any) -> np.ndarray:
        with BundleEngines(bundle, options(backend="openvino", **keys)) as engines:
            return engines.tiles.infer(np.arange(3 * 32 * 32, dtype=np.uint32).astype(np.uint8).reshape(3, 1, 32, 32)).copy()

    @staticmethod
    def kept(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.glob("*.engine")}

    def test_they_lie_beside_the_bundle_and_are_used_again(self, toy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
        first = self.answers(toy)
        folder = engines_beside(toy.path)
        before = self.kept(folder)
        assert before
        import edge.sessions.ov_engines as ov_engines

        monkeypatch.setattr(ov_engines.Compiler, "_compiled", lambda *_: pytest.fail("was compiled again"))
        np.testing.assert_array_equal(self.answers(toy), first)
        assert self.kept(folder) == before

    @pytest.mark.parametrize(
        "damage", [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: bytes(len(b)), lambda b: b[:-9] + b"?" + b[-8:]]
    )
    def test_a_damaged_one_is_compiled_again(self, toy: Bundle, damage: Any) -> None:
        first = self.answers(toy)
        folder = engines_beside(toy.path)
        for path in folder.glob("*.engine"):
            path.write_bytes(damage(path.read_bytes()))
        np.testing.assert_array_equal(self.answers(toy), first)
        damaged = {name: content for name, content in self.kept(folder).items() if len(content) < 1000}
        assert not damaged

    def test_one_that_is_whole_and_not_readable_by_openvino_is_compiled_again(
        self, toy: Bundle, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Its sidecar vouches for it, as after a change of OpenVINO's that its version does not show."""
        import hashlib

        first = self.answers(toy)
        for path in engines_beside(toy.path).glob("*.engine"):
            path.write_bytes(b"of another kind")
            sidecar = path.with_suffix(".json")
            document = json.loads(sidecar.read_text()) | {"sha256": hashlib.sha256(b"of another kind").hexdigest()}
            sidecar.write_text(json.dumps(document))
        np.testing.assert_array_equal(self.answers(toy), first)
        assert "cannot be used" in caplog.text
        assert "compiled again" in caplog.text

    def test_those_of_another_version_or_device_are_removed(self, toy: Bundle, caplog: pytest.LogCaptureFixture) -> None:
        self.answers(toy)
        folder = engines_beside(toy.path)
        for sidecar in folder.glob("*.json"):
            document = json.loads(sidecar.read_text())
            document["key"]["builder"] = "openvino 2026.3.0"
            old = sidecar.with_name(f"old-{sidecar.name}")
            old.write_text(json.dumps(document))
            old.with_suffix(".engine").write_bytes(b"old")
        foreign = folder / "model-0123456789abcdef.engine"
        foreign.write_bytes(b"tensorrt's")
        with caplog.at_level(logging.INFO), BundleEngines(toy, options(backend="openvino")) as engines:
            engines.tiles.infer(np.zeros((1, 1, 64, 64), np.uint8))  # a new shape is kept, and the folder looked through
        assert not list(folder.glob("old-*"))
        assert foreign.exists()
        assert "library: openvino 2026.3.0, now openvino" in caplog.text

    def test_each_precision_and_thread_count_has_its_own(self, toy: Bundle) -> None:
        self.answers(toy)
        folder = engines_beside(toy.path)
        count = len(self.kept(folder))
        with BundleEngines(toy, SessionOptions(backend="openvino", threads=2)):
            pass
        assert len(self.kept(folder)) > count

    def test_a_shipped_bundle_leaves_the_installation_as_it_is(self, user_cache: Path) -> None:
        bundle = open_bundle("steel-gate-int8")
        with BundleEngines(bundle, options(backend="openvino")):
            pass
        assert self.kept(user_cache / "steel-gate-int8.engines")
        assert not engines_beside(bundle.path).exists()

    def test_the_station_names_another_folder(self, toy: Bundle, tmp_path: Path) -> None:
        self.answers(toy, cache=tmp_path / "mine")
        assert self.kept(tmp_path / "mine" / "toy.engines")
        assert not engines_beside(toy.path).exists()

    def test_a_folder_that_cannot_be_made_is_a_warning(
        self, toy: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "file").write_text("not a folder")
        wanted = self.answers(toy)
        np.testing.assert_array_equal(self.answers(toy, cache=tmp_path / "file"), wanted)
        assert "engines are compiled at every start; set session.cache" in caplog.text

    def test_a_full_disk_is_a_warning(
        self, toy: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        self.answers(toy)
        assert "No space left on device" in caplog.text
        assert "will be compiled again" in caplog.text
        assert not self.kept(engines_beside(toy.path)) or not list(engines_beside(toy.path).glob("*.json"))

    def test_two_starts_at_once_both_run(self, toy: Bundle) -> None:
        start = (
            "import sys; from edge.backends import BundleEngines; from edge.bundle import open_bundle; "
            "from edge.config import SessionOptions\n"
            "with BundleEngines(open_bundle(sys.argv[1]), SessionOptions(backend='openvino', threads=1)) as e: print(e.choice)"
        )
        running = [
            subprocess.Popen(
                [sys.executable, "-c", start, str(toy.path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            for _ in range(2)
        ]
        for process in running:
            out, error = process.communicate(timeout=120)
            assert process.returncode == 0, error
            assert out.startswith("openvino")
        self.answers(toy)


def test_of_a_bundle_that_is_read_only_the_user_s_cache_keeps_the_engines(
    toy: Bundle, user_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = engines_beside(toy.path)
    writable = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != beside and writable(path, mode))
    assert engines_folder(toy, None) == user_cache / "toy.engines"


@pytest.mark.parametrize("backend", NAMES)
def test_a_station_streams_and_slabs_the_same_masks_at_any_chunk(backend: str, tmp_path: Path) -> None:
    require(backend)
    base = {"source": {"kind": "simulated", "width": 200}, "session": {"backend": backend, "threads": 1, "cache": str(tmp_path)}}
    found = []
    for dense, chunk_lines in (("streaming", 64), ("streaming", 32), ("slabs", 64)):
        config = parse_config(base | {"dense": dense, "chunk_lines": chunk_lines}, "station")
        lines = SteelStrip(200, 3, config.source.defects, config.scale).lines(0, 130)  # type: ignore[union-attr]
        with Engines(config, "station") as engines:
            assert [choice.backend for choice in engines.choices] == [backend]
            segmenter = engines.segmenter(200)
            segmenter.start(0)
            rows = segmenter.push(lines[:50]) + segmenter.push(lines[50:]) + segmenter.flush()
        found.append(np.concatenate([part.mask for part in rows]))
    assert found[0].any()
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


def test_a_daemon_finds_the_same_on_every_backend(tmp_path: Path) -> None:
    require("openvino")
    write_strip(tmp_path / "strip", lines=600)
    events = {}
    for backend in NAMES:
        session = {"backend": backend, "threads": 1}
        files = {"outbox": {"path": str(tmp_path / f"{backend}.db")}, "sinks": {"jsonl": str(tmp_path / f"{backend}.jsonl")}}
        config = parse_config(station(tmp_path, session=session, **files), "station")
        with Daemon(config, "station", strip_id="strip") as daemon:
            assert daemon.run().coverage.inspected == 600
        events[backend] = told(events_in(tmp_path / f"{backend}.jsonl"))
    assert len(events["ort"]) > 5
    assert events["openvino"] == events["ort"]
