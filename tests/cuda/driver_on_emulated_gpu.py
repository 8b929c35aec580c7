"""What only a GPU that can be broken at will shows of edge/cuda/driver.py; run by test_driver.py in a process of its own."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
from collections.abc import Iterator

import emulated_driver
import host_kernels
import numpy as np
import pytest
import scaling
import twins

from edge.cuda.device import CudaDevice
from edge.cuda.driver import open_device
from edge.cuda.kernels import Ring, StripKernels
from edge.errors import SessionError

DRIVER = ctypes.CDLL("libcuda.so.1")
DRIVER.emulated_limit_memory.argtypes = [ctypes.c_size_t]
ALL_MEMORY = 4 << 30
ILLEGAL_ADDRESS, ECC_UNCORRECTABLE, LAUNCH_FAILED, DEVICE_UNAVAILABLE, UNKNOWN = 700, 214, 719, 46, 999


@pytest.fixture(autouse=True)
def a_whole_gpu() -> Iterator[None]:
    yield
    DRIVER.emulated_fail(0)
    DRIVER.emulated_limit_memory(ALL_MEMORY)
    os.environ.pop("EMULATED_GPU_INTEGRATED", None)


def live() -> int:
    gc.collect()
    return DRIVER.emulated_live()


def use(device: CudaDevice, module: bytes = b"") -> list[object]:
    """One of everything, with work that nobody waits for."""
    stream, mark, memory = device.stream(), device.event(), device.allocate(64)
    locked, mapped = device.page_locked(64), device.mapped(64)
    graph = device.capture(stream, lambda: device.upload(memory, 0, locked.array, stream))
    graph.launch(stream)
    mark.record(stream)
    kernels = device.load(module, ["scale"]) if module else {}
    return [stream, mark, memory, locked, mapped, graph, kernels]


def test_properties_are_the_drivers() -> None:
    properties = open_device().properties
    assert properties.name == emulated_driver.NAME
    assert (properties.compute, properties.driver, properties.multiprocessors) == ("8.7", "12.6", 16)
    assert properties.memory_bytes == ALL_MEMORY
    assert not properties.integrated
    os.environ["EMULATED_GPU_INTEGRATED"] = "1"
    assert open_device().properties.integrated


def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(SessionError, match="got GPU 1; the driver counts 1"):
        open_device(1)


def test_nothing_is_left_with_the_driver(tmp_path: object) -> None:
    before = live()
    with open_device() as device, device.active():
        kept = use(device, scaling.host_module(tmp_path))
        assert live() > before
    assert live() == before
    assert kept


def test_nothing_is_left_after_another_thread_closed_the_device() -> None:
    before = live()
    device = open_device().__enter__()
    with device.active():
        kept = use(device)
    thread = threading.Thread(target=device.__exit__, args=(None, None, None))
    thread.start()
    thread.join(timeout=20)
    assert live() == before
    assert kept


def test_nothing_is_left_of_what_was_freed_by_hand() -> None:
    with open_device() as device, device.active():
        before = live()
        for memory in (device.allocate(64), device.page_locked(64), device.mapped(64)):
            memory.free()
        stream, block = device.stream(), device.allocate(64)
        graph = device.capture(stream, lambda: device.fill(block, 0, 64, 1, stream))
        graph.close()
        block.free()
        # a stream lives as long as the device
        assert live() == before + 1


def test_nothing_is_left_of_a_capture_that_failed() -> None:
    with open_device() as device, device.active():
        stream = device.stream()
        before = live()
        with pytest.raises(SessionError):
            device.capture(stream, lambda: device.allocate(64))
        assert live() == before


def test_nothing_is_left_of_a_module_that_lacks_a_kernel(tmp_path: object) -> None:
    with open_device() as device, device.active():
        before = live()
        with pytest.raises(SessionError, match="named symbol not found"):
            device.load(scaling.host_module(tmp_path), ["scale", "stretch"])
        assert live() == before


def test_a_view_of_page_locked_memory_outlives_the_memory() -> None:
    with open_device() as device, device.active():
        before = live()
        memory = device.page_locked(64)
        memory.array[:] = 7
        view = memory.array[:32]
        memory.free()
        assert set(view) == {7}
        del view
        assert live() == before


def test_what_is_no_module_is_refused() -> None:
    with open_device() as device, device.active(), pytest.raises(SessionError, match=r"load: .*kernel image is invalid"):
        device.load(b"no cubin at all", ["scale"])


def test_what_runs_late_is_not_seen_early() -> None:
    with open_device() as device, device.active():
        stream, memory, host = device.stream(), device.allocate(64), device.page_locked(64)
        device.fill(memory, 0, 64, 5, stream)
        device.download(host.array, memory, 0, stream)
        assert set(host.array) == {0}
        stream.synchronize()
        assert set(host.array) == {5}


def test_out_of_memory_tells_bytes_of_the_gpu_and_of_the_host() -> None:
    with open_device() as device, device.active():
        DRIVER.emulated_limit_memory(1 << 20)
        with pytest.raises(SessionError, match=r"allocate: out of memory: wanted 2097152 bytes, 1048576 are free"):
            device.allocate(2 << 20)
        with pytest.raises(SessionError, match=r"page_locked: out of memory: wanted 2097152 bytes, \d{8,} are free"):
            device.page_locked(2 << 20)
    os.environ["EMULATED_GPU_INTEGRATED"] = "1"
    with (
        open_device() as device,
        device.active(),
        pytest.raises(SessionError, match=r"mapped: out of memory: wanted 2097152 bytes, 1048576 are free"),
    ):
        device.mapped(2 << 20)


@pytest.mark.parametrize("code", [ILLEGAL_ADDRESS, ECC_UNCORRECTABLE, LAUNCH_FAILED, DEVICE_UNAVAILABLE, UNKNOWN])
def test_a_lost_gpu_is_told_as_such_by_every_call_and_closed_without_another_error(code: int) -> None:
    with open_device() as device, device.active():
        kept = use(device)
        stream, mark, memory, locked, mapped, graph, _ = kept
        DRIVER.emulated_fail(code)
        for call in (
            stream.synchronize,
            mark.synchronize,
            device.stream,
            lambda: device.allocate(16),
            lambda: graph.launch(stream),
            lambda: device.fill(memory, 0, 16, 0, stream),
            lambda: device.active().__enter__(),
        ):
            with pytest.raises(SessionError, match=r"emulated GPU: .*the GPU is lost \(.+\); the process must be restarted"):
                call()
        for part in (memory, locked, mapped):
            part.free()
            part.free()
        graph.close()
    gc.collect()


def test_a_gpu_that_is_lost_to_one_thread_is_lost_to_all() -> None:
    told: list[str] = []
    with open_device() as device:
        with device.active():
            stream = device.stream()
            DRIVER.emulated_fail(LAUNCH_FAILED)
            with pytest.raises(SessionError, match="the GPU is lost"):
                stream.synchronize()
            DRIVER.emulated_fail(0)

        def ask() -> None:
            try:
                with device.active():
                    device.allocate(16)
            except SessionError as error:
                told.append(str(error))

        thread = threading.Thread(target=ask)
        thread.start()
        thread.join(timeout=20)
    assert len(told) == 1
    assert "the GPU is lost" in told[0]


def test_a_gpu_that_is_lost_while_it_is_closed_raises_nothing() -> None:
    with open_device() as device:
        with device.active():
            kept = use(device)
        DRIVER.emulated_fail(ILLEGAL_ADDRESS)
    assert kept


def test_an_error_from_which_the_gpu_recovers_is_told_with_the_call_and_its_answer() -> None:
    with open_device() as device, device.active():
        stream, first, second = device.stream(), device.event(), device.event()
        first.record(stream)
        second.record(stream)
        with pytest.raises(SessionError, match=r"emulated GPU: Event.elapsed_ms: .*device not ready"):
            second.elapsed_ms(first)
        stream.synchronize()
        assert second.elapsed_ms(first) >= 0


def test_the_kernels_of_the_package_run_through_it(tmp_path: object) -> None:
    rows = np.random.default_rng(1).integers(0, 256, (40, 96), np.uint8)
    corners = np.array([[3, -5], [-7, 60], [30, 90]], np.int64)
    with open_device() as device, device.active():
        kernels = StripKernels(device, host_kernels.build(tmp_path).read_bytes())
        stream, host, memory = device.stream(), device.page_locked(1 << 16), device.allocate(1 << 16)
        host.array[: rows.size] = rows.reshape(-1)
        host.array[4096 : 4096 + corners.nbytes] = corners.reshape(-1).view(np.uint8)
        device.upload(memory, 0, host.array[:8192], stream)
        ring = Ring(memory.address, 40, 96, 0, 40)
        kernels.gather(ring, memory.address + 4096, 3, 16, 32, memory.address + 8192, stream)
        down = host.array[8192 : 8192 + 3 * 16 * 32]
        device.download(down, memory, 8192, stream)
        stream.synchronize()
        found = down.copy()
    of_twin = np.zeros(3 * 16 * 32, np.uint8)
    buffers = {1: rows.reshape(-1), 2: corners.reshape(-1).view(np.uint8), 3: of_twin}
    twins.gather(lambda address, nbytes: buffers[address][:nbytes], 1, 40, 96, 0, 40, 2, 3, 16, 32, 3)
    assert np.array_equal(found, of_twin)
