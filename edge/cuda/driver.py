"""A GPU through pycuda, on the device's primary context, which TensorRT's runtime uses too."""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from types import TracebackType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edge.cuda.device import CudaDevice, DeviceMemory, DeviceProperties, Event, HostArray, Kernel, Stream
from edge.cuda.driver_calls import CallError, DriverCalls
from edge.errors import SessionError

_NON_BLOCKING: Final = 1
"""CU_STREAM_NON_BLOCKING: does not wait for the default stream. Source: CUDA driver API, enum CUstream_flags."""


def open_device(index: int = 0) -> CudaDevice:
    """A GPU of this box, to be entered. index: as the driver counts them.

    Raises SessionError without pycuda, without a driver, without that GPU.
    """
    if importlib.util.find_spec("pycuda") is None:
        raise SessionError(
            "pycuda is not installed: pip install 'rust-edge[tensorrt]' compiles it with g++ and CUDA's headers; "
            "on a Jetson JetPack's own: PATH=/usr/local/cuda/bin:$PATH pip install 'rust-edge[tensorrt]'"
        )
    calls = DriverCalls()
    try:
        import pycuda.driver as cuda
    except ImportError as error:
        raise SessionError(f"pycuda cannot be used: {error}; expected one that was built for this Python and CUDA") from error
    try:
        cuda.init()
        count = cuda.Device.count()
        if not 0 <= index < count:
            raise SessionError(f"got GPU {index}; the driver counts {count}, from 0")
        return PycudaDevice(cuda, calls, cuda.Device(index))
    except cuda.Error as error:
        raise SessionError(f"the NVIDIA driver gives no GPU: {error}") from error


def out_of_memory(gpu: str, call: str, wanted: int, free: int) -> SessionError:
    """What is raised where the memory does not suffice, in bytes."""
    return SessionError(
        f"{gpu}: {call}: out of memory: wanted {wanted} bytes, {free} are free; "
        "take a smaller batch, shorter chunks, or stop what runs beside it"
    )


def gpu_is_lost(gpu: str, call: str, answer: str) -> SessionError:
    """What is raised by every call after an error from which no process recovers."""
    return SessionError(f"{gpu}: {call}: the GPU is lost ({answer}); the process must be restarted")


class PycudaMemory:
    """Bytes on the GPU. allocation: pycuda's."""

    def __init__(self, device: PycudaDevice, allocation: Any, nbytes: int) -> None:
        self.device = device
        self._address, self._nbytes = int(allocation), nbytes
        self._freed = False

    @property
    def address(self) -> int:
        """Where it begins."""
        if self._freed:
            raise SessionError(f"device memory of {self._nbytes} bytes was freed")
        return self._address

    @property
    def nbytes(self) -> int:
        """How long it is."""
        return self._nbytes

    def free(self) -> None:
        """Give it back."""
        self.device.release(self, "free")
        self._freed = True


class PycudaHostMemory:
    """Page-locked bytes, given back once no view of them is left: none ever points to what is no longer there."""

    def __init__(self, device: PycudaDevice, array: npt.NDArray[np.uint8], address: int) -> None:
        self.device = device
        self._address = address
        self._array: npt.NDArray[np.uint8] | None = array

    @property
    def array(self) -> npt.NDArray[np.uint8]:
        """All of it, (nbytes,) uint8."""
        if self._array is None:
            raise SessionError("page-locked memory was freed")
        return self._array

    @property
    def device_address(self) -> int:
        """Where the GPU sees it; 0 for memory that is not mapped."""
        if self._array is None:
            raise SessionError("mapped memory was freed")
        return self._address

    def free(self) -> None:
        """Give it back."""
        self.device.release(self, "free")

    def forget(self) -> None:
        """Let go of the bytes; for the device."""
        self._array = None


class PycudaStream:
    """Work in order. stream: pycuda's, None once the device is closed."""

    def __init__(self, device: PycudaDevice, stream: Any) -> None:
        self.device = device
        self.stream: Any = stream
        self._handle = int(stream.handle)

    @property
    def handle(self) -> int:
        """`CUstream`."""
        return self._handle

    def wait(self, event: Event) -> None:
        """What is put on it from now on begins after the event."""
        after = self.device.own_event(event)
        self.device.ask("Stream.wait", lambda: self.stream.wait_for_event(after.event))

    def synchronize(self) -> None:
        """Wait until all of it is done."""
        self.device.ask_outside_captures("Stream.synchronize", lambda: self.stream.synchronize())

    def forget(self) -> None:
        """Let go of it; for the device."""
        self.stream = None


