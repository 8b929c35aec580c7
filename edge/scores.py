"""From an engine's logits to classes and probabilities: the arg-max in planes, exponentials only where something was found."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from edge.sessions import Scores

Activation = Literal["softmax", "sigmoid"]
Bytes = npt.NDArray[np.uint8]
_BLOCK_PIXELS = 1 << 16
"""Pixels looked at in one go: a block of a plane is 256 KiB, so that the running maximum stays in the second-level cache."""


def classify(scores: Scores, activation: Activation) -> tuple[Bytes, Bytes]:
    """Class and confidence of every pixel: logits (c, h, w) float32 -> mask, confidence, both (h, w) uint8.

    softmax: channel i is class i, channel 0 the background. The class is the highest channel, the lowest index where
    several are equal; the confidence its softmax probability.
    sigmoid: channel i is class i + 1, there is no channel for the background (class 0). The class is the highest channel
    where its probability is at least 1/2, that is, its logit at least 0; else background. The confidence is its
    probability.
    Confidences are rounded to steps of 1/255 and 0 where the mask is 0: the background's probability is never computed,
    so a clean frame costs one pass of comparisons. A pixel's result depends on its own logits alone, bit for bit.
    """
    channels, lines, columns = scores.shape
    mask = np.zeros((lines, columns), np.uint8)
    confidence = np.zeros((lines, columns), np.uint8)
    if channels == 1 and activation == "softmax":
        return mask, confidence
    step = max(1, _BLOCK_PIXELS // max(1, columns))
    highest = np.empty((min(step, lines), columns), np.float32)
    found = np.empty(highest.shape, np.bool_)
    foreground = scores[1:] if activation == "softmax" else scores
    for start in range(0, lines, step):
        part = slice(start, min(start + step, lines))
        size = part.stop - start
        top = _highest(foreground[:, part], highest[:size])
        threshold = scores[0, part] if activation == "softmax" else 0.0
        compare = np.greater if activation == "softmax" else np.greater_equal
        if compare(top, threshold, out=found[:size]).any():
            _classify_found(scores[:, part], found[:size], activation, mask[part], confidence[part])
    return mask, confidence


def gate_scores(scores: Scores, activation: Activation) -> npt.NDArray[np.float32]:
    """Probability that a tile is defective: a classifier's logits (n, k) -> (n,) float32 in [0, 1].

    sigmoid: every channel is a kind of defect, the most probable counts. softmax: class 0 is clean steel, the others
    together count. Computed in float64 tile by tile, so that it does not depend on the batch.
    """
    logits = scores.astype(np.float64)
    if activation == "sigmoid":
        return _sigmoid(logits.max(axis=1)).astype(np.float32)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    defective = sum((powers[:, index] for index in range(1, powers.shape[1])), np.zeros(len(powers)))
    return np.asarray(defective / (powers[:, 0] + defective), np.float32)


def _highest(planes: Scores, out: Scores) -> Scores:
    """Element-wise maximum of planes (c, h, w); `out` is used from two planes on."""
    if len(planes) == 1:
        single: Scores = planes[0]
        return single
    np.maximum(planes[0], planes[1], out=out)
    for plane in planes[2:]:
        np.maximum(out, plane, out=out)
    return out


def _classify_found(scores: Scores, found: npt.NDArray[np.bool_], activation: Activation, mask: Bytes, confidence: Bytes) -> None:
    """Write class and confidence of the pixels in `found`."""
    pixels = np.ascontiguousarray(scores[:, found])
    winners = pixels.argmax(axis=0)
    if activation == "sigmoid":
        mask[found] = winners + 1
        probability = _sigmoid(pixels.max(axis=0).astype(np.float64))
    else:
        mask[found] = winners
        exact = pixels.astype(np.float64)
        exact -= exact.max(axis=0)
        # Added channel by channel: numpy's own sum adds in an order that depends on the memory's layout.
        total = np.zeros(exact.shape[1], np.float64)
        for channel in np.exp(exact, out=exact):
            total += channel
        probability = 1.0 / total
    confidence[found] = np.rint(probability * 255.0)


def _sigmoid(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """1 / (1 + exp(-x)), without overflow for any x: exp of a large positive number is infinite and gives 0."""
    with np.errstate(over="ignore"):
        return 1.0 / (1.0 + np.exp(-logits))
