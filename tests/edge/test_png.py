"""A PNG written row by row is the image, whatever the portions, as OpenCV's decoder reads it."""

from __future__ import annotations

import io
import itertools

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edge.outputs.png import PngWriter, beyond_opencv


def written(image: np.ndarray, cuts: list[int]) -> np.ndarray:
    file = io.BytesIO()
    png = PngWriter(file, image.shape[1], 1 if image.ndim == 2 else 3)
    bounds = [0, *sorted(cut % (len(image) + 1) for cut in cuts), len(image)]
    for start, stop in itertools.pairwise(bounds):
        png.write(image[start:stop])
    png.finish()
    decoded = cv2.imdecode(np.frombuffer(file.getvalue(), np.uint8), cv2.IMREAD_UNCHANGED)
    return decoded if image.ndim == 2 else decoded[:, :, ::-1]


@given(
    image=arrays.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40))),
    cuts=st.lists(st.integers(0, 100), max_size=5),
)
def test_a_grey_image_comes_back_as_it_was(image: np.ndarray, cuts: list[int]) -> None:
    assert np.array_equal(written(image, cuts), image)


@given(
    image=arrays.arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20), st.just(3))),
    cuts=st.lists(st.integers(0, 100), max_size=5),
)
def test_a_colour_image_comes_back_as_it_was(image: np.ndarray, cuts: list[int]) -> None:
    assert np.array_equal(written(image, cuts), image)


def test_rows_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected rows of 4 x 1 uint8, got uint8 \(2, 5\)"):
        PngWriter(io.BytesIO(), 4, 1).write(np.zeros((2, 5), np.uint8))


def test_an_image_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="a PNG has 1 to 2147483647 lines, got 0"):
        PngWriter(io.BytesIO(), 4, 1).finish()


def test_what_opencv_would_not_read_is_known() -> None:
    assert not beyond_opencv(2**20, 1024)
    assert beyond_opencv(2**20 + 1, 1)
    assert beyond_opencv(2**20, 1025)
