from __future__ import annotations

import gc
import tracemalloc

import numpy as np
import pytest

from edge.config import ClassRule, Filters, FixedColumns, Merge, Scale, StripEdges
from edge.defects import BoxPx, Change, DefectChange, Ending, LensAlert
from edge.errors import ConfigError
from edge.segmenters import MaskRows
from edge.tracking.filters import resolve_rules
from edge.tracking.rle import decode_runs
from edge.tracking.tracker import DefectTracker

CLASSES = ("background", "rust", "scratch")
MILLIMETRE = Scale(mm_per_line=1.0, mm_per_column=1.0)
OFF = FixedColumns(over_mm=None)
ANY = ClassRule(low=0.2, high=0.5, min_area_mm2=0)
WIDTH = 120


def tracker_of(
    rule: ClassRule = ANY,
    *,
    merge: tuple[float, float] = (0, 0),
    scale: Scale = MILLIMETRE,
    strip_edges: StripEdges | None = None,
    fixed_columns: FixedColumns = OFF,
    strip_id: str = "coil-1",
    **arguments,
) -> DefectTracker:
    filters = Filters(
        default=rule,
        merge=Merge(along_mm=merge[0], across_mm=merge[1]),
        strip_edges=strip_edges or StripEdges(),
        fixed_columns=fixed_columns,
    )
    return DefectTracker(resolve_rules(filters, CLASSES, {}, scale), scale, CLASSES, strip_id, **arguments)


def strip(height: int, *boxes: tuple[slice, slice], class_index: int = 1, width: int = WIDTH) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    for box in boxes:
        mask[box] = class_index
    return mask


def push(tracker: DefectTracker, mask: np.ndarray, confidence=200, lines=None, **rows):
    planes = np.where(mask > 0, np.broadcast_to(np.asarray(confidence, np.uint8), mask.shape), 0).astype(np.uint8)
    first = tracker.line
    lines_of = None if lines is None else lambda start, stop: lines[start - first : stop - first]
    return tracker.push(MaskRows(first, mask, planes, **rows), lines_of)


def story(reports) -> list[tuple[str, int, int]]:
    """(what, revision, line) of each change."""
    return [(report.change.value, report.defect.revision, report.decided_at_line) for report in reports]


def only(reports, change: Change):
    (found,) = [report for report in reports if isinstance(report, DefectChange) and report.change is change]
    return found


def test_a_defect_is_opened_at_the_end_of_its_block_and_closed_at_the_end_of_the_next():
    tracker = tracker_of()
    assert story(push(tracker, strip(64, np.s_[50:64, 10:20]))) == [("opened", 0, 64)]
    assert story(push(tracker, strip(128, np.s_[:10, 10:20]))) == [("closed", 1, 128)]
    assert tracker.finish() == []


def test_a_defect_is_described_in_pixels_and_millimetres():
    tracker = tracker_of(scale=Scale(mm_per_line=0.5, mm_per_column=0.25))
    mask = strip(200, np.s_[60:70, 30:34])
    confidence = np.full(mask.shape, 100)
    confidence[65, 31] = 255
    defect = only(push(tracker, mask, confidence), Change.CLOSED).defect
    assert defect.class_name == "rust"
    assert defect.box == BoxPx(60, 70, 30, 34)
    assert defect.area_px == 40
    assert defect.area_mm2 == 40 * 0.125
    assert (defect.centroid_line, defect.centroid_column) == (64.5, 31.5)
    # A rectangle of sides 5 mm and 1 mm: axes of 4 / sqrt(12) times its sides.
    assert defect.length_mm == pytest.approx(5 * 4 / 12**0.5)
    assert defect.width_mm == pytest.approx(1 * 4 / 12**0.5)
    assert defect.orientation_deg == 0.0
    assert defect.confidence_mean == pytest.approx((39 * 100 + 255) / 40 / 255)
    assert defect.confidence_peak == 1.0
    assert defect.gate_score is None
    assert defect.fragments == 1
    assert np.array_equal(decode_runs(defect.runs, 10, 4), np.ones((10, 4), bool))
    assert not defect.runs_truncated


