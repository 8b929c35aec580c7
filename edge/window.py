"""The last lines of a run in a preallocated ring, and rectangles cut out of them, reflected where the run has no pixels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edge.frame import Lines

Indices = npt.NDArray[np.intp]


def reflect(positions: Indices, start: int, stop: int) -> Indices:
    """Fold positions into [start, stop) by reflection without repeating the border, as often as it takes.

    The same as `np.pad(mode="reflect")` and BORDER_REFLECT_101; a single position repeats.

    >>> reflect(np.arange(-3, 6), 0, 3).tolist()
    [1, 2, 1, 0, 1, 2, 1, 0, 1]
    """
    if stop - start == 1:
        return np.full_like(positions, start)
    last = stop - 1 - start
    folded = (positions - start) % (2 * last)
    return np.where(folded > last, 2 * last - folded, folded) + start


def _mirrored(start: int, stop: int, width: int) -> slice | Indices:
    """The columns [start, stop), which lie all beyond one side of a strip, folded onto it; a slice unless they turn twice."""
    if stop <= 0 and -start < width:
        return slice(-start, -stop, -1)
    last = 2 * (width - 1)
    if start >= width and stop <= last:
        return slice(last - start, last - stop, -1)
    return reflect(np.arange(start, stop), 0, width)


def padded_columns(width: int, halo: int, stride: int) -> int:
    """Columns that a full-width inference gets: the strip, a halo at either side, and what the stride wants at the right."""
    return width + 2 * halo + -width % stride


class StripWindow:
    """The last `capacity` lines of an unbroken run of lines, at strip coordinates, in memory that is allocated once.

    begin: the run's first line. line_stop: one past its newest line. What lies before `begin`, beyond the end of an ended
    run, and beyond the strip's sides is reflected. ring: memory for it, (capacity, width); None: it makes its own.
    """

    def __init__(self, width: int, capacity: int, ring: Lines | None = None) -> None:
        if width < 1 or capacity < 1:
            raise ValueError(f"a window has at least one line and column, got {capacity} lines of {width} columns")
        self._width, self._capacity = width, capacity
        self._ring = np.empty((capacity, width), np.uint8) if ring is None else ring
        self.start(0)

    @property
    def width(self) -> int:
        """Columns of the strip."""
        return self._width

    @property
    def capacity(self) -> int:
        """Lines that are kept, hence also the most that one `append` takes."""
        return self._capacity

    @property
    def begin(self) -> int:
        """Strip coordinate of the run's first line, kept or not."""
        return self._begin

    @property
    def line_stop(self) -> int:
        """Strip coordinate one past the newest line."""
        return self._line_stop

    def start(self, begin: int) -> None:
        """Forget everything; a new run begins at line `begin` of the strip."""
        self._begin = self._line_stop = begin
        self._ended = False

    def append(self, lines: Lines) -> None:
        """Keep the next lines, (h, width) uint8, h at most `capacity`. Raises ValueError."""
        if lines.ndim != 2 or lines.shape[1] != self.width or lines.dtype != np.uint8:
            raise ValueError(f"got lines {lines.dtype} {lines.shape}, expected uint8 of {self.width} columns")
        if len(lines) > self.capacity or self._ended:
            raise ValueError(f"got {len(lines)} lines, expected at most {self.capacity} and none after the run's end")
        slot = self._line_stop % self.capacity
        before_wrap = min(len(lines), self.capacity - slot)
        self._ring[slot : slot + before_wrap] = lines[:before_wrap]
        self._ring[: len(lines) - before_wrap] = lines[before_wrap:]
        self._line_stop += len(lines)

    def end(self) -> None:
        """No line follows: from now on lines beyond the newest one are reflected."""
        self._ended = True

    def can_cut(self, line_start: int, line_stop: int) -> bool:
        """Whether all lines that `cut` wants for this span are known: those of the span, and those that are reflected into it."""
        if self._begin == self._line_stop:
            return False
        return self._ended or max(line_stop, 2 * self._begin - line_start + 1) <= self._line_stop

    def cut(self, line_start: int, line_stop: int, column_start: int, column_stop: int, out: Lines | None = None) -> Lines:
        """The pixels of a half-open rectangle in strip coordinates, (lines, columns) uint8, written to `out` if given.

        Raises ValueError where a line is not there yet, or no longer.
        """
        self._require(line_start, line_stop)
        if out is None:
            out = np.empty((line_stop - line_start, column_stop - column_start), np.uint8)
        left = min(max(-column_start, 0), column_stop - column_start)
        right = max(min(column_stop, self.width) - column_start, left)
        beyond = [
            (slice(start, stop), _mirrored(column_start + start, column_start + stop, self.width))
            for start, stop in ((0, left), (right, column_stop - column_start))
            if start < stop
        ]
        for target, source in self._stretches(line_start, line_stop):
            kept = self._ring[source]
            out[target, left:right] = kept[:, column_start + left : column_start + right]
            for there, columns in beyond:
                out[target, there] = kept[:, columns]
        return out

    def pieces(self, line_start: int, line_stop: int) -> list[tuple[slice, Lines]]:
        """Whole lines of a span, (h, width) uint8, and which of the span they are: views of the ring but where reflected.

        Valid until the next `append`. Raises ValueError as `cut` does.
        """
        self._require(line_start, line_stop)
        return [(target, self._ring[source]) for target, source in self._stretches(line_start, line_stop)]

    def require_kept(self, line_start: int, line_stop: int) -> None:
        """Raises ValueError where `cut` of this span would."""
        self._require(line_start, line_stop)
        self._stretches(line_start, line_stop)

    def _require(self, line_start: int, line_stop: int) -> None:
        if not self.can_cut(line_start, line_stop):
            raise ValueError(
                f"lines {line_start} to {line_stop} were asked for, the window ends at {self._line_stop}: expected later"
            )

    def _stretches(self, line_start: int, line_stop: int) -> list[tuple[slice, slice | Indices]]:
        """Where lines lie: pairs of rows of the rectangle and rows of the ring; plain slices wherever nothing is reflected."""
        first = min(max(line_start, self._begin), line_stop)
        last = max(min(line_stop, self._line_stop), first)
        oldest = first if first < last else self._line_stop
        stretches: list[tuple[slice, slice | Indices]] = []
        for start, stop in ((line_start, first), (last, line_stop)):
            if start < stop:
                folded = reflect(np.arange(start, stop), self._begin, self._line_stop)
                oldest = min(oldest, int(folded.min()))
                stretches.append((slice(start - line_start, stop - line_start), folded % self.capacity))
        if oldest < self._line_stop - self.capacity:
            raise ValueError(f"line {oldest} was asked for, the window holds the last {self.capacity} up to {self._line_stop}")
        while first < last:
            slot = first % self.capacity
            size = min(last - first, self.capacity - slot)
            stretches.append((slice(first - line_start, first - line_start + size), slice(slot, slot + size)))
            first += size
        return stretches
