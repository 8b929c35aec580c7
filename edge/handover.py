"""Where one thread hands its work to the next: a short, bounded queue in order, which either side can end."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Handover(Generic[Item]):
    """Items from one thread to another. A full one makes the giving thread wait, so that it never runs far ahead."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._waiting: deque[Item] = deque()
        self._closed = False
        self._changed = threading.Condition()

    def put(self, item: Item) -> bool:
        """Wait for room, then hand over. False: the handover was closed meanwhile, the item stays with the caller."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._waiting) < self._capacity)
            if self._closed:
                return False
            self._waiting.append(item)
            self._changed.notify_all()
            return True

    def take_all(self, timeout_s: float | None = None) -> list[Item]:
        """All that waits, oldest first, as soon as there is anything; nothing: closed and empty, or timed out."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed, timeout_s)
            taken = list(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
            return taken

    def close(self) -> None:
        """No more items come; what waits can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def drained(self) -> bool:
        """Closed, and everything taken."""
        with self._changed:
            return self._closed and not self._waiting
