"""From an engine's answer to classes and probabilities: the arg-max in planes, exponentials only where something was found.

An answer in integers is compared as it is, four times as many pixels at once as floats; what it stands for is looked up, and only
where something was found. The result is that of the floats, bit for bit.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edge.sessions import Scores, Steps

Activation = Literal["softmax", "sigmoid"]
Head = Literal["logits", "probabilities", "mask"]
Bytes = npt.NDArray[np.uint8]
_BLOCK_BYTES = 1 << 18
"""Of a plane looked at in one go, so that the running maximum stays in the second-level cache."""
_INTEGERS = 256


@dataclass(frozen=True, slots=True)
class Reading:
    """What an engine's answer means: enough to make classes of it.

    level: of a sigmoid, the probability from which a class is there.
    defective_from: of a classifier, the probability of any defect from which a tile is given its most probable kind of
        defect; None: a tile has the class that `classify` gives it.
    steps: of logits in integers, what they stand for; None: logits are floats. Other heads have none.
    """

    activation: Activation
    head: Head = "logits"
    level: float = 0.5
    defective_from: float | None = None
    steps: Steps | None = None

    def classes(self, scores: Scores) -> tuple[Bytes, Bytes]:
        """Class and confidence, (h, w) uint8 each, of an answer (c, h, w); a tile's that was judged whole is (c, 1, 1)."""
        if self.defective_from is None:
            return classify(scores, self.activation, self.head, self.level, self.steps)
        return classify_defective(scores, self.activation, self.defective_from, self.head, self.steps)

    def probabilities(self, scores: Scores) -> Scores:
        """Probability of every channel of an answer (c, ...), float32. Raises ValueError for a mask."""
        return probabilities(scores, self.activation, self.head, self.steps)