def test_the_id_comes_from_the_strip_the_class_and_the_first_pixel_alone():
    def first_id(mask, **arguments):
        return push(tracker_of(**arguments), mask)[0].defect.id

    known = first_id(strip(64, np.s_[10:20, 10:20]))
    assert len(known) == 16
    assert known == first_id(strip(64, np.s_[10:30, 10:13]))
    assert known != first_id(strip(64, np.s_[10:20, 10:20], class_index=2))
    assert known != first_id(strip(64, np.s_[10:20, 11:20]))
    assert known != first_id(strip(64, np.s_[10:20, 10:20]), strip_id="coil-2")


def test_a_growing_defect_is_updated_after_so_much_strip_whatever_the_portions():
    tracker = tracker_of(update_every_mm=100)
    reports = [report for _ in range(100) for report in push(tracker, strip(5, np.s_[:, 40:43]))]
    # Reported at 64; 100 lines on is 164, known at 192; then 292, known at 320; then 420, known at 448.
    assert story(reports) == [("opened", 0, 64), ("updated", 1, 192), ("updated", 2, 320), ("updated", 3, 448)]
    assert story(tracker.finish()) == [("closed", 4, 500)]


def test_endings_tell_completion_the_strips_end_and_lost_lines_apart():
    def endings(*masks_or_gaps):
        tracker = tracker_of()
        reports = []
        for item in masks_or_gaps:
            reports += tracker.skip(item) if isinstance(item, int) else push(tracker, item)
        return [report.ending for report in reports + tracker.finish() if report.change is Change.CLOSED]

    assert endings(strip(100, np.s_[80:99, 3:9])) == [Ending.COMPLETE]
    assert endings(strip(100, np.s_[80:100, 3:9])) == [Ending.STRIP_END]
    assert endings(strip(100, np.s_[80:100, 3:9]), 200) == [Ending.LINES_LOST]
    assert endings(strip(100, np.s_[80:99, 3:9]), 200) == [Ending.COMPLETE]
    assert endings(strip(128, np.s_[80:128, 3:9]), 200, strip(10, np.s_[:4, 3:9])) == [Ending.LINES_LOST, Ending.COMPLETE]


def test_the_highest_gate_score_of_its_tiles_is_reported():
    tracker = tracker_of()
    scores = np.array([0.25, 0.5, 0.75], np.float32)
    reports = push(tracker, strip(64, np.s_[10:20, 30:50]), gate_scores=scores, tile_columns=40)
    assert reports[0].defect.gate_score == 0.5


def test_beyond_the_cap_runs_are_left_out_and_that_is_said():
    tracker = tracker_of(max_rle_runs=70)
    reports = push(tracker, strip(128, np.s_[10:100, 20:30])) + push(tracker, strip(64))
    opened, closed = only(reports, Change.OPENED).defect, only(reports, Change.CLOSED).defect
    assert (len(opened.runs), opened.runs_truncated) == (54, False)
    assert (len(closed.runs), closed.runs_truncated) == (70, True)
    expected = np.zeros((90, 10), bool)
    expected[:70] = True
    assert np.array_equal(decode_runs(closed.runs, 90, 10), expected)


def test_a_scratch_of_500_m_is_one_defect_in_constant_memory():
    tracker = tracker_of(merge=(5, 2), scale=Scale(mm_per_line=5.0, mm_per_column=0.25), update_every_mm=50_000)
    lines = np.arange(100_000)
    columns = 30 + np.round(25 * np.sin(lines / 5000)).astype(int)
    reports, sizes = [], {}
    for start in range(0, len(lines), 64):
        mask = np.zeros((64, 64), np.uint8)
        here = columns[start : start + 64]
        for offset in range(3):
            mask[np.arange(len(here)), here + offset] = 2
        reports += [(report.change, report.defect.id) for report in push(tracker, mask[: len(here)])]
        if start in (64_000, 89_600):
            sizes[start] = len(tracker.checkpoint()[1])
            gc.collect()
            if start == 64_000:
                tracemalloc.start()
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    (closed,) = tracker.finish()
    assert closed.defect.area_px == 3 * len(lines)
    assert closed.defect.length_mm == pytest.approx(500_000 * 4 / 12**0.5, rel=1e-3)
    assert closed.defect.runs_truncated
    assert [change for change, _ in reports] == [Change.OPENED] + [Change.UPDATED] * 9
    assert {defect_id for _, defect_id in reports} == {closed.defect.id}
    # Digits of sums grow; nothing else does.
    assert sizes[89_600] - sizes[64_000] < 200
    assert kept < 200_000, "what 180 m of scratch leave behind: one defect's runs"


