"""How tiles that overlap become one mask: a canvas holds the lines of a tile row while its tiles, and the next ones, come."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from edge.scores import Bytes, Reading
from edge.sessions import Scores
from edge.tiling import TileAxis

Merge = Literal["core", "union", "mean"]


class Canvas(Protocol):
    """Answers of tiles in, mask rows out. Row 0 is the first line of the tile row under way.

    settled_rows: rows from there on that no later tile row changes.
    """

    settled_rows: int

    def begin(self, first: bool) -> None:
        """A tile row begins, one step below the last one; `first`: of a run, what was there before is forgotten."""
        ...

    def add(self, tile: int, answer: Scores) -> None:
        """Take the answer (c, h, w) to one tile of the row: of any size, (c, 1, 1) where a tile is judged whole."""
        ...

    def rows(self, start: int, stop: int) -> tuple[Bytes, Bytes]:
        """Mask and confidence of rows of the canvas, copies of (stop - start, width) uint8 each."""
        ...


def canvas_for(merge: Merge, reading: Reading, channels: int, lines: TileAxis, columns: TileAxis, width: int) -> Canvas:
    """The canvas of a station. channels: of the engine's answers. width: columns of the strip."""
    if merge == "core":
        return CoreCanvas(reading, lines, columns, width)
    if merge == "union":
        return UnionCanvas(reading, lines, columns, width)
    return MeanCanvas(reading, channels, lines, columns, width)


class CoreCanvas:
    """Each tile keeps only its core, the middle step x step pixels; where a run or the strip ends, all up to the end.

    Tile rows paint all below their core, and the next one paints over it: which one is the last is known when it was.
    """

    def __init__(self, reading: Reading, lines: TileAxis, columns: TileAxis, width: int) -> None:
        self._reading, self._lines, self._columns, self._width = reading, lines, columns, width
        self._planes = np.zeros((2, lines.tile, columns.covered(width)), np.uint8)
        self._top = 0
        self.settled_rows = lines.step + lines.margin

    def begin(self, first: bool) -> None:
        """A tile row begins."""
        _shift(self._planes, self._lines.step)
        self._top = 0 if first else self._lines.margin
        self._planes[:, self._top :] = 0

    def add(self, tile: int, answer: Scores) -> None:
        """Take the answer to one tile."""
        start, stop = self._columns.core(tile, self._width)
        left = tile * self._columns.step
        for plane, read in zip(self._planes, self._reading.classes(answer), strict=True):
            whole = _nearest(read, self._lines.tile, self._columns.tile)
            plane[self._top :, start:stop] = whole[self._top :, start - left : stop - left]

    def rows(self, start: int, stop: int) -> tuple[Bytes, Bytes]:
        """Mask and confidence."""
        mask, confidence = self._planes[:, start:stop, : self._width].copy()
        return mask, confidence


class UnionCanvas:
    """A pixel has the class that any of its tiles is surest of; of several as sure ones the lowest. With one class: a union."""

    def __init__(self, reading: Reading, lines: TileAxis, columns: TileAxis, width: int) -> None:
        self._reading, self._lines, self._columns, self._width = reading, lines, columns, width
        # 256 * confidence + 255 - class, 0 for none: the greater of two is the one that counts
        self._ranks = np.zeros((lines.tile, columns.covered(width)), np.uint16)
        self.settled_rows = lines.step

    def begin(self, first: bool) -> None:
        """A tile row begins."""
        _shift(self._ranks[None], self._lines.step)
        self._ranks[0 if first else self._lines.tile - self._lines.step :] = 0

    def add(self, tile: int, answer: Scores) -> None:
        """Take the answer to one tile."""
        mask, confidence = self._reading.classes(answer)
        ranks = np.where(mask > 0, confidence.astype(np.uint16) << 8 | (255 - mask), 0).astype(np.uint16)
        left = tile * self._columns.step
        here = self._ranks[:, left : left + self._columns.tile]
        np.maximum(here, _nearest(ranks, *here.shape), out=here)

    def rows(self, start: int, stop: int) -> tuple[Bytes, Bytes]:
        """Mask and confidence."""
        ranks = self._ranks[start:stop, : self._width]
        return np.where(ranks > 0, 255 - (ranks & 255), 0).astype(np.uint8), (ranks >> 8).astype(np.uint8)


class MeanCanvas:
    """Probabilities are averaged over the tiles that a pixel lies in and that the network saw, then classified."""

    def __init__(self, reading: Reading, channels: int, lines: TileAxis, columns: TileAxis, width: int) -> None:
        self._reading, self._lines, self._columns, self._width = reading, lines, columns, width
        self._sums = np.zeros((channels, lines.tile, columns.covered(width)), np.float32)
        self._counts = np.zeros((1, *self._sums.shape[1:]), np.float32)
        self.settled_rows = lines.step

    def begin(self, first: bool) -> None:
        """A tile row begins."""
        for planes in (self._sums, self._counts):
            _shift(planes, self._lines.step)
            planes[:, 0 if first else self._lines.tile - self._lines.step :] = 0

    def add(self, tile: int, answer: Scores) -> None:
        """Take the answer to one tile."""
        size = (self._lines.tile, self._columns.tile)
        here = slice(tile * self._columns.step, tile * self._columns.step + size[1])
        for total, plane in zip(self._sums, self._reading.probabilities(answer), strict=True):
            total[:, here] += _bilinear(plane, *size)
        self._counts[:, :, here] += 1

    def rows(self, start: int, stop: int) -> tuple[Bytes, Bytes]:
        """Mask and confidence; where the network saw nothing, 0."""
        counts = self._counts[:, start:stop, : self._width]
        mean = np.asarray(self._sums[:, start:stop, : self._width] / np.maximum(counts, 1), np.float32)
        unseen = counts[0] == 0
        if self._reading.activation == "softmax":
            mean[0, unseen] = 1
        mask, confidence = replace(self._reading, head="probabilities").classes(mean)
        mask[unseen] = confidence[unseen] = 0
        return mask, confidence


def _shift(planes: npt.NDArray[np.generic], step: int) -> None:
    """Move rows (c, h, w) up by one step; the lowest ones stay what they were."""
    planes[:, : planes.shape[1] - step] = planes[:, step:]


def _nearest(plane: npt.NDArray[np.unsignedinteger], lines: int, columns: int) -> npt.NDArray[np.unsignedinteger]:
    """A plane at a tile's size, by its nearest neighbours (cv2.INTER_NEAREST)."""
    if plane.size == 1:
        return np.broadcast_to(plane, (lines, columns))
    if plane.shape == (lines, columns):
        return plane
    return np.asarray(cv2.resize(plane, (columns, lines), interpolation=cv2.INTER_NEAREST))


def _bilinear(plane: Scores, lines: int, columns: int) -> Scores:
    if plane.size == 1 or plane.shape == (lines, columns):
        return plane
    return np.asarray(cv2.resize(plane, (columns, lines), interpolation=cv2.INTER_LINEAR), np.float32)
