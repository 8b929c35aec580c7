"""Sessions behind which another engine takes over where the one in use fails, and their answers, which stay of one kind.

What one engine answers in integers and the next one in floats is brought to one kind before anybody reads it: integers become the
floats that they stand for, by a table; floats the nearest integers, which are those they were made of where the engine's last
operator is DequantizeLinear. A million scores take 0.9 ms and 0.5 ms. Answers of the kind that is shown go through as they are.
"""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import Protocol

import numpy as np

from edge.errors import SessionError, StateLostError
from edge.scores import float_scores
from edge.sessions import Batch, Scores, Session, Steps, StreamingSession


class Succession(Protocol):
    """Who opens engines and knows which of them is in use. For any number of threads."""

    def tiles_in_use(self) -> Session:
        """The engine for tiles to ask now."""
        ...

    def tiles_after(self, failed: Session, error: SessionError) -> Session:
        """The one to ask after that failure: found to answer the golden tiles. Raises SessionError where none is left."""
        ...

    def stream_after(self, failed: StreamingSession, error: SessionError) -> StreamingSession:
        """A streaming engine at rest in place of one that failed, of its size and lag. Raises SessionError where none is left."""
        ...

    def prepare(self, shape: tuple[int, int, int, int]) -> None:
        """Get the engines ready for such batches, those to come as well. Raises SessionError."""
        ...

    def note(self, backend: str) -> None:
        """An engine of that backend has answered."""
        ...


class StandbySession:
    """An engine for tiles, and the next where it fails, asked the same batch; implements `edge.sessions.Session`.

    steps: what its answers are shown in, whichever engine gives them.
    The engines belong to the succession. For as many threads as they are.
    """

    def __init__(self, succession: Succession, steps: Steps | None) -> None:
        self._succession, self.steps = succession, steps

    def __enter__(self) -> StandbySession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """The engines are closed by who opened them."""

    @property
    def engine(self) -> Session:
        """The engine in use."""
        return self._succession.tiles_in_use()

    @property
    def backend(self) -> str:
        """Of the engine in use."""
        return self.engine.backend

    def infer(self, batch: Batch) -> Scores:
        """Scores of the batch, by the first engine that can. Raises SessionError where none is left."""
        engine = self.engine
        while True:
            try:
                scores = engine.infer(batch)
            except SessionError as error:
                engine = self._succession.tiles_after(engine, error)
                continue
            self._succession.note(engine.backend)
            return shown(scores, engine.steps, self.steps)

    def prepare(self, shape: tuple[int, int, int, int]) -> None:
        """Get all engines ready for such batches."""
        self._succession.prepare(shape)


class StandbyStream:
    """A streaming engine, and the next at rest where it fails; implements `edge.sessions.StreamingSession`. It closes them.

    steps: as of `StandbySession`.
    """

    def __init__(self, succession: Succession, stream: StreamingSession, steps: Steps | None) -> None:
        self._succession, self._stream, self.steps = succession, stream, steps
        self._opened = ExitStack()
        self._opened.push(stream)
        self.chunk_lines, self.lag_lines = stream.chunk_lines, stream.lag_lines

    def __enter__(self) -> StandbyStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._opened.close()

    @property
    def engine(self) -> StreamingSession:
        """The engine in use."""
        return self._stream

    @property
    def backend(self) -> str:
        """Of the engine in use."""
        return self._stream.backend

    def step(self, chunk: Batch) -> Scores:
        """Scores of the next chunk. Raises StateLostError where another engine now stands there; SessionError where none does."""
        stream = self._stream
        try:
            scores = stream.step(chunk)
        except SessionError as error:
            raise self._replaced(error) from error
        self._succession.note(stream.backend)
        return shown(scores, stream.steps, self.steps)

    def reset(self) -> None:
        """Forget the lines fed so far. Raises as `step` does."""
        try:
            self._stream.reset()
        except SessionError as error:
            raise self._replaced(error) from error

    def _replaced(self, error: SessionError) -> StateLostError:
        failed = self._stream.backend
        self._stream = self._succession.stream_after(self._stream, error)
        # what failed is closed with the others: somebody may still hold memory of it
        self._opened.push(self._stream)
        return StateLostError(f"{failed} failed, {self.backend} goes on: {error}")


def shown(scores: Scores, steps: Steps | None, wanted: Steps | None) -> Scores:
    """Scores given in `steps` (None: as they are) in those that are wanted; a new array where these differ.

    >>> shown(np.array([[-1.0, 0.5]], np.float32), None, Steps(0.25, 3))
    array([[0, 5]], dtype=uint8)
    """
    if steps == wanted:
        return scores
    floats = scores if steps is None else float_scores(scores, steps)
    if wanted is None:
        return floats
    integers: Scores = np.rint(floats / np.float32(wanted.size) + np.float32(wanted.zero)).clip(0, 255).astype(np.uint8)
    return integers
