"""The simulated strip: the same bits however it is asked, a truth that what is seen bears out, a camera's pace."""

from __future__ import annotations

import threading
import time
import tracemalloc
from itertools import pairwise

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge import config
from edge.config import Scale, SimulatedDefects
from edge.frame import Frame
from edge.sources.planting import EDGE_MM, GAP_MM, DefectKind
from edge.sources.simulated import PlantedDefect, SimulatedSource, SteelStrip

NONE = SimulatedDefects(rust_every_mm=None, pit_every_mm=None, inclusion_every_mm=None, scratch_every_mm=None)
DENSE = SimulatedDefects(rust_every_mm=25, pit_every_mm=30, inclusion_every_mm=30, scratch_every_mm=80, scratch_max_mm=200)
MM = Scale()
LINES = 3000
SEEDS = range(6)


@pytest.fixture(scope="module", params=SEEDS)
def strip(request: pytest.FixtureRequest) -> SteelStrip:
    return SteelStrip(1024, request.param, DENSE, MM)


def _whole(strip: SteelStrip) -> tuple[PlantedDefect, ...]:
    """Defects that lie wholly within the first LINES lines."""
    return tuple(defect for defect in strip.planted(0, LINES) if defect.box.line_stop <= LINES)


def _pixels(defect: PlantedDefect, mask: np.ndarray) -> np.ndarray:
    """Mask of a defect's own pixels, (h, w) of its box: the region that has the defect's area, others may cross its box."""
    box = defect.box
    inside = mask[box.line_start : box.line_stop, box.column_start : box.column_stop] == defect.kind
    count, labels = cv2.connectedComponents(inside.astype(np.uint8), connectivity=8)
    sizes = [int((labels == label).sum()) for label in range(1, count)]
    assert defect.area_px in sizes, f"{defect} has {defect.area_px} px in no region of {sizes}"
    return labels == 1 + sizes.index(defect.area_px)


@settings(max_examples=25, deadline=None)
@given(
    width=st.sampled_from([64, 65, 300, 777, 2048]),
    seed=st.integers(0, 2**70),
    first_line=st.one_of(st.integers(0, 3000), st.integers(10**7, 10**7 + 3000), st.integers(10**10, 10**12)),
    cuts=st.lists(st.integers(1, 700), max_size=5),
)
def test_lines_and_truth_have_the_same_bits_in_any_portions(width: int, seed: int, first_line: int, cuts: list[int]) -> None:
    places = sorted({0, 700, *cuts})
    whole = SteelStrip(width, seed, DENSE, MM)
    lines, truth = whole.lines(first_line, 700), whole.truth(first_line, 700)
    portions = SteelStrip(width, seed, DENSE, MM)
    # from the last portion to the first: what was asked before must not matter either
    for start, stop in list(pairwise(places))[::-1]:
        assert np.array_equal(portions.lines(first_line + start, stop - start), lines[start:stop])
        assert np.array_equal(portions.truth(first_line + start, stop - start), truth[start:stop])


def test_scratches_of_many_metres_have_the_same_bits_in_any_portions_too() -> None:
    defects = SimulatedDefects(
        rust_every_mm=None, pit_every_mm=None, inclusion_every_mm=None, scratch_every_mm=20_000, scratch_max_mm=50_000
    )
    for seed in range(20):
        strip = SteelStrip(2048, seed, defects, MM)
        for scratch in strip.planted(400_000, 400_001):
            if scratch.length_mm > 10_000:
                mask = strip.truth(398_000, 4000)
                single = np.concatenate([strip.truth(line, 1) for line in range(399_990, 400_010)])
                assert np.array_equal(mask[1990:2010], single)
                assert (single == DefectKind.SCRATCH).any(axis=1).all()
                return
    pytest.fail("no scratch of more than 10 m in 20 strips")


def test_other_seeds_make_other_steel() -> None:
    first, second = (SteelStrip(512, seed, DENSE, MM).lines(0, 64) for seed in (1, 2))
    assert not np.array_equal(first, second)


def test_strips_have_a_wide_range_of_grey_and_texture() -> None:
    strips = [SteelStrip(256, seed, NONE, MM) for seed in range(60)]
    means = [float(strip.lines(0, 64)[:, 20:-20].mean()) for strip in strips]
    assert min(means) < 110
    assert max(means) > 160
    assert all(80 < mean < 200 for mean in means)
    assert max(strip.steel.contrast for strip in strips) > 3 * min(strip.steel.contrast for strip in strips)


