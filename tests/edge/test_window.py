"""The window over the last lines of a run: whatever is cut out equals the run padded by reflection."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge.window import StripWindow, padded_columns, reflect


def run(lines: int, width: int) -> np.ndarray:
    return np.random.default_rng(lines * 1000 + width).integers(0, 256, (lines, width), np.uint8)


def filled(strip: np.ndarray, begin: int, capacity: int, portions: list[int]) -> StripWindow:
    window = StripWindow(strip.shape[1], capacity)
    window.start(begin)
    position = 0
    for portion in [*portions, *[capacity] * len(strip)]:
        window.append(strip[position : position + min(portion, capacity)])
        position = min(position + min(portion, capacity), len(strip))
    return window


@given(size=st.integers(1, 12), before=st.integers(0, 40), after=st.integers(0, 40), start=st.integers(-5, 50))
def test_reflection_is_that_of_numpy(size, before, after, start):
    values = np.arange(start, start + size)
    expected = np.pad(values, (before, after), mode="reflect")
    np.testing.assert_array_equal(reflect(np.arange(start - before, start + size + after), start, start + size), expected)


@given(
    lines=st.integers(1, 30),
    width=st.integers(1, 20),
    begin=st.integers(0, 100),
    portions=st.lists(st.integers(0, 30), max_size=10),
    top=st.integers(-50, 50),
    height=st.integers(1, 50),
    left=st.integers(-40, 40),
    columns=st.integers(1, 40),
)
def test_a_cut_of_an_ended_run_equals_the_run_padded_by_reflection(lines, width, begin, portions, top, height, left, columns):
    strip = run(lines, width)
    window = filled(strip, begin, 30, portions)
    window.end()
    padded = np.pad(strip, ((50, 100), (40, 80)), mode="reflect")
    cut = window.cut(begin + top, begin + top + height, left, left + columns)
    np.testing.assert_array_equal(cut, padded[50 + top : 50 + top + height, 40 + left : 40 + left + columns])


@given(
    lines=st.integers(1, 30),
    begin=st.integers(0, 100),
    portions=st.lists(st.integers(0, 30), max_size=10),
    top=st.integers(-50, 50),
    height=st.integers(1, 50),
)
def test_the_pieces_of_a_span_are_what_a_cut_of_it_holds(lines, begin, portions, top, height):
    window = filled(run(lines, 5), begin, 30, portions)
    window.end()
    cut = window.cut(begin + top, begin + top + height, 0, 5)
    pieces = sorted(window.pieces(begin + top, begin + top + height), key=lambda piece: piece[0].start)
    assert [rows.start for rows, _ in pieces] == [0, *(rows.stop for rows, _ in pieces[:-1])]
    np.testing.assert_array_equal(np.concatenate([part for _, part in pieces]), cut)


def test_pieces_that_are_not_reflected_are_views_and_end_where_the_ring_does():
    window = filled(run(50, 3), 0, 20, [10] * 5)
    pieces = window.pieces(32, 48)
    assert [rows for rows, _ in pieces] == [slice(0, 8), slice(8, 16)]
    assert np.shares_memory(*(window.pieces(30, 50)[0][1] for _ in range(2)))
    with pytest.raises(ValueError, match="expected later"):
        window.pieces(40, 51)


@given(begin=st.integers(0, 100), top=st.integers(-30, 0), known=st.integers(1, 80), bottom=st.integers(1, 60))
@example(begin=0, top=-5, known=5, bottom=5)
@example(begin=7, top=-5, known=6, bottom=6)
def test_a_cut_is_possible_as_soon_as_what_follows_no_longer_matters(begin, top, known, bottom):
    strip = run(80, 3)
    window = filled(strip[:known], begin, 100, [])
    assert window.can_cut(begin + top, begin + bottom) == (bottom <= known and -top < known)
    if window.can_cut(begin + top, begin + bottom):
        expected = np.pad(strip, ((30, 0), (0, 0)), mode="reflect")[30 + top : 30 + bottom]
        np.testing.assert_array_equal(window.cut(begin + top, begin + bottom, 0, 3), expected)
    else:
        with pytest.raises(ValueError, match="expected later"):
            window.cut(begin + top, begin + bottom, 0, 3)


@given(portions=st.lists(st.integers(0, 16), min_size=1, max_size=40))
def test_memory_is_bounded_and_the_last_lines_are_kept(portions):
    strip = run(sum(portions) or 1, 4)
    window = StripWindow(4, 16)
    window.start(0)
    position = 0
    for portion in portions:
        window.append(strip[position : position + portion])
        position += portion
        oldest = max(0, position - 16)
        if position:
            np.testing.assert_array_equal(window.cut(oldest, position, 0, 4), strip[oldest:position])
        if oldest:
            with pytest.raises(ValueError, match="the window holds the last 16"):
                window.cut(oldest - 1, position, 0, 4)
    assert window.capacity == 16


def test_a_cut_goes_into_the_array_that_it_is_given():
    window = filled(run(8, 5), 0, 8, [8])
    room = np.zeros((3, 9), np.uint8)
    assert window.cut(2, 5, -2, 7, out=room) is room
    np.testing.assert_array_equal(room, np.pad(run(8, 5), ((0, 0), (2, 2)), mode="reflect")[2:5])


def test_what_lies_beyond_the_end_is_unknown_until_the_run_ends():
    window = filled(run(8, 5), 0, 8, [8])
    assert not window.can_cut(4, 9)
    window.end()
    assert window.can_cut(4, 9)


def test_lines_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"got lines uint8 \(2, 6\), expected uint8 of 5 columns"):
        StripWindow(5, 8).append(np.zeros((2, 6), np.uint8))


def test_lines_after_the_end_are_refused():
    window = filled(run(8, 5), 0, 8, [8])
    window.end()
    with pytest.raises(ValueError, match="none after the run's end"):
        window.append(run(1, 5))


@given(width=st.integers(1, 500), halo=st.integers(0, 10), stride=st.sampled_from([1, 2, 4, 16]))
def test_a_padded_strip_has_whole_strides_between_its_halos(width, halo, stride):
    inside = padded_columns(width, halo * stride, stride) - 2 * halo * stride
    assert inside % stride == 0
    assert 0 <= inside - width < stride
