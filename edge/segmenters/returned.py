"""Classes, and scores of gates, on their way back from the GPU."""

from __future__ import annotations

from math import prod

import numpy as np

from edge.cuda.device import Stream
from edge.cuda.strip import DeviceStrip
from edge.scores import Bytes
from edge.sessions import Scores
from edge.sessions.on_device import Lane

Shape = tuple[int, int, int]
"""Rectangles, lines, columns."""


class ReturnedClasses:
    """Memory for the classes and confidences of some rectangles, written on the GPU, copied to the host, taken there.

    most: bytes of the most that come at once.
    """

    def __init__(self, strip: DeviceStrip, most: int) -> None:
        self._memory = strip.both_sides(most)
        self._there = strip.event()
        self._shape: Shape = (0, 0, 0)

    @property
    def address(self) -> int:
        """Where the GPU writes (rectangles, 2, lines, columns) uint8."""
        return self._memory.address

    def fetch(self, shape: Shape, stream: Stream) -> None:
        """Put their way back on a stream, behind the kernel that writes them."""
        self._shape = shape
        rectangles, lines, columns = shape
        self._memory.download(0, 2 * rectangles * lines * columns, stream)
        self._there.record(stream)

    def wait(self) -> Bytes:
        """(rectangles, 2, lines, columns), a copy, as soon as it is there. Raises SessionError."""
        self._there.synchronize()
        rectangles, lines, columns = self._shape
        return np.array(self._memory.array[: 2 * rectangles * lines * columns]).reshape(rectangles, 2, lines, columns)


class ReturnedScores:
    """Memory of the host for all scores of a lane."""

    def __init__(self, strip: DeviceStrip, lane: Lane) -> None:
        self._device = strip.device
        self._bytes = strip.page_locked(prod(lane.scores_shape) * lane.dtype.itemsize)
        self._there = strip.event()

    def fetch(self, lane: Lane) -> None:
        """Put their way back on the lane's stream, behind its run."""
        self._device.download(self._bytes, lane.scores, 0, lane.stream)
        self._there.record(lane.stream)

    def wait(self, lane: Lane) -> Scores:
        """The scores as the session gives them, valid until the next ones, as soon as they are there. Raises SessionError."""
        self._there.synchronize()
        scores = self._bytes.view(lane.dtype).reshape(lane.scores_shape)
        return scores.astype(np.float32) if lane.dtype == np.float16 else scores
