"""The engines of a station with several cameras: opened once, asked by all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType

from edge.backends import BundleEngines, Choice
from edge.bundle import Bundle, open_bundle
from edge.config import BackendName, SessionOptions, StationConfig, StationFile, stations_of
from edge.engines import Engines
from edge.errors import ConfigError, SessionError
from edge.sessions import Batch, Scores, Session, StreamingSession
from edge.sessions.on_device import DeviceSession, DeviceStream
from edge.sessions.shared import SharedSession
from edge.station import check_file


class SharedEngines:
    """Verified engines for all cameras of a station. A context manager: opened once, closed when the last camera has ended.

    Tiles of all cameras go through one engine; a streaming engine has a camera's lines in it, so each has its own.
    Raises ConfigError naming every fault of every camera, BundleError, SessionError.
    """

    def __init__(self, file: StationFile, origin: str) -> None:
        named = [file.bundle, *([file.gate] if file.mode != "dense" and file.gate else [])]
        self._bundles = {name: open_bundle(name) for name in named}
        gate = self._bundles.get(file.gate) if file.gate is not None else None
        if faults := check_file(file, self._bundles[file.bundle], gate):
            raise ConfigError("\n".join(f"{origin}: {fault}" for fault in faults))
        self._first, self._origin = stations_of(file)[0], origin
        self._opened = ExitStack()
        self._shared: dict[tuple[str, SessionOptions], tuple[BundleEngines, _WatchedSession]] = {}
        self._sessions: list[SharedSession] = []
        self._lock = threading.Lock()

    def __enter__(self) -> SharedEngines:
        try:
            # at once, and by the way that every camera takes: what cannot be opened is said once, before any of them begins
            self._opened.enter_context(self.of_camera(self._first, self._origin))
        except BaseException:
            self._opened.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._opened.close()

    def of_camera(self, station: StationConfig, origin: str) -> Engines:
        """A camera's engines, with rules, scale and topics of its own; opened and closed as often as the camera is."""
        return Engines(station, origin, self._share, self._bundles.__getitem__)

    @property
    def failure(self) -> SessionError | None:
        """What an engine failed of that all cameras ask, with no other to stand in; None while all is well."""
        return next((tiles.failure for _, tiles in self._shared.values() if tiles.failure is not None), None)

    @property
    def batches(self) -> int:
        """Batches that the engines for tiles were asked."""
        return sum(session.batches for session in self._sessions)

    @property
    def joint_batches(self) -> int:
        """Those of them that held tiles of several cameras."""
        return sum(session.joint for session in self._sessions)

    def _share(self, bundle: Bundle, options: SessionOptions) -> _CameraEngines:
        key = bundle.sha256, options
        with self._lock:
            if key not in self._shared:
                engines = self._opened.enter_context(BundleEngines(bundle, options, self._guard))
                self._shared[key] = engines, _WatchedSession(engines.tiles)
            return _CameraEngines(*self._shared[key])

    def _guard(self, session: Session) -> Session:
        shared = SharedSession(session)
        self._sessions.append(shared)
        return shared


class _WatchedSession:
    """A session that fails for good; implements `edge.sessions.Session`. The engine belongs to who opened it.

    failure: what it failed of first, and every call after that; None while all is well.
    """

    def __init__(self, session: Session) -> None:
        self.steps = session.steps
        self.failure: SessionError | None = None
        self._session = session

    @property
    def backend(self) -> str:
        """Of the engine, which may change."""
        return self._session.backend

    def infer(self, batch: Batch) -> Scores:
        """Scores of a batch."""
        if self.failure is not None:
            raise type(self.failure)(*self.failure.args) from self.failure
        try:
            return self._session.infer(batch)
        except SessionError as error:
            self.failure = self.failure or error
            raise

    def prepare(self, shape: tuple[int, int, int, int]) -> None:
        """Get ready for such batches."""
        self._session.prepare(shape)

    def __enter__(self) -> _WatchedSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Nothing is closed."""


class _CameraEngines:
    """A camera's share of a bundle's engines; implements `edge.engines.EngineSet`. It closes the camera's streams alone."""

    def __init__(self, engines: BundleEngines, tiles: _WatchedSession) -> None:
        self._engines, self._tiles = engines, tiles
        self._opened = ExitStack()

    @property
    def choice(self) -> Choice:
        """What the engines run on now."""
        return self._engines.choice

    @property
    def tiles(self) -> Session:
        """The engine that all cameras ask."""
        return self._tiles

    def stream(self, width: int, chunk_lines: int) -> StreamingSession:
        """A streaming engine of the camera's own, since it has the camera's lines in it."""
        session = self._engines.stream(width, chunk_lines)
        self._opened.callback(self._engines.close_stream, session)
        return session

    def on_device(self, session: Session) -> DeviceSession | None:
        """None: lanes are for one thread, and several cameras ask."""
        return None

    def stream_on_device(self, session: StreamingSession) -> DeviceStream | None:
        """None, as the strip of one of several cameras is kept on the host."""
        return None

    def substitutes(self) -> Callable[[], BackendName | None]:
        """As of `BundleEngines`."""
        return self._engines.substitutes()

    def __enter__(self) -> _CameraEngines:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._opened.close()
