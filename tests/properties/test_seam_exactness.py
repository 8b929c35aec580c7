"""What is found never depends on how the strip was cut: into frames, chunks, slabs, batches, or by a restart.

Real engines in real ONNX Runtime sessions. `exact` has small integers as weights, so that every order of adding gives the
same bits and nothing may differ at all; `float` and `int8` have random weights, and there the kernels' rounding may depend on
the shape: classes may then differ only where the two best scores are within 1 % of the scores' spread.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import nn

from calibration.activations import activation_ranges, collect
from edge.errors import ConfigError
from edge.manifest import Clahe, EngineInput, Resize, Streaming
from edge.preparation import Preparation
from edge.scores import Reading, classify
from edge.segmenters import MaskRows, Segmenter
from edge.segmenters.cascade import CascadeSegmenter
from edge.segmenters.slabs import SlabSegmenter
from edge.segmenters.streaming import StreamingSegmenter
from edge.segmenters.tiles import TileEngine, TileGate, TileSegmenter
from edge.sessions.ort import OrtSession, OrtStreamingSession
from edge.tiling import TileAxis
from edge.window import padded_columns
from export.networks.unet import SteelUNet
from export.passes.streaming import stream
from export.quantize import quantize, tensors_to_observe
from export.to_onnx import to_onnx

CORE, REDUCE, CHUNKS = 16, 2, (4, 8, 20, 64)
TILED = {
    "core tiles": ("core", (20, 10), (24, 8)),
    "union of tiles": ("union", (24, 10), (16, 16)),
    "mean of tiles": ("mean", (26, 8), (12, 12)),
    "gated tiles": ("union", (24, 9), (14, 4)),
    "classified tiles": ("core", (16, 16), (16, 8)),
}
"""Merge, and tile and step along the lines and across the columns."""
KINDS = ("streaming", "slabs", "cascade", *TILED)
LOOKS = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


class SmallUNet(nn.Module):
    """Stem of stride 2, one level of pooling, a skip that is concatenated, sub-pixel head: stride 4."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 4, 2, 1)
        self.encoder = nn.Conv2d(4, 8, 3, padding=1)
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.decoder = nn.Conv2d(12, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 12, 1)
        self.activation = activation

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        top = self.activation(self.stem((image.float() - 128.0) * (1.0 / 64.0)))
        low = self.activation(self.encoder(nn.functional.max_pool2d(top, 2)))
        merged = self.activation(self.decoder(torch.cat([self.up(low), top], dim=1)))
        return nn.functional.pixel_shuffle(self.head(merged), 2)


