"""The tile grid of the cascade."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.tiling import TileGrid

sizes = st.integers(1, 300)


@given(lines=sizes, columns=sizes, width=st.integers(1, 2000))
def test_the_tiles_of_a_row_cover_the_strip_once(lines, columns, width):
    grid = TileGrid(lines, columns, width)
    spans = [grid.column_span(tile) for tile in range(grid.tiles_across)]
    assert spans[0][0] == 0
    assert spans[-1][1] == width
    assert all(before[1] == after[0] for before, after in itertools.pairwise(spans))
    assert all(0 < stop - start <= columns for start, stop in spans)
    assert all(start % columns == 0 for start, _ in spans)


@given(columns=sizes, width=st.integers(1, 2000))
def test_a_row_is_as_wide_as_whole_tiles(columns, width):
    grid = TileGrid(7, columns, width)
    assert grid.covered_columns % columns == 0
    assert 0 <= grid.covered_columns - width < columns


def test_a_tile_beyond_the_row_is_refused():
    with pytest.raises(ValueError, match="tiles 0 to 2, got 3"):
        TileGrid(10, 10, 25).column_span(3)


def test_an_empty_grid_is_refused():
    with pytest.raises(ValueError, match="at least one line"):
        TileGrid(0, 10, 25)
