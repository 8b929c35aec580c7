"""Thresholds from validation data: the gate's at a stated recall, a segmenter's low and high per class."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from edge.errors import RustEdgeError
from edge.manifest import GateThreshold, Threshold

STEPS = 255
"""Confidence comes in steps of 1/255, as `MaskRows.confidence` has it."""

SCORE_STEPS = 1_000_000
"""A stored score is a multiple of 1/SCORE_STEPS, rounded down: rounded up, the weakest defective tile would fall below it."""

UNMEASURED = Threshold(low=0.0, high=0.5)
"""For a class that validation does not hold: every pixel counts, a region must peak at an even chance."""

KEPT_DEFECTS = 0.99
"""Share of the defects found without thresholds that `high` keeps: one in a hundred is given for fewer false alarms."""

Mask = npt.NDArray[np.uint8]


def gate_threshold(scores: npt.NDArray[np.floating], defective: npt.NDArray[np.bool_], recall: float) -> GateThreshold:
    """The highest score at which at least `recall` of the defective tiles go on.

    scores: (n,) probabilities of a defect, 0 to 1. defective: (n,) truth. recall: above 0, up to 1.
    Raises RustEdgeError where either kind of tile is missing, or a score is not a probability.
    """
    if scores.ndim != 1 or scores.shape != defective.shape:
        raise RustEdgeError(f"scores are {scores.shape}, labels {defective.shape}; expected one of each per tile")
    if not 0.0 < recall <= 1.0:
        raise RustEdgeError(f"recall is {recall}, expected above 0 and up to 1")
    if not (scores.size and np.all((scores >= 0) & (scores <= 1))):
        raise RustEdgeError("gate scores are not probabilities; expected numbers from 0 to 1 for at least one tile")
    positives = np.sort(scores[defective].astype(np.float64))
    negatives = scores[~defective].astype(np.float64)
    if not positives.size or not negatives.size:
        raise RustEdgeError(
            f"validation holds {positives.size} defective and {negatives.size} clean tiles; "
            "expected some of both: the threshold is where they part"
        )
    # the tolerance keeps 0.999 * 1000 from becoming 1000 by its last bit
    lost_at_most = math.floor(positives.size * (1.0 - recall) + 1e-9)
    lowest_kept = positives[lost_at_most]
    score = math.floor(lowest_kept * SCORE_STEPS) / SCORE_STEPS
    return GateThreshold(score=score, recall=float((positives >= score).mean()), passed_clean=float((negatives >= score).mean()))


def threshold_at(scores: npt.NDArray[np.floating], defective: npt.NDArray[np.bool_], score: float) -> GateThreshold:
    """A threshold that is given, with what it does on validation. Without tiles of a kind its share counts as 1 (let through).

    scores: (n,) probabilities of a defect. defective: (n,) truth.
    """
    passed = scores >= score
    shares = [float(passed[kind].mean()) if kind.any() else 1.0 for kind in (defective, ~defective)]
    return GateThreshold(score=score, recall=shares[0], passed_clean=shares[1])


@dataclass(frozen=True, slots=True)
class ClassThreshold:
    """Thresholds of one class and what they do on validation.

    iou, iou_at_zero: with pixels below `low` taken out, and without. defects: truth regions of the class that were touched
    without thresholds; kept: those whose peak reaches `high`. false_regions, false_kept: predicted regions without any
    truth of the class, before and after `high`. measured: False where validation does not hold the class.
    """

    threshold: Threshold
    iou: float
    iou_at_zero: float
    defects: int
    kept: int
    false_regions: int
    false_kept: int
    measured: bool = True


class ThresholdSearch:
    """Collects what the thresholds are chosen from, one image at a time."""

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = tuple(classes)
        n = len(self._classes)
        self._hits = np.zeros((n, STEPS + 1), np.int64)
        self._misses = np.zeros((n, STEPS + 1), np.int64)
        self._truth = np.zeros(n, np.int64)
        self._true_peaks: list[list[int]] = [[] for _ in range(n)]
        self._false_peaks: list[list[int]] = [[] for _ in range(n)]

    def add(self, truth: Mask, mask: Mask, confidence: Mask) -> None:
        """One image: class index per pixel as it is and as predicted, and the prediction's confidence in steps of 1/255."""
        for index in range(1, len(self._classes)):
            predicted, true = mask == index, truth == index
            self._truth[index] += int(true.sum())
            self._hits[index] += np.bincount(confidence[predicted & true], minlength=STEPS + 1)
            self._misses[index] += np.bincount(confidence[predicted & ~true], minlength=STEPS + 1)
            seen = np.where(predicted, confidence, 0)
            self._true_peaks[index] += [int(peak) for peak in _region_maxima(true, seen) if peak]
            touched = _region_maxima(predicted, true.astype(np.uint8))
            peaks = _region_maxima(predicted, seen)
            self._false_peaks[index] += [int(peak) for peak, truly in zip(peaks, touched, strict=True) if not truly]

    def choose(self) -> dict[str, ClassThreshold]:
        """Thresholds by class name, without the background.

        low: the confidence at which the class's IoU is highest, the lowest one where several are.
        high: the highest peak that KEPT_DEFECTS of the defects touched at all reach, and not below low.
        """
        return {name: self._choose(index) for index, name in enumerate(self._classes) if index}

    def _choose(self, index: int) -> ClassThreshold:
        true_peaks = np.sort(np.asarray(self._true_peaks[index], np.int64))
        false_peaks = np.asarray(self._false_peaks[index], np.int64)
        if not self._truth[index] or not true_peaks.size:
            return ClassThreshold(UNMEASURED, 0.0, 0.0, 0, 0, false_peaks.size, false_peaks.size, measured=False)
        iou = iou_by_threshold(self._hits[index], self._misses[index], int(self._truth[index]))
        low = int(np.argmax(iou))
        high = max(low, int(true_peaks[math.floor(true_peaks.size * (1.0 - KEPT_DEFECTS) + 1e-9)]))
        return ClassThreshold(
            threshold=Threshold(low=_probability(low), high=_probability(high)),
            iou=float(iou[low]),
            iou_at_zero=float(iou[0]),
            defects=int(true_peaks.size),
            kept=int((true_peaks >= high).sum()),
            false_regions=int(false_peaks.size),
            false_kept=int((false_peaks >= high).sum()),
        )