class PycudaEvent:
    """A mark on a stream. event: pycuda's, None once the device is closed."""

    def __init__(self, device: PycudaDevice, event: Any) -> None:
        self.device = device
        self.event: Any = event

    def record(self, stream: Stream) -> None:
        """Mark what was put on the stream so far."""
        marked = self.device.own_stream(stream)
        self.device.ask("Event.record", lambda: self.event.record(marked.stream))

    def synchronize(self) -> None:
        """Wait until all that was marked is done."""
        self.device.ask_outside_captures("Event.synchronize", lambda: self.event.synchronize())

    def elapsed_ms(self, earlier: Event) -> float:
        """Milliseconds since an earlier mark."""
        first = self.device.own_event(earlier)
        return float(self.device.ask("Event.elapsed_ms", lambda: self.event.time_since(first.event)))

    def forget(self) -> None:
        """Let go of it; for the device."""
        self.event = None


class DriverGraph:
    """A graph that the driver made ready."""

    def __init__(self, device: PycudaDevice, calls: DriverCalls, ready: int) -> None:
        self.device = device
        self._calls, self._ready = calls, ready
        self._closed = False

    def launch(self, stream: Stream) -> None:
        """Put all of it on a stream again."""
        if self._closed:
            raise SessionError("the graph was closed")
        handle = self.device.own_stream(stream).handle
        self.device.ask_outside_captures("Graph.launch", self._calls.launch_graph, self._ready, handle)

    def close(self) -> None:
        """Forget it."""
        self.device.release(self, "Graph.close")
        self._closed = True


class DriverKernel:
    """A function of a module. function: `CUfunction`."""

    def __init__(self, device: PycudaDevice, name: str, function: int) -> None:
        self.device = device
        self._name, self.function = name, function

    @property
    def name(self) -> str:
        """As in the source."""
        return self._name


class _OfThread(threading.local):
    """What devices are to a thread. active: those that are, the innermost last."""

    def __init__(self) -> None:
        self.active: list[PycudaDevice] = []
        self.captures = False


_this_thread = _OfThread()


class _Active:
    """A device's context on this thread, for a while. Inside of itself it costs no call to the driver."""

    __slots__ = ("_device", "_pushed")

    def __init__(self, device: PycudaDevice) -> None:
        self._device = device

    def __enter__(self) -> None:
        self._device.require_usable("active")
        active = _this_thread.active
        self._pushed = not active or active[-1] is not self._device
        if self._pushed:
            self._device.push_context()
        active.append(self._device)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _this_thread.active.pop()
        if self._pushed:
            self._device.pop_context()


