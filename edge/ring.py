"""Where capture meets those who look at frames: a preallocated, bounded ring of them."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

import numpy as np

from edge.frame import Frame


@dataclass(frozen=True, slots=True)
class RingItem:
    """A frame in the ring's memory, and how many lines just before it were shed for want of room. slot: where it lies."""

    frame: Frame
    shed_lines: int
    slot: int


class FrameRing:
    """Frames from one capture thread, in order, copied into memory taken once; theirs until they are released.

    A full ring either makes the capture thread wait (`put`) or sheds the frame (`offer`). Shedding goes on until half
    of the ring is free again: one long gap costs the strip less than many short ones, each of which would end a run
    of lines and have its halo computed anew.
    """

    def __init__(self, frames: int, frame_lines: int, width: int) -> None:
        self._slots = np.empty((frames, frame_lines, width), np.uint8)
        self._waiting: deque[RingItem] = deque()
        self._free = list(range(frames))
        self._shedding = False
        self._shed_lines = 0
        self._closed = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        """Frames that wait to be taken."""
        return len(self._waiting)

    def put(self, frame: Frame) -> bool:
        """Wait for room, then keep the frame. False: the ring was closed meanwhile, the frame is not kept."""
        with self._changed:
            self._changed.wait_for(lambda: self._free or self._closed)
            return self._keep(frame)

    def offer(self, frame: Frame) -> bool:
        """Keep the frame if there is room, else shed it and count its lines. False: the ring was closed."""
        with self._changed:
            if self._shedding and len(self._free) * 2 >= len(self._slots):
                self._shedding = False
            if self._shedding or not self._free:
                self._shedding = True
                self._shed_lines += frame.lines.shape[0]
                return not self._closed
            return self._keep(frame)

    def _keep(self, frame: Frame) -> bool:
        if self._closed:
            return False
        slot = self._free.pop()
        rows, columns = frame.lines.shape
        if rows > self._slots.shape[1] or columns != self._slots.shape[2]:
            raise ValueError(f"frame of {rows} x {columns}, expected at most {self._slots.shape[1]} x {self._slots.shape[2]}")
        kept = self._slots[slot, :rows]
        np.copyto(kept, frame.lines)
        self._waiting.append(RingItem(Frame(kept, frame.first_line, frame.captured_ns), self._shed_lines, slot))
        self._shed_lines = 0
        self._changed.notify_all()
        return True

    def take(self, timeout_s: float | None = None) -> RingItem | None:
        """The oldest frame, to be released once nobody looks at it any more; None: closed and empty, or timed out."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed, timeout_s)
            return self._waiting.popleft() if self._waiting else None

    def release(self, item: RingItem) -> None:
        """A frame's memory is the ring's again. Any thread may say so, once."""
        with self._changed:
            self._free.append(item.slot)
            self._changed.notify_all()

    def close(self) -> None:
        """No more frames come; what waits can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def drained(self) -> bool:
        """Closed, and everything taken."""
        with self._changed:
            return self._closed and not self._waiting

    def shed_at_end(self) -> int:
        """Lines shed after the last frame that was kept; they belong to the strip's end."""
        with self._changed:
            return self._shed_lines
