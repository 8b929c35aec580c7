"""Labelled images on disk: each with its mask, found by name, or with its class, from a table or the name of its folder."""

from __future__ import annotations

import csv
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
        raise ConfigError(f"{_some(without)}: no mask, or several; expected one of that name in {masks}")
    return pairs


def classed_by_folder(images: Path, classes: Sequence[str]) -> list[ClassedImage]:
    """Every image below `images`, its class the name of the folder it lies in. Raises ConfigError for another name."""
    classed = []
    for image in images_below(images):
        if image.parent.name not in classes:
            raise ConfigError(
                f"{image}: lies in a folder named {image.parent.name}; expected {' or '.join(classes)}, "
                "a table: --labels FILE.csv, or masks: --masks DIR"
            )
        classed.append(ClassedImage(image, list(classes).index(image.parent.name)))
    return classed


def classed_by_table(images: Path, table: Path, classes: Sequence[str]) -> list[ClassedImage]:
    """Every image below `images`, its class from the columns `image` and `class` of a CSV file.

    image: path below `images`, or the file's name where only one has it. Raises ConfigError naming the row, the images
    that have none, or those that have two.
    """
    found = images_below(images)
    by_path = {path.relative_to(images).as_posix(): path for path in found}
    by_name: dict[str, list[Path]] = {}
    for path in found:
        by_name.setdefault(path.name, []).append(path)
    classed: dict[Path, int] = {}
    for where, named, class_name in _rows_of(table):
        image = by_path.get(named) or _only(by_name.get(named, []))
        if image is None:
            raise ConfigError(f"{where}: image: got {named!r}; expected the path of one image below {images}")
        if class_name not in classes:
            raise ConfigError(f"{where}: class: got {class_name!r}; expected {' or '.join(classes)}")
        if image in classed:
            raise ConfigError(f"{where}: image: got {named!r} a second time; expected one row for each image")
        classed[image] = list(classes).index(class_name)
    without = [path for path in found if path not in classed]
    if without:
        raise ConfigError(f"{_some(without)}: no row in {table}; expected one for each image below {images}")
    return [ClassedImage(path, classed[path]) for path in found]


def _rows_of(table: Path) -> list[tuple[str, str, str]]:
    """Where each row stands, its image and its class. Raises ConfigError."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            names = reader.fieldnames or []
            rows = [(f"{table}:{reader.line_num}", row.get("image") or "", row.get("class") or "") for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{table}: cannot be read ({error}); expected a CSV file with the columns image and class") from error
    if not {"image", "class"} <= set(names):
        raise ConfigError(f"{table}: got the columns {', '.join(names) or 'none'}; expected image and class")
    return rows


def _only(paths: Sequence[Path]) -> Path | None:
    return paths[0] if len(paths) == 1 else None


def _some(paths: Sequence[Path]) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return f"{', '.join(map(str, paths[:3]))}{more}"


def read_mask(path: Path, size: tuple[int, int], class_count: int) -> npt.NDArray[np.uint8]:
    """A mask (h, w) uint8 of class indices. With two classes, 0 and 255 are taken as 0 and 1.

    size: lines and columns of its image. Raises ImageError naming the file.
    """
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror or error}") from error
    mask = cv2.imdecode(content, cv2.IMREAD_UNCHANGED) if content.size else None
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
