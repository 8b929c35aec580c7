"""Rectangles over alarmed cells: all are covered, sizes are few, and few pixels are computed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.segmenters.cover import SMALLEST_PX, Cover, Rectangle, side_lengths

cells = st.sampled_from([8, 16, 32, 48, 256])
halos = st.sampled_from([0, 4, 16, 80])


@st.composite
def bands(draw: st.DrawFn) -> tuple[Cover, np.ndarray, int, int]:
    """A cover, alarmed cells, the side of a cell and the halo."""
    rows, columns, cell, halo = draw(st.integers(1, 8)), draw(st.integers(1, 40)), draw(cells), draw(halos)
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    alarmed = rng.random((rows, columns)) < draw(st.sampled_from([0.0, 0.02, 0.1, 0.4, 1.0]))
    return cover_of(rows, columns, cell, halo), alarmed, cell, halo


def cover_of(rows: int, columns: int, cell: int = 32, halo: int = 80) -> Cover:
    heights, widths = side_lengths(cell, rows, rows), side_lengths(cell, 2 * rows, columns)
    return Cover(rows, columns, cell_lines=cell, cell_columns=cell, halo=halo, heights=heights, widths=widths)


def pixels(rectangles: list[Rectangle], cell: int, halo: int) -> int:
    return sum((each.rows * cell + 2 * halo) * (each.columns * cell + 2 * halo) for each in rectangles)


def held(rectangles: list[Rectangle], shape: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    for each in rectangles:
        mask[each.row : each.row + each.rows, each.column : each.column + each.columns] = True
    return mask


def band(*rows: str) -> np.ndarray:
    return np.array([[cell == "#" for cell in row] for row in rows])


@given(bands())
def test_every_alarmed_cell_is_covered_by_rectangles_within_the_band(case):
    cover, alarmed, *_ = case
    rectangles = cover.rectangles(alarmed)
    assert held(rectangles, alarmed.shape)[alarmed].all()
    for each in rectangles:
        assert 0 <= each.row <= each.row + each.rows <= alarmed.shape[0]
        assert 0 <= each.column <= each.column + each.columns <= alarmed.shape[1]
        assert alarmed[each.row : each.row + each.rows, each.column : each.column + each.columns].any()


@given(bands())
def test_rectangles_have_the_sizes_of_the_set(case):
    cover, alarmed, cell, _ = case
    rows, columns = alarmed.shape
    for each in cover.rectangles(alarmed):
        assert each.rows in side_lengths(cell, rows, rows)
        assert each.columns in side_lengths(cell, 2 * rows, columns)


@given(bands())
def test_a_cover_is_never_dearer_than_one_crop_per_alarmed_cell(case):
    cover, alarmed, cell, halo = case
    rows, columns = alarmed.shape
    alone = Rectangle(side_lengths(cell, rows, rows)[0], side_lengths(cell, 2 * rows, columns)[0], 0, 0)
    assert pixels(cover.rectangles(alarmed), cell, halo) <= alarmed.sum() * pixels([alone], cell, halo)


@given(bands())
def test_a_cover_depends_on_the_alarmed_cells_alone(case):
    cover, alarmed, cell, halo = case
    fresh = cover_of(*alarmed.shape, cell, halo).rectangles(alarmed)
    cover.rectangles(~alarmed)
    assert cover.rectangles(alarmed) == fresh
    assert fresh == sorted(fresh)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.05, 0.15, 0.3]), halos)
def test_a_cover_is_as_cheap_as_the_best_partition_of_the_columns(seed, share, halo):
    """Of all ways to cut a band of two rows into stretches of columns, none with these rectangles is cheaper."""
    alarmed = np.random.default_rng(seed).random((2, 9)) < share
    columns = np.flatnonzero(alarmed.any(axis=0))
    costs = []
    for cuts in itertools.product([False, True], repeat=max(0, len(columns) - 1)):
        parts = np.split(columns, np.flatnonzero(cuts) + 1) if len(columns) else []
        costs.append(sum(cost_of(alarmed[:, part[0] : part[-1] + 1], halo) for part in parts))
    assert pixels(cover_of(2, 9, 32, halo).rectangles(alarmed), 32, halo) <= min(costs)


def cost_of(stretch: np.ndarray, halo: int) -> float:
    """Of one stretch of two rows: one rectangle as high as needed, or one for each row; at most four cells wide."""
    width = next((side for side in (1, 2, 4) if side >= stretch.shape[1]), None)
    if width is None:
        return np.inf
    rows = int(stretch.any(axis=1).sum())
    return (width * 32 + 2 * halo) * min(rows * 32 + 2 * halo, rows * (32 + 2 * halo))


def test_cells_that_touch_share_a_rectangle_and_distant_ones_do_not():
    rectangles = cover_of(4, 30).rectangles(
        band(
            "..............................",
            ".##......................#....",
            ".##...........................",
            "..............................",
        )
    )
    assert rectangles == [Rectangle(1, 1, 1, 25), Rectangle(2, 2, 1, 1)]


def test_near_cells_share_a_rectangle_where_its_pixels_are_fewer_than_both_halos():
    # apart: 2 * (32 + 160)^2 = 73728 px, together (32 + 160) * (128 + 160) = 55296 px, four cells farther 172800 px
    assert cover_of(1, 30).rectangles(band("#.#" + "." * 27)) == [Rectangle(1, 1, 0, 0), Rectangle(1, 1, 0, 2)]
    assert cover_of(4, 30).rectangles(band("#.#" + "." * 27, *["." * 30] * 3)) == [Rectangle(1, 4, 0, 0)]
    assert cover_of(4, 30, halo=0).rectangles(band("#.#" + "." * 27, *["." * 30] * 3)) == [
        Rectangle(1, 1, 0, 0),
        Rectangle(1, 1, 0, 2),
    ]


def test_a_long_streak_is_cut_into_the_widest_rectangles():
    assert cover_of(4, 24).rectangles(band("#" * 24, *["." * 24] * 3)) == [
        Rectangle(1, 8, 0, 0),
        Rectangle(1, 8, 0, 8),
        Rectangle(1, 8, 0, 16),
    ]


def test_a_clean_band_has_no_rectangle():
    assert cover_of(8, 128).rectangles(np.zeros((8, 128), bool)) == []


@given(cells, st.integers(1, 64), st.integers(1, 300))
def test_sides_rise_and_end_with_the_longest_that_there_is(cell, most, across):
    sides = side_lengths(cell, most, across)
    assert sides == tuple(sorted(set(sides)))
    assert sides[-1] == min(most, across)
    assert sides[0] == min(sides[-1], max(1, SMALLEST_PX // cell))


@pytest.mark.parametrize(("cell", "expected"), [(32, (1, 2, 4, 8)), (16, (2, 4, 8)), (256, (1, 2, 4, 8)), (8, (4, 8))])
def test_sides_double_from_a_cell_or_32_px(cell, expected):
    assert side_lengths(cell, 8, 100) == expected
