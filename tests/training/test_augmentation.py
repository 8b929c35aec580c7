from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.augmentation import cut, mosaic, relight, resize, turn
from training.recipe import Augmentation

seeds = st.integers(0, 2**32 - 1)


def example(lines: int = 40, columns: int = 50) -> tuple[np.ndarray, np.ndarray]:
    """Every grey level tells the class that belongs to it."""
    mask = np.random.default_rng(1).integers(0, 4, (lines, columns)).astype(np.uint8)
    return mask * 60, mask


@settings(max_examples=50, deadline=None)
@given(seeds, st.integers(8, 90), st.integers(4, 60), st.integers(4, 60))
def test_image_and_mask_stay_together_however_they_are_cut_and_turned(seed, size, lines, columns):
    image, mask = turn(cut(example(lines, columns), size, np.random.default_rng(seed)), np.random.default_rng(seed))
    assert image.shape == mask.shape == (size, size)
    np.testing.assert_array_equal(image, mask * 60)


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_a_mosaic_shows_a_corner_of_each_of_four_images(seed):
    parts = [(np.full((40, 40), 50 * n, np.uint8), np.full((40, 40), n, np.uint8)) for n in range(4)]
    image, mask = mosaic(parts, 32, np.random.default_rng(seed))
    assert [mask[0, 0], mask[0, -1], mask[-1, 0], mask[-1, -1]] == [0, 1, 2, 3]
    np.testing.assert_array_equal(image, mask * 50)


@given(seeds)
@settings(max_examples=30, deadline=None)
def test_a_resized_mask_holds_no_class_that_was_not_there(seed):
    image, mask = resize(example(), 1.5, np.random.default_rng(seed))
    assert image.shape == mask.shape
    assert 40 / 1.51 <= len(image) <= 40 * 1.51
    assert set(np.unique(mask)) <= {0, 1, 2, 3}


def test_without_any_limit_light_stays_as_it_is():
    image, _ = example()
    nothing = Augmentation(gain=0, offset=0, gamma=0, noise=0, column_noise=0)
    for seed in range(8):
        np.testing.assert_array_equal(relight(image, nothing, np.random.default_rng(seed)), image)


def test_brightness_changes_by_at_most_its_limit():
    image = np.full((64, 64), 120, np.uint8)
    limits = Augmentation(gain=0, offset=20, gamma=0, noise=0, column_noise=0)
    changes = [float(relight(image, limits, np.random.default_rng(seed)).mean()) - 120 for seed in range(40)]
    assert max(np.abs(changes)) <= 20
    assert max(changes) > 10
    assert min(changes) < -10


@pytest.mark.parametrize("value", [-0.1, 2.0])
def test_a_share_of_mosaics_beyond_zero_to_one_is_refused(value):
    with pytest.raises(ValueError, match="mosaic"):
        Augmentation(mosaic=value)
