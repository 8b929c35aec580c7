"""What a network is trained on: real images split by a seed, and crops of simulated strips."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from edge.config import Scale
from edge.errors import ConfigError
from edge.sources.planting import DefectKind
from edge.sources.steel_strip import SteelStrip
from training.augmentation import Example, cut, mosaic, reduce, relight, resize, turn
from training.recipe import Images, Recipe, SimulatedStrips

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True, slots=True)
class Split:
    """Real images by what they are for; a held-out image is seen by no training and by no choice of a checkpoint."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    held_out: tuple[Example, ...]


def load_split(images: Images, classes: int, seed: int) -> Split:
    """Read images and masks of the same stem and split them by the seed. Raises ConfigError."""
    paths = sorted(path for path in images.images.rglob("*") if path.suffix.lower() in SUFFIXES)
    if len(paths) <= images.validation + images.held_out:
        raise ConfigError(
            f"{images.images}: got {len(paths)} images, expected more than the "
            f"{images.validation + images.held_out} set aside for validation and held out"
        )
    examples = [_read(path, images, classes) for path in paths]
    order = np.random.default_rng(seed).permutation(len(examples))
    shuffled = [examples[index] for index in order]
    stop = images.validation + images.held_out
    return Split(tuple(shuffled[stop:]), tuple(shuffled[: images.validation]), tuple(shuffled[images.validation : stop]))


def _read(path: Path, images: Images, classes: int) -> Example:
    mask_path = images.masks / path.relative_to(images.images).with_suffix(".png")
    image, mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), cv2.imread(str(mask_path), cv2.IMREAD_GRAYSCALE)
    if image is None or mask is None:
        raise ConfigError(
            f"{path if image is None else mask_path}: cannot be read; expected an image and a mask of the same stem"
        )
    if image.shape != mask.shape:
        raise ConfigError(f"{mask_path}: mask is {mask.shape}, its image {image.shape}; expected the same size")
    if int(mask.max()) >= classes:
        raise ConfigError(f"{mask_path}: mask holds class {int(mask.max())}, expected below {classes}")
    return np.asarray(image, np.uint8), np.asarray(mask, np.uint8)


def simulated_strips(options: SimulatedStrips, classes: tuple[str, ...], seeds: Iterator[int]) -> Iterator[Example]:
    """Whole simulated strips with masks in the recipe's classes, one per seed.

    Raises ConfigError where a kind of the simulator maps to no class of the recipe.
    """
    table = np.zeros(max(DefectKind) + 1, np.uint8)
    for kind in DefectKind:
        name = options.classes.get(kind.name.lower())
        if name not in classes:
            raise ConfigError(f"simulated.classes.{kind.name.lower()}: got {name!r}, expected one of {', '.join(classes)}")
        table[kind] = classes.index(name)
    for seed in seeds:
        strip = SteelStrip(options.width, seed, options.defects, Scale())
        yield strip.lines(0, options.lines), np.take(table, strip.truth(0, options.lines))


class Crops:
    """Augmented training crops: batch k of epoch e is the same at any time, so that a resumed run repeats nothing.

    reduce_by: pixels whose mean is one pixel of the image that the network sees; masks stay as they are.
    """

    def __init__(self, recipe: Recipe, real: tuple[Example, ...], strips: tuple[Example, ...], reduce_by: int = 1) -> None:
        self._recipe, self._real, self._strips, self._reduce_by = recipe, real, strips, reduce_by
        self._defects = [_some_defect_pixels(mask, recipe.seed) for _, mask in strips]
        self._simulated_per_batch = round(recipe.schedule.batch * recipe.simulated.share)
        self._real_per_batch = recipe.schedule.batch - self._simulated_per_batch
        self.batches_per_epoch = len(real) // self._real_per_batch

    def batch(self, epoch: int, index: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Images (n, crop / reduce_by, crop / reduce_by) and masks (n, crop, crop), both uint8."""
        order = np.random.default_rng((self._recipe.seed, epoch)).permutation(len(self._real))
        rng = np.random.default_rng((self._recipe.seed, epoch, index))
        chosen = order[index * self._real_per_batch : (index + 1) * self._real_per_batch]
        examples = [self._real_crop(self._real[number], rng) for number in chosen]
        examples += [self._simulated_crop(rng) for _ in range(self._simulated_per_batch)]
        return np.stack([image for image, _ in examples]), np.stack([mask for _, mask in examples])

    def _real_crop(self, example: Example, rng: np.random.Generator) -> Example:
        limits, size = self._recipe.augmentation, self._recipe.crop
        if rng.random() < limits.mosaic:
            others = [self._real[int(number)] for number in rng.integers(0, len(self._real), 3)]
            example = mosaic([example, *others], size, rng)
        elif rng.random() < 0.6:
            example = resize(example, limits.scale, rng)
        return self._vary(cut(example, size, rng), rng)

    def _simulated_crop(self, rng: np.random.Generator) -> Example:
        number = int(rng.integers(0, len(self._strips)))
        image, mask = self._strips[number]
        size, defects = self._recipe.crop, self._defects[number]
        row, column = (int(rng.integers(0, side - size + 1)) for side in image.shape)
        # half of the crops are drawn to a defect: most of a strip is clean, and clean steel alone teaches little
        if rng.random() < 0.5 and len(defects):
            near = defects[int(rng.integers(0, len(defects)))] - rng.integers(0, size, 2)
            row, column = (int(np.clip(near[axis], 0, image.shape[axis] - size)) for axis in (0, 1))
        window = (slice(row, row + size), slice(column, column + size))
        return self._vary((image[window], mask[window]), rng)

    def _vary(self, example: Example, rng: np.random.Generator) -> Example:
        image, mask = turn(example, rng)
        return relight(reduce(image, self._reduce_by), self._recipe.augmentation, rng), mask


def _some_defect_pixels(mask: npt.NDArray[np.uint8], seed: int) -> npt.NDArray[np.int64]:
    places = np.argwhere(mask)
    return places[np.random.default_rng(seed).integers(0, len(places), min(len(places), 4096))] if len(places) else places
