"""The images that an export calibrates, measures and verifies with, and how tiles are cut from them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from calibration.selection import Candidate, Selection, select
from edge.errors import ImageError, RustEdgeError
from edge.labelled import classed_by_folder, classed_by_table, read_mask
from export.errors import ExportError
from export.tile_form import TileForm, cells

Image = npt.NDArray[np.uint8]
Labelled = tuple[Image, Image]
"""Grey image and class index per pixel, both (h, w) uint8."""

Classified = tuple[Image, int]
"""Grey image and the class of all of it."""

_Item = TypeVar("_Item")
SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"))
DEFECT_PX = 16
"""A tile with at least so many defect pixels is a defective one."""

ENOUGH = 16
"""From so many labelled images on, ranges are calibrated on other images than quality is measured on."""

CALIBRATION_LIMIT = 500
"""Images that ranges are taken from: a common recommendation, beyond which they hardly move."""

LARGEST_IMAGE = 1024
"""Images with a longer side are cut into squares of at most this side, px: a strip is many images."""


@dataclass(frozen=True, slots=True)
class ExportData:
    """Grey images, (h, w) uint8 of any sizes.

    calibration: for activation ranges and for the comparison with the source; representative, defects among them.
    validation: for thresholds and measured quality; may be empty for a segmenter, whose loss is then measured against
        the float network's own masks. Mask pixels are class indices; for a gate anything above 0 is defect.
    classified: the same for a classifier whose images have one class each.
    selection: how the calibration images were chosen.
    """

    calibration: Sequence[Image]
    validation: Sequence[Labelled] = ()
    classified: Sequence[Classified] = ()
    selection: Selection | None = None

    def __post_init__(self) -> None:
        if not self.calibration:
            raise ExportError("no calibration images; expected some, defects among them")
        labelled = (*(image for image, _ in self.validation), *(image for image, _ in self.classified))
        for image in (*self.calibration, *labelled):
            if image.ndim != 2 or image.dtype != np.uint8 or min(image.shape) < 2:
                raise ExportError(f"an image is {image.dtype} {image.shape}, expected (h, w) uint8 of at least 2x2 px")
        for image, mask in self.validation:
            if mask.shape != image.shape or mask.dtype != np.uint8:
                raise ExportError(f"a mask is {mask.dtype} {mask.shape}, its image {image.shape}; expected the same shape, uint8")


@dataclass(frozen=True, slots=True)
class _Sample:
    """An image, or a square of a large one, with what is known of it."""

    name: str
    row: int
    column: int
    image: Image
    mask: Image | None = None
    label: int | None = None


def read_folder(images: Path, masks: Path | None, classes: int, seed: int = 0, whole: bool = False) -> ExportData:
    """Images of a folder and its subfolders, and masks of the same relative names (any image suffix).

    With at least ENOUGH labelled images a seeded quarter of them, CALIBRATION_LIMIT at most, calibrates and the others
    measure; with fewer all do both. The quarter is chosen so that every class, clean steel and the range of brightness are
    in it. classes: mask pixels must be below it. whole: large images stay whole, for networks that take them as one tile.
    Raises ExportError naming file and folder.
    """
    paths = image_paths(images)
    found = _masks_by_name(masks) if masks is not None else {}
    samples: list[_Sample] = []
    for path in _progress(paths, "images" if masks is None else "images and masks"):
        if masks is None:
            image, mask = _read_image(path), None
        else:
            image, mask = _read_labelled(path, images, masks, found, classes)
        samples += _cut_large(path.relative_to(images).as_posix(), image, mask, None, whole)
    return _split(samples, seed)


def read_classified(images: Path, labels: Path | None, classes: Sequence[str], seed: int = 0) -> ExportData:
    """Images with one class each: from a table `image,class` (labels), or from the folders they lie in, named as classes.

    Splits as `read_folder` does. Raises ExportError naming file and folder.
    """
    try:
        pairs = classed_by_table(images, labels, classes) if labels is not None else classed_by_folder(images, classes)
    except RustEdgeError as error:
        raise ExportError(str(error)) from error
    samples = []
    for pair in _progress(pairs, "images"):
        samples.append(_Sample(str(pair.image.relative_to(images)), 0, 0, _read_image(pair.image), label=pair.class_index))
    return _split(samples, seed)


def image_paths(images: Path) -> list[Path]:
    """Images of a folder and its subfolders, in name order. Raises ExportError where there are none."""
    paths = sorted(path for path in images.rglob("*") if path.suffix.lower() in SUFFIXES) if images.is_dir() else []
    if not paths:
        raise ExportError(f"{images}: holds no images; expected a folder of {', '.join(sorted(SUFFIXES))}")
    return paths


def _cut_large(name: str, image: Image, mask: Image | None, label: int | None, whole: bool) -> Iterator[_Sample]:
    if whole or max(image.shape) <= LARGEST_IMAGE:
        yield _Sample(name, 0, 0, image, mask, label)
        return
    for row in range(0, image.shape[0], LARGEST_IMAGE):
        for column in range(0, image.shape[1], LARGEST_IMAGE):
            # what is left over at the end joins its neighbour's last lines: no cell is a sliver
            window = tuple(
                slice(max(0, min(first, extent - LARGEST_IMAGE)), first + LARGEST_IMAGE)
                for first, extent in zip((row, column), image.shape, strict=True)
            )
            cut = mask[window] if mask is not None else None
            yield _Sample(name, window[0].start, window[1].start, image[window], cut, label)


def _split(samples: Sequence[_Sample], seed: int) -> ExportData:
    labelled = all(sample.mask is not None or sample.label is not None for sample in samples)
    count = min(len(samples), CALIBRATION_LIMIT)
    if labelled and len(samples) >= ENOUGH:
        count = min(len(samples) // 4, CALIBRATION_LIMIT)
    candidates = [_candidate(sample) for sample in samples]
    selection = select(candidates, count, seed)
    chosen = {(candidate.origin, candidate.row, candidate.column) for candidate in selection.chosen}
    calibrating = [sample for sample in samples if (sample.name, sample.row, sample.column) in chosen]
    measuring = samples
    if labelled and len(samples) >= ENOUGH:
        measuring = [sample for sample in samples if (sample.name, sample.row, sample.column) not in chosen]
    return ExportData(
        calibration=[sample.image for sample in calibrating],
        validation=[(sample.image, sample.mask) for sample in measuring if sample.mask is not None],
        classified=[(sample.image, sample.label) for sample in measuring if sample.label is not None],
        selection=selection,
    )


def _candidate(sample: _Sample) -> Candidate:
    classes = frozenset({sample.label}) if sample.label is not None else None
    if sample.mask is not None:
        classes = frozenset(np.unique(sample.mask).tolist())
    return Candidate(sample.name, sample.row, sample.column, float(sample.image.mean()), float(sample.image.std()), classes)


def reflect(image: Image, margin: int, stride: int) -> Image:
    """An image with `margin` reflected pixels on all sides, and more below and right up to a multiple of the stride."""
    below, right = (margin + -(side + 2 * margin) % stride for side in image.shape)
    return np.pad(image, ((margin, below), (margin, right)), mode="reflect")


def defective_tiles(masks: Sequence[Image], form: TileForm, defect_px: int) -> npt.NDArray[np.bool_]:
    """Whether each tile that `form` cuts holds at least `defect_px` defect pixels of the strip: (n,) in their order."""
    return np.array([np.count_nonzero(tile) >= defect_px for mask in masks for tile in form.cut(mask)], np.bool_)


def mosaic(images: Sequence[Image], side: int, cell_limit: int) -> Image:
    """A strip of cells in a grid, about as wide as long: what stands for a strip where there are only images."""
    cut = (cell for image in images for cell in cells(image, side, side))
    taken = list(itertools.islice(cut, cell_limit))
    across = max(1, int(len(taken) ** 0.5))
    down = len(taken) // across
    return np.block([[taken[row * across + column] for column in range(across)] for row in range(down)])


def _masks_by_name(masks: Path) -> dict[Path, Path]:
    if not masks.is_dir():
        raise ExportError(f"{masks}: no such folder; expected masks of the same names as the images")
    files = sorted(path for path in masks.rglob("*") if path.suffix.lower() in SUFFIXES)
    return {path.relative_to(masks).with_suffix(""): path for path in files}


def _read_labelled(path: Path, images: Path, masks: Path, found: dict[Path, Path], classes: int) -> Labelled:
    name = path.relative_to(images).with_suffix("")
    if name not in found:
        raise ExportError(f"{path}: has no mask {name}.* in {masks}; expected one of the same name for every image")
    image = _read_image(path)
    try:
        return image, read_mask(found[name], (image.shape[0], image.shape[1]), classes)
    except ImageError as error:
        raise ExportError(str(error)) from error


def _read_image(path: Path) -> Image:
    # IMREAD_GRAYSCALE alone would scale 16 bits down to 8 and turn an image by its EXIF flag: as a camera, no turning
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise ExportError(f"{path}: cannot be read as an image; expected a whole PNG, JPEG, TIFF or BMP")
    return np.asarray(image, np.uint8)


def _progress(items: Sequence[_Item], what: str) -> Iterator[_Item]:
    return iter(tqdm(items, desc=what, leave=False, disable=None))