@pytest.mark.parametrize("seed", SEEDS)
def test_beyond_the_edges_is_dark_background_and_between_them_steel(seed: int) -> None:
    strip = SteelStrip(2048, seed, NONE, MM)
    lines, edges = strip.lines(5000, 4000), strip.edges(5000, 4000)
    columns = np.arange(2048)
    # the column that an edge crosses is neither
    steel = (columns > edges[:, :1]) & (columns < edges[:, 1:] - 1)
    background = (columns < edges[:, :1] - 1) | (columns > edges[:, 1:])
    assert lines[background].max() < 20 < lines[steel].min()
    assert lines[background].std() > 0.5
    for margin in (edges[:, 0], 2048 - edges[:, 1]):
        assert 0.015 * 2048 <= margin.min() < margin.max() <= 0.045 * 2048
        assert np.abs(np.diff(margin)).max() <= 1


def test_the_middle_is_brighter_than_the_sides_and_columns_differ() -> None:
    for seed in SEEDS:
        grey = SteelStrip(2048, seed, NONE, MM).steel.grey
        assert max(grey[:64].mean(), grey[-64:].mean()) < grey[896:1152].mean()
        assert np.diff(grey).std() > 0.5


def test_brightness_drifts_slowly_along_the_strip() -> None:
    strip = SteelStrip(256, 3, NONE, MM)
    places = [strip.lines(line, 256)[:, 20:-20].mean() for line in range(0, 400_000, 8192)]
    near = [
        abs(strip.lines(line + 256, 256)[:, 20:-20].mean() - place)
        for line, place in zip(range(0, 400_000, 8192), places, strict=True)
    ]
    assert max(places) - min(places) > 2 * max(near)


@pytest.mark.parametrize("seed", SEEDS)
def test_clean_steel_has_nothing_that_stands_out_like_a_planted_defect(seed: int) -> None:
    strip = SteelStrip(1024, seed, NONE, MM)
    lines = cv2.blur(strip.lines(0, 2000), (5, 5))[:, 60:-60].astype(float)
    expected = strip.steel.grey[60:-60]
    # 26 % is the least contrast of a defect; half of it over 5 x 5 px would be a doubtful spot
    assert np.abs(lines / expected - 1.0).max() < 0.26


def test_nothing_is_planted_on_a_strip_asked_to_be_clean_and_its_steel_is_the_same() -> None:
    planted, clean = (SteelStrip(512, 4, DENSE, MM, clean=clean) for clean in (False, True))
    assert clean.planted(0, LINES) == ()
    assert not clean.truth(0, LINES).any()
    untouched = cv2.dilate(planted.truth(0, LINES), np.ones((9, 9), np.uint8)) == 0
    assert untouched.any()
    assert np.array_equal(planted.lines(0, LINES)[untouched], clean.lines(0, LINES)[untouched])


def test_the_truth_mask_holds_exactly_the_planted_defects_each_as_one_region(strip: SteelStrip) -> None:
    mask = strip.truth(0, LINES)
    planted = strip.planted(0, LINES)
    assert planted
    regions = 0
    for kind in DefectKind:
        count, _ = cv2.connectedComponents((mask == kind).astype(np.uint8), connectivity=8)
        regions += count - 1
    # one that the block's end cuts may be cut in two
    assert len(planted) <= regions <= len(planted) + sum(defect.box.line_stop > LINES for defect in planted)


def test_area_box_and_centroid_are_those_of_the_truth_mask(strip: SteelStrip) -> None:
    mask = strip.truth(0, LINES)
    for defect in _whole(strip):
        pixels = _pixels(defect, mask)
        at_line, at_column = np.nonzero(pixels)
        assert pixels.any(axis=1).all()
        assert pixels.any(axis=0).all()
        assert defect.area_mm2 == pytest.approx(pixels.sum() * MM.mm_per_line * MM.mm_per_column)
        assert defect.centroid_along_mm == pytest.approx((defect.box.line_start + at_line.mean() + 0.5) * MM.mm_per_line)
        assert defect.centroid_across_mm == pytest.approx((defect.box.column_start + at_column.mean() + 0.5) * MM.mm_per_column)
        assert defect.length_mm == pytest.approx(pixels.shape[0] * MM.mm_per_line)
        assert defect.width_mm == pytest.approx(pixels.shape[1] * MM.mm_per_column)


