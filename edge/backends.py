"""Which runtime a bundle's engines run on, and the sessions opened on it, each asked what it should answer before it is used."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, cast
from weakref import WeakKeyDictionary

from edge.bundle import SHIPPED, Bundle, GoldenAnswer, check_golden
from edge.cache_folder import user_cache
from edge.config import BackendName, SessionOptions
from edge.engine_cache import engines_beside
from edge.errors import BundleError, SessionError
from edge.lineup import REMOTE, Lineup, Opened, Runtime
from edge.sessions import Session, StreamingSession
from edge.sessions.on_device import DeviceSession, DeviceStream
from edge.sessions.slab_stream import SlabStream
from edge.sessions.standby import StandbySession, StandbyStream
from edge.stream_check import check_stream

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Choice:
    """What a bundle runs on. threads: 0: one per core. reason: why it is this backend, with what spoke against the others."""

    backend: BackendName
    version: str
    precision: str
    threads: int
    reason: str

    def __str__(self) -> str:
        threads = f"{self.threads} threads" if self.threads > 1 else "1 thread" if self.threads else "a thread per core"
        return f"{self.backend} {self.version}, {self.precision}, {threads} ({self.reason})"


class BundleEngines:
    """A bundle's engines on the first backend that runs them as they were verified. A context manager.

    options: with `backend: auto`, and of a list, the next backend is taken where one is not there, cannot load the bundle or
    answers otherwise, and where an engine fails at work (`edge.sessions.standby`); a backend that is named has to do.
    The sessions may be used from as many threads as the engines may. guard: put before every engine for tiles that is opened;
    several threads need one (`edge.sessions.shared`). Raises SessionError, BundleError, in `stream` as well.
    """

    def __init__(
        self, bundle: Bundle, options: SessionOptions, guard: Callable[[Session], Session] = lambda session: session
    ) -> None:
        self.bundle = bundle
        self._options = options
        self._guard = guard
        self._lineup = Lineup(
            bundle.manifest.name,
            options.backends,
            lambda name: _RUNTIMES[name](options),
            self._load,
            # that a box has no GPU is news to who has named one
            level=logging.INFO if options.backend == "auto" else logging.WARNING,
            ask_again_max_s=options.kserve.ask_again_max_s if options.kserve else 0.0,
        )
        self._streams: list[StreamingSession] = []
        # of the engine behind a stream; one that is closed is forgotten
        self._sources: WeakKeyDictionary[StreamingSession, tuple[Opened, int]] = WeakKeyDictionary()
        self._substitute: BackendName | None = None
        self._substitutions = 0
        self._opened = ExitStack()

    def __enter__(self) -> BundleEngines:
        with ExitStack() as opening:
            opening.enter_context(self._lineup)
            opening.callback(self._close_streams)
            opened, backends = self._lineup.in_use, self._options.backends
            self._first = opened.runtime.name if self._options.backend == "auto" else backends[0]
            # a server answers in floats, whoever is asked first
            self._steps = None if REMOTE.intersection(backends) else opened.tiles.steps
            self._tiles: Session = StandbySession(self, self._steps) if len(backends) > 1 else opened.tiles
            self._opened = opening.pop_all()
        _log.info("%s: %s", self.bundle.manifest.name, self.choice)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._opened.close()

    @property
    def choice(self) -> Choice:
        """What the engines run on now."""
        runtime, options = self._lineup.in_use.runtime, self._options
        reason = "; ".join(self._lineup.against) or _why(options)
        return Choice(runtime.name, runtime.version, options.precision, options.threads, reason)

    @property
    def streams(self) -> bool:
        """Whether the bundle can run line-streaming, on what it runs on now and on a server that is waited for."""
        here = self.bundle.manifest.streaming is not None and self._lineup.in_use.runtime.open_stream is not None
        return here and self._lineup.awaited is None

    @property
    def golden(self) -> GoldenAnswer:
        """How the engine for tiles answered the golden ones."""
        return self._lineup.in_use.golden

    @property
    def tiles(self) -> Session:
        """The engine for tiles."""
        return self._tiles

    def stream(self, width: int, chunk_lines: int) -> StreamingSession:
        """The streaming engine at one size, found to answer what the one for tiles does; closed with the others, if not before.

        Where a backend knows tiles alone, slabs give the same rows.
        """
        manifest = self.bundle.manifest
        if manifest.streaming is None:
            raise BundleError(f"{self.bundle.path}: holds no stream; expected dense: slabs")
        while self.streams:
            opened = self._lineup.in_use
            try:
                session = self._open_stream(opened, width, chunk_lines)
            except (SessionError, BundleError) as error:
                self._lineup.after(opened, error)
                continue
            if isinstance(self._tiles, StandbySession):
                session = StandbyStream(self, session, self._steps)
            with self._lineup.lock:
                self._streams.append(session)
            return session
        slabs = SlabStream(self._tiles, manifest, width, chunk_lines)
        check_stream(self.bundle, self._tiles, slabs, width)
        name, times = self._lineup.awaited or self._lineup.in_use.runtime.name, slabs.slab_lines / chunk_lines
        _log.warning("%s: %s knows tiles alone: slabs in place of a stream, %.1f times the work", manifest.name, name, times)
        return slabs

    def close_stream(self, session: StreamingSession) -> None:
        """Close a stream that is not needed any more."""
        with self._lineup.lock:
            self._streams = [other for other in self._streams if other is not session]
        session.__exit__(None, None, None)

    def on_device(self, session: Session) -> DeviceSession | None:
        """The part of one of these sessions that computes on a GPU now; None: it does not.

        Who gets a SessionError of it asks the session itself next, which goes over to the next engine.
        """
        engine = session.engine if isinstance(session, StandbySession) else session
        return engine if isinstance(engine, DeviceSession) else None

    def stream_on_device(self, session: StreamingSession) -> DeviceStream | None:
        """The same of a streaming one."""
        engine = session.engine if isinstance(session, StandbyStream) else session
        return engine if isinstance(engine, DeviceStream) else None

    def substitutes(self) -> Callable[[], BackendName | None]:
        """A question for who reads answers: which backend stood in for the first choice since it was last asked, if one did."""
        known = self._substitutions

        def asked() -> BackendName | None:
            nonlocal known
            before, known = known, self._substitutions
            name = self._lineup.in_use.runtime.name
            return name if name != self._first else self._substitute if known != before else None

        return asked

    def tiles_in_use(self) -> Session:
        """The engine for tiles that answers now. This and what follows: `edge.sessions.standby.Succession`."""
        return self._lineup.in_use.tiles

    def tiles_after(self, failed: Session, error: SessionError) -> Session:
        """The next backend's engine for tiles."""
        with self._lineup.lock:
            opened = self._lineup.in_use
            return self._lineup.after(opened, error).tiles if opened.tiles is failed else opened.tiles

    def stream_after(self, failed: StreamingSession, error: SessionError) -> StreamingSession:
        """The next backend's stream, of the same size."""
        with self._lineup.lock:
            opened, width = self._sources.pop(failed)
            reason: SessionError | BundleError = error
            while True:
                opened = self._lineup.after(opened, reason)
                try:
                    if opened.runtime.open_stream is None:
                        raise SessionError(f"session.backend: {opened.runtime.name} knows tiles alone, and the strip streams")
                    return self._open_stream(opened, width, failed.chunk_lines)
                except (SessionError, BundleError) as found:
                    reason = found

    def prepare(self, shape: tuple[int, int, int, int]) -> None:
        """All engines made ready for such batches."""
        self._lineup.prepare(shape)

    def note(self, backend: str) -> None:
        """An engine has answered."""
        if backend != self._first:
            self._substitute = cast(BackendName, backend)
            self._substitutions += 1

    def _load(self, runtime: Runtime) -> Opened:
        folder = engines_folder(self.bundle, self._options.cache)
        with ExitStack() as opening:
            tiles = self._guard(opening.enter_context(runtime.open_tiles(self.bundle, folder)))
            golden = check_golden(self.bundle, tiles)
            return Opened(runtime, folder, tiles, golden, opening.pop_all())

    def _open_stream(self, opened: Opened, width: int, chunk_lines: int) -> StreamingSession:
        assert opened.runtime.open_stream is not None
        with ExitStack() as opening:
            session = opening.enter_context(opened.runtime.open_stream(self.bundle, opened.folder, width, chunk_lines))
            check_stream(self.bundle, opened.tiles, session, width)
            opening.pop_all()
        self._sources[session] = opened, width
        return session

    def _close_streams(self) -> None:
        with ExitStack() as closing:
            for session in self._streams:
                closing.push(session)


