"""The engines alone: backend, precision, batch or chunk height, threads; all variants take turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from edge.backends import BundleEngines
from edge.bench.plan import LATENCY_SHARE, Plan
from edge.bench.replay import Spent, Stopwatch
from edge.bench.results import EngineFigures, figure_of
from edge.bundle import Bundle, open_bundle
from edge.config import AUTO, BackendName, SessionOptions
from edge.engines import dense_halo
from edge.errors import BundleError, SessionError
from edge.frame import Lines
from edge.manifest import Manifest
from edge.sessions import Batch
from edge.window import padded_columns

BATCHES = (1, 4, 16)
CHUNKS = (16, 64, 256)
TYPICAL_BATCH, TYPICAL_CHUNK = 4, 64
FEWEST_ROUNDS = 3
_LEAST_PIXELS = 1 << 19
"""Strip pixels that a round puts through one variant at least: less is lost in the clock's and the scheduler's noise."""


@dataclass(frozen=True, slots=True)
class Variant:
    """An engine as it is tried. batch: of tiles; chunk_lines: of a stream, in lines of the strip."""

    engine: Literal["tiles", "stream", "gate"]
    bundle: Bundle
    backend: BackendName
    threads: int
    batch: int | None = None
    chunk_lines: int | None = None


@dataclass(slots=True)
class _Trial:
    """A variant ready to run. ask: one inference of `megapixels` of the strip."""

    variant: Variant
    ask: Callable[[], object]
    megapixels: float
    times: int
    rounds: list[Spent] = field(default_factory=list)

    def run(self) -> None:
        watch = Stopwatch()
        for _ in range(self.times):
            self.ask()
        self.rounds.append(watch.read())

    def figures(self) -> EngineFigures:
        megapixels, manifest = self.megapixels * self.times, self.variant.bundle.manifest
        return EngineFigures(
            engine=self.variant.engine,
            bundle=manifest.name,
            precision=manifest.precision,
            backend=self.variant.backend,
            threads=self.variant.threads,
            batch=self.variant.batch,
            chunk_lines=self.variant.chunk_lines,
            megapixels_per_s=figure_of(megapixels / spent.wall_s for spent in self.rounds),
            megapixels_per_cpu_s=figure_of(megapixels / spent.cpu_s for spent in self.rounds),
        )


def measure_engines(plan: Plan, cores: int) -> Iterator[tuple[EngineFigures, ...]]:
    """Figures after each round. cores: threads are tried up to so many. Raises RustEdgeError.

    Every backend gets every precision at one thread, with a typical batch and chunk height; the station's precision also all
    batches, chunk heights and threads. A backend that is not there or does not run a bundle is left out.
    """
    began_s = time.monotonic()
    strip = plan.strip(LATENCY_SHARE).lines
    with ExitStack() as opened:
        trials = list(_open_trials(plan, strip, cores, opened))
        for trial in trials:
            trial.ask()  # the first one allocates, and compiles
        rounds = 0
        while rounds < FEWEST_ROUNDS or time.monotonic() - began_s < plan.seconds("engines"):
            for trial in trials:
                trial.run()
            rounds += 1
            yield tuple(trial.figures() for trial in trials)


def sibling_of(named: str) -> str | None:
    """The float bundle that belongs to an INT8 one by its name; None where the name does not tell.

    >>> sibling_of("steel-unet-int8"), sibling_of("steel-unet-fp32")
    ('steel-unet-fp32', None)
    """
    return f"{named.removesuffix('-int8')}-fp32" if named.endswith("-int8") else None


def thread_counts(cores: int) -> tuple[int, ...]:
    """1, 2, 4, ... and all cores.

    >>> thread_counts(6)
    (1, 2, 4, 6)
    """
    powers = [1 << power for power in range(cores.bit_length()) if 1 << power < cores]
    return (*powers, cores)


def variants_of(plan: Plan, bundle: Bundle, sibling: Bundle | None, gate: Bundle | None, cores: int) -> Iterator[Variant]:
    """What is tried: every backend that is there, or the station's own with typical sizes."""
    whole = plan.budget.sweep == "whole"
    batches, chunks = (BATCHES, CHUNKS) if whole else ((TYPICAL_BATCH,), (TYPICAL_CHUNK,))
    for backend in AUTO if whole else [backend for backend in AUTO if backend == plan.station.backend]:
        yield from _single_threaded(bundle, backend, batches, chunks)
        for threads in thread_counts(cores)[1:]:
            yield Variant("tiles", bundle, backend, threads, batch=TYPICAL_BATCH)
            for chunk_lines in _chunks(bundle.manifest, (TYPICAL_CHUNK,)):
                yield Variant("stream", bundle, backend, threads, chunk_lines=chunk_lines)
        if gate is not None:
            yield from _gate_variants(gate, backend, batches)
        if sibling is not None and whole:
            yield from _single_threaded(sibling, backend, (TYPICAL_BATCH,), (TYPICAL_CHUNK,))


