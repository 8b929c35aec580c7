"""Several cameras in one daemon: each a `Daemon` in a thread of its own, begun again when it dies. They share the engines alone.

    camera thread      one a camera: opens its daemon and is its judgement; after a failure it pauses, and opens the next one
    the calling thread waits for all of them; signals reach it

What a camera dies of concerns the camera: its status says so, the others go on. An engine that all of them ask is another
matter: when that fails, all of them end, and their strips are taken up by the next start.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType

from edge.config import StationConfig, StationFile, stations_of
from edge.daemon import Daemon, Summary, stage_error
from edge.errors import BrokerError, BundleError, ConfigError, RustEdgeError, SessionError
from edge.frame import FrameSource
from edge.shared_engines import SharedEngines
from edge.sinks.mqtt import MqttPublisher
from edge.sinks.outbox import Outbox
from edge.sources import open_source
from edge.topics import topics_of

_log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.5
"""Doubled with every failure up to the longest: a source that was gone for a moment is found again within a second."""
LONGEST_PAUSE_S = 30.0
STABLE_S = 60.0
"""A camera that was at work this long begins with the first pause again."""
REMIND_S = 600.0
_LOOK_S = 0.5
_FOR_GOOD = (ConfigError, BundleError, BrokerError)
"""What waiting does not mend, by what these classes mean."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a camera ended. summary: of its strip, None: it is not closed.

    failure: what it stays off for. down: what it could not work for when it was stopped; its strip is taken up by the next start.
    """

    camera: str
    summary: Summary | None = None
    failure: RustEdgeError | None = None
    down: RustEdgeError | None = None


class Cameras:
    """The cameras of a station at work, each on a strip of its own. A context manager around `run`.

    origin: names the station file in errors. strip_id: a strip's is `<strip_id>-<camera>`; None: as `Daemon` has it, for each.
    Raises ConfigError, BundleError, SessionError where no camera could work.
    """

    def __init__(self, file: StationFile, origin: str, strip_id: str | None = None) -> None:
        self.engines = SharedEngines(file, origin)
        self._stopping = threading.Event()
        self._cameras = [
            _Camera(
                station,
                f"{origin}, camera {station.camera}",
                f"{strip_id}-{station.camera}" if strip_id else None,
                self.engines,
                self._stopping,
            )
            for station in stations_of(file)
        ]

    def __enter__(self) -> Cameras:
        self.engines.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.engines.__exit__(kind, error, trace)

    def stop(self, reason: str) -> None:
        """Ask every camera to close its strip, and `run` to return; safe from a signal handler, harmless a second time."""
        for camera in self._cameras:
            camera.stop_reason = camera.stop_reason or reason
        self._stopping.set()
        for camera in self._cameras:
            camera.stop()

    def run(self) -> tuple[Ending, ...]:
        """Inspect until every camera has ended, in the order of the file. Raises the error of an engine that they share."""
        threads = [threading.Thread(target=camera.attend, name=camera.name, daemon=True) for camera in self._cameras]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            for thread in threads:
                thread.join(_LOOK_S / len(threads))
            if self.engines.failure is not None:
                self.stop(f"failed: {self.engines.failure}")
        if self.engines.failure is not None:
            raise self.engines.failure
        return tuple(camera.ending for camera in self._cameras)


class _Camera:
    """One camera: its daemon, begun again for as long as what it died of may pass. name: of the camera and of its thread."""

    def __init__(
        self, station: StationConfig, origin: str, strip_id: str | None, engines: SharedEngines, stopping: threading.Event
    ) -> None:
        self.name = station.camera
        self.ending = Ending(station.camera)
        self.stop_reason = ""
        self._station, self._origin, self._strip_id = station, origin, strip_id
        self._shared, self._engines, self._stopping = engines, engines.of_camera(station, origin), stopping
        self._source: FrameSource | None = None
        self._daemon: Daemon | None = None
        self._worked = False
        self._said, self._said_s = "", 0.0

    def stop(self) -> None:
        """Have the strip at work closed. To be called once `stopping` is set."""
        if (daemon := self._daemon) is not None:
            daemon.stop(self.stop_reason)

    def attend(self) -> None:
        """Work until the source ends, `stopping` is set, or a failure that waiting does not mend."""
        failures = 0
        while True:
            began_s = time.monotonic()
            try:
                self.ending = Ending(self.name, summary=self._work())
                return
            except BaseException as error:
                failure = stage_error("judgement", error)
            if self._shared.failure is not None:
                self.ending = Ending(self.name, down=failure)
                return
            if isinstance(failure, _FOR_GOOD) or (isinstance(failure, SessionError) and not self._worked):
                _log.error("camera %s stays off: %s", self.name, failure)
                self.ending = Ending(self.name, failure=failure)
                return
            self._tell(failure)
            failures = 1 if time.monotonic() - began_s > STABLE_S else failures + 1
            if self._stopping.wait(_pause_s(failures)):
                self.ending = Ending(self.name, down=failure)
                return

    def _work(self) -> Summary:
        """One daemon, from its opening to its end. Raises what it died of, after the camera's status has said so."""
        summary: Summary | None = None
        try:
            with self._opened() as self._daemon:
                if self._stopping.is_set():
                    self.stop()
                try:
                    summary = self._daemon.run()
                finally:
                    self._strip_id = self._daemon.strip_id or self._strip_id
                    self._worked = self._worked or self._daemon.strip_id is not None
        except BaseException as error:
            if summary is None:
                raise
            # what its strip's end has stored is whole: to begin again would be another strip
            _log.error("camera %s: when its strip was closed: %s", self.name, error)
        finally:
            self._daemon = None
        return summary

    @contextmanager
    def _opened(self) -> Iterator[Daemon]:
        with ExitStack() as opened:
            try:
                if self._source is None:
                    # once: a folder with an image gone for a moment is not another strip
                    self._source = open_source(self._station.source, self._station.scale)
                made = Daemon(self._station, self._origin, self._strip_id, source=self._source, engines=self._engines)
                daemon = opened.enter_context(made)
            except BaseException as error:
                self._announce(error)
                raise
            yield daemon

    def _announce(self, error: BaseException) -> None:
        """Say in the camera's status why it could not begin, and let go what waits in its outbox: no daemon came to that."""
        mqtt, outbox = self._station.sinks.mqtt, self._station.outbox
        if mqtt is None:
            return
        with suppress(RustEdgeError), Outbox(outbox.path, outbox.max_mb, outbox.max_age_h) as waiting:
            publisher = MqttPublisher(mqtt, topics_of(self._station), waiting)
            publisher.start()
            publisher.stop(f"failed: {error}")

    def _tell(self, failure: RustEdgeError) -> None:
        now_s = time.monotonic()
        if str(failure) != self._said or now_s - self._said_s > REMIND_S:
            self._said, self._said_s = str(failure), now_s
            _log.error("camera %s: %s. The others go on; trying again", self.name, failure)


def _pause_s(failures: int) -> float:
    # half of it at random, so that cameras that one cause took down do not all come back at once
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(failures - 1, 30)) * random.uniform(0.5, 1.0)