def engines_folder(bundle: Bundle, configured: Path | None) -> Path | None:
    """Where compiled engines of a bundle are kept: a folder that can be written, None where there is none.

    configured: the station's `session.cache`. Else beside the bundle; of one that came with the installation, and where
    that cannot be written, in the user's cache ($XDG_CACHE_HOME).
    """
    beside = engines_beside(bundle.path)
    wanted = [] if bundle.path.parent == SHIPPED else [beside]
    wanted.append(user_cache() / beside.name)
    if configured is not None:
        wanted = [configured / beside.name]
    for folder in wanted:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    told = " nor ".join(map(str, wanted))
    _log.warning("%s: neither %s can be written: engines are compiled at every start; set session.cache", bundle.path, told)
    return None


def _why(options: SessionOptions) -> str:
    return f"auto: the first of {', '.join(options.backends)}" if options.backend == "auto" else "session.backend"


def _openvino(options: SessionOptions) -> Runtime:
    # imported here: 0.2 s, and the package is an extra
    from edge.sessions.ov import OvSession, OvStreamingSession, require_precision, version

    threads, precision = options.threads, options.precision
    require_precision(precision)
    return Runtime(
        "openvino",
        version(),
        lambda bundle, folder: OvSession(bundle.model_path, threads, precision=precision, cache=folder, answer="integers"),
        lambda bundle, folder, width, lines: OvStreamingSession(
            *bundle.streaming(), width, lines, threads, precision=precision, cache=folder, answer="integers"
        ),
    )


