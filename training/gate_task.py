"""Training of a gate: crops of real and simulated steel in, share of clean cells left alone at full recall out."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from calibration.gate_recall import ScoredMap, recall_at, threshold_for
from edge.errors import ConfigError
from export.networks.gate import SteelGate
from training.augmentation import Example, reduce
from training.cells import cell_truth
from training.data import Crops, load_split, simulated_strips
from training.losses import gate_loss
from training.recipe import Recipe
from training.segmenter_task import load_weights, validation_strips
from training.trainer import Batch, Task

REDUCE = 2
CELL_PX = REDUCE * SteelGate.stride
CONTEXT_PX = 4 * CELL_PX
"""Reflected above and below a validation image: at least as far as the gate sees."""
RECALLS = (0.995, 0.999)
"""Shares of the defects to be found; checkpoints are judged at the first, as the second hangs on one or two odd defects."""
DEFECT_WEIGHT = 3.0


def gate_task(recipe: Recipe) -> Task:
    """The recipe's gate, its crops and validation. Raises ConfigError."""
    split = load_split(recipe.images, len(recipe.classes), recipe.seed)
    strips = tuple(simulated_strips(recipe.simulated, recipe.classes, iter(range(recipe.simulated.strips))))
    unseen = validation_strips(recipe)
    for name, examples in (("images", split.validation), ("simulated", unseen)):
        if not any(mask.any() for _, mask in examples):
            raise ConfigError(f"{name}: got {len(examples)} for validation without a defect; expected some to judge the gate by")
    crops = Crops(recipe, split.train, strips, REDUCE)
    torch.manual_seed(recipe.seed)

    def batch(epoch: int, index: int) -> Batch:
        images, masks = crops.batch(epoch, index)
        return images, np.stack([cell_truth(mask, CELL_PX, recipe.defect_px) for mask in masks])

    def loss(scores: Tensor, truth: Tensor) -> Tensor:
        return gate_loss(scores, truth, DEFECT_WEIGHT)

    def validate(network: nn.Module) -> dict[str, float]:
        real, simulated = scored_maps(network, split.validation), scored_maps(network, unseen)
        return _figures(real, simulated)

    network = SteelGate()
    if recipe.start_from is not None:
        network.load_state_dict(load_weights(recipe.start_from))
    return Task(network, crops.batches_per_epoch, batch, loss, validate, "stopped_clean")


def scored_maps(network: nn.Module, examples: tuple[Example, ...]) -> list[ScoredMap]:
    """The gate's probabilities over whole images, each reflected up to whole cells, and along the strip as stations do."""
    maps = []
    core = slice(CONTEXT_PX // CELL_PX, -CONTEXT_PX // CELL_PX)
    with torch.inference_mode():
        for image, mask in examples:
            below, beside = (-side % CELL_PX for side in image.shape)
            whole = np.pad(image, [(CONTEXT_PX, CONTEXT_PX + below), (0, beside)], mode="symmetric")
            logits = network(torch.from_numpy(reduce(whole, REDUCE))[None, None])[0, 0, core]
            filled = np.pad(mask, [(0, below), (0, beside)], mode="symmetric")
            maps.append(ScoredMap(torch.sigmoid(logits).numpy(), filled, CELL_PX))
    return maps


def _figures(real: list[ScoredMap], simulated: list[ScoredMap]) -> dict[str, float]:
    """Judged is the mean over both kinds of steel, each at a threshold of its own; the rest is for the reader."""
    figures: dict[str, float] = {}
    for recall in RECALLS:
        for name, maps in (("real", real), ("simulated", simulated)):
            found = recall_at(maps, threshold_for(maps, recall))
            figures[f"alarmed_{name}_{recall}"] = found.alarmed_clean
            figures[f"covered_{name}_{recall}"] = found.covered
    together = threshold_for([*real, *simulated], RECALLS[0])
    shares = [recall_at(maps, together) for maps in (real, simulated)]
    return {"stopped_clean": 1.0 - float(np.mean([share.alarmed_clean for share in shares])), "threshold": together} | figures
