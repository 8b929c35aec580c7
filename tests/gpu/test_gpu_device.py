"""Memory, order, events, graphs and threads on the device itself: large, often, and at once, where fakes prove little."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
from stand import SEAMS, Absent, Stand, skip_without_gpu

from edge.cuda.device import CudaDevice, HostMemory, Stream
from edge.errors import SessionError
from edge.sessions.gpu import find_gpu

pytestmark = pytest.mark.gpu
skip_without_gpu()


def noise(nbytes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8)


@pytest.mark.parametrize("seam", SEAMS)
def test_the_device_is_reached_through(seam: str, stand: Stand):
    try:
        with stand.opener(seam)() as device:
            assert device.properties.memory_bytes > 0
    except Absent as absent:
        pytest.skip(str(absent))


def test_the_device_says_what_it_is(device: CudaDevice, stand: Stand):
    properties = device.properties
    major, minor = map(int, properties.compute.split("."))
    assert (major, minor) >= (5, 0)
    assert properties.name
    assert properties.memory_bytes > 1 << 20
    assert properties.multiprocessors > 0
    if stand.real:
        gpu = find_gpu()
        assert (properties.name, properties.compute) == (gpu.name, gpu.compute)


@pytest.mark.parametrize("nbytes", [1, 255, 4097, (1 << 20) + 3, 64 << 20])
def test_bytes_come_back_as_they_went_and_their_neighbours_are_left_alone(device, stand, nbytes):
    nbytes = stand.size(nbytes)
    memory, host, stream = device.allocate(nbytes + 600), device.page_locked(nbytes + 600), device.stream()
    assert memory.address % 256 == 0
    device.fill(memory, 0, nbytes + 600, 77, stream)
    host.array[300 : 300 + nbytes] = noise(nbytes)
    device.upload(memory, 300, host.array[300 : 300 + nbytes], stream)
    stream.synchronize()
    host.array[:] = 0
    device.download(host.array, memory, 0, stream)
    stream.synchronize()
    np.testing.assert_array_equal(host.array[300 : 300 + nbytes], noise(nbytes))
    assert (host.array[:300] == 77).all()
    assert (host.array[300 + nbytes :] == 77).all()


def test_work_on_a_stream_is_done_in_its_order(device, stand):
    """Without order the downloads, being small, would overtake the fills."""
    size, turns = stand.size(256 << 20), 20
    memory, host, stream = device.allocate(size), device.page_locked(turns), device.stream()
    for turn in range(turns):
        device.fill(memory, 0, size, turn + 1, stream)
        device.download(host.array[turn : turn + 1], memory, size - 1, stream)
    stream.synchronize()
    assert host.array.tolist() == list(range(1, turns + 1))


def test_an_event_lets_another_stream_wait(device, stand):
    size, turns = stand.size(64 << 20), 20
    memory, host = device.allocate(size), device.page_locked(turns)
    writing, reading, written, read = device.stream(), device.stream(), device.event(), device.event()
    for turn in range(turns):
        device.fill(memory, 0, size, turn + 1, writing)
        written.record(writing)
        reading.wait(written)
        device.download(host.array[turn : turn + 1], memory, size - 1, reading)
        read.record(reading)
        writing.wait(read)
    reading.synchronize()
    assert host.array.tolist() == list(range(1, turns + 1))


def test_the_host_waits_for_an_event_and_not_for_what_comes_after_it(device, stand):
    size = stand.size(64 << 20)
    memory, host, stream, half_way = device.allocate(size), device.page_locked(2), device.stream(), device.event()
    device.fill(memory, 0, size, 5, stream)
    device.download(host.array[:1], memory, size - 1, stream)
    half_way.record(stream)
    device.fill(memory, 0, size, 6, stream)
    device.download(host.array[1:], memory, size - 1, stream)
    half_way.synchronize()
    assert host.array[0] == 5
    stream.synchronize()
    assert host.array[1] == 6


def test_more_work_takes_longer_between_two_events(device, stand):
    if not stand.real:
        pytest.skip("no GPU to take time")
    memory, stream = device.allocate(256 << 20), device.stream()
    marks = [device.event() for _ in range(3)]
    device.fill(memory, 0, 256 << 20, 1, stream)
    marks[0].record(stream)
    device.fill(memory, 0, 1 << 10, 1, stream)
    marks[1].record(stream)
    for _ in range(20):
        device.fill(memory, 0, 256 << 20, 1, stream)
    marks[2].record(stream)
    stream.synchronize()
    assert marks[2].elapsed_ms(marks[1]) > marks[1].elapsed_ms(marks[0]) > 0


def chain(device: CudaDevice, size: int, stream: Stream) -> tuple[HostMemory, HostMemory, callable]:
    """Work whose result depends on every step of it: up, a part overwritten, down."""
    memory, source, target = device.allocate(size), device.page_locked(size), device.page_locked(size)

    def enqueue() -> None:
        device.upload(memory, 0, source.array, stream)
        device.fill(memory, size // 2, size // 4, 9, stream)
        device.download(target.array, memory, 0, stream)

    return source, target, enqueue


def after_chain(source: np.ndarray) -> np.ndarray:
    changed, size = source.copy(), len(source)
    changed[size // 2 : size // 2 + size // 4] = 9
    return changed


def test_a_recorded_graph_replays_with_the_bytes_that_are_there_now(device, stand):
    size, stream = stand.size(8 << 20), device.stream()
    source, target, enqueue = chain(device, size, stream)
    source.array[:] = noise(size)
    graph = device.capture(stream, enqueue)
    stream.synchronize()
    assert not target.array.any(), "recording ran the work"
    for turn in range(30):
        source.array[:] = noise(size, turn)
        graph.launch(stream)
        stream.synchronize()
        np.testing.assert_array_equal(target.array, after_chain(source.array))
    graph.close()
    graph.close()


def test_two_graphs_take_turns_on_one_stream(device, stand):
    size, stream = stand.size(1 << 20), device.stream()
    chains = [chain(device, size, stream) for _ in range(2)]
    graphs = [device.capture(stream, enqueue) for _, _, enqueue in chains]
    for seed, (source, _, _) in enumerate(chains):
        source.array[:] = noise(size, seed)
    for _ in range(20):
        for graph in graphs:
            graph.launch(stream)
    stream.synchronize()
    for source, target, _ in chains:
        np.testing.assert_array_equal(target.array, after_chain(source.array))


def test_a_recording_that_fails_leaves_its_stream_usable(device):
    stream = device.stream()
    source, target, enqueue = chain(device, 4096, stream)

    def fail() -> None:
        enqueue()
        raise KeyError("a fault of the caller's")

    for _ in range(3):
        with pytest.raises(KeyError, match="a fault of the caller's"):
            device.capture(stream, fail)
    source.array[:] = noise(4096)
    enqueue()
    stream.synchronize()
    np.testing.assert_array_equal(target.array, after_chain(source.array))
    device.capture(stream, enqueue).launch(stream)
    stream.synchronize()


def test_more_memory_than_there_is_is_refused_with_the_bytes_and_the_device_goes_on(device):
    wanted = 4 * device.properties.memory_bytes
    for _ in range(3):
        with pytest.raises(SessionError, match=rf"{wanted}"):
            device.allocate(wanted)
    memory, host, stream = device.allocate(4096), device.page_locked(4096), device.stream()
    device.fill(memory, 0, 4096, 3, stream)
    device.download(host.array, memory, 0, stream)
    stream.synchronize()
    assert (host.array == 3).all()


def test_freed_memory_is_there_again(device):
    """Eight times an eighth of the memory, and eight times more: only what was freed makes room for it."""
    eighth = device.properties.memory_bytes // 8
    for _ in range(16):
        memory = device.allocate(eighth)
        memory.free()
        memory.free()


def test_two_threads_at_once_get_each_its_own_bytes(device, stand):
    """A stream, memory and graph each; both captured and plain work, while the other one captures and allocates."""
    size, turns, faults = stand.size(1 << 20), stand.turns(200), []
    both = threading.Barrier(2)

    def work(seed: int) -> None:
        try:
            with device.active():
                stream = device.stream()
                source, target, enqueue = chain(device, size, stream)
                both.wait(60)
                for turn in range(turns):
                    source.array[:] = noise(size, seed * turns + turn)
                    if turn % 3:
                        graph = device.capture(stream, enqueue)
                        graph.launch(stream)
                        stream.synchronize()
                        graph.close()
                    else:
                        enqueue()
                        stream.synchronize()
                    np.testing.assert_array_equal(target.array, after_chain(source.array))
                    device.allocate(size).free()
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults, faults


def test_a_device_opened_again_and_again_gives_all_back(opener, stand):
    """Each time a quarter of the memory is left to the device's end: five times only fit if it is freed there."""
    for _ in range(5):
        with opener() as device, device.active():
            memory, stream = device.allocate(device.properties.memory_bytes // 4), device.stream()
            device.fill(memory, 0, memory.nbytes, 1, stream)
            stream.synchronize()


def test_memory_made_on_one_thread_serves_another(device):
    memory, host, stream = device.allocate(4096), device.page_locked(4096), device.stream()
    host.array[:] = noise(4096)
    faults: list[BaseException] = []

    def use() -> None:
        try:
            with device.active():
                device.upload(memory, 0, host.array, stream)
                stream.synchronize()
        except BaseException as error:
            faults.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert not faults
    host.array[:] = 0
    device.download(host.array, memory, 0, stream)
    stream.synchronize()
    np.testing.assert_array_equal(host.array, noise(4096))


def test_copies_to_and_fro_and_fills_at_once_do_not_touch_each_other(device, stand):
    """Six streams at work on neighbouring memory, in two orders."""
    size, count = stand.size(4 << 20), 6
    memory = device.allocate(size * count)
    hosts, streams = [device.page_locked(size) for _ in range(count)], [device.stream() for _ in range(count)]
    for order, turn in itertools.product((1, -1), range(stand.turns(10))):
        for index in range(count)[::order]:
            hosts[index].array[:] = noise(size, index + turn)
            device.upload(memory, index * size, hosts[index].array, streams[index])
            device.fill(memory, index * size, 16, index, streams[index])
        for stream in streams:
            stream.synchronize()
        for index in range(count):
            device.download(hosts[index].array, memory, index * size, streams[index])
        for index in range(count)[::order]:
            streams[index].synchronize()
            assert (hosts[index].array[:16] == index).all()
            np.testing.assert_array_equal(hosts[index].array[16:], noise(size, index + turn)[16:])