def test_every_defect_stands_clear_of_the_texture_around_it(strip: SteelStrip) -> None:
    lines, clean = (SteelStrip(1024, strip.seed, DENSE, MM, clean=clean).lines(0, LINES).astype(float) for clean in (False, True))
    mask = strip.truth(0, LINES)
    for defect in _whole(strip):
        box = defect.box
        place = (slice(box.line_start, box.line_stop), slice(box.column_start, box.column_stop))
        change = np.abs(lines[place] - clean[place])[_pixels(defect, mask)].mean()
        assert change > 3 * strip.steel.contrast * clean[place].mean(), defect


@pytest.mark.parametrize("seed", [12, 17, 61])
def test_on_rough_steel_defects_have_more_contrast(seed: int) -> None:
    lines, clean = (SteelStrip(512, seed, DENSE, MM, clean=clean).lines(0, LINES).astype(float) for clean in (False, True))
    strip = SteelStrip(512, seed, DENSE, MM)
    assert strip.steel.contrast > 0.065
    mask = strip.truth(0, LINES)
    change = np.abs(lines - clean) / np.maximum(clean, 1.0) / strip.steel.contrast
    assert all(change[mask == kind].mean() > 5.0 for kind in DefectKind)


def test_nothing_beyond_a_rim_of_the_truth_is_touched(strip: SteelStrip) -> None:
    clean = SteelStrip(1024, strip.seed, DENSE, MM, clean=True)
    changed = strip.lines(0, LINES) != clean.lines(0, LINES)
    near = cv2.dilate(strip.truth(0, LINES), np.ones((9, 9), np.uint8)) > 0
    assert changed.any()
    assert not (changed & ~near)[: LINES - 8].any()


def test_defects_keep_away_from_the_edges_and_from_each_other(strip: SteelStrip) -> None:
    edges = strip.edges(0, LINES)
    mask = strip.truth(0, LINES)
    labels = np.zeros(mask.shape, np.uint8)
    apart = round(GAP_MM / MM.mm_per_line) - 3
    for defect in _whole(strip):
        box = defect.box
        span = edges[box.line_start : box.line_stop]
        assert (box.column_start - span[:, 0].max()) * MM.mm_per_column >= EDGE_MM
        assert (span[:, 1].min() - box.column_stop) * MM.mm_per_column >= EDGE_MM
        top, left = max(0, box.line_start - apart), max(0, box.column_start - apart)
        grown = np.pad(_pixels(defect, mask), ((box.line_start - top, apart), (box.column_start - left, apart))).astype(np.uint8)
        grown = cv2.dilate(grown, np.ones((apart + 1, apart + 1), np.uint8))
        view = labels[top : top + grown.shape[0], left : left + grown.shape[1]]
        grown = grown[: view.shape[0], : view.shape[1]]
        # two grown by half the distance each may just meet
        assert not (view & grown).any(), defect
        view |= grown


def test_defects_are_as_large_as_their_kind_is() -> None:
    seen: dict[DefectKind, list[PlantedDefect]] = {kind: [] for kind in DefectKind}
    for seed in range(12):
        for defect in _whole(SteelStrip(1024, seed, DENSE, MM)):
            seen[defect.kind].append(defect)
    assert all(len(found) > 30 for found in seen.values())
    assert all(2.0 <= rust.length_mm <= 40.0 and rust.width_mm <= 40.0 for rust in seen[DefectKind.RUST])
    assert all(1.0 <= pit.length_mm <= 5.0 and pit.width_mm <= 5.0 for pit in seen[DefectKind.PIT])
    assert all(4.0 <= inclusion.length_mm <= 40.0 for inclusion in seen[DefectKind.INCLUSION])
    assert all(inclusion.length_mm > 2 * inclusion.width_mm for inclusion in seen[DefectKind.INCLUSION])
    for scratch in seen[DefectKind.SCRATCH]:
        assert 19.0 <= scratch.length_mm <= 200.5
        assert 0.4 <= scratch.area_mm2 / scratch.length_mm <= 1.8


@pytest.mark.parametrize("kind", DefectKind)
def test_defects_come_as_often_as_asked(kind: DefectKind) -> None:
    every = {f"{other.name.lower()}_every_mm": 500.0 if other is kind else None for other in DefectKind}
    strip = SteelStrip(8192, 11, SimulatedDefects(scratch_max_mm=100.0, **every), MM)
    lines = 800_000
    found = len(strip.planted(0, lines))
    # 400 are expected, sqrt(400) their deviation, and some go because they came too near another
    assert 0.75 * 400 <= found <= 400 + 4 * 20


