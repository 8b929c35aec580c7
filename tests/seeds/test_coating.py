"""The system coating: a whole Keras file, its station over microscope images in four parts, its tables."""

from __future__ import annotations

import cv2
import plain
import pytest
from agreement import assert_agrees, assert_same_mask, assert_tables
from workbench import inspect

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's own
PARTS = {"tiling__tile_lines": 160, "tiling__tile_columns": 224}
"""Half of the images here."""


def test_the_engine_answers_as_keras_did(coating_unet):
    prepared = [cv2.resize(cv2.createCLAHE(10, (8, 8)).apply(tile), (256, 256)) for tile in coating_unet.tiles]
    assert_agrees(coating_unet.bundle, prepared, coating_unet.answers.transpose(0, 3, 1, 2))


def test_contrast_is_equalized_part_by_part_and_what_is_above_three_fifths_counts(coating_unet, shots, tmp_path):
    images, bundle = shots["coating"], coating_unet.bundle
    decided = [plain.coating_mask(answer[..., 0], (160, 224)) for answer in coating_unet.answers]
    parts, nears = zip(*decided, strict=True)
    size = (320 * len(images), 448)
    found = inspect("coating", images, tmp_path, contours="contours.xlsx", bundle=bundle.path, **PARTS)
    assert_same_mask(found.mask, plain.paste(parts, *size), plain.paste(nears, *size))
    masks = dict(zip((f"{name}.png" for name in images), plain.cut(found.mask, 320, 448), strict=True))
    assert_tables(found, masks, ("unmelted", "melted"))
