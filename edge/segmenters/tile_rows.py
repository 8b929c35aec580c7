"""What a gate's engine answers to a row of tiles, each judged whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edge.segmenters.reduction import area
from edge.sessions import Scores, Session
from edge.window import StripWindow


@dataclass(frozen=True, slots=True)
class TileRow:
    """Tiles side by side from the first column on, each (lines, columns) of the strip averaged over factor x factor pixels."""

    count: int
    lines: int
    columns: int
    factor: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the engine's input."""
        return self.count, 1, self.lines, self.columns


class TileRowReader(Protocol):
    """Asks the engine. For one thread."""

    def read(self, window: StripWindow, line: int) -> Scores:
        """Scores (tiles, channels) of the row that begins at a line of the strip, as the session gives them.

        Valid until the next one.
        """
        ...


OpenTileRows = Callable[[Session, TileRow], TileRowReader]
"""A session, and its tiles -> their reader."""


class HostTileRows:
    """Cuts and averages on the CPU; implements `TileRowReader`."""

    def __init__(self, session: Session, row: TileRow) -> None:
        self._session = session
        self._lines = np.empty((row.lines * row.factor, row.count * row.columns * row.factor), np.uint8)
        self._reduced = np.empty((row.lines, row.count * row.columns), np.uint8)
        self._tiles = np.empty(row.shape, np.uint8)
        session.prepare(row.shape)

    def read(self, window: StripWindow, line: int) -> Scores:
        """Cut, average, infer."""
        window.cut(line, line + self._lines.shape[0], 0, self._lines.shape[1], out=self._lines)
        reduced = self._lines
        if reduced.shape != self._reduced.shape:
            reduced = self._reduced
            area(self._lines, reduced)
        tiles, _, height, width = self._tiles.shape
        self._tiles[:, 0] = reduced.reshape(height, tiles, width).swapaxes(0, 1)
        return self._session.infer(self._tiles)
