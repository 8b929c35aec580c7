"""What `benchmarks/gpu.py` found: typed, versioned, written as JSON; every figure has its unit in its name."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, Field

from edge.bench.results import Figure, Machine, Section

FORMAT: Literal["rust-edge-gpu-bench"] = "rust-edge-gpu-bench"
FORMAT_VERSION = 1


class Gpu(Section):
    """The device. cuda: version that the driver supports. seam: what reached it, `edge.cuda.driver` or the tests' own."""

    name: str
    compute: str
    memory_bytes: int
    multiprocessors: int
    integrated: bool
    cuda: str
    seam: str


class GpuState(Section):
    """What the GPU says of itself at one time; None: it does not tell. power_mode: nvpmodel's answer on a Jetson.

    throttled: nvidia-smi's bit mask of reasons why the clock is lower than it could be.
    """

    at: AwareDatetime
    driver: str | None = None
    performance_state: str | None = None
    sm_clock_mhz: float | None = None
    highest_sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    highest_memory_clock_mhz: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    throttled: str | None = None
    power_mode: str | None = None
    zones_c: dict[str, float] = Field(default_factory=dict)
    frequencies_mhz: dict[str, float] = Field(default_factory=dict)


class MatrixFigures(Section):
    """A large matrix product on random data. by: the library that ran it."""

    precision: Literal["fp32", "fp16", "int8"]
    side: int
    by: str
    tflop_per_s: Figure


class Ceilings(Section):
    """What the device does at best, measured in this run. copy_gb_per_s: bytes read and bytes written, of a kernel that copies.

    upload_gb_per_s, download_gb_per_s: from and to page-locked memory.
    """

    bytes: int
    upload_gb_per_s: Figure
    download_gb_per_s: Figure
    fill_gb_per_s: Figure
    copy_gb_per_s: Figure | None = None
    matrix: tuple[MatrixFigures, ...] = ()


class EngineFigures(Section):
    """An engine alone at one batch.

    tiles_per_s: on the clock, pixels of the host in, scores of the host out. device_tiles_per_s: by events around the
    inference alone, everything on the device. tflop_per_s: the manifest's operations in that time; matrix_share: of the measured
    product of that precision.
    """

    bundle: str
    precision: str
    batch: int
    tile_px: tuple[int, int]
    tiles_per_s: Figure
    device_tiles_per_s: Figure
    device_ms: Figure
    tflop_per_s: Figure
    matrix_share: float | None = None
    cpu_tiles_per_s: Figure | None = None
    cpu_backend: str | None = None
    cpu_ratio: float | None = None


class StripFigures(Section):
    """Lines in, mask rows out, as the station runs it. cpu_*: the same strip in the same rounds without the GPU."""

    mode: Literal["dense", "cascade"]
    bundle: str
    gate: str | None = None
    width_px: int
    chunk_lines: int
    lines_per_s: Figure
    megapixels_per_s: Figure
    cpu_backend: str | None = None
    cpu_lines_per_s: Figure | None = None
    cpu_ratio: float | None = None


class OverlapFigures(Section):
    """Copies and computing of one batch, each alone and as they run on two lanes in turn.

    pieces_ms: of the three one after the other. together_ms: per batch, two lanes at work. hidden: share of what could be
    hidden behind the longest piece that was; 1: all of it, 0: none.
    """

    bundle: str
    batch: int
    upload_ms: Figure
    compute_ms: Figure
    download_ms: Figure
    pieces_ms: float
    together_ms: Figure
    hidden: float


class LatencyFigures(Section):
    """Chunks that come at a pace.

    p50_ms, p99_ms: from when a chunk's last line was due until its push was done. row_p50_ms, row_p99_ms: from when a row's
    line was due until its mask was there; behind_lines: by which rows trail the newest line at least, floor_ms: the time in which
    those pass. push_ms: what a push took by itself, the median. late_chunks: that were not done when the next one was due.
    """

    mode: Literal["dense", "cascade"]
    bundle: str
    load_share: float
    line_rate_hz: float
    chunk_lines: int
    chunks: int
    p50_ms: Figure
    p99_ms: Figure
    longest_ms: float
    push_ms: float
    row_p50_ms: Figure
    row_p99_ms: Figure
    behind_lines: int
    floor_ms: float
    late_chunks: int


