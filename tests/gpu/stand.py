"""What the tests and the benchmark of the GPU run on: the GPU of this machine, or a stand-in that shows that they work at all.

RUST_EDGE_GPU_TESTS            a CUDA device; without one everything skips with the reason
RUST_EDGE_GPU_TESTS=strict     the strict fake device, and ONNX Runtime behind TensorRT's API
RUST_EDGE_GPU_TESTS=emulated   the device's code over a driver that computes on the CPU, the kernels' source with it
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from edge.cuda.device import CudaDevice
from edge.sessions.gpu import find_gpu

VARIABLE = "RUST_EDGE_GPU_TESTS"
BUNDLES = "RUST_EDGE_GPU_BUNDLES"
"""Paths of more bundles to try, as in PATH: FP16 ones, say, and a station's own."""
Kind = Literal["gpu", "strict", "emulated"]
Opener = Callable[[], CudaDevice]
BUILDING_S = 3600
"""A test's time where TensorRT builds engines: minutes each on a Jetson."""
SEAMS = ("pycuda", "plain")
"""What can reach a GPU: the product's own, and the tests' over the driver alone."""

_TESTS = Path(__file__).resolve().parents[1]
_SMALL = 1 << 16
_EMULATED_BYTES = 512 << 20
_SHIMMED = "10.3.0.30"


class Absent(Exception):  # noqa: N818 - no fault, a part that this machine lacks
    """Why something cannot be tried here."""


