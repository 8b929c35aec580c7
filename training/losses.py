"""What training minimises: cross-entropy for the pixels, a soft Jaccard term for the figure that is judged."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


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
    """Binary cross-entropy on (n, 1) logits; a missed defect weighs `defect_weight` times a false alarm."""
    weight = torch.tensor(defect_weight)
    return functional.binary_cross_entropy_with_logits(scores.float()[:, 0], truth.float(), pos_weight=weight)
