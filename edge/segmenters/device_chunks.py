"""Chunks gathered on the GPU out of the strip that lies there, for an engine whose state is there too: only classes come back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from edge.cuda.both_sides import BothSides
from edge.cuda.device import Event
from edge.cuda.strip import DeviceStrip
from edge.scores import Bytes, Reading
from edge.segmenters.chunks import ChunkColumns, Wanted
from edge.segmenters.device_path import UNDER_WAY, Overlapped
from edge.segmenters.returned import ReturnedClasses
from edge.segmenters.state import RefilledFeed
from edge.segmenters.stream_path import AskStream, StreamPath
from edge.sessions import StreamingSession
from edge.window import StripWindow

Classified = tuple[Wanted, Bytes, Bytes]
_NONE = np.empty((0, 0), np.uint8)


@dataclass(frozen=True, slots=True)
class _Turn:
    """What one of the chunks under way has for itself. stepped: the engine is done with it, its classes may be copied."""

    corner: BothSides
    classes: ReturnedClasses
    stepped: Event


class DeviceChunks:
    """Gathers, steps and classifies on a GPU, and copies back beside the next step; implements `ChunkReader`.

    ask: for the part of the session on the GPU. Raises SessionError.
    """

    def __init__(
        self, strip: DeviceStrip, ask: AskStream, session: StreamingSession, reading: Reading, columns: ChunkColumns
    ) -> None:
        self._strip, self._columns = strip, columns
        self._lines = session.chunk_lines
        self._host_reading, self._reading = replace(reading, steps=session.steps), replace(reading, steps=None)
        self._path = StreamPath(strip, ask, RefilledFeed(session, columns.total, columns.fill), "stream")
        self._copies = strip.stream()
        self._turns = [
            _Turn(strip.both_sides(2 * np.dtype(np.int64).itemsize), self._classes(), strip.event()) for _ in range(UNDER_WAY)
        ]
        self._turn = 0

    def spans_kept(self, spans_before: int) -> int:
        """Those that the session is fed again, and the one that is drawn ahead."""
        return spans_before + UNDER_WAY - 1

    def window(self, width: int, capacity: int) -> StripWindow:
        """The strip's window, on the GPU too."""
        return self._strip.window(width, capacity)

    def begin(self) -> None:
        """A run begins."""
        self._path.begin()

    def read(self, window: StripWindow, wanted: Iterable[Wanted]) -> Iterator[Classified]:
        """Gather, step, classify, copy back."""
        overlapped = Overlapped(self._path, self._begin, self._finish, lambda each: self._on_host(window, each))
        for classified in overlapped.results(wanted):
            if classified[0].row_start < classified[0].row_stop:
                yield classified

    def _begin(self, wanted: Wanted) -> tuple[Wanted, _Turn]:
        turn, lane = self._turns[self._turn], self._path.lane
        self._turn = 1 - self._turn
        first, columns = wanted.chunk.line, self._columns
        turn.corner.array.view(np.int64)[:] = (first, -columns.halo)
        turn.corner.upload(0, len(turn.corner.array), lane.stream)
        with self._strip.read_by(lane.stream, first, first + self._lines) as ring:
            corner = turn.corner.address
            self._strip.kernels.gather(ring, corner, 1, self._lines, columns.total, lane.input.address, lane.stream)
        lane.run()
        rows = wanted.row_stop - wanted.row_start
        if rows > 0:
            rectangle = (wanted.row_start, columns.halo, rows, columns.width)
            _, channels, height, width = lane.scores_shape
            shape, reading, out = (1, channels, height, width), self._reading, turn.classes.address
            self._strip.kernels.classes(lane.scores.address, lane.dtype, shape, rectangle, reading, out, lane.stream)
        turn.stepped.record(lane.stream)
        if rows > 0:
            self._copies.wait(turn.stepped)
            turn.classes.fetch((1, rows, columns.width), self._copies)
        return wanted, turn

    def _finish(self, begun: tuple[Wanted, _Turn]) -> Classified:
        wanted, turn = begun
        if wanted.row_start >= wanted.row_stop:
            turn.stepped.synchronize()
            return wanted, _NONE, _NONE
        mask, confidence = turn.classes.wait()[0]
        return wanted, mask, confidence

    def _on_host(self, window: StripWindow, wanted: Wanted) -> Classified:
        scores = self._path.on_host(window, wanted.chunk)
        if wanted.row_start >= wanted.row_stop:
            return wanted, _NONE, _NONE
        return wanted, *self._columns.classes(self._host_reading, scores, wanted)

    def _classes(self) -> ReturnedClasses:
        return ReturnedClasses(self._strip, 2 * self._lines * self._columns.width)
