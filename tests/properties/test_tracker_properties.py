from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import cv2
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.config import ClassRule, Filters, FixedColumns, Merge, Scale, StripEdges
from edge.defects import Change, DefectChange, Ending
from edge.segmenters import MaskRows
from edge.tracking.blocks import BLOCK_LINES
from edge.tracking.filters import resolve_rules
from edge.tracking.rle import decode_runs
from edge.tracking.tracker import DefectTracker

CLASSES = ("background", "rust", "scratch")
SCALE = Scale(mm_per_line=0.5, mm_per_column=0.25)
WIDTH = 48


UNHURRIED = settings(deadline=None)


@dataclass(frozen=True)
class Strip:
    mask: np.ndarray
    confidence: np.ndarray
    lines: np.ndarray


def strip_of(seed: int) -> Strip:
    """A strip with straight, slanted and V-shaped strokes of any class and confidence, some specks, and an edge."""
    generator = np.random.default_rng(seed)
    height = int(generator.choice([generator.integers(1, 100), generator.integers(100, 450)], p=[0.1, 0.9]))
    mask, confidence = np.zeros((height, WIDTH), np.uint8), np.zeros((height, WIDTH), np.uint8)
    columns = np.arange(WIDTH)
    for _ in range(generator.integers(0, 7)):
        # The two legs of a V meet at its last line.
        stop = int(generator.integers(1, height + 1))
        rows = np.arange(max(0, stop - int(generator.integers(1, 300))), stop)
        slope = generator.choice([0, 0, 0.1, 0.1, 0.3, 2])
        foot, width = generator.integers(0, WIDTH), generator.integers(1, 12)
        left = foot + np.round((rows[:, None] - stop) * slope)
        right = foot - np.round((rows[:, None] - stop) * slope)
        legs = ((columns >= left) & (columns < left + width)) | ((columns >= right) & (columns < right + width))
        mask[rows[0] : stop][legs] = generator.integers(1, 3)
        confidence[rows[0] : stop][legs] = generator.choice([60, 120, 240], p=[0.1, 0.3, 0.6])
    specks = generator.random(mask.shape) < generator.choice([0, 0.01, 0.1], p=[0.6, 0.2, 0.2])
    mask[specks] = generator.integers(0, 3, specks.sum())
    confidence[specks] = generator.integers(0, 256, specks.sum())
    confidence[mask == 0] = 0
    lines = np.full(mask.shape, 5, np.uint8)
    lines[:, int(generator.integers(0, 10)) :] = 120
    return Strip(mask, confidence, lines)


def filters_of(seed: int) -> Filters:
    generator = np.random.default_rng(seed)
    low, high = generator.choice([0.2, 0.45]), generator.choice([0.45, 0.7])
    area = generator.choice([0.0, 1.0, 5.0])
    return Filters(
        default=ClassRule(low=low, high=high, min_area_mm2=area, max_aspect_ratio=generator.choice([None, None, 3.0])),
        classes={"scratch": ClassRule(low=low, high=high, min_area_mm2=area, min_length_mm=3)},
        merge=Merge(along_mm=generator.choice([0.0, 2.0, 45.0]), across_mm=generator.choice([0.0, 1.0])),
        strip_edges=StripEdges(background_below=generator.choice([None, 30]), margin_mm=0.5),
        # 1024 lines are the least that is watched: a share so small that 103 lines are enough for an alert.
        fixed_columns=FixedColumns(over_mm=generator.choice([None, 1.0]), share=0.1),
    )


# Drawn by seed: what is drawn piece by piece is nearly always too plain to merge, or to last until an alert.
SEEDS = st.integers(0, 2**32 - 1)
STRIPS = SEEDS.map(strip_of)
FILTERS = SEEDS.map(filters_of)
PORTIONS = st.lists(st.integers(1, 200), min_size=1, max_size=12)


def make(filters: Filters) -> DefectTracker:
    rules = resolve_rules(filters, CLASSES, {}, SCALE)
    return DefectTracker(rules, SCALE, CLASSES, "coil-1", update_every_mm=40, max_rle_runs=100)


