"""What all cameras share: one open connection behind a protocol, and the source that makes a strip of what it delivers.

    CameraLink     one connection: settings applied, frames coming; made anew for every attempt to open the camera
    CameraSource   counts frames by their ids, places them on the strip, opens the camera again when it is lost or frozen

A line is delivered only where the transport vouches for it. All others between the first frame and the last are lost, and
the next frame starts behind them.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol

from edge.errors import RustEdgeError, SourceError
from edge.frame import Frame, Lines, SourceHealth

_log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 0.8
"""A camera that is back is opened within a second: this pause, and what an attempt takes."""
LOOK_S = 0.2
"""How long one `grab` waits: what closing a source takes at most."""
_COUNT_EVERY_S = 1.0
_MOST_WAITING = 8192
"""Frames that a link may have kept between its opening and the strip's beginning, twice over."""
_MOST_PATIENCE = 8.0
"""Times `frozen_s` that a camera is given for its first frame, in the end: some take long to start."""
_MEASURED_S, _MEASURED_FRAMES = 2.0, 16
"""What a line rate has to be measured over before it is believed more than the station file."""


@dataclass(frozen=True, slots=True)
class Grab:
    """What came of one frame.

    lines: (h, w) uint8, as the camera sent them; memory that stays as it is for as long as somebody holds it. None: nothing
    that could be used. frame_id: the camera's; None where the transport has none: then each grab is the next frame. That of a
    frame without good lines is not relied on: its first packet may be lost.
    good_lines: how many of its first lines the transport vouches for; all of a complete frame, 0 of an incomplete one unless
    the transport says which. captured_ns: `time.time_ns()` when it was complete; never a clock of the camera.
    """

    lines: Lines | None
    frame_id: int | None
    good_lines: int
    captured_ns: int

    def __post_init__(self) -> None:
        received = 0 if self.lines is None else len(self.lines)
        if not 0 <= self.good_lines <= received:
            raise ValueError(f"good_lines: got {self.good_lines} of {received} lines")


class CameraLink(Protocol):
    """One open connection to a camera that delivers. For one thread, `close` included.

    width, height: of every complete frame. last_frame_id: the id after which they begin again at 1 (65535 of GigE Vision's
    16 bits); None: they never do. line_rate_hz: what the camera says it runs at; None: it does not say.
    """

    @property
    def width(self) -> int:
        """Columns of every frame."""
        ...

    @property
    def height(self) -> int:
        """Lines of every complete frame."""
        ...

    @property
    def last_frame_id(self) -> int | None:
        """The id after which ids begin again at 1."""
        ...

    @property
    def line_rate_hz(self) -> float | None:
        """What the camera says it runs at."""
        ...

    def grab(self, timeout_s: float) -> Grab | None:
        """The next frame, complete or not; None: nothing came in time. Raises SourceError where the camera is lost."""
        ...

    def ask(self) -> None:
        """Have the camera answer. Raises SourceError where it does not: a silent camera may be a stopped line."""
        ...

    def counters(self) -> dict[str, int]:
        """The transport's own counters since this link was opened, by their names: packets resent, missing, underruns."""
        ...

    def close(self) -> None:
        """Give the camera back. Never raises, not even where the camera is gone."""
        ...


@dataclass(frozen=True, slots=True)
class CameraOptions:
    """How a camera is watched.

    name: of the camera in errors and in the log. frozen_s: without a new frame for so long a free-running camera is opened
    again, and one behind an encoder asked whether it is there. trigger: `encoder`: no lines while the strip stands still.
    line_rate_hz: what it is set to; None: not known.
    """

    name: str
    frozen_s: float = 2.0
    trigger: Literal["free", "encoder"] = "free"
    line_rate_hz: float | None = None


@dataclass(frozen=True, slots=True)
class FoundCamera:
    """A camera that answered. width, height: the most it has. problem: why more is not known; "" where all is.

    Every transport's module has `discover() -> list[FoundCamera]`, which raises SourceError where its library is missing.
    """

    transport: str
    address: str
    vendor: str = ""
    model: str = ""
    serial: str = ""
    name: str = ""
    width: int | None = None
    height: int | None = None
    pixel_formats: tuple[str, ...] = ()
    problem: str = ""


