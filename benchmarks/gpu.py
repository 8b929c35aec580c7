"""What the GPU of this machine carries, against ceilings measured in the same run and against the CPU beside it.

    python benchmarks/gpu.py [--quick] [--json FILE] [--bundles NAME_OR_PATH ...] [--gate NAME_OR_PATH]

Engines by batch and precision, dense and cascade in lines a second, copies beside computing, latency at 80 % of capacity, the
strip's kernels. Nothing of the GPU is set: clocks, power mode and temperature are only read, before and after. Needs a GPU,
TensorRT, and what rust-edge needs; works without a network. Results: docs/gpu.md says how to read them.

With RUST_EDGE_GPU_TESTS=strict it runs on a stand-in, to show that it runs at all; its results say so.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "gpu")]

from stand import SEAMS, Absent, Stand, chosen  # noqa: E402

PARTS = ("ceilings", "engines", "strips", "overlap", "latency", "kernels")
BUNDLES = ("steel-unet-fp32", "steel-unet-int8", "steel-gate-fp32", "steel-gate-int8")
CPU_BACKENDS = ("openvino", "ort")
LIBRARIES = ("rust-edge", "numpy", "onnxruntime", "openvino", "pycuda", "torch", "cupy-cuda13x", "cupy-cuda12x")
CASCADE_CHUNK = 64
NO_GPU = 2


@dataclass(frozen=True, slots=True)
class Effort:
    """least_s: of a round of one trial. copy_bytes, matrix_side: of the ceilings, many times a cache."""

    rounds: int
    batches: tuple[int, ...]
    chunks: tuple[int, ...]
    least_s: float
    strip_s: float
    copy_bytes: int
    matrix_side: int | None
    paced_chunks: int


WHOLE = Effort(5, (1, 2, 4, 8, 16, 32), (16, 32, 64, 128, 256), 0.3, 1.5, 1 << 30, 8192, 1000)
QUICK = Effort(3, (1, 4, 16), (64,), 0.05, 0.3, 256 << 20, 4096, 200)
LEAST = Effort(1, (1, 2), (64,), 0.001, 0.01, 1 << 20, None, 3)
"""On a stand-in, whose times mean nothing."""


def main() -> int:
    """0: measured; 1: a part failed; 2: there is no GPU."""
    arguments = _arguments()
    try:
        stand = chosen()
        seam, opener = _first_seam(stand)
    except ValueError as error:
        print(error, file=sys.stderr)
        return NO_GPU
    except Absent as absent:
        print(f"no GPU to measure: {absent}; expected a CUDA device (docs/gpu.md)", file=sys.stderr)
        return NO_GPU
    try:
        # now, not before: what a machine lacks for rust-edge itself is told after what it lacks for the GPU
        from benchmarks.gpu_bench.results import text_of
    except ModuleNotFoundError as error:
        print(f"no {error.name}: expected what rust-edge itself needs (pip install .)", file=sys.stderr)
        return NO_GPU
    effort = LEAST if not stand.real else QUICK if arguments.quick else WHOLE
    with stand.tensorrt() as missing:
        results = _measure(arguments, stand, seam, opener, effort, missing)
    if arguments.json:
        arguments.json.write_text(results.model_dump_json(indent=1) + "\n", encoding="utf-8")
    print(text_of(results))
    return 1 if results.failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="rough figures in a minute or two")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=f"some of {', '.join(PARTS)}")
    parser.add_argument(
        "--bundles", nargs="+", default=list(BUNDLES), metavar="BUNDLE", help="shipped names or paths, fp16 ones among them"
    )
    parser.add_argument("--unet", default="steel-unet-int8", metavar="BUNDLE", help="of the strips: shipped name or path")
    parser.add_argument("--gate", default="steel-gate-int8", metavar="BUNDLE", help="of the cascade: shipped name or path")
    parser.add_argument("--width", type=int, default=4096, metavar="PX", help="columns of the strip (default: 4096)")
    parser.add_argument("--lines", type=int, default=8192, metavar="N", help="lines of the strip, run there and back")
    return parser.parse_args()


def _first_seam(stand: Stand) -> tuple[str, Any]:
    """What reaches the GPU: the product's way, else the tests' own. Raises Absent with both reasons."""
    reasons = []
    for seam in SEAMS:
        try:
            return seam, stand.opener(seam)
        except Absent as absent:
            reasons.append(str(absent))
    raise Absent("; ".join(dict.fromkeys(reasons)))


def _measure(arguments: argparse.Namespace, stand: Stand, seam: str, opener: Any, effort: Effort, no_tensorrt: str | None) -> Any:
    from benchmarks.gpu_bench.ceilings import measure_ceilings
    from benchmarks.gpu_bench.kernels import measure_kernels
    from benchmarks.gpu_bench.results import Gpu, Results
    from benchmarks.gpu_bench.state import read_state
    from edge import machine
    from edge.bench.results import Machine, now_utc

    begun_s, memory = time.monotonic(), machine.memory_mib()
    failed: dict[str, str] = {}
    not_measured: dict[str, str] = {}
    found: dict[str, Any] = {"before": read_state(), "began_at": now_utc()}
    with opener() as device, device.active():
        properties = device.properties
        if "ceilings" in arguments.only:
            with _part("ceilings", failed):
                reached = measure_ceilings(device, effort.copy_bytes, effort.matrix_side, effort.rounds, effort.least_s)
                found["ceilings"] = reached.ceilings
                not_measured |= reached.not_measured
        ceilings = found.get("ceilings")
        if "kernels" in arguments.only:
            with _part("kernels", failed):
                copy = ceilings.copy_gb_per_s.value if ceilings and ceilings.copy_gb_per_s else None
                where = (arguments.width, 256 if stand.real else 16)
                found["kernels"] = measure_kernels(device, stand.kernels, *where, copy, effort.rounds, effort.least_s)
    engines = [part for part in ("engines", "strips", "overlap", "latency") if part in arguments.only]
    if no_tensorrt:
        not_measured |= dict.fromkeys(engines, no_tensorrt)
    elif engines:
        found |= _measure_engines(arguments, effort, ceilings, failed)
    return Results(
        measured_on_gpu=stand.real,
        note="measured on this machine's GPU"
        if stand.real
        else f"NOT measured on a GPU: a stand-in ({stand.kind}) in its place, no figure says anything of any GPU",
        seconds=time.monotonic() - begun_s,
        command=shlex.join(["python", "benchmarks/gpu.py", *sys.argv[1:]]),
        quick=arguments.quick,
        rounds=effort.rounds,
        versions=_versions(),
        machine=Machine(
            processor=machine.processor(),
            architecture=platform.machine(),
            system=platform.platform(),
            cores=machine.cores(),
            memory_mib=memory[0] if memory else None,
            load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        ),
        gpu=Gpu(
            name=properties.name,
            compute=properties.compute,
            memory_bytes=properties.memory_bytes,
            multiprocessors=properties.multiprocessors,
            integrated=properties.integrated,
            cuda=properties.driver,
            seam={"pycuda": "edge.cuda.driver", "plain": "tests/gpu/plain_device.py"}[seam] if stand.real else stand.kind,
        ),
        after=read_state(),
        not_measured=not_measured,
        failed=failed,
        **found,
    )


def _measure_engines(arguments: argparse.Namespace, effort: Effort, ceilings: Any, failed: dict[str, str]) -> dict[str, Any]:
    """What needs TensorRT."""
    from benchmarks.gpu_bench import engines, strips
    from edge.bench.strips import make_strip
    from edge.bundle import open_bundle

    found: dict[str, Any] = {}
    cpu = tuple(name for name in CPU_BACKENDS if importlib.util.find_spec({"ort": "onnxruntime"}.get(name, name)))
    bundles = [open_bundle(name) for name in arguments.bundles]
    if "engines" in arguments.only:
        with _part("engines", failed):
            rounds, least_s = effort.rounds, effort.least_s
            found["engines"] = engines.measure_engines(bundles, effort.batches, cpu, ceilings, rounds, least_s, failed)
    if "overlap" in arguments.only:
        overlap = found["overlap"] = []
        for bundle in bundles:
            for batch in effort.batches[-2:]:
                with _part(f"overlap of {bundle.manifest.name}, batch {batch}", failed):
                    overlap.append(engines.measure_overlap(bundle, batch, effort.rounds, effort.least_s))
    if not {"strips", "latency"} & set(arguments.only):
        return found
    rates: tuple[Any, ...] = ()
    with _part("strips", failed):
        strip = make_strip(arguments.width, arguments.lines, strips.SCALE, strips.CLEAN_SHARE).lines
        courses = [strips.Course(arguments.unet, None, chunk) for chunk in effort.chunks]
        courses.append(strips.Course(arguments.unet, arguments.gate, CASCADE_CHUNK))
        rates = strips.measure_strips(courses, strip, cpu, effort.rounds, effort.strip_s, failed)
        if "strips" in arguments.only:
            found["strips"] = rates
    if "latency" in arguments.only:
        latency = found["latency"] = []
        for rate in rates:
            course = strips.Course(arguments.unet, arguments.gate if rate.gate else None, rate.chunk_lines)
            with _part(f"latency of {course.name}", failed):
                capacity = rate.lines_per_s.value
                latency.append(strips.measure_latency(course, strip, capacity, effort.paced_chunks, effort.rounds))
    return found


@contextmanager
def _part(name: str, failed: dict[str, str]) -> Iterator[None]:
    """A part whose end, whatever it is, leaves the other parts' figures."""
    print(f"... {name}", file=sys.stderr)
    try:
        yield
    except Exception as error:
        failed[name] = f"{type(error).__name__}: {error}"


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    from edge.sessions.trt.library import find_tensorrt, version_of

    trt = find_tensorrt()
    if not isinstance(trt, str):
        versions["tensorrt"] = version_of(trt)
    return versions


if __name__ == "__main__":
    sys.exit(main())