def feed(tracker: DefectTracker, strip: Strip, stop: int, portions: list[int]):
    """Push rows up to `stop` in portions, over and over again."""
    turn = 0
    while tracker.line < stop:
        here = slice(tracker.line, min(stop, tracker.line + portions[turn % len(portions)]))
        scores = np.array([0.25, 0.5, 0.75], np.float32)
        rows = MaskRows(here.start, strip.mask[here], strip.confidence[here], gate_scores=scores, tile_columns=16)
        yield from tracker.push(rows, lambda start, stop: strip.lines[start:stop])
        turn += 1


def whole(filters: Filters, strip: Strip):
    tracker = make(filters)
    reports = list(feed(tracker, strip, len(strip.mask), [len(strip.mask)])) + tracker.finish()
    return reports, tracker.tally()


@UNHURRIED
@given(STRIPS, FILTERS, PORTIONS)
def test_rows_in_any_portions_give_the_same_reports(strip, filters, portions):
    tracker = make(filters)
    reports = list(feed(tracker, strip, len(strip.mask), portions)) + tracker.finish()
    assert (reports, tracker.tally()) == whole(filters, strip)


@UNHURRIED
@given(STRIPS, FILTERS, PORTIONS, st.lists(st.integers(0, 420), max_size=4))
def test_a_tracker_restored_from_its_checkpoints_reports_what_an_unbroken_one_does(strip, filters, portions, breaks):
    tracker = make(filters)
    reports = []
    for stop in sorted(breaks):
        reports += feed(tracker, strip, min(stop, len(strip.mask)), portions)
        line, state = tracker.checkpoint()
        tracker = make(filters)
        # The rows from the checkpoint on come once more, as after a crash; what they had led to is in the state.
        assert tracker.restore(state) == line == tracker.line
    reports += [*feed(tracker, strip, len(strip.mask), portions), *tracker.finish()]
    assert (reports, tracker.tally()) == whole(filters, strip)


@UNHURRIED
@given(
    STRIPS, FILTERS, PORTIONS, st.lists(st.tuples(st.integers(0, 200), st.integers(0, 150)), min_size=1, max_size=3), st.data()
)
def test_gaps_are_the_same_however_their_lines_are_reported(strip, filters, portions, gaps, data):
    def run(pieces, portions):
        tracker = make(filters)
        reports = []
        for lines, lost in gaps:
            reports += feed(tracker, strip, min(tracker.line + lines, len(strip.mask)), portions)
            stop = min(tracker.line + lost, len(strip.mask))
            for between in [*sorted({min(max(piece, tracker.line), stop) for piece in pieces}), stop]:
                reports += tracker.skip(between)
            line, state = tracker.checkpoint()
            if pieces and line == tracker.line:
                tracker = make(filters)
                tracker.restore(state)
        return [*reports, *feed(tracker, strip, len(strip.mask), portions), *tracker.finish()], tracker.tally()

    pieces = data.draw(st.lists(st.integers(0, 420), max_size=5))
    assert run(pieces, portions) == run([], [len(strip.mask)])


@UNHURRIED
@given(STRIPS, FILTERS)
def test_each_defect_is_opened_once_and_closed_once_with_revisions_in_between(strip, filters):
    reports = [report for report in whole(filters, strip)[0] if isinstance(report, DefectChange)]
    histories: dict[str, list[DefectChange]] = {}
    for report in reports:
        histories.setdefault(report.defect.id, []).append(report)
    for history in histories.values():
        changes = [report.change for report in history]
        assert changes == [Change.OPENED] + [Change.UPDATED] * (len(changes) - 2) + [Change.CLOSED]
        assert [report.defect.revision for report in history] == list(range(len(history)))
        assert [report.ending is None for report in history] == [True] * (len(history) - 1) + [False]
        heir = history[-1].merged_into
        assert (heir is not None) == (history[-1].ending is Ending.MERGED)
        if heir is not None:
            # It is open when the other is closed, and goes on.
            positions = [index for index, report in enumerate(reports) if report.defect.id == heir]
            assert positions[0] < reports.index(history[-1]) < positions[-1]
    lines = [report.decided_at_line for report in reports]
    assert lines == sorted(lines)
    assert all(line % BLOCK_LINES == 0 or line == len(strip.mask) for line in lines)


