"""The cascade: the gate's cells are known by arithmetic, its rectangles by `Cover`, its masks by one inference over the run."""

from __future__ import annotations

import itertools
from functools import lru_cache

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from segmenting import (
    BAND,
    CASCADES,
    CELL,
    CORE,
    REDUCE,
    Engine,
    assert_dense,
    assert_same,
    engine,
    gate,
    joined,
    judgement,
    map_gate,
    rows_of,
    segmenter_of,
    streaming_gate,
    strip_of,
    tile_row_gate,
    whole_scores,
)

from edge.errors import ConfigError
from edge.manifest import EngineInput, Streaming
from edge.scores import Reading
from edge.segmenters.cascade import CascadeSegmenter
from edge.segmenters.cover import Cover, side_lengths
from edge.segmenters.gates import Gate
from edge.segmenters.streaming_gate import StreamingGate, gate_columns
from edge.segmenters.tile_row_gate import TileRowGate
from edge.sessions.ort import OrtSession

LOOKS = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SIDES = {"cascade of tiles": CORE, "cascade of cells": CELL}
kinds = st.sampled_from(CASCADES)


def brightest(kind: str, strip: np.ndarray, first_line: int) -> np.ndarray:
    """Grey of the brightest reduced pixel that each cell of the run looks at, rows of cells from the one that holds its begin."""
    lines, width = strip.shape
    side, reach = SIDES[kind], 0 if kind == "cascade of tiles" else 6
    top, bottom = first_line % side + 2 * CELL, -(first_line + lines) % side + 2 * CELL
    # gates look beyond the run and the strip's sides at what is reflected there, hence at their halo of whole cells
    padded = np.pad(strip, ((top, bottom), (2 * CELL, -width % side + 2 * CELL)), mode="reflect").astype(np.float64)
    reduced = np.rint(padded.reshape(padded.shape[0] // REDUCE, REDUCE, -1, REDUCE).mean(axis=(1, 3)) + 1e-9)
    if reach:
        reduced = cv2.dilate(reduced, np.ones((3, 3)))
    margin, size = 2 * CELL // REDUCE, side // REDUCE
    rows, columns = (reduced.shape[0] - 2 * margin) // size, (reduced.shape[1] - 2 * margin) // size
    found = np.empty((rows, columns))
    around = size if reach else 0
    for row, column in np.ndindex(rows, columns):
        first, left = margin + row * size - around, margin + column * size - around
        found[row, column] = reduced[first : first + size + 2 * around, left : left + size + 2 * around].max()
    return found


def scores_of(brightness: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp((135 - brightness) / 16))


def covered(kind: str, net: Engine, alarmed: np.ndarray, strip: np.ndarray, first_line: int) -> np.ndarray:
    """Pixels of the run that lie in a rectangle; alarmed: rows of cells from the one that holds the run's begin."""
    lines, width = strip.shape
    side, rows = SIDES[kind], BAND // SIDES[kind]
    before = first_line % BAND // side
    whole = np.pad(alarmed, ((before, -(before + len(alarmed)) % rows), (0, 0)))
    cover = Cover(
        rows,
        alarmed.shape[1],
        cell_lines=side,
        cell_columns=side,
        halo=net.halo,
        heights=side_lengths(side, rows, rows),
        widths=side_lengths(side, 2 * rows, alarmed.shape[1]),
    )
    held = np.zeros((len(whole) * side, whole.shape[1] * side), bool)
    for band in range(len(whole) // rows):
        for each in cover.rectangles(whole[band * rows : (band + 1) * rows]):
            line, column = band * BAND + each.row * side, each.column * side
            held[line : line + each.rows * side, column : column + each.columns * side] = True
    top = first_line % BAND
    return held[top : top + lines, :width]


class Recorded:
    """A session that notes what it was asked."""

    def __init__(self, session: OrtSession) -> None:
        self._session = session
        self.steps = session.steps
        self.prepared: set[tuple[int, ...]] = set()
        self.asked: list[tuple[int, ...]] = []

    def prepare(self, shape):
        self.prepared.add(shape)
        self._session.prepare(shape)

    def infer(self, batch):
        self.asked.append(batch.shape)
        return self._session.infer(batch)


def guard(kind: str, width: int, chunk_lines: int = 16) -> Gate:
    return tile_row_gate(width) if kind == "cascade of tiles" else streaming_gate(width, chunk_lines)


def cascade(kind: str, width: int, session: object = None, **changes: object) -> CascadeSegmenter:
    net = engine("exact")
    common = {"threshold": 0.99, "band_lines": BAND, "halo": net.halo, "stride": net.stride, "reading": Reading("softmax")}
    session = session or net.session()
    return CascadeSegmenter(
        changes.pop("gate", None) or guard(kind, width), session, width=width, **{**common, "batch": 3, **changes}
    )


@pytest.mark.parametrize("name", ["exact", "float", "int8"])
@LOOKS
@given(kind=kinds, lines=st.integers(1, 150), width=st.integers(1, 45), first_line=st.integers(0, 100), batch=st.integers(1, 5))
@example(kind="cascade of tiles", lines=150, width=45, first_line=0, batch=2)
@example(kind="cascade of cells", lines=150, width=45, first_line=0, batch=2)
def test_masks_are_the_dense_ones_within_the_rectangles_and_zero_elsewhere(name, kind, lines, width, first_line, batch):
    net, strip = engine(name), strip_of(lines, width)
    rows = rows_of(segmenter_of(kind, net, width, batch=batch), strip, first_line=first_line)
    mask, confidence = joined(rows, first_line, lines)
    seen = covered(kind, net, scores_of(brightest(kind, strip, first_line)) >= 0.99, strip, first_line)
    if lines * width == 150 * 45:
        assert seen.any()
        assert not seen.all()
    assert_dense(net, mask, confidence, whole_scores(net, strip, first_line), seen)
    assert not mask[~seen].any()
    assert not confidence[~seen].any()
    segmented = np.concatenate([np.full(len(part.mask), part.segmented) for part in rows])
    np.testing.assert_array_equal(segmented, seen.any(axis=1))


@LOOKS
@given(kind=kinds, lines=st.integers(1, 150), width=st.integers(1, 45), first_line=st.integers(0, 100))
def test_rows_tell_the_highest_score_of_the_cells_that_they_were_taken_with(kind, lines, width, first_line):
    strip, side = strip_of(lines, width), SIDES[kind]
    scores = scores_of(brightest(kind, strip, first_line))
    for part in rows_of(segmenter_of(kind, engine("exact"), width), strip, first_line=first_line):
        first = first_line // side
        here = scores[part.first_line // side - first : -(-part.line_stop // side) - first]
        np.testing.assert_allclose(part.gate_scores, here.max(axis=0), rtol=1e-5)
        assert part.tile_columns == side


@pytest.mark.parametrize("kind", CASCADES)
def test_rows_end_where_a_band_ends_or_where_rectangles_begin_or_end(kind):
    strip = np.full((3 * BAND, 40), 100, np.uint8)
    strip[BAND + 34 : BAND + 38, 10:14] = 255
    told = [(part.first_line, part.line_stop, part.segmented) for part in rows_of(cascade(kind, 40), strip)]
    # the bright tile's row and the one below; of the map three rows of cells are alarmed, the lowest height is four
    seen = (BAND + 32, 2 * BAND) if kind == "cascade of tiles" else (BAND + 24, BAND + 56)
    below = [(seen[1], 2 * BAND, False)] if seen[1] < 2 * BAND else []
    assert told == [(0, BAND, False), (BAND, seen[0], False), (*seen, True), *below, (2 * BAND, 3 * BAND, False)]


@pytest.mark.parametrize("kind", CASCADES)
def test_a_gate_that_lets_everything_through_gives_the_dense_masks(kind):
    net, strip = engine("exact"), strip_of(150, 45)
    rows = rows_of(cascade(kind, 45, threshold=0.0), strip)
    assert all(part.segmented for part in rows)
    mask, confidence = joined(rows, 0, 150)
    assert_dense(net, mask, confidence, whole_scores(net, strip))


@pytest.mark.parametrize("kind", CASCADES)
def test_a_gate_that_stops_everything_leaves_the_segmentation_network_alone(kind):
    session = Recorded(engine("exact").session())
    rows = rows_of(cascade(kind, 45, session, threshold=1.0), strip_of(150, 45))
    assert session.asked == []
    assert not any(part.segmented or part.mask.any() for part in rows)


@pytest.mark.parametrize("kind", CASCADES)
def test_clean_rows_share_one_array_of_zeros_that_nobody_can_write(kind):
    rows = rows_of(cascade(kind, 40), np.full((200, 40), 100, np.uint8))
    assert all(np.shares_memory(part.mask, rows[0].mask) for part in rows)
    with pytest.raises(ValueError, match="read-only"):
        rows[0].mask[:] = 1


@pytest.mark.parametrize("kind", CASCADES)
def test_only_crops_that_were_prepared_are_inferred(kind):
    session = Recorded(engine("exact").session())
    for threshold in (0.0, 0.99):
        rows_of(cascade(kind, 700, session, batch=4, threshold=threshold), strip_of(200, 700))
    assert len({shape[1:] for shape in session.asked}) > 3
    assert {shape[1:] for shape in session.asked} <= {shape[1:] for shape in session.prepared}
    assert {shape[0] for shape in session.prepared} == {4}
    assert max(shape[0] for shape in session.asked) == 4


@pytest.mark.parametrize("kind", CASCADES)
def test_a_cell_whose_score_is_the_threshold_goes_on(kind):
    strip = strip_of(40, 40)
    threshold = float(max(part.gate_scores.max() for part in rows_of(cascade(kind, 40), strip)))
    assert any(part.segmented for part in rows_of(cascade(kind, 40, threshold=threshold), strip))
    above = float(np.nextafter(np.float32(threshold), np.float32(2)))
    assert not any(part.segmented for part in rows_of(cascade(kind, 40, threshold=above), strip))


@LOOKS
@given(
    lines=st.integers(1, 300),
    first_line=st.integers(0, 100),
    chunks=st.sampled_from([(8, 64), (16, 32), (64, 16)]),
    portions=st.lists(st.integers(1, 70), min_size=1, max_size=6),
)
def test_a_streaming_gate_finds_the_same_at_any_chunk_height(lines, first_line, chunks, portions):
    strip = strip_of(lines, 45)
    one, other = (
        rows_of(cascade("cascade of cells", 45, gate=streaming_gate(45, chunk)), strip, portions, first_line) for chunk in chunks
    )
    assert_same(one, other)


@pytest.mark.parametrize("kind", CASCADES)
@LOOKS
@given(again=st.integers(0, 399), begin=st.sampled_from([0, 37]), halo=st.sampled_from([4, 12]))
def test_a_restart_in_a_long_run_gives_the_bits_of_an_unbroken_one(kind, again, begin, halo):
    """With a halo below the radius as well: then a pixel depends on how its rectangle lies, hence on all cells of its band."""
    net, strip = engine("float"), strip_of(400, 30)
    assert net.halo == 12
    common = {"threshold": 0.9, "band_lines": BAND, "halo": halo, "stride": net.stride, "reading": Reading("softmax"), "batch": 2}
    segmenter = CascadeSegmenter(guard(kind, 30), net.session(), width=30, **common)
    unbroken = rows_of(segmenter, strip, first_line=begin)
    context = strip[max(0, again - segmenter.context_lines(begin + again)) : again]
    rows = rows_of(segmenter, strip[again:], [33], first_line=begin + again, context=context)
    expected = joined(unbroken, begin, 400)
    np.testing.assert_array_equal(joined(rows, begin + again, 400 - again), [plane[again:] for plane in expected])
    assert judgement(rows) == judgement(unbroken)[again:]


@pytest.mark.parametrize("kind", CASCADES)
def test_a_band_is_out_with_the_line_that_its_lag_says(kind):
    """Tiles wait for the band and the halo; the map for the band and its lag, where that is more."""
    segmenter, strip = cascade(kind, 20), strip_of(300, 20)
    assert segmenter.lag_lines == BAND + max(
        engine("exact").halo, 0 if kind == "cascade of tiles" else map_gate().streamed().lag_lines * REDUCE
    )
    segmenter.start(0)
    stops = [[part.line_stop for part in segmenter.push(strip[line : line + 1])] for line in range(300)]
    first_out = [line + 1 for line, found in enumerate(stops) if found]
    assert first_out == [segmenter.lag_lines + band * BAND for band in range(len(first_out))]
    assert len(first_out) == 4


@pytest.mark.parametrize("width", [1, 5, 16, 45])
def test_a_streaming_gate_answers_as_one_inference_over_the_reduced_strip_does(width):
    strip, net = strip_of(200, width), map_gate()
    margin = net.halo * REDUCE
    padded = np.pad(strip, ((margin, -200 % CELL + margin), (margin, -width % CELL + margin)), mode="reflect")
    reduced = cv2.resize(padded, None, fx=1 / REDUCE, fy=1 / REDUCE, interpolation=cv2.INTER_AREA)
    cells = net.halo // net.cell
    whole = net.session().infer(reduced[None, None])[0, 0, cells:-cells, cells:-cells]
    rows = rows_of(cascade("cascade of cells", width, threshold=1.0), strip)
    highest = [whole[first : first + BAND // CELL].max(axis=0) for first in range(0, len(whole), BAND // CELL)]
    np.testing.assert_allclose([part.gate_scores for part in rows], 1 / (1 + np.exp(-np.array(highest))), rtol=1e-5)


def test_a_gate_may_look_at_the_strip_as_it_is():
    """Without an average there is nothing between the window and the engine."""
    net, strip = map_gate(), strip_of(100, 45)
    session = net.streaming(45, 8)
    geometry = {"reduce": 1, "cell": net.cell, "halo": net.halo, "stride": net.stride, "activation": "sigmoid", "head": "logits"}
    lone = StreamingGate(session, width=45, **geometry)
    assert (lone.cell_lines, lone.cells_across, gate_columns(45, 1, net.halo, net.stride)) == (4, 12, net.columns(45))
    rows = rows_of(cascade("cascade of cells", 45, gate=lone, threshold=1.0, band_lines=8), strip)
    padded = np.pad(strip, ((net.halo, net.halo), (net.halo, 3 + net.halo)), mode="reflect")
    whole = net.session().infer(padded[None, None])[0, 0, 2:-2, 2:-2]
    highest = [whole[first : first + 2].max(axis=0) for first in range(0, 25, 2)]
    np.testing.assert_allclose([part.gate_scores for part in rows], 1 / (1 + np.exp(-np.array(highest))), rtol=1e-5)


@pytest.mark.parametrize("kind", CASCADES)
def test_both_gates_keep_the_contract(kind):
    assert isinstance(guard(kind, 45), Gate)


def test_sizes_that_do_not_fit_each_other_are_refused():
    small = TileRowGate(
        gate(), width=20, size=EngineInput(tile_height=6, tile_width=8, reduce=2), activation="sigmoid", head="logits"
    )
    with pytest.raises(ConfigError, match="cell_lines: got 12; expected a multiple of the engine's stride 8"):
        cascade("cascade of tiles", 20, gate=small, halo=16, stride=8, band_lines=24)
    with pytest.raises(ConfigError, match=r"tiling.band_lines: got 40; expected a multiple of 16"):
        cascade("cascade of cells", 20, band_lines=40)
    with pytest.raises(ConfigError, match="halo: got 6; expected a multiple"):
        cascade("cascade of tiles", 20, halo=6)
    with pytest.raises(ConfigError, match=r"tiling.batch: got 0"):
        cascade("cascade of tiles", 20, batch=0)


@lru_cache(maxsize=8)
def openvino_sessions(name: str):
    """Segmenter, gate of tiles and gate of cells at 45 columns, on OpenVINO."""
    ov = pytest.importorskip("edge.sessions.ov", reason="needs OpenVINO")
    net, cells = engine(name), map_gate()
    streamed = cells.streamed()
    manifest = Streaming(lag_lines=streamed.lag_lines, cell=cells.cell, states=streamed.states)
    stream = ov.OvStreamingSession(streamed.model.SerializeToString(), manifest, cells.columns(23), 8, threads=1)
    return ov.OvSession(net.model.SerializeToString(), threads=1), stream


def openvino_cascade(kind: str, name: str, batch: int = 2) -> CascadeSegmenter:
    session, stream = openvino_sessions(name)
    net, cells = engine(name), map_gate()
    geometry = {"reduce": REDUCE, "cell": cells.cell, "halo": cells.halo, "stride": cells.stride}
    lone = StreamingGate(stream, width=45, activation="sigmoid", head="logits", **geometry)
    guarded = tile_row_gate(45) if kind == "cascade of tiles" else lone
    common = {"threshold": 0.99, "band_lines": BAND, "halo": net.halo, "stride": net.stride, "reading": Reading("softmax")}
    return CascadeSegmenter(guarded, session, width=45, batch=batch, **common)


@pytest.mark.parametrize("kind", CASCADES)
@pytest.mark.parametrize("name", ["exact", "int8"])
def test_on_openvino_masks_are_the_dense_ones_however_lines_arrive_and_after_a_restart(kind, name):
    net, strip = engine(name), strip_of(300, 45)
    unbroken = rows_of(openvino_cascade(kind, name), strip)
    mask, confidence = joined(unbroken, 0, 300)
    seen = covered(kind, net, scores_of(brightest(kind, strip, 0)) >= 0.99, strip, 0)
    if net.bits:
        assert_dense(net, mask, confidence, whole_scores(net, strip), seen)
    assert not mask[~seen].any()
    for portions, batch in itertools.product([[1], [50, 3]], [1, 3]):
        assert_same(rows_of(openvino_cascade(kind, name, batch), strip, portions), unbroken)
    segmenter = openvino_cascade(kind, name)
    for again in (1, 63, 64, 150, 299):
        context = strip[again - segmenter.context_lines(again) : again]
        rows = rows_of(segmenter, strip[again:], [70], first_line=again, context=context)
        np.testing.assert_array_equal(joined(rows, again, 300 - again), (mask[again:], confidence[again:]))
        assert judgement(rows) == judgement(unbroken)[again:]
