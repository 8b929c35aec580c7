"""A simulated line camera over an endless steel strip."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import TracebackType

from edge import config
from edge.frame import Frame, SourceHealth
from edge.sources.pace import Pace
from edge.sources.planting import DefectKind
from edge.sources.sensor import Sensor
from edge.sources.steel_strip import PlantedDefect, SteelStrip

__all__ = ["DefectKind", "PlantedDefect", "SimulatedSource", "SteelStrip"]


class SimulatedSource:
    """Frames of `frame_lines` lines, cut at multiples of it in strip coordinates; with a line rate it waits for nobody.

    strip: what is in front of the camera, with its truth. sensor: through which it is seen; None: as it is.
    """

    def __init__(self, options: config.SimulatedSource, scale: config.Scale) -> None:
        self._options = options
        self.strip = SteelStrip(options.width, options.seed, options.defects, scale)
        self.sensor = Sensor(self.strip, options.sensor) if options.sensor else None
        self._closed = threading.Event()
        self._health = SourceHealth()

    @property
    def width(self) -> int:
        """Columns of every frame."""
        return self._options.width

    @property
    def waits(self) -> bool:
        """False exactly where a line rate is set: a camera's lines pass whether or not anybody looks."""
        return self._options.line_rate_hz is None

    def __enter__(self) -> SimulatedSource:
        self._closed.clear()
        self._health = SourceHealth()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closed.set()

    def health(self) -> SourceHealth:
        """Frames and lines handed out since it was opened."""
        return self._health

    def frames(self, first_line: int = 0) -> Iterator[Frame]:
        """Frames from strip line `first_line` on, until `lines` if that is set, or until the source is closed."""
        view = self.sensor or self.strip
        pace = Pace(self._options.line_rate_hz, self._closed)
        height, end = self._options.frame_lines, self._options.lines
        line = first_line
        while end is None or line < end:
            stop = line + height - line % height
            if end is not None:
                stop = min(stop, end)
            lines = view.lines(line, stop - line)
            if not pace.wait_for(stop - first_line):
                return
            self._health = SourceHealth(self._health.frames + 1, self._health.lines + stop - line)
            yield Frame(lines, line, time.time_ns())
            line = stop
