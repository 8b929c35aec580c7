"""What every CudaDevice promises: the strict fake in three orders of its work, and pycuda on the GPU that the driver names."""

from __future__ import annotations

import importlib.util
import re
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import emulated_driver
import numpy as np
import pytest
import scaling
from strict_device import Misuse, StrictDevice

from edge.cuda.device import CudaDevice, DeviceMemory, Event, Kernel, Stream
from edge.cuda.driver import open_device
from edge.errors import SessionError
from edge.sessions.gpu import Gpu, find_gpu

REFUSED = (SessionError, Misuse)
FAKES = {"strict fake, late": "late", "strict fake, early": "early", "strict fake, shuffled": 5}


@dataclass(frozen=True)
class Made:
    """A device that is entered and active, and a module with the kernel `scale` for it."""

    device: CudaDevice
    module: bytes

    def scale(self) -> Kernel:
        return self.device.load(self.module, ["scale"])["scale"]


def opened(kind: str) -> CudaDevice:
    """A device as yet to be entered."""
    return open_device() if kind == "pycuda" else StrictDevice(schedule=FAKES[kind], twins={"scale": scaling.scale})


def against_pycuda() -> str:
    """Why pycuda has no GPU here; empty where it has one."""
    if importlib.util.find_spec("pycuda") is None:
        return "pycuda is not installed"
    return gpu if isinstance(gpu := find_gpu(), str) else ""


# one skip with its reason instead of one for each promise
KINDS = [*FAKES, *(["pycuda"] if not against_pycuda() else [])]


