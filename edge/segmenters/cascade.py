"""The cascade: a cheap gate looks at every line, the segmentation network only at what the gate lets through."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from edge.errors import ConfigError
from edge.frame import Lines
from edge.scores import Reading
from edge.segmenters import MaskRows
from edge.segmenters.cover import Cover, Rectangle, side_lengths
from edge.segmenters.crops import Crop, HostCrops, OpenCrops
from edge.segmenters.gates import Gate
from edge.segmenters.spans import Spans, check_geometry, last_lines
from edge.sessions import Scores, Session

Plane = npt.NDArray[np.uint8]


class CascadeSegmenter:
    """Masks of rectangles around the cells that the gate lets through, zero elsewhere, one band of the strip at a time.

    gate: its cells are multiples of the stride. threshold: cells whose probability of a defect is at or above it go on.
    band_lines: a multiple of the lines that the gate looks at in one go; bands begin at multiples of it, wherever a run does.
    session: infers crops (n, 1, h, w) of a few sizes, n at most `batch`, a rectangle with the halo around it; reading: what its
        answers mean. crops: who reads the crops with it.
    halo: margin of a crop, a multiple of the stride; with the engine's receptive radius the masks equal the dense ones.

    The alarmed cells of a band are covered by rectangles (`Cover`), and all that was computed within these counts: a cell that
    the gate stopped has a mask where a rectangle holds it, else it is clean. Rows that no rectangle holds come out as not
    segmented. `gate_scores` of the rows are the highest of the rows of cells that they were taken together with.
    Raises ConfigError.
    """

    def __init__(
        self,
        gate: Gate,
        session: Session,
        *,
        width: int,
        threshold: float,
        band_lines: int,
        halo: int,
        stride: int,
        reading: Reading,
        batch: int,
        crops: OpenCrops = HostCrops,
    ) -> None:
        check_geometry(halo=halo, stride=stride, cell_lines=gate.cell_lines, cell_columns=gate.cell_columns)
        if band_lines < 1 or band_lines % gate.spans.step:
            raise ConfigError(
                f"tiling.band_lines: got {band_lines}; expected a multiple of {gate.spans.step}, one look of the gate"
            )
        if batch < 1:
            raise ConfigError(f"tiling.batch: got {batch}; expected at least 1")
        self._gate = gate
        self._width = width
        self._threshold = np.float32(threshold)
        self._halo = halo
        self._band_cells = band_lines // gate.cell_lines
        # were the halo below the radius, a row would depend on all of its crop, also on what the run's end reflects into it
        self._bands = Spans(step=band_lines, before=halo, after=band_lines + halo, delay=0, mirrored=band_lines + halo)
        heights = side_lengths(gate.cell_lines, self._band_cells, self._band_cells)
        widths = side_lengths(gate.cell_columns, 2 * band_lines // gate.cell_columns, gate.cells_across)
        self._cover = Cover(
            self._band_cells,
            gate.cells_across,
            cell_lines=gate.cell_lines,
            cell_columns=gate.cell_columns,
            halo=halo,
            heights=heights,
            widths=widths,
        )
        self._crops = crops(session, reading, [self._size(rows, columns) for rows in heights for columns in widths], batch)
        # from a crop's first line to the newest one, of a band that waits for nothing but the lines that come next; the ring's
        # end lies between two rows of cells, and so no row of the reduced strip lies at both
        capacity = self.lag_lines + halo + gate.spans.step + 1 + gate.spans.kept_lines
        self._window = self._crops.window(width, -(-capacity // gate.cell_lines) * gate.cell_lines)
        self._window.end()
        self._clean = np.zeros((band_lines, width), np.uint8)
        self._clean.flags.writeable = False
        self._answers: deque[Scores] = deque()
        self._first_line = self._scored_from = self._scored_to = 0

    @property
    def lag_lines(self) -> int:
        """Lines after a row at which its mask is out: one band, and the gate's lag or the halo, whichever is more.

        At a run's begin also those that are reflected before it.
        """
        gate = self._gate.spans
        return max(self._bands.step + max(self._halo, gate.settling_lines), gate.before + gate.step)

    def context_lines(self, first_line: int) -> int:
        """Lines before `first_line` that its band looks at: for the crops, and for the gate from the band's begin on."""
        band = self._band_of(first_line)
        return max(self._bands.context_lines(first_line), first_line - band + self._gate.spans.context_lines(band))

    def start(self, first_line: int, context: Lines | None = None) -> None:
        """Begin a run; the gate looks at the context from the begin of the first line's band on."""
        before = last_lines(context, self.context_lines(first_line))
        self._window.start(first_line - len(before))
        self._first_line = first_line
        self._scored_from = self._scored_to = max(self._band_of(first_line), self._window.begin)
        self._answers.clear()
        self._gate.begin()
        self._gate.spans.start(self._scored_from, self._window)
        self._bands.start(first_line, self._window)
        for portion in self._portions(before):
            self._window.append(portion)
            self._score()

    def push(self, lines: Lines) -> list[MaskRows]:
        """Take the next lines, (h, width) uint8; finished rows come out band by band."""
        finished: list[MaskRows] = []
        for portion in self._portions(lines):
            self._window.append(portion)
            self._score()
            finished += self._finish()
        return finished

    def flush(self) -> list[MaskRows]:
        """End the run: its last band is filled up with reflected lines, and cut to the run."""
        self._window.end()
        if self._window.line_stop <= self._first_line:
            return []
        self._score()
        return list(self._finish())

    def _portions(self, lines: Lines) -> Iterator[Lines]:
        step = self._gate.spans.step
        return (lines[position : position + step] for position in range(0, len(lines), step))

    def _band_of(self, line: int) -> int:
        """Where the band of a line begins."""
        return line // self._bands.step * self._bands.step

    def _score(self) -> None:
        """Have the gate look at all that it can, and keep its answers for the rows of cells that lie on the run."""
        spans, cell = self._gate.spans, self._gate.cell_lines
        while (span := spans.ready()) is not None:
            answers = self._gate.look(self._window, span)
            top = spans.first_row(span)
            start, stop = spans.rows(span)
            spans.advance()
            if start < stop:
                self._answers.extend(answers[:, (start - top) // cell : -(-(stop - top) // cell)].swapaxes(0, 1).copy())
                self._scored_to = stop

    def _finish(self) -> Iterator[MaskRows]:
        """The rows of all bands whose cells have scores and whose crops can be cut."""
        while (band := self._bands.ready()) is not None:
            start, stop = self._bands.rows(band)
            if self._scored_to < stop:
                return
            yield from self._inspect(band * self._bands.step, start, stop)
            self._bands.advance()

    def _inspect(self, top: int, start: int, stop: int) -> Iterator[MaskRows]:
        """Rows `start` to `stop` of the band that begins at line `top`."""
        cell = self._gate.cell_lines
        first = max(0, self._scored_from - top) // cell  # the rows of cells before it ended before the run began
        rows = -(-(stop - top) // cell) - first
        scores = self._gate.read(np.stack([self._answers.popleft() for _ in range(rows)], axis=1))
        highest = scores.max(axis=0)
        if highest.max() < self._threshold:
            clean = self._clean[: stop - start]
            yield MaskRows(start, clean, clean, False, highest, self._gate.cell_columns)
            return
        alarmed = np.zeros((self._band_cells, self._gate.cells_across), np.bool_)
        np.greater_equal(scores, self._threshold, out=alarmed[first : first + rows])
        rectangles = self._cover.rectangles(alarmed)
        mask, confidence = np.zeros((2, stop - start, self._width), np.uint8)
        self._segment(rectangles, top, start, mask, confidence)
        for begin, end, segmented in _stretches(rectangles, self._band_cells):
            line_start, line_stop = max(start, top + begin * cell), min(stop, top + end * cell)
            if line_start >= line_stop:
                continue
            here = slice(line_start - start, line_stop - start)
            clean = self._clean[: line_stop - line_start]
            yield MaskRows(
                line_start,
                mask[here] if segmented else clean,
                confidence[here] if segmented else clean,
                segmented,
                scores[max(0, begin - first) : end - first].max(axis=0),
                self._gate.cell_columns,
            )

    def _segment(self, rectangles: list[Rectangle], top: int, start: int, mask: Plane, confidence: Plane) -> None:
        """Write the classes within the rectangles of a band; row 0 of the planes is line `start`."""
        stop, halo = start + len(mask), self._halo
        wanted = []
        for rectangle in rectangles:
            line, column = top + rectangle.row * self._gate.cell_lines, rectangle.column * self._gate.cell_columns
            line_start, line_stop = max(line, start), min(line + rectangle.rows * self._gate.cell_lines, stop)
            column_stop = min(column + rectangle.columns * self._gate.cell_columns, self._width)
            if line_start < line_stop:
                core = (line_stop - line_start, column_stop - column)
                size = self._size(rectangle.rows, rectangle.columns)
                wanted.append(Crop(line - halo, column - halo, size, halo + line_start - line, halo, core))
        for crop, classes, confidences in self._crops.read(self._window, wanted):
            line, column = crop.line + crop.top - start, crop.column + crop.left
            here = np.s_[line : line + crop.core[0], column : column + crop.core[1]]
            mask[here], confidence[here] = classes, confidences

    def _size(self, rows: int, columns: int) -> tuple[int, int]:
        """Lines and columns of the crop of a rectangle of cells."""
        return rows * self._gate.cell_lines + 2 * self._halo, columns * self._gate.cell_columns + 2 * self._halo


def _stretches(rectangles: list[Rectangle], rows: int) -> Iterator[tuple[int, int, bool]]:
    """Rows of cells of a band, half-open, which some rectangle holds a pixel of, or none, by turns."""
    held = np.zeros(rows, np.bool_)
    for rectangle in rectangles:
        held[rectangle.row : rectangle.row + rectangle.rows] = True
    ends = [0, *(np.flatnonzero(held[1:] != held[:-1]) + 1).tolist(), rows]
    for start, stop in pairwise(ends):
        yield start, stop, bool(held[start])
