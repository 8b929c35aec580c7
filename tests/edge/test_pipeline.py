from __future__ import annotations

import base64
import gc
import tracemalloc

import cv2
import numpy as np
import pytest
from brightness import BrightnessSegmenter
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.config import Filters, Scale
from edge.errors import SourceError
from edge.events import DefectClosed, DefectOpened, StripFinished, StripStarted
from edge.frame import Frame
from edge.ledger import Coverage
from edge.pipeline import PORTION_LINES, Pipeline, frames_from
from edge.reporting import StripContext
from edge.tracking.filters import resolve_rules
from edge.tracking.tracker import DefectTracker

WIDTH = 96
SCALE = Scale(mm_per_line=0.5, mm_per_column=0.25)
CLASSES = ("background", "bright", "dark")


def strip(lines: int = 700) -> np.ndarray:
    """Grey steel; a bright spot, a dark streak over many blocks, a bright spot at the very end."""
    image = np.full((lines, WIDTH), 128, np.uint8)
    image[30:50, 10:30] = 220
    image[100:420, 60:66] = 20
    image[lines - 20 :, 40:60] = 240
    return image


def pipeline(crop_max_px: int | None = None, lag: int = 40, rows_at_once: int = 24) -> Pipeline:
    rules = resolve_rules(Filters(), CLASSES, {}, SCALE)
    tracker = DefectTracker(rules, SCALE, CLASSES, "s1", update_every_mm=100.0)
    context = StripContext("/a/b/c", "s1", WIDTH, SCALE, "dense", "bundle", "e" * 64, None, None, "c" * 64)
    return Pipeline(BrightnessSegmenter(lag, rows_at_once), tracker, context, crop_max_px)


def frames(image: np.ndarray, cuts: list[int], first_line: int = 0) -> list[Frame]:
    stops = sorted({cut for cut in cuts if first_line < cut < len(image)} | {len(image)})
    starts = [first_line, *stops[:-1]]
    return [Frame(image[a:b], a, 1_000_000_000 + b) for a, b in zip(starts, stops, strict=True)]


def story(events) -> list[tuple]:
    """What events say, without the clock."""
    result = []
    for event in events:
        data = event.data.model_dump(exclude={"latency_ms", "captured_at"})
        result.append((event.type, event.id, repr(data)))
    return result


def run(image, cuts, **options) -> list:
    return [event for found in frames_from(iter(frames(image, cuts)), pipeline(**options)) for event in found.events]


def test_a_strip_is_started_its_defects_opened_and_closed_in_mm_and_its_summary_published():
    events = run(strip(), [])
    assert isinstance(events[0], StripStarted)
    opened = [event.data for event in events if isinstance(event, DefectOpened)]
    closed = {event.data.class_name: event.data for event in events if isinstance(event, DefectClosed)}
    assert [(data.class_name, data.box_px.line_start, data.box_px.column_start) for data in opened] == [
        ("bright", 30, 10),
        ("dark", 100, 60),
        ("bright", 680, 40),
    ]
    assert closed["dark"].box_mm.along_start == 50.0
    assert closed["dark"].box_mm.along_stop == 210.0
    assert closed["dark"].area_px == 320 * 6
    assert closed["bright"].ending == "strip_end"
    summary = events[-1]
    assert isinstance(summary, StripFinished)
    assert summary.data.coverage.inspected == summary.data.coverage.total == 700
    assert summary.data.defects == {"bright": 2, "dark": 1}
    assert not summary.data.interrupted


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 699), max_size=30))
def test_events_do_not_depend_on_how_the_lines_were_cut_into_frames(cuts):
    assert story(run(strip(), cuts, crop_max_px=64)) == story(run(strip(), [], crop_max_px=64))


@pytest.mark.parametrize(("lag", "rows"), [(0, 1), (7, 64), (300, 24), (0, 1000)])
def test_events_but_not_their_moment_are_the_same_for_any_segmenter_that_gives_the_same_mask(lag, rows):
    assert story(run(strip(), [333], lag=lag, rows_at_once=rows)) == story(run(strip(), []))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 13), st.lists(st.integers(1, 699), max_size=10))
