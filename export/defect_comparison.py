"""What another precision does to the defects that a station reports: strips through the whole pipeline, with either engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt

from edge.config import Filters, Scale, Tiling
from edge.defects import BoxPx
from edge.engines import channels_of, reading_of, tile_engine
from edge.events import DefectClosed, DefectData
from edge.frame import Frame
from edge.manifest import Manifest, Threshold
from edge.pipeline import Pipeline
from edge.reporting import StripContext
from edge.segmenters import Segmenter
from edge.segmenters.slabs import SlabSegmenter
from edge.segmenters.tiles import TileSegmenter
from edge.sessions import Session
from edge.tile_plan import tile_axes
from edge.tracking.filters import resolve_rules
from edge.tracking.rle import decode_runs
from edge.tracking.tracker import DefectTracker
from export.errors import ExportError
from export.samples import Image, mosaic

SMALLEST_MM2 = 2.0
"""Defects from this area on must be found by both engines, as in `edge.scorecard`; smaller ones come and go with a pixel."""

NEAR_PX = 2
"""Masks so near to each other are of one defect: a scratch one pixel wide may lie a pixel beside itself."""

FLIPPED = 0.02
"""Share of defects that only one of two engines may report."""

CELL_PX, CELLS = 200, 64
"""Of strips that are put together from images: side of a cell, and cells of a strip, some 1600 x 1600 px."""

SLAB_LINES = 256
TILES_AT_ONCE = 8
MAX_RUNS = 1 << 16
"""Runs of a mask that are kept: no defect of a strip of some thousand lines has more."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """Strips inspected as a station does it, with one engine.

    segmenter: a new one for strips of so many columns. classes, thresholds: of the manifest.
    """

    segmenter: Callable[[int], Segmenter]
    classes: Sequence[str]
    thresholds: Mapping[str, Threshold] = field(default_factory=dict)
    filters: Filters = field(default_factory=Filters)
    scale: Scale = field(default_factory=Scale)

    def defects(self, strip: Image, strip_id: str) -> list[DefectData]:
        """All defects of a strip, (lines, columns) uint8, as they are when closed; those merged into others left out."""
        rules = resolve_rules(self.filters, self.classes, self.thresholds, self.scale)
        tracker = DefectTracker(rules, self.scale, self.classes, strip_id, max_rle_runs=MAX_RUNS)
        context = StripContext(
            "/export/verification/strips", strip_id, strip.shape[1], self.scale, "dense", "engine", "", None, None, ""
        )
        pipeline = Pipeline(self.segmenter(strip.shape[1]), tracker, context, None)
        events = pipeline.push(Frame(strip, 0, 0)).events + pipeline.finish().events
        closed = [event.data for event in events if isinstance(event, DefectClosed)]
        return [defect for defect in closed if defect.ending not in ("merged", "lens")]


def inspection_of(session: Session, manifest: Manifest) -> Inspection:
    """An engine's strips in slabs, or on its tiles where it looks at them whole or wants them prepared.

    session: answers what the manifest says, and takes any height and width unless it is for tiles alone.
    """
    reading = reading_of(manifest)
    lines, columns = tile_axes(Tiling(), manifest)
    halo, stride = -(-manifest.radius // manifest.stride) * manifest.stride, manifest.stride

    def tiles(width: int) -> Segmenter:
        engine = tile_engine(session, manifest, TILES_AT_ONCE)
        channels = channels_of(manifest)
        return TileSegmenter(engine, reading, channels, width=width, lines=lines, columns=columns, merge="core")

    def slabs(width: int) -> Segmenter:
        chunk = -(-SLAB_LINES // stride) * stride
        return SlabSegmenter(session, width=width, chunk_lines=chunk, halo=halo, stride=stride, reading=reading)

    tiled = manifest.whole_tile is not None or manifest.preparation or manifest.input.reduce > 1
    return Inspection(tiles if tiled else slabs, manifest.classes, manifest.thresholds)


def strips_of(images: Sequence[Image], most: int = 4) -> list[Image]:
    """At most `most` strips, put together from the images: what stands for strips where there are none."""
    per_strip = max(1, min(CELLS, -(-len(images) // most)))
    groups = [images[first : first + per_strip] for first in range(0, len(images), per_strip)]
    return [mosaic(group, CELL_PX, CELLS) for group in groups[:most]]


@dataclass(frozen=True, slots=True)
class ReportedDefect:
    """A defect of one strip, by its index."""

    strip: int
    class_name: str
    box: BoxPx
    area_mm2: float


@dataclass(frozen=True, slots=True)
class DefectComparison:
    """Defects from `smallest_mm2` on: those that both engines report, those that only the float one, or the candidate, does."""

    smallest_mm2: float
    found: int
    missed: tuple[ReportedDefect, ...]
    added: tuple[ReportedDefect, ...]

    @property
    def flipped(self) -> float:
        """Share of all these defects that only one engine reports."""
        flips = len(self.missed) + len(self.added)
        return flips / (self.found + flips) if flips else 0.0


def compare_defects(
    reference: Inspection,
    candidate: Inspection,
    strips: Sequence[Image],
    smallest_mm2: float = SMALLEST_MM2,
    allowed: float = FLIPPED,
) -> DefectComparison:
    """Defects of the float engine and of the candidate on the same strips, through the whole pipeline.

    Two reports are of one defect where their classes are equal and their masks touch; what is smaller than `smallest_mm2`
    is not asked for, and explains a larger one all the same. Raises ExportError where more than the share `allowed` flips.
    """
    found, missed, added = 0, [], []
    for index, strip in enumerate(strips):
        before, after = (inspection.defects(strip, f"strip-{index}") for inspection in (reference, candidate))
        alone = _unmatched(before, after)
        found += sum(defect.area_mm2 >= smallest_mm2 for defect in before) - sum(d.area_mm2 >= smallest_mm2 for d in alone)
        missed += [_reported(defect, index) for defect in alone if defect.area_mm2 >= smallest_mm2]
        added += [_reported(defect, index) for defect in _unmatched(after, before) if defect.area_mm2 >= smallest_mm2]
    comparison = DefectComparison(smallest_mm2, found, tuple(missed), tuple(added))
    if comparison.flipped > allowed:
        raise ExportError(
            f"of {found + len(missed)} defects that the float engine reports {len(missed)} are missed, and {len(added)} are "
            f"added, expected at most {allowed:.1%} together: keep more layers in float, or calibrate with more images"
        )
    return comparison


def _unmatched(defects: Sequence[DefectData], others: Sequence[DefectData]) -> list[DefectData]:
    return [d for d in defects if not any(d.class_name == other.class_name and _touch(d, other) for other in others)]


def _reported(defect: DefectData, strip: int) -> ReportedDefect:
    return ReportedDefect(strip, defect.class_name, _box(defect), defect.area_mm2)


def _box(defect: DefectData) -> BoxPx:
    box = defect.box_px
    return BoxPx(box.line_start, box.line_stop, box.column_start, box.column_stop)


def _touch(first: DefectData, second: DefectData) -> bool:
    """Whether the masks of two defects come within NEAR_PX of each other."""
    one, other = _box(first), _box(second)
    top, left = max(one.line_start, other.line_start) - NEAR_PX, max(one.column_start, other.column_start) - NEAR_PX
    below, right = min(one.line_stop, other.line_stop) + NEAR_PX, min(one.column_stop, other.column_stop) + NEAR_PX
    if top >= below or left >= right:
        return False
    window = BoxPx(top, below, left, right)
    reach = np.ones((2 * NEAR_PX + 1,) * 2, np.uint8)
    grown = cv2.dilate(_painted(first, window), reach).astype(np.uint8)
    return bool(np.any(grown & _painted(second, window)))


def _painted(defect: DefectData, window: BoxPx) -> npt.NDArray[np.uint8]:
    """A defect's pixels within a window of the strip, 1 where it is; its whole box where its mask was cut short."""
    box = _box(defect)
    height, width = box.line_stop - box.line_start, box.column_stop - box.column_start
    mask = np.ones((height, width), np.bool_) if defect.rle_truncated else decode_runs(defect.rle, height, width)
    padded = np.zeros((window.line_stop - window.line_start, window.column_stop - window.column_start), np.uint8)
    lines, columns = (
        (max(start, first), min(stop, last))
        for start, stop, first, last in (
            (box.line_start, box.line_stop, window.line_start, window.line_stop),
            (box.column_start, box.column_stop, window.column_start, window.column_stop),
        )
    )
    if lines[0] < lines[1] and columns[0] < columns[1]:
        padded[
            lines[0] - window.line_start : lines[1] - window.line_start,
            columns[0] - window.column_start : columns[1] - window.column_start,
        ] = mask[
            lines[0] - box.line_start : lines[1] - box.line_start,
            columns[0] - box.column_start : columns[1] - box.column_start,
        ]
    return padded