def rejected(tracker: DefectTracker, mask: np.ndarray, **arguments) -> dict[str, int]:
    reports = push(tracker, mask, **arguments) + tracker.finish()
    assert reports == []
    return tracker.tally().rejected


def test_too_little_area_is_rejected_and_counted():
    assert rejected(tracker_of(ClassRule(min_area_mm2=31)), strip(100, np.s_[20:25, 20:26], np.s_[60:66, 80:85])) == {
        "min_area": 2
    }


def test_too_short_is_rejected_and_counted():
    # The axis of 10 mm is 11.5 mm long.
    assert rejected(tracker_of(ClassRule(min_length_mm=11.6)), strip(100, np.s_[20:30, 20:26])) == {"min_length": 1}


def test_pixels_below_low_do_not_count_and_a_region_that_never_reaches_high_is_rejected():
    tracker = tracker_of(ClassRule(low=0.4, high=0.8, min_area_mm2=0))
    mask = strip(100, np.s_[20:30, 20:30], np.s_[20:30, 60:70])
    confidence = np.full(mask.shape, 110)
    confidence[20:22] = 90
    confidence[25, 25] = 204
    reports = push(tracker, mask, confidence) + tracker.finish()
    assert only(reports, Change.CLOSED).defect.box == BoxPx(22, 30, 20, 30)
    assert tracker.tally().rejected == {"confidence": 1}


def test_hysteresis_holds_over_blocks():
    tracker = tracker_of(ClassRule(low=0.4, high=0.8, min_area_mm2=0))
    weak, strong = strip(64, np.s_[10:, 20:30]), strip(64, np.s_[:10, 20:30])
    assert push(tracker, weak, 110) == []
    assert tracker.open_line() == 10
    (opened,) = push(tracker, strong, 230)[:1]
    assert opened.defect.box == BoxPx(10, 74, 20, 30)


@pytest.mark.parametrize(
    ("rule", "shape"), [({"min_aspect_ratio": 3}, np.s_[20:30, 20:30]), ({"max_aspect_ratio": 3}, np.s_[20:60, 20:30])]
)
def test_an_aspect_ratio_out_of_bounds_is_rejected_and_counted(rule, shape):
    assert rejected(tracker_of(ClassRule(**rule)), strip(100, shape)) == {"aspect": 1}


def test_a_largest_aspect_ratio_is_judged_when_nothing_grows_any_more():
    # Its first block alone, 4 by 10, would pass.
    assert rejected(tracker_of(ClassRule(max_aspect_ratio=3)), strip(150, np.s_[60:120, 20:30])) == {"aspect": 1}


def test_an_ignored_class_is_counted_and_never_reported():
    assert rejected(tracker_of(ClassRule(ignore=True)), strip(200, np.s_[20:30, 20:30], np.s_[60:180, 20:30])) == {"ignored": 2}


def test_a_region_with_less_than_half_of_it_on_judged_steel_is_rejected():
    lines = np.full((64, WIDTH), 5, np.uint8)
    lines[:, 40:] = 120
    edges = StripEdges(background_below=30, margin_mm=10)
    tracker = tracker_of(strip_edges=edges)
    # Judged from column 50 on: 4 of 10 columns of the upper one, 5 of 10 of the lower one.
    mask = strip(64, np.s_[10:20, 44:54], np.s_[40:50, 45:55])
    reports = push(tracker, mask, lines=lines) + tracker.finish()
    assert only(reports, Change.CLOSED).defect.box == BoxPx(40, 50, 45, 55)
    assert tracker.tally().rejected == {"strip_edge": 1}


