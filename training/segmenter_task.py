"""Training of a segmentation network: crops in, mean IoU out."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edge.errors import ConfigError
from edge.evaluation import Confusion
from export.networks.unet import SteelUNet
from training.augmentation import Example
from training.data import Crops, load_split, simulated_strips
from training.losses import segmentation_loss
from training.recipe import Recipe
from training.trainer import Task

VALIDATION_SEED = 1_000_000
"""Seeds of simulated strips from here on are for validation, below for training."""


def segmenter_task(recipe: Recipe) -> Task:
    """The recipe's network, crops and validation. Raises ConfigError."""
    split = load_split(recipe.images, len(recipe.classes), recipe.seed)
    strips = tuple(simulated_strips(recipe.simulated, recipe.classes, iter(range(recipe.simulated.strips))))
    unseen = validation_strips(recipe)
    crops = Crops(recipe, split.train, strips)
    weights = torch.tensor(recipe.schedule.class_weights or (1.0,) * len(recipe.classes))
    torch.manual_seed(recipe.seed)

    def loss(scores: Tensor, truth: Tensor) -> Tensor:
        return segmentation_loss(scores, truth, weights)

    def validate(network: nn.Module) -> dict[str, float]:
        real = confusion(network, split.validation, recipe.classes)
        simulated = confusion(network, unseen, recipe.classes)
        by_class = {f"iou_{name}": value for name, value in real.iou().items()}
        return {"mean_iou": real.mean_iou(), **by_class, "simulated_mean_iou": simulated.mean_iou()}

    def measure(checkpoint: Path) -> dict[str, float]:
        network = SteelUNet(len(recipe.classes)).eval()
        network.load_state_dict(load_weights(checkpoint))
        unknown = confusion(network, split.held_out, recipe.classes)
        return {f"held_out_iou_{name}": value for name, value in unknown.iou().items()} | {
            "held_out_mean_iou": unknown.mean_iou()
        }

    network = SteelUNet(len(recipe.classes))
    if recipe.start_from is not None:
        network.load_state_dict(load_weights(recipe.start_from))
    return Task(network, crops.batches_per_epoch, crops.batch, loss, validate, "mean_iou", measure if split.held_out else None)


def load_weights(path: Path) -> dict[str, Tensor]:
    """A state dict that the trainer wrote. Raises ConfigError."""
    try:
        weights: dict[str, Tensor] = torch.load(path, weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise ConfigError(f"{path}: cannot be read as weights ({error}); expected the best.pt of an earlier training") from error
    return weights


def validation_strips(recipe: Recipe) -> tuple[Example, ...]:
    """Simulated strips whose seeds no training crop came from."""
    seeds = range(VALIDATION_SEED, VALIDATION_SEED + recipe.simulated.validation_strips)
    return tuple(simulated_strips(recipe.simulated, recipe.classes, iter(seeds)))


def confusion(network: nn.Module, examples: tuple[Example, ...], classes: tuple[str, ...], margin: int = 16) -> Confusion:
    """One confusion matrix over whole images, each reflected by at least `margin` px up to the network's stride."""
    result = Confusion(classes)
    stride = int(network.stride)  # type: ignore[arg-type]
    with torch.inference_mode():
        for image, mask in examples:
            rows, columns = image.shape
            pad = [(margin, margin + -(side + 2 * margin) % stride) for side in image.shape]
            scores = network(torch.from_numpy(np.pad(image, pad, mode="reflect"))[None, None])
            predicted = scores.argmax(1)[0].numpy()[margin : margin + rows, margin : margin + columns]
            result.add(mask, predicted)
    return result
