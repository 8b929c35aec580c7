"""What a pipeline asked of its engines, and the same asked again with nothing around it: the bare engine on the same pixels."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from edge.backends import BundleEngines
from edge.bundle import Bundle
from edge.config import SessionOptions
from edge.sessions import Batch, Scores, Session, StreamingSession


@dataclass(frozen=True, slots=True)
class Spent:
    """Time that something took: on the clock, and of the processor in all threads of this process."""

    wall_s: float
    cpu_s: float


class Stopwatch:
    """Runs from when it is made."""

    def __init__(self) -> None:
        self._wall_s, self._cpu_s = time.perf_counter(), time.process_time()

    def read(self) -> Spent:
        """What has been spent since."""
        return Spent(time.perf_counter() - self._wall_s, time.process_time() - self._cpu_s)


class Calls:
    """The inputs' shapes of all inferences since the last `clear`, in order, with who is to be asked them again."""

    def __init__(self) -> None:
        self._calls: list[tuple[Callable[[Batch], Scores], tuple[int, ...]]] = []

    def add(self, ask: Callable[[Batch], Scores], shape: tuple[int, ...]) -> None:
        """Note one inference."""
        self._calls.append((ask, shape))

    def clear(self) -> None:
        """Forget them."""
        self._calls.clear()

    def replay(self) -> Spent:
        """Ask all of it again. Pixels are noise: no kernel's time depends on them."""
        batches = {shape: _noise(shape) for _, shape in self._calls}
        watch = Stopwatch()
        for ask, shape in self._calls:
            ask(batches[shape])
        return watch.read()


class HeardTiles:
    """A session that notes what it is asked; implements `edge.sessions.Session`."""

    def __init__(self, session: Session, calls: Calls) -> None:
        self.backend, self.steps = session.backend, session.steps
        self._session, self._calls = session, calls

    def infer(self, batch: Batch) -> Scores:
        """Scores of a batch."""
        self._calls.add(self._session.infer, batch.shape)
        return self._session.infer(batch)

    def prepare(self, shape: tuple[int, int, int, int]) -> None:
        """Get ready for such batches."""
        self._session.prepare(shape)

    def __enter__(self) -> HeardTiles:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """The session belongs to who opened it."""


class HeardStream:
    """A streaming session that notes its steps; implements `edge.sessions.StreamingSession`.

    twin: the same engine opened once more, which is asked again: a replay must not touch the state of the one in use.
    """

    def __init__(self, session: StreamingSession, twin: StreamingSession, calls: Calls) -> None:
        self.backend, self.steps = session.backend, session.steps
        self.chunk_lines, self.lag_lines = session.chunk_lines, session.lag_lines
        self._session, self._twin, self._calls = session, twin, calls

    def step(self, chunk: Batch) -> Scores:
        """Scores of the next lines."""
        self._calls.add(self._twin.step, chunk.shape)
        return self._session.step(chunk)

    def reset(self) -> None:
        """Forget the lines fed so far."""
        self._session.reset()

    def __enter__(self) -> HeardStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """The session belongs to who opened it."""


class HeardEngines(BundleEngines):
    """A bundle's engines whose inferences are noted."""

    def __init__(self, bundle: Bundle, options: SessionOptions, calls: Calls) -> None:
        super().__init__(bundle, options)
        self._calls = calls

    @property
    def tiles(self) -> Session:
        """The engine for tiles."""
        return HeardTiles(super().tiles, self._calls)

    def stream(self, width: int, chunk_lines: int) -> StreamingSession:
        """The streaming engine at one size."""
        session = super().stream(width, chunk_lines)
        return HeardStream(session, super().stream(width, chunk_lines), self._calls)


def _noise(shape: tuple[int, ...]) -> Batch:
    return np.random.default_rng(0).integers(64, 192, shape, dtype=np.uint8)
