"""An endless simulated steel strip with planted defects, and the truth about them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from edge.config import Scale, SimulatedDefects
from edge.defects import BoxPx
from edge.frame import Lines
from edge.sources.blemishes import Contrast, Mask, Patch, ScratchLook, draw_scratch, draw_spot, scratch_look
from edge.sources.planting import DefectKind, Planting, Scratch, Spot
from edge.sources.texture import CleanSteel

_STEP_LINES = 1024
"""Lines of a scratch drawn at once."""
_LONGEST_SPOT_PX = 1024
"""Under a microscope a rust patch of 40 mm would take gigabytes."""


@dataclass(frozen=True, slots=True)
class PlantedDefect:
    """The truth about one planted defect.

    box: of its pixels in the truth mask. Lengths and positions in mm from the strip's start and the camera's first
    column; a pixel is as large as `Scale` says. length_mm, width_mm: of the box, along and across.
    """

    kind: DefectKind
    box: BoxPx
    area_px: int
    area_mm2: float
    centroid_along_mm: float
    centroid_across_mm: float
    start_along_mm: float
    stop_along_mm: float
    start_across_mm: float
    stop_across_mm: float

    @property
    def length_mm(self) -> float:
        """Extent along the strip."""
        return self.stop_along_mm - self.start_along_mm

    @property
    def width_mm(self) -> float:
        """Extent across the strip."""
        return self.stop_across_mm - self.start_across_mm


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A part of a defect: line and column of its corner on the strip, contrast (h, w) float32, mask (h, w) bool."""

    kind: DefectKind
    line: int
    column: int
    contrast: Contrast
    mask: Mask

    def view(self, block: Lines, first_line: int) -> Lines:
        """The same pixels of a block of the strip."""
        height, width = self.mask.shape
        row = self.line - first_line
        return block[row : row + height, self.column : self.column + width]


