"""Sessions against each other, for `pytest-benchmark compare --group-by=group`:

    pytest benchmarks/test_sessions.py --benchmark-json=sessions.json

Every backend that is installed, INT8 and FP32, one thread. A group holds what does the same work: a slab, the same lines as a
stream in chunks of 16, 64 and 256, the gate. `megapixels` in extra_info makes rates of the times; engines are compiled before
the clock runs. Times are of the processor; still, compare ratios within one run.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from edge.backends import BundleEngines
from edge.bundle import open_bundle
from edge.config import AUTO, Scale, SessionOptions, SimulatedDefects
from edge.errors import SessionError
from edge.sources.steel_strip import SteelStrip

WIDTH, LINES = 2048, 512
GATE_LINES = 256


@pytest.fixture(scope="module")
def lines() -> np.ndarray:
    """(1, 1, LINES, WIDTH) uint8."""
    return SteelStrip(WIDTH, 20, SimulatedDefects(), Scale()).lines(0, LINES)[None, None]


@pytest.fixture(scope="module", params=AUTO)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module", params=["int8", "fp32"])
def precision(request: pytest.FixtureRequest) -> str:
    return request.param


@contextmanager
def opened(name: str, backend: str) -> Iterator[BundleEngines]:
    try:
        with BundleEngines(open_bundle(name), SessionOptions(backend=backend, threads=1)) as engines:
            yield engines
    except SessionError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def unet(backend: str, precision: str) -> Iterator[BundleEngines]:
    with opened(f"steel-unet-{precision}", backend) as engines:
        yield engines


@pytest.fixture(scope="module")
def gate(backend: str, precision: str) -> Iterator[BundleEngines]:
    with opened(f"steel-gate-{precision}", backend) as engines:
        yield engines


def note(benchmark, engines: BundleEngines, megapixels: float) -> None:
    choice = engines.choice
    benchmark.extra_info.update(megapixels=megapixels, backend=choice.backend, version=choice.version, precision=choice.precision)
    benchmark.extra_info["bundle"] = engines.bundle.manifest.name


@pytest.mark.benchmark(timer=time.process_time, group="unet: whole slab")
def test_slab(benchmark, unet: BundleEngines, lines: np.ndarray) -> None:
    note(benchmark, unet, lines.size / 1e6)
    unet.tiles.prepare(lines.shape)
    benchmark.pedantic(unet.tiles.infer, (lines,), rounds=7, warmup_rounds=1)


@pytest.mark.parametrize("chunk_lines", [16, 64, 256])
@pytest.mark.benchmark(timer=time.process_time, group="unet: stream")
def test_stream(benchmark, unet: BundleEngines, lines: np.ndarray, chunk_lines: int) -> None:
    note(benchmark, unet, lines.size / 1e6)
    stream = unet.stream(WIDTH, chunk_lines)
    chunks = [np.ascontiguousarray(lines[:, :, line : line + chunk_lines]) for line in range(0, LINES, chunk_lines)]

    def all_lines() -> None:
        for chunk in chunks:
            stream.step(chunk)

    benchmark.pedantic(all_lines, rounds=7, warmup_rounds=1)


@pytest.mark.benchmark(timer=time.process_time, group="gate")
def test_gate(benchmark, gate: BundleEngines, lines: np.ndarray) -> None:
    """GATE_LINES lines of the strip: as a map where the gate is one, else as a batch of tiles."""
    manifest = gate.bundle.manifest
    reduce, size = manifest.input.reduce, (manifest.input.tile_height, manifest.input.tile_width)
    note(benchmark, gate, GATE_LINES * WIDTH / 1e6)
    reduced = np.ascontiguousarray(lines[0, 0, :GATE_LINES:reduce, ::reduce])
    rows, columns = (side // part for side, part in zip(reduced.shape, size, strict=True))
    if manifest.cell is not None:
        batch = reduced[None, None]
    else:
        grid = reduced[: rows * size[0], : columns * size[1]].reshape(rows, size[0], columns, size[1])
        batch = np.ascontiguousarray(grid.swapaxes(1, 2).reshape(rows * columns, 1, *size))
    gate.tiles.prepare(batch.shape)
    benchmark.pedantic(gate.tiles.infer, (batch,), rounds=15, warmup_rounds=1)
