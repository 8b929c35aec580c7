"""Line-streaming on an engine that knows tiles alone: it infers the lines before again with every chunk."""

from __future__ import annotations

from types import TracebackType

import numpy as np

from edge.errors import SessionError
from edge.manifest import Manifest
from edge.sessions import Batch, Scores, Session, Steps


class SlabStream:
    """Implements `edge.sessions.StreamingSession` for any width; slab_lines / chunk_lines times the work of a stream.

    session: infers (1, 1, slab_lines, width); closed by who opened it. manifest: of its bundle. chunk_lines: a multiple of the
    stride. The halo above and below a chunk is the engine's receptive radius, so that its rows are those of one inference over
    all lines; what came before the first line after `reset` is black.
    """

    def __init__(self, session: Session, manifest: Manifest, width: int, chunk_lines: int) -> None:
        stride = manifest.stride
        if chunk_lines < 1 or chunk_lines % stride or width < 1 or width % stride:
            raise SessionError(
                f"{manifest.name}: got chunks of {chunk_lines} lines and {width} columns, expected multiples of {stride}"
            )
        self._session, self._cell = session, manifest.cell or 1
        self.chunk_lines, self.lag_lines = chunk_lines, -(-manifest.radius // stride) * stride
        self.slab_lines = chunk_lines + 2 * self.lag_lines
        self._slab = np.zeros((1, 1, self.slab_lines, width), np.uint8)
        self.steps: Steps | None = session.steps
        session.prepare(self._slab.shape)

    @property
    def backend(self) -> str:
        """Of the session."""
        return self._session.backend

    def __enter__(self) -> SlabStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """The session belongs to who opened it."""

    def step(self, chunk: Batch) -> Scores:
        """chunk (1, 1, chunk_lines, width) uint8 -> scores (1, channels, chunk_lines / cell, width / cell)."""
        lines = self._slab[0, 0]
        if chunk.dtype != np.uint8 or chunk.shape != (1, 1, self.chunk_lines, lines.shape[1]):
            expected = (1, 1, self.chunk_lines, lines.shape[1])
            raise SessionError(f"got a chunk {chunk.dtype} {chunk.shape}, expected uint8 {expected}")
        lines[: -self.chunk_lines] = lines[self.chunk_lines :].copy()
        lines[-self.chunk_lines :] = chunk[0, 0]
        first = self.lag_lines // self._cell
        return self._session.infer(self._slab)[:, :, first : first + self.chunk_lines // self._cell]

    def reset(self) -> None:
        """Forget the lines fed so far."""
        self._slab.fill(0)