def _single_threaded(bundle: Bundle, backend: BackendName, batches: Sequence[int], chunks: Sequence[int]) -> Iterator[Variant]:
    for batch in batches:
        yield Variant("tiles", bundle, backend, 1, batch=batch)
    for chunk_lines in _chunks(bundle.manifest, chunks):
        yield Variant("stream", bundle, backend, 1, chunk_lines=chunk_lines)


def _gate_variants(gate: Bundle, backend: BackendName, batches: Sequence[int]) -> list[Variant]:
    """A gate that has an answer for every cell runs as a stream where it can, others on batches of tiles."""
    if gate.manifest.streaming:
        lines = (TYPICAL_CHUNK * gate.manifest.input.reduce,)
        return [Variant("gate", gate, backend, 1, chunk_lines=chunk) for chunk in _chunks(gate.manifest, lines)]
    return [Variant("gate", gate, backend, 1, batch=batch) for batch in batches]


def _open_trials(plan: Plan, strip: Lines, cores: int, opened: ExitStack) -> Iterator[_Trial]:
    bundle, sibling = open_bundle(plan.config.bundle), _open_sibling(plan.config.bundle)
    gate = open_bundle(plan.config.gate) if plan.config.gate else None
    engines: dict[tuple[str, BackendName, int], BundleEngines | None] = {}
    for variant in variants_of(plan, bundle, sibling, gate, cores):
        key = (variant.bundle.sha256, variant.backend, variant.threads)
        if key not in engines:
            engines[key] = _open(variant, plan, opened)
        ready = engines[key]
        if ready is not None and (trial := _trial(variant, ready, strip)) is not None:
            yield trial


def _open_sibling(named: str) -> Bundle | None:
    sibling = sibling_of(named)
    try:
        return open_bundle(sibling) if sibling else None
    except BundleError:
        return None


def _open(variant: Variant, plan: Plan, opened: ExitStack) -> BundleEngines | None:
    options = SessionOptions(backend=variant.backend, threads=variant.threads, cache=plan.config.session.cache)
    try:
        return opened.enter_context(BundleEngines(variant.bundle, options))
    except (SessionError, BundleError):
        return None


def _trial(variant: Variant, engines: BundleEngines, strip: Lines) -> _Trial | None:
    """The variant with its input; None where its stream cannot be opened at this width."""
    manifest, width = variant.bundle.manifest, strip.shape[1]
    if variant.chunk_lines is None:
        batch = _tiles(strip, manifest, variant.batch or 1)
        pixels = batch.size * manifest.input.reduce**2
        session = engines.tiles
        return _Trial(variant, lambda: session.infer(batch), pixels / 1e6, _times(pixels))
    reduce = manifest.input.reduce
    try:
        columns = padded_columns(-(-width // reduce), dense_halo(variant.bundle), manifest.stride)
        stream = engines.stream(columns, variant.chunk_lines // reduce)
    except (SessionError, BundleError):
        return None
    chunk = np.resize(strip[: variant.chunk_lines], (1, 1, variant.chunk_lines // reduce, columns))
    pixels = variant.chunk_lines * width
    return _Trial(variant, lambda: stream.step(chunk), pixels / 1e6, _times(pixels))


def _tiles(strip: Lines, manifest: Manifest, count: int) -> Batch:
    """(count, 1, h, w) uint8 of the strip, of the engine's own size."""
    height, width = manifest.input.tile_height, manifest.input.tile_width
    return np.resize(strip, (count, 1, height, width))


def _times(pixels: int) -> int:
    return max(1, -(-_LEAST_PIXELS // pixels))


def _chunks(manifest: Manifest, heights: Sequence[int]) -> list[int]:
    """Chunk heights, in lines of the strip, that a bundle can stream with."""
    if manifest.streaming is None:
        return []
    return [height for height in heights if height % (manifest.stride * manifest.input.reduce) == 0]
