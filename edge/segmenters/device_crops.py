"""Crops gathered on the GPU out of the strip that lies there: only their classes come back."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from edge.cuda.both_sides import BothSides
from edge.cuda.strip import DeviceStrip
from edge.scores import Bytes, Reading
from edge.segmenters.crops import Crop, HostCrops, Size, batches
from edge.segmenters.device_path import UNDER_WAY, AskDevice, DevicePath, Overlapped, engine_of
from edge.segmenters.returned import ReturnedClasses
from edge.sessions import Session
from edge.sessions.on_device import Lane
from edge.window import StripWindow

Classified = tuple[Crop, Bytes, Bytes]
_CORNER = np.dtype((np.int64, 2))
"""Line and column, as `StripKernels.gather` wants them."""


@dataclass(frozen=True, slots=True)
class _Turn:
    """What one of the batches under way has for itself, beside its lane."""

    corners: BothSides
    classes: ReturnedClasses


@dataclass(frozen=True, slots=True)
class _Batch:
    """Crops under way. top, left: where the rectangle begins that holds all their cores."""

    crops: list[Crop]
    top: int
    left: int
    turn: _Turn


class DeviceCrops:
    """Gathers, infers and classifies on a GPU, two batches at a time; implements `edge.segmenters.crops.CropReader`.

    ask: for the part of the session on the GPU, which is asked as long as the session would; the session infers by itself where
    another engine has taken its place, or the GPU fails. Batches are filled up to sizes that score tiles alike.
    Raises SessionError.
    """

    spans_ahead = UNDER_WAY - 1

    def __init__(
        self,
        strip: DeviceStrip,
        ask: AskDevice,
        session: Session,
        reading: Reading,
        sizes: Collection[Size],
        batch: int,
    ) -> None:
        self._host = HostCrops(session, reading, sizes, batch)
        self._reading = replace(reading, steps=None)
        self._strip = strip
        self._path = DevicePath(strip, "crops")
        self._ask, self._engine = ask, engine_of(ask)
        with strip.device.active():
            buckets = {size: self._engine.buckets((batch, 1, *size)) for size in sizes}
            self._lanes = {
                size: {bucket: self._engine.lanes((bucket, 1, *size)) for bucket in rising} for size, rising in buckets.items()
            }
        for stream in {
            id(lane.stream): lane.stream for lanes in self._lanes.values() for pair in lanes.values() for lane in pair
        }.values():
            strip.uses(stream)
        self._most = min(batch, *(rising[-1] for rising in buckets.values()))
        widest = max(bucket * prod(size) for size, rising in buckets.items() for bucket in rising)
        most = max(bucket for rising in buckets.values() for bucket in rising)
        self._turns = [
            _Turn(strip.both_sides(most * _CORNER.itemsize), ReturnedClasses(strip, 2 * widest)) for _ in range(UNDER_WAY)
        ]
        self._turn = 0

    def window(self, width: int, capacity: int) -> StripWindow:
        """The strip's window, on the GPU too."""
        return self._strip.window(width, capacity)

    def read(self, window: StripWindow, crops: Iterable[Crop]) -> Iterator[Classified]:
        """Gather, infer, classify, copy back."""
        if self._ask() is not self._engine:
            yield from self._host.read(window, crops)
            return
        overlapped = Overlapped(self._path, self._begin, self._finish, lambda some: list(self._host.read(window, some)))
        for classified in overlapped.results(batches(crops, self._most)):
            yield from classified

    def _begin(self, crops: list[Crop]) -> _Batch:
        turn, which = self._turns[self._turn], self._turn
        self._turn = 1 - self._turn
        lines, columns = crops[0].size
        lane = self._lane(crops, which)
        filled = lane.shape[0]
        corners = turn.corners.array[: filled * _CORNER.itemsize].view(np.int64).reshape(filled, 2)
        corners[:] = [(crop.line, crop.column) for crop in (crops + crops[:1] * filled)[:filled]]
        turn.corners.upload(0, corners.nbytes, lane.stream)
        first, last = min(crop.line for crop in crops), max(crop.line for crop in crops)
        with self._strip.read_by(lane.stream, first, last + lines) as ring:
            self._strip.kernels.gather(ring, turn.corners.address, filled, lines, columns, lane.input.address, lane.stream)
        lane.run()
        top, left = min(crop.top for crop in crops), min(crop.left for crop in crops)
        bottom, right = max(crop.top + crop.core[0] for crop in crops), max(crop.left + crop.core[1] for crop in crops)
        rectangle = (top, left, bottom - top, right - left)
        channels, *size = lane.scores_shape[1:]
        self._strip.kernels.classes(
            lane.scores.address,
            lane.dtype,
            (len(crops), channels, size[0], size[1]),
            rectangle,
            self._reading,
            turn.classes.address,
            lane.stream,
        )
        turn.classes.fetch((len(crops), *rectangle[2:]), lane.stream)
        return _Batch(crops, top, left, turn)

    def _finish(self, batch: _Batch) -> list[Classified]:
        classified = []
        for crop, planes in zip(batch.crops, batch.turn.classes.wait(), strict=True):
            top, left = crop.top - batch.top, crop.left - batch.left
            mask, confidence = planes[:, top : top + crop.core[0], left : left + crop.core[1]]
            classified.append((crop, mask, confidence))
        return classified

    def _lane(self, crops: list[Crop], which: int) -> Lane:
        """Of the smallest size that holds so many crops."""
        lanes = self._lanes[crops[0].size]
        return lanes[min(bucket for bucket in lanes if bucket >= len(crops))][which]
