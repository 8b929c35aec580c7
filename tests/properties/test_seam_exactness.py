"""What is found never depends on how the strip was cut: into frames, chunks, slabs, batches, or by a restart.

Real engines in real ONNX Runtime sessions, of `segmenting`.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from segmenting import (
    CASCADES,
    CHUNKS,
    KINDS,
    TILED,
    assert_dense,
    assert_same,
    engine,
    joined,
    judgement,
    rows_of,
    segmenter_of,
    strip_of,
    whole_scores,
)

from edge.errors import ConfigError
from edge.scores import Reading
from edge.segmenters import Segmenter
from edge.segmenters.slabs import SlabSegmenter
from edge.segmenters.streaming import StreamingSegmenter

LOOKS = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])

kinds = st.sampled_from(KINDS)
lengths = st.integers(1, 150)
widths = st.integers(1, 45)
cuts = st.lists(st.integers(1, 70), min_size=1, max_size=6)


@pytest.mark.parametrize("name", ["exact", "float", "int8"])
@LOOKS
@given(kind=kinds, lines=lengths, width=widths, portions=cuts, chunk_lines=st.sampled_from(CHUNKS))
@example(kind="streaming", lines=150, width=45, portions=[1], chunk_lines=64)
@example(kind="cascade of tiles", lines=150, width=45, portions=[1], chunk_lines=64)
@example(kind="cascade of cells", lines=150, width=45, portions=[1], chunk_lines=64)
@example(kind="core tiles", lines=150, width=45, portions=[1], chunk_lines=64)
@example(kind="union of tiles", lines=150, width=45, portions=[70, 3], chunk_lines=64)
@example(kind="mean of tiles", lines=150, width=45, portions=[1], chunk_lines=64)
@example(kind="gated tiles", lines=150, width=45, portions=[1], chunk_lines=64)
@example(kind="classified tiles", lines=150, width=45, portions=[1], chunk_lines=64)
def test_the_same_rows_however_the_lines_arrive(name, kind, lines, width, portions, chunk_lines):
    strip = strip_of(lines, width)
    segmenter = segmenter_of(kind, engine(name), width, chunk_lines)
    assert_same(rows_of(segmenter, strip, portions), rows_of(segmenter, strip))


@pytest.mark.parametrize("name", ["exact", "float", "int8"])
@LOOKS
@given(kind=st.sampled_from(["streaming", "slabs"]), lines=lengths, width=widths, chunk_lines=st.sampled_from(CHUNKS))
@example(kind="streaming", lines=1, width=1, chunk_lines=64)
@example(kind="slabs", lines=1, width=1, chunk_lines=4)
@example(kind="streaming", lines=150, width=45, chunk_lines=4)
def test_dense_inspection_equals_one_inference_over_the_whole_run(name, kind, lines, width, chunk_lines):
    net, strip = engine(name), strip_of(lines, width)
    mask, confidence = joined(rows_of(segmenter_of(kind, net, width, chunk_lines), strip), 0, lines)
    assert_dense(net, mask, confidence, whole_scores(net, strip))


@LOOKS
@given(
    lines=lengths,
    width=widths,
    first_line=st.integers(0, 200),
    chunks=st.tuples(st.sampled_from(CHUNKS), st.sampled_from(CHUNKS)),
)
def test_slabs_and_streaming_find_the_same_wherever_the_run_begins(lines, width, first_line, chunks):
    net, strip = engine("exact"), strip_of(lines, width)
    streamed, slabbed = (
        joined(rows_of(segmenter_of(kind, net, width, chunk), strip, first_line=first_line), first_line, lines)
        for kind, chunk in zip(("streaming", "slabs"), chunks, strict=True)
    )
    np.testing.assert_array_equal(streamed, slabbed)
    assert_dense(net, *streamed, whole_scores(net, strip, first_line))


@pytest.mark.parametrize("name", ["exact", "float", "int8"])
@LOOKS
@given(
    kind=st.sampled_from([*CASCADES, *TILED]),
    lines=lengths,
    width=widths,
    batches=st.tuples(st.integers(1, 6), st.integers(1, 6)),
)
def test_tiles_are_judged_the_same_at_any_batch(name, kind, lines, width, batches):
    one, other = (
        rows_of(segmenter_of(kind, engine(name), width, batch=b, threshold=0.5), strip_of(lines, width)) for b in batches
    )
    assert_same(one, other)


@pytest.mark.parametrize("name", ["exact", "float", "int8"])
@LOOKS
@given(kind=kinds, lines=lengths, width=widths, begin=st.sampled_from([0, 0, 37]), portions=cuts, data=st.data())
def test_a_restart_with_context_gives_the_bits_of_an_unbroken_run(name, kind, lines, width, begin, portions, data):
    strip = strip_of(lines, width)
    segmenter = segmenter_of(kind, engine(name), width)
    unbroken = rows_of(segmenter, strip, first_line=begin)
    mask, confidence = joined(unbroken, begin, lines)
    again = data.draw(st.integers(0, lines - 1), label="restart at")
    wanted = segmenter.context_lines(begin + again)
    assert wanted <= begin + again
    context = strip[max(0, again - wanted) : again]
    rows = rows_of(segmenter, strip[again:], portions, first_line=begin + again, context=context)
    resumed = joined(rows, begin + again, lines - again)
    np.testing.assert_array_equal(resumed, (mask[again:], confidence[again:]))
    assert judgement(rows) == judgement(unbroken)[again:]


@pytest.mark.parametrize("kind", [*CASCADES, *TILED])
def test_a_restart_anywhere_before_the_end_of_a_short_run_gives_the_same(kind):
    """The last tile row is filled up with lines reflected from far behind: all of them have to be there again."""
    strip = strip_of(60, 20)
    for lines in range(30, 61, 3):
        segmenter = segmenter_of(kind, engine("exact"), 20, threshold=0.5)
        unbroken = rows_of(segmenter, strip[:lines])
        mask, confidence = joined(unbroken, 0, lines)
        for again in range(lines - 28, lines):
            context = strip[again - segmenter.context_lines(again) : again]
            rows = rows_of(segmenter, strip[again:lines], first_line=again, context=context)
            np.testing.assert_array_equal(joined(rows, again, lines - again), (mask[again:], confidence[again:]))
            assert judgement(rows) == judgement(unbroken)[again:]


def test_a_run_that_begins_after_lost_lines_keeps_the_strip_s_tiles():
    strip = strip_of(150, 45)
    for kind in TILED:
        segmenter = segmenter_of(kind, engine("exact"), 45, threshold=0.5)
        mask, _ = joined(rows_of(segmenter, strip), 0, 150)
        _, (tile, step), _ = TILED[kind]
        begin = 5 * step
        later, _ = joined(rows_of(segmenter, strip[begin:], first_line=begin), begin, 150 - begin)
        # beyond the tiles that reach over the gap nothing has changed
        np.testing.assert_array_equal(later[tile:], mask[begin + tile :])
        shifted, _ = joined(rows_of(segmenter, strip[begin:], first_line=begin + 1), begin + 1, 150 - begin)
        assert (shifted[tile:] != mask[begin + tile :]).any()


def test_more_context_than_wanted_changes_nothing():
    strip = strip_of(150, 20)
    for kind in KINDS:
        segmenter = segmenter_of(kind, engine("exact"), 20)
        wanted = segmenter.context_lines(130)
        assert 0 < wanted < 130
        enough = rows_of(segmenter, strip[130:], first_line=130, context=strip[130 - wanted : 130])
        assert_same(rows_of(segmenter, strip[130:], first_line=130, context=strip[:130]), enough)


@LOOKS
@given(kind=kinds, width=st.integers(1, 20), begin=st.integers(0, 50), chunk_lines=st.sampled_from(CHUNKS))
def test_a_row_is_out_after_its_lag_at_the_latest(kind, width, begin, chunk_lines):
    strip = strip_of(150, width)
    segmenter = segmenter_of(kind, engine("exact"), width, chunk_lines)
    segmenter.start(begin)
    out = begin
    for line in range(len(strip)):
        out = max([out, *(part.line_stop for part in segmenter.push(strip[line : line + 1]))])
        assert out >= begin + line + 1 - segmenter.lag_lines


@pytest.mark.parametrize("chunk_lines", [16, 24, 64])
def test_streamed_rows_end_at_a_multiple_of_the_chunk_or_less_than_a_stride_beyond_it(chunk_lines):
    net = engine("exact")
    rows = segmenter_of("streaming", net, 20, chunk_lines)
    rows.start(0)
    stops = [part.line_stop for part in rows.push(strip_of(6 * chunk_lines, 20))]
    assert len(stops) > 2
    assert max(stop % chunk_lines for stop in stops) < net.stride


def test_a_run_without_lines_has_no_rows():
    for kind in KINDS:
        segmenter = segmenter_of(kind, engine("exact"), 20)
        segmenter.start(50, strip_of(50, 20))
        assert segmenter.flush() == []


def test_lines_before_a_start_are_refused():
    for kind in KINDS:
        with pytest.raises(ValueError, match="none after the run's end"):
            segmenter_of(kind, engine("exact"), 20).push(strip_of(4, 20))


def test_sizes_that_the_stride_does_not_divide_are_refused():
    net = engine("exact")
    common = {"width": 20, "stride": 8, "reading": Reading("softmax")}
    with pytest.raises(ConfigError, match="halo: got 20; expected a multiple of the engine's stride 8"):
        StreamingSegmenter(net.streaming(20, 8), halo=20, **common)
    with pytest.raises(ConfigError, match="chunk_lines: got 12; expected a multiple of the engine's stride 8"):
        SlabSegmenter(net.session(), chunk_lines=12, halo=16, **common)


@pytest.mark.parametrize("kind", KINDS)
def test_every_segmenter_keeps_the_contract(kind):
    assert isinstance(segmenter_of(kind, engine("exact"), 20), Segmenter)


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(lines=st.integers(1, 200), width=st.integers(1, 60), chunk_lines=st.sampled_from([16, 64]))
def test_the_reference_network_streams(lines, width, chunk_lines):
    net, strip = engine("steel"), strip_of(lines, width)
    assert net.halo == 112
    mask, confidence = joined(rows_of(segmenter_of("streaming", net, width, chunk_lines), strip, [37]), 0, lines)
    assert_dense(net, mask, confidence, whole_scores(net, strip))
