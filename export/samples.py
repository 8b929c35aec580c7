"""The images that an export calibrates, measures and verifies with, and how tiles are cut from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from export.errors import ExportError
from export.networks import Architecture

Image = npt.NDArray[np.uint8]
Labelled = tuple[Image, Image]
"""Grey image and class index per pixel, both (h, w) uint8."""

_Item = TypeVar("_Item")
SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"))
DEFECT_PX = 16
"""A tile with at least so many defect pixels is a defective one."""

ENOUGH = 16
"""From so many labelled images on, ranges are calibrated on other images than quality is measured on."""

CALIBRATION_LIMIT = 500
"""Images that ranges are taken from: a common recommendation, beyond which they hardly move."""


@dataclass(frozen=True, slots=True)
class ExportData:
    """Grey images, (h, w) uint8 of any sizes.

    calibration: for activation ranges and for the comparison with torch; representative, defects among them.
    validation: for thresholds and measured quality; may be empty for a segmenter, whose loss is then measured against
        the float network's own masks. Mask pixels are class indices; for a gate anything above 0 is defect.
    """

    calibration: Sequence[Image]
    validation: Sequence[Labelled] = ()

    def __post_init__(self) -> None:
        if not self.calibration:
            raise ExportError("no calibration images; expected some, defects among them")
        for image in (*self.calibration, *(image for image, _ in self.validation)):
            if image.ndim != 2 or image.dtype != np.uint8 or min(image.shape) < 2:
                raise ExportError(f"an image is {image.dtype} {image.shape}, expected (h, w) uint8 of at least 2x2 px")
        for image, mask in self.validation:
            if mask.shape != image.shape or mask.dtype != np.uint8:
                raise ExportError(f"a mask is {mask.dtype} {mask.shape}, its image {image.shape}; expected the same shape, uint8")


def read_folder(images: Path, masks: Path | None, classes: int, seed: int = 0) -> ExportData:
    """Images of a folder and its subfolders, and masks of the same relative names (any image suffix).

    With at least ENOUGH labelled images a seeded quarter of them, CALIBRATION_LIMIT at most, calibrates and the others
    measure; with fewer all do both. classes: mask pixels must be below it. Raises ExportError naming file and folder.
    """
    paths = sorted(path for path in images.rglob("*") if path.suffix.lower() in SUFFIXES) if images.is_dir() else []
    if not paths:
        raise ExportError(f"{images}: holds no images; expected a folder of {', '.join(sorted(SUFFIXES))}")
    order = np.random.default_rng(seed).permutation(len(paths))
    if masks is None:
        chosen = sorted(order[:CALIBRATION_LIMIT])
        return ExportData([_read_image(paths[index]) for index in _progress(chosen, "images")])
    found = _masks_by_name(masks)
    labelled = [_read_labelled(path, images, masks, found, classes) for path in _progress(paths, "images and masks")]
    if len(labelled) < ENOUGH:
        return ExportData([image for image, _ in labelled], labelled)
    calibrating = min(len(labelled) // 4, CALIBRATION_LIMIT)
    return ExportData(
        [labelled[index][0] for index in order[:calibrating]], [labelled[index] for index in sorted(order[calibrating:])]
    )


def reflect(image: Image, margin: int, stride: int) -> Image:
    """An image with `margin` reflected pixels on all sides, and more below and right up to a multiple of the stride."""
    below, right = (margin + -(side + 2 * margin) % stride for side in image.shape)
    return np.pad(image, ((margin, below), (margin, right)), mode="reflect")


def cells(images: Sequence[Image], side: int) -> Iterator[Image]:
    """Squares of `side` px that images are cut into; at the end of an image they reach back, small images are reflected."""
    for image in images:
        padded = np.pad(image, [(0, max(0, side - extent)) for extent in image.shape], mode="reflect")
        for row in _starts(padded.shape[0], side):
            for column in _starts(padded.shape[1], side):
                yield padded[row : row + side, column : column + side]


def gate_tiles(images: Sequence[Image], architecture: Architecture) -> npt.NDArray[np.uint8]:
    """Tiles as the gate gets them, (n, 1, tile, tile) uint8, averaged over `reduce` x `reduce` pixels of the strip."""
    size = (architecture.tile, architecture.tile)
    strip_side = architecture.tile * architecture.reduce
    tiles = [cv2.resize(tile, size, interpolation=cv2.INTER_AREA) for tile in cells(images, strip_side)]
    return np.asarray(np.stack(tiles)[:, None], np.uint8)


def defective_tiles(masks: Sequence[Image], architecture: Architecture, defect_px: int) -> npt.NDArray[np.bool_]:
    """Whether each tile of `gate_tiles` holds at least `defect_px` defect pixels of the strip."""
    side = architecture.tile * architecture.reduce
    return np.array([np.count_nonzero(tile) >= defect_px for tile in cells(masks, side)], np.bool_)


def mosaic(images: Sequence[Image], side: int, cell_limit: int) -> Image:
    """A strip of cells in a grid, about as wide as long: what stands for a strip where there are only images."""
    taken = [cell for cell, _ in zip(cells(images, side), range(cell_limit), strict=False)]
    across = max(1, int(len(taken) ** 0.5))
    down = len(taken) // across
    return np.block([[taken[row * across + column] for column in range(across)] for row in range(down)])


def _starts(extent: int, side: int) -> list[int]:
    starts = list(range(0, extent - side + 1, side))
    return starts if starts[-1] + side == extent else [*starts, extent - side]


def _masks_by_name(masks: Path) -> dict[Path, Path]:
    if not masks.is_dir():
        raise ExportError(f"{masks}: no such folder; expected masks of the same names as the images")
    files = sorted(path for path in masks.rglob("*") if path.suffix.lower() in SUFFIXES)
    return {path.relative_to(masks).with_suffix(""): path for path in files}


def _read_labelled(path: Path, images: Path, masks: Path, found: dict[Path, Path], classes: int) -> Labelled:
    name = path.relative_to(images).with_suffix("")
    if name not in found:
        raise ExportError(f"{path}: has no mask {name}.* in {masks}; expected one of the same name for every image")
    image, mask = _read_image(path), _read_image(found[name])
    if image.shape != mask.shape:
        raise ExportError(f"{found[name]}: mask is {mask.shape}, its image {image.shape}; expected the same size")
    if int(mask.max()) >= classes:
        raise ExportError(f"{found[name]}: holds class {int(mask.max())}, expected class indices below {classes}")
    return image, mask


def _read_image(path: Path) -> Image:
    # IMREAD_GRAYSCALE alone would scale 16 bits down to 8 and turn an image by its EXIF flag: as a camera, no turning
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise ExportError(f"{path}: cannot be read as an image; expected a whole PNG, JPEG, TIFF or BMP")
    return np.asarray(image, np.uint8)


def _progress(items: Sequence[_Item], what: str) -> Iterator[_Item]:
    return iter(tqdm(items, desc=what, leave=False, disable=None))
