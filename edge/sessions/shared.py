"""One engine for several threads: what they ask while it is busy goes in together, as one batch."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from types import TracebackType

import numpy as np

from edge.errors import SessionError
from edge.sessions import Batch, Scores, Session

Tile = tuple[int, ...]
"""(c, h, w) of the tiles of a batch."""


class SharedSession:
    """A session that several threads ask; implements `edge.sessions.Session`. The engine belongs to who opened it.

    Who asks waits until the engine is free, and no longer. Then the one that has waited longest has its turn, and with it go the
    tiles of the same shape that wait as well, in order of arrival, up to as many as `prepare` was told of that shape. What is put
    together changes no answer, since rows of a batch do not depend on each other. Answers are the caller's own, to keep.

    batches: that the engine answered. joint: those of them that held tiles of several callers. What a batch fails of, each of its
    callers is told.
    """

    def __init__(self, session: Session) -> None:
        self.steps = session.steps
        self.batches = self.joint = 0
        self._session = session
        self._room: dict[Tile, int] = {}
        self._memory = np.empty(0, np.uint8)
        self._waiting: deque[_Question] = deque()
        self._busy = False
        self._changed = threading.Condition()

    @property
    def backend(self) -> str:
        """Of the engine, which may change."""
        return self._session.backend

    def infer(self, batch: Batch) -> Scores:
        """Scores of a batch (n, c, h, w), in memory of their own. Raises SessionError."""
        question = _Question(batch)
        with self._changed:
            self._waiting.append(question)
        while True:
            with self._turn(question) as mine:
                if mine:
                    self._answer(self._next())
            if question.answer is not None:
                return question.answer
            if question.failure is not None:
                # one of its own for each caller: tracebacks of several threads do not fit on one error
                raise type(question.failure)(*question.failure.args) from question.failure

    def prepare(self, shape: tuple[int, int, int, int]) -> None:
        """Get ready for batches of up to shape[0] such tiles, from one caller or from several. Raises SessionError."""
        with self._turn():
            self._session.prepare(shape)
            self._room[shape[1:]] = max(shape[0], self._room.get(shape[1:], 0))

    def __enter__(self) -> SharedSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Nothing is closed."""

    @contextmanager
    def _turn(self, question: _Question | None = None) -> Iterator[bool]:
        """The engine to oneself, as soon as it is free. False: that is not needed any more, the question is settled."""
        with self._changed:
            self._changed.wait_for(lambda: not self._busy or (question is not None and question.settled))
            mine = question is None or not question.settled
            self._busy = self._busy or mine
        try:
            yield mine
        finally:
            if mine:
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()

    def _next(self) -> list[_Question]:
        """The question that has waited longest, and those that go with it."""
        with self._changed:
            together = [self._waiting.popleft()]
            tile = together[0].batch.shape[1:]
            left = self._room.get(tile, 0) - len(together[0].batch)
            for other in list(self._waiting):
                if other.batch.shape[1:] == tile and len(other.batch) <= left:
                    self._waiting.remove(other)
                    together.append(other)
                    left -= len(other.batch)
            return together

    def _answer(self, together: list[_Question]) -> None:
        try:
            scores = self._session.infer(self._joined([question.batch for question in together]))
            first = 0
            for question in together:
                stop = first + len(question.batch)
                question.answer = scores[first:stop].copy()
                first = stop
        except BaseException as error:
            failure = _as_session_error(error, self.backend)
            for question in together:
                question.failure = failure
            return
        self.batches += 1
        self.joint += len(together) > 1

    def _joined(self, batches: list[Batch]) -> Batch:
        if len(batches) == 1:
            return batches[0]
        shape = (sum(map(len, batches)), *batches[0].shape[1:])
        if self._memory.size < prod(shape):
            self._memory = np.empty(prod(shape), np.uint8)
        return np.concatenate(batches, out=self._memory[: prod(shape)].reshape(shape))


class _Question:
    """A batch that somebody waits for. answer, failure: None until one of them is there."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.answer: Scores | None = None
        self.failure: SessionError | None = None

    @property
    def settled(self) -> bool:
        """Whether its caller need not wait any longer."""
        return self.answer is not None or self.failure is not None


def _as_session_error(error: BaseException, backend: str) -> SessionError:
    if isinstance(error, SessionError):
        return error
    told = f"{backend} died: {type(error).__name__}: {error}; expected scores: restart to go on from the last committed lines"
    failure = SessionError(told)
    failure.__cause__ = error
    return failure
