"""What a tile goes through before the engine is what OpenCV does to it alone."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from edge.errors import ConfigError
from edge.manifest import Clahe, EngineInput, Resize
from edge.preparation import Preparation, prepared_size

SMALL = EngineInput(tile_height=24, tile_width=40)


@pytest.fixture
def row() -> np.ndarray:
    """A tile row; tiles are views into it, with other pixels at either side."""
    return np.random.default_rng(4).integers(0, 256, (60, 300), np.uint8)


def prepared(preparation: Preparation, tile: np.ndarray, size: tuple[int, int] = (24, 40)) -> np.ndarray:
    batch = np.full((3, 1, *size), 7, np.uint8)
    preparation.apply(tile, batch[1, 0])
    assert (batch[[0, 2]] == 7).all()
    return batch[1, 0]


def test_a_tile_of_the_engine_s_size_goes_in_as_it_is(row):
    np.testing.assert_array_equal(prepared(Preparation((), SMALL), row[3:27, 50:90]), row[3:27, 50:90])


def test_clahe_sees_nothing_but_the_tile(row):
    step = Clahe(clip_limit=10.0, grid_rows=2, grid_columns=4)
    alone = np.ascontiguousarray(row[:24, 100:140])
    expected = cv2.createCLAHE(clipLimit=10.0, tileGridSize=(4, 2)).apply(alone)
    np.testing.assert_array_equal(prepared(Preparation((step,), SMALL), row[:24, 100:140]), expected)
    assert (expected != cv2.createCLAHE(clipLimit=10.0, tileGridSize=(2, 4)).apply(alone)).any()


@pytest.mark.parametrize(
    ("method", "interpolation"), [("linear", cv2.INTER_LINEAR), ("area", cv2.INTER_AREA), ("nearest", cv2.INTER_NEAREST)]
)
def test_a_resize_brings_a_tile_of_any_size_to_the_engine_s(row, method, interpolation):
    preparation = Preparation((Resize(method=method),), SMALL)
    for tile in (row[:50, 10:130], row[:20, 200:290], row[:50, 30:150], row[:24, :40]):
        np.testing.assert_array_equal(prepared(preparation, tile), cv2.resize(tile, (40, 24), interpolation=interpolation))


def test_steps_come_in_the_manifest_s_order_each_at_the_size_that_it_gets(row):
    clahe, resize = Clahe(clip_limit=4.0), Resize()
    tile = np.ascontiguousarray(row[:, 20:200])
    equalizer = cv2.createCLAHE(clipLimit=4.0, tileGridSize=(8, 8))
    before = cv2.resize(equalizer.apply(tile), (40, 24))
    after = equalizer.apply(cv2.resize(tile, (40, 24)))
    np.testing.assert_array_equal(prepared(Preparation((clahe, resize), SMALL), row[:, 20:200]), before)
    np.testing.assert_array_equal(prepared(Preparation((resize, clahe), SMALL), row[:, 20:200]), after)
    assert (before != after).any()


def test_the_strip_is_averaged_before_anything_else(row):
    halved = EngineInput(tile_height=24, tile_width=40, reduce=2)
    averaged = cv2.resize(row[:48, :80], (40, 24), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(prepared(Preparation((), halved), row[:48, :80]), averaged)
    averaged = cv2.resize(row[:60, :300], (150, 30), interpolation=cv2.INTER_AREA)
    both = prepared(Preparation((Resize(),), halved), row)
    np.testing.assert_array_equal(both, cv2.resize(averaged, (40, 24), interpolation=cv2.INTER_LINEAR))


def test_a_tile_is_left_as_it_is_and_tiles_do_not_depend_on_the_ones_before(row):
    preparation = Preparation((Clahe(clip_limit=40.0), Resize(), Clahe(clip_limit=2.0)), SMALL)
    whole = row.copy()
    first = prepared(preparation, row[:, :150]).copy()
    prepared(preparation, row[:, 150:])
    prepared(preparation, row[:10, 7:])
    np.testing.assert_array_equal(prepared(preparation, row[:, :150]), first)
    np.testing.assert_array_equal(row, whole)


def test_a_size_that_cannot_be_is_refused(row):
    with pytest.raises(ConfigError, match=r"got a tile of 60 x 300 px; expected 24 x 40 px times 1"):
        prepared(Preparation((Clahe(clip_limit=1.0),), SMALL), row)
    thirds = EngineInput(tile_height=24, tile_width=40, reduce=3)
    assert prepared_size((), thirds, (72, 120)) == (24, 40)
    assert prepared_size((), thirds, (72, 121)) is None
    assert prepared_size((Resize(),), thirds, (72, 121)) is None
