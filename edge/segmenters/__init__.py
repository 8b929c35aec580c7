"""Segmenters turn lines into rows of the class mask, in strip order: by streaming, by slabs, behind a gate, by tiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from edge.frame import Lines


@dataclass(frozen=True, slots=True)
class MaskRows:
    """Finished rows of the mask, in strip order without holes within one run of lines.

    first_line: strip coordinate of `mask[0]`.
    mask: (h, w) uint8, class index per pixel, 0 background.
    confidence: (h, w) uint8, the probability of that pixel's class in steps of 1/255; 0 where the mask is 0.
    segmented: rows that the segmentation network saw, at least in part; False: the gate alone looked at them.
    gate_scores: (cells across,) float32, the gate's highest score of the tiles, or cells of its map, that these rows and each
        cell of columns lie in; None without a gate.
    tile_columns: columns of one cell of `gate_scores`: a tile where tiles do not overlap, a cell of a map; 0 without a gate.
    """

    first_line: int
    mask: npt.NDArray[np.uint8]
    confidence: npt.NDArray[np.uint8]
    segmented: bool = True
    gate_scores: npt.NDArray[np.float32] | None = None
    tile_columns: int = 0

    @property
    def line_stop(self) -> int:
        """Strip coordinate one past the last row."""
        return self.first_line + len(self.mask)


@runtime_checkable
class Segmenter(Protocol):
    """Lines in, finished mask rows out. What comes out never depends on how the lines were cut into pushes.

    A run is an unbroken series of lines. `start(first_line, context)` begins one; `push` takes its lines in any
    portions; `flush` ends it and returns what is left. Rows before `first_line` are never returned.
    lag_lines: how many lines after a row its mask can be out at the latest, chunking included.
    context_lines: lines before `first_line` that `start` wants to give the bits of an unbroken run (a restart in the
        middle of a strip). 0 lines of context: the strip, or the run after lost lines, begins here and is reflected.
    """

    @property
    def lag_lines(self) -> int:
        """How many lines after a row its mask is out at the latest."""
        ...

    def context_lines(self, first_line: int) -> int:
        """How many lines before `first_line` a restart there wants."""
        ...

    def start(self, first_line: int, context: Lines | None = None) -> None:
        """Begin a run; `context` are the lines just before it."""
        ...

    def push(self, lines: Lines) -> list[MaskRows]:
        """Take the run's next lines, (h, w) uint8."""
        ...

    def flush(self) -> list[MaskRows]:
        """End the run."""
        ...
