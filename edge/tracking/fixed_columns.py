"""Dirt on the lens or the window: columns that are alarmed over many metres, whatever steel passes.

Columns are watched in bins of 8. Dirt stands still to a fraction of a pixel, so its bin is alarmed on nearly every
line; a long scratch wanders by some pixels with the strip's own wander and so changes its bin every few metres. Wider
bins would take straight scratches for dirt, narrower ones would miss dirt whose rim flickers between two of them. A
scratch that stays within 8 columns over `share` of the distance is taken for dirt: the price of the filter.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edge.tracking.blocks import BLOCK_LINES

Ints = npt.NDArray[np.int64]

BIN_COLUMNS = 8
"""Columns of a bin."""

SEGMENTS = 16
"""Parts of the watched distance: it slides by a sixteenth, and so many counts per bin are all the memory there is."""


class FixedColumns:
    """Counts, per bin of columns, the lines alarmed over the last `over_lines`, and says which bins are dirt.

    over_lines is rounded up to 16 segments of whole blocks, so that a block lies in one segment. Lines that were lost
    count as not alarmed. A contiguous series of bins alarmed on at least share / 2 of the lines is dirt once one of
    them reaches `share`, and stays it while one of them is that.
    """

    def __init__(self, width: int, over_lines: int, share: float, first_line: int = 0) -> None:
        blocks = -(-over_lines // (SEGMENTS * BLOCK_LINES))
        self.segment_lines = max(1, blocks) * BLOCK_LINES
        self._width = width
        self._share = share
        self._segment = first_line // self.segment_lines
        bins = -(-width // BIN_COLUMNS)
        self._counts = np.zeros((SEGMENTS, bins), np.int64)
        self._dirty = np.zeros(bins, np.bool_)

    @property
    def window_lines(self) -> int:
        """The distance really watched."""
        return SEGMENTS * self.segment_lines

    def add(self, line: Ints, column: Ints) -> None:
        """Count a block's alarmed lines, all of the segment under way. line, column: of its alarmed pixels, row-major."""
        bins = self._counts.shape[1]
        place = line * bins + column // BIN_COLUMNS
        # row-major, so that the pixels of one line in one bin follow each other
        once = np.concatenate((place[:1], place[1:][place[1:] != place[:-1]]))
        self._counts[self._segment % SEGMENTS] += np.bincount(once % bins, minlength=bins)

    def advance(self, line: int) -> list[tuple[int, int, int]]:
        """Everything before `line` has been counted. Returns the alerts that this raises: (line, column_start, column_stop)."""
        alerts = []
        while (self._segment + 1) * self.segment_lines <= line:
            if not self._counts.any() and not self._dirty.any():
                self._segment = line // self.segment_lines
                break
            alerts += [((self._segment + 1) * self.segment_lines, start, stop) for start, stop in self._judge()]
            self._segment += 1
            self._counts[self._segment % SEGMENTS] = 0
        return alerts

    def columns(self) -> npt.NDArray[np.bool_] | None:
        """(w,) True where dirt is known; None if there is none."""
        if not self._dirty.any():
            return None
        return np.repeat(self._dirty, BIN_COLUMNS)[: self._width]

    def _judge(self) -> list[tuple[int, int]]:
        alarmed = self._counts.sum(axis=0)
        strong = alarmed >= self._share * self.window_lines
        weak = alarmed >= self._share * self.window_lines / 2
        bounds = np.flatnonzero(np.diff(weak, prepend=False, append=False)).tolist()
        dirty = np.zeros_like(self._dirty)
        raised = []
        for start, stop in zip(bounds[::2], bounds[1::2], strict=True):
            known = bool(self._dirty[start:stop].any())
            if known or strong[start:stop].any():
                dirty[start:stop] = True
            if not known and dirty[start]:
                raised.append((start * BIN_COLUMNS, min(stop * BIN_COLUMNS, self._width)))
        self._dirty = dirty
        return raised

    def state(self) -> dict[str, Any]:
        """What a restored one needs, as JSON values."""
        places = np.flatnonzero(self._counts)
        counted = [places.tolist(), self._counts.ravel()[places].tolist()]
        return {"segment": self._segment, "counts": counted, "dirty": np.flatnonzero(self._dirty).tolist()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self._segment = state["segment"]
        places, counts = state["counts"]
        self._counts[:] = 0
        self._counts.ravel()[places] = counts
        self._dirty[:] = False
        self._dirty[state["dirty"]] = True
