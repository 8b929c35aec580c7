"""Small networks as real engines in every segmenter, strips to push through them, and what must come out.

`exact` has small integers as weights, so that every order of adding gives the same bits and nothing may differ at all; `float`
and `int8` have random weights, and there the kernels' rounding may depend on the shape: classes may then differ only where the
two best scores are within 1 % of the scores' spread.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import onnx
import torch
from torch import nn

from calibration.activations import activation_ranges, collect
from edge.manifest import Clahe, EngineInput, Resize, Streaming
from edge.preparation import Preparation
from edge.scores import Reading, classify
from edge.segmenters import MaskRows, Segmenter
from edge.segmenters.cascade import CascadeSegmenter
from edge.segmenters.slabs import SlabSegmenter
from edge.segmenters.streaming import StreamingSegmenter
from edge.segmenters.streaming_gate import StreamingGate
from edge.segmenters.tile_row_gate import TileRowGate
from edge.segmenters.tiles import TileEngine, TileGate, TileSegmenter
from edge.sessions.ort import OrtSession, OrtStreamingSession
from edge.tiling import TileAxis
from edge.window import padded_columns
from export.networks.unet import SteelUNet
from export.passes.streaming import stream
from export.quantize import quantize, tensors_to_observe
from export.to_onnx import to_onnx

CORE, CELL, BAND = 16, 8, 64
"""Sides of a gate's tile and of a cell of the map, and lines of a cascade's band: pixels of the strip."""
REDUCE, CHUNKS = 2, (4, 8, 20, 64)
TILED = {
    "core tiles": ("core", (20, 10), (24, 8)),
    "union of tiles": ("union", (24, 10), (16, 16)),
    "mean of tiles": ("mean", (26, 8), (12, 12)),
    "gated tiles": ("union", (24, 9), (14, 4)),
    "classified tiles": ("core", (16, 16), (16, 8)),
}
"""Merge, and tile and step along the lines and across the columns."""
CASCADES = ("cascade of tiles", "cascade of cells")
KINDS = ("streaming", "slabs", *CASCADES, *TILED)


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


class BrightestCells(nn.Module):
    """A gate that says of every cell of 4 x 4 pixels how bright the brightest pixel in it, or within a pixel around it, is.

    What comes after that looks one cell further to all sides: radius 5, and rows that wait for those below them.
    """

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        over = (image.float() - 135.0) * (1.0 / 16.0)
        brightest = nn.functional.max_pool2d(nn.functional.max_pool2d(over, 3, 1, 1), 4)
        return nn.functional.max_pool2d(brightest, 3, 1, 1)


@dataclass(frozen=True, eq=False)
class Engine:
    """A network as model.onnx and stream.onnx, in open sessions."""

    model: onnx.ModelProto

    cell: int = 1

    @property
    def bits(self) -> bool:
        return self is engine("exact")

    @cache  # noqa: B019 - engines live as long as the test run
    def session(self) -> OrtSession:
        return OrtSession(self.model.SerializeToString(), threads=1)

    @cache  # noqa: B019
    def streamed(self):
        return stream(self.model, self.cell)

    @lru_cache(maxsize=64)  # noqa: B019
    def streaming(self, width: int, chunk_lines: int) -> OrtStreamingSession:
        streamed = self.streamed()
        manifest = Streaming(lag_lines=streamed.lag_lines, cell=self.cell, states=streamed.states)
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


@cache
def map_gate() -> Engine:
    return Engine(to_onnx(BrightestCells(), 32, 32), CELL // REDUCE)


def tile_row_gate(width: int) -> TileRowGate:
    size = EngineInput(tile_height=CORE // REDUCE, tile_width=CORE // REDUCE, reduce=REDUCE)
    return TileRowGate(gate(), width=width, size=size, activation="sigmoid", head="logits")


def streaming_gate(width: int, chunk_lines: int = 16) -> StreamingGate:
    """chunk_lines: of the strip."""
    net = map_gate()
    session = net.streaming(-(-width // REDUCE), chunk_lines // REDUCE)
    geometry = {"reduce": REDUCE, "cell": net.cell, "halo": net.halo, "stride": net.stride}
    return StreamingGate(session, width=width, activation="sigmoid", head="logits", **geometry)


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
    guard = tile_row_gate(width) if kind == "cascade of tiles" else streaming_gate(width)
    return CascadeSegmenter(guard, net.session(), threshold=threshold, band_lines=BAND, batch=batch, **common)


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
