"""The images that an export calibrates, measures and verifies with, and how tiles are cut from them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from calibration.selection import Candidate, Selection, select
from edge.errors import ConfigError, ImageError
from edge.labelled import MaskedImage, classed_by_folder, classed_by_table, images_below, pair_with_masks, read_mask
from edge.sources.images import read_image
from export.errors import ExportError
from export.simulated import SimulatedSteel, simulated_strips
from export.tile_form import TileForm, cells

Image = npt.NDArray[np.uint8]
Labelled = tuple[Image, Image]
"""Grey image and class index per pixel, both (h, w) uint8."""

Classified = tuple[Image, int]
"""Grey image and the class of all of it."""

_Item = TypeVar("_Item")
DEFECT_PX = 16
"""A tile with at least so many defect pixels is a defective one."""

ENOUGH = 16
"""From so many labelled images on, ranges are calibrated on other images than quality is measured on."""

CALIBRATION_LIMIT = 500
"""Images that ranges are taken from: a common recommendation, beyond which they hardly move."""

LARGEST_IMAGE = 1024
"""Images with a longer side are cut into parts of at most this side, px, or of one tile: a strip is many images."""


@dataclass(frozen=True, slots=True)
class ExportData:
    """Grey images, (h, w) uint8 of any sizes.

    calibration: for activation ranges and for the comparison with the source; representative, defects among them.
    validation: for thresholds and measured quality; may be empty for a segmenter, whose loss is then measured against
        the float network's own masks. Mask pixels are class indices; for a gate anything above 0 is defect.
    classified: the same for a classifier whose images have one class each.
    simulated: the same as validation, of the simulator's strips: measured apart.
    selection: how the calibration images were chosen.
    """

    calibration: Sequence[Image]
    validation: Sequence[Labelled] = ()
    classified: Sequence[Classified] = ()
    simulated: Sequence[Labelled] = ()
    selection: Selection | None = None

    def __post_init__(self) -> None:
        if not self.calibration:
            raise ExportError("no calibration images; expected some, defects among them")
        masked = (*self.validation, *self.simulated)
        labelled = (*(image for image, _ in masked), *(image for image, _ in self.classified))
        for image in (*self.calibration, *labelled):
            if image.ndim != 2 or image.dtype != np.uint8 or min(image.shape) < 2:
                raise ExportError(f"an image is {image.dtype} {image.shape}, expected (h, w) uint8 of at least 2x2 px")
        for image, mask in masked:
            if mask.shape != image.shape or mask.dtype != np.uint8:
                raise ExportError(f"a mask is {mask.dtype} {mask.shape}, its image {image.shape}; expected the same shape, uint8")


@dataclass(frozen=True, slots=True)
class _Sample:
    """An image, or a square of a large one, with what is known of it.

    classes: what it shows, by index; None: nobody knows. simulated: it is of a strip of the simulator.
    """

    name: str
    row: int
    column: int
    image: Image
    mask: Image | None = None
    label: int | None = None
    classes: frozenset[int] | None = None
    simulated: bool = False

    @property
    def place(self) -> tuple[str, int, int]:
        """Which one it is."""
        return self.name, self.row, self.column


def read_folder(
    images: Path,
    masks: Path | None,
    classes: int,
    seed: int = 0,
    whole: bool = False,
    cell: tuple[int, int] = (1, 1),
    class_names: Sequence[str] = (),
    simulated: SimulatedSteel | None = None,
) -> ExportData:
    """Images of a folder and its subfolders, and masks of the same names (any image suffix).

    With at least ENOUGH labelled images a seeded quarter of them, CALIBRATION_LIMIT at most, calibrates and the others
    measure; with fewer all do both. The quarter is chosen so that every class, clean steel and the range of brightness are
    in it. classes: mask pixels must be below it. whole: large images stay whole, for networks that take them as one tile.
    cell: lines and columns of a tile; where large images are cut, each part is made of whole ones.
    class_names: by index, for the warnings of the selection. simulated: strips of the simulator that are chosen from and
    measured with like the images. Raises ExportError naming file and folder.
    """
    try:
        pairs: Sequence[Path | MaskedImage] = pair_with_masks(images, masks) if masks is not None else images_below(images)
    except ConfigError as error:
        raise ExportError(str(error)) from error
    samples: list[_Sample] = []
    for pair in _progress(pairs, "images" if masks is None else "images and masks"):
        path = pair if isinstance(pair, Path) else pair.image
        image = _read_image(path)
        mask = None if isinstance(pair, Path) else _read_mask(pair.mask, image, classes)
        samples += _cut_large(path.relative_to(images).as_posix(), image, mask, whole, cell)
    strips = simulated_strips(simulated) if simulated is not None else ()
    for name, image, truth in tqdm(strips, desc="simulated strips", leave=False, disable=None):
        # whole: of a defect that a cut divides, a sliver would count as a defect of its own, which no strip has
        samples += (replace(sample, simulated=True) for sample in _cut_large(name, image, truth, True, cell))
    return _split(samples, seed, class_names)


def read_classified(
    images: Path, labels: Path | None, classes: Sequence[str], seed: int = 0, clean: str | None = None
) -> ExportData:
    """Images with one class each: from a table `image,class` (labels), or from the folders they lie in, named as classes.

    Splits as `read_folder` does. clean: the class that is no defect; None: the first. Raises ExportError naming file and
    folder, and where all images are of one class.
    """
    try:
        pairs = classed_by_table(images, labels, classes) if labels is not None else classed_by_folder(images, classes)
    except ConfigError as error:
        raise ExportError(str(error)) from error
    found = {pair.class_index for pair in pairs}
    if len(found) < 2:
        raise ExportError(
            f"{images}: all {len(pairs)} images are {classes[found.pop()]}; expected some of every class: {', '.join(classes)}"
        )
    samples = [
        _Sample(
            pair.image.relative_to(images).as_posix(),
            0,
            0,
            _read_image(pair.image),
            None,
            pair.class_index,
            frozenset({pair.class_index}),
        )
        for pair in _progress(pairs, "images")
    ]
    return _split(samples, seed, classes, classes.index(clean) if clean in classes else 0)


def _cut_large(name: str, image: Image, mask: Image | None, whole: bool, cell: tuple[int, int]) -> Iterator[_Sample]:
    height, width = (max(1, LARGEST_IMAGE // side) * side for side in cell)
    if whole or (image.shape[0] <= height and image.shape[1] <= width):
        yield _Sample(name, 0, 0, image, mask, classes=_shown_in(mask))
        return
    for row in range(0, image.shape[0], height):
        for column in range(0, image.shape[1], width):
            # what is left over at the end joins its neighbour's last lines: no part is a sliver
            window = tuple(
                slice(max(0, min(first, extent - side)), first + side)
                for first, extent, side in zip((row, column), image.shape, (height, width), strict=True)
            )
            cut = mask[window] if mask is not None else None
            yield _Sample(name, window[0].start, window[1].start, image[window], cut, classes=_shown_in(cut))


def _shown_in(mask: Image | None) -> frozenset[int] | None:
    return frozenset(np.flatnonzero(np.bincount(mask.ravel())).tolist()) if mask is not None else None


def _split(samples: Sequence[_Sample], seed: int, class_names: Sequence[str] = (), clean: int = 0) -> ExportData:
    """clean: index of the class that is no defect."""
    apart = len(samples) >= ENOUGH and all(sample.mask is not None or sample.label is not None for sample in samples)
    count = min(len(samples) // 4 if apart else len(samples), CALIBRATION_LIMIT)
    candidates = [_candidate(sample, clean) for sample in samples]
    names = [class_names[clean], *class_names[:clean], *class_names[clean + 1 :]] if class_names else []
    selection = select(candidates, count, seed, names)
    chosen = {(candidate.origin, candidate.row, candidate.column) for candidate in selection.chosen}
    calibrating = [sample for sample in samples if sample.place in chosen]
    measuring = [sample for sample in samples if sample.place not in chosen] if apart else samples
    if _classes_of(measuring) < _classes_of(samples):
        measuring = samples  # a class of one image has to do both, or nothing would be known of it
    return ExportData(
        calibration=[sample.image for sample in calibrating],
        validation=[(sample.image, sample.mask) for sample in measuring if sample.mask is not None and not sample.simulated],
        classified=[(sample.image, sample.label) for sample in measuring if sample.label is not None],
        simulated=[(sample.image, sample.mask) for sample in measuring if sample.mask is not None and sample.simulated],
        selection=selection,
    )


def _classes_of(samples: Sequence[_Sample]) -> frozenset[int]:
    return frozenset[int]().union(*(sample.classes or () for sample in samples))


def _candidate(sample: _Sample, clean: int) -> Candidate:
    """clean: index of the class that is no defect, which a candidate counts as 0."""
    classes = sample.classes
    if classes is not None:
        classes = frozenset(0 if index == clean else index + (index < clean) for index in classes)
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


def _require_utf8(path: Path) -> None:
    """Linux takes any bytes for a name, and image decoders crash on those that are no text. Raises ExportError."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise ExportError(f"{os.fsencode(path)!r}: got a name that is not UTF-8; rename it") from error


def _read_mask(path: Path, image: Image, classes: int) -> Image:
    _require_utf8(path)
    try:
        return read_mask(path, (image.shape[0], image.shape[1]), classes)
    except ImageError as error:
        raise ExportError(str(error)) from error


def _read_image(path: Path) -> Image:
    """As a station reads it: the same grey levels, and nothing that is not whole."""
    _require_utf8(path)
    try:
        image = read_image(path)
    except ImageError as error:
        raise ExportError(str(error)) from error
    if min(image.shape) < 2:
        raise ExportError(f"{path}: is {image.shape[1]} x {image.shape[0]} px; expected at least 2 x 2")
    return image


def _progress(items: Sequence[_Item], what: str) -> Iterator[_Item]:
    return iter(tqdm(items, desc=what, leave=False, disable=None))
