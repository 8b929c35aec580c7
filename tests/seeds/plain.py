"""What the seed systems do with an image before and behind their networks, in plain code: `station == plain` is what is tested.

Networks are asked by the framework that wrote their checkpoints; here is only the rest.
"""

from __future__ import annotations

import cv2
import numpy as np

NEAR = 1e-4
"""A pixel whose probability is so near to the threshold may be decided either way."""


def cut(image, lines, columns):
    """Tiles of an image that divide it, row by row."""
    height, width = image.shape
    return [image[y : y + lines, x : x + columns] for y in range(0, height, lines) for x in range(0, width, columns)]


def paste(tiles, height, width):
    """The image that `cut` would cut into those tiles."""
    lines, columns = tiles[0].shape
    rows = [np.hstack(tiles[first : first + width // columns]) for first in range(0, len(tiles), width // columns)]
    assert len(rows) == height // lines
    return np.vstack(rows)


def rgb(grey):
    """(h, w, 3) float32."""
    return np.stack([grey] * 3, axis=-1).astype(np.float32)


def rust_cls_input(tile):
    """256 x 256 px, 0 to 255: the graph itself resizes and divides."""
    assert tile.shape == (256, 256)
    return rgb(tile)


def rust_cnn_input(tile):
    """(3, 32, 32), resized, /255, less the mean, by the deviation."""
    colours = rgb(cv2.resize(tile, (32, 32))) / 255.0
    normal = (colours - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    return normal.transpose(2, 0, 1).astype(np.float32)


def severstal_gate_input(image):
    """256 x 256 px in three channels, /255."""
    return rgb(cv2.resize(image, (256, 256))) / 255.0


def severstal_unet_input(image):
    """256 x 256 px in one channel, /255."""
    return severstal_gate_input(image)[..., :1]


def severstal_mask(gate, probabilities, shape):
    """Class of each pixel of the image, and where it is not certain; probabilities (256, 256, 4).

    A pixel that is of several classes has the most probable one.
    """
    if gate < 0.01:
        return np.zeros(shape, np.uint8), np.zeros(shape, bool)
    ranked = np.sort(probabilities, axis=-1)
    small = np.where(ranked[..., -1] >= 0.5, probabilities.argmax(axis=-1) + 1, 0).astype(np.uint8)
    near = (abs(ranked[..., -1] - 0.5) < NEAR) | (ranked[..., -1] - ranked[..., -2] < 2 * NEAR)
    return enlarge(small, shape), enlarge(near, shape)


def coating_input(part):
    """CLAHE with a clip limit of 10 on 8 x 8 fields, 256 x 256 px in three channels, /255."""
    equalized = cv2.createCLAHE(clipLimit=10, tileGridSize=(8, 8)).apply(part)
    return rgb(cv2.resize(equalized, (256, 256))) / 255.0


def coating_mask(probabilities, shape):
    """Mask of a part, and where it is not certain; probabilities (256, 256)."""
    return enlarge((probabilities > 0.6).astype(np.uint8), shape), enlarge(abs(probabilities - 0.6) < NEAR, shape)


def slice_starts(length):
    """Where slices of 224 with a stride of 100 begin: as long as they lie within the image."""
    return range(0, length - 224 + 1, 100)


def slice_inputs(slices):
    """(n, 1, 224, 224), /255."""
    return np.stack(slices)[:, None].astype(np.float32) / 255.0


def union_of_slices(image, ask):
    """Masks of all slices summed, > 0; where that is not certain; and which pixels a slice has.

    ask: probabilities (224, 224) of a slice (224, 224) uint8.
    """
    total, near, seen = (np.zeros(image.shape, np.int64) for _ in range(3))
    for y in slice_starts(image.shape[0]):
        for x in slice_starts(image.shape[1]):
            here = np.s_[y : y + 224, x : x + 224]
            probabilities = ask(image[here])
            total[here] += probabilities > 0.5
            near[here] += abs(probabilities - 0.5) < NEAR
            seen[here] += 1
    return (total > 0).astype(np.uint8), near > 0, seen > 0


def enlarge(values, shape):
    """By nearest neighbours."""
    return cv2.resize(values.astype(np.uint8), shape[::-1], interpolation=cv2.INTER_NEAREST).astype(values.dtype)


def encoded_pixels(mask):
    """`start length` pairs from 1, top to bottom, then left to right, as in the Severstal competition."""
    pixels = np.concatenate([[0], mask.T.flatten(), [0]])
    runs = np.where(pixels[1:] != pixels[:-1])[0] + 1
    runs[1::2] -= runs[::2]
    return " ".join(str(number) for number in runs)


def rle_rows(masks, classes):
    """ImageId, EncodedPixels, ClassId of masks by name: a row for each image and class that is in it."""
    rows = []
    for name, mask in masks.items():
        for class_id in range(1, classes):
            if (mask == class_id).any():
                rows.append((name, encoded_pixels((mask == class_id).astype(np.uint8)), str(class_id)))
    return rows


def contour_rows(mask):
    """Contour, Width, Height, Aspect Ratio, Area."""
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    rows = []
    for number, contour in enumerate(contours, start=1):
        _, _, width, height = cv2.boundingRect(contour)
        rows.append((number, width, height, width / height, cv2.contourArea(contour)))
    return rows
