"""The cascade with planted alarms: `pytest benchmarks/test_cascade.py --benchmark-json=cascade.json`.

The shipped gate looks at every line and costs what it costs; what it says is then replaced by planted alarms, so that the share
of clean steel is what the name says. Shares are of tiles of 256 x 256 px that hold no alarm; an alarmed one holds a defect of 32
to 160 px a side. Each figure is the time for four bands of 256 lines; `megapixels` in extra_info makes rates of it, `computed`
is what the segmentation network sees of the strip's pixels, halos included.
"""

from __future__ import annotations

import numpy as np
import pytest

from edge.backends import BundleEngines
from edge.bundle import open_bundle
from edge.config import Scale, SessionOptions, SimulatedDefects, Tiling
from edge.engines import dense_halo, reading_of
from edge.segmenters.cascade import CascadeSegmenter
from edge.segmenters.cover import Cover, side_lengths
from edge.segmenters.gates import CellScores, Gate
from edge.segmenters.streaming_gate import StreamingGate, gate_columns
from edge.segmenters.tile_row_gate import TileRowGate
from edge.sessions import Scores
from edge.sources.steel_strip import SteelStrip
from edge.tile_plan import band_lines, gate_chunk_lines
from edge.window import StripWindow

WIDTH, TILE, BANDS = 4096, 256, 4
PRECISIONS = ("int8", "fp32")
CLEAN = (0.90, 0.95, 0.99, 1.0)


class PlantedGate:
    """A gate that is asked, and not listened to."""

    def __init__(self, gate: Gate, clean: float) -> None:
        self._gate = gate
        self.spans, self.cells_across = gate.spans, gate.cells_across
        self.cell_lines, self.cell_columns = gate.cell_lines, gate.cell_columns
        self._planted = planted(TILE * 64, gate, clean)
        self._row = 0

    def begin(self) -> None:
        self._gate.begin()
        self._row = 0

    def look(self, window: StripWindow, span: int) -> Scores:
        return self._gate.look(window, span)

    def read(self, answers: Scores) -> CellScores:
        rows = range(self._row, self._row + len(self._gate.read(answers)))
        self._row = rows.stop % len(self._planted)
        return self._planted.take(rows, axis=0, mode="wrap")


def planted(lines: int, gate: Gate, clean: float) -> CellScores:
    """Scores 0 and 1 of the cells of a strip: one defect in each alarmed tile."""
    rng = np.random.default_rng(5)
    scores = np.zeros((-(-lines // gate.cell_lines), gate.cells_across), np.float32)
    rows, columns = lines // TILE, WIDTH // TILE
    for tile in rng.permutation(rows * columns)[: round((1 - clean) * rows * columns)].tolist():
        sides = rng.integers(32, 161, 2)
        line, column = np.array(divmod(tile, columns)) * TILE + rng.integers(0, TILE - sides)
        stop_line, stop_column = line + sides[0], column + sides[1]
        scores[
            line // gate.cell_lines : -(-stop_line // gate.cell_lines),
            column // gate.cell_columns : -(-stop_column // gate.cell_columns),
        ] = 1
    return scores


def gate_of(engines: BundleEngines) -> Gate:
    manifest = engines.bundle.manifest
    size, common = manifest.input, {"width": WIDTH, "activation": manifest.activation, "head": manifest.head}
    if manifest.cell is None:
        return TileRowGate(engines.tiles, size=size, **common)
    halo = dense_halo(engines.bundle)
    chunk = gate_chunk_lines(64, band_lines(Tiling(), manifest), manifest)
    session = engines.stream(gate_columns(WIDTH, size.reduce, halo, manifest.stride), chunk)
    return StreamingGate(session, reduce=size.reduce, cell=manifest.cell, halo=halo, stride=manifest.stride, **common)


@pytest.fixture(scope="module", params=PRECISIONS)
def engines(request):
    options = SessionOptions(threads=1)
    with (
        BundleEngines(open_bundle(f"steel-unet-{request.param}"), options) as unet,
        BundleEngines(open_bundle(f"steel-gate-{request.param}"), options) as gate,
    ):
        yield unet, gate_of(gate)


@pytest.fixture(scope="module")
def strip():
    return SteelStrip(WIDTH, 20, SimulatedDefects(), Scale()).lines(0, TILE * BANDS)


@pytest.mark.parametrize("clean", CLEAN, ids=[f"{share:.0%} clean" for share in CLEAN])
@pytest.mark.benchmark(group="cascade")
def test_cascade(benchmark, engines, strip, clean):
    unet, gate = engines
    manifest = unet.bundle.manifest
    segmenter = CascadeSegmenter(
        PlantedGate(gate, clean),
        unet.tiles,
        width=WIDTH,
        threshold=0.5,
        band_lines=TILE,
        halo=manifest.halo,
        stride=manifest.stride,
        reading=reading_of(manifest),
        batch=8,
    )
    segmenter.start(0)
    segmenter.push(strip)
    benchmark.extra_info["megapixels"] = strip.size / 1e6
    benchmark.extra_info["computed"] = computed(gate, manifest.halo, clean)
    benchmark.pedantic(segmenter.push, (strip,), rounds=8, warmup_rounds=1)


@pytest.mark.parametrize("clean", CLEAN[:3], ids=[f"{share:.0%} clean" for share in CLEAN[:3]])
@pytest.mark.benchmark(group="cover")
def test_cover_of_a_band(benchmark, engines, clean):
    _, gate = engines
    cover, bands = cover_of(gate, 80), alarms(gate, clean)
    benchmark.extra_info["megapixels"] = len(bands) * TILE * WIDTH / 1e6
    benchmark(lambda: [cover.rectangles(band) for band in bands])


def cover_of(gate: Gate, halo: int) -> Cover:
    rows = TILE // gate.cell_lines
    return Cover(
        rows,
        gate.cells_across,
        cell_lines=gate.cell_lines,
        cell_columns=gate.cell_columns,
        halo=halo,
        heights=side_lengths(gate.cell_lines, rows, rows),
        widths=side_lengths(gate.cell_columns, 2 * TILE // gate.cell_columns, gate.cells_across),
    )


def alarms(gate: Gate, clean: float) -> np.ndarray:
    """(bands, rows of cells, cells across) bool."""
    return planted(TILE * 64, gate, clean).reshape(64, -1, gate.cells_across) > 0


def computed(gate: Gate, halo: int, clean: float) -> float:
    """Pixels that the segmentation network computes for each one of the strip."""
    cover = cover_of(gate, halo)
    found = [each for band in alarms(gate, clean) for each in cover.rectangles(band)]
    pixels = sum((e.rows * gate.cell_lines + 2 * halo) * (e.columns * gate.cell_columns + 2 * halo) for e in found)
    return pixels / (64 * TILE * WIDTH)
