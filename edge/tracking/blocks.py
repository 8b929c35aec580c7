"""Rows of the mask, re-cut to blocks whose ends are places on the strip.

A block ends at a multiple of BLOCK_LINES, or at a gap in the strip, so that whatever is decided after a block is a
function of the strip and not of how its rows arrived.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from edge.frame import Lines
from edge.segmenters import MaskRows

BLOCK_LINES = 64
"""Lines between two decisions. At 20 kHz a defect waits at most 3.2 ms for one, little beside the lag of the mask; and a
block is judged in some 60 numpy calls, whatever its height, which fewer lines would make dearer per line."""

Plane = npt.NDArray[np.uint8]
LinesOf = Callable[[int, int], Lines]
"""The image between two lines of the strip, (h, w) uint8; asked for only where something was found."""


@dataclass(frozen=True, slots=True)
class GateRows:
    """Scores of the gate's tiles over rows line_start to line_stop of a block."""

    line_start: int
    line_stop: int
    scores: npt.NDArray[np.float32]
    tile_columns: int


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of the mask between two places where decisions are taken; planes are None if no pixel of it is foreground.

    mask, confidence, lines: (h, w) uint8 as in MaskRows, views of what was pushed or of the cutter's memory: valid
    until the next push. lines: zero where the rows are clean; None if there are none to ask for.
    """

    first_line: int
    line_stop: int
    mask: Plane | None = None
    confidence: Plane | None = None
    lines: Lines | None = None
    gates: tuple[GateRows, ...] = ()


class BlockCutter:
    """Cuts rows that arrive in any portions into blocks. Clean rows are counted, not copied, and their image is not asked for."""

    def __init__(self, first_line: int) -> None:
        self.first_line = first_line
        """Where the block under way begins: everything before it has been handed out."""
        self.line = first_line
        """Where the next row must lie."""
        self._planes: list[Plane] | None = None
        self._gates: list[GateRows] = []
        self._foreground = False

    def push(self, rows: MaskRows, lines_of: LinesOf | None) -> Iterator[Block]:
        """Blocks that these rows complete. lines_of: gives the image of these rows."""
        taken = 0
        while taken < len(rows.mask):
            block_stop = (self.line // BLOCK_LINES + 1) * BLOCK_LINES
            count = min(block_stop - self.line, len(rows.mask) - taken)
            planes = self._planes_of(rows, slice(taken, taken + count), lines_of)
            if count == block_stop - self.first_line:
                yield self._whole(planes, count, rows)
            else:
                self._keep(planes, count, rows)
                if self.line == block_stop and (block := self.cut()) is not None:
                    yield block
            taken += count

    def cut(self) -> Block | None:
        """What is held of the block under way, as a block of its own; None if that is nothing."""
        if self.line == self.first_line:
            return None
        block = Block(self.first_line, self.line)
        if self._foreground and self._planes is not None:
            mask, confidence, *rest = (plane[: self.line - self.first_line] for plane in self._planes)
            block = Block(self.first_line, self.line, mask, confidence, rest[0] if rest else None, tuple(self._gates))
        self.jump(self.line)
        return block

    def jump(self, line: int) -> None:
        """Go on at `line`; nothing is held."""
        self.first_line = self.line = line
        self._gates = []
        self._foreground = False

    def _planes_of(self, rows: MaskRows, here: slice, lines_of: LinesOf | None) -> list[Plane] | None:
        """Mask, confidence and image of some rows; None where they are clean, as all are that the gate alone looked at."""
        if not rows.segmented or not cv2.countNonZero(rows.mask[here]):
            return None
        planes = [rows.mask[here], rows.confidence[here]]
        if lines_of is not None:
            planes.append(lines_of(rows.first_line + here.start, rows.first_line + here.stop))
        return planes

    def _whole(self, planes: list[Plane] | None, count: int, rows: MaskRows) -> Block:
        first, stop = self.line, self.line + count
        self.jump(stop)
        if planes is None:
            return Block(first, stop)
        return Block(first, stop, planes[0], planes[1], planes[2] if len(planes) > 2 else None, _gates_of(rows, 0, stop - first))

    def _keep(self, planes: list[Plane] | None, count: int, rows: MaskRows) -> None:
        start = self.line - self.first_line
        stop = start + count
        self.line += count
        if planes is None:
            if self._foreground and self._planes is not None:
                for held in self._planes:
                    held[start:stop] = 0
            return
        if self._planes is None or len(self._planes) != len(planes):
            self._planes = [np.zeros((BLOCK_LINES, planes[0].shape[1]), np.uint8) for _ in planes]
        for held, plane in zip(self._planes, planes, strict=True):
            if not self._foreground:
                held[:start] = 0
            held[start:stop] = plane
        self._foreground = True
        self._gates += _gates_of(rows, start, stop)


def _gates_of(rows: MaskRows, start: int, stop: int) -> tuple[GateRows, ...]:
    if rows.gate_scores is None:
        return ()
    return (GateRows(start, stop, rows.gate_scores.copy(), rows.tile_columns),)