def test_edges_follow_each_line_of_a_slanted_strip():
    edges = StripEdges(background_below=30, margin_mm=0)
    lines = np.full((128, WIDTH), 5, np.uint8)
    for line in range(128):
        lines[line, line // 2 :] = 120
    tracker = tracker_of(strip_edges=edges)
    push(tracker, strip(128, np.s_[0:4, 30:34], np.s_[124:128, 30:34]), lines=lines)
    tracker.finish()
    tally = tracker.tally()
    assert (tally.defects, tally.rejected) == ({"rust": 1}, {"strip_edge": 1})


def test_the_margin_is_not_judged_only_where_edges_are_looked_for():
    tracker = tracker_of(strip_edges=StripEdges(margin_mm=10))
    assert push(tracker, strip(64, np.s_[10:20, 0:5]))[0].change is Change.OPENED


def test_fragments_within_the_distance_are_one_defect():
    tracker = tracker_of(merge=(8, 3))
    mask = strip(300, np.s_[100:110, 20:25], np.s_[118:190, 28:30], np.s_[198:205, 31:35])
    reports = push(tracker, mask) + tracker.finish()
    closed = only(reports, Change.CLOSED).defect
    assert closed.box == BoxPx(100, 205, 20, 35)
    assert closed.fragments == 3
    assert closed.area_px == int((mask > 0).sum())
    assert np.array_equal(decode_runs(closed.runs, 105, 15), mask[100:205, 20:35] > 0)


@pytest.mark.parametrize("second", [np.s_[119:125, 28:30], np.s_[118:125, 29:32]], ids=["along", "across"])
def test_fragments_one_pixel_beyond_the_distance_are_two_defects(second):
    tracker = tracker_of(merge=(8, 3))
    push(tracker, strip(300, np.s_[100:110, 20:25], second))
    assert tracker.tally().defects == {"rust": 2}


@pytest.mark.parametrize(("line_stop", "defects"), [(60, 1), (59, 2)])
def test_the_distance_is_the_same_across_the_end_of_a_block(line_stop, defects):
    tracker = tracker_of(merge=(4, 3))
    push(tracker, strip(300, np.s_[50:line_stop, 20:25], np.s_[64:70, 20:25]))
    assert tracker.tally().defects == {"rust": defects}


def test_fragments_of_two_classes_stay_two():
    tracker = tracker_of(merge=(8, 3))
    push(tracker, strip(300, np.s_[100:110, 20:25]) + strip(300, np.s_[112:120, 20:25], class_index=2))
    assert tracker.tally().defects == {"rust": 1, "scratch": 1}


def test_specks_too_small_alone_are_a_defect_together():
    tracker = tracker_of(ClassRule(min_area_mm2=10), merge=(5, 5))
    (opened, _) = (
        push(tracker, strip(128, *(np.s_[20 + 4 * step : 22 + 4 * step, 30:32] for step in range(3)))) + tracker.finish()
    )
    assert (opened.defect.area_px, opened.defect.fragments) == (12, 3)


def test_a_defect_waits_for_the_merge_distance_before_it_is_closed():
    tracker = tracker_of(merge=(100, 3))
    reports = push(tracker, strip(320, np.s_[50:60, 20:25]))
    # Line 160 is the last that could still be near: known not to be at 192.
    assert story(reports) == [("opened", 0, 64), ("closed", 1, 192)]


def test_what_lies_in_the_box_of_a_long_diagonal_scratch_is_not_part_of_it():
    mask = strip(1000, np.s_[300:310, 90:95])
    mask[np.arange(1000), np.arange(1000) * 100 // 1000] = 1
    tracker = tracker_of(merge=(10, 5))
    push(tracker, mask)
    tracker.finish()
    assert tracker.tally().defects == {"rust": 2}


def test_of_two_open_defects_that_meet_the_one_with_the_earlier_first_pixel_goes_on():
    tracker = tracker_of()
    legs = push(tracker, strip(64, np.s_[20:, 70:75], np.s_[10:, 20:25]))
    assert story(legs) == [("opened", 0, 64), ("opened", 0, 64)]
    older, younger = (report.defect for report in legs)
    assert older.box.column_start == 20

    (merged, *closed) = push(tracker, strip(128, np.s_[:10, 20:25], np.s_[10:12, 20:75], np.s_[:10, 70:75]))
    assert (merged.change, merged.ending) == (Change.CLOSED, Ending.MERGED)
    assert (merged.defect.id, merged.merged_into, merged.defect.revision) == (younger.id, older.id, 1)
    assert story(closed) == [("closed", 1, 128)]
    assert closed[0].defect.id == older.id
    assert closed[0].defect.fragments == 1
    # The merged one is not counted: its pixels are the other's.
    assert tracker.tally().defects == {"rust": 1}


def test_a_defect_is_opened_before_another_is_merged_into_it_even_if_it_would_not_be_alone():
    # The older leg is weak until both meet; together they are rounder than a defect is allowed to be.
    tracker = tracker_of(ClassRule(low=0.2, high=0.8, min_area_mm2=0, min_aspect_ratio=3))
    mask = strip(64, np.s_[10:, 20:25], np.s_[20:, 70:75])
    (younger,) = push(tracker, mask, np.where(np.arange(WIDTH) < 50, 100, 250))
    reports = push(tracker, strip(64, np.s_[:2, 20:75], np.s_[2:, 20:25]), 100)
    assert [(report.change, report.ending) for report in reports] == [(Change.OPENED, None), (Change.CLOSED, Ending.MERGED)]
    assert reports[0].defect.box.line_start == 10
    assert (reports[1].defect.id, reports[1].merged_into) == (younger.defect.id, reports[0].defect.id)


def test_fragments_on_both_sides_of_a_short_gap_are_one_defect():
    tracker = tracker_of(merge=(20, 3))
    reports = push(tracker, strip(100, np.s_[80:, 20:25])) + tracker.skip(115) + push(tracker, strip(100, np.s_[:10, 20:25]))
    closed = only(reports, Change.CLOSED)
    assert (closed.defect.box, closed.defect.fragments, closed.ending) == (BoxPx(80, 125, 20, 25), 2, Ending.COMPLETE)


def test_a_group_ends_as_its_last_fragment_does():
    tracker = tracker_of(merge=(20, 3))
    push(tracker, strip(100, np.s_[70:80, 20:25], np.s_[90:, 20:25]))
    closed = only(tracker.skip(1000), Change.CLOSED)
    assert (closed.defect.fragments, closed.ending) == (2, Ending.LINES_LOST)


def test_a_defect_at_a_long_gap_is_closed_as_lines_lost_within_it():
    tracker = tracker_of(merge=(20, 3))
    push(tracker, strip(100, np.s_[80:, 20:25]))
    (opened, closed) = tracker.skip(10**12)
    assert (opened.decided_at_line, closed.decided_at_line, closed.ending) == (100, 128, Ending.LINES_LOST)
    assert tracker.line == 10**12


def test_a_gap_reported_in_pieces_decides_nothing_at_their_ends():
    tracker = tracker_of(merge=(20, 3))
    push(tracker, strip(100, np.s_[80:, 20:25]))
    pieces = [report for stop in (101, 125, 126, 200) for report in tracker.skip(stop)]
    assert story(pieces) == [("opened", 0, 100), ("closed", 1, 128)]


def test_rows_that_are_not_the_next_ones_are_refused():
    tracker = tracker_of()
    push(tracker, strip(10))
    with pytest.raises(ValueError, match="mask rows from line 11: expected line 10"):
        tracker.push(MaskRows(11, strip(5), strip(5)))
    with pytest.raises(ValueError, match="expected at least 10"):
        tracker.skip(9)
    with pytest.raises(ValueError, match="columns"):
        tracker.push(MaskRows(10, strip(5, width=7), strip(5, width=7)))
    tracker.finish()
    with pytest.raises(ValueError, match="finished strip"):
        push(tracker, strip(10))


def test_edges_without_an_image_and_unknown_classes_are_refused():
    with pytest.raises(ValueError, match="strip edges are looked for"):
        push(tracker_of(strip_edges=StripEdges(background_below=9)), strip(10))
    with pytest.raises(ValueError, match="holds class 3"):
        push(tracker_of(), strip(64, np.s_[3, 3], class_index=3))


DIRT = FixedColumns(over_mm=1024, share=0.75)


def test_dirt_is_one_alert_and_what_was_opened_for_it_is_closed():
    tracker = tracker_of(fixed_columns=DIRT)
    reports = [report for _ in range(30) for report in push(tracker, strip(64, np.s_[:, 50:55]))]
    opened, alert, closed = reports
    assert story([opened, closed]) == [("opened", 0, 64), ("closed", 1, 768)]
    assert closed.ending is Ending.LENS
    assert isinstance(alert, LensAlert)
    assert (alert.column_start, alert.column_stop, alert.over_mm, alert.decided_at_line) == (48, 56, 1024, 768)
    assert tracker.finish() == []
    tally = tracker.tally()
    # The defect that was none, and the region that lay in the known columns until the end.
    assert (tally.defects, tally.rejected, tally.lens_alerts) == ({}, {"fixed_columns": 2}, 1)


def test_dirt_that_flickers_is_closed_with_all_its_fragments():
    tracker = tracker_of(merge=(20, 3), fixed_columns=DIRT)
    flicker = strip(64, np.s_[2:28, 50:55], np.s_[32:62, 50:55])
    reports = [report for _ in range(14) for report in push(tracker, flicker)]
    assert [type(report) for report in reports] == [DefectChange, LensAlert, DefectChange]
    assert reports[-1].ending is Ending.LENS
    assert tracker.tally().rejected == {"fixed_columns": 28}


def test_a_defect_beside_or_across_known_dirt_is_still_found():
    tracker = tracker_of(merge=(0, 8), fixed_columns=DIRT)
    for _ in range(14):
        push(tracker, strip(64, np.s_[:, 50:55]))
    reports = push(tracker, strip(64, np.s_[:, 50:55], np.s_[20:40, 30:70])) + push(tracker, strip(64, np.s_[:, 50:55]))
    closed = only(reports, Change.CLOSED).defect
    assert (closed.box, closed.fragments) == (BoxPx(916, 936, 30, 70), 2)
    assert closed.area_px == 20 * (40 - 8)


def test_what_touches_the_rim_of_dirt_begins_anew_when_the_dirt_is_known():
    tracker = tracker_of(fixed_columns=DIRT)
    for _ in range(11):
        push(tracker, strip(64, np.s_[:, 50:56]))
    push(tracker, strip(64, np.s_[:, 50:56], np.s_[50:, 56:58], np.s_[40:, 62:70]))
    assert (tracker.tally().lens_alerts, tracker.open_defects) == (1, 1)
    # Both reach the next block, where they meet beside the dirt.
    closed = only(push(tracker, strip(64, np.s_[:10, 50:70])), Change.CLOSED)
    assert (closed.ending, closed.defect.box) == (Ending.COMPLETE, BoxPx(744, 778, 56, 70))


def test_an_endless_scratch_that_wanders_is_no_dirt():
    tracker = tracker_of(fixed_columns=DIRT)
    mask = np.zeros((8192, WIDTH), np.uint8)
    columns = np.round(60 + 10 * np.sin(np.arange(8192) / 150)).astype(int)
    for offset in range(3):
        mask[np.arange(8192), columns + offset] = 2
    push(tracker, mask)
    tracker.finish()
    tally = tracker.tally()
    assert (tally.defects, tally.lens_alerts) == ({"scratch": 1}, 0)


def test_the_open_line_is_the_first_of_whatever_may_still_be_reported():
    tracker = tracker_of(merge=(100, 3))
    assert tracker.open_line() is None
    push(tracker, strip(128, np.s_[70:80, 5:9], np.s_[50:60, 80:90]))
    assert tracker.open_line() == 50
    push(tracker, strip(320))
    assert tracker.open_line() is None


def test_open_defects_are_those_opened_and_not_yet_closed():
    tracker = tracker_of(ClassRule(min_area_mm2=50))
    push(tracker, strip(64, np.s_[40:, 5:9], np.s_[60:, 20:24], np.s_[10:30, 80:90]))
    assert tracker.open_defects == 1
    tracker.finish()
    assert tracker.open_defects == 0


def test_the_checkpoint_is_the_last_block_end_and_is_text():
    tracker = tracker_of()
    push(tracker, strip(100, np.s_[30:, 5:9]))
    line, state = tracker.checkpoint()
    assert line == 64
    assert state.decode().startswith('{"version":2')
    again = tracker_of()
    assert again.restore(state) == 64
    assert again.open_line() == 30
    assert again.checkpoint() == (line, state)


def test_a_finished_strip_is_finished_when_restored():
    tracker, again = tracker_of(), tracker_of()
    push(tracker, strip(100))
    tracker.finish()
    again.restore(tracker.checkpoint()[1])
    with pytest.raises(ValueError, match="finished strip"):
        push(again, strip(10))


@pytest.mark.parametrize("other", [{"strip_id": "coil-2"}, {"merge": (1, 1)}, {"update_every_mm": 7}, {"scale": Scale()}])
def test_a_checkpoint_made_under_other_terms_is_refused(other):
    _, state = tracker_of().checkpoint()
    with pytest.raises(ConfigError, match="was made with other filters, classes, scale or strip id"):
        tracker_of(**other).restore(state)


@pytest.mark.parametrize("state", [b"", b"\xff", b"{}", b"[1]", b"null"])
def test_bytes_that_are_no_checkpoint_are_refused(state):
    with pytest.raises(ConfigError, match="is not one"):
        tracker_of().restore(state)
