"""Strips through the station's segmenters: lines a second, and how long a chunk takes that comes at a pace."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Literal

from benchmarks.gpu_bench.results import LatencyFigures, StripFigures
from benchmarks.gpu_bench.turns import Trial, take_turns
from edge.bench.dense_rate import measure_lines_per_s
from edge.bench.latency import percentile
from edge.bench.results import Figure, figure_of
from edge.bench.strip_source import cut_there_and_back
from edge.config import BackendName, Scale, SessionOptions, SimulatedSource, StationConfig
from edge.engines import Engines
from edge.errors import RustEdgeError
from edge.frame import Lines
from edge.segmenters import Segmenter

CLEAN_SHARE = 0.95
LOAD_SHARE = 0.8
PORTION_LINES = 256
"""Pushed at once, at least: a frame of a usual camera."""
SCALE = Scale()
_OVERSLEPT_S = 1e-3
"""A system may let a thread sleep this much longer than asked: the rest is waited for awake."""


@dataclass(frozen=True, slots=True)
class Course:
    """What a strip is run through with. gate: None: dense."""

    bundle: str
    gate: str | None
    chunk_lines: int

    @property
    def mode(self) -> Literal["dense", "cascade"]:
        """Of the station."""
        return "cascade" if self.gate else "dense"

    @property
    def name(self) -> str:
        """In messages."""
        return f"{self.mode} of {Path(self.bundle).name}, chunks of {self.chunk_lines}"

    def station(self, width: int, backends: tuple[BackendName, ...]) -> StationConfig:
        """The station that it is."""
        return StationConfig(
            source=SimulatedSource(kind="simulated", width=width),
            bundle=self.bundle,
            gate=self.gate,
            mode=self.mode,
            chunk_lines=self.chunk_lines,
            scale=SCALE,
            session=SessionOptions(backend=backends),
        )


def measure_strips(
    courses: Sequence[Course],
    strip: Lines,
    cpu_backends: tuple[BackendName, ...],
    rounds: int,
    seconds: float,
    failed: dict[str, str],
) -> tuple[StripFigures, ...]:
    """Lines a second of every course on the GPU, and on the CPU in the same rounds. What cannot be had is put into `failed`."""
    width = strip.shape[1]
    found: list[tuple[Course, Trial, Trial | None, str | None]] = []
    with ExitStack() as opened:
        for course in courses:
            try:
                trial = Trial(_rate(_open(course, width, ("tensorrt",), opened)[0], strip, course, seconds))
                trial.measure()  # what a device refuses, it refuses here
            except RustEdgeError as error:
                failed[course.name] = str(error)
                continue
            try:
                segmenter, backend = _open(course, width, cpu_backends, opened)
                found.append((course, trial, Trial(_rate(segmenter, strip, course, seconds)), backend))
            except RustEdgeError as error:
                failed[f"{course.name}, on the CPU"] = str(error)
                found.append((course, trial, None, None))
        take_turns([trial for _, gpu, cpu, _ in found for trial in (gpu, cpu) if trial], rounds)
    return tuple(_figures(course, width, gpu.figure, cpu.figure if cpu else None, told) for course, gpu, cpu, told in found)


@dataclass(slots=True)
class _Paced:
    """What was seen of chunks at a pace, in milliseconds. behind_lines: how near rows came to the newest line."""

    waits: list[float] = field(default_factory=list)
    pushes: list[float] = field(default_factory=list)
    rows: list[float] = field(default_factory=list)
    behind_lines: int | None = None
    late: int = 0


def measure_latency(course: Course, strip: Lines, capacity: float, chunks: int, rounds: int) -> LatencyFigures:
    """Chunks at LOAD_SHARE of what the course carries. capacity: lines a second. Raises RustEdgeError."""
    rate_hz = LOAD_SHARE * capacity
    with ExitStack() as opened:
        segmenter, _ = _open(course, strip.shape[1], ("tensorrt",), opened)
        # rows of a cascade come band by band: so many chunks that some do
        chunks = max(chunks, 2 * -(-segmenter.lag_lines // course.chunk_lines))
        seen = [_paced(segmenter, strip, course.chunk_lines, rate_hz, chunks) for _ in range(rounds)]
    behind = min(one.behind_lines for one in seen if one.behind_lines is not None)
    return LatencyFigures(
        mode=course.mode,
        bundle=Path(course.bundle).name,
        load_share=LOAD_SHARE,
        line_rate_hz=rate_hz,
        chunk_lines=course.chunk_lines,
        chunks=rounds * chunks,
        p50_ms=_percentile_of([one.waits for one in seen], 0.5),
        p99_ms=_percentile_of([one.waits for one in seen], 0.99),
        longest_ms=max(max(one.waits) for one in seen),
        push_ms=_percentile_of([one.pushes for one in seen], 0.5).value,
        row_p50_ms=_percentile_of([one.rows for one in seen], 0.5),
        row_p99_ms=_percentile_of([one.rows for one in seen], 0.99),
        behind_lines=behind,
        floor_ms=1e3 * behind / rate_hz,
        late_chunks=sum(one.late for one in seen),
    )


def _percentile_of(rounds: Sequence[Sequence[float]], share: float) -> Figure:
    """Of all rounds' values together, with the range of the rounds' own."""
    ascending = [sorted(one) for one in rounds]
    return figure_of([percentile(one, share) for one in ascending], percentile(sorted(chain(*ascending)), share))


def _paced(segmenter: Segmenter, strip: Lines, chunk_lines: int, rate_hz: float, chunks: int) -> _Paced:
    """One run of chunks, after as many as it takes until rows come steadily."""
    seen, period_s = _Paced(), chunk_lines / rate_hz
    warm = -(-segmenter.lag_lines // chunk_lines) + 4
    segmenter.start(0)
    segmenter.push(cut_there_and_back(strip, 0, warm * chunk_lines))
    begun_s = time.perf_counter()
    for chunk in range(chunks):
        due_s = begun_s + (chunk + 1) * period_s
        while (left_s := due_s - time.perf_counter()) > 0:
            time.sleep(max(0.0, left_s - _OVERSLEPT_S))
        line_stop = (warm + chunk) * chunk_lines
        pushed_s = time.perf_counter()
        rows = segmenter.push(cut_there_and_back(strip, line_stop, chunk_lines))
        done_s = time.perf_counter()
        seen.waits.append((done_s - due_s) * 1e3)
        seen.pushes.append((done_s - pushed_s) * 1e3)
        seen.late += done_s > due_s + period_s
        if rows:
            behind = line_stop + chunk_lines - rows[-1].line_stop
            seen.rows.append((done_s - due_s + behind / rate_hz) * 1e3)
            seen.behind_lines = behind if seen.behind_lines is None else min(behind, seen.behind_lines)
    segmenter.flush()
    return seen


def _open(course: Course, width: int, backends: tuple[BackendName, ...], opened: ExitStack) -> tuple[Segmenter, str]:
    engines = opened.enter_context(Engines(course.station(width, backends), "benchmarks/gpu.py"))
    return engines.segmenter(width), engines.choices[0].backend


def _rate(segmenter: Segmenter, strip: Lines, course: Course, seconds: float) -> Callable[[], float]:
    portion = max(course.chunk_lines, PORTION_LINES)
    return lambda: measure_lines_per_s(segmenter, strip, portion, seconds)


def _figures(course: Course, width: int, gpu: Figure, cpu: Figure | None, backend: str | None) -> StripFigures:
    return StripFigures(
        mode=course.mode,
        bundle=Path(course.bundle).name,
        gate=Path(course.gate).name if course.gate else None,
        width_px=width,
        chunk_lines=course.chunk_lines,
        lines_per_s=gpu,
        megapixels_per_s=Figure(
            value=gpu.value * width / 1e6, lowest=gpu.lowest * width / 1e6, highest=gpu.highest * width / 1e6, rounds=gpu.rounds
        ),
        cpu_backend=backend,
        cpu_lines_per_s=cpu,
        cpu_ratio=gpu.value / cpu.value if cpu else None,
    )
