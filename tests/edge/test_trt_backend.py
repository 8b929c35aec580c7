"""The backend `tensorrt` as a station opens it: what it needs, the device that all its bundles share, and what comes after it."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
from strict_device import StrictDevice
from tensorrt_sessions import EVERY_VERSION, a_device
from tensorrt_shims import RTX, tensorrt
from toy_engines import write_cell_gate, write_segmenter

from edge import diagnosis
from edge.backends import BundleEngines
from edge.bundle import Bundle, open_bundle
from edge.config import SessionOptions, parse_config
from edge.cuda import driver, open_devices
from edge.cuda.open_devices import OpenDevices
from edge.errors import ConfigError, SessionError
from edge.sessions.trt import library
from edge.sessions.trt.progress import build_progress

VERSION = "10.3.0.30"


@pytest.fixture
def toy(tmp_path) -> Bundle:
    return open_bundle(write_segmenter(tmp_path / "toy"))


@pytest.fixture
def box(monkeypatch) -> Callable[..., list[StrictDevice]]:
    """Makes this a box with TensorRT and GPUs; its devices, as they are opened."""

    def make(version: str = VERSION, gpus: int = 1, **shims: object) -> list[StrictDevice]:
        opened: list[StrictDevice] = []
        module = tensorrt(version, device=a_device(version))

        def open_device(index: int) -> StrictDevice:
            if index >= gpus:
                raise SessionError(f"got GPU {index}; the driver counts {gpus}, from 0")
            opened.append(a_device(version))
            vars(module).update(vars(tensorrt(version, device=opened[-1], **shims)))
            return opened[-1]

        monkeypatch.setattr(library, "missing_parts", lambda: [])
        monkeypatch.setattr(library, "find_tensorrt", lambda: module)
        monkeypatch.setattr(driver, "open_device", open_device)
        monkeypatch.setattr(open_devices.OPEN_DEVICES, "_open_device", open_device)
        return opened

    return make


def tiles_of(count: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (count, 1, 32, 32), dtype=np.uint8)


def scores(bundle: Bundle, options: SessionOptions) -> np.ndarray:
    with BundleEngines(bundle, options) as engines:
        return engines.tiles.infer(tiles_of(9)).copy()


@pytest.mark.parametrize("version", EVERY_VERSION)
def test_auto_takes_tensorrt_where_it_is(toy, box, version, tmp_path):
    box(version)
    options = SessionOptions(cache=tmp_path / "cache")
    with BundleEngines(toy, options) as engines:
        assert engines.choice.backend == "tensorrt"
        assert engines.choice.version == ("1.7.1.116 for RTX" if version == RTX else version)
        assert engines.on_device(engines.tiles) is not None
    assert [path.parent.name for path in (tmp_path / "cache").rglob("*.engine")] == ["toy.engines"]


def test_a_stream_is_found_to_answer_what_the_tiles_do(tmp_path, box):
    box()
    bundle = open_bundle(write_cell_gate(tmp_path / "gate"))
    with BundleEngines(bundle, SessionOptions(backend="tensorrt")) as engines:
        stream = engines.stream(64, 8)
        assert stream.backend == "tensorrt"
        assert engines.stream_on_device(stream) is not None


def test_all_bundles_share_one_device_which_closes_with_the_last(tmp_path, toy, box):
    opened = box()
    gate = open_bundle(write_cell_gate(tmp_path / "gate"))
    options = SessionOptions(backend="tensorrt")
    with BundleEngines(toy, options) as engines, BundleEngines(gate, options) as others:
        others.stream(64, 8)
        engines.tiles.infer(tiles_of(3))
        in_use = len(opened)
        assert engines.on_device(engines.tiles).device is opened[-1]
        assert others.on_device(others.tiles).device is opened[-1]
        with opened[-1].active():
            pass
    assert len(opened) == in_use
    with pytest.raises(AssertionError, match="device that is closed"), opened[-1].active():
        pass


def test_auto_goes_on_to_the_cpu_and_says_why_where_the_engine_answers_otherwise(toy, box, caplog):
    box(off=8)
    with BundleEngines(toy, SessionOptions(threads=1)) as engines:
        assert engines.choice.backend != "tensorrt"
        assert "tensorrt answers the golden tiles otherwise" in engines.choice.reason
    assert any("tensorrt" in record.message for record in caplog.records if record.levelno >= logging.WARNING)
    with pytest.raises(Exception, match="tensorrt answers the golden tiles otherwise"):
        scores(toy, SessionOptions(backend="tensorrt"))


def test_what_a_box_lacks_is_one_error_where_the_backend_is_named(toy, monkeypatch):
    monkeypatch.setattr(library, "missing_parts", lambda: ["no TensorRT", "no pycuda", "no NVIDIA driver (libcuda.so.1)"])
    told = r"no TensorRT engines on this box: it has no TensorRT, no pycuda, no NVIDIA driver \(libcuda.so.1\)"
    with pytest.raises(SessionError, match=told):
        scores(toy, SessionOptions(backend="tensorrt"))


def test_a_gpu_that_is_not_there_is_told(toy, box):
    box(gpus=2)
    scores(toy, SessionOptions(backend="tensorrt", device=1))
    with pytest.raises(SessionError, match="got GPU 2; the driver counts 2, from 0"):
        scores(toy, SessionOptions(backend="tensorrt", device=2))


def test_a_device_that_fails_to_open_can_be_lent_later():
    made: list[StrictDevice | SessionError] = [SessionError("no GPU yet"), StrictDevice(strict_leaks=True)]

    def open_device(index: int) -> StrictDevice:
        found = made.pop(0)
        if isinstance(found, SessionError):
            raise found
        return found

    devices = OpenDevices(open_device)
    with pytest.raises(SessionError, match="no GPU yet"), devices.lend(0):
        pass
    with devices.lend(0) as first, devices.lend(0) as second:
        assert first is second


def test_a_station_names_gpu_accelerator_and_scratch_memory():
    station = {"source": {"kind": "simulated"}, "session": {"backend": ["tensorrt", "ort"], "device": 1, "dla": 0}}
    options = parse_config(station, "test").session
    assert (options.device, options.dla, options.workspace_mib) == (1, 0, 1024)
    with pytest.raises(ConfigError, match="dla: got 0, and backend ort uses none; expected tensorrt, or none"):
        parse_config({**station, "session": {"backend": "ort", "dla": 0}}, "test")
    with pytest.raises(ConfigError, match=r"session\.dla"):
        parse_config({**station, "session": {"backend": "tensorrt", "dla": 2}}, "test")


def test_options_of_the_station_reach_the_builder_and_the_engines_key(toy, box, tmp_path):
    box(dla_cores=1)
    for options in ({}, {"workspace_mib": 64}, {"dla": 0}):
        scores(toy, SessionOptions(backend="tensorrt", cache=tmp_path / "cache", **options))
    keys = "".join(path.read_text() for path in (tmp_path / "cache").rglob("*.json"))
    assert all(told in keys for told in ("workspace_mib=1024", "workspace_mib=64", "dla=None", "dla=0"))


def test_the_doctor_says_what_runs_and_what_is_missing(box, monkeypatch):
    box()
    monkeypatch.setattr(library, "missing_parts", lambda: ["no pycuda", "no NVIDIA driver (libcuda.so.1)"])
    told = "no pycuda, no NVIDIA driver (libcuda.so.1); there is TensorRT 10.3.0.30: engines run on the CPU"
    assert diagnosis.tensorrt() == diagnosis.Finding("tensorrt", diagnosis.State.ABSENT, told, {})
    box()
    monkeypatch.setattr(diagnosis.importlib.metadata, "version", lambda name: "2025.1")
    found = diagnosis.tensorrt()
    assert found.state is diagnosis.State.OK
    assert found.told.startswith("TensorRT 10.3.0.30, pycuda 2025.1 on strict fake (compute capability 8.7, ")
    assert found.told.endswith("driver for CUDA 12.6, memory shared with the CPU)")
    box(gpus=0)
    assert diagnosis.tensorrt().state is diagnosis.State.FAULT


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_build_shows_bars_on_a_terminal_and_lines_in_a_log(caplog):
    caplog.set_level(logging.INFO)
    terminal, times = Terminal(), iter(range(0, 1000, 7))
    with build_progress("model.onnx of toy", terminal) as progress:
        for step in range(4):
            progress("Building engine", step, 3)
    assert "model.onnx of toy: Building engine" in terminal.getvalue()
    with build_progress("model.onnx of toy", io.StringIO(), lambda: next(times)) as progress:
        for step in range(4):
            progress("Building engine", step, 3)
    told = [line for line in caplog.messages if "Building" in line]
    assert told == ["model.onnx of toy: Building engine, 1 of 3", "model.onnx of toy: Building engine, 3 of 3"]


def test_the_module_is_not_touched_where_something_is_missing(monkeypatch):
    """Loading TensorRT takes a second, which every start of a station without a GPU would pay."""

    def load() -> ModuleType:
        raise AssertionError("loaded")

    monkeypatch.setattr(library, "find_tensorrt", load)
    monkeypatch.setattr(library, "missing_parts", lambda: ["no pycuda"])
    from edge.backends import _tensorrt

    with pytest.raises(SessionError, match="it has no pycuda"):
        _tensorrt(SessionOptions())
