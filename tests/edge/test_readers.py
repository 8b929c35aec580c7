"""Which strips a station keeps on a GPU, and when it gives them back. The GPU is the strict device, on ONNX Runtime."""

from __future__ import annotations

import gc
import logging
from contextlib import ExitStack, contextmanager
from functools import partial

import numpy as np
import pytest
from ort_on_device import OrtOnDevice, OrtStreamOnDevice
from segmenting import assert_same, rows_of
from segmenting_on_device import NO_CUBIN, CountingDevice
from stations import WIDTH, station, write_strip
from toy_engines import steel, write_cell_gate, write_gate, write_segmenter

from edge.backends import BundleEngines
from edge.config import StationConfig
from edge.cuda.kernels import StripKernels
from edge.engines import Engines
from edge.errors import SessionError
from edge.segmenters.crops import HostCrops

MODES = ("dense", "gate of tiles", "gate of cells")


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch):
    monkeypatch.setattr("edge.readers.StripKernels", partial(StripKernels, module=NO_CUBIN))


class EnginesOnDevice:
    """`edge.engines.EngineSet` of a bundle in ONNX Runtime, behind a device."""

    def __init__(self, device, bundle, options) -> None:
        self._device, self._opened = device, ExitStack()
        self._engines = BundleEngines(bundle, options)

    def __enter__(self):
        self._opened.enter_context(self._engines)
        self.tiles = self._opened.enter_context(OrtOnDevice(self._device, self._engines.tiles))
        self.choice = self._engines.choice
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def stream(self, width, chunk_lines):
        session = self._engines.stream(width, chunk_lines)
        return self._opened.enter_context(OrtStreamOnDevice(self._device, session, width))

    def on_device(self, session):
        return session

    def stream_on_device(self, session):
        return session


def config_of(folder, mode: str) -> StationConfig:
    changes = {"session": {"threads": 1, "backend": "ort"}}
    if mode != "dense":
        if not (folder / "gate").exists():
            (write_gate if mode == "gate of tiles" else write_cell_gate)(folder / "gate")
        changes |= {"mode": "cascade", "gate": str(folder / "gate"), "tiling": {"band_lines": 64, "batch": 2}}
    if not (folder / "toy").exists():
        write_segmenter(folder / "toy")
        write_strip(folder / "strip", lines=250)
    return StationConfig.model_validate(station(folder, **changes))


STRIP = steel(400, WIDTH, (100, 20, 30, 12, 230), (300, 90, 8, 30, 20))


def rows_on_the_host(config: StationConfig, lines: int = len(STRIP)):
    with Engines(config, "station.yaml") as engines:
        return rows_of(engines.segmenter(WIDTH), STRIP[:lines], [50])


@contextmanager
def engines_on(config: StationConfig, *devices: CountingDevice):
    """devices: of the bundle, and of the gate where that is another one."""
    left = list(devices)

    def opened(bundle, options):
        return EnginesOnDevice(left.pop(0) if len(left) > 1 else left[0], bundle, options)

    with Engines(config, "station.yaml", opened) as engines:
        yield engines


@pytest.mark.parametrize("mode", MODES)
def test_a_strip_whose_engines_compute_on_one_gpu_is_kept_there(tmp_path, mode):
    config = config_of(tmp_path, mode)
    with CountingDevice() as device, engines_on(config, device) as engines:
        assert_same(rows_of(engines.segmenter(WIDTH), STRIP, [50]), rows_on_the_host(config))
        assert sum(nbytes for _, nbytes in device.up) - STRIP.size < 2000


@pytest.mark.parametrize("mode", MODES[1:])
def test_bundle_and_gate_on_two_devices_meet_on_the_host(tmp_path, mode, caplog):
    config = config_of(tmp_path, mode)
    with CountingDevice() as one, CountingDevice() as other, engines_on(config, one, other) as engines:
        assert_same(rows_of(engines.segmenter(WIDTH), STRIP, [50]), rows_on_the_host(config))
        assert one.up == other.up == []
    assert "bundle and gate compute on different devices" in caplog.text


def test_without_a_compiler_for_the_kernels_the_strip_stays_on_the_host_and_that_is_told(tmp_path, monkeypatch, caplog):
    def refuse(*_: object):
        raise SessionError("no compiler for the kernels")

    config = config_of(tmp_path, "dense")
    monkeypatch.setattr("edge.readers.StripKernels", refuse)
    with CountingDevice() as device, engines_on(config, device) as engines:
        assert_same(rows_of(engines.segmenter(WIDTH), STRIP, [50]), rows_on_the_host(config))
        assert device.up == []
    assert "the strip stays on the host, and goes up with every batch: no compiler for the kernels" in caplog.text


@pytest.mark.parametrize("mode", MODES)
def test_a_gpu_without_room_for_the_strip_keeps_nothing_of_it(tmp_path, mode, caplog, monkeypatch):
    config = config_of(tmp_path, mode)
    expected = rows_on_the_host(config, 200)

    def tight(device):
        device.out_of_memory_after(room)
        return StripKernels(device, NO_CUBIN)

    monkeypatch.setattr("edge.readers.StripKernels", tight)
    kept = []
    for room in (0, 30_000, 300_000, 1 << 26):
        caplog.clear()
        with CountingDevice() as device, engines_on(config, device) as engines:
            segmenter = engines.segmenter(WIDTH)
            gc.collect()
            left = device._free_bytes
            assert_same(rows_of(segmenter, STRIP[:200], [50]), expected)
            kept.append("the strip stays on the host" not in caplog.text)
            assert bool(device.up) == kept[-1]
            assert left < room or not kept[-1]
            del segmenter
    assert kept == sorted(kept)
    assert set(kept) == {False, True}


def test_another_segmenter_takes_the_place_of_the_one_before(tmp_path):
    config = config_of(tmp_path, "gate of cells")
    with CountingDevice() as device, engines_on(config, device) as engines:
        for width in (WIDTH, 64, WIDTH):
            device.up.clear()
            segmenter = engines.segmenter(width)
            rows_of(segmenter, np.ascontiguousarray(STRIP[:100, :width]), [50])
            assert all(memory.buffer is not None for memory, _ in device.up)
            del segmenter
            gc.collect()
            assert device.up
            assert all(memory.buffer is None for memory, _ in device.up)


def test_two_segmenters_at_once_each_have_their_strip(tmp_path):
    config = config_of(tmp_path, "dense")
    with CountingDevice() as device, engines_on(config, device) as engines:
        one, other = engines.segmenter(WIDTH), engines.segmenter(64)
        narrow = np.ascontiguousarray(STRIP[:, :64])
        one.start(0)
        other.start(0)
        found, narrow_found = [], []
        for first in range(0, len(STRIP), 100):
            found += one.push(STRIP[first : first + 100])
            narrow_found += other.push(narrow[first : first + 100])
        with Engines(config, "station.yaml") as host:
            assert_same(narrow_found + other.flush(), rows_of(host.segmenter(64), narrow))
            assert_same(found + one.flush(), rows_of(host.segmenter(WIDTH), STRIP))


def test_a_session_that_computes_on_no_gpu_is_read_on_the_host(tmp_path, caplog):
    config = config_of(tmp_path, "dense")
    with Engines(config, "station.yaml") as engines:
        assert isinstance(engines.segmenter(WIDTH)._slabs, HostCrops)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING and "strip" in record.message]
