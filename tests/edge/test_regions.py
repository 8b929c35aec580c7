from __future__ import annotations

import functools
import itertools

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.segmenters import MaskRows
from edge.tracking.blocks import BLOCK_LINES, BlockCutter, GateRows
from edge.tracking.geometry import Moments
from edge.tracking.regions import RegionJoiner, Statistics, find_parts, find_pixels, merge_all

MANY = 10**9
UNHURRIED = settings(deadline=None)


def regions_of(
    mask: np.ndarray, confidence: np.ndarray, cuts: list[int], max_runs: int = MANY, **arguments
) -> list[tuple[int, Statistics]]:
    """(layer, statistics) of the regions of a mask that arrives in blocks cut at `cuts`."""
    joiner = RegionJoiner()
    known: dict[int, tuple[int, Statistics]] = {}
    ended: list[tuple[int, Statistics]] = []
    bounds = sorted({0, len(mask), *(cut for cut in cuts if cut < len(mask))})
    for start, stop in itertools.pairwise(bounds):
        parts = find_parts(start, find_pixels(mask[start:stop], confidence[start:stop]), **arguments)
        joined = joiner.join(parts)
        for gone, into in joined.merged:
            layer, statistics = known.pop(gone)
            known[into] = layer, known[into][1].merge(statistics, max_runs)
        for part, number in enumerate(joined.region):
            found = parts.statistics(part, max_runs)
            known[number] = parts.layer[part], known[number][1].merge(found, max_runs) if number in known else found
        ended += [known.pop(number) for number in joined.ended]
    ended += [known.pop(number) for number in joiner.cut()]
    assert known == {}
    return sorted(ended, key=lambda entry: (entry[1].first, entry[0]))


