"""The system rust-cls: Keras's file of three classes, its station over strips."""

from __future__ import annotations

import numpy as np
import plain
import pytest
from agreement import assert_agrees
from workbench import inspect

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's own
ORDER = [2, 0, 1]
"""Clean steel first, which is the last of the network's outputs."""


def test_the_engine_answers_as_keras_did(rust_cls):
    assert rust_cls.bundle.manifest.classes == ("no-rust", "heavy-rust", "light-rust")
    assert_agrees(rust_cls.bundle, rust_cls.tiles, rust_cls.answers[:, ORDER])


def test_every_tile_has_its_most_probable_class_and_that_confidence(rust_cls, shots, tmp_path):
    answers = rust_cls.answers[:, ORDER]
    labels = answers.argmax(axis=1)
    assert len(set(labels)) > 1
    found = inspect("rust-cls", shots["rust-cls"], tmp_path, bundle=rust_cls.bundle.path)
    tiles = [np.full((256, 256), label, np.uint8) for label in labels]
    np.testing.assert_array_equal(found.mask, plain.paste(tiles, *found.mask.shape))
    # tiles of one class that touch are one defect; the surest of a class is in one of them
    for label in {label for label in labels if label}:
        peaks = [d.confidence_peak for d in found.closed if d.class_name == rust_cls.bundle.manifest.classes[label]]
        assert max(peaks) == pytest.approx(answers[labels == label, label].max(), abs=0.5 / 255 + 1e-4)
