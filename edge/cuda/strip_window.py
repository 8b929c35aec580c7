"""The last lines of a run on a GPU too: each goes up once, and kernels cut out of them what engines are given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from edge.cuda.both_sides import both_sides
from edge.cuda.device import CudaDevice, Event, Stream
from edge.cuda.kernels import Ring
from edge.errors import SessionError
from edge.frame import Lines
from edge.window import StripWindow

_UPLOADS_MARKED = 8
"""Uploads within an eighth of the ring share an event, so that lines which come singly need no more than eight."""


@dataclass(slots=True)
class _Use:
    """Rows of the ring that are copied or read until `event`. line: the oldest of them."""

    line: int
    event: Event


class DeviceStripWindow(StripWindow):
    """A window whose ring the GPU has as well; `cut` and `pieces` go on working on the host, whatever becomes of the GPU.

    uploads: the stream that lines go up on. Made inside `device.active()`; `append` and `start` make it active themselves.
    Raises SessionError when it is made; later a failed upload is kept for `read_by`, since the host has the lines all the same.

    A row is overwritten, on either side, only after the host has waited for every upload of it and for every kernel that reads
    it. With a ring of one span more than the host alone would need these are done long before, so that it never waits in fact.
    """

    def __init__(self, device: CudaDevice, width: int, capacity: int, uploads: Stream) -> None:
        self._device = device
        self._bytes = both_sides(device, max(1, width * capacity))
        self._stream = uploads
        self._newest = device.event()
        self._uploads: list[_Use] = []
        self._reads: list[_Use] = []
        self._spare: list[Event] = []
        self._fault: SessionError | None = None
        super().__init__(width, capacity, self._bytes.array.reshape(capacity, width))

    def free(self) -> None:
        """Give the memory of both sides back, when no stream has work with it; harmless a second time. Inside `active()`."""
        self._bytes.free()

    def start(self, begin: int) -> None:
        """Forget everything; a new run begins at line `begin` of the strip."""
        # a line's row depends on where its run began: all of them may be overwritten now
        self._guarded_wait(None)
        super().start(begin)

    def append(self, lines: Lines) -> None:
        """Keep the next lines, (h, width) uint8, and put their upload on a stream. Raises ValueError."""
        first = self.line_stop
        self._guarded_wait(first + len(lines) - self.capacity)
        super().append(lines)
        if self._fault is not None or not len(lines):
            return
        try:
            with self._device.active():
                self._upload(first, self.line_stop)
        except SessionError as error:
            self._fault = error

    def ring(self) -> Ring:
        """The GPU's side as it is once the newest upload is done."""
        return Ring(self._bytes.address, self.capacity, self.width, self.begin, self.line_stop)

    @contextmanager
    def read_by(self, stream: Stream, line_start: int, line_stop: int) -> Iterator[Ring]:
        """The ring, for kernels that are put on `stream` within and read what `cut` would for this span of lines.

        Inside `active()`. Raises ValueError as `cut` does, SessionError where lines did not go up.
        """
        self.require_kept(line_start, line_stop)
        if self._fault is not None:
            raise SessionError(f"lines of the strip did not reach the GPU: {self._fault}") from self._fault
        stream.wait(self._newest)
        yield self.ring()
        event = self._event()
        event.record(stream)
        # of what is reflected at the run's end older lines are read, and no line follows that could take their place
        self._reads.append(_Use(max(self.begin, line_start), event))

    def _upload(self, first: int, stop: int) -> None:
        slot, last = first % self.capacity, (stop - 1) % self.capacity + 1
        for start, end in [(slot, last)] if slot < last else [(slot, self.capacity), (0, last)]:
            self._bytes.upload(start * self.width, end * self.width, self._stream)
        self._newest.record(self._stream)
        if not self._uploads or first - self._uploads[-1].line >= self.capacity // _UPLOADS_MARKED:
            self._uploads.append(_Use(first, self._event()))
        self._uploads[-1].event.record(self._stream)

    def _guarded_wait(self, kept_from: int | None) -> None:
        if self._fault is not None:
            return
        try:
            self._wait(kept_from)
        except SessionError as error:
            # what still used those rows belongs to a path that is given up with this error
            self._fault = error

    def _wait(self, kept_from: int | None) -> None:
        """Wait for all that uses lines before `kept_from`; None: any."""
        for uses in (self._uploads, self._reads):
            over = [use for use in uses if kept_from is None or use.line < kept_from]
            if not over:
                continue
            with self._device.active():
                for use in over:
                    use.event.synchronize()
                    uses.remove(use)
                    self._spare.append(use.event)

    def _event(self) -> Event:
        return self._spare.pop() if self._spare else self._device.event()
