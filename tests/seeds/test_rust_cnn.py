"""The system rust-cnn: the dict that its training script saves, its station over strips."""

from __future__ import annotations

import cv2
import numpy as np
import plain
import pytest
from agreement import assert_agrees
from workbench import inspect


def test_the_engine_answers_as_torch_did(rust_cnn):
    assert_agrees(rust_cnn.bundle, [cv2.resize(tile, (32, 32)) for tile in rust_cnn.tiles], rust_cnn.answers)


def test_a_tile_is_rust_where_that_is_the_more_probable_class(rust_cnn, shots, tmp_path):
    labels = rust_cnn.answers.argmax(axis=1)
    assert 0 < labels.sum() < len(labels)
    found = inspect("rust-cnn", shots["rust-cnn"], tmp_path, bundle=rust_cnn.bundle.path)
    tiles = [np.full((64, 64), label, np.uint8) for label in labels]
    np.testing.assert_array_equal(found.mask, plain.paste(tiles, *found.mask.shape))
    # what has merged with another one counts there
    assert sum(d.area_px for d in found.closed if d.ending != "merged") == 64 * 64 * labels.sum()
    peaks = [defect.confidence_peak for defect in found.closed]
    assert max(peaks) == pytest.approx(rust_cnn.answers[:, 1].max(), abs=0.5 / 255 + 1e-4)
    # the file asks for rust only from a higher score on, at the user's word
    strict = inspect("rust-cnn", shots["rust-cnn"], tmp_path / "strict", bundle=rust_cnn.bundle.path, tiling__gate_threshold=0.9)
    assert (strict.mask > 0).sum() == 64 * 64 * (rust_cnn.answers[:, 1] >= 0.9).sum()