class KernelFigures(Section):
    """One of the strip's kernels. bytes: that it has to read and write at least. copy_share: of the measured copy."""

    kernel: str
    what: str
    bytes: int
    us: Figure
    gb_per_s: Figure
    copy_share: float | None = None


class Results(Section):
    """One run. measured_on_gpu: False: made without one, to see that the benchmark runs; its figures say nothing of any GPU.

    not_measured: what -> why. failed: what -> why, where it should have worked.
    """

    format: Literal["rust-edge-gpu-bench"] = FORMAT
    format_version: int = FORMAT_VERSION
    measured_on_gpu: bool
    note: str
    began_at: AwareDatetime
    seconds: float
    command: str
    quick: bool
    rounds: int = Field(ge=1)
    versions: dict[str, str]
    machine: Machine
    gpu: Gpu
    before: GpuState
    after: GpuState | None = None
    ceilings: Ceilings | None = None
    engines: tuple[EngineFigures, ...] = ()
    strips: tuple[StripFigures, ...] = ()
    overlap: tuple[OverlapFigures, ...] = ()
    latency: tuple[LatencyFigures, ...] = ()
    kernels: tuple[KernelFigures, ...] = ()
    not_measured: dict[str, str] = Field(default_factory=dict)
    failed: dict[str, str] = Field(default_factory=dict)


def text_of(results: Results) -> str:
    """The main figures for a terminal."""
    gpu = results.gpu
    lines = [f"{gpu.name} (compute {gpu.compute}, CUDA {gpu.cuda}), by {gpu.seam}", results.note]
    if results.ceilings is not None:
        copy = results.ceilings.copy_gb_per_s
        told = f"copy {copy.value:.0f} GB/s, " if copy else ""
        lines.append(
            f"ceilings: {told}upload {results.ceilings.upload_gb_per_s.value:.1f}, "
            f"download {results.ceilings.download_gb_per_s.value:.1f} GB/s"
            + "".join(f", {one.precision} product {one.tflop_per_s.value:.0f} TFLOP/s" for one in results.ceilings.matrix)
        )
    for engine in results.engines:
        lines.append(
            f"{engine.bundle:>24} batch {engine.batch:>2}: {engine.tiles_per_s.value:9.1f} tiles/s, on the device "
            f"{engine.device_tiles_per_s.value:9.1f}, {engine.tflop_per_s.value:6.2f} TFLOP/s" + _ratio(engine.cpu_ratio)
        )
    for strip in results.strips:
        lines.append(
            f"{strip.mode:>24} chunks of {strip.chunk_lines:>3}: {strip.lines_per_s.value:9.0f} lines/s of {strip.width_px} px"
            + _ratio(strip.cpu_ratio)
        )
    for overlap in results.overlap:
        lines.append(
            f"{overlap.bundle:>24} batch {overlap.batch:>2}: pieces {overlap.pieces_ms:.2f} ms, together "
            f"{overlap.together_ms.value:.2f} ms, {overlap.hidden:.0%} of what could be hidden was"
        )
    for latency in results.latency:
        lines.append(
            f"{latency.mode:>24} chunks of {latency.chunk_lines:>3} at {latency.load_share:.0%} of capacity: p50 "
            f"{latency.p50_ms.value:.2f} ms, p99 {latency.p99_ms.value:.2f} ms"
        )
    for kernel in results.kernels:
        share = "" if kernel.copy_share is None else f", {kernel.copy_share:.0%} of the copy"
        lines.append(f"{kernel.kernel:>24}: {kernel.gb_per_s.value:8.1f} GB/s, {kernel.us.value:8.1f} us{share}")
    lines += [f"not measured: {what}: {why}" for what, why in results.not_measured.items()]
    lines += [f"FAILED: {what}: {why}" for what, why in results.failed.items()]
    return "\n".join(lines)


def _ratio(ratio: float | None) -> str:
    return "" if ratio is None else f", {ratio:.1f} x the CPU"
