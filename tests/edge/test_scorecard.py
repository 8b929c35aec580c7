from __future__ import annotations

import pytest

from edge.config import Scale
from edge.defects import BoxPx, Change, Defect, DefectChange, Ending
from edge.reporting import StripContext, defect_event
from edge.scorecard import score
from edge.sources.planting import DefectKind
from edge.sources.steel_strip import PlantedDefect

MM = 0.25


def planted(line: int, column: int, side: int = 20, kind: DefectKind = DefectKind.RUST) -> PlantedDefect:
    box = BoxPx(line, line + side, column, column + side)
    along, across = (line + side / 2) * MM, (column + side / 2) * MM
    area = side * side
    return PlantedDefect(
        kind, box, area, area * MM * MM, along, across, line * MM, (line + side) * MM, column * MM, (column + side) * MM
    )


def closed(line: int, column: int, side: int = 20, ending: Ending = Ending.COMPLETE):
    box = BoxPx(line, line + side, column, column + side)
    middle = (side - 1) / 2
    defect = Defect(
        f"{line}-{column}",
        1,
        "patches",
        box,
        side * side,
        side * side * MM * MM,
        line + middle,
        column + middle,
        5,
        5,
        0,
        0.9,
        1,
        None,
        1,
    )
    context = StripContext("/a/b/c", "s", 512, Scale(), "dense", "b", "e", None, None, "c")
    return defect_event(context, DefectChange(Change.CLOSED, defect, line + side, ending), 0, 0)


def test_a_report_on_a_planted_defect_finds_it_and_its_position_error_is_that_of_the_centroids():
    card = score([planted(100, 100), planted(300, 50)], [closed(104, 103), closed(300, 50)], 1000, (MM, MM))
    assert card.found == card.planted == {"rust": 2}
    assert card.complete
    assert card.position_errors_mm == pytest.approx((0.0, 5 * MM))
    assert not card.false_alarms


def test_a_planted_defect_without_a_report_is_missed_and_a_report_without_one_is_a_false_alarm():
    card = score([planted(100, 100)], [closed(100, 300)], 1000, (MM, MM))
    assert not card.complete
    assert [defect.box.line_start for defect in card.missed] == [100]
    assert [report.box_px.column_start for report in card.false_alarms] == [300]


def test_what_is_below_the_smallest_area_or_not_wholly_on_the_strip_need_not_be_found_but_is_no_false_alarm():
    small, cut_off = planted(100, 100, side=5), planted(990, 100)
    card = score([small, cut_off], [closed(100, 100, 5), closed(990, 100, 10)], 1000, (MM, MM))
    assert card.complete
    assert card.planted == {}
    assert card.small == 1
    assert not card.false_alarms


def test_fragments_find_a_defect_together_but_measure_no_position_and_merged_ones_are_left_out():
    reports = [closed(100, 100, 8), closed(110, 110, 8), closed(500, 500, ending=Ending.MERGED)]
    card = score([planted(100, 100)], reports, 1000, (MM, MM))
    assert card.complete
    assert card.position_errors_mm == ()
    assert not card.false_alarms
