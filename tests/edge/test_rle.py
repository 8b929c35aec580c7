from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays

from edge.defects import BoxPx
from edge.tracking.rle import decode_columns, decode_runs, encode_columns, encode_runs, runs_in_box, severstal_rows

MASKS = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=24))


@given(MASKS)
def test_row_major_runs_decode_to_the_mask_they_were_made_from(mask):
    assert np.array_equal(decode_runs(encode_runs(mask), *mask.shape), mask)


@given(MASKS)
def test_column_major_text_decodes_to_the_mask_it_was_made_from(mask):
    assert np.array_equal(decode_columns(encode_columns(mask), *mask.shape), mask)


@given(MASKS)
def test_runs_are_as_few_as_can_be(mask):
    runs = encode_runs(mask)
    assert all(start + length < following for (start, length), (following, _) in itertools.pairwise(runs))


def test_severstal_counts_from_one_down_the_columns_and_goes_on_in_the_next():
    mask = np.zeros((4, 3), bool)
    mask[3, 0] = mask[0, 1] = mask[2, 2] = True
    assert encode_columns(mask) == "4 2 11 1"


def test_severstal_rows_are_one_for_each_class_that_occurs():
    mask = np.array([[0, 3], [1, 3]], np.uint8)
    assert list(severstal_rows("a.jpg", mask, 5)) == [("a.jpg", "2 1", 1), ("a.jpg", "3 2", 3)]


def test_runs_of_the_strip_become_runs_of_their_box():
    runs = np.array([[100, 7, 2], [101, 5, 1], [101, 7, 3]], np.int64)
    box = BoxPx(100, 102, 5, 10)
    expected = np.array([[0, 0, 1, 1, 0], [1, 0, 1, 1, 1]], bool)
    assert np.array_equal(decode_runs(runs_in_box(runs, box), 2, 5), expected)


@pytest.mark.parametrize(
    "runs", [((0, 3), (2, 1)), ((4, 9),), ((-1, 2),), ((1, 0),)], ids=["overlap", "beyond", "before", "empty"]
)
def test_runs_that_are_no_mask_are_refused(runs):
    with pytest.raises(ValueError, match="expected ascending runs"):
        decode_runs(runs, 2, 5)


@pytest.mark.parametrize("text", ["1", "1 2 3", "a b"])
def test_text_that_is_not_pairs_of_numbers_is_refused(text):
    with pytest.raises(ValueError, match="expected pairs"):
        decode_columns(text, 2, 5)