class PycudaDevice:
    """The implementation of `edge.cuda.device.CudaDevice`. cuda: `pycuda.driver`."""

    def __init__(self, cuda: Any, calls: DriverCalls, device: Any) -> None:
        self._cuda, self._calls, self._device = cuda, calls, device
        attribute = cuda.device_attribute
        major, minor = device.compute_capability()
        version = cuda.get_driver_version()
        self._properties = DeviceProperties(
            name=device.name(),
            compute=f"{major}.{minor}",
            memory_bytes=int(device.total_memory()),
            multiprocessors=int(device.get_attribute(attribute.MULTIPROCESSOR_COUNT)),
            integrated=bool(device.get_attribute(attribute.INTEGRATED)),
            driver=f"{version // 1000}.{version % 1000 // 10}",
        )
        self._context: Any = None
        self._lost = ""
        self._lock = threading.Lock()
        # how each is given back, in the order in which they were made
        self._owned: dict[object, Callable[[], object]] = {}

    @property
    def properties(self) -> DeviceProperties:
        """What it is."""
        return self._properties

    def active(self) -> AbstractContextManager[None]:
        """Make it this thread's device for a while."""
        return _Active(self)

    def allocate(self, nbytes: int) -> PycudaMemory:
        """Memory on the GPU, not cleared."""
        allocation = self._allocated("allocate", nbytes, self._free_on_device, self._cuda.mem_alloc, nbytes)
        memory = PycudaMemory(self, allocation, nbytes)
        self._own(memory, allocation.free)
        return memory

    def page_locked(self, nbytes: int) -> PycudaHostMemory:
        """Memory of the host for copies, cleared."""
        return self._host_memory("page_locked", nbytes, 0)

    def mapped(self, nbytes: int) -> PycudaHostMemory:
        """Memory of the host that the GPU reads and writes in place, cleared."""
        return self._host_memory("mapped", nbytes, int(self._cuda.host_alloc_flags.DEVICEMAP))

    def stream(self) -> PycudaStream:
        """A stream that does not wait for the default one."""
        stream = PycudaStream(self, self.ask("stream", self._cuda.Stream, _NON_BLOCKING))
        self._own(stream, stream.forget)
        return stream

    def event(self) -> PycudaEvent:
        """An event that takes times."""
        event = PycudaEvent(self, self.ask("event", self._cuda.Event))
        self._own(event, event.forget)
        return event

    def upload(self, target: DeviceMemory, offset: int, source: HostArray, stream: Stream) -> None:
        """Copy from the host."""
        address = self._part("upload", target, offset, source)
        if source.nbytes:
            self.ask("upload", self._cuda.memcpy_htod_async, address, source, self.own_stream(stream).stream)

    def download(self, target: HostArray, source: DeviceMemory, offset: int, stream: Stream) -> None:
        """Copy to the host."""
        address = self._part("download", source, offset, target)
        if target.nbytes:
            self.ask("download", self._cuda.memcpy_dtoh_async, target, address, self.own_stream(stream).stream)

    def fill(self, target: DeviceMemory, offset: int, nbytes: int, value: int, stream: Stream) -> None:
        """Set bytes to 0 to 255."""
        address = self._within("fill", target, offset, nbytes)
        if not 0 <= value <= 255:
            raise SessionError(f"fill with {value}; expected 0 to 255")
        if nbytes:
            self.ask("fill", self._cuda.memset_d8_async, address, value, nbytes, self.own_stream(stream).stream)

    def capture(self, stream: Stream, enqueue: Callable[[], None]) -> DriverGraph:
        """Record what `enqueue` puts on the stream instead of running it."""
        calls, handle = self._calls, self.own_stream(stream).handle
        self.ask_outside_captures("capture", calls.begin_capture, handle)
        _this_thread.captures = True
        try:
            enqueue()
        except BaseException:
            # a capture that something made invalid has no graph, and its end says so again
            with suppress(CallError):
                calls.destroy_graph(calls.end_capture(handle))
            raise
        finally:
            _this_thread.captures = False
        recorded = self.ask("capture", calls.end_capture, handle)
        try:
            ready = self.ask("capture", calls.instantiate, recorded)
        finally:
            self.ask("capture", calls.destroy_graph, recorded)
        graph = DriverGraph(self, calls, ready)
        self._own(graph, lambda: calls.destroy_ready(ready))
        return graph

    def load(self, cubin: bytes, names: Sequence[str]) -> dict[str, Kernel]:
        """Kernels of a compiled module."""
        calls = self._calls
        module = self.ask_outside_captures("load", calls.load_module, cubin)
        self._own(module_owner := object(), lambda: calls.unload_module(module))
        try:
            return {name: DriverKernel(self, name, self.ask(f"load {name}", calls.function, module, name)) for name in names}
        except SessionError:
            self.release(module_owner, "load")
            raise

    def launch(
        self,
        kernel: Kernel,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: Sequence[np.generic],
        stream: Stream,
    ) -> None:
        """Run a kernel."""
        if not isinstance(kernel, DriverKernel) or kernel.device is not self:
            raise SessionError(f"{self._properties.name}: launch: got a kernel of another device")
        for argument in arguments:
            if not isinstance(argument, np.generic):
                raise SessionError(f"{kernel.name}: got {argument!r}; expected a NumPy scalar of the parameter's type")
        handle = self.own_stream(stream).handle
        self.ask(f"launch {kernel.name}", self._calls.launch, kernel.function, grid, block, arguments, handle)

    def __enter__(self) -> PycudaDevice:
        try:
            self._context = self._device.retain_primary_context()
        except self._cuda.Error as error:
            raise self._session_error("retain_primary_context", error) from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._lock:
            owned, self._owned = self._owned, {}
        try:
            if not self._lost:
                self._give_back_all(owned)
        except (self._cuda.Error, CallError) as failed:
            # what is left goes with the context
            told = self._session_error("close", failed)
            if not self._lost and kind is None:
                raise told from failed
        finally:
            context, self._context = self._context, None
            # before the objects that live in it: pycuda leaves those of a dead context alone, but ends the process where it
            # cannot give back those of a lost GPU
            context.detach()
            owned.clear()

    def _give_back_all(self, owned: dict[object, Callable[[], object]]) -> None:
        """Wait for what still runs, and give back the last that was made first. Raises what pycuda and the driver raise."""
        self._context.push()
        try:
            self._cuda.Context.synchronize()
            while owned:
                _, give_back = owned.popitem()
                give_back()
        finally:
            # the driver's stack of contexts, not pycuda's: its detach() takes care of that one alone
            self._calls.pop_context()

    def ask(self, call: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call pycuda or the driver; what goes wrong is a SessionError. For this module's classes."""
        self.require_usable(call)
        if self not in _this_thread.active:
            raise SessionError(f"{self._properties.name}: {call} outside of active() on this thread")
        try:
            return function(*arguments)
        except (self._cuda.Error, CallError) as error:
            raise self._session_error(call, error) from error

    def ask_outside_captures(self, call: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """The same of what would spoil a capture on this thread."""
        self._fail_in_capture(call)
        return self.ask(call, function, *arguments)

    def require_usable(self, call: str) -> None:
        """Raises SessionError on a lost GPU, on a device that is not open. For this module's classes."""
        if self._lost:
            raise gpu_is_lost(self._properties.name, call, self._lost)
        if self._context is None:
            raise SessionError(f"{self._properties.name}: {call} on a device that is not open; expected it inside `with`")

    def push_context(self) -> None:
        """Make its context this thread's. For this module's classes."""
        try:
            self._context.push()
        except self._cuda.Error as error:
            raise self._session_error("active", error) from error

    def pop_context(self) -> None:
        """Leave its context. For this module's classes."""
        try:
            self._cuda.Context.pop()
        except self._cuda.Error as error:
            # the call that found the GPU lost has told it
            if not self._lost:
                raise self._session_error("active", error) from error

    def release(self, owned: object, call: str) -> None:
        """Give back what is still there, once. For this module's classes."""
        # on a lost GPU all of it stays until the end: pycuda ends the process where it cannot give something back
        if self._lost or self._context is None or owned not in self._owned:
            return
        self._fail_in_capture(call)
        with self._lock:
            give_back = self._owned.pop(owned, None)
        if give_back is not None:
            with self.active():
                self.ask(call, give_back)

    def own_stream(self, stream: Stream) -> PycudaStream:
        """A stream of this device. Raises SessionError for another's."""
        if not isinstance(stream, PycudaStream) or stream.device is not self:
            raise SessionError(f"{self._properties.name}: got a stream of another device")
        return stream

    def own_event(self, event: Event) -> PycudaEvent:
        """An event of this device. Raises SessionError for another's."""
        if not isinstance(event, PycudaEvent) or event.device is not self:
            raise SessionError(f"{self._properties.name}: got an event of another device")
        return event

    def _host_memory(self, call: str, nbytes: int, flags: int) -> PycudaHostMemory:
        cuda = self._cuda
        free = self._free_on_device if self._properties.integrated else _free_on_host
        array = self._allocated(call, nbytes, free, cuda.pagelocked_zeros, nbytes, np.uint8, "C", flags)
        address = int(self.ask(call, array.base.get_device_pointer)) if flags else 0
        memory = PycudaHostMemory(self, array, address)
        self._own(memory, memory.forget)
        return memory

    def _allocated(self, call: str, nbytes: int, free: Callable[[], int], function: Callable[..., Any], *arguments: Any) -> Any:
        if nbytes < 1:
            raise SessionError(f"{self._properties.name}: {call}: got {nbytes} bytes; expected 1 or more")

        def allocate() -> Any:
            try:
                return function(*arguments)
            except self._cuda.MemoryError as error:
                raise out_of_memory(self._properties.name, call, nbytes, free()) from error

        return self.ask_outside_captures(call, allocate)

    def _free_on_device(self) -> int:
        return int(self._cuda.mem_get_info()[0])

    def _own(self, made: object, give_back: Callable[[], object]) -> None:
        with self._lock:
            self._owned[made] = give_back

    def _part(self, call: str, memory: DeviceMemory, offset: int, array: HostArray) -> int:
        """Address in the device's memory that holds as many bytes as an array."""
        if not array.flags.c_contiguous:
            raise SessionError(f"{self._properties.name}: {call}: got an array with gaps; expected a C-contiguous one")
        return self._within(call, memory, offset, array.nbytes)

    def _within(self, call: str, memory: DeviceMemory, offset: int, nbytes: int) -> int:
        if not isinstance(memory, PycudaMemory) or memory.device is not self:
            raise SessionError(f"{self._properties.name}: {call}: got memory of another device")
        if offset < 0 or nbytes < 0 or offset + nbytes > memory.nbytes:
            raise SessionError(
                f"{self._properties.name}: {call}: got bytes {offset} to {offset + nbytes}; there are {memory.nbytes}"
            )
        return memory.address + offset

    def _fail_in_capture(self, call: str) -> None:
        if _this_thread.captures:
            raise SessionError(f"{self._properties.name}: {call} while a stream is captured; expected it before or after")

    def _session_error(self, call: str, error: Exception) -> SessionError:
        # pycuda keeps no code: "cuMemAlloc failed: out of memory", at times with " - " and more behind it
        answer = error.answer if isinstance(error, CallError) else str(error).partition(" failed: ")[2].partition(" - ")[0]
        if self._calls.lost(answer):
            self._lost = answer
            return gpu_is_lost(self._properties.name, call, answer)
        return SessionError(f"{self._properties.name}: {call}: {error}")


def _free_on_host() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
