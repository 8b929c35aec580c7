"""The tiles of mode tiles, which may overlap."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.tiling import TileAxis

sizes = st.integers(1, 300)


lengths = st.integers(1, 2000)


@st.composite
def axes(draw: st.DrawFn) -> TileAxis:
    tile = draw(sizes)
    return TileAxis(tile, draw(st.integers(1, tile)))


@given(axis=axes(), length=lengths)
def test_the_last_tile_is_the_first_that_reaches_the_end(axis, length):
    ends = [index * axis.step + axis.tile for index in range(axis.count(length))]
    assert ends[-1] >= length
    assert all(end < length for end in ends[:-1])
    assert axis.covered(length) == ends[-1]


@given(axis=axes(), length=lengths)
def test_cores_cover_what_tiles_do_once_and_lie_within_their_tiles(axis, length):
    cores = [axis.core(index, length) for index in range(axis.count(length))]
    assert (cores[0][0], cores[-1][1]) == (0, axis.covered(length))
    assert all(before[1] == after[0] for before, after in itertools.pairwise(cores))
    for index, (start, stop) in enumerate(cores):
        assert index * axis.step <= start < stop <= index * axis.step + axis.tile


@given(axis=axes(), length=lengths, data=st.data())
def test_the_tiles_that_a_pixel_lies_in_are_those_that_begin_before_and_end_behind_it(axis, length, data):
    position = data.draw(st.integers(0, length - 1))
    starts = [index * axis.step for index in range(axis.count(length))]
    expected = [index for index, start in enumerate(starts) if start <= position < start + axis.tile]
    assert list(axis.touching(position, length)) == expected


@pytest.mark.parametrize("step", [0, 11])
def test_a_step_that_leaves_pixels_out_is_refused(step):
    with pytest.raises(ValueError, match="expected 1 to 10"):
        TileAxis(10, step)
