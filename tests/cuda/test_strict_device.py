"""What the strict fake catches beyond the contract: all that hardware would answer with rubbish, or rightly by chance."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import scaling
from strict_device import FREED, FRESH, PENDING, Misuse, StrictDevice

from edge.errors import SessionError


@pytest.fixture
def device() -> Iterator[StrictDevice]:
    with StrictDevice(twins={"scale": scaling.scale}) as device, device.active():
        yield device


def with_schedule(schedule: str | int) -> StrictDevice:
    return StrictDevice(schedule=schedule, twins={"scale": scaling.scale})


def test_a_result_is_not_there_before_something_waited_for_it(device: StrictDevice) -> None:
    stream, memory, host = device.stream(), device.allocate(8), device.page_locked(8)
    device.fill(memory, 0, 8, 5, stream)
    device.download(host.array, memory, 0, stream)
    assert set(host.array) == {PENDING}
    stream.synchronize()
    assert set(host.array) == {5}


def test_a_source_that_changes_before_the_copy_is_copied_as_it_is_then(device: StrictDevice) -> None:
    stream, memory, host = device.stream(), device.allocate(8), device.page_locked(16)
    host.array[:8] = 1
    device.upload(memory, 0, host.array[:8], stream)
    host.array[:8] = 2
    device.download(host.array[8:], memory, 0, stream)
    stream.synchronize()
    assert set(host.array[8:]) == {2}


def test_a_source_that_becomes_the_target_of_a_download_is_copied_before(device: StrictDevice) -> None:
    stream, first, second, host = device.stream(), device.allocate(8), device.allocate(8), device.page_locked(8)
    host.array[:] = 3
    device.fill(second, 0, 8, 4, stream)
    device.upload(first, 0, host.array, stream)
    device.download(host.array, second, 0, stream)
    stream.synchronize()
    assert set(device.view(first.address, 8)) == {3}
    assert set(host.array) == {4}


def test_device_memory_that_was_never_written_shows(device: StrictDevice) -> None:
    assert set(device.view(device.allocate(100).address, 100)) == {FRESH}


def test_host_memory_that_was_freed_shows_in_the_views_of_it(device: StrictDevice) -> None:
    host = device.page_locked(8)
    view = host.array
    host.free()
    assert set(view) == {FREED}


def test_an_address_is_never_given_out_twice(device: StrictDevice) -> None:
    seen = set()
    for _ in range(50):
        memory = device.allocate(300)
        seen.add(memory.address)
        memory.free()
    assert len(seen) == 50


def test_devices_share_no_address(device: StrictDevice) -> None:
    with StrictDevice() as other, other.active():
        memory = other.allocate(8)
        with pytest.raises(Misuse, match=r"never given out|freed"):
            device.view(memory.address, 8)


@pytest.mark.parametrize(("start", "nbytes"), [(0, 101), (-1, 1), (100, 1), (50, 51)])
def test_bytes_beside_a_block_are_nobodys(device: StrictDevice, start: int, nbytes: int) -> None:
    memory = device.allocate(100)
    device.allocate(100)
    with pytest.raises(Misuse):
        device.view(memory.address + start, nbytes)


def test_bytes_within_a_block_are_the_memory_itself(device: StrictDevice) -> None:
    memory, mapped = device.allocate(100), device.mapped(100)
    device.view(memory.address + 10, 5)[:] = 1
    assert list(device.view(memory.address, 20)) == [FRESH] * 10 + [1] * 5 + [FRESH] * 5
    device.view(mapped.device_address + 10, 5)[:] = 1
    assert mapped.array.sum() == 5


def test_memory_freed_before_the_stream_came_that_far_is_caught(device: StrictDevice) -> None:
    stream, memory = device.stream(), device.allocate(8)
    device.fill(memory, 0, 8, 1, stream)
    memory.free()
    with pytest.raises(Misuse, match="is freed"):
        stream.synchronize()


def test_page_locked_memory_freed_under_a_copy_is_caught(device: StrictDevice) -> None:
    stream, memory, host = device.stream(), device.allocate(8), device.page_locked(8)
    device.upload(memory, 0, host.array, stream)
    with pytest.raises(Misuse, match="still on a stream"):
        host.free()


def test_memory_freed_between_capture_and_launch_is_caught(device: StrictDevice) -> None:
    stream, memory, host = device.stream(), device.allocate(8), device.page_locked(8)
    on_device = device.capture(stream, lambda: device.fill(memory, 0, 8, 1, stream))
    of_host = device.capture(stream, lambda: device.upload(memory, 0, host.array, stream))
    host.free()
    of_host.launch(stream)
    with pytest.raises(Misuse, match="source was freed"):
        stream.synchronize()
    memory.free()
    on_device.launch(stream)
    with pytest.raises(Misuse, match="is freed"):
        stream.synchronize()


@pytest.mark.parametrize("array", [np.zeros(8, np.uint8), np.zeros((2, 4), np.uint8)], ids=["flat", "two axes"])
def test_arrays_outside_of_page_locked_memory_are_caught(device: StrictDevice, array: np.ndarray) -> None:
    stream, memory = device.stream(), device.allocate(8)
    for call in (lambda: device.upload(memory, 0, array, stream), lambda: device.download(array, memory, 0, stream)):
        with pytest.raises(Misuse, match="not in page-locked memory of this device"):
            call()


def test_a_copy_of_a_page_locked_array_is_caught(device: StrictDevice) -> None:
    stream, memory, host = device.stream(), device.allocate(8), device.page_locked(8)
    with pytest.raises(Misuse, match="not in page-locked memory"):
        device.upload(memory, 0, host.array.copy(), stream)


def test_page_locked_memory_of_another_device_is_caught(device: StrictDevice) -> None:
    with StrictDevice() as other, other.active():
        host = other.page_locked(8)
        with pytest.raises(Misuse, match="of this device"):
            device.upload(device.allocate(8), 0, host.array, device.stream())


def test_work_beside_a_capture_is_caught(device: StrictDevice) -> None:
    captured, other, memory = device.stream(), device.stream(), device.allocate(8)
    with pytest.raises(Misuse, match="no part of"):
        device.capture(captured, lambda: device.fill(memory, 0, 8, 1, other))


def test_waiting_in_a_capture_for_what_is_outside_of_it_is_caught_and_the_other_way_round(device: StrictDevice) -> None:
    captured, other, before, within = device.stream(), device.stream(), device.event(), device.event()
    before.record(other)
    with pytest.raises(Misuse, match="not recorded in it"):
        device.capture(captured, lambda: captured.wait(before))
    device.capture(captured, lambda: within.record(captured))
    with pytest.raises(Misuse, match="last recorded in a capture"):
        other.wait(within)
    with pytest.raises(Misuse, match="nothing will ever pass it"):
        within.synchronize()


def test_work_of_another_thread_on_a_captured_stream_is_caught(device: StrictDevice) -> None:
    stream, memory = device.stream(), device.allocate(8)
    raised: list[BaseException] = []

    def fill() -> None:
        try:
            with device.active():
                device.fill(memory, 0, 8, 1, stream)
        except Misuse as error:
            raised.append(error)

    def enqueue() -> None:
        thread = threading.Thread(target=fill)
        thread.start()
        thread.join(timeout=20)

    device.capture(stream, enqueue)
    assert "another thread captures it" in str(raised[0])


def test_the_time_of_an_event_that_is_not_done_is_caught(device: StrictDevice) -> None:
    stream, first, second = device.stream(), device.event(), device.event()
    first.record(stream)
    stream.synchronize()
    second.record(stream)
    with pytest.raises(Misuse, match="not done"):
        second.elapsed_ms(first)


def test_work_put_on_a_stream_by_its_handle_runs_in_order_and_is_captured(device: StrictDevice) -> None:
    stream, memory = device.stream(), device.allocate(8)
    seen: list[int] = []

    def enqueue() -> None:
        device.fill(memory, 0, 8, 7, stream)
        device.enqueue(stream.handle, lambda: seen.append(int(device.view(memory.address, 1)[0])))
        device.fill(memory, 0, 8, 8, stream)

    enqueue()
    assert seen == []
    stream.synchronize()
    graph = device.capture(stream, enqueue)
    assert seen == [7]
    graph.launch(stream)
    stream.synchronize()
    assert seen == [7, 7]


def test_a_handle_of_no_stream_is_caught(device: StrictDevice) -> None:
    with pytest.raises(Misuse, match="none of this device's"):
        device.enqueue(0, lambda: None)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((np.uint64(0), np.uint64(0), np.int32(1)), "3 arguments; expected 4"),
        ((np.int64(0), np.uint64(0), np.int32(1), np.float32(1)), "argument 0 is int64; expected uint64"),
        ((np.uint64(0), np.uint64(0), np.int64(1), np.float32(1)), "argument 2 is int64; expected int32"),
        ((np.uint64(0), np.uint64(0), np.int32(1), np.float64(1)), "argument 3 is float64; expected float32"),
    ],
)
def test_arguments_of_another_type_or_number_are_caught(device: StrictDevice, arguments: tuple, told: str) -> None:
    kernel = device.load(b"", ["scale"])["scale"]
    with pytest.raises(Misuse, match=told):
        device.launch(kernel, (1, 1, 1), (1, 1, 1), arguments, device.stream())


def test_kernels_of_the_package_take_the_types_of_their_source() -> None:
    with StrictDevice() as device, device.active():
        kernels = device.load(b"", ["gather", "flat_field"])
        arguments = [np.uint64(0)] + [np.int32(1)] * 9
        with pytest.raises(Misuse, match="gather: argument 3 is int32; expected int64"):
            device.launch(kernels["gather"], (1, 1, 1), (1, 1, 1), arguments, device.stream())


def test_an_address_in_an_argument_that_is_not_live_is_caught(device: StrictDevice) -> None:
    kernel, stream, memory = device.load(b"", ["scale"])["scale"], device.stream(), device.allocate(8)
    arguments = (np.uint64(memory.address), np.uint64(memory.address + 8), np.int32(8), np.float32(1))
    device.launch(kernel, (1, 1, 1), (8, 1, 1), arguments, stream)
    with pytest.raises(Misuse, match="8 bytes"):
        stream.synchronize()


def test_what_is_left_at_the_end_is_a_leak_on_request() -> None:
    def leave(what: Callable[[StrictDevice], object]) -> None:
        with StrictDevice(strict_leaks=True) as device, device.active():
            what(device)

    with pytest.raises(Misuse, match="StrictDeviceMemory of 16 bytes"):
        leave(lambda device: device.allocate(16))
    with pytest.raises(Misuse, match="StrictHostMemory of 16 bytes"):
        leave(lambda device: device.page_locked(16))
    with pytest.raises(Misuse, match="a graph"):
        leave(lambda device: device.capture(device.stream(), lambda: None))
    leave(lambda device: [device.allocate(16).free(), device.stream(), device.event()])


def test_work_that_nobody_waited_for_runs_at_the_end_and_what_is_wrong_with_it_is_told() -> None:
    def leave() -> None:
        with StrictDevice() as device, device.active():
            memory = device.allocate(8)
            device.fill(memory, 0, 8, 1, device.stream())
            memory.free()

    with pytest.raises(Misuse, match="is freed"):
        leave()


def without_waiting(device: StrictDevice) -> int:
    """A double buffer that forgets to wait: one stream reads what another writes."""
    with device, device.active():
        first, second, memory, host = device.stream(), device.stream(), device.allocate(4), device.page_locked(4)
        device.fill(memory, 0, 4, 1, first)
        first.synchronize()
        device.fill(memory, 0, 4, 2, first)
        device.download(host.array, memory, 0, second)
        first.synchronize()
        second.synchronize()
        return int(host.array[0])


def waiting(device: StrictDevice) -> int:
    with device, device.active():
        first, second, done = device.stream(), device.stream(), device.event()
        memory, host = device.allocate(4), device.page_locked(4)
        for value in (1, 2):
            device.fill(memory, 0, 4, value, first)
        done.record(first)
        second.wait(done)
        device.download(host.array, memory, 0, second)
        second.synchronize()
        return int(host.array[0])


def test_a_race_of_two_streams_shows_as_another_result_under_another_schedule() -> None:
    schedules = ("late", "early", *range(10))
    assert {without_waiting(with_schedule(schedule)) for schedule in schedules} == {1, 2}
    assert {waiting(with_schedule(schedule)) for schedule in schedules} == {2}


def test_what_nobody_waits_for_stays_undone_when_late(device: StrictDevice) -> None:
    first, second, memory = device.stream(), device.stream(), device.allocate(4)
    device.fill(memory, 0, 4, 1, first)
    second.synchronize()
    assert set(device.view(memory.address, 4)) == {FRESH}


def test_memory_runs_out_on_request_and_comes_back_when_freed(device: StrictDevice) -> None:
    device.out_of_memory_after(1000)
    first = device.allocate(600)
    with pytest.raises(SessionError, match="out of memory: wanted 500 bytes, 400 are free"):
        device.allocate(500)
    first.free()
    device.allocate(500)


def test_host_memory_is_the_gpus_memory_on_an_integrated_one_alone() -> None:
    with StrictDevice(integrated=True) as device, device.active():
        device.out_of_memory_after(1000)
        for allocate in (device.mapped, device.page_locked):
            with pytest.raises(SessionError, match="wanted 2000 bytes, 1000 are free"):
                allocate(2000)
    with StrictDevice(integrated=False) as device, device.active():
        device.out_of_memory_after(1000)
        assert len(device.mapped(2000).array) == len(device.page_locked(2000).array) == 2000


def test_a_lost_gpu_fails_every_call_as_pycudas_does_and_closes_without_another_error() -> None:
    with StrictDevice(strict_leaks=True) as device, device.active():
        stream, memory, host, mark = device.stream(), device.allocate(8), device.page_locked(8), device.event()
        graph = device.capture(stream, lambda: device.fill(memory, 0, 8, 1, stream))
        graph.launch(stream)
        device.lose_gpu()
        for call in (
            stream.synchronize,
            device.event,
            lambda: mark.record(stream),
            lambda: device.allocate(8),
            lambda: graph.launch(stream),
            lambda: device.active().__enter__(),
        ):
            with pytest.raises(SessionError, match=r"strict fake: .*the GPU is lost \(.*\); the process must be restarted"):
                call()
        for part in (memory, host):
            part.free()
        graph.close()


def test_a_gpu_is_lost_in_the_middle_of_work_on_request(device: StrictDevice) -> None:
    stream, memory = device.stream(), device.allocate(8)
    device.lose_gpu(after_operations=2)
    device.fill(memory, 0, 8, 1, stream)
    device.fill(memory, 0, 8, 1, stream)
    with pytest.raises(SessionError, match="the GPU is lost"):
        device.fill(memory, 0, 8, 1, stream)
    with pytest.raises(SessionError, match="the GPU is lost"):
        stream.synchronize()
