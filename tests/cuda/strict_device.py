"""A CudaDevice without a GPU that raises where hardware would quietly answer with rubbish.

Device memory are numpy buffers at invented addresses that are never used twice. Work that is put on a stream waits in its queue
until something synchronises; `schedule` says in which of the orders that hardware may choose it then runs. Kernels are the numpy
twins of `twins.py`.
"""

from __future__ import annotations

import inspect
import itertools
import threading
import typing
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from strict_work import Capture, Mark, Misuse, Operation, Queue, Schedule, Work

from edge.cuda.device import DeviceProperties
from edge.cuda.driver import gpu_is_lost, out_of_memory
from edge.errors import SessionError

FRESH: Final = 0xCD
"""What new device memory is filled with."""
PENDING: Final = 0xA5
"""What the target of a download is filled with until the stream has come that far."""
FREED: Final = 0xDD
"""What host memory is filled with when it is freed."""

_ALIGNMENT: Final = 256
_GUARD: Final = 4096
_SPACES = itertools.count(1)
_HANDLES = itertools.count(0x5000, 0x10)

View = Callable[[int, int], npt.NDArray[np.uint8]]


class StrictDeviceMemory:
    """Bytes of the fake's GPU. buffer: none once freed."""

    def __init__(self, device: StrictDevice, address: int, nbytes: int) -> None:
        self.device = device
        self._address, self._nbytes = address, nbytes
        self.buffer: npt.NDArray[np.uint8] | None = np.full(nbytes, FRESH, np.uint8)

    @property
    def address(self) -> int:
        if self.buffer is None:
            raise Misuse(f"address of device memory ({self._nbytes} bytes) that was freed")
        return self._address

    @property
    def nbytes(self) -> int:
        return self._nbytes

    def free(self) -> None:
        self.device.release(self)


class StrictHostMemory:
    """Page-locked memory of the fake. `_address`: 0 where it is not mapped."""

    def __init__(self, device: StrictDevice, address: int, nbytes: int) -> None:
        self.device = device
        self._address = address
        self.buffer: npt.NDArray[np.uint8] | None = np.zeros(nbytes, np.uint8)
        # kept until the device closes, so that the host's allocator cannot hand the same place out again
        self.bytes = self.buffer
        self.span = _span(self.buffer)

    @property
    def array(self) -> npt.NDArray[np.uint8]:
        if self.buffer is None:
            raise Misuse(f"array of page-locked memory ({len(self.bytes)} bytes) that was freed")
        return self.buffer

    @property
    def device_address(self) -> int:
        if self.buffer is None:
            raise Misuse(f"device address of mapped memory ({len(self.bytes)} bytes) that was freed")
        return self._address

    def free(self) -> None:
        self.device.release(self)


class StrictStream:
    """A queue."""

    def __init__(self, device: StrictDevice) -> None:
        self.device = device
        self._handle = next(_HANDLES)
        self.queue: Queue = device.work.queue()

    @property
    def handle(self) -> int:
        return self._handle

    def wait(self, event: StrictEvent) -> None:
        self.device.wait(self, event)

    def synchronize(self) -> None:
        self.device.synchronize(self, "Stream.synchronize")


class StrictEvent:
    """The last place that it marked."""

    def __init__(self, device: StrictDevice) -> None:
        self.device = device
        self.mark: Mark | None = None

    def record(self, stream: StrictStream) -> None:
        self.device.record(self, stream)

    def synchronize(self) -> None:
        self.device.synchronize_event(self)

    def elapsed_ms(self, earlier: StrictEvent) -> float:
        return self.device.elapsed_ms(earlier, self)


class StrictGraph:
    """Operations that were recorded."""

    def __init__(self, device: StrictDevice, operations: list[Operation]) -> None:
        self.device = device
        self.operations: list[Operation] | None = operations

    def launch(self, stream: StrictStream) -> None:
        self.device.replay(self, stream)

    def close(self) -> None:
        self.device.forget(self)


@dataclass(frozen=True)
class StrictKernel:
    """A twin of a kernel."""

    device: StrictDevice
    name: str
    twin: Callable[..., None]
    parameters: tuple[type, ...] | None


