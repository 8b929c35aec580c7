"""Which runtime a bundle's engines run on, and the sessions opened on it, each asked what it should answer before it is used."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

from edge.bundle import SHIPPED, Bundle, GoldenAnswer, check_golden
from edge.config import BackendName, SessionOptions
from edge.engine_cache import engines_beside
from edge.errors import BundleError, SessionError
from edge.sessions import Session, StreamingSession
from edge.sessions.on_device import DeviceSession, DeviceStream
from edge.stream_check import check_stream

_log = logging.getLogger(__name__)

OpenTiles = Callable[[Bundle, Path | None], Session]
"""A bundle, and the folder for what is compiled of it -> its session for tiles."""
OpenStream = Callable[[Bundle, Path | None, int, int], StreamingSession]
"""A bundle that can stream, the folder, columns, lines of a chunk -> its streaming session."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """A backend that is there, as the station wants it. version: of its library, as `2026.4.1`.

    open_stream: None: it knows tiles alone.
    """

    name: BackendName
    version: str
    open_tiles: OpenTiles
    open_stream: OpenStream | None


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

    options: with `backend: auto` the next backend is taken where one is not there, cannot load the bundle or answers otherwise;
    a backend that is named has to do. Raises SessionError, BundleError, in `stream` as well.
    """

    def __init__(self, bundle: Bundle, options: SessionOptions) -> None:
        self.bundle = bundle
        self._options = options
        self._left = list(options.backends)
        self._against: list[tuple[str, SessionError | BundleError]] = []
        self._opened = ExitStack()

    def __enter__(self) -> BundleEngines:
        self._open_next()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._opened.close()

    @property
    def choice(self) -> Choice:
        """What the engines run on now."""
        return self._choice

    @property
    def streams(self) -> bool:
        """Whether the bundle can run line-streaming on what it runs on now."""
        return self.bundle.manifest.streaming is not None and self._runtime.open_stream is not None

    @property
    def golden(self) -> GoldenAnswer:
        """How the engine for tiles answered the golden ones."""
        return self._golden

    @property
    def tiles(self) -> Session:
        """The engine for tiles; another one after `stream` had to change the backend."""
        return self._tiles

    def stream(self, width: int, chunk_lines: int) -> StreamingSession:
        """The streaming engine at one size, found to answer what the one for tiles does; closed with the others."""
        if self.bundle.manifest.streaming is None:
            raise BundleError(f"{self.bundle.path}: holds no stream; expected dense: slabs")
        while True:
            try:
                if self._runtime.open_stream is None:
                    raise SessionError(f"session.backend: {self._runtime.name} knows tiles alone; expected dense: slabs")
                with ExitStack() as opening:
                    opened = self._runtime.open_stream(self.bundle, self._folder, width, chunk_lines)
                    session = opening.enter_context(opened)
                    check_stream(self.bundle, self._tiles, session, width)
                    self._opened.push(opening.pop_all())
                return session
            except (SessionError, BundleError) as error:
                self._give_up(self._runtime.name, error)
                self._open_next()

    def on_device(self, session: Session) -> DeviceSession | None:
        """The part of one of these sessions that computes on a GPU now; None: it does not."""
        return session if isinstance(session, DeviceSession) else None

    def stream_on_device(self, session: StreamingSession) -> DeviceStream | None:
        """The same of a streaming one."""
        return session if isinstance(session, DeviceStream) else None

    def _open_next(self) -> None:
        """The first of the backends left that loads the bundle and answers its golden tiles."""
        while True:
            name = self._left.pop(0)
            try:
                runtime = _RUNTIMES[name](self._options)
            except SessionError as error:
                self._give_up(name, error, logging.INFO)
                continue
            try:
                self._load(runtime)
            except (SessionError, BundleError) as error:
                self._give_up(name, error)
                continue
            return

    def _load(self, runtime: Runtime) -> None:
        folder = engines_folder(self.bundle, self._options.cache)
        with ExitStack() as opening:
            tiles = opening.enter_context(runtime.open_tiles(self.bundle, folder))
            golden = check_golden(self.bundle, tiles)
            self._opened.close()
            self._opened = opening.pop_all()
        self._runtime, self._folder, self._tiles, self._golden = runtime, folder, tiles, golden
        reason = "; ".join(str(error) for _, error in self._against) or _why(self._options)
        self._choice = Choice(runtime.name, runtime.version, self._options.precision, self._options.threads, reason)
        _log.info("%s: %s", self.bundle.manifest.name, self._choice)

    def _give_up(self, name: str, error: SessionError | BundleError, level: int = logging.WARNING) -> None:
        """Note what speaks against a backend; raise it where no other is left."""
        self._against.append((name, error))
        if self._left:
            _log.log(level, "%s: not on %s, %s comes next: %s", self.bundle.manifest.name, name, self._left[0], error)
        elif len(self._against) == 1:
            raise error
        else:
            raise type(error)("\n".join(f"{tried}: {told}" for tried, told in self._against)) from error


def engines_folder(bundle: Bundle, configured: Path | None) -> Path | None:
    """Where compiled engines of a bundle are kept: a folder that can be written, None where there is none.

    configured: the station's `session.cache`. Else beside the bundle; of one that came with the installation, and where
    that cannot be written, in the user's cache ($XDG_CACHE_HOME).
    """
    beside = engines_beside(bundle.path)
    wanted = [] if bundle.path.parent == SHIPPED else [beside]
    wanted.append(_user_cache() / beside.name)
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


def _user_cache() -> Path:
    """Source: XDG Base Directory Specification, which wants relative paths ignored."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not named.is_absolute():
        try:
            named = Path.home() / ".cache"
        except RuntimeError:  # a service without a home
            named = Path("/var/cache")
    return named / "rust-edge"


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
    raise SessionError("no TensorRT")


def _kserve(options: SessionOptions) -> Runtime:
    raise SessionError("no inference server")


_RUNTIMES: Final[Mapping[BackendName, Callable[[SessionOptions], Runtime]]] = {
    "tensorrt": _tensorrt,
    "openvino": _openvino,
    "ort": _ort,
    "kserve": _kserve,
}
