"""The backends of one bundle in their order: which is in use, which comes next, and a server that is waited for."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

from edge.bundle import Bundle, GoldenAnswer
from edge.config import BackendName
from edge.errors import BundleError, SessionError
from edge.sessions import Session, StreamingSession

_log = logging.getLogger(__name__)

REMOTE: Final = frozenset({"kserve"})
"""Backends that may be away, and come back."""
FIRST_PAUSE_S: Final = 0.5
_PATIENCE_S: Final = 5.0
"""A station that is stopped waits so long for a server that is being asked; a service manager kills it after a minute."""

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


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """A backend with the bundle loaded, whose golden tiles it has answered. closing: all that was opened of it."""

    runtime: Runtime
    folder: Path | None
    tiles: Session
    golden: GoldenAnswer
    closing: ExitStack


class Lineup:
    """One backend in use, the first of those that can, and the next where it fails. A context manager; for any number of threads.

    named: what is run, for the log. find: a backend by its name; load: the bundle on it; both raise where they cannot.
    level: of the log's line where a backend is not there. ask_again_max_s: longest pause before a server is asked again.
    A server that fails is asked again in the background until it can; meanwhile the next backend, opened beside it, stands in.
    Raises SessionError or BundleError where no backend is left, with what spoke against each of them.
    """

    def __init__(
        self,
        named: str,
        backends: Sequence[BackendName],
        find: Callable[[BackendName], Runtime],
        load: Callable[[Runtime], Opened],
        *,
        level: int,
        ask_again_max_s: float,
    ) -> None:
        self._named, self._left, self._level, self._ask_again_max_s = named, list(backends), level, ask_again_max_s
        self._find, self._load = find, load
        self._against: dict[BackendName, SessionError | BundleError] = {}
        self._prepared: dict[tuple[int, int, int], int] = {}
        self._opened: list[Opened] = []
        self._spare: Opened | None = None
        self._awaited: BackendName | None = None
        self._asking = threading.Thread()
        self._attempts, self._worked_from_s = 0, 0.0
        self._closed = threading.Event()
        self.lock = threading.RLock()

    def __enter__(self) -> Lineup:
        with ExitStack() as opening:
            opening.push(self)
            self._in_use = self._next()
            if self._in_use.runtime.name in REMOTE:
                self._open_spare()
            elif gone := next((name for name in self._against if name in REMOTE), None):
                self._ask_again(gone)
            opening.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closed.set()
        if self._asking.ident is not None:
            self._asking.join(_PATIENCE_S)
        with ExitStack() as closing:
            for opened in self._opened:
                closing.push(opened.closing)

    @property
    def in_use(self) -> Opened:
        """The one that answers now."""
        return self._in_use

    @property
    def awaited(self) -> BackendName | None:
        """A server that is away and will be used again."""
        return self._awaited

    @property
    def against(self) -> tuple[str, ...]:
        """What speaks against the backends before the one in use."""
        return tuple(map(str, self._against.values()))

    def after(self, failed: Opened, error: SessionError | BundleError) -> Opened:
        """The one to use after a failure; what another thread has changed meanwhile holds."""
        with self.lock:
            if self._in_use is failed:
                self._leave(failed.runtime.name, error)
            return self._in_use

    def prepare(self, shape: tuple[int, int, int, int]) -> None:
        """Get all ready for such batches, those to come as well."""
        with self.lock:
            self._prepared[shape[1:]] = max(shape[0], self._prepared.get(shape[1:], 0))
            in_use, spare = self._in_use, self._spare
        if spare is not None:
            try:
                spare.tiles.prepare(shape)
            except SessionError as error:
                self._replace_spare(spare, error)
        try:
            in_use.tiles.prepare(shape)
        except SessionError as error:
            self.after(in_use, error)

    def _leave(self, name: BackendName, error: SessionError | BundleError) -> None:
        if name not in REMOTE or not (self._spare or self._left):
            self._give_up(name, error)
            self._in_use = self._next()
            return
        self._against[name] = error
        self._in_use, self._spare = self._spare or self._next(), None
        _log.error("%s: %s stands in for %s: %s", self._named, self._in_use.runtime.name, name, error)
        self._ask_again(name)

    def _next(self) -> Opened:
        """The first of the backends left that loads the bundle and answers its golden tiles."""
        while True:
            name = self._left.pop(0)
            try:
                runtime = self._find(name)
            except SessionError as error:
                self._give_up(name, error, self._level)
                continue
            try:
                return self._ready(runtime)
            except (SessionError, BundleError) as error:
                self._give_up(name, error)

    def _ready(self, runtime: Runtime) -> Opened:
        opened = self._load(runtime)
        with ExitStack() as opening:
            opening.push(opened.closing)
            for size, count in list(self._prepared.items()):
                opened.tiles.prepare((count, *size))
            opening.pop_all()
        with self.lock:
            self._opened.append(opened)
        return opened

    def _open_spare(self) -> None:
        if not self._left:
            return
        try:
            self._spare = self._next()
        except (SessionError, BundleError) as error:
            _log.warning("%s: nothing stands in for %s when it is away: %s", self._named, self._in_use.runtime.name, error)

    def _replace_spare(self, failed: Opened, error: SessionError) -> None:
        with self.lock:
            if self._spare is failed:
                self._spare = None
                _log.warning("%s: %s cannot stand in: %s", self._named, failed.runtime.name, error)
                self._open_spare()

    def _give_up(self, name: BackendName, error: SessionError | BundleError, level: int = logging.WARNING) -> None:
        """Note what speaks against a backend; raise it where no other is left."""
        self._against[name] = error
        if self._left:
            _log.log(level, "%s: not on %s, %s comes next: %s", self._named, name, self._left[0], error)
        elif len(self._against) == 1:
            raise error
        else:
            raise type(error)("\n".join(f"{tried}: {told}" for tried, told in self._against.items())) from error

    def _ask_again(self, name: BackendName) -> None:
        self._awaited = name
        # one that failed again soon after goes on with the pause where it was: it answers tiles that are known, and no others
        if time.monotonic() - self._worked_from_s > self._ask_again_max_s:
            self._attempts = 0
        self._asking = threading.Thread(target=self._await, args=(name,), name=f"{self._named} asks {name}", daemon=True)
        self._asking.start()

    def _await(self, name: BackendName) -> None:
        """Ask until it loads the bundle and answers the golden tiles, then use it."""
        began_s, told = time.monotonic(), ""
        while not self._closed.wait(
            random.uniform(0.5, 1.0) * min(self._ask_again_max_s, FIRST_PAUSE_S * 2.0 ** min(self._attempts, 16))
        ):
            self._attempts += 1
            try:
                opened = self._ready(self._find(name))
            except SessionError as error:
                _log.debug("%s: %s is still away: %s", self._named, name, error)
            except BundleError as error:
                if told != str(error):
                    _log.error("%s: %s is back and not used: %s", self._named, name, error)
                told = str(error)
            else:
                if self._closed.is_set():  # a server that answered after all had been closed
                    opened.closing.close()
                    return
                self._use_again(opened, time.monotonic() - began_s)
                return

    def _use_again(self, opened: Opened, away_s: float) -> None:
        name = opened.runtime.name
        with self.lock:
            self._spare, self._in_use, self._awaited = self._in_use, opened, None
            self._worked_from_s = time.monotonic()
            self._against.pop(name, None)
            # who is in a call of the old connection gets an error, and asks the one in use
            left = [other for other in self._opened if other.runtime.name == name and other is not opened]
            self._opened = [other for other in self._opened if other not in left]
        for other in left:
            other.closing.close()
        _log.warning("%s: %s answers again after %.1f s, and is used again", self._named, name, away_s)
