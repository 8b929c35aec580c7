"""A camera's clock: lines are due on an absolute schedule, so that no delay adds up."""

from __future__ import annotations

import threading
import time


class Pace:
    """Waits until a number of lines is due, counted from when it was made.

    line_rate_hz: None never waits. closed: set by whoever ends the source; ends every waiting.
    """

    def __init__(self, line_rate_hz: float | None, closed: threading.Event) -> None:
        self._line_rate_hz = line_rate_hz
        self._closed = closed
        self._start_s = time.monotonic()

    def wait_for(self, lines: int) -> bool:
        """Wait until `lines` lines have passed since the start; False where the source was closed meanwhile.

        Whoever comes late is not waited for: the schedule stands, and the lines due by then come at once.
        """
        if self._line_rate_hz is not None:
            due_s = self._start_s + lines / self._line_rate_hz
            while (left_s := due_s - time.monotonic()) > 0:
                if self._closed.wait(left_s):
                    return False
        return not self._closed.is_set()
