"""What training minimises: cross-entropy for the pixels, a soft Jaccard term for the figure that is judged."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from training.cells import UNTOLD


def soft_jaccard(scores: Tensor, truth: Tensor) -> Tensor:
    """1 - mean over classes of the soft intersection over union, summed over the whole batch.

    scores: (n, c, h, w) logits; truth: (n, h, w) int64. Source: Rahman and Wang, ISVC 2016,
    doi:10.1007/978-3-319-50835-1_22; over the batch rather than per image, as the reported mean IoU is taken from one
    confusion matrix.
    """
    probability = functional.softmax(scores, dim=1)
    target = functional.one_hot(truth, scores.shape[1]).permute(0, 3, 1, 2).to(probability.dtype)
    shared = (probability * target).sum(dim=(0, 2, 3))
    union = (probability + target).sum(dim=(0, 2, 3)) - shared
    # +1 pixel on both sides: a class absent from truth and prediction counts as found, and nothing divides by zero
    loss: Tensor = 1 - ((shared + 1) / (union + 1)).mean()
    return loss


def segmentation_loss(scores: Tensor, truth: Tensor, class_weights: Tensor) -> Tensor:
    """Weighted cross-entropy plus soft Jaccard, both in float32."""
    scores = scores.float()
    return functional.cross_entropy(scores, truth, class_weights) + soft_jaccard(scores, truth)


def gate_loss(scores: Tensor, truth: Tensor, defect_weight: float) -> Tensor:
    """Binary cross-entropy over the cells, plus that of the best cell of each defect: one alarmed cell finds it.

    scores: (n, 1, h, w) logits. truth: (n, 2, h, w) int64, kind and defect number of each cell (training.cells). A missed
    cell weighs `defect_weight` times a false alarm.
    """
    logits = scores.float().flatten(1)
    kind, number = truth.flatten(2).unbind(1)
    told = kind != UNTOLD
    per_cell = functional.binary_cross_entropy_with_logits(
        logits[told], kind[told].float(), pos_weight=torch.tensor(defect_weight)
    )
    best = torch.full((len(logits), int(number.max()) + 1), -torch.inf).scatter_reduce(1, number, logits, "amax")[:, 1:]
    per_defect = functional.softplus(-best[torch.isfinite(best)])
    return per_cell + (per_defect.mean() if per_defect.numel() else 0.0)
