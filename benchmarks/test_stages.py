"""Stages of the data path, one by one: `pytest benchmarks --benchmark-json=stages.json`, compared by `pytest-benchmark compare`.

Each figure is the time for one frame of 256 lines; `megapixels` in extra_info makes rates of it.
"""

from __future__ import annotations

import numpy as np
import pytest

from edge.bundle import open_bundle
from edge.config import Filters, Scale, SimulatedDefects, parse_config
from edge.engines import Engines
from edge.scores import classify
from edge.segmenters import MaskRows
from edge.sessions.ort import OrtSession
from edge.sources.steel_strip import SteelStrip
from edge.tracking.filters import resolve_rules
from edge.tracking.tracker import DefectTracker

WIDTH, LINES = 2048, 256


@pytest.fixture(scope="module")
def strip() -> SteelStrip:
    return SteelStrip(WIDTH, 20, SimulatedDefects(), Scale())


@pytest.mark.benchmark(group="source")
def test_simulated_lines(benchmark, strip):
    benchmark.extra_info["megapixels"] = WIDTH * LINES / 1e6
    benchmark(strip.lines, 4096, LINES)


@pytest.mark.parametrize("precision", ["int8", "fp32"])
@pytest.mark.benchmark(group="session")
def test_unet_on_a_slab(benchmark, strip, precision):
    with OrtSession(open_bundle(f"steel-unet-{precision}").model_path, threads=1) as session:
        benchmark.extra_info["megapixels"] = WIDTH * LINES / 1e6
        benchmark(session.infer, strip.lines(0, LINES)[None, None])


@pytest.mark.parametrize("precision", ["int8", "fp32"])
@pytest.mark.parametrize("batch", [1, 8, 32])
@pytest.mark.benchmark(group="gate")
def test_gate_on_tiles(benchmark, precision, batch):
    with OrtSession(open_bundle(f"steel-gate-{precision}").model_path, threads=1) as session:
        tiles = np.random.default_rng(0).integers(0, 256, (batch, 1, 128, 128), dtype=np.uint8)
        benchmark.extra_info["megapixels"] = batch * 256 * 256 / 1e6
        benchmark(session.infer, tiles)


@pytest.mark.parametrize(
    "changes",
    [{"dense": "streaming"}, {"dense": "slabs"}, {"mode": "cascade", "gate": "steel-gate-int8"}],
    ids=["streaming", "slabs", "cascade"],
)
@pytest.mark.parametrize("chunk_lines", [64, 256])
@pytest.mark.benchmark(group="segmenter")
def test_segmenter(benchmark, strip, changes, chunk_lines):
    document = {"source": {"kind": "simulated"}, "session": {"threads": 1}, "chunk_lines": chunk_lines, **changes}
    with Engines(parse_config(document, "benchmark"), "benchmark") as engines:
        segmenter = engines.segmenter(WIDTH)
        segmenter.start(0)
        segmenter.push(strip.lines(0, 2 * LINES))
        benchmark.extra_info["megapixels"] = WIDTH * LINES / 1e6
        benchmark(segmenter.push, strip.lines(2 * LINES, LINES))


@pytest.mark.parametrize("share", [0.0, 0.02], ids=["clean", "defects"])
@pytest.mark.benchmark(group="scores")
def test_scores_to_mask(benchmark, share):
    scores = np.random.default_rng(0).normal(0, 1, (4, LINES, WIDTH)).astype(np.float32)
    scores[0] += np.where(np.random.default_rng(1).random((LINES, WIDTH)) < share, -9, 9)
    benchmark.extra_info["megapixels"] = WIDTH * LINES / 1e6
    benchmark(classify, scores, "softmax")


@pytest.mark.parametrize("defects", [0, 12], ids=["clean", "defects"])
@pytest.mark.benchmark(group="tracker")
def test_tracker(benchmark, defects):
    classes = ("background", "inclusion", "patches", "scratches")
    rng = np.random.default_rng(0)
    mask = np.zeros((LINES, WIDTH), np.uint8)
    for _ in range(defects):
        row, column = rng.integers(0, LINES - 40), rng.integers(0, WIDTH - 60)
        mask[row : row + 30, column : column + 50] = rng.integers(1, 4)
    tracker = DefectTracker(resolve_rules(Filters(), classes, {}, Scale()), Scale(), classes, "bench")
    place = iter(range(0, 1 << 40, LINES))
    benchmark.extra_info["megapixels"] = WIDTH * LINES / 1e6
    benchmark(lambda: tracker.push(MaskRows(next(place), mask, np.where(mask > 0, 240, 0).astype(np.uint8))))
