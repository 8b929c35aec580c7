"""The system severstal: two networks as model.json with weights, its station over images of 256 x 1600 px."""

from __future__ import annotations

import cv2
import numpy as np
import plain
import pytest
from agreement import assert_agrees, assert_same_mask, assert_tables
from workbench import inspect

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's own


@pytest.mark.parametrize("network", ["severstal_gate", "severstal_unet"])
def test_the_engines_answer_as_keras_did(network, request):
    seed = request.getfixturevalue(network)
    answers = seed.answers if seed.answers.ndim == 2 else seed.answers.transpose(0, 3, 1, 2)
    assert_agrees(seed.bundle, [cv2.resize(tile, (256, 256)) for tile in seed.tiles], answers)


def test_an_image_is_segmented_unless_its_score_is_below_a_hundredth(severstal_gate, severstal_unet, shots, tmp_path):
    images = shots["severstal"]
    scores = severstal_gate.answers[:, 0]
    stopped = scores < 0.01
    assert 0 < stopped.sum() < len(scores)
    assert abs(scores - 0.01).min() > 1e-4
    found = inspect("severstal", images, tmp_path, bundle=severstal_unet.bundle.path, gate=severstal_gate.bundle.path)
    decided = [
        plain.severstal_mask(score, answer, (256, 1600)) for score, answer in zip(scores, severstal_unet.answers, strict=True)
    ]
    expected, near = (np.vstack(parts) for parts in zip(*decided, strict=True))
    assert_same_mask(found.mask, expected, near)
    assert set(np.unique(found.mask)) == {0, 1, 2, 3, 4}
    assert found.summary["coverage"]["gated"] == 256 * stopped.sum()
    masks = dict(zip((f"{name}.png" for name in images), plain.cut(found.mask, 256, 1600), strict=True))
    assert_tables(found, masks, severstal_unet.bundle.manifest.classes)


def test_run_lengths_are_counted_down_the_columns():
    mask = np.zeros((256, 1600), np.uint8)
    mask[254:, 0] = mask[:3, 1] = 1
    assert plain.encoded_pixels(mask) == "255 5"
