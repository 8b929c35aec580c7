"""A streaming engine fed with chunks of the strip, and fed the lines before again where its state was lost."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

from edge.errors import StateLostError
from edge.frame import Lines
from edge.segmenters.spans import Chunk
from edge.sessions import Scores, StreamingSession
from edge.window import StripWindow

_log = logging.getLogger(__name__)

Fill = Callable[[StripWindow, int, Lines], None]
"""Writes what the engine gets of the strip from a line on: (chunk_lines, columns) uint8."""


class Feed:
    """A session whose state outlives the run, as the engines of this box have it."""

    def __init__(self, session: StreamingSession, columns: int, fill: Fill) -> None:
        self._session, self._fill = session, fill
        self._chunk = np.empty((1, 1, session.chunk_lines, columns), np.uint8)

    @staticmethod
    def spans_kept(spans_before: int) -> int:
        """Spans before the newest one that the window must hold, of those that a state at rest is fed before it."""
        return 0

    def begin(self) -> None:
        """A run begins: what the state held is forgotten."""
        self._session.reset()

    def step(self, window: StripWindow, chunk: Chunk) -> Scores:
        """Scores of the run's next chunk; valid until the next one."""
        return self._feed(window, chunk.line)

    def _feed(self, window: StripWindow, line: int) -> Scores:
        self._fill(window, line, self._chunk[0, 0])
        return self._session.step(self._chunk)


class RefilledFeed(Feed):
    """A session in whose place another one may stand of a sudden, at rest."""

    @staticmethod
    def spans_kept(spans_before: int) -> int:
        """All of them."""
        return spans_before

    def begin(self) -> None:
        """A run begins; an engine that takes another one's place just then is at rest as well."""
        try:
            self._session.reset()
        except StateLostError as error:
            _log.warning("between two runs: %s", error)

    def step(self, window: StripWindow, chunk: Chunk) -> Scores:
        """Scores of the run's next chunk, by which engine so ever."""
        try:
            return self._feed(window, chunk.line)
        except StateLostError as error:
            _log.warning("%d chunks are inferred again: %s", len(chunk.before), error)
            return self.again(window, chunk)

    def again(self, window: StripWindow, chunk: Chunk) -> Scores:
        """The same from a state at rest. Raises SessionError when no engine is left."""
        while True:
            try:
                self._session.reset()
                for line in chunk.before:
                    self._feed(window, line)
                return self._feed(window, chunk.line)
            except StateLostError as error:
                _log.warning("%d chunks are inferred once more: %s", len(chunk.before), error)