class BrightestPixel(nn.Module):
    """A gate whose logit is positive where the tile has a bright place."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.amax((image.float() - 135.0) * (1.0 / 16.0), dim=(2, 3))


@dataclass(frozen=True, eq=False)
class Engine:
    """A network as model.onnx and stream.onnx, in open sessions."""

    model: onnx.ModelProto

    @property
    def bits(self) -> bool:
        return self is engine("exact")

    @cache  # noqa: B019 - engines live as long as the test run
    def session(self) -> OrtSession:
        return OrtSession(self.model.SerializeToString(), threads=1)

    @cache  # noqa: B019
    def streamed(self):
        return stream(self.model)

    @lru_cache(maxsize=64)  # noqa: B019
    def streaming(self, width: int, chunk_lines: int) -> OrtStreamingSession:
        streamed = self.streamed()
        manifest = Streaming(lag_lines=streamed.lag_lines, states=streamed.states)
        return OrtStreamingSession(streamed.model.SerializeToString(), manifest, self.columns(width), chunk_lines, threads=1)

    @property
    def stride(self) -> int:
        return self.streamed().stride

    @property
    def halo(self) -> int:
        return -(-self.streamed().reach_lines // self.stride) * self.stride

    def columns(self, width: int) -> int:
        return padded_columns(width, self.halo, self.stride)


@cache
def engine(name: str) -> Engine:
    torch.manual_seed(5)
    if name == "exact":
        network: nn.Module = SmallUNet(nn.Hardtanh(-3.0, 7.0))
        for parameter in network.parameters():
            parameter.data = torch.randint(-1, 2, parameter.shape).float()
    elif name == "steel":
        network = SteelUNet(widths=(8, 8, 16, 16))
    else:
        network = SmallUNet(nn.ReLU())
    model = to_onnx(network, 256, 256)
    if name == "int8":
        batches = [np.random.default_rng(3).integers(0, 256, (2, 1, 256, 256), np.uint8)]
        model = quantize(model, activation_ranges(collect(model, tensors_to_observe(model), batches)))
    return Engine(model)


@cache
def gate() -> OrtSession:
    return OrtSession(to_onnx(BrightestPixel(), CORE // REDUCE, CORE // REDUCE).SerializeToString(), threads=1)


def strip_of(lines: int, width: int, seed: int = 0) -> np.ndarray:
    """Random grey with bright spots here and there, so that the gate lets some tiles through."""
    rng = np.random.default_rng([lines, width, seed])
    strip = rng.integers(40, 160, (lines, width), np.uint8)
    for line, column in zip(*np.nonzero(rng.random(strip.shape) < 0.001), strict=True):
        strip[line : line + 4, column : column + 4] = 255
    return strip


def tile_segmenter_of(kind: str, net: Engine, width: int, batch: int, threshold: float) -> Segmenter:
    """Tiles equalized and resized each by itself; the classifier is the gate itself, the gate sees tiles resized too."""
    merge, lines, columns = TILED[kind]
    small = EngineInput(tile_height=CORE // REDUCE, tile_width=CORE // REDUCE)
    sorter = TileEngine(gate(), Preparation((Resize(method="area"),), small), batch)
    axes = {"width": width, "lines": TileAxis(*lines), "columns": TileAxis(*columns), "merge": merge}
    if kind == "classified tiles":
        return TileSegmenter(sorter, Reading("sigmoid", defective_from=threshold), 1, **axes)
    steps = (Clahe(clip_limit=3.0, grid_rows=2, grid_columns=2), Resize())
    engine = TileEngine(net.session(), Preparation(steps, EngineInput(tile_height=16, tile_width=20)), batch)
    guard = TileGate(sorter, "sigmoid", "logits", threshold) if kind == "gated tiles" else None
    return TileSegmenter(engine, Reading("softmax"), 3, gate=guard, **axes)


def segmenter_of(kind: str, net: Engine, width: int, chunk_lines: int = 20, batch: int = 3, threshold: float = 0.99) -> Segmenter:
    if kind in TILED:
        return tile_segmenter_of(kind, net, width, batch, threshold)
    common = {"width": width, "halo": net.halo, "stride": net.stride, "reading": Reading("softmax")}
    if kind == "streaming":
        return StreamingSegmenter(net.streaming(width, chunk_lines), **common)
    if kind == "slabs":
        return SlabSegmenter(net.session(), chunk_lines=chunk_lines, **common)
    tile = EngineInput(tile_height=CORE // REDUCE, tile_width=CORE // REDUCE, reduce=REDUCE)
    return CascadeSegmenter(
        gate(), net.session(), gate_input=tile, gate_activation="sigmoid", threshold=threshold, batch=batch, **common
    )


def rows_of(
    segmenter: Segmenter, strip: np.ndarray, portions: list[int] | None = None, first_line: int = 0, context=None
) -> list[MaskRows]:
    """All rows of one run, pushed in these portions, again and again."""
    segmenter.start(first_line, context)
    rows: list[MaskRows] = []
    position = turn = 0
    while position < len(strip):
        size = portions[turn % len(portions)] if portions else len(strip)
        rows += segmenter.push(strip[position : position + size])
        position, turn = position + size, turn + 1
    return rows + segmenter.flush()


def joined(rows: list[MaskRows], first_line: int, lines: int) -> tuple[np.ndarray, np.ndarray]:
    """Mask and confidence of the run; every row is there once and in order."""
    assert rows[0].first_line == first_line
    assert all(after.first_line == before.line_stop for before, after in itertools.pairwise(rows))
    assert rows[-1].line_stop == first_line + lines
    return np.concatenate([part.mask for part in rows]), np.concatenate([part.confidence for part in rows])


def assert_same(got: list[MaskRows], expected: list[MaskRows]) -> None:
    assert [part.first_line for part in got] == [part.first_line for part in expected]
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one.mask, other.mask)
        np.testing.assert_array_equal(one.confidence, other.confidence)
        np.testing.assert_array_equal(one.gate_scores, other.gate_scores)
        assert (one.segmented, one.tile_columns) == (other.segmented, other.tile_columns)


def whole_scores(net: Engine, strip: np.ndarray, first_line: int = 0) -> np.ndarray:
    """One inference over the run, reflected by the halo at its four sides; its stride counted from the strip's first line."""
    lines, width = strip.shape
    top = net.halo + first_line % net.stride
    bottom = net.halo + -(lines + first_line) % net.stride
    padded = np.pad(strip, ((top, bottom), (net.halo, net.columns(width) - width - net.halo)), mode="reflect")
    return net.session().infer(padded[None, None])[0, :, top : top + lines, net.halo : net.halo + width].copy()


