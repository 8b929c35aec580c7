from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.tracking.geometry import Moments, ellipse_of, near_pairs, pairs_of_ranges


def moments_of(mask: np.ndarray, first_line: int = 0) -> Moments:
    # Python's own integers where 64 bits might not do.
    lines, columns = (axis.astype(object if first_line else np.int64) for axis in np.nonzero(mask))
    lines = lines + first_line
    sums = (lines.sum(), columns.sum(), (lines * lines).sum(), (lines * columns).sum(), (columns * columns).sum())
    return Moments(len(lines), *(int(value) for value in sums))


def ellipse_mask(length: float, width: float, angle_deg: float, mm_per_line: float, mm_per_column: float) -> np.ndarray:
    reach = length / 2 / min(mm_per_line, mm_per_column) + 2
    lines, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    along, across = lines * mm_per_line, columns * mm_per_column
    turn = math.radians(angle_deg)
    major = along * math.cos(turn) + across * math.sin(turn)
    minor = -along * math.sin(turn) + across * math.cos(turn)
    return (2 * major / length) ** 2 + (2 * minor / width) ** 2 <= 1


@settings(deadline=None)
@given(st.floats(10, 20), st.floats(1.5, 4), st.floats(-89, 90), st.sampled_from([(1.0, 1.0), (0.5, 1.0), (0.8, 0.5)]))
def test_an_ellipse_of_known_axes_and_angle_is_recovered_in_mm(width, aspect_ratio, angle, scale):
    length = width * aspect_ratio
    found = ellipse_of(moments_of(ellipse_mask(length, width, angle, *scale)), *scale)

    # A rim is off by at most half a pixel's diagonal at both ends of an axis. (A tip narrower than a few pixels can be off
    # by more: at 10 across, it is not.)
    pixel = math.hypot(*scale)
    assert found.length_mm == pytest.approx(length, abs=pixel)
    assert found.width_mm == pytest.approx(width, abs=pixel)
    # The major axis turns by no more than its end's half pixel, told apart from the minor one by 1 - 1 / aspect².
    turned = (found.orientation_deg - angle + 90) % 180 - 90
    assert abs(turned) <= math.degrees(pixel / length) / (1 - aspect_ratio**-2)


@pytest.mark.parametrize(
    ("slope", "expected"),
    [((1, 0), 0.0), ((1, 1), 45.0), ((0, 1), 90.0), ((1, -1), -45.0)],
    ids=["along", "right", "across", "left"],
)
def test_orientation_is_against_the_strips_direction_and_positive_towards_higher_columns(slope, expected):
    mask = np.zeros((41, 41), bool)
    for step in range(-20, 21):
        mask[20 + step * slope[0], 20 + step * slope[1]] = True
    assert ellipse_of(moments_of(mask), 1.0, 1.0).orientation_deg == pytest.approx(expected)


def test_across_is_90_degrees_from_either_side():
    assert ellipse_of(Moments(1, 0, 0, 0, -1, 10**18), 1.0, 1.0).orientation_deg == 90.0


def test_a_single_pixel_has_a_pixels_extent():
    found = ellipse_of(Moments(1, 5, 7, 25, 35, 49), 0.25, 0.25)
    assert found.length_mm == pytest.approx(4 * math.sqrt(1 / 12) * 0.25)
    assert found.aspect_ratio == 1.0


def test_a_straight_scratch_has_the_ellipse_axes_of_a_rectangle():
    # Variance of a uniform length n is n²/12: an axis of 4 n / sqrt(12).
    found = ellipse_of(moments_of(np.ones((300, 2), bool)), 0.5, 0.25)
    assert found.length_mm == pytest.approx(4 * 150 / math.sqrt(12))
    assert found.width_mm == pytest.approx(4 * 0.5 / math.sqrt(12))


@given(st.integers(0, 2**40), st.integers(0, 2**32 - 1))
def test_the_distance_from_the_strips_start_changes_no_bit(first_line, seed):
    mask = np.random.default_rng(seed).random((9, 7)) < 0.4
    mask[4, 3] = True
    near = moments_of(mask)
    assert near.moved_along(first_line) == moments_of(mask, first_line)
    assert ellipse_of(near, 0.25, 0.3) == ellipse_of(near.moved_along(first_line), 0.25, 0.3)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(-3, 9)), max_size=9))
def test_pairs_of_ranges_are_all_of_them_in_order(ranges):
    low = np.array([a for a, _ in ranges], np.int64)
    high = np.array([b for _, b in ranges], np.int64)
    index, value = pairs_of_ranges(low, high)
    assert list(zip(index.tolist(), value.tolist(), strict=True)) == [
        (i, v) for i, (a, b) in enumerate(ranges) for v in range(a, b)
    ]


BOX = st.tuples(st.integers(0, 40), st.integers(1, 12), st.integers(0, 40), st.integers(1, 12), st.integers(1, 3))


@given(st.lists(BOX, max_size=14), st.integers(0, 8), st.integers(0, 8))
def test_near_pairs_are_those_that_a_comparison_of_all_boxes_finds(drawn, along, across):
    boxes = np.array([(a, a + h, c, c + w) for a, h, c, w, _ in drawn], np.int64).reshape(-1, 4)
    kind = np.array([k for *_, k in drawn], np.int64)
    expected = set()
    for i in range(len(boxes)):
        for j in range(i):
            lines = max(boxes[i, 0] - boxes[j, 1], boxes[j, 0] - boxes[i, 1])
            columns = max(boxes[i, 2] - boxes[j, 3], boxes[j, 2] - boxes[i, 3])
            if kind[i] == kind[j] and lines <= along and columns <= across:
                expected.add((j, i))
    pairs = list(zip(*(indices.tolist() for indices in near_pairs(kind, boxes, along, across)), strict=True))
    assert {(min(pair), max(pair)) for pair in pairs} == expected
    assert len(pairs) == len(expected)