class FrameCount:
    """Counts frames by their ids, over one connection. last_id: the id after which they begin again at 1; None: never."""

    def __init__(self, last_id: int | None) -> None:
        self._last_id = last_id
        self._newest: int | None = None

    def step(self, frame_id: int | None) -> int:
        """How many frames this one is beyond the newest: 1 is the next; 0 or less repeats or goes back, and is forgotten."""
        if frame_id is None or self._newest is None:
            step = 1
        else:
            step = frame_id - self._newest
            if self._last_id is not None:
                # the nearest way round
                step = (step + self._last_id // 2) % self._last_id - self._last_id // 2
        if step > 0 and frame_id is not None:
            self._newest = frame_id
        return step


class StripPlace:
    """Where frames lie on the strip: by their ids while a connection lasts, by the clock from one connection to the next.

    line: one past the newest line, lost ones included. last_s: when that line came; None: the strip has not begun.
    Lines that pass between two connections: the time from the last frame's arrival to the next one's, times the line rate as it
    was measured, less the next frame's own lines. Exact but for the jitter of the two arrivals and what the rate has changed.
    """

    def __init__(self, first_line: int, line_rate_hz: float | None, now_s: float) -> None:
        self.line = first_line
        self.last_s: float | None = now_s if first_line else None
        self.missing_frames = self.incomplete_frames = self.stale_frames = 0
        self.lines_lost = self.lines_lost_by_clock = self.gaps_unknown = 0
        self._told_rate_hz, self._rate_hz = line_rate_hz, line_rate_hz
        self.fresh = False
        self.begin_link(1, None, None)

    def begin_link(self, height: int, last_frame_id: int | None, line_rate_hz: float | None) -> None:
        """A new connection: frames of that height, ids that say nothing about earlier ones, the rate that the camera tells."""
        self._height, self._count = height, FrameCount(last_frame_id)
        self._told_rate_hz = self._told_rate_hz or line_rate_hz
        self._began: tuple[float, int] | None = None
        self._frames = self._useless = 0

    def take(self, grab: Grab, now_s: float) -> Frame | None:
        """The frame of a grab that came at `now_s`; None: no line of it can be used. `fresh`: it is beyond all earlier ones."""
        if not grab.good_lines and grab.frame_id is not None:
            # what is left of it may have lost its id as well: the next frame's says how many did not come
            self.fresh = False
            self.incomplete_frames += 1
            self._useless += 1
            return None
        step = self._count.step(grab.frame_id)
        self.fresh = step > 0
        if not self.fresh:
            self.stale_frames += 1
            return None
        height = self._height if grab.lines is None else len(grab.lines)
        if self._began is None:
            lost = self._passed(now_s, height)
            self._began = now_s, self.line + lost + height
        else:
            lost = (step - 1) * self._height
            self.missing_frames += max(0, step - 1 - self._useless)
        self._useless = 0
        self.incomplete_frames += grab.good_lines < height
        self.lines_lost += lost + height - grab.good_lines
        first_line = self.line + lost
        self.line, self.last_s = first_line + height, now_s
        self._frames += 1
        self._measure(now_s)
        if grab.lines is None or not grab.good_lines:
            return None
        return Frame(grab.lines[: grab.good_lines], first_line, grab.captured_ns)

    def _passed(self, now_s: float, height: int) -> int:
        """Lines between the last connection's newest one and a first frame of the new one."""
        if self.last_s is None:
            return 0
        rate_hz = self._rate_hz or self._told_rate_hz
        if rate_hz is None:
            self.gaps_unknown += 1
            return 0
        lost = max(0, round((now_s - self.last_s) * rate_hz) - height)
        self.lines_lost_by_clock += lost
        return lost

    def _measure(self, now_s: float) -> None:
        assert self._began is not None
        began_s, began_line = self._began
        long_enough = now_s - began_s >= _MEASURED_S and self._frames >= _MEASURED_FRAMES
        if now_s > began_s and (long_enough or self._told_rate_hz is None):
            self._rate_hz = (self.line - began_line) / (now_s - began_s)


class CameraSource:
    """Frames of a camera, each at its place on the strip; for as long as it is open, whatever becomes of the camera.

    open_link: opens the camera and applies all of its settings; called again for every attempt. Raises SourceError or
    ConfigError: at first they end `__enter__`, later each attempt is followed by another one.
    """

    def __init__(self, open_link: Callable[[], CameraLink], options: CameraOptions) -> None:
        self._open_link, self._options = open_link, options
        self._closed = threading.Event()
        self._at_link = threading.Lock()
        self._link: CameraLink | None = None
        self._forget()

    def _forget(self) -> None:
        self._closed.clear()
        self._width: int | None = None
        self._health = SourceHealth()
        self._frames = self._lines = self._reconnects = self._frozen = 0
        self._of_earlier_links: Counter[str] = Counter()
        self._of_link: dict[str, int] = {}
        self._counted_s = -_COUNT_EVERY_S
        self._patience_s = self._options.frozen_s
        self._silent_since_s = self._asked_s = 0.0
        self._placed_by: CameraLink | None = None
        self._place = StripPlace(0, None, 0.0)
        self._failures = 0
        self._said = ""

    @property
    def width(self) -> int:
        """Columns of every frame. Raises SourceError where the source has not been entered."""
        if self._width is None:
            raise SourceError(f"{self._options.name}: its width is known once it is open")
        return self._width

    @property
    def waits(self) -> bool:
        """False: lines pass whether or not anybody looks."""
        return False

    def __enter__(self) -> CameraSource:
        self._forget()
        self._keep(self._open_link())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closed.set()
        self._drop()

    def health(self) -> SourceHealth:
        """Frames and lines handed out, lines lost, and the counters of source and transport, renewed every second."""
        return self._health

    def frames(self, first_line: int = 0) -> Iterator[Frame]:
        """Frames from now on, the first line being `first_line`, until the source is closed.

        What came since the camera was opened is let go: the strip begins now, and `first_line` is about now.
        """
        self._let_go_what_waits()
        self._place = place = StripPlace(first_line, self._options.line_rate_hz, time.monotonic())
        self._placed_by = None
        while not self._closed.is_set():
            try:
                frame = self._next(place)
            except RustEdgeError as error:
                self._lose(error)
                continue
            if frame is not None:
                self._frames, self._lines = self._frames + 1, self._lines + len(frame.lines)
                yield frame
                # this name would keep the transport's memory while the next frame is waited for
                del frame

    def _let_go_what_waits(self) -> None:
        with self._at_link:
            if self._link is not None and not self._closed.is_set():
                with contextlib.suppress(SourceError):
                    for _ in range(_MOST_WAITING):
                        if self._link.grab(0.0) is None:
                            break

    def _next(self, place: StripPlace) -> Frame | None:
        """What comes next, at its place; None: nothing yet. Raises RustEdgeError where the camera is to be opened again."""
        link = self._linked()
        if link is None:
            return None
        if link is not self._placed_by:
            self._placed_by = link
            place.begin_link(link.height, link.last_frame_id, link.line_rate_hz)
            self._silent_since_s = self._asked_s = time.monotonic()
        with self._at_link:
            if self._closed.is_set():
                return None
            grab, now_s = link.grab(LOOK_S), time.monotonic()
            frame = None if grab is None else place.take(grab, now_s)
            if now_s - self._counted_s >= _COUNT_EVERY_S:
                self._of_link, self._counted_s = link.counters(), now_s
                self._publish()
            if grab is not None and place.fresh:
                self._silent_since_s, self._patience_s, self._failures = now_s, self._options.frozen_s, 0
            elif grab is None and self._options.trigger == "encoder":
                # a stopped line is no fault
                self._silent_since_s = now_s
                if now_s - self._asked_s > self._options.frozen_s:
                    link.ask()
                    self._asked_s = now_s
            elif now_s - self._silent_since_s > self._patience_s:
                self._find_frozen()
        return frame

    def _find_frozen(self) -> None:
        self._frozen += 1
        silent_s, self._patience_s = self._patience_s, min(2 * self._patience_s, _MOST_PATIENCE * self._options.frozen_s)
        raise SourceError(f"no new complete frame for {silent_s:g} s")

    def _linked(self) -> CameraLink | None:
        """The open link, or one opened now; None: the source was closed meanwhile."""
        if (link := self._link) is None:
            self._keep(link := self._open_link())
            self._reconnects += 1
            _log.warning("camera %s: is back", self._options.name)
        return None if self._closed.is_set() else link

    def _keep(self, link: CameraLink) -> None:
        if self._width not in (None, link.width):
            link.close()
            raise SourceError(f"got frames of {link.width} columns, expected {self._width} as when the strip began")
        self._width, self._link = link.width, link
        if self._closed.is_set():
            self._drop()

    def _drop(self) -> None:
        with self._at_link:
            link, self._link = self._link, None
            if link is not None:
                for name, count in link.counters().items():
                    self._of_earlier_links[name] += count
                self._of_link = {}
                link.close()
            self._publish()

    def _lose(self, error: RustEdgeError) -> None:
        """Close what is left of a camera, and pause."""
        self._drop()
        if str(error) != self._said:
            self._said = str(error)
            _log.warning("camera %s: %s; opening it again until it is back", self._options.name, error)
        self._failures += 1
        # half of it at random, so that cameras that one switch took down do not all come back at once
        pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(self._failures - 1, 30)) * random.uniform(0.5, 1.0)
        self._closed.wait(pause_s)

    def _publish(self) -> None:
        place = self._place
        own = {
            "reconnects": self._reconnects,
            "frozen": self._frozen,
            "missing_frames": place.missing_frames,
            "incomplete_frames": place.incomplete_frames,
            "stale_frames": place.stale_frames,
            "lines_lost_by_clock": place.lines_lost_by_clock,
            "gaps_unknown": place.gaps_unknown,
        }
        earlier = self._of_earlier_links
        transport = {name: earlier[name] + self._of_link.get(name, 0) for name in {**earlier, **self._of_link}}
        counters = {f"camera_{name}": float(count) for name, count in {**own, **transport}.items()}
        self._health = SourceHealth(self._frames, self._lines, place.lines_lost, counters)
