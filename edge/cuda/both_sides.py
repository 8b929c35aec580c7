"""Memory that host and GPU both have: page-locked with a copy on the GPU, or mapped where they share it anyway."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from edge.cuda.device import CudaDevice, Stream
from edge.errors import SessionError


class BothSides(Protocol):
    """Bytes of the host that the GPU has too, at `address`."""

    @property
    def array(self) -> npt.NDArray[np.uint8]:
        """The host's side, (nbytes,) uint8."""
        ...

    @property
    def address(self) -> int:
        """The GPU's side."""
        ...

    def upload(self, start: int, stop: int, stream: Stream) -> None:
        """Bring a range of bytes to the GPU, asynchronously: the host's must stay until the stream has come that far."""
        ...

    def download(self, start: int, stop: int, stream: Stream) -> None:
        """Bring a range of bytes to the host, asynchronously."""
        ...

    def free(self) -> None:
        """Give it back; harmless a second time."""
        ...


class CopiedBytes:
    """Of a GPU with memory of its own."""

    def __init__(self, device: CudaDevice, nbytes: int) -> None:
        self._device = device
        self._host = device.page_locked(nbytes)
        try:
            self._there = device.allocate(nbytes)
        except SessionError:
            self._host.free()
            raise
        self.array = self._host.array

    @property
    def address(self) -> int:
        """The GPU's side."""
        return self._there.address

    def upload(self, start: int, stop: int, stream: Stream) -> None:
        """Copy to the GPU."""
        self._device.upload(self._there, start, self.array[start:stop], stream)

    def download(self, start: int, stop: int, stream: Stream) -> None:
        """Copy to the host."""
        self._device.download(self.array[start:stop], self._there, start, stream)

    def free(self) -> None:
        """Give both sides back."""
        self._there.free()
        self._host.free()


class MappedBytes:
    """Of an integrated GPU: nothing is copied."""

    def __init__(self, device: CudaDevice, nbytes: int) -> None:
        self._host = device.mapped(nbytes)
        self.array = self._host.array

    @property
    def address(self) -> int:
        """The GPU's side."""
        return self._host.device_address

    def upload(self, start: int, stop: int, stream: Stream) -> None:
        """What the host has written before a kernel is launched is seen by it."""

    def download(self, start: int, stop: int, stream: Stream) -> None:
        """What a kernel has written is seen by the host that has waited for it."""

    def free(self) -> None:
        """Give it back."""
        self._host.free()


def both_sides(device: CudaDevice, nbytes: int) -> BothSides:
    """Memory of the kind that suits the device. Raises SessionError."""
    return MappedBytes(device, nbytes) if device.properties.integrated else CopiedBytes(device, nbytes)
