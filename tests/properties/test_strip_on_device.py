"""A strip kept on a GPU is found to show what one on the host does, every bit, and only masks come back.

Real engines in real ONNX Runtime sessions behind both; the GPU is the strict device, its kernels their numpy twins.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from segmenting import CHUNKS, assert_same, engine, rows_of, segmenter_of, strip_of
from segmenting_on_device import HELD, on_device

LOOKS = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
CORNER = 16

kinds = st.sampled_from(HELD)
schedules = st.one_of(st.sampled_from(["late", "early"]), st.integers(0, 99))
lengths = st.integers(1, 130)
widths = st.integers(1, 45)
cuts = st.lists(st.integers(1, 70), min_size=1, max_size=6)


@pytest.mark.parametrize("name", ["exact", "float", "int8"])
@LOOKS
@given(
    kind=kinds,
    lines=lengths,
    width=widths,
    portions=cuts,
    chunk_lines=st.sampled_from(CHUNKS),
    batch=st.integers(1, 6),
    begin=st.sampled_from([0, 37]),
    integrated=st.booleans(),
    schedule=schedules,
)
@example(kind="streaming", lines=130, width=45, portions=[1], chunk_lines=64, batch=1, begin=0, integrated=False, schedule="late")
@example(kind="slabs", lines=130, width=45, portions=[70, 3], chunk_lines=8, batch=1, begin=0, integrated=False, schedule="late")
@example(
    kind="cascade of tiles",
    lines=130,
    width=45,
    portions=[1],
    chunk_lines=64,
    batch=2,
    begin=37,
    integrated=False,
    schedule="late",
)
@example(
    kind="cascade of cells",
    lines=130,
    width=45,
    portions=[1],
    chunk_lines=64,
    batch=2,
    begin=37,
    integrated=True,
    schedule="late",
)
def test_the_same_rows_as_on_the_host(name, kind, lines, width, portions, chunk_lines, batch, begin, integrated, schedule):
    net, strip = engine(name), strip_of(lines, width)
    expected = rows_of(segmenter_of(kind, net, width, chunk_lines, batch), strip, first_line=begin)
    with on_device(integrated=integrated, schedule=schedule) as held:
        segmenter = held.segmenter(kind, net, width, chunk_lines, batch)
        assert_same(rows_of(segmenter, strip, portions, first_line=begin), expected)
        assert not any(session.on_host for session in held.sessions)


@LOOKS
@given(kind=kinds, lines=lengths, width=widths, portions=cuts, schedule=schedules, data=st.data())
def test_a_restart_with_context_gives_the_rows_of_the_host(kind, lines, width, portions, schedule, data):
    net, strip = engine("float"), strip_of(lines, width)
    again = data.draw(st.integers(0, lines - 1), label="restart at")
    host = segmenter_of(kind, net, width)
    context = strip[max(0, again - host.context_lines(again)) : again]
    with on_device(schedule=schedule) as held:
        segmenter = held.segmenter(kind, net, width)
        rows_of(segmenter, strip, portions)
        resumed = rows_of(segmenter, strip[again:], portions, again, context)
    assert_same(resumed, rows_of(host, strip[again:], portions, again, context))


@pytest.mark.parametrize("kind", HELD)
def test_every_line_goes_up_once_and_only_masks_come_down_and_the_scores_of_a_gate(kind):
    strip = np.full((300, 45), 100, np.uint8)
    strip[130:134, 20:24] = 255
    with on_device() as held:
        rows = rows_of(held.segmenter(kind, engine("exact"), 45), strip, [37, 1])
        ring = max((memory for memory, _ in held.device.up), key=lambda memory: memory.nbytes)
        assert sum(nbytes for memory, nbytes in held.device.up if memory is ring) == strip.size
        assert max(nbytes for memory, nbytes in held.device.up if memory is not ring) <= 4 * CORNER
        segmentation, *gates = (session.scores for session in held.sessions)
        assert not any(memory in segmentation for memory, _ in held.device.down)
        masks = sum(nbytes for memory, nbytes in held.device.down if not any(memory in gate for gate in gates))
        # of the cascade the rectangle around the bright place alone
        assert masks == 2 * strip.size if kind in ("streaming", "slabs") else 0 < masks < strip.size / 2
        assert any(part.mask.any() for part in rows)


@pytest.mark.parametrize("kind", HELD)
def test_on_an_integrated_gpu_nothing_is_copied_but_the_scores_of_a_gate(kind):
    with on_device(integrated=True) as held:
        rows_of(held.segmenter(kind, engine("exact"), 45), strip_of(300, 45), [37, 1])
        assert held.device.up == []
        gates = [session.scores for session in held.sessions[1:]]
        assert all(any(memory in gate for gate in gates) for memory, _ in held.device.down)
        assert bool(held.device.down) == bool(gates)


@pytest.mark.parametrize("kind", HELD)
def test_a_run_after_another_one_begins_anew(kind):
    with on_device(schedule=1) as held:
        segmenter, host = held.segmenter(kind, engine("exact"), 45), segmenter_of(kind, engine("exact"), 45)
        for lines, begin in ((130, 0), (70, 501), (130, 8)):
            strip = strip_of(lines, 45)
            assert_same(rows_of(segmenter, strip, [29], begin), rows_of(host, strip, first_line=begin))