def assert_dense(
    net: Engine, mask: np.ndarray, confidence: np.ndarray, scores: np.ndarray, where: np.ndarray | None = None
) -> None:
    expected_mask, expected_confidence = classify(scores, "softmax")
    where = np.ones(mask.shape, bool) if where is None else where
    if net.bits:
        np.testing.assert_array_equal(mask[where], expected_mask[where])
        np.testing.assert_array_equal(confidence[where], expected_confidence[where])
        return
    second, best = np.sort(scores, axis=0)[-2:]
    close = best - second <= 0.01 * np.ptp(scores)
    assert (mask == expected_mask)[where & ~close].all()


def judgement(rows: list[MaskRows]) -> list[tuple[bool, list[float] | None]]:
    """Of every row: whether the network saw it, and the gate's scores."""
    told = [(part.segmented, None if part.gate_scores is None else part.gate_scores.tolist()) for part in rows]
    return [each for each, part in zip(told, rows, strict=True) for _ in part.mask]


kinds = st.sampled_from(KINDS)
lengths = st.integers(1, 150)
widths = st.integers(1, 45)
cuts = st.lists(st.integers(1, 70), min_size=1, max_size=6)


@pytest.mark.parametrize("name", ["exact", "float", "int8"])
@LOOKS
@given(kind=kinds, lines=lengths, width=widths, portions=cuts, chunk_lines=st.sampled_from(CHUNKS))
@example(kind="streaming", lines=150, width=45, portions=[1], chunk_lines=64)
@example(kind="cascade", lines=150, width=45, portions=[1], chunk_lines=64)
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
@given(lines=lengths, width=widths, first_line=st.integers(0, 60), batch=st.integers(1, 5))
@example(lines=150, width=45, first_line=0, batch=2)
def test_the_cascade_equals_dense_inspection_where_the_gate_lets_through_and_is_zero_elsewhere(
    name, lines, width, first_line, batch
):
    net, strip = engine(name), strip_of(lines, width)
    rows = rows_of(segmenter_of("cascade", net, width, batch=batch), strip, first_line=first_line)
    mask, confidence = joined(rows, first_line, lines)
    passed = np.concatenate(
        [np.repeat(part.gate_scores >= 0.99, CORE)[:width][None].repeat(len(part.mask), axis=0) for part in rows]
    )
    if lines * width == 150 * 45:
        assert passed.any()
        assert not passed.all()
    assert_dense(net, mask, confidence, whole_scores(net, strip, first_line), passed)
    assert not mask[~passed].any()
    assert not confidence[~passed].any()
    assert [part.segmented for part in rows] == [bool((part.gate_scores >= 0.99).any()) for part in rows]