def _ort(options: SessionOptions) -> Runtime:
    import onnxruntime

    from edge.sessions.ort import OrtSession, OrtStreamingSession

    if options.precision != "f32":
        raise SessionError(
            f"session.precision: got {options.precision}, and ONNX Runtime computes floats in f32 alone; "
            "expected f32, or backend: openvino"
        )
    return Runtime(
        "ort",
        onnxruntime.__version__,
        lambda bundle, _: OrtSession(bundle.model_path, options.threads, answer="integers"),
        lambda bundle, _, width, lines: OrtStreamingSession(
            *bundle.streaming(), width, lines, options.threads, answer="integers"
        ),
    )


def _tensorrt(options: SessionOptions) -> Runtime:
    from edge.sessions.trt.library import find_tensorrt, missing_parts, require_supported, version_of

    if missing := missing_parts():
        raise SessionError(f"no TensorRT engines on this box: it has {', '.join(missing)}")
    if options.precision != "f32":
        raise SessionError(f"session.precision: got {options.precision}, which OpenVINO alone computes in; expected f32")
    trt = find_tensorrt()
    if isinstance(trt, str):
        raise SessionError(f"no TensorRT engines on this box: it has {trt}")
    require_supported(trt)

    from edge.cuda.open_devices import OPEN_DEVICES
    from edge.sessions.trt.build import BuildOptions
    from edge.sessions.trt.session import TrtSession
    from edge.sessions.trt.stream import TrtStreamingSession

    build = BuildOptions(workspace_mib=options.workspace_mib, dla=options.dla)
    # without a GPU of that number the backend is not there, rather than there and failing at every bundle
    with OPEN_DEVICES.lend(options.device):
        pass
    return Runtime(
        "tensorrt",
        version_of(trt),
        lambda bundle, folder: TrtSession(trt, OPEN_DEVICES.lend(options.device), bundle, folder, build),
        lambda bundle, folder, width, lines: TrtStreamingSession(
            trt, OPEN_DEVICES.lend(options.device), bundle, folder, width, lines, build
        ),
    )


def _kserve(options: SessionOptions) -> Runtime:
    # imported here: gRPC is an extra
    from edge.sessions.kserve.session import KserveSession, server_software

    if (server := options.kserve) is None:
        raise SessionError("session.kserve: got none; expected kserve: {url: host:8001}")
    return Runtime("kserve", server_software(server), lambda bundle, _: KserveSession(server, bundle.manifest), None)


_RUNTIMES: Final[Mapping[BackendName, Callable[[SessionOptions], Runtime]]] = {
    "tensorrt": _tensorrt,
    "openvino": _openvino,
    "ort": _ort,
    "kserve": _kserve,
}
