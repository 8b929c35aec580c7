"""What it means that a station does as its system does."""

from __future__ import annotations

import numpy as np
import plain

from edge.bundle import Bundle
from edge.scores import probabilities
from edge.sessions.ort import OrtSession

TOLERANCE = 1e-4
"""Of a probability: how far the exported engine may be from the framework."""
COLUMNS = ["Contour", "Width", "Height", "Aspect Ratio", "Area"]


def assert_agrees(bundle: Bundle, prepared, expected) -> None:
    """The exported engine, asked tile by tile, against the framework's answers (n, channels, ...), which are not all alike.

    prepared: uint8 tiles (n, h, w) as they go into the engine.
    """
    activation = bundle.manifest.activation
    with OrtSession(bundle.model_path, 0) as session:
        answers = [probabilities(session.infer(tile[None, None])[0].copy(), activation) for tile in prepared]
    np.testing.assert_allclose(np.stack(answers), expected, rtol=0, atol=TOLERANCE)
    assert np.std(expected) > 100 * TOLERANCE


def assert_same_mask(mask, expected, near) -> None:
    """Equal but for pixels that could be decided either way, which are few; both hold more than one class."""
    np.testing.assert_array_equal(mask[~near], expected[~near])
    assert near.mean() < 0.002
    assert len(np.unique(expected)) > 1


def assert_tables(found, masks, classes) -> None:
    """Run lengths and contours are those of the masks, by name of the image; shares are those of all of an image.

    classes: names, the background's first.
    """
    assert found.rle == [["ImageId", "EncodedPixels", "ClassId"], *map(list, plain.rle_rows(masks, len(classes)))]
    heading, *rows = found.contours
    named = (["Image"] if len(masks) > 1 else []) + (["Class"] if len(classes) > 2 else [])
    assert heading == [*named, *COLUMNS]
    expected = []
    for image, mask in masks.items():
        number = 0
        for index, class_name in enumerate(classes[1:], start=1):
            for _, *measures in plain.contour_rows((mask == index).astype(np.uint8)):
                number += 1
                says = {"Image": image, "Class": class_name}
                expected.append(([says[name] for name in named], [number, *measures]))
    assert [row[:-5] for row in rows] == [names for names, _ in expected]
    # a workbook holds 16 digits
    measures = [[float(value) for value in row[-5:]] for row in rows]
    np.testing.assert_allclose(measures, [measures for _, measures in expected], rtol=1e-14)
    heading, *rows = found.fractions
    shares = [[100.0 * (mask == index).mean() for index in range(len(classes))] for mask in masks.values()]
    assert heading[-len(classes) :] == [f"Fraction {name.title()} (%)" for name in classes]
    np.testing.assert_allclose([[float(value) for value in row[-len(classes) :]] for row in rows], shares, rtol=1e-12)