def iou_by_threshold(hits: npt.NDArray[np.int64], misses: npt.NDArray[np.int64], truth: int) -> npt.NDArray[np.float64]:
    """IoU of a class when only pixels of at least each confidence count.

    hits, misses: (256,) predicted pixels by confidence, on the class's truth and off it. truth: its pixels.
    IoU = hits / (truth + misses), since truth + predicted - hits = truth + misses.

    >>> import numpy as np
    >>> hits, misses = np.zeros(256, int), np.zeros(256, int)
    >>> hits[200], misses[100] = 8, 4
    >>> [round(float(value), 2) for value in iou_by_threshold(hits, misses, 10)[[0, 101, 201]]]
    [0.57, 0.8, 0.0]
    """
    kept_hits = hits[::-1].cumsum()[::-1]
    kept_misses = misses[::-1].cumsum()[::-1]
    iou: npt.NDArray[np.float64] = kept_hits / (truth + kept_misses)
    return iou


def _region_maxima(regions: npt.NDArray[np.bool_], values: Mask) -> Iterable[int]:
    """Highest value in each 8-connected region."""
    count, labels = cv2.connectedComponents(regions.astype(np.uint8), connectivity=8)
    maxima = np.zeros(count, np.int64)
    np.maximum.at(maxima, labels.ravel().astype(np.intp), values.ravel().astype(np.int64))
    return [int(value) for value in maxima[1:]]


def _probability(step: int) -> float:
    # rounded down, so that a comparison in either unit keeps the pixels that have exactly this step
    return math.floor(step / STEPS * SCORE_STEPS) / SCORE_STEPS
