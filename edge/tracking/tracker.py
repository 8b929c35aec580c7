"""From rows of the class mask to defects: regions joined along the strip, filtered, merged, opened, updated, closed.

Everything is decided at the ends of blocks (`edge.tracking.blocks`), which are places on the strip: the same strip gives the same
reports, however its rows arrived. Memory does not grow with the strip: a group of fragments is a sum, and what lies
further back than the merge distance is closed and forgotten.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from edge.config import Scale
from edge.defects import Change, Defect, DefectChange, Ending, LensAlert, Tally
from edge.errors import ConfigError
from edge.segmenters import MaskRows
from edge.tracking.blocks import BLOCK_LINES, Block, BlockCutter, LinesOf
from edge.tracking.filters import FLOAT_SLACK, Reason, Rules, defect_fault
from edge.tracking.fixed_columns import FixedColumns
from edge.tracking.fragments import LENS_LAYER, Fragments
from edge.tracking.geometry import ellipse_of
from edge.tracking.groups import Group
from edge.tracking.regions import NO_PARTS, Parts, RegionJoiner, find_parts, find_pixels
from edge.tracking.rle import runs_in_box
from edge.tracking.strip_edges import find_strip_edges

Report = DefectChange | LensAlert

STATE_VERSION = 2


class DefectTracker:
    """Takes a strip's mask rows in order and reports what becomes of its defects.

    A region counts once its class is not ignored, its peak confidence is high enough and at least half of it lies on
    judged steel; from that block on it is in a group with the fragments near it (`edge.tracking.fragments`). A group is opened
    as soon as it passes area, length and aspect; a largest aspect ratio, which growth can break, is judged only when
    nothing of it grows any more. What is open stays a defect until it is closed, COMPLETE once the strip has passed it by
    the merge distance.

    classes: names by index, 0 the background. first_line: of the strip, or of what a camera delivers first.
    update_every_mm: strip that an open defect must grow by between two reports. max_rle_runs: runs of a mask kept.
    """

    def __init__(
        self,
        rules: Rules,
        scale: Scale,
        classes: Sequence[str],
        strip_id: str,
        *,
        first_line: int = 0,
        update_every_mm: float = 1000.0,
        max_rle_runs: int = 4096,
    ) -> None:
        if len(classes) != len(rules.classes):
            raise ValueError(f"got {len(classes)} class names, expected the {len(rules.classes)} of the rules")
        self._rules = rules
        self._scale = scale
        self._classes = tuple(classes)
        self._strip_id = strip_id
        self._update_lines = max(1, math.ceil(update_every_mm / scale.mm_per_line - FLOAT_SLACK))
        self._lows = np.zeros(256, np.uint8)
        self._lows[: len(classes)] = [limits.low for limits in rules.classes]
        made_of = (STATE_VERSION, rules.fingerprint(), scale, self._classes, strip_id, update_every_mm, max_rle_runs)
        self._fingerprint = hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]

        self._cutter = BlockCutter(first_line)
        self._joiner = RegionJoiner()
        self._width: int | None = None
        self._fixed_columns: FixedColumns | None = None
        self._fragments = Fragments(rules, max_rle_runs)
        self._defects: Counter[str] = Counter()
        self._area_px: Counter[str] = Counter()
        self._lens_alerts = 0
        self._finished = False

    @property
    def line(self) -> int:
        """Where the next row must lie."""
        return self._cutter.line

    def push(self, rows: MaskRows, lines_of: LinesOf | None = None) -> list[Report]:
        """Take in rows that follow the last ones. lines_of: gives the image of these rows; needed if strip edges are looked for.

        Raises ValueError if the rows are not the next ones or do not fit.
        """
        self._check(rows, lines_of)
        reports: list[Report] = []
        for block in self._cutter.push(rows, None if self._rules.strip_edges is None else lines_of):
            reports += self._judge(block, None)
        return reports

    def skip(self, line_stop: int, ending: Ending = Ending.LINES_LOST) -> list[Report]:
        """The lines up to `line_stop` were lost or shed: nothing is found on them, and regions that touch them end.

        Fragments on both sides are still one defect if they are near enough. ending: of a defect that ends at the gap.
        """
        gap = self._cutter.line
        if self._finished or line_stop < gap:
            raise ValueError(f"strip {self._strip_id}: skip to line {line_stop}, expected at least {gap}, before its end")
        if line_stop == gap:
            return []
        held = self._cutter.cut()
        reports: list[Report] = []
        if held is not None or self._fragments.growing:
            # Only where rows end: a gap reported in two pieces is one gap.
            reports += self._judge(held or Block(gap, gap), ending)
        boundary = (gap // BLOCK_LINES + 1) * BLOCK_LINES
        while self._fragments and boundary <= line_stop:
            reports += self._judge(Block(boundary, boundary), None)
            boundary += BLOCK_LINES
        reports += self._watch_columns(line_stop)
        self._cutter.jump(line_stop)
        return reports

    def finish(self) -> list[Report]:
        """The strip ends here: close what is open. Nothing can be pushed afterwards."""
        if self._finished:
            return []
        self._finished = True
        end = self._cutter.line
        return self._judge(self._cutter.cut() or Block(end, end), Ending.STRIP_END)

    def tally(self) -> Tally:
        """Counts of the strip so far. A defect that was merged into another, or was dirt after all, is not counted."""
        return Tally(dict(self._defects), dict(self._area_px), dict(self._fragments.rejected), self._lens_alerts)

    @property
    def open_defects(self) -> int:
        """Defects that were opened and are not closed yet."""
        return sum(group.defect_id is not None for group in self._fragments.groups)

    def open_line(self) -> int | None:
        """First line of anything that may still be reported, opened or not; None if nothing is under way."""
        return self._fragments.open_line()

    def checkpoint(self) -> tuple[int, bytes]:
        """The latest line up to which everything is decided, and what a tracker needs to go on from there.

        Rows before that line need not be pushed again; those from it on must be. The bytes are JSON.
        """
        state = {
            "version": STATE_VERSION,
            "fingerprint": self._fingerprint,
            "line": self._cutter.first_line,
            "width": self._width,
            "finished": self._finished,
            "joiner": self._joiner.state(),
            "fixed_columns": None if self._fixed_columns is None else self._fixed_columns.state(),
            "fragments": self._fragments.state(),
            "tally": [dict(self._defects), dict(self._area_px), self._lens_alerts],
        }
        return self._cutter.first_line, json.dumps(state, separators=(",", ":")).encode()

    def restore(self, state: bytes) -> int:
        """Go on from a checkpoint of a tracker made with the same arguments; returns the line to push from.

        Raises ConfigError if it is not one, naming what to do.
        """
        try:
            kept = json.loads(state)
            version, fingerprint = kept["version"], kept["fingerprint"]
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(
                f"strip {self._strip_id}: the checkpoint of {len(state)} bytes is not one ({error}); begin a new strip"
            ) from error
        if (version, fingerprint) != (STATE_VERSION, self._fingerprint):
            raise ConfigError(
                f"strip {self._strip_id}: its checkpoint was made with other filters, classes, scale or strip id"
                f" (got {version}/{fingerprint}, expected {STATE_VERSION}/{self._fingerprint});"
                " restart with the configuration it was begun with, or begin a new strip"
            )
        self._cutter.jump(kept["line"])
        self._joiner.restore(kept["joiner"])
        if kept["width"] is not None:
            self._set_width(kept["width"])
        if self._fixed_columns is not None:
            self._fixed_columns.restore(kept["fixed_columns"])
        self._fragments.restore(kept["fragments"])
        defects, area_px, self._lens_alerts = kept["tally"]
        self._defects, self._area_px = Counter(defects), Counter(area_px)
        self._finished = kept["finished"]
        return self._cutter.line

    def _check(self, rows: MaskRows, lines_of: LinesOf | None) -> None:
        where = f"strip {self._strip_id}, mask rows from line {rows.first_line}"
        if self._finished or rows.first_line != self._cutter.line:
            expected = "no more of a finished strip" if self._finished else f"line {self._cutter.line}"
            raise ValueError(f"{where}: expected {expected}")
        if self._width is None:
            self._set_width(rows.mask.shape[1])
        if rows.mask.shape != rows.confidence.shape or rows.mask.shape[1] != self._width:
            shapes = f"{rows.mask.shape} and confidence {rows.confidence.shape}"
            raise ValueError(f"{where}: got mask {shapes}, expected equal shapes of {self._width} columns")
        if self._rules.strip_edges is not None and lines_of is None:
            raise ValueError(f"{where}: got no image of them, expected one: strip edges are looked for on it")

    def _set_width(self, width: int) -> None:
        self._width = width
        limits = self._rules.fixed_columns
        if limits is not None:
            self._fixed_columns = FixedColumns(width, limits.over_lines, limits.share, self._cutter.first_line)

    def _judge(self, block: Block, cut: Ending | None) -> list[Report]:
        """The path of a block, top to bottom. cut: the strip breaks off at its end, and what that means."""
        line = block.line_stop
        if block.mask is None and not self._fragments:
            return self._watch_columns(line)
        parts = self._parts_of(block)
        if block.first_line < line:
            self._fragments.take_in(parts, self._joiner.join(parts))
        if cut is not None:
            self._fragments.end(self._joiner.cut(), (line, cut))
        if len(parts):
            self._fragments.unite_near()
        reports = self._report(line)
        reports += self._watch_columns(line)
        self._fragments.forget(line)
        return reports

    def _parts_of(self, block: Block) -> Parts:
        if block.mask is None or block.confidence is None:
            return NO_PARTS
        pixels = find_pixels(block.mask, block.confidence)
        pixels = pixels.chosen(pixels.confidence >= self._lows[pixels.layer])
        if not len(pixels):
            return NO_PARTS
        if int(pixels.layer.max()) >= len(self._classes):
            got = pixels.layer.max()
            raise ValueError(f"mask from line {block.first_line} holds class {got}, expected under {len(self._classes)}")
        if self._fixed_columns is not None:
            line, column = np.divmod(pixels.place, pixels.width)
            self._fixed_columns.add(line, column)
            dirty = self._fixed_columns.columns()
            if dirty is not None:
                pixels = replace(pixels, layer=pixels.layer | dirty[column] * np.uint8(LENS_LAYER))
        judged = None
        edges = self._rules.strip_edges
        if edges is not None and block.lines is not None:
            left, right = find_strip_edges(block.lines, edges.background_below)
            judged = (left + edges.margin_columns, right - edges.margin_columns)
        return find_parts(block.first_line, pixels, judged, block.gates)

    def _watch_columns(self, line: int) -> list[Report]:
        """Raise alerts for columns that have turned out to be dirt, and close what lies in them."""
        if self._fixed_columns is None:
            return []
        alerts = self._fixed_columns.advance(line)
        if not alerts:
            return []
        self._lens_alerts += len(alerts)
        over_mm = self._fixed_columns.window_lines * self._scale.mm_per_line
        raised: list[Report] = [LensAlert(self._id_of("lens", at, start), start, stop, over_mm, at) for at, start, stop in alerts]
        dirty = self._fixed_columns.columns()
        return raised if dirty is None else raised + self._suppress(dirty, line)

    def _suppress(self, dirty: npt.NDArray[np.bool_], line: int) -> list[Report]:
        regions, groups = self._fragments.drop_in(dirty)
        self._joiner.drop(regions)
        for group in groups:
            self._reject(group, Reason.FIXED_COLUMNS)
        return [self._change(Change.CLOSED, group, line, Ending.LENS) for group in groups if group.defect_id is not None]

    def _report(self, line: int) -> list[Report]:
        """Open, update and close groups, each kind in the order of their first pixels."""
        opened: list[Report] = []
        updated: list[Report] = []
        closed: list[Report] = []
        staying = []
        along = -1 if self._rules.merge is None else self._rules.merge.along_lines
        for group in sorted(self._fragments.groups, key=lambda group: group.order):
            line_stop = group.statistics.box.line_stop
            complete = not group.growing and (self._finished or line - line_stop > along)
            fault = None
            if group.defect_id is None and (group.changed or complete):
                fault = self._defect_fault(group)
                undecided = group.growing and self._rules.classes[group.class_index].max_aspect_ratio is not None
                if group.must_open or (fault is None and not undecided):
                    group.defect_id = self._id_of(self._classes[group.class_index], *group.statistics.first)
                    opened.append(self._change(Change.OPENED, group, line))
            group.changed = False
            if not complete:
                staying.append(group)
                if group.defect_id is not None and line_stop - group.reported_stop >= self._update_lines:
                    updated.append(self._change(Change.UPDATED, group, line))
            elif group.defect_id is not None:
                closed.append(self._change(Change.CLOSED, group, line, group.ending))
                self._defects[self._classes[group.class_index]] += 1
                self._area_px[self._classes[group.class_index]] += group.statistics.moments.area
            elif fault is not None:
                self._reject(group, fault)
        self._fragments.groups = staying
        return opened + self._report_merged(line) + updated + closed

    def _report_merged(self, line: int) -> list[Report]:
        """Close what became part of another defect; that one is open by now."""
        absorbed = sorted(self._fragments.absorbed, key=lambda pair: pair[0].order)
        self._fragments.absorbed = []
        return [self._change(Change.CLOSED, gone, line, Ending.MERGED, into.root().defect_id) for gone, into in absorbed]

    def _change(
        self, change: Change, group: Group, line: int, ending: Ending | None = None, merged_into: str | None = None
    ) -> DefectChange:
        report = DefectChange(change, self._describe(group), line, ending, merged_into)
        group.revision += 1
        group.reported_stop = group.statistics.box.line_stop
        return report

    def _reject(self, group: Group, reason: Reason) -> None:
        self._fragments.rejected[reason.value] += group.fragments

    def _area_mm2(self, group: Group) -> float:
        return group.statistics.moments.area * self._scale.mm_per_line * self._scale.mm_per_column

    def _defect_fault(self, group: Group) -> Reason | None:
        ellipse = ellipse_of(group.statistics.moments, self._scale.mm_per_line, self._scale.mm_per_column)
        return defect_fault(self._rules.classes[group.class_index], self._area_mm2(group), ellipse)

    def _id_of(self, kind: str, line: int, column: int) -> str:
        return hashlib.sha256(f"{self._strip_id}\n{kind}\n{line}\n{column}".encode()).hexdigest()[:16]

    def _describe(self, group: Group) -> Defect:
        found = group.statistics
        area = found.moments.area
        ellipse = ellipse_of(found.moments, self._scale.mm_per_line, self._scale.mm_per_column)
        return Defect(
            id=group.defect_id or "",
            revision=group.revision,
            class_name=self._classes[group.class_index],
            box=found.box,
            area_px=area,
            area_mm2=self._area_mm2(group),
            centroid_line=found.moments.line / area,
            centroid_column=found.moments.column / area,
            length_mm=ellipse.length_mm,
            width_mm=ellipse.width_mm,
            orientation_deg=ellipse.orientation_deg,
            confidence_mean=found.confidence_sum / (255 * area),
            confidence_peak=found.confidence_peak / 255,
            gate_score=found.gate_score,
            fragments=group.fragments,
            runs=runs_in_box(found.runs, found.box),
            runs_truncated=found.run_count > len(found.runs),
        )
