"""Memory of the host that batches pass through on their way to a GPU, and scores on their way back."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from edge.cuda.device import CudaDevice, DeviceMemory, HostMemory, Stream

Bytes = npt.NDArray[np.uint8]


class Staging(Protocol):
    """One inference's input and scores, for one stream.

    images, scores: bytes of the host, flat; the one is filled before `send`, the other read after `fetch` and once the stream
    has come that far. input_address, scores_address: for the engine.
    """

    images: Bytes
    scores: Bytes
    input_address: int
    scores_address: int

    def send(self, nbytes: int) -> None:
        """Put the first bytes of the images on the way to the engine's input."""
        ...

    def fetch(self, nbytes: int) -> None:
        """Put the first bytes of the engine's scores on the way back."""
        ...

    def free(self) -> None:
        """Give all of it back."""
        ...


class CopiedStaging:
    """Of a GPU with memory of its own: page-locked memory, and copies that run beside everything else."""

    def __init__(self, device: CudaDevice, stream: Stream, input_bytes: int, scores_bytes: int) -> None:
        self._device, self._stream = device, stream
        self._memory: list[HostMemory | DeviceMemory] = []
        try:
            self._images, self._scores = self._keep(device.page_locked(input_bytes)), self._keep(device.page_locked(scores_bytes))
            self._input, self._answer = self._on_device(input_bytes), self._on_device(scores_bytes)
        except BaseException:
            self.free()
            raise
        self.images, self.scores = self._images.array, self._scores.array
        self.input_address, self.scores_address = self._input.address, self._answer.address

    def send(self, nbytes: int) -> None:
        """A copy."""
        self._device.upload(self._input, 0, self.images[:nbytes], self._stream)

    def fetch(self, nbytes: int) -> None:
        """A copy."""
        self._device.download(self.scores[:nbytes], self._answer, 0, self._stream)

    def free(self) -> None:
        """All of it."""
        for memory in self._memory:
            memory.free()

    def _keep(self, memory: HostMemory) -> HostMemory:
        self._memory.append(memory)
        return memory

    def _on_device(self, nbytes: int) -> DeviceMemory:
        memory = self._device.allocate(nbytes)
        self._memory.append(memory)
        return memory


class MappedStaging:
    """Of a GPU that shares the host's memory: it reads and writes in place, and nothing is copied."""

    def __init__(self, device: CudaDevice, input_bytes: int, scores_bytes: int) -> None:
        self._images = device.mapped(input_bytes)
        try:
            self._scores = device.mapped(scores_bytes)
        except BaseException:
            self._images.free()
            raise
        self.images, self.scores = self._images.array, self._scores.array
        self.input_address, self.scores_address = self._images.device_address, self._scores.device_address

    def send(self, nbytes: int) -> None:
        """It is there already."""

    def fetch(self, nbytes: int) -> None:
        """It is there once the stream has come that far."""

    def free(self) -> None:
        """All of it."""
        self._images.free()
        self._scores.free()


def open_staging(device: CudaDevice, stream: Stream, input_bytes: int, scores_bytes: int) -> Staging:
    """The one that suits the GPU. Raises SessionError."""
    if device.properties.integrated:
        return MappedStaging(device, input_bytes, scores_bytes)
    return CopiedStaging(device, stream, input_bytes, scores_bytes)
