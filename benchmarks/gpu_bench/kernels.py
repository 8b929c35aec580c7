"""The strip's kernels by themselves: the bytes that they have to move in the time that they take."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.gpu_bench.results import KernelFigures
from benchmarks.gpu_bench.turns import Trial, device_ms, take_turns
from edge.bench.results import figure_of
from edge.cuda.device import CudaDevice, DeviceMemory, Stream
from edge.cuda.kernels import Ring, StripKernels
from edge.scores import Reading

_CHANNELS = 4
_REDUCE = 4
_HALO = 96


def measure_kernels(
    device: CudaDevice, module: bytes | None, width: int, lines: int, copy_gb_per_s: float | None, rounds: int, least_s: float
) -> tuple[KernelFigures, ...]:
    """Figures of each at a station's sizes, on an active device. module: compiled kernels; None: this box compiles them."""
    kernels, stream = StripKernels(device, module), device.stream()
    rng, capacity, columns = np.random.default_rng(0), 2 * lines, width + 2 * _HALO
    made: list[DeviceMemory] = []

    def put(values: np.ndarray) -> int:
        memory, host = device.allocate(values.nbytes), device.page_locked(values.nbytes)
        made.append(memory)
        host.array[:] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        device.upload(memory, 0, host.array, stream)
        stream.synchronize()
        host.free()
        return memory.address

    def room(nbytes: int) -> int:
        made.append(device.allocate(nbytes))
        return made[-1].address

    ring = Ring(put(rng.integers(0, 256, (capacity, width), np.uint8)), capacity, width, 0, 3 * lines)
    corners = put(np.array([[2 * lines, -_HALO]], np.int64))
    shape = (1, _CHANNELS, lines, columns)
    # mostly background, as on a strip: only where something is found are exponentials taken
    logits = rng.normal(0, 1, shape) + np.array([4, 0, 0, 0]).reshape(1, _CHANNELS, 1, 1)
    floats, halves = put(logits.astype(np.float32)), put(logits.astype(np.float16))
    dark, gain = (put(rng.integers(low, high, width).astype(np.uint16)) for low, high in ((0, 2000), (3500, 4700)))
    inner, reading, area = (0, _HALO, lines, width), Reading("softmax"), lines * width
    slab, reduced, classes, corrected = room(lines * columns), room(area // _REDUCE**2), room(2 * area), room(capacity * width)

    def classify(scores: int, dtype: type) -> Callable[[], None]:
        return lambda: kernels.classes(scores, dtype, shape, inner, reading, classes, stream)

    works: dict[str, tuple[str, int, Callable[[], None]]] = {
        "gather": (
            f"a slab of {lines} lines of {columns} columns",
            2 * lines * columns,
            lambda: kernels.gather(ring, corners, 1, lines, columns, slab, stream),
        ),
        "reduce": (
            f"{lines} lines of {width} columns by {_REDUCE}",
            area + area // _REDUCE**2,
            lambda: kernels.reduce(ring, 2 * lines, 0, _REDUCE, lines // _REDUCE, width // _REDUCE, reduced, stream),
        ),
        "classes_of_floats": (f"{_CHANNELS} channels", area * (4 * _CHANNELS + 2), classify(floats, np.float32)),
        "classes_of_halves": (f"{_CHANNELS} channels", area * (2 * _CHANNELS + 2), classify(halves, np.float16)),
        "flat_field": (
            f"{lines} lines of {width} columns",
            2 * area + 4 * width,
            lambda: kernels.flat_field(ring, 2 * lines, lines, dark, gain, corrected, stream),
        ),
    }
    trials = {name: Trial(_microseconds(device, stream, work, least_s)) for name, (_, _, work) in works.items()}
    take_turns(list(trials.values()), rounds)
    for memory in made:
        memory.free()
    figures = []
    for name, (what, nbytes, _) in works.items():
        gb_per_s = figure_of(nbytes / us / 1e3 for us in trials[name].rounds)
        share = gb_per_s.value / copy_gb_per_s if copy_gb_per_s else None
        figures.append(
            KernelFigures(kernel=name, what=what, bytes=nbytes, us=trials[name].figure, gb_per_s=gb_per_s, copy_share=share)
        )
    return tuple(figures)


def _microseconds(device: CudaDevice, stream: Stream, work: Callable[[], None], least_s: float) -> Callable[[], float]:
    return lambda: 1e3 * device_ms(device, stream, work, least_s)