def test_a_pipeline_resumed_from_any_checkpoint_ends_as_the_unbroken_one(stop_after, cuts):
    image, reference = strip(), story(run(strip(), [], crop_max_px=64))
    first = pipeline(crop_max_px=64)
    before = []
    pushed = frames(image, list(range(50, 700, 50)))[:stop_after]
    for frame in pushed:
        before += first.push(frame).events
    checkpoint = first.checkpoint()
    again = pipeline(crop_max_px=64)
    first_line = again.resume(checkpoint)
    assert first_line <= checkpoint.line <= pushed[-1].line_stop
    after = []
    for frame in frames(image, cuts, first_line):
        after += again.push(frame).events
    after += again.finish().events
    assert story(before + after) == reference


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 699), max_size=10), st.lists(st.integers(1, 12), min_size=1, max_size=8), st.integers(0, 60))
def test_events_and_checkpoints_do_not_depend_on_how_far_segmentation_runs_ahead_of_judgement(cuts, leads, missing):
    """Judged in batches of any size, each later than the segmentation of all its rows, with lost lines in the middle."""

    def through(leads: list[int]) -> tuple[list[tuple], list[tuple[int, int, int]]]:
        running, waiting, events, checkpoints = pipeline(crop_max_px=64), [], [], []
        shown = frames(strip(), [350, *cuts])
        held = [frame for frame in shown if frame.line_stop <= 350 or frame.first_line >= 350 + missing]
        batch = iter(leads * 2000)
        wanted = next(batch)
        for frame in held:
            for segmented in running.segmentation.push(frame):
                waiting.append(segmented)
                if len(waiting) < wanted:
                    continue
                for each in waiting:
                    events += running.judgement.judge(each).events
                    checkpoints.append((running.judgement.line_stop, running.checkpoint().line, len(events)))
                waiting, wanted = [], next(batch)
        for each in [*waiting, running.segmentation.finish()]:
            events += running.judgement.judge(each).events
        return story(events + running.judgement.finish().events), checkpoints

    ahead, checkpoints = through(leads)
    abreast, expected = through([1])
    assert ahead == abreast
    assert checkpoints == expected[: len(checkpoints)]


def test_a_tall_frame_is_judged_piece_by_piece_and_the_strip_can_be_asked_for_at_each():
    running, image = pipeline(), strip()
    seen = []
    for segmented in running.segmentation.push(Frame(image, 0, 1)):
        for rows in running.judgement.judge(segmented).rows:
            lines = running.judgement.lines_of(rows)
            np.testing.assert_array_equal(lines, image[rows.first_line : rows.line_stop])
            seen.append((rows.first_line, segmented.line_stop))
    assert max(newest - first for first, newest in seen) <= 64 + PORTION_LINES
    assert len(seen) > 5


def test_memory_does_not_grow_with_the_strip():
    running, image = pipeline(crop_max_px=64), strip(512)[:128]
    held = []
    tracemalloc.start()
    try:
        for index in range(360):
            running.push(Frame(image, 128 * index, index))
            running.checkpoint()
            if index in (59, 359):
                gc.collect()
                held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert held[1] - held[0] < 300 * 128, "less than a byte a line: 300 frames more, with two defects in each"


def test_missing_lines_are_counted_as_lost_end_what_touches_them_and_never_are_a_defect_or_clean():
    image = strip()
    running = pipeline()
    events = running.push(Frame(image[:200], 0, 1)).events
    events += running.push(Frame(image[300:], 300, 2), shed_lines=30).events
    events += running.finish().events
    closed = [event.data for event in events if isinstance(event, DefectClosed) and event.data.class_name == "dark"]
    assert closed[0].box_px.line_stop == 200
    assert closed[0].ending == "lines_lost"
    assert closed[1].box_px.line_start == 300
    assert running.coverage == Coverage(inspected=600, lost=70, shed=30)
    assert events[-1].data.coverage.total == 700


def test_lines_shed_at_the_end_are_in_the_ledger():
    running = pipeline()
    running.push(Frame(strip()[:300], 0, 1))
    summary = running.finish(shed_lines=400, interrupted=True).events[-1]
    assert summary.data.coverage.shed == 400
    assert summary.data.lines == 700
    assert summary.data.interrupted


def test_a_camera_that_went_on_while_nobody_looked_loses_those_lines_at_a_restart():
    image = strip()
    first = pipeline()
    first.push(Frame(image[:256], 0, 1))
    checkpoint = first.checkpoint()
    again = pipeline()
    again.resume(checkpoint)
    again.push(Frame(image[500:], 500, 2))
    again.finish()
    assert again.coverage == Coverage(inspected=checkpoint.line + 200, lost=500 - checkpoint.line)


def test_a_frame_that_goes_back_is_refused():
    running = pipeline()
    running.push(Frame(strip()[:100], 0, 1))
    with pytest.raises(SourceError, match="starts at line 90, expected 100"):
        running.push(Frame(strip()[90:], 90, 2))


def test_an_opened_defect_carries_a_jpeg_of_itself():
    image = strip()
    data = next(event.data for event in run(image, [], crop_max_px=64) if isinstance(event, DefectOpened))
    crop = cv2.imdecode(np.frombuffer(base64.b64decode(data.crop_jpeg), np.uint8), cv2.IMREAD_GRAYSCALE)
    assert np.abs(crop.astype(int) - image[14:64, 0:46]).mean() < 8
    assert max(crop.shape) <= 64


def test_a_strip_without_lines_has_a_start_and_a_summary():
    events = pipeline().finish().events
    assert [type(event) for event in events] == [StripStarted, StripFinished]
    assert events[1].data.lines == 0