class SteelStrip:
    """An endless strip of `width` columns; every line a pure function of (width, seed, defects, scale, line).

    clean: nothing is planted.
    """

    def __init__(self, width: int, seed: int, defects: SimulatedDefects, scale: Scale, clean: bool = False) -> None:
        self.width = width
        self.seed = seed
        self.scale = scale
        self.steel = CleanSteel(width, seed)
        if clean:
            defects = SimulatedDefects(rust_every_mm=None, pit_every_mm=None, inclusion_every_mm=None, scratch_every_mm=None)
        left, right = self.steel.steel_columns
        # a column less at either side: patches are rounded to whole pixels
        steel_mm = ((left + 1) * scale.mm_per_column, (right - 1) * scale.mm_per_column)
        longest_mm = _LONGEST_SPOT_PX * min(scale.mm_per_line, scale.mm_per_column)
        self._planting = Planting(defects, steel_mm, longest_mm, seed)
        self._patch = lru_cache(maxsize=64)(self._draw)
        self._look = lru_cache(maxsize=64)(self._draw_look)
        self._measured_scratch = lru_cache(maxsize=64)(self._measure_scratch)

    def lines(self, first_line: int, count: int) -> Lines:
        """(count, width) uint8, what the camera sees from line `first_line` on."""
        lines = self.steel.lines(first_line, count)
        for drawn in self._drawn(first_line, count):
            view = drawn.view(lines, first_line)
            grey = self.steel.grey[drawn.column : drawn.column + view.shape[1]].astype(np.float32)
            view[:] = np.clip(view + np.rint(drawn.contrast * grey).astype(np.int16), 0, 255)
        return lines

    def truth(self, first_line: int, count: int) -> npt.NDArray[np.uint8]:
        """(count, width) uint8, the DefectKind of every pixel, 0 where nothing is planted."""
        truth = np.zeros((count, self.width), np.uint8)
        for drawn in self._drawn(first_line, count):
            drawn.view(truth, first_line)[drawn.mask] = drawn.kind
        return truth

    def planted(self, first_line: int, line_stop: int) -> tuple[PlantedDefect, ...]:
        """Defects of which some pixel lies in [first_line, line_stop), whole, in the order of their first lines."""
        start, stop = self._span(first_line, line_stop - first_line)
        found = [self._measure_spot(spot) for spot in self._planting.spots(start, stop)]
        found += [self._measured_scratch(scratch) for scratch in self._planting.scratches(start, stop)]
        inside = [d for d in found if d is not None and d.box.line_start < line_stop and d.box.line_stop > first_line]
        return tuple(sorted(inside, key=lambda d: (d.box.line_start, d.box.column_start)))

    def edges(self, first_line: int, count: int) -> npt.NDArray[np.int64]:
        """(count, 2) int64: the first column of steel, and the one after the last, of every line."""
        return self.steel.edges(first_line, count)

    def _span(self, first_line: int, count: int) -> tuple[float, float]:
        # rounding to pixels moves a patch by up to one line
        return (first_line - 1) * self.scale.mm_per_line, (first_line + count + 1) * self.scale.mm_per_line

    def _drawn(self, first_line: int, count: int) -> Iterator[_Drawn]:
        """What is planted on these lines, cut to them; a scratch in pieces, so that a long slanted one stays small."""
        start, stop = self._span(first_line, count)
        line_stop = first_line + count
        for spot in self._planting.spots(start, stop):
            patch = self._patch(spot)
            top, bottom = max(first_line, patch.line), min(line_stop, patch.line + patch.mask.shape[0])
            if top < bottom:
                rows = slice(top - patch.line, bottom - patch.line)
                yield _Drawn(spot.kind, top, patch.column, patch.contrast[rows], patch.mask[rows])
        for scratch in self._planting.scratches(start, stop):
            top, bottom = self._scratch_lines(scratch)
            yield from self._drawn_scratch(scratch, max(top, first_line), min(bottom, line_stop))

    def _drawn_scratch(self, scratch: Scratch, top: int, bottom: int) -> Iterator[_Drawn]:
        look = self._look(scratch)
        for line in range(top, bottom, _STEP_LINES):
            drawn = draw_scratch(scratch, look, self.scale, line, min(_STEP_LINES, bottom - line))
            if drawn is not None:
                column, contrast, mask = drawn
                yield _Drawn(DefectKind.SCRATCH, line, column, contrast, mask)

    def _scratch_lines(self, scratch: Scratch) -> tuple[int, int]:
        """Lines whose middle lies within its length, or one more on either side."""
        start, stop = scratch.start_mm / self.scale.mm_per_line, (scratch.start_mm + scratch.length_mm) / self.scale.mm_per_line
        return max(0, math.floor(start) - 1), math.ceil(stop) + 1

    def _draw(self, spot: Spot) -> Patch:
        return draw_spot(spot, self.scale, self.steel.contrast, self._grey_at(spot.across_mm))

    def _draw_look(self, scratch: Scratch) -> ScratchLook:
        return scratch_look(scratch, self.steel.contrast, self._grey_at(sum(scratch.path_mm) / len(scratch.path_mm)))

    def _grey_at(self, across_mm: float) -> float:
        return float(self.steel.grey[min(self.width - 1, int(across_mm / self.scale.mm_per_column))])

    def _measure_spot(self, spot: Spot) -> PlantedDefect | None:
        patch = self._patch(spot)
        return self._measured(spot.kind, [_Drawn(spot.kind, patch.line, patch.column, patch.contrast, patch.mask)])

    def _measure_scratch(self, scratch: Scratch) -> PlantedDefect | None:
        return self._measured(DefectKind.SCRATCH, self._drawn_scratch(scratch, *self._scratch_lines(scratch)))

    def _measured(self, kind: DefectKind, parts: Iterable[_Drawn]) -> PlantedDefect | None:
        """None where it falls between two lines."""
        area = line_sum = column_sum = 0
        lines: list[int] = []
        columns: list[int] = []
        for part in parts:
            at_line, at_column = (
                index + offset for index, offset in zip(np.nonzero(part.mask), (part.line, part.column), strict=True)
            )
            if at_line.size:
                area += at_line.size
                line_sum += int(at_line.sum())
                column_sum += int(at_column.sum())
                lines += [int(at_line.min()), int(at_line.max()) + 1]
                columns += [int(at_column.min()), int(at_column.max()) + 1]
        if not area:
            return None
        box = BoxPx(min(lines), max(lines), min(columns), max(columns))
        along, across = self.scale.mm_per_line, self.scale.mm_per_column
        return PlantedDefect(
            kind=kind,
            box=box,
            area_px=area,
            area_mm2=area * along * across,
            centroid_along_mm=(line_sum / area + 0.5) * along,
            centroid_across_mm=(column_sum / area + 0.5) * across,
            start_along_mm=box.line_start * along,
            stop_along_mm=box.line_stop * along,
            start_across_mm=box.column_start * across,
            stop_across_mm=box.column_stop * across,
        )
