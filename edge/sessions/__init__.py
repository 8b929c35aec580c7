"""Sessions: an engine file loaded and runnable on one backend."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

Batch = npt.NDArray[np.uint8]
"""(n, c, h, w) uint8, what a camera delivers; normalisation is inside the engine."""
Scores = npt.NDArray[np.float32]
"""Segmenter: (n, channels, h, w); classifier: (n, channels). Logits or probabilities, as the manifest's `head` says; an engine
with a mask head gives uint8 (n, 2, h, w) instead, class index and its probability in steps of 1/255."""


@dataclass(frozen=True, slots=True)
class Steps:
    """What integer scores stand for: a score q is the logit (q - zero) * size."""

    size: float
    zero: int


@runtime_checkable
class Session(Protocol):
    """One engine, ready to infer. Rows of a batch do not depend on each other nor on the batch's size, bit for bit.

    steps: of a session that was asked for the integers which its engine computes, uint8 scores; None: scores are as the
    engine's output declares them.
    """

    steps: Steps | None

    @property
    def backend(self) -> str:
        """What computes."""
        ...

    def infer(self, batch: Batch) -> Scores:
        """Scores of a batch. The array may be reused by the next call: copy what must live longer."""
        ...

    def prepare(self, shape: tuple[int, int, int, int]) -> None:
        """Get ready for batches of up to shape[0] such tiles, so that the first of them takes no longer than the others."""
        ...

    def __enter__(self) -> Session: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


@runtime_checkable
class StreamingSession(Protocol):
    """A streaming engine at one width and chunk height: every step takes the next lines and gives finished rows.

    Row 0 of step k's scores is strip row `k * chunk_lines - lag_lines`, counted from the first line fed after `reset`.
    steps: as of `Session`.
    """

    steps: Steps | None
    chunk_lines: int
    lag_lines: int

    @property
    def backend(self) -> str:
        """What computes."""
        ...

    def step(self, chunk: Batch) -> Scores:
        """chunk (1, 1, chunk_lines, width) -> scores (1, channels, chunk_lines / cell, width / cell)."""
        ...

    def reset(self) -> None:
        """Forget the lines fed so far."""
        ...

    def __enter__(self) -> StreamingSession: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...
