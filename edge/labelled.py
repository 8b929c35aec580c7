"""Labelled images on disk: each with its mask, found by name, or with its folder's name as its label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from edge.errors import ConfigError, ImageError
from edge.sources.images import IMAGE_SUFFIXES


@dataclass(frozen=True, slots=True)
class MaskedImage:
    """An image and the mask that says what each of its pixels is."""

    image: Path
    mask: Path


@dataclass(frozen=True, slots=True)
class ClassedImage:
    """An image of which the whole is of one class."""

    image: Path
    class_index: int


def images_below(folder: Path) -> list[Path]:
    """Image files in a folder and its folders, in the order of their paths. Raises ConfigError where there are none."""
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; expected one with images")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."))
    if not found:
        raise ConfigError(f"{folder}: no images in it; expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}")
    return found


def pair_with_masks(images: Path, masks: Path) -> list[MaskedImage]:
    """Every image below `images` with the mask of the same name (but for the ending) below `masks`.

    Where a name stands in several folders, the folders below the two must have the same names too. Raises ConfigError
    naming the images without a mask.
    """
    by_path = {path.relative_to(masks).with_suffix(""): path for path in images_below(masks)}
    by_stem: dict[str, list[Path]] = {}
    for path in by_path.values():
        by_stem.setdefault(path.stem, []).append(path)
    pairs, without = [], []
    for image in images_below(images):
        mask = by_path.get(image.relative_to(images).with_suffix(""))
        named = by_stem.get(image.stem, [])
        if mask is None and len(named) == 1:
            mask = named[0]
        if mask is None:
            without.append(image)
        else:
            pairs.append(MaskedImage(image, mask))
    if without:
        more = f" and {len(without) - 3} more" if len(without) > 3 else ""
        raise ConfigError(f"{', '.join(map(str, without[:3]))}{more}: no mask, or several; expected one of that name in {masks}")
    return pairs


def classed_by_folder(images: Path, classes: Sequence[str]) -> list[ClassedImage]:
    """Every image below `images`, its class the name of the folder it lies in. Raises ConfigError for another name."""
    classed = []
    for image in images_below(images):
        if image.parent.name not in classes:
            raise ConfigError(
                f"{image}: lies in a folder named {image.parent.name}; expected {' or '.join(classes)}, or masks: --masks DIR"
            )
        classed.append(ClassedImage(image, list(classes).index(image.parent.name)))
    return classed


def read_mask(path: Path, size: tuple[int, int], class_count: int) -> npt.NDArray[np.uint8]:
    """A mask (h, w) uint8 of class indices. With two classes, 0 and 255 are taken as 0 and 1.

    size: lines and columns of its image. Raises ImageError naming the file.
    """
    mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if mask is None:
        raise ImageError(f"{path}: cannot be read; expected a mask of one channel, 8 bits")
    if mask.ndim == 3:
        if (mask != mask[:, :, :1]).any():
            raise ImageError(f"{path}: got a mask in colour; expected one channel of class indices")
        mask = mask[:, :, 0]
    if mask.shape != size:
        raise ImageError(
            f"{path}: got a mask of {mask.shape[1]} x {mask.shape[0]} px; expected {size[1]} x {size[0]} as its image"
        )
    if class_count == 2 and np.isin(mask, (0, 255)).all():
        mask = mask == 255
    if mask.max() >= class_count:
        raise ImageError(f"{path}: got mask value {mask.max()}; expected 0 to {class_count - 1}, the bundle's classes")
    return mask.astype(np.uint8)
