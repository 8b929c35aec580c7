"""Sessions on a strict device whose engine is ONNX Runtime: what a segmenter sees of a GPU, with the answers of the CPU."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from strict_device import StrictDevice, StrictDeviceMemory, StrictStream

from edge.errors import SessionError
from edge.sessions import Session, StreamingSession
from edge.sessions.trt.shapes import BUCKETS, bucket_of


@dataclass
class OrtLane:
    """`edge.sessions.on_device.Lane`; answer: computes scores (n, ...) of a batch."""

    device: StrictDevice
    shape: tuple[int, int, int, int]
    scores_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    input: StrictDeviceMemory
    scores: StrictDeviceMemory
    stream: StrictStream
    answer: Any
    runs: int = 0

    @staticmethod
    def of(device: StrictDevice, shape: tuple[int, int, int, int], answer, scores_shape: tuple[int, ...], dtype) -> OrtLane:
        scores = device.allocate(prod(scores_shape) * np.dtype(dtype).itemsize)
        try:
            images = device.allocate(prod(shape))
        except SessionError:
            scores.free()
            raise
        return OrtLane(device, shape, scores_shape, np.dtype(dtype), images, scores, device.stream(), answer)

    def run(self) -> None:
        self.runs += 1
        self.device.enqueue(self.stream.handle, self._infer)

    def free(self) -> None:
        self.input.free()
        self.scores.free()

    def _infer(self) -> None:
        images = self.device.view(self.input.address, prod(self.shape)).reshape(self.shape)
        scores = self.answer(images).astype(self.dtype)
        assert scores.shape == self.scores_shape
        self.device.view(self.scores.address, scores.nbytes)[:] = np.ascontiguousarray(scores).reshape(-1).view(np.uint8)


class OrtOnDevice:
    """`Session` and `DeviceSession`. on_host: batches that it was asked by `infer`."""

    backend, steps = "ort", None

    def __init__(self, device: StrictDevice, session: Session, dtype: Any = np.float32) -> None:
        self.device, self._session, self._dtype = device, session, dtype
        self._lanes: dict[tuple[int, ...], tuple[OrtLane, OrtLane]] = {}
        self.on_host = 0

    def infer(self, batch):
        self.on_host += 1
        return self._session.infer(batch)

    def prepare(self, shape) -> None:
        self._session.prepare(shape)

    def buckets(self, shape) -> list[int]:
        return [bucket for bucket in BUCKETS if bucket <= bucket_of(shape[0])]

    def lanes(self, shape):
        if shape not in self._lanes:
            size = self._session.infer(np.zeros(shape, np.uint8)).shape
            first = OrtLane.of(self.device, shape, self._session.infer, size, self._dtype)
            try:
                self._lanes[shape] = first, OrtLane.of(self.device, shape, self._session.infer, size, self._dtype)
            except SessionError:
                first.free()
                raise
        return self._lanes[shape]

    @property
    def scores(self) -> list[StrictDeviceMemory]:
        """Where its answers lie."""
        return [lane.scores for lanes in self._lanes.values() for lane in lanes]

    def __enter__(self) -> OrtOnDevice:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(SessionError), self.device.active():
            for lane in [lane for lanes in self._lanes.values() for lane in lanes]:
                lane.free()


class OrtStreamOnDevice:
    """`StreamingSession` and `DeviceStream`. on_host: chunks that it was asked by `step`."""

    backend, steps = "ort", None

    def __init__(self, device: StrictDevice, session: StreamingSession, columns: int) -> None:
        self.device, self._session = device, session
        self.chunk_lines, self.lag_lines = session.chunk_lines, session.lag_lines
        shape = (1, 1, session.chunk_lines, columns)
        size = session.step(np.zeros(shape, np.uint8)).shape
        with device.active():
            self.lane = OrtLane.of(device, shape, session.step, size, np.float32)
        self.on_host = 0

    def step(self, chunk):
        with self.device.active():
            self.lane.stream.synchronize()
        self.on_host += 1
        return self._session.step(chunk)

    def reset(self) -> None:
        with self.device.active():
            self.device.enqueue(self.lane.stream.handle, self._session.reset)

    @property
    def scores(self) -> list[StrictDeviceMemory]:
        """Where its answers lie."""
        return [self.lane.scores]

    def __enter__(self) -> OrtStreamOnDevice:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(SessionError), self.device.active():
            self.lane.free()


class Spares:
    """The succession of a `StandbyStream`: streams that take its place one after the other."""

    def __init__(self, *streams: StreamingSession) -> None:
        self.left = list(streams)

    def stream_after(self, failed: StreamingSession, error: SessionError) -> StreamingSession:
        for spare in self.left:
            with suppress(SessionError):
                spare.reset()
                self.left = self.left[self.left.index(spare) + 1 :]
                return spare
        raise error

    def note(self, backend: str) -> None:
        pass


class Failing:
    """A streaming session that fails once it was stepped and reset so many times, and stays so."""

    backend, steps = "ort", None

    def __init__(self, session: StreamingSession, calls: int) -> None:
        self._session, self._left = session, calls
        self.chunk_lines, self.lag_lines = session.chunk_lines, session.lag_lines

    def step(self, chunk):
        self._count()
        return self._session.step(chunk)

    def reset(self) -> None:
        self._count()
        self._session.reset()

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise SessionError("failed on request")
