"""A segmenter whose engine is lost in the middle of a strip goes on: the same rows, no line lost.

The GPU is the strict device, its engines are ONNX Runtime's; so are those that stand by.
"""

from __future__ import annotations

import logging
from functools import partial
from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ort_on_device import Failing, Spares
from segmenting import (
    BAND,
    REDUCE,
    assert_same,
    engine,
    map_gate,
    rows_of,
    segmenter_of,
    strip_of,
)
from segmenting_on_device import fresh, on_device

from edge.errors import SessionError, StateLostError
from edge.scores import Reading
from edge.segmenters.cascade import CascadeSegmenter
from edge.segmenters.chunks import HostChunks
from edge.segmenters.maps import HostMaps
from edge.segmenters.state import RefilledFeed
from edge.segmenters.streaming import StreamingSegmenter
from edge.segmenters.streaming_gate import StreamingGate
from edge.sessions.standby import StandbyStream

LINES, WIDTH = 90, 21
LOOKS = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize(
    ("kind", "lines", "chunk_lines"),
    [("streaming", 450, 64), ("slabs", 120, 16), ("cascade of tiles", LINES, 16), ("cascade of cells", 150, 16)],
)
def test_whichever_call_the_gpu_refuses_the_rows_are_those_of_an_unbroken_strip(kind, lines, chunk_lines, caplog):
    """Every third call in turn, which over some chunks is every kind of call; and nothing is left on the GPU.

    The run begins so that lines come a line short of a chunk too early: then as many as can be are wanted again.
    """
    net, strip = engine("float"), strip_of(lines, WIDTH)
    expected = rows_of(segmenter_of(kind, net, WIDTH, chunk_lines), strip, first_line=11)
    caplog.set_level(logging.ERROR)
    for calls in count(step=3):
        caplog.clear()
        with on_device() as held:
            segmenter = held.segmenter(kind, net, WIDTH, chunk_lines)
            held.device.refuse_after(calls)
            assert_same(rows_of(segmenter, strip, first_line=11), expected)
            if not held.device.refused:
                break
            assert_told_once(caplog)
    assert calls > 20


@pytest.mark.parametrize("schedule", ["late", "early", 5])
@pytest.mark.parametrize("kind", ["streaming", "cascade of cells"])
def test_a_gpu_that_is_lost_after_any_number_of_operations_costs_no_line(kind, schedule):
    net, strip = engine("float"), strip_of(LINES, WIDTH)
    expected = rows_of(segmenter_of(kind, net, WIDTH, 16), strip)
    for operations in range(0, 200, 7):
        with on_device(schedule=schedule) as held:
            segmenter = held.segmenter(kind, net, WIDTH, 16)
            held.device.lose_gpu(operations + 1)
            assert_same(rows_of(segmenter, strip, [13]), expected)


@pytest.mark.parametrize("kind", ["slabs", "cascade of tiles"])
def test_an_engine_for_tiles_on_a_lost_gpu_is_asked_on_the_host(kind, caplog):
    net, strip = engine("float"), strip_of(LINES, WIDTH)
    expected = rows_of(segmenter_of(kind, net, WIDTH, 16), strip)
    for operations in range(0, 60, 3):
        caplog.clear()
        with on_device() as held:
            segmenter = held.segmenter(kind, net, WIDTH, 16)
            held.device.lose_gpu(operations + 1)
            assert_same(rows_of(segmenter, strip, [13]), expected)
            assert_same(rows_of(segmenter, strip, [50]), expected)
        assert_told_once(caplog)


def assert_told_once(caplog) -> None:
    """By whoever lost the GPU: the crops, the stream, the gate."""
    told = [record.message.split(":")[0] for record in caplog.records if "for good" in record.message]
    assert told
    assert len(set(told)) == len(told)


def stand_by(net, width: int, chunk_lines: int, calls: list[int]) -> StandbyStream:
    """Streams that fail after so many calls each, and one that does not."""
    sessions = [fresh(net, width, chunk_lines, which) for which in range(len(calls) + 1)]
    first, *spares = [*map(Failing, sessions, calls), sessions[-1]]
    return StandbyStream(Spares(*spares), first, None)


