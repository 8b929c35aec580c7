"""Variations of a grey image and its mask: what a camera, a lamp and a product change without changing the defect."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from training.recipe import Augmentation

Image = npt.NDArray[np.uint8]
Example = tuple[Image, Image]
"""Grey image and class mask of the same shape, uint8."""


def cut(example: Example, size: int, rng: np.random.Generator) -> Example:
    """A random square of `size` px; an image too small is reflected at its sides first."""
    image, mask = example
    missing = [max(0, size - side) for side in image.shape]
    if any(missing):
        before = [int(rng.integers(0, m + 1)) for m in missing]
        pad = [(b, m - b) for b, m in zip(before, missing, strict=True)]
        image, mask = np.pad(image, pad, mode="reflect"), np.pad(mask, pad, mode="reflect")
    row = int(rng.integers(0, image.shape[0] - size + 1))
    column = int(rng.integers(0, image.shape[1] - size + 1))
    return image[row : row + size, column : column + size], mask[row : row + size, column : column + size]


def resize(example: Example, limit: float, rng: np.random.Generator) -> Example:
    """A random factor of size between 1/limit and limit, evenly distributed in its logarithm."""
    image, mask = example
    factor = float(np.exp(rng.uniform(-np.log(limit), np.log(limit))))
    size = (max(16, round(image.shape[1] * factor)), max(16, round(image.shape[0] * factor)))
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    return (
        np.asarray(cv2.resize(image, size, interpolation=method), np.uint8),
        np.asarray(cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST), np.uint8),
    )


def mosaic(examples: Sequence[Example], size: int, rng: np.random.Generator) -> Example:
    """Corners of four images around one random point: what a strip looks like where one product meets the next."""
    row, column = (int(rng.integers(size // 4, size - size // 4)) for _ in range(2))
    image, mask = np.empty((size, size), np.uint8), np.empty((size, size), np.uint8)
    parts = [
        (slice(0, row), slice(0, column)),
        (slice(0, row), slice(column, size)),
        (slice(row, size), slice(0, column)),
        (slice(row, size), slice(column, size)),
    ]
    for example, part in zip(examples, parts, strict=True):
        piece = cut(example, size, rng)
        image[part], mask[part] = piece[0][part], piece[1][part]
    return image, mask


def turn(example: Example, rng: np.random.Generator) -> Example:
    """One of the eight symmetries of a square."""
    image, mask = example
    if rng.random() < 0.5:
        image, mask = image.T, mask.T
    if rng.random() < 0.5:
        image, mask = image[::-1], mask[::-1]
    if rng.random() < 0.5:
        image, mask = image[:, ::-1], mask[:, ::-1]
    return np.ascontiguousarray(image), np.ascontiguousarray(mask)


def reduce(image: Image, factor: int) -> Image:
    """The mean of every `factor` x `factor` pixels, as a station reduces the strip for its gate."""
    lines, columns = image.shape
    size = (columns // factor, lines // factor)
    return image if factor == 1 else np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def relight(image: Image, limits: Augmentation, rng: np.random.Generator) -> Image:
    """Contrast about the mean, brightness, gamma, noise per pixel and per column."""
    light = image.astype(np.float32)
    gamma = float(np.exp(rng.uniform(-limits.gamma, limits.gamma)))
    light = 255.0 * np.power(light * (1 / 255.0), gamma)
    mean = float(light.mean())
    light = (light - mean) * (1 + rng.uniform(-limits.gain, limits.gain)) + mean + rng.uniform(-limits.offset, limits.offset)
    if rng.random() < 0.5:
        light += rng.standard_normal(light.shape, np.float32) * (limits.noise * rng.random())
    if rng.random() < 0.3:
        light += rng.standard_normal((1, light.shape[1]), np.float32) * (limits.column_noise * rng.random())
    return np.asarray(np.clip(np.rint(light), 0, 255), np.uint8)