@pytest.fixture(params=[pytest.param(kind, marks=pytest.mark.gpu if kind == "pycuda" else ()) for kind in KINDS])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def host_module(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return scaling.host_module(tmp_path_factory.mktemp("kernel"))


@pytest.fixture
def made(kind: str, request: pytest.FixtureRequest) -> Iterator[Made]:
    emulated = kind == "pycuda" and find_gpu() == Gpu(emulated_driver.NAME, "8.7")
    module = request.getfixturevalue("host_module") if emulated else scaling.PTX
    with opened(kind) as device, device.active():
        yield Made(device, module)


@pytest.fixture
def device(made: Made) -> CudaDevice:
    return made.device


def holding(device: CudaDevice, array: np.ndarray, stream: Stream) -> DeviceMemory:
    """Device memory with the bytes of an array, once the stream has come that far."""
    memory, staged = device.allocate(array.nbytes), device.page_locked(array.nbytes)
    staged.array[:] = array.reshape(-1).view(np.uint8)
    device.upload(memory, 0, staged.array, stream)
    return memory


def content(device: CudaDevice, memory: DeviceMemory, stream: Stream) -> np.ndarray:
    staged = device.page_locked(memory.nbytes)
    device.download(staged.array, memory, 0, stream)
    stream.synchronize()
    return staged.array.copy()


def launch_scale(made: Made, kernel: Kernel, source: int, target: int, count: int, factor: float, stream: Stream) -> None:
    arguments = (np.uint64(source), np.uint64(target), np.int32(count), np.float32(factor))
    made.device.launch(kernel, (-(-count // 64), 1, 1), (64, 1, 1), arguments, stream)


@pytest.mark.gpu
def test_the_gpu_of_this_box_is_held_to_all_of_it_too() -> None:
    if reason := against_pycuda():
        pytest.skip(reason)
    assert "pycuda" in KINDS


def test_is_a_cuda_device(device: CudaDevice) -> None:
    assert isinstance(device, CudaDevice)


def test_tells_what_it_is(device: CudaDevice) -> None:
    properties = device.properties
    assert properties.name
    assert re.fullmatch(r"\d+\.\d", properties.compute)
    assert re.fullmatch(r"\d+\.\d", properties.driver)
    assert properties.memory_bytes > 1 << 28
    assert properties.multiprocessors > 0


def test_bytes_that_go_up_come_down(device: CudaDevice) -> None:
    grey = np.random.default_rng(0).integers(0, 256, 100_003, np.uint8)
    stream = device.stream()
    assert np.array_equal(content(device, holding(device, grey, stream), stream), grey)


def test_copies_begin_anywhere_in_memory_and_take_arrays_of_any_type_and_shape(device: CudaDevice) -> None:
    stream, memory, host = device.stream(), device.allocate(1000), device.page_locked(1200)
    device.fill(memory, 0, 1000, 7, stream)
    scores = host.array[:96].view(np.float32).reshape(2, 3, 4)
    scores[:] = np.arange(24).reshape(2, 3, 4)
    device.upload(memory, 304, scores, stream)
    down = host.array[200:1200]
    device.download(down, memory, 0, stream)
    stream.synchronize()
    assert np.array_equal(down[304:400].view(np.float32), np.arange(24))
    assert set(down[:304]) == set(down[400:]) == {7}


def test_nothing_is_copied_of_an_empty_array(device: CudaDevice) -> None:
    stream, memory, host = device.stream(), device.allocate(8), device.page_locked(8)
    device.fill(memory, 0, 8, 3, stream)
    device.upload(memory, 8, host.array[:0], stream)
    device.download(host.array[:0], memory, 8, stream)
    device.fill(memory, 4, 0, 9, stream)
    assert set(content(device, memory, stream)) == {3}


def test_a_fill_sets_its_bytes_alone(device: CudaDevice) -> None:
    stream, memory = device.stream(), device.allocate(600)
    device.fill(memory, 0, 600, 0, stream)
    device.fill(memory, 13, 500, 255, stream)
    filled = content(device, memory, stream)
    assert set(filled[13:513]) == {255}
    assert set(filled[:13]) == set(filled[513:]) == {0}


def test_memory_of_the_host_is_cleared_and_mapped_memory_alone_has_an_address(device: CudaDevice) -> None:
    locked, mapped = device.page_locked(5000), device.mapped(5000)
    for memory in (locked, mapped):
        assert memory.array.dtype == np.uint8
        assert memory.array.shape == (5000,)
        assert not memory.array.any()
    assert locked.device_address == 0
    assert mapped.device_address > 0


def test_device_memory_is_aligned_to_256_bytes(device: CudaDevice) -> None:
    blocks = [device.allocate(nbytes) for nbytes in (1, 3, 257, 1000)]
    assert all(block.address > 0 and block.address % 256 == 0 for block in blocks)
    assert [block.nbytes for block in blocks] == [1, 3, 257, 1000]


def test_a_kernel_computes_with_its_arguments(made: Made) -> None:
    grey = np.arange(200, dtype=np.uint8)
    stream = made.device.stream()
    memory = holding(made.device, grey, stream)
    launch_scale(made, made.scale(), memory.address, memory.address + 100, 50, 2.5, stream)
    after = content(made.device, memory, stream)
    assert np.array_equal(after[100:150], (grey[:50] * 2.5).astype(np.uint8))
    assert np.array_equal(after[:100], grey[:100])
    assert np.array_equal(after[150:], grey[150:])


def test_arguments_of_a_kernel_are_taken_when_it_is_put_on_the_stream(made: Made) -> None:
    stream = made.device.stream()
    memory, kernel = holding(made.device, np.ones(64, np.uint8), stream), made.scale()
    for factor in (2, 3, 5):
        launch_scale(made, kernel, memory.address, memory.address, 64, factor, stream)
    assert set(content(made.device, memory, stream)) == {30}


def test_a_kernel_reads_and_writes_mapped_memory_in_place(made: Made) -> None:
    stream, mapped = made.device.stream(), made.device.mapped(256)
    mapped.array[:128] = 5
    launch_scale(made, made.scale(), mapped.device_address, mapped.device_address + 128, 128, 3, stream)
    stream.synchronize()
    assert set(mapped.array[128:]) == {15}


def test_a_stream_waits_for_an_event_of_another(made: Made) -> None:
    device = made.device
    first, second, marked = device.stream(), device.stream(), device.event()
    memory = holding(device, np.full(128, 4, np.uint8), first)
    launch_scale(made, made.scale(), memory.address, memory.address, 128, 2, first)
    marked.record(first)
    second.wait(marked)
    assert set(content(device, memory, second)) == {8}


def test_an_event_is_done_with_what_was_before_it(device: CudaDevice) -> None:
    stream, marked, host = device.stream(), device.event(), device.page_locked(64)
    memory = holding(device, np.full(64, 9, np.uint8), stream)
    device.download(host.array, memory, 0, stream)
    marked.record(stream)
    marked.synchronize()
    assert set(host.array) == {9}


def test_an_event_that_was_never_recorded_keeps_nobody_waiting(device: CudaDevice) -> None:
    stream, never = device.stream(), device.event()
    stream.wait(never)
    never.synchronize()
    stream.synchronize()


def test_events_take_the_time_between_them(device: CudaDevice) -> None:
    stream, memory = device.stream(), device.allocate(1 << 20)
    marks: list[Event] = [device.event() for _ in range(3)]
    for value, mark in enumerate(marks):
        mark.record(stream)
        device.fill(memory, 0, 1 << 20, value, stream)
    stream.synchronize()
    first, second, third = marks
    assert 0 <= second.elapsed_ms(first) <= third.elapsed_ms(first)


def test_what_is_captured_runs_at_each_launch_and_not_before(made: Made) -> None:
    device, kernel = made.device, made.scale()
    stream, up, down = device.stream(), device.page_locked(64), device.page_locked(64)
    memory = device.allocate(64)
    down.array[:] = 1

    def enqueue() -> None:
        device.upload(memory, 0, up.array, stream)
        launch_scale(made, kernel, memory.address, memory.address, 64, 3, stream)
        device.download(down.array, memory, 0, stream)

    graph = device.capture(stream, enqueue)
    stream.synchronize()
    assert set(down.array) == {1}
    for value in (10, 20):
        up.array[:] = value
        graph.launch(stream)
        stream.synchronize()
        assert set(down.array) == {3 * value}


def test_a_graph_runs_on_another_stream_than_it_was_captured_on(made: Made) -> None:
    device = made.device
    captured, other = device.stream(), device.stream()
    memory = device.allocate(32)
    graph = device.capture(captured, lambda: device.fill(memory, 0, 32, 6, captured))
    graph.launch(other)
    assert set(content(device, memory, other)) == {6}


def test_a_capture_takes_in_a_stream_that_waits_for_it(made: Made) -> None:
    device = made.device
    main, side, forked, joined = device.stream(), device.stream(), device.event(), device.event()
    memory = device.allocate(32)

    def enqueue() -> None:
        device.fill(memory, 0, 32, 1, main)
        forked.record(main)
        side.wait(forked)
        device.fill(memory, 16, 16, 2, side)
        joined.record(side)
        main.wait(joined)

    graph = device.capture(main, enqueue)
    device.fill(memory, 0, 32, 9, main)
    graph.launch(main)
    assert np.array_equal(content(device, memory, main), np.repeat([1, 2], 16))


def test_a_capture_that_leaves_a_stream_behind_is_refused_and_both_are_usable_again(device: CudaDevice) -> None:
    main, side, forked = device.stream(), device.stream(), device.event()
    memory = device.allocate(32)

    def enqueue() -> None:
        forked.record(main)
        side.wait(forked)
        device.fill(memory, 0, 32, 2, side)

    with pytest.raises(REFUSED):
        device.capture(main, enqueue)
    for stream in (main, side):
        device.fill(memory, 0, 32, 8, stream)
        assert set(content(device, memory, stream)) == {8}


def test_what_the_captured_function_raises_is_raised_and_the_stream_usable_again(device: CudaDevice) -> None:
    stream, memory = device.stream(), device.allocate(16)

    def enqueue() -> None:
        device.fill(memory, 0, 16, 1, stream)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        device.capture(stream, enqueue)
    device.fill(memory, 0, 16, 2, stream)
    assert set(content(device, memory, stream)) == {2}


@pytest.mark.parametrize("call", ["allocate", "page_locked", "mapped", "free", "synchronize", "wait for the event", "load"])
def test_what_spoils_a_capture_is_refused_in_it(made: Made, call: str) -> None:
    device = made.device
    stream, memory, marked = device.stream(), device.allocate(16), device.event()
    spare = device.allocate(16)
    calls = {
        "allocate": lambda: device.allocate(16),
        "page_locked": lambda: device.page_locked(16),
        "mapped": lambda: device.mapped(16),
        "free": spare.free,
        "synchronize": stream.synchronize,
        "wait for the event": marked.synchronize,
        "load": made.scale,
    }
    with pytest.raises(REFUSED, match="captur"):
        device.capture(stream, calls[call])
    device.fill(memory, 0, 16, 2, stream)
    assert set(content(device, memory, stream)) == {2}
    assert spare.address > 0


def test_another_thread_allocates_while_one_captures(device: CudaDevice) -> None:
    stream, memory = device.stream(), device.allocate(16)
    allocated: list[DeviceMemory] = []

    def allocate() -> None:
        with device.active():
            allocated.append(device.allocate(64))

    def enqueue() -> None:
        device.fill(memory, 0, 16, 1, stream)
        other = threading.Thread(target=allocate)
        other.start()
        other.join(timeout=20)

    device.capture(stream, enqueue).launch(stream)
    assert set(content(device, memory, stream)) == {1}
    assert [block.nbytes for block in allocated] == [64]


def test_a_closed_graph_is_not_launched(device: CudaDevice) -> None:
    stream, memory = device.stream(), device.allocate(16)
    graph = device.capture(stream, lambda: device.fill(memory, 0, 16, 1, stream))
    graph.close()
    graph.close()
    with pytest.raises(REFUSED, match="closed"):
        graph.launch(stream)


def test_freed_memory_has_no_address_and_no_array_and_is_freed_once(device: CudaDevice) -> None:
    on_device, locked, mapped = device.allocate(16), device.page_locked(16), device.mapped(16)
    for memory in (on_device, locked, mapped):
        memory.free()
        memory.free()
    with pytest.raises(REFUSED, match="freed"):
        _ = on_device.address
    for memory in (locked, mapped):
        with pytest.raises(REFUSED, match="freed"):
            _ = memory.array
        with pytest.raises(REFUSED, match="freed"):
            _ = memory.device_address


def test_freed_memory_is_not_copied_nor_filled(device: CudaDevice) -> None:
    stream, host, memory = device.stream(), device.page_locked(16), device.allocate(16)
    memory.free()
    for call in (
        lambda: device.upload(memory, 0, host.array, stream),
        lambda: device.download(host.array, memory, 0, stream),
        lambda: device.fill(memory, 0, 16, 0, stream),
    ):
        with pytest.raises(REFUSED, match="freed"):
            call()


@pytest.mark.parametrize(("offset", "nbytes"), [(1, 16), (-1, 4), (17, 1), (0, 17)])
def test_bytes_beyond_the_memory_are_refused(device: CudaDevice, offset: int, nbytes: int) -> None:
    stream, host, memory = device.stream(), device.page_locked(32), device.allocate(16)
    part = host.array[:nbytes]
    for call in (
        lambda: device.upload(memory, offset, part, stream),
        lambda: device.download(part, memory, offset, stream),
        lambda: device.fill(memory, offset, nbytes, 0, stream),
    ):
        with pytest.raises(REFUSED, match=r"of 16|there are 16"):
            call()


def test_an_array_with_gaps_is_refused(device: CudaDevice) -> None:
    stream, host, memory = device.stream(), device.page_locked(64), device.allocate(64)
    with pytest.raises(REFUSED, match="C-contiguous"):
        device.upload(memory, 0, host.array.reshape(8, 8)[:, :4], stream)
    with pytest.raises(REFUSED, match="C-contiguous"):
        device.download(host.array.reshape(8, 8).T, memory, 0, stream)


def test_a_kernel_that_the_module_lacks_is_named(made: Made) -> None:
    with pytest.raises(SessionError, match="stretch"):
        made.device.load(made.module, ["scale", "stretch"])


def test_arguments_without_a_type_are_refused(made: Made) -> None:
    stream, memory = made.device.stream(), made.device.allocate(16)
    with pytest.raises(REFUSED, match=r"scale: .*NumPy scalar"):
        made.device.launch(made.scale(), (1, 1, 1), (1, 1, 1), (memory.address, memory.address, 1, 1.0), stream)


def test_more_threads_than_a_block_holds_are_refused(made: Made) -> None:
    stream, memory = made.device.stream(), made.device.allocate(16)
    arguments = (np.uint64(memory.address), np.uint64(memory.address), np.int32(1), np.float32(1))
    with pytest.raises(REFUSED, match="scale"):
        made.device.launch(made.scale(), (1, 1, 1), (64, 64, 1), arguments, stream)


@pytest.mark.parametrize("nbytes", [0, -1])
def test_memory_of_no_bytes_is_refused(device: CudaDevice, nbytes: int) -> None:
    for allocate in (device.allocate, device.page_locked, device.mapped):
        with pytest.raises(REFUSED, match=f"{nbytes} bytes"):
            allocate(nbytes)


def test_out_of_memory_tells_the_bytes_wanted_and_free(device: CudaDevice) -> None:
    wanted = device.properties.memory_bytes * 4
    with pytest.raises(SessionError, match=rf"out of memory: wanted {wanted} bytes, \d+ are free"):
        device.allocate(wanted)
    stream, memory = device.stream(), device.allocate(16)
    device.fill(memory, 0, 16, 1, stream)
    assert set(content(device, memory, stream)) == {1}


def test_streams_events_and_memory_of_another_device_are_refused(made: Made, kind: str) -> None:
    device = made.device
    stream, memory, host = device.stream(), device.allocate(16), device.page_locked(16)
    with opened(kind) as other, other.active():
        foreign, mark, there = other.stream(), other.event(), other.allocate(16)
        for call in (
            lambda: device.fill(memory, 0, 16, 0, foreign),
            lambda: device.upload(there, 0, host.array, stream),
            lambda: stream.wait(mark),
            lambda: mark.record(stream),
            lambda: device.capture(foreign, lambda: None),
            lambda: other.launch(made.scale(), (1, 1, 1), (1, 1, 1), (), foreign),
        ):
            with pytest.raises(REFUSED, match="another device"):
                call()


def test_nothing_is_asked_outside_of_active(kind: str) -> None:
    with opened(kind) as device:
        with device.active():
            stream, memory = device.stream(), device.allocate(16)
        for call in (lambda: device.allocate(16), device.stream, device.event, lambda: device.fill(memory, 0, 16, 0, stream)):
            with pytest.raises(REFUSED, match=r"outside of active\(\)"):
                call()


def test_active_may_be_nested(device: CudaDevice) -> None:
    stream = device.stream()
    with device.active(), device.active():
        memory = device.allocate(16)
    device.fill(memory, 0, 16, 1, stream)
    assert set(content(device, memory, stream)) == {1}


def test_threads_use_the_device_side_by_side(device: CudaDevice) -> None:
    seen: list[set[int]] = []

    def work(value: int) -> None:
        with device.active():
            stream, memory = device.stream(), device.allocate(1000)
            for _ in range(20):
                device.fill(memory, 0, 1000, value, stream)
                seen.append(set(content(device, memory, stream)) - {value})
            memory.free()

    threads = [threading.Thread(target=work, args=(value,)) for value in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert seen == [set()] * 80


def test_memory_is_freed_by_another_thread_than_it_was_made_by(device: CudaDevice) -> None:
    blocks = [device.allocate(16), device.page_locked(16), device.mapped(16)]

    def free() -> None:
        with device.active():
            for block in blocks:
                block.free()

    thread = threading.Thread(target=free)
    thread.start()
    thread.join(timeout=20)
    with pytest.raises(REFUSED, match="freed"):
        _ = blocks[0].address


def test_what_is_left_at_the_end_is_freed_and_freeing_it_again_harmless(kind: str) -> None:
    with opened(kind) as device, device.active():
        stream, memory, locked = device.stream(), device.allocate(16), device.page_locked(16)
        graph = device.capture(stream, lambda: device.fill(memory, 0, 16, 1, stream))
        graph.launch(stream)
    for again in (memory.free, locked.free, graph.close):
        again()
    for call in (lambda: device.active().__enter__(), lambda: device.allocate(16), stream.synchronize, device.event):
        with pytest.raises(REFUSED):
            call()


def test_a_device_is_closed_by_another_thread(kind: str) -> None:
    raised: list[BaseException] = []
    device = opened(kind)
    with entered(device):
        device.stream(), device.event(), device.allocate(16), device.page_locked(16)

    def close() -> None:
        try:
            device.__exit__(None, None, None)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=close)
    thread.start()
    thread.join(timeout=20)
    assert raised == []
    with pytest.raises(REFUSED):
        device.allocate(16)


def entered(device: CudaDevice) -> AbstractContextManager[None]:
    device.__enter__()
    return device.active()


def test_an_error_inside_is_not_hidden_by_closing(kind: str) -> None:
    def fail() -> None:
        with opened(kind) as device, device.active():
            device.fill(device.allocate(16), 0, 16, 1, device.stream())
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fail()
