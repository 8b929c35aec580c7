"""What a GPU is asked for: memory, order, copies, graphs, kernels. No other file of rust-edge speaks to CUDA but through this.

    upload -> kernels, engine -> download     on one stream in order; an event lets another stream, or the host, wait
    capture                                   the same, recorded once and replayed as a whole

Two implementations share the tests: pycuda with the device's primary context (`edge.cuda.driver`), and a strict one without a
GPU in the tests, which raises where real hardware would quietly answer with rubbish.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

HostArray = npt.NDArray[Any]
"""C-contiguous, a view of page-locked or mapped memory of the same device."""


@dataclass(frozen=True, slots=True)
class DeviceProperties:
    """name: as the driver gives it, `Orin`. compute: its capability, `8.7`. memory_bytes: of the GPU, or shared with the CPU.

    integrated: it shares the CPU's memory, so that mapped memory needs no copy. driver: the CUDA version that the driver
    supports, `12.6`.
    """

    name: str
    compute: str
    memory_bytes: int
    multiprocessors: int
    integrated: bool
    driver: str


class DeviceMemory(Protocol):
    """Bytes on the GPU. address: for kernels and engines, aligned to 256 bytes."""

    @property
    def address(self) -> int:
        """Where it begins. Raises SessionError once it is freed."""
        ...

    @property
    def nbytes(self) -> int:
        """How long it is."""
        ...

    def free(self) -> None:
        """Give it back; harmless a second time."""
        ...


class HostMemory(Protocol):
    """Page-locked bytes of the host, which copies reach without the CPU."""

    @property
    def array(self) -> npt.NDArray[np.uint8]:
        """All of it, (nbytes,) uint8; views of it are what `upload` and `download` take. Raises SessionError once freed."""
        ...

    @property
    def device_address(self) -> int:
        """Where the GPU sees it; 0 for memory that is not mapped."""
        ...

    def free(self) -> None:
        """Give it back; harmless a second time."""
        ...


class Event(Protocol):
    """A mark on a stream."""

    def record(self, stream: Stream) -> None:
        """Mark what was put on the stream so far."""
        ...

    def synchronize(self) -> None:
        """Wait until all that was marked is done. Raises SessionError where any of it failed."""
        ...

    def elapsed_ms(self, earlier: Event) -> float:
        """Milliseconds on the GPU since an earlier mark; both are done."""
        ...


class Stream(Protocol):
    """Work in order. handle: `CUstream` as an integer, for TensorRT."""

    @property
    def handle(self) -> int:
        """For TensorRT's `execute_async_v3`."""
        ...

    def wait(self, event: Event) -> None:
        """What is put on it from now on begins after the event."""
        ...

    def synchronize(self) -> None:
        """Wait until all of it is done. Raises SessionError where any of it failed."""
        ...


class Graph(Protocol):
    """What was put on a stream while it was captured."""

    def launch(self, stream: Stream) -> None:
        """Put all of it on a stream again, at the same addresses."""
        ...

    def close(self) -> None:
        """Forget it; harmless a second time."""
        ...


class Kernel(Protocol):
    """A function of a compiled module."""

    @property
    def name(self) -> str:
        """As in the source."""
        ...


@runtime_checkable
class CudaDevice(Protocol):
    """One GPU. A context manager around all that is made on it; what is still there at its end is freed.

    Any thread may use it, inside `active()`. Every method raises SessionError that says what was asked and what CUDA answered:
    out of memory with the bytes wanted and free, a lost GPU as such.
    """

    @property
    def properties(self) -> DeviceProperties:
        """What it is."""
        ...

    def active(self) -> AbstractContextManager[None]:
        """Make it this thread's device for a while; may be nested, costs a microsecond."""
        ...

    def allocate(self, nbytes: int) -> DeviceMemory:
        """Memory on the GPU, not cleared. Not while a stream is captured."""
        ...

    def page_locked(self, nbytes: int) -> HostMemory:
        """Memory of the host for copies that run beside everything else, cleared."""
        ...

    def mapped(self, nbytes: int) -> HostMemory:
        """Memory of the host that the GPU reads and writes in place, cleared: for integrated ones."""
        ...

    def stream(self) -> Stream:
        """A stream that does not wait for the default one."""
        ...

    def event(self) -> Event:
        """An event that takes times."""
        ...

    def upload(self, target: DeviceMemory, offset: int, source: HostArray, stream: Stream) -> None:
        """Copy from the host, asynchronously: `source` must stay as it is until the stream has come that far."""
        ...

    def download(self, target: HostArray, source: DeviceMemory, offset: int, stream: Stream) -> None:
        """Copy to the host, asynchronously: `target` holds the bytes once the stream has come that far."""
        ...

    def fill(self, target: DeviceMemory, offset: int, nbytes: int, value: int, stream: Stream) -> None:
        """Set bytes to 0 to 255, asynchronously."""
        ...

    def capture(self, stream: Stream, enqueue: Callable[[], None]) -> Graph:
        """Record what `enqueue` puts on the stream instead of running it. Raises what it raises, the stream usable again."""
        ...

    def load(self, cubin: bytes, names: Sequence[str]) -> dict[str, Kernel]:
        """Kernels of a compiled module (`extern "C"`), by name."""
        ...

    def launch(
        self,
        kernel: Kernel,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: Sequence[np.generic],
        stream: Stream,
    ) -> None:
        """Run a kernel. arguments: scalars of exactly the parameters' types; addresses as `np.uint64`."""
        ...

    def __enter__(self) -> CudaDevice: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...
