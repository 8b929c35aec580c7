"""A CudaDevice over the driver's own library alone: kernels and seam are proven with it where pycuda is not installed.

All that `edge.cuda.device` promises, by ctypes; a second opinion on the same GPU, for tests and benchmarks.

Source: CUDA driver API, cuda.h; the functions with `_v2` are those that the header maps the plain names to.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable, Iterator, Sequence
from ctypes import byref, c_char_p, c_float, c_int, c_size_t, c_ubyte, c_uint, c_uint64, c_void_p
from typing import Any

import numpy as np

from edge.cuda.device import DeviceProperties
from edge.errors import SessionError

_MULTIPROCESSORS, _INTEGRATED, _MAJOR, _MINOR = 16, 18, 75, 76
_MAPPED, _NON_BLOCKING, _OF_THREAD = 2, 1, 1
_OUT_OF_MEMORY, _NO_CONTEXT = 2, 201
_SLOT = 16
"""Bytes from an argument of a kernel to the next; a null pointer stands behind the last one, for stand-ins of the driver."""


class PlainDevice:
    """GPU `index`, its primary context. driver: the library's name or path. Raises SessionError."""

    def __init__(self, index: int = 0, driver: str = "libcuda.so.1") -> None:
        try:
            self.cuda = ctypes.CDLL(driver)
        except OSError as error:
            raise SessionError(f"no NVIDIA driver ({error})") from error
        self._device, self._context, self._thread = c_int(), c_void_p(), threading.local()
        self.ask("cuInit", c_uint(0))
        self.ask("cuDeviceGet", byref(self._device), c_int(index))
        self.live: dict[_Owned, None] = {}

    @property
    def properties(self) -> DeviceProperties:
        name, total, version = ctypes.create_string_buffer(256), c_size_t(), c_int()
        self.ask("cuDeviceGetName", name, c_int(len(name)), self._device)
        self.ask("cuDeviceTotalMem_v2", byref(total), self._device)
        self.ask("cuDriverGetVersion", byref(version))
        major, minor, count, shared = map(self._attribute, (_MAJOR, _MINOR, _MULTIPROCESSORS, _INTEGRATED))
        driver = f"{version.value // 1000}.{version.value % 1000 // 10}"
        return DeviceProperties(name.value.decode(), f"{major}.{minor}", total.value, count, bool(shared), driver)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        self.ask("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            self.ask("cuCtxPopCurrent_v2", byref(c_void_p()))

    def allocate(self, nbytes: int) -> _Memory:
        address = c_uint64()
        self.take(nbytes, "cuMemAlloc_v2", byref(address), c_size_t(nbytes))
        return _Memory(self, address.value, nbytes)

    def page_locked(self, nbytes: int) -> _HostMemory:
        return _HostMemory(self, nbytes, 0)

    def mapped(self, nbytes: int) -> _HostMemory:
        return _HostMemory(self, nbytes, _MAPPED)

    def stream(self) -> _Stream:
        return _Stream(self)

    def event(self) -> _Event:
        return _Event(self)

    def upload(self, target: _Memory, offset: int, source: np.ndarray, stream: _Stream) -> None:
        place, host = self._place(target, offset, source.nbytes), _data(source)
        self.ask("cuMemcpyHtoDAsync_v2", place, host, c_size_t(source.nbytes), self.own(stream).own)

    def download(self, target: np.ndarray, source: _Memory, offset: int, stream: _Stream) -> None:
        place, host = self._place(source, offset, target.nbytes), _data(target)
        self.ask("cuMemcpyDtoHAsync_v2", host, place, c_size_t(target.nbytes), self.own(stream).own)

    def fill(self, target: _Memory, offset: int, nbytes: int, value: int, stream: _Stream) -> None:
        place = self._place(target, offset, nbytes)
        self.ask("cuMemsetD8Async", place, c_ubyte(value), c_size_t(nbytes), self.own(stream).own)

    def capture(self, stream: _Stream, enqueue: Callable[[], None]) -> _Graph:
        recorded, executable, origin = c_void_p(), c_void_p(), self.own(stream).own
        self.refuse_in_capture("capture")
        self.ask("cuStreamBeginCapture_v2", origin, c_int(_OF_THREAD))
        self._thread.captures = True
        try:
            enqueue()
        except BaseException:
            self.cuda.cuStreamEndCapture(origin, byref(recorded))
            if recorded:
                self.cuda.cuGraphDestroy(recorded)
            raise
        finally:
            self._thread.captures = False
        self.ask("cuStreamEndCapture", origin, byref(recorded))
        try:
            self.ask("cuGraphInstantiateWithFlags", byref(executable), recorded, c_uint64(0))
        finally:
            self.ask("cuGraphDestroy", recorded)
        return _Graph(self, executable)

    def load(self, cubin: bytes, names: Sequence[str]) -> dict[str, _Kernel]:
        self.refuse_in_capture("load")
        module, kernels = c_void_p(), {}
        self.ask("cuModuleLoadData", byref(module), c_char_p(cubin))
        _Owned(self, lambda: self.cuda.cuModuleUnload(module))
        for name in names:
            function = c_void_p()
            try:
                self.ask("cuModuleGetFunction", byref(function), module, c_char_p(name.encode()))
            except SessionError as error:
                raise SessionError(f"{name}: {error}") from error
            kernels[name] = _Kernel(self, name, function)
        return kernels

    def launch(
        self,
        kernel: _Kernel,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: Sequence[np.generic],
        stream: _Stream,
    ) -> None:
        for argument in arguments:
            if not isinstance(argument, np.generic):
                raise SessionError(f"{kernel.name}: got {argument!r}; expected a NumPy scalar")
        # the driver copies the arguments before it returns
        values = ctypes.create_string_buffer(b"".join(argument.tobytes().ljust(_SLOT, b"\0") for argument in arguments))
        first, count = ctypes.addressof(values), len(arguments)
        pointers = (c_void_p * (count + 1))(*range(first, first + _SLOT * count, _SLOT))
        sizes = [c_uint(size) for size in (*grid, *block, 0)]
        self.check(kernel.name, self.cuda.cuLaunchKernel(self.own(kernel).function, *sizes, self.own(stream).own, pointers, None))

    def __enter__(self) -> PlainDevice:
        self.ask("cuDevicePrimaryCtxRetain", byref(self._context), self._device)
        return self

    def __exit__(self, *exception: object) -> None:
        with self.active():
            self.cuda.cuCtxSynchronize()
            for owned in reversed(list(self.live)):
                owned.close()
        self.cuda.cuDevicePrimaryCtxRelease_v2(self._device)

    def free_bytes(self) -> int:
        """Of the device's memory, beside all that use it."""
        free, total = c_size_t(), c_size_t()
        self.ask("cuMemGetInfo_v2", byref(free), byref(total))
        return free.value

    def take(self, nbytes: int, function: str, *arguments: Any) -> None:
        """Ask for memory; the error says how much, and what there is."""
        self.refuse_in_capture(function)
        if nbytes < 1:
            raise SessionError(f"{function}: got {nbytes} bytes; expected 1 or more")
        status = getattr(self.cuda, function)(*arguments)
        if status == _OUT_OF_MEMORY:
            raise SessionError(f"{function}: out of memory: wanted {nbytes} bytes, {self.free_bytes()} are free")
        self.check(function, status)

    def own(self, made: Any) -> Any:
        if made.device is not self:
            raise SessionError("got something of another device")
        return made

    def refuse_in_capture(self, call: str) -> None:
        if getattr(self._thread, "captures", False):
            raise SessionError(f"{call} while a stream is captured")

    def ask(self, function: str, *arguments: Any) -> None:
        self.check(function, getattr(self.cuda, function)(*arguments))

    def check(self, function: str, status: int) -> None:
        if status:
            text = c_char_p()
            self.cuda.cuGetErrorString(c_int(status), byref(text))
            where = " outside of active() on this thread?" if status == _NO_CONTEXT else ""
            raise SessionError(f"{function}: {text.value.decode() if text.value else 'error'} ({status}){where}")

    def _attribute(self, attribute: int) -> int:
        value = c_int()
        self.ask("cuDeviceGetAttribute", byref(value), c_int(attribute), self._device)
        return value.value

    def _place(self, memory: _Memory, offset: int, nbytes: int) -> c_uint64:
        if not 0 <= offset <= offset + nbytes <= self.own(memory).nbytes:
            raise SessionError(f"got bytes {offset} to {offset + nbytes} of {memory.nbytes}; expected some within")
        return c_uint64(memory.address + offset)


class _Owned:
    """A thing of the driver's that is given back once: by its owner, or at the device's end."""

    def __init__(self, device: PlainDevice, give_back: Callable[[], object]) -> None:
        self.device, self._give_back = device, give_back
        device.live[self] = None

    @property
    def closed(self) -> bool:
        return self not in self.device.live

    def close(self) -> None:
        if not self.closed:
            self.device.refuse_in_capture("freeing")
            del self.device.live[self]
            self._give_back()


class _Memory(_Owned):
    def __init__(self, device: PlainDevice, address: int, nbytes: int) -> None:
        super().__init__(device, lambda: device.cuda.cuMemFree_v2(c_uint64(address)))
        self._address, self.nbytes = address, nbytes

    @property
    def address(self) -> int:
        if self.closed:
            raise SessionError("device memory was freed")
        return self._address

    free = _Owned.close


class _HostMemory(_Owned):
    def __init__(self, device: PlainDevice, nbytes: int, flags: int) -> None:
        place, seen = c_void_p(), c_uint64()
        device.take(nbytes, "cuMemHostAlloc", byref(place), c_size_t(nbytes), c_uint(flags))
        if flags:
            device.ask("cuMemHostGetDevicePointer_v2", byref(seen), place, c_uint(0))
        super().__init__(device, lambda: device.cuda.cuMemFreeHost(place))
        self._bytes = np.frombuffer((c_ubyte * nbytes).from_address(place.value), np.uint8)
        self._bytes[:] = 0
        self._seen = seen.value

    @property
    def array(self) -> np.ndarray:
        return self._unless_freed(self._bytes)

    @property
    def device_address(self) -> int:
        return self._unless_freed(self._seen)

    def _unless_freed(self, value: Any) -> Any:
        if self.closed:
            raise SessionError("page-locked memory was freed")
        return value

    free = _Owned.close


class _Stream(_Owned):
    def __init__(self, device: PlainDevice) -> None:
        self.own = c_void_p()
        device.refuse_in_capture("stream")
        device.ask("cuStreamCreate", byref(self.own), c_uint(_NON_BLOCKING))
        super().__init__(device, lambda: device.cuda.cuStreamDestroy_v2(self.own))

    @property
    def handle(self) -> int:
        return self.own.value

    def wait(self, event: _Event) -> None:
        self.device.ask("cuStreamWaitEvent", self.own, self.device.own(event).own, c_uint(0))

    def synchronize(self) -> None:
        self.device.refuse_in_capture("synchronize")
        self.device.ask("cuStreamSynchronize", self.own)


class _Event(_Owned):
    def __init__(self, device: PlainDevice) -> None:
        self.own = c_void_p()
        device.ask("cuEventCreate", byref(self.own), c_uint(0))
        super().__init__(device, lambda: device.cuda.cuEventDestroy_v2(self.own))

    def record(self, stream: _Stream) -> None:
        self.device.ask("cuEventRecord", self.own, self.device.own(stream).own)

    def synchronize(self) -> None:
        self.device.refuse_in_capture("synchronize")
        self.device.ask("cuEventSynchronize", self.own)

    def elapsed_ms(self, earlier: _Event) -> float:
        taken = c_float()
        self.device.ask("cuEventElapsedTime", byref(taken), earlier.own, self.own)
        return taken.value


class _Graph(_Owned):
    def __init__(self, device: PlainDevice, executable: c_void_p) -> None:
        super().__init__(device, lambda: device.cuda.cuGraphExecDestroy(executable))
        self._executable = executable

    def launch(self, stream: _Stream) -> None:
        if self.closed:
            raise SessionError("the graph was closed")
        self.device.ask("cuGraphLaunch", self._executable, self.device.own(stream).own)


class _Kernel:
    def __init__(self, device: PlainDevice, name: str, function: c_void_p) -> None:
        self.device, self.name, self.function = device, name, function


def _data(array: np.ndarray) -> c_void_p:
    if not array.flags.c_contiguous:
        raise SessionError("got an array with gaps; expected a C-contiguous one")
    return c_void_p(array.ctypes.data)