@LOOKS
@given(lines=lengths, width=widths, first_line=st.integers(0, 60))
def test_the_gate_looks_at_the_reduced_tiles_of_a_grid_anchored_at_the_strip(lines, width, first_line):
    strip = strip_of(lines, width)
    rows = rows_of(segmenter_of("cascade", engine("exact"), width), strip, first_line=first_line)
    top, bottom = first_line % CORE, -(first_line + lines) % CORE
    padded = np.pad(strip, ((top, bottom), (0, -width % CORE)), mode="reflect").astype(np.float64)
    reduced = np.rint(padded.reshape(padded.shape[0] // REDUCE, REDUCE, -1, REDUCE).mean(axis=(1, 3)) + 1e-9)
    side = CORE // REDUCE
    brightest = reduced.reshape(reduced.shape[0] // side, side, -1, side).max(axis=(1, 3))
    np.testing.assert_allclose([part.gate_scores for part in rows], 1 / (1 + np.exp((135 - brightest) / 16)), rtol=1e-5)
    assert [part.line_stop % CORE for part in rows[:-1]] == [0] * (len(rows) - 1)
    assert {part.tile_columns for part in rows} == {CORE}


@pytest.mark.parametrize("name", ["exact", "float", "int8"])
@LOOKS
@given(
    kind=st.sampled_from(["cascade", *TILED]),
    lines=lengths,
    width=widths,
    batches=st.tuples(st.integers(1, 6), st.integers(1, 6)),
)
def test_tiles_are_judged_the_same_at_any_batch(name, kind, lines, width, batches):
    one, other = (
        rows_of(segmenter_of(kind, engine(name), width, batch=b, threshold=0.5), strip_of(lines, width)) for b in batches
    )
    assert_same(one, other)


def test_a_tile_whose_score_is_the_threshold_goes_on():
    strip = strip_of(40, 40)
    scores = rows_of(segmenter_of("cascade", engine("exact"), 40), strip)[0].gate_scores
    threshold = float(scores.max())
    assert rows_of(segmenter_of("cascade", engine("exact"), 40, threshold=threshold), strip)[0].segmented
    above = float(np.nextafter(np.float32(threshold), np.float32(2)))
    assert not rows_of(segmenter_of("cascade", engine("exact"), 40, threshold=above), strip)[0].segmented


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


@pytest.mark.parametrize("kind", ["cascade", *TILED])
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


def test_a_run_without_lines_has_no_rows():
    for kind in KINDS:
        segmenter = segmenter_of(kind, engine("exact"), 20)
        segmenter.start(50, strip_of(50, 20))
        assert segmenter.flush() == []


def test_lines_before_a_start_are_refused():
    for kind in KINDS:
        with pytest.raises(ValueError, match="none after the run's end"):
            segmenter_of(kind, engine("exact"), 20).push(strip_of(4, 20))


def test_clean_tile_rows_share_one_array_of_zeros():
    strip = np.full((64, 40), 100, np.uint8)
    rows = rows_of(segmenter_of("cascade", engine("exact"), 40), strip)
    assert not any(part.segmented or part.mask.any() for part in rows)
    assert all(np.shares_memory(part.mask, rows[0].mask) for part in rows)


def test_sizes_that_the_stride_does_not_divide_are_refused():
    net = engine("exact")
    tile = EngineInput(tile_height=6, tile_width=8, reduce=2)
    common = {"width": 20, "stride": 8, "reading": Reading("softmax")}
    gated = {"gate_input": tile, "gate_activation": "sigmoid", "threshold": 0.5, "batch": 1}
    with pytest.raises(ConfigError, match="halo: got 20; expected a multiple of the engine's stride 8"):
        StreamingSegmenter(net.streaming(20, 8), halo=20, **common)
    with pytest.raises(ConfigError, match="chunk_lines: got 12; expected a multiple of the engine's stride 8"):
        SlabSegmenter(net.session(), chunk_lines=12, halo=16, **common)
    with pytest.raises(ConfigError, match="tile_height: got 12; expected a multiple of the engine's stride 8"):
        CascadeSegmenter(gate(), net.session(), halo=16, **common, **gated)


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