def classify(
    scores: Scores, activation: Activation, head: Head = "logits", level: float = 0.5, steps: Steps | None = None
) -> tuple[Bytes, Bytes]:
    """Class and confidence of every pixel: scores (c, h, w) -> mask, confidence, both (h, w) uint8.

    softmax: channel i is class i, channel 0 the background. The class is the highest channel, the lowest index where
    several are equal; the confidence its softmax probability.
    sigmoid: channel i is class i + 1, there is no channel for the background (class 0). The class is the highest channel
    where its probability is at least `level`; else background. The confidence is its probability.
    head: logits or probabilities, float32; or mask, the class index and its probability in steps of 1/255, taken as they
    are: the engine has decided.
    steps: of uint8 logits, which then give what `float_scores` of them do.
    Confidences are rounded to steps of 1/255 and 0 where the mask is 0: the background's probability is never computed,
    so a clean frame costs one pass of comparisons. A pixel's result depends on its own scores alone, bit for bit.
    """
    channels, lines, columns = scores.shape
    if head == "mask":
        decided = np.array(scores[0], np.uint8)
        return decided, np.where(decided > 0, scores[1], 0).astype(np.uint8)
    mask = np.zeros((lines, columns), np.uint8)
    confidence = np.zeros((lines, columns), np.uint8)
    if channels == 1 and activation == "softmax":
        return mask, confidence
    known = steps if head == "logits" else None
    enough = least_score(level, head, known)
    if enough is None and activation == "sigmoid":
        return mask, confidence
    step = max(1, _BLOCK_BYTES // max(1, columns * scores.itemsize))
    highest = np.empty((min(step, lines), columns), scores.dtype)
    found = np.empty(highest.shape, np.bool_)
    foreground = scores[1:] if activation == "softmax" else scores
    for start in range(0, lines, step):
        part = slice(start, min(start + step, lines))
        size = part.stop - start
        top = _highest(foreground[:, part], highest[:size])
        threshold = scores[0, part] if enough is None or activation == "softmax" else enough
        compare = np.greater if activation == "softmax" else np.greater_equal
        if compare(top, threshold, out=found[:size]).any():
            _classify_found(scores[:, part], found[:size], activation, head, known, mask[part], confidence[part])
    return mask, confidence


def classify_defective(
    scores: Scores, activation: Activation, defective_from: float, head: Head = "logits", steps: Steps | None = None
) -> tuple[Bytes, Bytes]:
    """Class and confidence where something is defective from a stated probability on: (c, h, w) -> two (h, w) uint8.

    Where the probability of a defect, that of `gate_scores`, is at least `defective_from` the class is the most probable
    kind of defect, however probable class 0 may be; elsewhere it is 0. The confidence is that kind's own probability.
    """
    channels, *size = scores.shape
    if steps is not None and head == "logits":
        scores = float_scores(scores, steps)
    defective = gate_scores(scores.reshape(channels, -1).T, activation, head).reshape(size) >= np.float32(defective_from)
    first = 1 if activation == "softmax" else 0
    mask = np.where(defective, scores[first:].argmax(axis=0) + 1, 0).astype(np.uint8)
    confidence = np.rint(probabilities(scores, activation, head)[first:].max(axis=0) * 255.0)
    return mask, np.where(defective, confidence, 0).astype(np.uint8)


def float_scores(scores: npt.NDArray[np.generic], steps: Steps) -> Scores:
    """The float32 logits that integers (uint8, any shape) stand for: what the engine's file answers."""
    floats: Scores = _values(steps).take(np.asarray(scores, np.uint8))
    return floats


def probabilities(scores: Scores, activation: Activation, head: Head = "logits", steps: Steps | None = None) -> Scores:
    """Probability of every channel, (c, ...) float32 -> the same shape, a new array. Raises ValueError for a mask.

    steps: of uint8 logits.
    """
    if head == "mask":
        raise ValueError("a mask holds one class of each pixel, expected logits or probabilities of all of them")
    if head == "probabilities":
        return np.array(scores, np.float32)
    logits = (scores if steps is None else float_scores(scores, steps)).astype(np.float64)
    if activation == "sigmoid":
        return _sigmoid(logits).astype(np.float32)
    powers = np.exp(logits - logits.max(axis=0))
    return np.asarray(powers / _sum(powers), np.float32)


def gate_scores(
    scores: Scores, activation: Activation, head: Head = "logits", steps: Steps | None = None
) -> npt.NDArray[np.float32]:
    """Probability that a tile is defective: a classifier's answer (n, k) -> (n,) float32 in [0, 1]. steps: of uint8 logits.

    sigmoid: every channel is a kind of defect, the most probable counts. softmax: class 0 is clean steel, the others
    together count. Computed in float64 tile by tile, so that it does not depend on the batch.
    """
    floats = scores if steps is None or head != "logits" else float_scores(scores, steps)
    exact = floats.astype(np.float64)
    if activation == "sigmoid":
        highest = exact.max(axis=1)
        return (_sigmoid(highest) if head == "logits" else highest).astype(np.float32)
    powers = np.exp(exact - exact.max(axis=1, keepdims=True)) if head == "logits" else exact
    defective = _sum(powers.T[1:])
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


def _classify_found(
    scores: Scores,
    found: npt.NDArray[np.bool_],
    activation: Activation,
    head: Head,
    steps: Steps | None,
    mask: Bytes,
    confidence: Bytes,
) -> None:
    """Write class and confidence of the pixels in `found`; all (h, w), mask and confidence contiguous."""
    places = np.flatnonzero(found)
    pixels = _gathered(scores, found, places)
    first = 1 if activation == "sigmoid" else 0
    winners, probability = (
        _float_winners(pixels, activation, head) if steps is None else _integer_winners(pixels, activation, steps)
    )
    mask.reshape(-1)[places] = winners + first
    confidence.reshape(-1)[places] = np.rint(np.clip(probability, 0.0, 1.0) * 255.0)


def _gathered(scores: Scores, found: npt.NDArray[np.bool_], places: npt.NDArray[np.int64]) -> Scores:
    """Scores (c, h, w) of some pixels, (c, k). places: theirs in a plane laid out without gaps."""
    _, lines, columns = scores.shape
    _, pitch, gap = scores.strides
    if gap != scores.itemsize or pitch < columns * gap:
        return np.ascontiguousarray(scores[:, found])
    pitch //= gap
    if pitch != columns:
        places = places + places // columns * (pitch - columns)
    span = (lines - 1) * pitch + columns
    gathered = np.empty((len(scores), len(places)), scores.dtype)
    for plane, values in zip(scores, gathered, strict=True):
        # a plane of a wider array is one stretch of memory, of which `take` needs no copy, as it does of two axes
        np.lib.stride_tricks.as_strided(plane, (span,), (gap,)).take(places, out=values, mode="clip")
    return gathered


def _float_winners(pixels: Scores, activation: Activation, head: Head) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """The highest channel of each pixel (c, k), and its probability."""
    winners = pixels.argmax(axis=0)
    exact = pixels.astype(np.float64)
    highest = exact.max(axis=0)
    if head == "probabilities":
        return winners, highest
    if activation == "sigmoid":
        return winners, _sigmoid(highest)
    return winners, 1.0 / _sum(np.exp(exact - highest))


def _integer_winners(pixels: npt.NDArray[Any], activation: Activation, steps: Steps) -> tuple[Bytes, npt.NDArray[np.float64]]:
    """The same of integer logits."""
    highest = pixels.max(axis=0)
    winners = np.zeros(len(highest), np.uint8)
    for channel in reversed(range(len(pixels))):  # the lowest of several that are as high is written last
        np.copyto(winners, np.uint8(channel), where=pixels[channel] == highest)
    exact = _values(steps).astype(np.float64)
    if activation == "sigmoid":
        return winners, _sigmoid(exact).take(highest)
    top, total = exact.take(highest), np.zeros(len(highest), np.float64)
    for channel in pixels:
        total += np.exp(exact.take(channel) - top)
    return winners, 1.0 / total


@functools.lru_cache(maxsize=8)
def _values(steps: Steps) -> Scores:
    """The float32 logit of each integer, (256,), as DequantizeLinear computes it. Source: ONNX operator DequantizeLinear-13."""
    return np.asarray((np.arange(_INTEGERS) - steps.zero).astype(np.float32) * np.float32(steps.size), np.float32)


def least_score(level: float, head: Head, steps: Steps | None) -> npt.NDArray[Any] | None:
    """The lowest score whose probability is at least `level`, of a sigmoid; None: no integer is as high."""
    if head != "logits":
        return np.array(level, np.float32)
    logit = np.array(_logit(level), np.float32)
    if steps is None:
        return logit
    integer = int(np.searchsorted(_values(steps), logit))
    return np.array(integer, np.uint8) if integer < _INTEGERS else None


def _sum(planes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Sum over the first axis, plane by plane: numpy's own sum adds in an order that depends on the memory's layout."""
    total = np.zeros(planes.shape[1:], np.float64)
    for plane in planes:
        total += plane
    return total


def _sigmoid(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """1 / (1 + exp(-x)), without overflow for any x: exp of a large positive number is infinite and gives 0."""
    with np.errstate(over="ignore"):
        return 1.0 / (1.0 + np.exp(-logits))


def _logit(probability: float) -> float:
    """The number whose sigmoid is that probability: -inf for 0, inf for 1."""
    if probability <= 0.0 or probability >= 1.0:
        return math.copysign(math.inf, probability - 0.5)
    return math.log(probability / (1.0 - probability))
