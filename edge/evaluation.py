"""Quality figures from one confusion matrix summed over all images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge.errors import RustEdgeError

Labels = npt.NDArray[np.integer]


class Confusion:
    """Counts of (truth, predicted) class pairs, summed over everything that was added.

    classes: names in index order; the first is the background of a segmenter, `clean` of a gate.
    counts: (classes, classes) int64; row is the truth, column the prediction.
    added: how many arrays were added (images, or batches of labels).
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        if len(self.classes) < 2:
            raise ValueError(f"a confusion matrix needs at least 2 classes, got {list(self.classes)}")
        self.counts = np.zeros((len(self.classes), len(self.classes)), np.int64)
        self.added = 0

    def add(self, truth: Labels, predicted: Labels) -> None:
        """Count every pixel (or label) of two arrays of class indices of one shape.

        Raises RustEdgeError where shapes differ or an index is not a class.
        """
        if truth.shape != predicted.shape:
            raise RustEdgeError(f"truth is {truth.shape}, prediction {predicted.shape}: expected one shape")
        n = len(self.classes)
        for what, labels in (("truth", truth), ("prediction", predicted)):
            if labels.size and (labels.min() < 0 or labels.max() >= n):
                raise RustEdgeError(
                    f"{what} holds class indices {labels.min()} to {labels.max()}; expected 0..{n - 1}: {', '.join(self.classes)}"
                )
        pairs = truth.astype(np.int64).ravel() * n + predicted.astype(np.int64).ravel()
        self.counts += np.bincount(pairs, minlength=n * n).reshape(n, n)
        self.added += 1

    @property
    def total(self) -> int:
        """Pixels (or labels) counted."""
        return int(self.counts.sum())

    def iou(self) -> dict[str, float]:
        """Intersection over union by class; a class that neither truth nor prediction holds is left out.

        Source: Everingham et al., The PASCAL Visual Object Classes Challenge, IJCV 88 (2010), section 4.3:
        true positives / (true positives + false positives + false negatives).
        """
        hits, truth, predicted = self._margins()
        union = truth + predicted - hits
        return {name: float(hits[i] / union[i]) for i, name in enumerate(self.classes) if union[i]}

    def dice(self) -> dict[str, float]:
        """Dice coefficient by class, 2 true positives / (truth + predicted); absent classes are left out."""
        hits, truth, predicted = self._margins()
        both = truth + predicted
        return {name: float(2 * hits[i] / both[i]) for i, name in enumerate(self.classes) if both[i]}

    def mean_iou(self) -> float:
        """Mean IoU over all classes that occur, background too; nan if nothing was counted."""
        return _mean(list(self.iou().values()))

    def mean_iou_defects(self) -> float:
        """Mean IoU over the classes that occur, without class 0; nan if none occurs."""
        return _mean([iou for name, iou in self.iou().items() if name != self.classes[0]])

    def _margins(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        return np.diagonal(self.counts), self.counts.sum(axis=1), self.counts.sum(axis=0)


@dataclass(frozen=True, slots=True)
class ClassifierFigures:
    """Quality of a two-class classifier, class 1 (`defect`) being the positive one; nan where undefined.

    accuracy: share of tiles judged right. recall: share of defective tiles called so.
    precision: share of the tiles called defective that are. passed_clean: share of clean tiles called defective.
    confusion: rows truth, columns prediction.
    """

    accuracy: float
    recall: float
    precision: float
    passed_clean: float
    confusion: tuple[tuple[int, ...], ...]


def classifier_figures(confusion: Confusion) -> ClassifierFigures:
    """Figures of a classifier; with more than two classes every one but the first counts as defective."""
    counts = confusion.counts
    called, defective = counts[:, 1:].sum(), counts[1:, :].sum()
    found = counts[1:, 1:].sum()
    return ClassifierFigures(
        accuracy=_ratio(np.trace(counts), counts.sum()),
        recall=_ratio(found, defective),
        precision=_ratio(found, called),
        passed_clean=_ratio(counts[0, 1:].sum(), counts[0].sum()),
        confusion=tuple(tuple(int(count) for count in row) for row in counts),
    )


def _ratio(part: int | np.integer, whole: int | np.integer) -> float:
    return float(part) / float(whole) if whole else float("nan")


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
