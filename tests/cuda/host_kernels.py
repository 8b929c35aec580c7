"""The kernels of edge/cuda/kernels.cu on the CPU: the same source compiled by g++, thread after thread.

The library that `build` makes exports for each kernel

    void host_<name>(unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, void **parameters)

which runs the whole grid, parameters as those of cuLaunchKernel, and `unsigned host_faults(void)`: how often, since it was
asked last, a kernel did what a GPU would not have done alike: a word at an address that is no multiple of its size, a signed
number that overflowed, a shift by more bits than there are. -fsanitize=undefined finds them; here they are counted.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge.cuda.device import DeviceProperties

SOURCE = Path(__file__).parents[2] / "edge" / "cuda" / "kernels.cu"

_TYPES = {
    "int": np.int32,
    "Line": np.int64,
    "float": np.float32,
}
"""Of a parameter in the source, of an argument in Python; whatever has a star is an address."""
_SIGNATURE = re.compile(r'extern "C" __global__ void (\w+)\(([^)]*)\)')

_SHIM = """
#include <cmath>
#include <cstring>
#include <tuple>
#include <utility>

struct Extent { unsigned x, y, z; };
static thread_local Extent threadIdx, blockIdx, blockDim, gridDim;
#define __global__
#define __device__

static inline float __uint_as_float(unsigned bits) { float value; std::memcpy(&value, &bits, 4); return value; }
static inline unsigned __float_as_uint(float value) { unsigned bits; std::memcpy(&bits, &value, 4); return bits; }
"""

_RUN = """
template <typename... A, std::size_t... I>
static void call(void (*kernel)(A...), void **parameters, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_reference_t<A> *>(parameters[I])...);
}

template <typename... A>
static void run(void (*kernel)(A...), Extent grid, Extent block, void **parameters) {
    gridDim = grid;
    blockDim = block;
    for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
    for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x)
        for (threadIdx.z = 0; threadIdx.z < block.z; ++threadIdx.z)
        for (threadIdx.y = 0; threadIdx.y < block.y; ++threadIdx.y)
        for (threadIdx.x = 0; threadIdx.x < block.x; ++threadIdx.x)
            call(kernel, parameters, std::index_sequence_for<A...>{});
}

static unsigned faults;

extern "C" {
unsigned host_faults(void) { unsigned found = faults; faults = 0; return found; }
void __ubsan_handle_type_mismatch_v1(void *, void *) { ++faults; }
void __ubsan_handle_add_overflow(void *, void *, void *) { ++faults; }
void __ubsan_handle_sub_overflow(void *, void *, void *) { ++faults; }
void __ubsan_handle_mul_overflow(void *, void *, void *) { ++faults; }
void __ubsan_handle_negate_overflow(void *, void *) { ++faults; }
void __ubsan_handle_divrem_overflow(void *, void *, void *) { ++faults; }
void __ubsan_handle_shift_out_of_bounds(void *, void *, void *) { ++faults; }
"""

_EXPORT = """
void host_{name}(unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, void **parameters) {{
    run({name}, {{gx, gy, gz}}, {{bx, by, bz}}, parameters);
}}
"""

_OPTIONS = (
    "-std=c++17",
    "-O2",
    "-Wall",
    "-Werror",
    "-Wno-unknown-pragmas",
    "-fPIC",
    "-shared",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-fsanitize=alignment,shift,signed-integer-overflow,integer-divide-by-zero",
    "-Wl,-Bsymbolic",
)


def signatures(source: str | None = None) -> dict[str, tuple[type[np.generic], ...]]:
    """Every kernel of the source, and what its arguments are in Python."""
    text = SOURCE.read_text(encoding="utf-8") if source is None else source
    return {
        name: tuple(np.uint64 if "*" in parameter else _TYPES[parameter.split()[0]] for parameter in parameters.split(","))
        for name, parameters in _SIGNATURE.findall(text)
    }


def build(folder: Path, source: Path = SOURCE) -> Path:
    """The library, in a folder that keeps it as long as the source stays as it is. Raises FileNotFoundError without g++."""
    compiler = shutil.which("g++")
    if compiler is None:
        raise FileNotFoundError("no g++ to compile the kernels for the CPU")
    exports = "".join(_EXPORT.format(name=name) for name in signatures(source.read_text(encoding="utf-8")))
    text = f'{_SHIM}#line 1 "{source.name}"\n{source.read_text(encoding="utf-8")}{_RUN}{exports}}}\n'
    digest = hashlib.sha256("\0".join((text, *_OPTIONS)).encode()).hexdigest()[:16]
    library = folder / f"libhost_kernels-{digest}.so"
    if not library.exists():
        written = folder / f"{library.stem}-{os.getpid()}.cpp"
        written.write_text(text, encoding="utf-8")
        partly = written.with_suffix(".so")
        subprocess.run([compiler, *_OPTIONS, "-o", partly, written], check=True)
        partly.rename(library)
    return library


@dataclass(frozen=True, slots=True)
class HostKernel:
    """A kernel of the library. parameters: types that its arguments must have."""

    name: str
    parameters: tuple[type[np.generic], ...]


class HostLauncher:
    """Loads and launches kernels as a device does, at once and on the CPU; addresses are those of this process."""

    properties = DeviceProperties("CPU", "0.0", 0, 1, True, "0.0")

    def __init__(self, library: Path, source: Path = SOURCE) -> None:
        self._library = ctypes.CDLL(str(library))
        self._signatures = signatures(source.read_text(encoding="utf-8"))

    def load(self, cubin: bytes, names: Sequence[str]) -> dict[str, HostKernel]:
        return {name: HostKernel(name, self._signatures[name]) for name in names}

    def launch(
        self,
        kernel: HostKernel,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: Sequence[np.generic],
        stream: object,
    ) -> None:
        types = tuple(type(argument) for argument in arguments)
        assert types == kernel.parameters, f"{kernel.name}: got {types}, expected {kernel.parameters}"
        places = [np.array(argument) for argument in arguments]
        parameters = (ctypes.c_void_p * len(places))(*(place.ctypes.data for place in places))
        self._library[f"host_{kernel.name}"](*map(ctypes.c_uint, (*grid, *block)), parameters)
        faults = self._library.host_faults()
        assert not faults, f"{kernel.name}: {faults} accesses or sums that a GPU does not do alike"
