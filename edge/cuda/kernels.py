"""The kernels of `kernels.cu`, compiled for the GPU of this box and launched: crops, reduction, classes, flat field.

All of them run on the caller's stream and return at once; addresses are the device's.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edge.cache_folder import user_cache
from edge.cuda.compilers import compilers
from edge.cuda.device import CudaDevice, Kernel, Stream
from edge.engine_cache import EngineKey, engine_path, read_engine, write_engine
from edge.errors import SessionError
from edge.scores import Activation, Head, Reading, least_score

_log = logging.getLogger(__name__)

SOURCE: Final = "kernels.cu"
NAMES: Final = ("gather", "reduce", "classes_of_floats", "classes_of_halves", "classes_of_masks", "flat_field")
MEANINGS: Final[dict[tuple[Activation, Head], int]] = {
    ("softmax", "logits"): 0,
    ("softmax", "probabilities"): 1,
    ("sigmoid", "logits"): 2,
    ("sigmoid", "probabilities"): 3,
}
"""Numbers of `Meaning` in the source."""
LARGEST_FACTOR: Final = 256
"""Of a reduction: 255 factor^2, the largest sum, is exact in a float32 up to here."""

_BLOCK = (32, 8, 1)
_WORD = 4
"""Bytes that a thread of `gather` and `flat_field` takes at once."""
_WORDS = 4
"""Of a line, that a thread of `gather` takes."""
_MOST_BLOCKS = 65535
"""Of a grid's second and third side. Source: CUDA C++ Programming Guide, technical specifications per compute capability."""
_LARGEST_SIZE = 1 << 30
"""Of what a kernel counts in 32 bits; a step beyond the last one still fits."""
_FARTHEST = 1 << 61
"""Of positions that a kernel counts in 64 bits; a rectangle from there on still fits."""


@dataclass(frozen=True, slots=True)
class Ring:
    """The last lines of a run on the device, (capacity, width) uint8: line l lies in row l % capacity.

    begin, line_stop: the run's lines; what lies beyond them, and beyond the strip's sides, is reflected. Lines that a kernel
    looks at are among the last `capacity`; of others it reads what took their place. Raises ValueError.
    """

    address: int
    capacity: int
    width: int
    begin: int
    line_stop: int

    def __post_init__(self) -> None:
        _check_address("ring", self.address, 1)
        _check_sizes(capacity=self.capacity, width=self.width)
        _check_positions(begin=self.begin, line_stop=self.line_stop)
        if self.begin >= self.line_stop:
            raise ValueError(f"a run has at least one line, got lines {self.begin} to {self.line_stop}")