@dataclass(frozen=True, slots=True)
class Stand:
    """kind: gpu, or what stands in for one."""

    kind: Kind

    @property
    def real(self) -> bool:
        """Whether times and sizes mean anything."""
        return self.kind == "gpu"

    @property
    def kernels(self) -> bytes | None:
        """The kernels' module; None: the product compiles it for this GPU. Raises Absent."""
        return {"gpu": lambda: None, "strict": lambda: b"twins", "emulated": _host_kernels}[self.kind]()

    def size(self, nbytes: int) -> int:
        """Bytes to work with: as asked, on a stand-in few, and as odd."""
        return nbytes if self.real or nbytes <= _SMALL else _SMALL + nbytes % 256

    def turns(self, count: int) -> int:
        """How often to do something: as asked, on a stand-in a few times."""
        return count if self.real else max(2, count // 20)

    def opener(self, seam: str) -> Opener:
        """What opens the device through one of SEAMS. Raises Absent where the machine lacks something for it."""
        if self.kind == "strict":
            if seam != "pycuda":
                raise Absent("the strict fake stands for every way to a GPU")
            return _strict_device
        if self.kind == "emulated":
            _load_emulated_driver()
        if isinstance(gpu := find_gpu(), str):
            raise Absent(gpu)
        if seam == "plain":
            from plain_device import PlainDevice

            return PlainDevice
        if importlib.util.find_spec("pycuda") is None:
            raise Absent("pycuda is not installed")
        from edge.cuda.driver import open_device

        return open_device

    @contextlib.contextmanager
    def tensorrt(self) -> Iterator[str | None]:
        """Within it backend tensorrt runs: on the GPU, through pycuda or else the plain seam. Gives why not, where it cannot."""
        if missing := self._against_tensorrt():
            yield missing
        else:
            with _shimmed_tensorrt() if self.kind == "strict" else _real_tensorrt():
                yield None

    def _against_tensorrt(self) -> str | None:
        if self.kind == "emulated":
            return "TensorRT computes on no emulated GPU"
        for needed in ("pydantic", "yaml", "onnx", "onnxruntime", "cv2"):
            if importlib.util.find_spec(needed) is None:
                return f"{needed} is not installed"
        if self.kind == "strict":
            return None
        from edge.sessions.trt.library import missing_parts

        return ", ".join(part for part in missing_parts() if part != "no pycuda") or None

    def device_bytes_used(self) -> int:
        """Of the device's memory; of a strict one, what its sessions hold."""
        if self.kind == "strict":
            return _the_strict_device().live_bytes
        from plain_device import PlainDevice

        with PlainDevice() as device, device.active():
            return device.properties.memory_bytes - device.free_bytes()


def chosen() -> Stand:
    """The stand that the environment asks for. Raises ValueError."""
    kind = os.environ.get(VARIABLE) or "gpu"
    if kind not in get_args(Kind):
        raise ValueError(f"{VARIABLE}: got {kind!r}; expected strict, emulated, or nothing for the GPU of this machine")
    for folder in (_TESTS, _TESTS / "cuda", _TESTS / "gpu"):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    return Stand(kind)


def seams_there(stand: Stand) -> list[str]:
    """Those of SEAMS through which the device is reached."""
    there = []
    for seam in SEAMS:
        with contextlib.suppress(Absent):
            stand.opener(seam)
            there.append(seam)
    return there


def skip_without_gpu(*seams: str) -> None:
    """Skip the test module that is being imported where none of some seams reaches a GPU; with one reason for all of it."""
    import pytest

    wanted = seams or SEAMS
    if not set(wanted) & set(seams_there(chosen())):
        try:
            chosen().opener(wanted[-1])
        except Absent as absent:
            pytest.skip(str(absent), allow_module_level=True)


def more_bundles() -> list[str]:
    """Paths that the environment names."""
    return [path for path in os.environ.get(BUNDLES, "").split(os.pathsep) if path]


def _strict_device(**options: Any) -> CudaDevice:
    from strict_device import StrictDevice

    return StrictDevice(memory_bytes=512 << 20, **options)


@functools.cache
def _the_strict_device() -> Any:
    """The one that all sessions share, as a process shares its GPU."""
    from strict_device import StrictDevice

    device = StrictDevice()
    device.__enter__()
    atexit.register(device.__exit__, None, None, None)
    return device


@functools.cache
def _scratch_folder() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="rust-edge-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


@functools.cache
def _load_emulated_driver() -> None:
    """Load it before anybody looks for NVIDIA's: the loader then finds it by its name, libcuda.so.1."""
    from emulated_driver import build

    try:
        driver = ctypes.CDLL(str(build(_scratch_folder())), ctypes.RTLD_GLOBAL)
        driver.emulated_limit_memory(ctypes.c_size_t(_EMULATED_BYTES))
    except FileNotFoundError as error:
        raise Absent(str(error)) from error


@functools.cache
def _host_kernels() -> bytes:
    from host_kernels import build

    try:
        return build(_scratch_folder()).read_bytes()
    except FileNotFoundError as error:
        raise Absent(str(error)) from error


@contextlib.contextmanager
def _shimmed_tensorrt() -> Iterator[None]:
    """The product finds a TensorRT, and a device that is strict; kernels are their twins."""
    from tensorrt_shims import tensorrt

    from edge.cuda import kernels

    device = _the_strict_device()
    trt = tensorrt(_SHIMMED, device=device)
    with (
        _found("find_tensorrt", lambda: trt),
        _found("missing_parts", lambda: []),
        _opened_by(lambda index: contextlib.nullcontext(device)),
        _replaced(kernels, "compile_kernels", lambda compute, driver="": b"twins"),
    ):
        yield


@contextlib.contextmanager
def _real_tensorrt() -> Iterator[None]:
    """As the product finds it, and where pycuda alone is missing through the driver."""
    from edge.sessions.trt.library import missing_parts

    if missing_parts() != ["no pycuda"]:
        yield
        return
    from plain_device import PlainDevice

    with _found("missing_parts", lambda: []), _opened_by(PlainDevice):
        yield


def _found(name: str, stands: Callable[[], Any]) -> contextlib.AbstractContextManager[None]:
    from edge.sessions.trt import library

    return _replaced(library, name, stands)


def _opened_by(open_device: Callable[[int], Any]) -> contextlib.AbstractContextManager[None]:
    from edge.cuda.open_devices import OPEN_DEVICES

    return _replaced(OPEN_DEVICES, "_open_device", open_device)


@contextlib.contextmanager
def _replaced(owner: object, name: str, value: object) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