def test_a_defect_is_told_of_by_every_line_it_crosses(strip: SteelStrip) -> None:
    for defect in _whole(strip)[::7]:
        box = defect.box
        for line in (box.line_start, box.line_stop - 1):
            assert defect in strip.planted(line, line + 1)
        assert defect not in strip.planted(max(0, box.line_start - 5), box.line_start)
        assert defect not in strip.planted(box.line_stop, box.line_stop + 5)


@pytest.mark.parametrize(
    "scale",
    [
        Scale(mm_per_line=0.5, mm_per_column=0.125),
        Scale(mm_per_line=0.1, mm_per_column=0.4),
        Scale(mm_per_line=3, mm_per_column=3),
    ],
)
def test_the_truth_is_in_mm_whatever_the_scale(scale: Scale) -> None:
    strip = SteelStrip(1500, 2, DENSE, scale)
    mask = strip.truth(0, LINES)
    for defect in _whole(strip):
        pixels = _pixels(defect, mask)
        assert defect.area_mm2 == pytest.approx(pixels.sum() * scale.mm_per_line * scale.mm_per_column)
        assert defect.start_along_mm == pytest.approx(defect.box.line_start * scale.mm_per_line)
        assert defect.stop_across_mm == pytest.approx(defect.box.column_stop * scale.mm_per_column)
        if defect.kind is DefectKind.RUST:
            assert defect.length_mm <= 40.0 + scale.mm_per_line


def test_where_steel_is_too_narrow_for_the_margins_nothing_is_planted() -> None:
    assert SteelStrip(64, 1, DENSE, MM).planted(0, 100_000) == ()


def test_the_strip_is_endless_and_its_memory_does_not_grow() -> None:
    every = {f"{kind.name.lower()}_every_mm": 100.0 for kind in DefectKind}
    strip = SteelStrip(300, 3, SimulatedDefects(scratch_max_mm=200.0, **every), MM)

    def kept_after(places: range) -> int:
        for line in places:
            assert strip.lines(line, 8).shape == (8, 300)
            strip.planted(line, line + 8)
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    early = kept_after(range(10**9, 2 * 10**9, 16 * 10**6))
    late = kept_after(range(2 * 10**9, 4 * 10**9, 16 * 10**6))
    tracemalloc.stop()
    # three times as many places, and what is kept of them is bounded: without bounds three times as much would be kept
    assert late < 2 * early


def test_a_camera_with_a_line_rate_waits_for_nobody_and_one_without_does() -> None:
    assert not SimulatedSource(config.SimulatedSource(width=64, line_rate_hz=1000.0), MM).waits
    assert SimulatedSource(config.SimulatedSource(width=64), MM).waits


def test_a_paced_camera_delivers_nothing_before_it_is_due() -> None:
    with SimulatedSource(config.SimulatedSource(width=64, frame_lines=50, line_rate_hz=1000.0, lines=400), MM) as source:
        start = time.monotonic()
        for frame in source.frames():
            assert time.monotonic() - start >= frame.line_stop / 1000.0


def test_a_paced_camera_keeps_its_schedule_after_a_delay() -> None:
    with SimulatedSource(config.SimulatedSource(width=64, frame_lines=50, line_rate_hz=1000.0), MM) as source:
        frames = source.frames()
        next(frames)
        time.sleep(1.0)
        start = time.monotonic()
        for _ in range(19):
            next(frames)
        # they were due while nobody looked: a schedule begun anew would take 0.95 s for them
        assert time.monotonic() - start < 0.5


def test_a_camera_that_is_closed_while_a_frame_is_awaited_ends_at_once() -> None:
    with SimulatedSource(config.SimulatedSource(width=64, frame_lines=60_000, line_rate_hz=100.0), MM) as source:
        frames: list[Frame] = []
        reader = threading.Thread(target=lambda: frames.extend(source.frames()))
        reader.start()
    reader.join(timeout=60)
    assert not reader.is_alive()
    assert frames == []


def test_the_frames_show_the_strip_that_the_source_tells_the_truth_about() -> None:
    options = config.SimulatedSource(width=512, frame_lines=37, lines=400, seed=9, defects=DENSE)
    with SimulatedSource(options, MM) as source:
        lines = np.concatenate([frame.lines for frame in source.frames()])
    assert np.array_equal(lines, SteelStrip(512, 9, DENSE, MM).lines(0, 400))
    assert source.strip.planted(0, 400) == SteelStrip(512, 9, DENSE, MM).planted(0, 400)