@pytest.mark.parametrize("name", ["exact", "float", "int8"])
@LOOKS
@given(
    lines=st.integers(1, 150),
    begin=st.sampled_from([0, 37]),
    portions=st.lists(st.integers(1, 70), min_size=1, max_size=4),
    chunk_lines=st.sampled_from([4, 20, 64]),
    calls=st.lists(st.integers(0, 30), min_size=1, max_size=3),
)
def test_a_stream_in_whose_place_another_one_stands_gives_the_rows_of_an_unbroken_one(
    name, lines, begin, portions, chunk_lines, calls
):
    net, strip = engine(name), strip_of(lines, WIDTH)
    session = stand_by(net, WIDTH, chunk_lines, calls)
    chunks = partial(HostChunks, feed=RefilledFeed)
    segmenter = StreamingSegmenter(
        session, width=WIDTH, halo=net.halo, stride=net.stride, reading=Reading("softmax"), chunks=chunks
    )
    expected = rows_of(segmenter_of("streaming", net, WIDTH, chunk_lines), strip, first_line=begin)
    assert_same(rows_of(segmenter, strip, portions, first_line=begin), expected)


@LOOKS
@given(
    lines=st.integers(1, 300),
    begin=st.sampled_from([0, 37]),
    portions=st.lists(st.integers(1, 70), min_size=1, max_size=4),
    chunk_lines=st.sampled_from([8, 16, 64]),
    calls=st.lists(st.integers(0, 30), min_size=1, max_size=3),
)
def test_a_gate_in_whose_place_another_one_stands_lets_the_same_cells_through(lines, begin, portions, chunk_lines, calls):
    strip, expected_net = strip_of(lines, WIDTH), engine("exact")

    def cascade(session, **changes) -> CascadeSegmenter:
        net = map_gate()
        geometry = {"reduce": REDUCE, "cell": net.cell, "halo": net.halo, "stride": net.stride}
        gate = StreamingGate(session, width=WIDTH, activation="sigmoid", head="logits", **geometry, **changes)
        common = {"width": WIDTH, "halo": expected_net.halo, "stride": expected_net.stride, "reading": Reading("softmax")}
        return CascadeSegmenter(gate, expected_net.session(), threshold=0.99, band_lines=BAND, batch=3, **common)

    reduced, step = -(-WIDTH // REDUCE), chunk_lines // REDUCE
    unbroken = rows_of(cascade(map_gate().streaming(reduced, step)), strip, first_line=begin)
    broken = cascade(stand_by(map_gate(), reduced, step, calls), maps=partial(HostMaps, feed=RefilledFeed))
    assert_same(rows_of(broken, strip, portions, first_line=begin), unbroken)


def test_without_another_engine_the_failure_comes_out():
    net = engine("exact")
    session = StandbyStream(Spares(), Failing(fresh(net, WIDTH, 20), 3), None)
    segmenter = StreamingSegmenter(
        session,
        width=WIDTH,
        halo=net.halo,
        stride=net.stride,
        reading=Reading("softmax"),
        chunks=partial(HostChunks, feed=RefilledFeed),
    )
    with pytest.raises(SessionError, match="failed on request") as raised:
        rows_of(segmenter, strip_of(150, WIDTH))
    assert not isinstance(raised.value, StateLostError)


def test_a_window_holds_the_lines_before_only_where_they_may_be_wanted_again():
    net = engine("exact")
    common = {"width": WIDTH, "halo": net.halo, "stride": net.stride, "reading": Reading("softmax")}
    ordinary = StreamingSegmenter(net.streaming(WIDTH, 20), **common)
    refilled = StreamingSegmenter(net.streaming(WIDTH, 20), chunks=partial(HostChunks, feed=RefilledFeed), **common)
    lag, halo = net.streamed().lag_lines, net.halo
    assert ordinary._feed.window.capacity <= halo + lag + 4 * 20
    assert refilled._feed.window.capacity - ordinary._feed.window.capacity == -(-(ordinary._delay) // 20) * 20
