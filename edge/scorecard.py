"""What was planted against what was reported: the score of a demonstration whose truth is known."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from edge.defects import BoxPx
from edge.events import DefectClosed, DefectData
from edge.sources.steel_strip import PlantedDefect

MIN_AREA_MM2 = 2.0
"""Smallest planted defect that must be found: smaller ones, the simulator's smallest pits of some 1.3 mm2 among them, are
counted apart."""
NEAR_MM = 2.0
"""A report belongs to a planted defect if their boxes, grown by this, touch."""


@dataclass(frozen=True, slots=True)
class ScoreCard:
    """Planted defects and reports matched. Positions in mm.

    planted, found: of at least the smallest area, by kind. missed: those not found. small: planted ones below that area.
    false_alarms: closed defects that touch nothing planted. position_errors_mm: centroid of the report to that of the
    planted defect, one of each.
    """

    planted: dict[str, int]
    found: dict[str, int]
    missed: tuple[PlantedDefect, ...]
    small: int
    false_alarms: tuple[DefectData, ...]
    position_errors_mm: tuple[float, ...]

    @property
    def complete(self) -> bool:
        """Every planted defect of at least the smallest area was found."""
        return not self.missed


def score(
    planted: Sequence[PlantedDefect], closed: Sequence[DefectClosed], lines: int, mm_per_px: tuple[float, float]
) -> ScoreCard:
    """Match closed defects with the planted ones that lie wholly within the first `lines` lines.

    mm_per_px: along, across. Defects merged into others are left out: the other one stands for them.
    """
    whole = [defect for defect in planted if defect.box.line_stop <= lines]
    reports = [event.data for event in closed if event.data.ending != "merged"]
    margin = (math.ceil(NEAR_MM / mm_per_px[0]), math.ceil(NEAR_MM / mm_per_px[1]))
    matches: Mapping[int, list[DefectData]] = {
        index: [report for report in reports if _touch(defect.box, report, margin)] for index, defect in enumerate(planted)
    }
    explained = {report.defect_id for found in matches.values() for report in found}
    wanted = [index for index, defect in enumerate(planted) if defect in whole and defect.area_mm2 >= MIN_AREA_MM2]
    alone = [found[0] for found in matches.values() if len(found) == 1]
    errors = [
        math.hypot(
            report.centroid_mm.along - planted[index].centroid_along_mm,
            report.centroid_mm.across - planted[index].centroid_across_mm,
        )
        for index in wanted
        if len(matches[index]) == 1 and alone.count(report := matches[index][0]) == 1
    ]
    return ScoreCard(
        planted=_count(planted[index] for index in wanted),
        found=_count(planted[index] for index in wanted if matches[index]),
        missed=tuple(planted[index] for index in wanted if not matches[index]),
        small=len(whole) - len(wanted),
        false_alarms=tuple(report for report in reports if report.defect_id not in explained),
        position_errors_mm=tuple(sorted(errors)),
    )


def _touch(box: BoxPx, report: DefectData, margin: tuple[int, int]) -> bool:
    other = report.box_px
    along = box.line_start - margin[0] < other.line_stop and other.line_start < box.line_stop + margin[0]
    across = box.column_start - margin[1] < other.column_stop and other.column_start < box.column_stop + margin[1]
    return along and across


def _count(defects: Iterable[PlantedDefect]) -> dict[str, int]:
    return dict(Counter(defect.kind.name.lower() for defect in defects))
