"""What one strip has on a GPU: the window, kernels, memory for crops and masks, all given back together."""

from __future__ import annotations

import weakref
from contextlib import AbstractContextManager, suppress
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from edge.cuda.both_sides import BothSides, both_sides
from edge.cuda.device import CudaDevice, Event, Stream
from edge.cuda.kernels import Ring, StripKernels
from edge.cuda.strip_window import DeviceStripWindow
from edge.errors import SessionError


class _Freeable(Protocol):
    def free(self) -> None: ...


_Kept = TypeVar("_Kept", bound=_Freeable)


class DeviceStrip:
    """The one window over a strip, and what is needed to read it on the GPU.

    Owns what it makes until `close`, or until nobody has the strip any more; closed before its device is. Raises SessionError.
    """

    def __init__(self, device: CudaDevice, kernels: StripKernels) -> None:
        self.device, self.kernels = device, kernels
        self._kept: list[_Freeable] = []
        self._streams: list[Stream] = []
        self._close = weakref.finalize(self, _free, device, self._streams, self._kept)
        # a device that is still open then is freed by its own end
        self._close.atexit = False

    def window(self, width: int, capacity: int) -> DeviceStripWindow:
        """The window over the strip's last lines, made anew."""
        with self.device.active():
            self._window = self._keep(DeviceStripWindow(self.device, width, capacity, self.stream()))
        return self._window

    def read_by(self, stream: Stream, line_start: int, line_stop: int) -> AbstractContextManager[Ring]:
        """`DeviceStripWindow.read_by` of the window."""
        return self._window.read_by(stream, line_start, line_stop)

    def both_sides(self, nbytes: int) -> BothSides:
        """Memory of host and GPU."""
        with self.device.active():
            return self._keep(both_sides(self.device, nbytes))

    def page_locked(self, nbytes: int) -> npt.NDArray[np.uint8]:
        """Memory of the host that downloads reach, (nbytes,)."""
        with self.device.active():
            return self._keep(self.device.page_locked(nbytes)).array

    def uses(self, stream: Stream) -> None:
        """Copies and kernels of the strip go over an engine's stream: its memory is not given back before they are done."""
        self._streams.append(stream)

    def event(self) -> Event:
        """An event."""
        with self.device.active():
            return self.device.event()

    def stream(self) -> Stream:
        """A stream beside those of the engines."""
        with self.device.active():
            stream = self.device.stream()
        self.uses(stream)
        return stream

    def close(self) -> None:
        """Give all memory back; harmless a second time."""
        self._close()

    def _keep(self, made: _Kept) -> _Kept:
        self._kept.append(made)
        return made


def _free(device: CudaDevice, streams: list[Stream], kept: list[_Freeable]) -> None:
    # a lost GPU cannot be made active: its memory is gone with it
    with suppress(SessionError), device.active():
        for stream in streams:
            # what failed there is known to whom it was of use
            with suppress(SessionError):
                stream.synchronize()
        while kept:
            kept.pop().free()