class StripKernels:
    """The kernels, loaded on a device; used inside `device.active()`.

    module: a cubin of `kernels.cu` for exactly this GPU; None: taken from the user's cache, or compiled.
    Methods raise ValueError for what no kernel can do, SessionError where the device does not.
    """

    def __init__(self, device: CudaDevice, module: bytes | None = None) -> None:
        if module is None:
            module = compile_kernels(device.properties.compute, device.properties.driver)
        self._device = device
        self._kernels: dict[str, Kernel] = device.load(module, NAMES)

    def gather(self, ring: Ring, corners: int, crops: int, lines: int, columns: int, out: int, stream: Stream) -> None:
        """Crops of the strip, as `StripWindow.cut` gives them.

        corners: int64 (crops, 2), line and column where each begins, also beyond the strip. out: uint8 (crops, lines, columns).
        """
        _check_sizes(crops=crops, lines=lines, columns=columns)
        _check_address("corners", corners, 8)
        _check_address("out", out, 1)
        self._launch(
            "gather",
            (-(-columns // (_WORD * _WORDS)), lines, crops),
            (*_of_ring(ring), np.uint64(corners), np.int32(crops), np.int32(lines), np.int32(columns), np.uint64(out)),
            stream,
        )

    def reduce(self, ring: Ring, line: int, column: int, factor: int, lines: int, columns: int, out: int, stream: Stream) -> None:
        """Means of factor x factor pixels, those of cv2's INTER_AREA: out uint8 (lines, columns).

        The first block begins at `line` and `column` of the strip; each of its pixels is reflected for itself.
        """
        _check_sizes(factor=factor, lines=lines, columns=columns)
        _check_positions(line=line, column=column)
        _check_address("out", out, 1)
        if factor > LARGEST_FACTOR:
            raise ValueError(f"got a reduction by {factor}, expected at most {LARGEST_FACTOR}")
        where = (np.int64(line), np.int64(column), np.int32(factor), np.int32(lines), np.int32(columns), np.uint64(out))
        self._launch("reduce", (columns, lines, 1), (*_of_ring(ring), *where), stream)

    def classes(
        self,
        scores: int,
        dtype: npt.DTypeLike,
        shape: tuple[int, int, int, int],
        rectangle: tuple[int, int, int, int],
        reading: Reading,
        out: int,
        stream: Stream,
    ) -> None:
        """Class and confidence of a rectangle of every tile, those of `edge.scores.classify`: out uint8 (n, 2, lines, columns).

        scores: (n, c, h, w) float32 or float16, of a mask head uint8 (n, 2, h, w). rectangle: top, left, lines, columns.
        A float16 counts as the float32 of the same value. Where the highest logit is infinite the confidence is 0.
        """
        taken = np.dtype(dtype)
        n, channels, height, width = shape
        top, left, lines, columns = rectangle
        _check_sizes(n=n, channels=channels, height=height, width=width, lines=lines, columns=columns)
        _check_address("scores", scores, taken.itemsize)
        _check_address("out", out, 1)
        if not (0 <= top <= height - lines and 0 <= left <= width - columns):
            raise ValueError(f"got {lines} x {columns} pixels from ({top}, {left}) on, expected some of {height} x {width}")
        name = _kernel_of(taken, channels, reading)
        inner = (np.int32(top), np.int32(left), np.int32(lines), np.int32(columns))
        arguments: tuple[np.generic, ...]
        if name == "classes_of_masks":
            arguments = (np.uint64(scores), np.int32(n), np.int32(height), np.int32(width), *inner, np.uint64(out))
        else:
            sizes = (np.int32(n), np.int32(channels), np.int32(height), np.int32(width))
            least = np.float32(least_score(reading.level, reading.head, None))
            meaning = np.int32(MEANINGS[reading.activation, reading.head])
            arguments = (np.uint64(scores), *sizes, *inner, meaning, least, np.uint64(out))
        self._launch(name, (columns, lines, n), arguments, stream)

    def flat_field(self, ring: Ring, line: int, lines: int, dark: int, gain: int, out: int, stream: Stream) -> None:
        """Lines from `line` on corrected column by column into the ring at `out`, of the same size; `ring.address`: in place.

        dark: uint16 (width,), grey levels in 1/256. gain: uint16 (width,), in 1/4096. Of a grey level above 255 or below 0 the
        nearest that there is.
        """
        _check_sizes(lines=lines)
        for of, address, alignment in (("dark", dark, 2), ("gain", gain, 2), ("out", out, 1)):
            _check_address(of, address, alignment)
        if lines > ring.capacity or line < ring.begin or line + lines > ring.line_stop:
            raise ValueError(
                f"got lines {line} to {line + lines}, expected at most {ring.capacity} of {ring.begin} to {ring.line_stop}"
            )
        sizes = (np.int32(ring.capacity), np.int32(ring.width), np.int64(line), np.int32(lines))
        arguments = (np.uint64(ring.address), np.uint64(out), *sizes, np.uint64(dark), np.uint64(gain))
        self._launch("flat_field", (-(-ring.width // _WORD), lines, 1), arguments, stream)

    def _launch(self, name: str, threads: tuple[int, int, int], arguments: tuple[np.generic, ...], stream: Stream) -> None:
        """threads: in columns, lines and crops, as few as are needed."""
        across, down, deep = (-(-wanted // size) for wanted, size in zip(threads, _BLOCK, strict=True))
        if max(down, deep) > _MOST_BLOCKS:
            raise ValueError(
                f"{name}: got {threads[1]} lines of {threads[2]} crops, "
                f"expected at most {_MOST_BLOCKS * _BLOCK[1]} of {_MOST_BLOCKS * _BLOCK[2]}"
            )
        self._device.launch(self._kernels[name], (across, down, deep), _BLOCK, arguments, stream)


def compile_kernels(compute: str, driver: str = "") -> bytes:
    """A cubin of `kernels.cu` for exactly one kind of GPU, from the user's cache if it is there.

    compute: its capability, `8.7`. driver: the CUDA version that it supports, `12.6`: compilers of a later CUDA's are not
    taken, for a driver loads cubins of its own major version and of earlier ones; empty: any.
    Raises SessionError.
    """
    architecture = f"sm_{compute.replace('.', '')}"
    # without fmad a product is rounded before it is added to, as numpy does
    options = (f"-arch={architecture}", "-std=c++17", "--fmad=false")
    source = resources.files("edge.cuda").joinpath(SOURCE).read_text(encoding="utf-8")
    against = []
    for compiler in compilers():
        if driver and compiler.release[0] > int(driver.split(".")[0]):
            against.append(f"{compiler} is newer than the driver's CUDA {driver}")
        elif architecture not in compiler.architectures:
            against.append(f"{compiler} does not know {architecture}")
        else:
            key = EngineKey(
                model_sha256=hashlib.sha256(source.encode()).hexdigest(),
                builder=f"{compiler.name} {compiler.version}",
                device="any",
                compute=compute,
                precision="f32",
                profiles=(),
                options=options,
            )
            path = engine_path(user_cache() / "kernels", SOURCE, key)
            kept = read_engine(path, key).content
            if kept is not None:
                return kept
            _log.info("the kernels are compiled for %s by %s", architecture, compiler)
            cubin = compiler.to_cubin(source, options)
            try:
                write_engine(path, cubin, key)
            except OSError as error:
                _log.warning("the kernels cannot be kept in %s (%s): they are compiled at every start", path.parent, error)
            return cubin
    raise SessionError(
        f"no compiler for the kernels of a GPU of compute capability {compute}: "
        f"{'; '.join(against) or 'neither NVRTC nor nvcc is there'}; expected NVRTC of CUDA 11.4 to 13, not newer than the "
        "driver: on a Jetson `apt install` cuda-nvrtc of its JetPack's CUDA (cuda-nvrtc-12-6), "
        "else `pip install nvidia-cuda-nvrtc-cu12` (CUDA 12) or `nvidia-cuda-nvrtc` (CUDA 13)"
    )


def _kernel_of(dtype: np.dtype[Any], channels: int, reading: Reading) -> str:
    """Raises ValueError where none reads such scores."""
    if reading.defective_from is not None:
        raise ValueError("got a classifier's reading, expected a segmenter's: a tile that is judged whole is read on the host")
    if reading.head == "mask":
        if dtype != np.uint8 or channels != 2:
            raise ValueError(f"got a mask of {channels} channels {dtype}, expected class and confidence in uint8")
        return "classes_of_masks"
    if reading.steps is not None:
        raise ValueError(f"got logits in steps of {reading.steps.size}, expected floats")
    most = 256 if reading.activation == "softmax" else 255
    if channels > most:
        raise ValueError(f"got {channels} channels, expected at most {most} with {reading.activation}: a class is a byte")
    if dtype == np.float32:
        return "classes_of_floats"
    if dtype == np.float16:
        return "classes_of_halves"
    raise ValueError(f"got scores {dtype}, expected float32 or float16")


def _of_ring(ring: Ring) -> tuple[np.generic, ...]:
    size = (np.int32(ring.capacity), np.int32(ring.width))
    return (np.uint64(ring.address), *size, np.int64(ring.begin), np.int64(ring.line_stop))


def _check_address(of: str, address: int, alignment: int) -> None:
    if address <= 0 or address % alignment:
        raise ValueError(f"{of}: got the address {address:#x}, expected a multiple of {alignment}, not 0")


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if not 1 <= size <= _LARGEST_SIZE:
            raise ValueError(f"{name}: got {size}, expected 1 to {_LARGEST_SIZE}")


def _check_positions(**positions: int) -> None:
    for name, position in positions.items():
        if abs(position) > _FARTHEST:
            raise ValueError(f"{name}: got {position}, expected -{_FARTHEST} to {_FARTHEST}")
