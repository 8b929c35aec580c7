"""Training of a gate: tiles of real and simulated steel in, share of clean tiles let through at full recall out."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from calibration.thresholds import gate_threshold
from export.networks.gate import SteelGate
from training.augmentation import Example, cut, mosaic, relight, turn
from training.data import load_split, simulated_strips
from training.losses import gate_loss
from training.recipe import Recipe
from training.segmenter_task import validation_strips
from training.trainer import Task

REDUCE = 2
RECALL = 0.999
CLEAN_PX = 88
"""Side of the defect-free windows that are cut from real images; all of NEU-Seg's images hold a defect somewhere."""

Tiles = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]
"""Reduced tiles (n, 128, 128) uint8, and whether each is defective (n,) uint8."""


def gate_task(recipe: Recipe) -> Task:
    """The recipe's gate, its tiles and validation. Raises ConfigError."""
    split = load_split(recipe.images, len(recipe.classes), recipe.seed)
    strips = simulated_strips(recipe.simulated, recipe.classes, iter(range(recipe.simulated.strips)))
    tiles, labels = _tiles(recipe, split.train, strips, rounds=1)
    unseen = gate_validation(recipe, split.validation)
    torch.manual_seed(recipe.seed)
    size = recipe.schedule.batch

    def batch(epoch: int, index: int) -> Tiles:
        order = np.random.default_rng((recipe.seed, epoch)).permutation(len(tiles))
        rng = np.random.default_rng((recipe.seed, epoch, index))
        chosen = order[index * size : (index + 1) * size]
        varied = [relight(turn((tiles[n], tiles[n]), rng)[0], recipe.augmentation, rng) for n in chosen]
        return np.stack(varied), labels[chosen]

    def loss(scores: Tensor, truth: Tensor) -> Tensor:
        return gate_loss(scores, truth, defect_weight=3.0)

    def validate(network: nn.Module) -> dict[str, float]:
        with torch.inference_mode():
            logits = torch.cat([network(torch.from_numpy(part)[:, None]) for part in np.array_split(unseen[0], 64)])
        threshold = gate_threshold(torch.sigmoid(logits[:, 0]).numpy(), unseen[1].astype(bool), RECALL)
        return {"stopped_clean": 1.0 - threshold.passed_clean, "recall": threshold.recall, "threshold": threshold.score}

    return Task(SteelGate(), len(tiles) // size, batch, loss, validate, "stopped_clean")


def gate_validation(recipe: Recipe, real: tuple[Example, ...]) -> Tiles:
    """Tiles of images and strips that no training tile came from."""
    return _tiles(recipe, real, iter(validation_strips(recipe)), rounds=2)


def _tiles(recipe: Recipe, real: tuple[Example, ...], strips: Iterator[Example], rounds: int) -> Tiles:
    rng = np.random.default_rng(recipe.seed)
    tile = recipe.crop
    clean = [window for example in real if (window := _clean_window(example, rng)) is not None]
    examples: list[Example] = []
    # where images are too small for a clean window, clean steel comes from the simulator alone
    filling = clean or real
    for _ in range(rounds):
        # whole images and mosaics of both kinds: a seam between two products must tell the gate nothing
        for example in real:
            parts = [example, *(_choice(real if rng.random() < 0.3 else filling, rng) for _ in range(3))]
            examples += [cut(example, tile, rng), mosaic([parts[n] for n in rng.permutation(4)], tile, rng)]
        for window in clean:
            parts = [window, *(_choice(clean, rng) for _ in range(3))]
            examples += [cut(window, tile, rng), mosaic(parts, tile, rng)]
    for image, mask in strips:
        for row in range(0, image.shape[0] - tile + 1, tile):
            for column in range(0, image.shape[1] - tile + 1, tile):
                cell = (slice(row, row + tile), slice(column, column + tile))
                examples.append((image[cell], mask[cell]))
    counts = np.array([np.count_nonzero(mask) for _, mask in examples])
    # a few pixels of a defect, most of which lies on the next tile: neither answer would be wrong, so none is taught
    told = np.flatnonzero((counts == 0) | (counts >= recipe.defect_px))
    side = tile // REDUCE
    reduced = [cv2.resize(examples[n][0], (side, side), interpolation=cv2.INTER_AREA) for n in told]
    return np.asarray(np.stack(reduced), np.uint8), (counts[told] > 0).astype(np.uint8)


def _choice(examples: tuple[Example, ...] | list[Example], rng: np.random.Generator) -> Example:
    return examples[int(rng.integers(0, len(examples)))]


def _clean_window(example: Example, rng: np.random.Generator) -> Example | None:
    """A random window of CLEAN_PX without a defect pixel, found by a summed-area table; None if there is none."""
    image, mask = example
    defects = cv2.integral((mask > 0).astype(np.uint8))
    size = CLEAN_PX
    inside = defects[size:, size:] - defects[:-size, size:] - defects[size:, :-size] + defects[:-size, :-size]
    places = np.argwhere(inside == 0)
    if not len(places):
        return None
    row, column = places[int(rng.integers(0, len(places)))]
    window = (slice(row, row + size), slice(column, column + size))
    return image[window], mask[window]
