"""A camera over a strip that was made beforehand: nothing of it is computed while it is measured with."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import TracebackType

import numpy as np

from edge.frame import Frame, Lines, SourceHealth
from edge.sources.pace import Pace


def cut_there_and_back(strip: Lines, first_line: int, count: int) -> Lines:
    """(count, width) lines of an endless strip that runs through a finite one forwards, backwards, forwards, ...

    Where it turns there is no seam that a network could take for a defect. A view wherever the lines do not cross a turn.

    >>> cut_there_and_back(np.arange(3, dtype=np.uint8)[:, None], 1, 5).ravel().tolist()
    [1, 2, 2, 1, 0]
    """
    height, parts = len(strip), []
    while count > 0:
        lap, row = divmod(first_line, height)
        piece = (strip if lap % 2 == 0 else strip[::-1])[row : row + count]
        parts.append(piece)
        first_line, count = first_line + len(piece), count - len(piece)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


class StripSource:
    """Frames of a prepared strip, there and back again; implements `edge.frame.FrameSource`.

    line_rate_hz: its pace, as of a camera that waits for nobody; None: it waits for whoever takes the frames.
    lines, seconds: it ends after so many lines, or so long after the first; None: not for that reason.
    A frame's `captured_ns` is when its last line was due, whether or not anybody was there to take it.
    """

    def __init__(
        self, strip: Lines, frame_lines: int, line_rate_hz: float | None, lines: int | None = None, seconds: float | None = None
    ) -> None:
        self._strip, self._frame_lines, self._line_rate_hz = strip, frame_lines, line_rate_hz
        self._lines, self._seconds = lines, seconds
        self._closed = threading.Event()
        self._health = SourceHealth()
        self.began_ns = 0

    @property
    def width(self) -> int:
        """Columns of every frame."""
        return int(self._strip.shape[1])

    @property
    def waits(self) -> bool:
        """Whether it can wait for its consumer: where it has no pace."""
        return self._line_rate_hz is None

    def __enter__(self) -> StripSource:
        self._closed.clear()
        self._health = SourceHealth()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closed.set()

    def health(self) -> SourceHealth:
        """Frames and lines handed out since it was opened."""
        return self._health

    def captured_ns(self, line_stop: int) -> int:
        """When the line before `line_stop` was due, in `time.time_ns()`; without a pace, now."""
        return time.time_ns() if self._line_rate_hz is None else self.began_ns + round(line_stop / self._line_rate_hz * 1e9)

    def frames(self, first_line: int = 0) -> Iterator[Frame]:
        """Frames from strip line `first_line` on."""
        self.began_ns, began_s = time.time_ns(), time.monotonic()
        pace = Pace(self._line_rate_hz, self._closed)
        line = first_line
        while self._lines is None or line < self._lines:
            stop = line + self._frame_lines - line % self._frame_lines
            if self._lines is not None:
                stop = min(stop, self._lines)
            lines = cut_there_and_back(self._strip, line, stop - line)
            if not pace.wait_for(stop - first_line) or (self._seconds and time.monotonic() - began_s > self._seconds):
                return
            self._health = SourceHealth(self._health.frames + 1, self._health.lines + stop - line)
            yield Frame(lines, line, self.captured_ns(stop - first_line))
            line = stop
