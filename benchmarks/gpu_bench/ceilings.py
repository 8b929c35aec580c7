"""What the device does at best, measured: copies to, from and on it, and a large matrix product."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from benchmarks.gpu_bench.results import Ceilings, MatrixFigures
from benchmarks.gpu_bench.turns import Trial, device_ms, take_turns
from edge.bench.results import Figure
from edge.cuda.compilers import compilers
from edge.cuda.device import CudaDevice, Kernel
from edge.errors import SessionError

_COPY = """
extern "C" __global__ void copy(const uint4 *source, uint4 *target, unsigned long long count) {
    unsigned long long step = static_cast<unsigned long long>(gridDim.x) * blockDim.x;
    for (unsigned long long at = static_cast<unsigned long long>(blockIdx.x) * blockDim.x + threadIdx.x; at < count; at += step)
        target[at] = source[at];
}
"""
_VECTOR = 16
_BLOCKS_PER_MULTIPROCESSOR = 32
Precision = Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True, slots=True)
class Found:
    """The ceilings, and what of them could not be had, with the reason."""

    ceilings: Ceilings
    not_measured: Mapping[str, str]


def measure_ceilings(device: CudaDevice, nbytes: int, side: int | None, rounds: int, least_s: float) -> Found:
    """Ceilings of an active device. nbytes: of a copy, a multiple of 16. side: of the matrices; None: no product."""
    not_measured: dict[str, str] = {}
    stream = device.stream()
    source, target, host = device.allocate(nbytes), device.allocate(nbytes), device.page_locked(nbytes)
    host.array[:] = np.random.default_rng(0).integers(0, 256, nbytes, np.uint8)
    device.upload(source, 0, host.array, stream)
    stream.synchronize()

    def rate(moved: int, enqueue: Callable[[], object]) -> Trial:
        return Trial(lambda: moved / device_ms(device, stream, enqueue, least_s) / 1e6)

    trials = {
        "upload": rate(nbytes, lambda: device.upload(source, 0, host.array, stream)),
        "download": rate(nbytes, lambda: device.download(host.array, source, 0, stream)),
        "fill": rate(nbytes, lambda: device.fill(target, 0, nbytes, 3, stream)),
    }
    try:
        copy = _copy_kernel(device)
        count = nbytes // _VECTOR
        grid = (min(-(-count // 256), _BLOCKS_PER_MULTIPROCESSOR * device.properties.multiprocessors), 1, 1)
        arguments = (np.uint64(source.address), np.uint64(target.address), np.uint64(count))
        trials["copy"] = rate(2 * nbytes, lambda: device.launch(copy, grid, (256, 1, 1), arguments, stream))
    except SessionError as error:
        not_measured["ceilings: copy"] = str(error)
    take_turns(list(trials.values()), rounds)
    for memory in (source, target, host):
        memory.free()
    matrix, missing = ((), {"ceilings: matrix product": "no GPU"}) if side is None else _matrix_products(side, rounds)
    figures: dict[str, Figure] = {f"{name}_gb_per_s": trial.figure for name, trial in trials.items()}
    return Found(Ceilings(bytes=nbytes, matrix=matrix, **figures), not_measured | missing)


def matrix_ceiling(ceilings: Ceilings | None, precision: str) -> float | None:
    """TFLOP/s of the product of a bundle's precision; None where it was not measured."""
    found = [one.tflop_per_s.value for one in (ceilings.matrix if ceilings else ()) if one.precision == precision]
    return found[0] if found else None


def _copy_kernel(device: CudaDevice) -> Kernel:
    properties = device.properties
    architecture = f"sm_{properties.compute.replace('.', '')}"
    for compiler in compilers():
        if compiler.release[0] <= int(properties.driver.split(".")[0]) and architecture in compiler.architectures:
            return device.load(compiler.to_cubin(_COPY, (f"-arch={architecture}",)), ("copy",))["copy"]
    raise SessionError(f"no compiler for {architecture}; expected NVRTC or nvcc, not newer than the driver's CUDA")


def _matrix_products(side: int, rounds: int) -> tuple[tuple[MatrixFigures, ...], dict[str, str]]:
    """Through torch, else CuPy, whichever sees the GPU: a library's product is the best that most code ever gets."""
    reasons = []
    for library, products in (("torch", _torch_products), ("cupy", _cupy_products)):
        try:
            module = importlib.import_module(library)
            trials = {precision: Trial(measure) for precision, measure in products(module, side).items()}
            take_turns(list(trials.values()), rounds)
        except Exception as error:  # whatever a library that is no part of this says
            reasons.append(f"{library}: {' '.join(str(error).split())[:200] or type(error).__name__}")
            continue
        by = f"{library} {module.__version__}"
        return tuple(
            MatrixFigures(precision=precision, side=side, by=by, tflop_per_s=trial.figure) for precision, trial in trials.items()
        ), {}
    return (), {"ceilings: matrix product": "; ".join(reasons)}


def _torch_products(torch: Any, side: int) -> dict[Precision, Callable[[], float]]:
    if not torch.cuda.is_available():
        raise RuntimeError("sees no GPU")
    torch.backends.cuda.matmul.allow_tf32 = False  # as engines are built

    def timed(multiply: Callable[[], Any]) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        multiply()
        begin.record()
        for _ in range(10):
            multiply()
        end.record()
        end.synchronize()
        return 10 * 2 * side**3 / begin.elapsed_time(end) / 1e9

    def product(dtype: Any) -> Callable[[], float]:
        one, other = (torch.randn(side, side, device="cuda").to(dtype) for _ in range(2))
        return lambda: timed(lambda: one @ other)

    one, other = (torch.randint(-127, 127, (side, side), device="cuda", dtype=torch.int8) for _ in range(2))
    return {
        "fp32": product(torch.float32),
        "fp16": product(torch.float16),
        "int8": lambda: timed(lambda: torch._int_mm(one, other.t())),
    }


def _cupy_products(cupy: Any, side: int) -> dict[Precision, Callable[[], float]]:
    if not cupy.cuda.is_available():
        raise RuntimeError("sees no GPU")

    def product(dtype: Any) -> Callable[[], float]:
        one, other = (cupy.random.standard_normal((side, side), dtype=cupy.float32).astype(dtype) for _ in range(2))

        def measure() -> float:
            begin, end = cupy.cuda.Event(), cupy.cuda.Event()
            one @ other
            begin.record()
            for _ in range(10):
                one @ other
            end.record()
            end.synchronize()
            return 10 * 2 * side**3 / cupy.cuda.get_elapsed_time(begin, end) / 1e9

        return measure

    return {"fp32": product(cupy.float32), "fp16": product(cupy.float16)}