def whole_regions(mask: np.ndarray, confidence: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """(class, mask) of the regions that OpenCV finds on the whole mask, in the order of their first pixels."""
    found = []
    for layer in np.unique(mask[mask > 0]).tolist():
        count, labels, stats, _ = cv2.connectedComponentsWithStats((mask == layer).astype(np.uint8), connectivity=8)
        for label in range(1, count):
            region = labels == label
            assert region.sum() == stats[label, cv2.CC_STAT_AREA]
            found.append((layer, region))
    return sorted(found, key=lambda entry: (tuple(np.argwhere(entry[1])[0]), entry[0]))


@st.composite
def masks(draw):
    height, width = draw(st.integers(1, 90)), draw(st.integers(1, 40))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    classes = draw(st.integers(1, 4))
    mask = generator.integers(1, classes + 1, (height, width)).astype(np.uint8)
    mask[generator.random((height, width)) < draw(st.sampled_from([0.2, 0.5, 0.7, 0.9]))] = 0
    confidence = generator.integers(1, 256, (height, width)).astype(np.uint8)
    return mask, confidence


@UNHURRIED
@given(masks())
def test_the_pixels_found_are_those_that_are_not_0_in_the_order_of_lines(drawn):
    mask, confidence = drawn
    pixels = find_pixels(mask, confidence)
    assert np.array_equal(pixels.place, np.flatnonzero(mask))
    assert np.array_equal(pixels.layer, mask[mask > 0])
    assert np.array_equal(pixels.confidence, confidence[mask > 0])


def test_a_region_that_winds_through_a_whole_block_is_one():
    """Comb, spiral and staircase: what touches only far from where it begins."""
    comb = np.zeros((BLOCK_LINES, 201), np.uint8)
    comb[:-1, ::2] = 1
    comb[-1] = 1
    serpentine = np.zeros((BLOCK_LINES, 60), np.uint8)
    serpentine[::2] = 1
    serpentine[1::4, -1] = serpentine[3::4, 0] = 1
    serpentine[-1] = 0
    spiral = np.zeros((41, 41), np.uint8)
    line, column, step = 0, -1, (0, 1)
    for length in [41, *(length for length in range(40, 1, -2) for _ in range(2))]:
        for _ in range(length):
            line, column = line + step[0], column + step[1]
            spiral[line, column] = 1
        step = (step[1], -step[0])
    for mask in (comb, serpentine, spiral):
        for shown in (mask, mask[::-1], mask[:, ::-1]):
            assert len(find_parts(0, find_pixels(shown, shown))) == cv2.connectedComponents(shown, connectivity=8)[0] - 1 == 1


@UNHURRIED
@given(masks(), st.lists(st.integers(1, 89), max_size=12))
def test_regions_joined_over_any_cuts_are_those_of_the_whole_mask(drawn, cuts):
    mask, confidence = drawn
    found, expected = regions_of(mask, confidence, cuts), whole_regions(mask, confidence)

    assert [layer for layer, _ in found] == [layer for layer, _ in expected]
    for (_, statistics), (_, region) in zip(found, expected, strict=True):
        lines, columns = np.nonzero(region)
        assert statistics.moments == Moments(
            len(lines), lines.sum(), columns.sum(), (lines**2).sum(), (lines * columns).sum(), (columns**2).sum()
        )
        box = statistics.box
        assert (box.line_start, box.line_stop) == (lines.min(), lines.max() + 1)
        assert (box.column_start, box.column_stop) == (columns.min(), columns.max() + 1)
        assert statistics.first == (lines[0], columns[0])
        assert statistics.confidence_sum == confidence[region].sum(dtype=np.int64)
        assert statistics.confidence_peak == confidence[region].max()
        drawn_back = np.zeros_like(region)
        for line, column, length in statistics.runs.tolist():
            drawn_back[line, column : column + length] = True
        assert np.array_equal(drawn_back, region)
        assert statistics.run_count == len(statistics.runs)


@UNHURRIED
@given(masks(), st.lists(st.integers(1, 89), max_size=12), st.integers(0, 12))
def test_of_too_many_runs_the_first_of_the_strip_are_kept_whatever_the_cuts(drawn, cuts, max_runs):
    everything = regions_of(*drawn, [])
    capped = regions_of(*drawn, cuts, max_runs)
    for (_, whole), (_, some) in zip(everything, capped, strict=True):
        assert some.runs.tolist() == whole.runs[:max_runs].tolist()
        assert some.run_count == whole.run_count


@UNHURRIED
@given(masks(), st.integers(0, 20), st.integers(5, 40))
def test_pixels_between_the_judged_columns_of_their_line_are_counted(drawn, left, right):
    mask, confidence = drawn
    lefts = left + np.arange(len(mask)) % 3
    rights = np.full(len(mask), right)
    columns = np.arange(mask.shape[1])
    judged = (columns >= lefts[:, None]) & (columns < rights[:, None])
    found = regions_of(mask, confidence, [], judged=(lefts, rights))
    assert [entry[1].inside for entry in found] == [(region & judged).sum() for _, region in whole_regions(mask, confidence)]


@UNHURRIED
@given(masks(), st.integers(0, 30))
def test_statistics_add_up_to_the_same_in_any_order(drawn, max_runs):
    found = [statistics for _, statistics in regions_of(*drawn, [], max_runs)[:12]]
    for one, other in itertools.pairwise(found):
        assert one.merge(other, max_runs).state() == other.merge(one, max_runs).state()
    if found:
        one_by_one = functools.reduce(lambda sum_so_far, other: sum_so_far.merge(other, max_runs), reversed(found))
        assert merge_all(found, max_runs).state() == one_by_one.state()


@pytest.mark.data
def test_regions_of_a_real_strip_are_those_of_its_whole_mask(shared_data):
    mask = cv2.imread(str(shared_data / "strips" / "neu_dense_mask.png"), cv2.IMREAD_UNCHANGED)
    found = regions_of(mask, mask, list(range(0, len(mask), BLOCK_LINES)), max_runs=0)
    expected = []
    for layer in (1, 2, 3):
        _, _, stats, centroids = cv2.connectedComponentsWithStats((mask == layer).astype(np.uint8), connectivity=8)
        rows = np.column_stack([stats, centroids])[1:].tolist()
        expected += [(layer, area, top, left, height, width, y, x) for left, top, width, height, area, x, y in rows]
    described = [
        (layer, area, box.line_start, box.column_start, box.line_stop - box.line_start, box.column_stop - box.column_start)
        for layer, box, area in ((layer, region.box, region.moments.area) for layer, region in found)
    ]
    centroids = {(s.first, layer): (s.moments.line / s.moments.area, s.moments.column / s.moments.area) for layer, s in found}
    assert sorted(described) == sorted(row[:6] for row in expected)
    assert sorted(centroids.values()) == pytest.approx(np.array(sorted(row[6:] for row in expected)))


def test_a_u_is_one_region_from_the_seam_on_where_its_legs_meet():
    mask = np.zeros((12, 9), np.uint8)
    mask[1:10, 1] = mask[3:10, 7] = mask[9, 1:8] = 1
    joiner = RegionJoiner()
    legs = joiner.join(find_parts(0, find_pixels(mask[:6], mask[:6])))
    assert legs.region == (1, 2)
    bottom = joiner.join(find_parts(6, find_pixels(mask[6:9], mask[6:9])))
    assert (bottom.region, bottom.merged, bottom.ended) == ((1, 2), (), ())
    rest = joiner.join(find_parts(9, find_pixels(mask[9:], mask[9:])))
    assert (rest.region, rest.merged, rest.ended) == ((1,), ((2, 1),), (1,))


def test_corners_touch_across_a_seam_and_classes_do_not():
    mask = np.array([[0, 1, 0, 0, 2], [1, 0, 0, 1, 0]], np.uint8)
    found = regions_of(mask, mask, [1])
    assert [(layer, statistics.moments.area) for layer, statistics in found] == [(1, 2), (2, 1), (1, 1)]


def test_sums_stay_exact_at_the_widest_strip_and_the_farthest_line():
    first, width = 10**12, 16384
    mask = np.ones((BLOCK_LINES, width), np.uint8)
    moments = find_parts(first, find_pixels(mask, mask)).statistics(0, 1).moments
    pixels = BLOCK_LINES * width
    assert moments.area == pixels
    assert moments.column_column == BLOCK_LINES * sum(column * column for column in range(width))
    assert moments.line_line == width * sum(line * line for line in range(first, first + BLOCK_LINES))
    assert moments.line_column == sum(range(first, first + BLOCK_LINES)) * sum(range(width))


def test_the_gate_score_is_the_highest_of_the_tiles_that_the_pixels_lie_in():
    mask = np.zeros((8, 40), np.uint8)
    mask[0, 2:5] = 1
    mask[2:7, 8:22] = 1
    mask[4, 38] = 2
    upper = GateRows(0, 4, np.array([0.1, 0.2, 0.9, 0.3], np.float32), 10)
    lower = GateRows(4, 8, np.array([0.8, 0.2, 0.4, 0.7], np.float32), 10)
    found = regions_of(mask, mask, [], gates=(upper, lower))
    assert [statistics.gate_score for _, statistics in found] == pytest.approx([0.1, 0.9, 0.7])


@UNHURRIED
@given(masks(), st.lists(st.integers(1, 89), max_size=6))
def test_statistics_survive_being_written_and_read(drawn, cuts):
    for _, statistics in regions_of(*drawn, cuts, 5)[:10]:
        assert Statistics.restored(statistics.state()).state() == statistics.state()


@UNHURRIED
@given(st.integers(0, 2**32 - 1), st.integers(0, 200), st.lists(st.integers(1, 90), min_size=1, max_size=40), st.booleans())
def test_blocks_are_the_same_planes_however_the_rows_arrive(seed, first_line, portions, with_lines):
    height, width = sum(portions), 5
    generator = np.random.default_rng(seed)
    mask = (generator.random((height, width)) < 0.02).astype(np.uint8)
    confidence, lines = mask * 200, generator.integers(0, 256, (height, width), dtype=np.uint8)

    cutter = BlockCutter(first_line)
    blocks, row = [], 0

    def lines_of(start, stop):
        return lines[start - first_line : stop - first_line]

    def take(block):
        planes = [np.zeros((block.line_stop - block.first_line, width), np.uint8)] * 2
        if block.mask is not None:
            planes = [block.mask.copy(), block.confidence.copy()]
            seen = block.mask.any(axis=1)
            if with_lines:
                # What matters of the image is there: the rows that have foreground.
                here = slice(block.first_line - first_line, block.line_stop - first_line)
                assert np.array_equal(block.lines[seen], lines[here][seen])
        blocks.append((block.first_line, block.line_stop, *planes))

    for portion in portions:
        here = slice(row, row + portion)
        rows = MaskRows(first_line + row, mask[here], confidence[here])
        for block in cutter.push(rows, lines_of if with_lines else None):
            take(block)
        row += portion
    rest = cutter.cut()
    if rest is not None:
        take(rest)
    assert [block[0] for block in blocks[1:]] == [block[1] for block in blocks[:-1]]
    assert all(block[1] % BLOCK_LINES == 0 for block in blocks[:-1])
    assert all(block[1] - block[0] <= BLOCK_LINES for block in blocks)
    assert np.array_equal(np.concatenate([block[2] for block in blocks]), mask)
    assert np.array_equal(np.concatenate([block[3] for block in blocks]), confidence)