class StrictDevice:
    """The strict fake. integrated: as on a Jetson. strict_leaks: what is not freed by the end is a Misuse.

    twins: kernels by name, else those of `twins.py`.
    """

    def __init__(
        self,
        *,
        integrated: bool = False,
        strict_leaks: bool = False,
        schedule: Schedule = "late",
        memory_bytes: int = 8 << 30,
        twins: Mapping[str, Callable[..., None]] | None = None,
    ) -> None:
        self._properties = DeviceProperties(
            "strict fake", "8.7" if integrated else "8.9", memory_bytes, 16, integrated, driver="12.6"
        )
        self._strict_leaks = strict_leaks
        self.work = Work(schedule)
        self._twins = twins
        self._lock = threading.RLock()
        self._active = threading.local()
        self._state = "new"
        self._next_address = next(_SPACES) << 40
        self._starts: list[int] = []
        self._blocks: list[StrictDeviceMemory | StrictHostMemory] = []
        self._host: list[StrictHostMemory] = []
        self._streams: dict[int, StrictStream] = {}
        self._graphs: list[StrictGraph] = []
        self._capture: Capture | None = None
        self._free_bytes = memory_bytes
        self._lost: bool = False
        self._calls_until_lost: int | None = None

    def out_of_memory_after(self, nbytes: int) -> None:
        """So many bytes can still be allocated."""
        self._free_bytes = nbytes

    def lose_gpu(self, after_operations: int = 0) -> None:
        """From the next call on, or once so many operations more were put on streams, everything fails as on a lost GPU."""
        self._calls_until_lost = after_operations
        self._lost = after_operations == 0

    def enqueue(self, handle: int, work: Callable[[], None]) -> None:
        """Put work on the stream of a handle, as TensorRT does; recorded while the stream is captured."""
        with self._lock:
            self._check("enqueue")
            stream = self._streams.get(handle)
            if stream is None:
                raise Misuse(f"work put on stream {handle:#x}, which is none of this device's: {[hex(h) for h in self._streams]}")
            self._put(stream, Operation(work))

    def view(self, address: int, nbytes: int) -> npt.NDArray[np.uint8]:
        """The bytes behind an address, of device or mapped memory. Raises Misuse where they are not all live."""
        with self._lock:
            index = bisect_right(self._starts, address) - 1
            block = self._blocks[index] if index >= 0 else None
            if block is None or block.buffer is None:
                state = "never given out by this device" if block is None else "freed"
                raise Misuse(f"address {int(address):#x} ({nbytes} bytes) is {state}")
            offset = int(address) - self._starts[index]
            if nbytes < 0 or offset + nbytes > len(block.buffer):
                raise Misuse(
                    f"address {int(address):#x} with {nbytes} bytes: {offset} to {offset + nbytes} of {len(block.buffer)} bytes"
                )
            return block.buffer[offset : offset + nbytes]

    @property
    def captures(self) -> bool:
        """Whether a stream is being captured."""
        return self._capture is not None

    @property
    def live_bytes(self) -> int:
        """Of device and mapped memory that is not freed."""
        return sum(len(block.buffer) for block in self._blocks if block.buffer is not None)

    @property
    def properties(self) -> DeviceProperties:
        return self._properties

    def active(self) -> AbstractContextManager[None]:
        return self._activated()

    @contextmanager
    def _activated(self) -> Iterator[None]:
        if self._state != "open":
            raise Misuse(f"active() of a device that is {self._state}")
        self._fail_if_lost("active")
        self._active.depth = getattr(self._active, "depth", 0) + 1
        try:
            yield
        finally:
            self._active.depth -= 1

    def allocate(self, nbytes: int) -> StrictDeviceMemory:
        with self._lock:
            self._check("allocate", captured=False)
            self._take(nbytes, "allocate", of_the_gpu=True)
            return self._place(lambda address: StrictDeviceMemory(self, address, nbytes), nbytes)

    def page_locked(self, nbytes: int) -> StrictHostMemory:
        with self._lock:
            self._check("page_locked", captured=False)
            self._take(nbytes, "page_locked", of_the_gpu=self._properties.integrated)
            memory = StrictHostMemory(self, 0, nbytes)
            self._host.append(memory)
            return memory

    def mapped(self, nbytes: int) -> StrictHostMemory:
        with self._lock:
            self._check("mapped", captured=False)
            self._take(nbytes, "mapped", of_the_gpu=self._properties.integrated)
            memory = self._place(lambda address: StrictHostMemory(self, address, nbytes), nbytes)
            self._host.append(memory)
            return memory

    def stream(self) -> StrictStream:
        with self._lock:
            self._check("stream", captured=False)
            stream = StrictStream(self)
            self._streams[stream.handle] = stream
            return stream

    def event(self) -> StrictEvent:
        with self._lock:
            self._check("event", captured=False)
            return StrictEvent(self)

    def upload(self, target: StrictDeviceMemory, offset: int, source: npt.NDArray[Any], stream: StrictStream) -> None:
        with self._lock:
            self._check("upload")
            address, nbytes = self._part(target, offset, source.nbytes, "upload"), source.nbytes
            span, memory = self._page_locked(source, "upload")

            def copy() -> None:
                if memory.buffer is None:
                    raise Misuse(f"upload of {nbytes} bytes: its source was freed before the stream came that far")
                self.view(address, nbytes)[:] = _bytes(source)

            self._put(stream, Operation(copy, reads=span))

    def download(self, target: npt.NDArray[Any], source: StrictDeviceMemory, offset: int, stream: StrictStream) -> None:
        with self._lock:
            self._check("download")
            address, nbytes = self._part(source, offset, target.nbytes, "download"), target.nbytes
            span, memory = self._page_locked(target, "download")
            if not target.flags.writeable:
                raise Misuse("download into an array that is read-only")
            into = _bytes(target)

            def copy() -> None:
                if memory.buffer is None:
                    raise Misuse(f"download of {nbytes} bytes: its target was freed before the stream came that far")
                into[:] = self.view(address, nbytes)

            self._put(stream, Operation(copy, writes=span, poison=lambda: into.fill(PENDING)))

    def fill(self, target: StrictDeviceMemory, offset: int, nbytes: int, value: int, stream: StrictStream) -> None:
        with self._lock:
            self._check("fill")
            address = self._part(target, offset, nbytes, "fill")
            if not 0 <= value <= 255:
                raise Misuse(f"fill with {value}; expected 0 to 255")
            self._put(stream, Operation(lambda: self.view(address, nbytes).fill(value)))

    def capture(self, stream: StrictStream, enqueue: Callable[[], None]) -> StrictGraph:
        with self._lock:
            self._check("capture", captured=False)
            self._own(stream, "capture")
            if self._capture is not None:
                raise Misuse("capture while another thread captures: the fake knows one at a time")
            capture = self._capture = Capture(stream.queue)
        # not under the lock: other threads go on
        try:
            enqueue()
        finally:
            self._capture = None
        with self._lock:
            capture.require_all_joined()
            graph = StrictGraph(self, capture.operations)
            self._graphs.append(graph)
            return graph

    def load(self, cubin: bytes, names: Sequence[str]) -> dict[str, StrictKernel]:
        with self._lock:
            self._check("load", captured=False)
            if not isinstance(cubin, bytes):
                raise Misuse(f"load of {type(cubin).__name__}; expected bytes")
            twins, types = (self._twins, {}) if self._twins is not None else _of_source()
            if missing := [name for name in names if name not in twins]:
                raise SessionError(f"no kernel {missing[0]} in the module; no twin of that name")
            return {name: StrictKernel(self, name, twins[name], types.get(name) or _parameters(twins[name])) for name in names}

    def launch(
        self,
        kernel: StrictKernel,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: Sequence[np.generic],
        stream: StrictStream,
    ) -> None:
        with self._lock:
            self._check("launch")
            if kernel.device is not self:
                raise Misuse(f"{kernel.name}: a kernel of another device")
            _check_extents(kernel.name, grid, block)
            _check_arguments(kernel, arguments)
            values = [argument.item() for argument in arguments]
            self._put(stream, Operation(lambda: kernel.twin(self.view, *values)))

    def __enter__(self) -> StrictDevice:
        if self._state != "new":
            raise Misuse(f"entered a device that is {self._state}")
        self._state = "open"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._lock:
            try:
                if kind is None and not self._lost:
                    self.work.finish_all()
                    self._complain_of_leaks()
            finally:
                self._state = "closed"
                for block in [*self._blocks, *self._host]:
                    if block.buffer is not None:
                        block.buffer.fill(FREED)
                    block.buffer = None
                self.work.drop()

    def release(self, memory: StrictDeviceMemory | StrictHostMemory) -> None:
        with self._lock:
            if memory.buffer is None or self._state == "closed" or self._lost:
                memory.buffer = None
                return
            self._check("free", captured=False)
            if isinstance(memory, StrictHostMemory):
                if self.work.uses(memory.span):
                    raise Misuse("page-locked memory freed while a copy of it is still on a stream")
                memory.buffer.fill(FREED)
            if isinstance(memory, StrictDeviceMemory) or self._properties.integrated:
                self._free_bytes += len(memory.buffer)
            memory.buffer = None

    def wait(self, stream: StrictStream, event: StrictEvent) -> None:
        with self._lock:
            self._check("Stream.wait")
            self._own(stream, "Stream.wait")
            if event.device is not self:
                raise Misuse("Stream.wait for an event of another device")
            mark, capture = event.mark, self._capture_of_this_thread()
            if capture is not None:
                capture.wait(stream.queue, mark)
            elif mark is not None and mark.capture is not None:
                raise Misuse("Stream.wait for an event that was last recorded in a capture")
            elif mark is not None:
                self._put(stream, Operation(_nothing, after=mark))

    def record(self, event: StrictEvent, stream: StrictStream) -> None:
        with self._lock:
            self._check("Event.record")
            self._own(stream, "Event.record")
            if event.device is not self:
                raise Misuse("Event.record of an event of another device")
            capture = self._capture_of_this_thread()
            if capture is not None:
                event.mark = capture.mark(stream.queue)
                return
            mark = event.mark = Mark(stream.queue)
            self._put(stream, Operation(mark.pass_it))

    def synchronize(self, stream: StrictStream, call: str) -> None:
        with self._lock:
            self._check(call, captured=False)
            self._own(stream, call)
            self.work.finish(stream.queue)

    def synchronize_event(self, event: StrictEvent) -> None:
        with self._lock:
            self._check("Event.synchronize", captured=False)
            if event.mark is None:
                return
            if event.mark.capture is not None:
                raise Misuse("Event.synchronize: last recorded in a capture, nothing will ever pass it")
            self.work.run_until(event.mark)

    def elapsed_ms(self, earlier: StrictEvent, later: StrictEvent) -> float:
        with self._lock:
            self._check("Event.elapsed_ms")
            for event in (earlier, later):
                if event.mark is None or event.mark.capture is not None or not event.mark.done:
                    raise Misuse("Event.elapsed_ms: an event that is not done; synchronise first")
            return (later.mark.seconds - earlier.mark.seconds) * 1000

    def replay(self, graph: StrictGraph, stream: StrictStream) -> None:
        with self._lock:
            self._check("Graph.launch", captured=False)
            self._own(stream, "Graph.launch")
            if graph.device is not self:
                raise Misuse("Graph.launch of another device's graph")
            if graph.operations is None:
                raise Misuse("Graph.launch of a closed graph")
            for operation in graph.operations:
                self._put(stream, operation)

    def forget(self, graph: StrictGraph) -> None:
        with self._lock:
            if graph.operations is not None and self._state == "open" and not self._lost:
                self._check("Graph.close", captured=False)
            graph.operations = None

    def _fail_if_lost(self, call: str) -> None:
        if self._lost:
            raise gpu_is_lost(self._properties.name, call, "lost on request")

    def _check(self, call: str, captured: bool = True) -> None:
        """captured: allowed in a capture."""
        if self._state != "open":
            raise Misuse(f"{call} on a device that is {self._state}")
        if not getattr(self._active, "depth", 0):
            raise Misuse(f"{call} outside of active() on this thread")
        self._fail_if_lost(call)
        if not captured and self._capture_of_this_thread() is not None:
            raise Misuse(f"{call} while a stream is captured")

    def _capture_of_this_thread(self) -> Capture | None:
        capture = self._capture
        return capture if capture is not None and capture.thread == threading.get_ident() else None

    def _own(self, stream: StrictStream, call: str) -> None:
        if not isinstance(stream, StrictStream) or stream.device is not self:
            raise Misuse(f"{call} with a stream of another device")

    def _put(self, stream: StrictStream, operation: Operation) -> None:
        self._own(stream, "work")
        if self._calls_until_lost is not None:
            self._calls_until_lost -= 1
            self._lost = self._calls_until_lost < 0
            self._fail_if_lost("work on a stream")
        capture = self._capture_of_this_thread()
        if capture is not None:
            capture.record(stream.queue, operation)
        elif self._capture is not None and stream.queue in self._capture.put:
            raise Misuse(f"work put on stream {stream.handle:#x} while another thread captures it")
        else:
            self.work.put(stream.queue, operation)

    def _take(self, nbytes: int, call: str, of_the_gpu: bool) -> None:
        if nbytes <= 0:
            raise Misuse(f"{call} of {nbytes} bytes; expected 1 or more")
        if not of_the_gpu:
            return
        if nbytes > self._free_bytes:
            raise out_of_memory(self._properties.name, call, nbytes, self._free_bytes)
        self._free_bytes -= nbytes

    def _place(self, make: Callable[[int], Any], nbytes: int) -> Any:
        address = self._next_address
        self._next_address = -(-(address + nbytes + _GUARD) // _ALIGNMENT) * _ALIGNMENT
        block = make(address)
        self._starts.append(address)
        self._blocks.append(block)
        return block

    def _part(self, memory: StrictDeviceMemory, offset: int, nbytes: int, call: str) -> int:
        """Address of a part of device memory that is live and holds it."""
        if not isinstance(memory, StrictDeviceMemory) or memory.device is not self:
            raise Misuse(f"{call} with device memory of another device")
        if memory.buffer is None:
            raise Misuse(f"{call} with device memory that was freed")
        if offset < 0 or nbytes < 0 or offset + nbytes > memory.nbytes:
            raise Misuse(f"{call} of bytes {offset} to {offset + nbytes} of {memory.nbytes}")
        return memory.address + offset

    def _page_locked(self, array: npt.NDArray[Any], call: str) -> tuple[range, StrictHostMemory]:
        if not isinstance(array, np.ndarray) or not array.flags.c_contiguous:
            raise Misuse(f"{call}: expected a C-contiguous array")
        span = _span(array)
        for memory in self._host:
            if memory.span.start <= span.start and span.stop <= memory.span.stop:
                if memory.buffer is None:
                    raise Misuse(f"{call}: its host memory was freed")
                return span, memory
        raise Misuse(f"{call}: the array ({array.shape}, {array.dtype}) is not in page-locked memory of this device")

    def _complain_of_leaks(self) -> None:
        if not self._strict_leaks:
            return
        left = [*dict.fromkeys([*self._blocks, *self._host])]
        kept = [f"{type(memory).__name__} of {len(memory.buffer)} bytes" for memory in left if memory.buffer is not None]
        kept += ["a graph" for graph in self._graphs if graph.operations is not None]
        if kept:
            raise Misuse(f"left at the end of the device: {', '.join(kept)}")


def _nothing() -> None:
    pass


def _bytes(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return array.reshape(-1).view(np.uint8)


def _span(array: npt.NDArray[Any]) -> range:
    start = array.__array_interface__["data"][0]
    return range(start, start + array.nbytes)


def _of_source() -> tuple[Mapping[str, Callable[..., None]], Mapping[str, tuple[type, ...]]]:
    """Twins of the package's kernels, and the types that their source gives the parameters."""
    from host_kernels import signatures
    from twins import TWINS

    return TWINS, signatures()


def _parameters(twin: Callable[..., None]) -> tuple[type, ...] | None:
    """Types of a twin's parameters behind the view; None where it takes any number."""
    parameters = list(inspect.signature(twin).parameters.values())[1:]
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return None
    hints = typing.get_type_hints(twin)
    return tuple(hints.get(parameter.name, object) for parameter in parameters)


def _check_extents(name: str, grid: tuple[int, int, int], block: tuple[int, int, int]) -> None:
    """Source: CUDA C++ Programming Guide, technical specifications per compute capability."""
    if len(grid) != 3 or len(block) != 3 or min(*grid, *block) < 1:
        raise Misuse(f"{name}: grid {grid}, block {block}; expected three numbers each, 1 or more")
    if grid[0] >= 2**31 or max(grid[1:]) > 65535 or block[0] * block[1] * block[2] > 1024 or block[2] > 64:
        raise Misuse(f"{name}: grid {grid}, block {block}: more than any GPU takes")


_ACCEPTED: Final[Mapping[type, type]] = {int: np.integer, float: np.floating, bool: np.bool_}


def _check_arguments(kernel: StrictKernel, arguments: Sequence[np.generic]) -> None:
    for place, argument in enumerate(arguments):
        if not isinstance(argument, np.generic):
            raise Misuse(f"{kernel.name}: argument {place} is {argument!r}; expected a NumPy scalar of the parameter's type")
    if kernel.parameters is None:
        return
    if len(arguments) != len(kernel.parameters):
        raise Misuse(f"{kernel.name}: {len(arguments)} arguments; expected {len(kernel.parameters)}")
    for place, (argument, wanted) in enumerate(zip(arguments, kernel.parameters, strict=True)):
        if not isinstance(argument, _ACCEPTED.get(wanted, wanted)):
            raise Misuse(f"{kernel.name}: argument {place} is {type(argument).__name__}; expected {wanted.__name__}")