def labels_of(candidates: np.ndarray) -> tuple[int, np.ndarray]:
    return cv2.connectedComponents(candidates.astype(np.uint8), connectivity=8)


@UNHURRIED
@given(STRIPS, FILTERS)
def test_every_region_of_the_strip_is_in_one_defect_or_rejected_for_one_reason(strip, filters):
    filters = filters.model_copy(update={"fixed_columns": FixedColumns(over_mm=None)})
    reports, tally = whole(filters, strip)
    closed = [report for report in reports if report.change is Change.CLOSED and report.ending is not Ending.MERGED]
    regions = 0
    for index, limits in list(enumerate(resolve_rules(filters, CLASSES, {}, SCALE).classes))[1:]:
        regions += labels_of((strip.mask == index) & (strip.confidence >= limits.low))[0] - 1
    assert sum(report.defect.fragments for report in closed) + sum(tally.rejected.values()) == regions
    assert tally.defects == Counter(report.defect.class_name for report in closed)
    assert sum(tally.area_px.values()) == sum(report.defect.area_px for report in closed)


def expected_groups(strip: Strip, filters: Filters) -> set[tuple[str, int, int, tuple[int, ...], bytes]]:
    """Class, area, fragments, box and pixels of what merging should give, found on the whole mask at once."""
    found = set()
    rules = resolve_rules(filters, CLASSES, {}, SCALE)
    for index, name in list(enumerate(CLASSES))[1:]:
        candidates = (strip.mask == index) & (strip.confidence >= rules.classes[index].low)
        count, labels = labels_of(candidates)
        group = np.arange(count)
        owners, boxes = [], []
        for start in range(0, len(candidates), BLOCK_LINES):
            of_block = labels_of(candidates[start : start + BLOCK_LINES])[1]
            for part in range(1, of_block.max() + 1):
                lines, columns = np.nonzero(of_block == part)
                owners.append(labels[start + lines[0], columns[0]])
                boxes.append((start + lines.min(), start + lines.max() + 1, columns.min(), columns.max() + 1))
        if rules.merge is not None and boxes:
            line_start, line_stop, column_start, column_stop = np.array(boxes).T
            along = line_start[:, None] - line_stop
            across = column_start[:, None] - column_stop
            near = np.maximum(along, along.T) <= rules.merge.along_lines
            near &= np.maximum(across, across.T) <= rules.merge.across_columns
            for one, other in np.argwhere(near).tolist():
                group[group == group[owners[one]]] = group[owners[other]]
        for number in set(group[1:].tolist()):
            pixels = (group[labels] == number) & (labels > 0)
            lines, columns = np.nonzero(pixels)
            box = (int(lines.min()), int(lines.max()) + 1, int(columns.min()), int(columns.max()) + 1)
            fragments = int((group[1:] == number).sum())
            found.add((name, len(lines), fragments, box, pixels[box[0] : box[1], box[2] : box[3]].tobytes()))
    return found


@UNHURRIED
@given(STRIPS, st.sampled_from([(0.0, 0.0), (2.0, 0.5), (0.0, 1.0), (45.0, 1.0)]), PORTIONS)
def test_defects_are_the_groups_that_merging_finds_on_the_whole_mask(strip, merge, portions):
    filters = Filters(
        # One threshold, so that whatever counts is admitted at once.
        default=ClassRule(low=0.4, high=0.4, min_area_mm2=0),
        merge=Merge(along_mm=merge[0], across_mm=merge[1]),
        fixed_columns=FixedColumns(over_mm=None),
    )
    rules = resolve_rules(filters, CLASSES, {}, SCALE)
    tracker = DefectTracker(rules, SCALE, CLASSES, "coil-1", max_rle_runs=10**6)
    reports = [*feed(tracker, strip, len(strip.mask), portions), *tracker.finish()]
    found = set()
    for report in reports:
        if report.change is Change.CLOSED and report.ending is not Ending.MERGED:
            defect, box = report.defect, report.defect.box
            bounds = (box.line_start, box.line_stop, box.column_start, box.column_stop)
            pixels = decode_runs(defect.runs, box.line_stop - box.line_start, box.column_stop - box.column_start)
            found.add((defect.class_name, defect.area_px, defect.fragments, bounds, pixels.tobytes()))
    assert found == expected_groups(strip, filters)
