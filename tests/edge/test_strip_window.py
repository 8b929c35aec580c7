"""The strip's last lines on a GPU: what kernels find there is what the window of the host cuts."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from segmenting_on_device import NO_CUBIN, CountingDevice

from edge.cuda.kernels import StripKernels
from edge.cuda.strip import DeviceStrip
from edge.errors import SessionError
from edge.window import StripWindow

schedules = st.one_of(st.sampled_from(["late", "early"]), st.integers(0, 99))


def run(lines: int, width: int) -> np.ndarray:
    return np.random.default_rng(lines * 1000 + width).integers(0, 256, (lines, width), np.uint8)


def on(device: CountingDevice) -> DeviceStrip:
    with device.active():
        return DeviceStrip(device, StripKernels(device, NO_CUBIN))


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 9),
    capacity=st.integers(3, 30),
    begin=st.sampled_from([0, 5, 1000]),
    portions=st.lists(st.integers(0, 12), min_size=1, max_size=25),
    reach=st.integers(1, 12),
    margin=st.integers(0, 4),
    integrated=st.booleans(),
    schedule=schedules,
)
def test_what_is_gathered_of_the_newest_lines_is_what_is_cut(
    width, capacity, begin, portions, reach, margin, integrated, schedule
):
    """Rows are overwritten many times while nothing waits for the kernels that read them."""
    strip = run(sum(min(portion, capacity) for portion in portions) + 1, width)
    with CountingDevice(integrated=integrated, schedule=schedule) as device:
        held = on(device)
        window, host = held.window(width, capacity), StripWindow(width, capacity)
        window.start(begin)
        host.start(begin)
        line, columns, reach = 0, width + 2 * margin, min(reach, capacity)
        expected = []
        with device.active():
            stream, out = device.stream(), device.allocate(len(portions) * reach * columns)
            corners = device.page_locked(16 * len(portions))
            places, there = corners.array.view(np.int64).reshape(-1, 2), device.allocate(corners.array.nbytes)
        for each, portion in enumerate(portions):
            lines = strip[line : line + min(portion, capacity)]
            window.append(lines)
            host.append(lines)
            line += len(lines)
            first = begin + line - reach
            if not host.can_cut(first, first + reach):
                continue
            cut = host.cut(first, first + reach, -margin, width + margin)
            np.testing.assert_array_equal(window.cut(first, first + reach, -margin, width + margin), cut)
            expected.append((each, cut))
            places[each] = (first, -margin)
            with device.active(), held.read_by(stream, first, first + reach) as ring:
                device.upload(there, 16 * each, places[each], stream)
                target = out.address + each * reach * columns
                held.kernels.gather(ring, there.address + 16 * each, 1, reach, columns, target, stream)
        with device.active():
            stream.synchronize()
            for each, cut in expected:
                found = device.view(out.address + each * reach * columns, cut.size).reshape(cut.shape)
                np.testing.assert_array_equal(found, cut)
            for memory in (out, there, corners):
                memory.free()
        assert sum(nbytes for memory, nbytes in device.up if memory is not there) == (0 if integrated else line * width)
        held.close()


def test_a_new_run_does_not_disturb_who_still_reads_the_last_one():
    strip = run(20, 4)
    with CountingDevice() as device:
        held = on(device)
        window = held.window(4, 8)
        with device.active():
            stream, out = device.stream(), device.allocate(8 * 4)
        window.start(0)
        window.append(strip[:8])
        with device.active(), held.read_by(stream, 0, 8) as ring:
            held.kernels.reduce(ring, 0, 0, 1, 8, 4, out.address, stream)
        window.start(3)
        window.append(strip[8:16])
        with device.active():
            stream.synchronize()
            np.testing.assert_array_equal(device.view(out.address, 32).reshape(8, 4), strip[:8])
            out.free()
        held.close()


def test_lines_that_are_not_there_are_refused_as_by_the_host():
    with CountingDevice() as device:
        held = on(device)
        window = held.window(4, 8)
        with device.active():
            stream = device.stream()
        window.start(0)
        for portion in np.split(run(24, 4), 3):
            window.append(portion)
        for first, stop, told in ((20, 26, "expected later"), (10, 18, "holds the last 8")):
            with pytest.raises(ValueError, match=told):
                window.cut(first, stop, 0, 4)
            with device.active(), pytest.raises(ValueError, match=told), held.read_by(stream, first, stop):
                pass
        held.close()


def test_lines_that_did_not_go_up_are_still_on_the_host():
    strip = run(8, 4)
    with CountingDevice() as device:
        held = on(device)
        window = held.window(4, 8)
        window.start(0)
        device.refuse_after(0)
        window.append(strip[:5])
        window.append(strip[5:])
        np.testing.assert_array_equal(window.cut(0, 8, 0, 4), strip)
        with device.active():
            stream = device.stream()
            with pytest.raises(SessionError, match="did not reach the GPU: refused on request"), held.read_by(stream, 0, 8):
                pass
        held.close()


def test_its_memory_is_given_back_when_it_is_closed_and_when_nobody_has_it_any_more():
    with CountingDevice() as device:  # which counts what is left
        closed, dropped = on(device), on(device)
        for strip in (closed, dropped):
            strip.window(40, 8)
            strip.both_sides(100)
            strip.page_locked(100)
        closed.close()
        closed.close()
        del dropped, strip
        gc.collect()


def test_single_lines_take_no_event_each():
    events = []

    class Watching(CountingDevice):
        def event(self):
            events.append(1)
            return super().event()

    with Watching() as device:
        held = on(device)
        window = held.window(4, 64)
        window.start(0)
        for line in run(500, 4):
            window.append(line[None])
        assert len(events) < 20
        held.close()
