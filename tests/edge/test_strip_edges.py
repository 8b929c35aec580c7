from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edge.tracking.strip_edges import find_strip_edges

LEVEL = 40


def line(left: int, right: int, width: int = 200, steel: int = 120, background: int = 5) -> np.ndarray:
    grey = np.full(width, background, np.uint8)
    grey[left:right] = steel
    return grey


@given(st.integers(0, 80), st.integers(120, 200), st.integers(LEVEL, 255), st.integers(0, LEVEL - 1))
def test_a_clean_step_is_found_at_its_column_whatever_the_contrast(left, right, steel, background):
    # Within half a window of the line's end its outermost pixel has the majority.
    left, right = (0 if left < 8 else left), (200 if right > 192 else right)
    found = find_strip_edges(line(left, right, steel=steel, background=background)[None], LEVEL)
    assert [edge.tolist() for edge in found] == [[left], [right]]


def test_each_line_has_its_own_edges():
    lines = np.stack([line(20 + row, 180 - row) for row in range(10)])
    left, right = find_strip_edges(lines, LEVEL)
    assert left.tolist() == list(range(20, 30))
    assert right.tolist() == list(range(180, 170, -1))


def test_dust_in_the_background_and_dead_pixels_do_not_move_an_edge():
    grey = line(50, 150)
    grey[20:27] = 255
    grey[170] = 255
    left, right = find_strip_edges(grey[None], LEVEL)
    assert (left[0], right[0]) == (50, 150)


def test_a_dark_defect_inside_the_strip_is_no_edge():
    grey = line(50, 150)
    grey[70:130] = 0
    left, right = find_strip_edges(grey[None], LEVEL)
    assert (left[0], right[0]) == (50, 150)


def test_a_line_without_steel_has_no_judged_columns():
    left, right = find_strip_edges(np.zeros((3, 64), np.uint8), LEVEL)
    assert left.tolist() == right.tolist() == [0, 0, 0]


def test_steel_that_fills_the_view_reaches_from_side_to_side():
    left, right = find_strip_edges(np.full((2, 64), 90, np.uint8), LEVEL)
    assert left.tolist() == [0, 0]
    assert right.tolist() == [64, 64]


@given(st.integers(0, 2**32 - 1), st.integers(1, 9))
def test_a_line_is_judged_by_itself(seed, cut):
    lines = np.random.default_rng(seed).integers(0, 256, (10, 70), dtype=np.uint8)
    whole = find_strip_edges(lines, 128)
    parts = [find_strip_edges(part, 128) for part in (lines[:cut], lines[cut:])]
    for edge, pieces in zip(whole, zip(*parts, strict=True), strict=True):
        assert edge.tolist() == np.concatenate(pieces).tolist()
