"""The way over the GPU for an engine that carries its state."""

from __future__ import annotations

from collections.abc import Callable

from edge.cuda.strip import DeviceStrip
from edge.errors import SessionError
from edge.segmenters.device_path import DevicePath
from edge.segmenters.spans import Chunk
from edge.segmenters.state import RefilledFeed
from edge.sessions import Scores
from edge.sessions.on_device import DeviceStream, Lane
from edge.window import StripWindow

AskStream = Callable[[], DeviceStream | None]
"""The part of a session that computes on a GPU now; None: it does not, or no longer."""


class StreamPath(DevicePath):
    """The session's lane on the GPU; where that fails the session goes on by itself, fed the lines before again.

    ask: at every run's begin, since another engine may have taken the session's place. Raises SessionError.
    """

    def __init__(self, strip: DeviceStrip, ask: AskStream, feed: RefilledFeed, what: str) -> None:
        super().__init__(strip, what)
        self._ask, self._feed = ask, feed
        stream = ask()
        if stream is None:
            raise SessionError("the session computes on no GPU")
        self._lane: Lane | None = stream.lane
        strip.uses(self._lane.stream)
        self._on_host = False

    @property
    def lane(self) -> Lane:
        """Of the run. Raises SessionError where the session has none now."""
        if self._lane is None:
            raise SessionError("the session computes on no GPU")
        return self._lane

    def begin(self) -> None:
        """A run begins: the state is put to rest."""
        self._feed.begin()
        self._on_host = False
        stream = self._ask()
        self._lane = None if stream is None else stream.lane

    def on_host(self, window: StripWindow, chunk: Chunk) -> Scores:
        """The session's own answer to a chunk, whoever answered those before it."""
        if self._on_host:
            return self._feed.step(window, chunk)
        self._on_host = True
        return self._feed.again(window, chunk)
