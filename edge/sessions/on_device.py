"""Sessions that compute on a GPU, as those see them who keep the strip there too: pixels go in and scores stay on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from edge.cuda.device import CudaDevice, DeviceMemory, Stream


class Lane(Protocol):
    """An engine at one shape on one of two streams, so that two lanes of it work side by side.

    shape: of the input, (n, 1, h, w) uint8. scores_shape, dtype: of the output: float32, float16, or uint8 of a mask head.
    What is put on `stream` before `run` fills the input, what comes after it reads the scores. Lanes of other shapes on the same
    stream may lie in the same memory, and it may move when a lane is made: addresses are to be asked for each time.
    """

    shape: tuple[int, int, int, int]
    scores_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stream: Stream

    @property
    def input(self) -> DeviceMemory:
        """Where the pixels go, C-contiguous, at its begin."""
        ...

    @property
    def scores(self) -> DeviceMemory:
        """Where the scores are, C-contiguous, at its begin."""
        ...

    def run(self) -> None:
        """Put the inference of all n on the stream. Raises SessionError."""
        ...


@runtime_checkable
class DeviceSession(Protocol):
    """A `Session` on a GPU. For one thread at a time, inside `device.active()`."""

    device: CudaDevice

    def buckets(self, shape: tuple[int, int, int, int]) -> Sequence[int]:
        """Sizes of batches that lanes are asked for where up to shape[0] such tiles come, rising; fewer are filled up.

        They score a tile alike, every bit. The largest one may be below shape[0]. Raises SessionError.
        """
        ...

    def lanes(self, shape: tuple[int, int, int, int]) -> tuple[Lane, Lane]:
        """The two lanes of a shape, made by the first call. Raises SessionError."""
        ...


@runtime_checkable
class DeviceStream(Protocol):
    """A `StreamingSession` on a GPU: its one lane holds the chunk (1, 1, chunk_lines, width), and `run` takes the next step."""

    device: CudaDevice
    lane: Lane
