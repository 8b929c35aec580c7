"""What an engine is worth on labelled images: mean IoU of a segmenter, accuracy and clean tiles let through of a gate."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from calibration.thresholds import ClassThreshold, ThresholdSearch, gate_threshold
from edge.evaluation import ClassifierFigures, Confusion, classifier_figures
from edge.manifest import GateThreshold
from edge.scores import classify, gate_scores
from edge.sessions import Scores, Session
from export.radius import Reach
from export.samples import Image, Labelled, reflect

TILES_AT_ONCE = 64
WORST_KEPT = 3
"""Images that the report shows."""


@dataclass(frozen=True, slots=True)
class WorstImage:
    """An image with many wrong pixels: what it is, what it should be, what the engine says. wrong: share of its pixels."""

    wrong: float
    image: Image
    truth: Image
    mask: Image


@dataclass(frozen=True, slots=True)
class SegmenterQuality:
    """Measured over whole images: confusion (argmax, no thresholds), thresholds chosen by class, and the worst images."""

    confusion: Confusion
    thresholds: dict[str, ClassThreshold]
    worst: tuple[WorstImage, ...]

    @property
    def judged(self) -> float:
        """What a loss is counted in: mean IoU, 0 to 1."""
        return self.confusion.mean_iou()


@dataclass(frozen=True, slots=True)
class GateQuality:
    """Measured over tiles: figures at an even chance, and the threshold at the stated recall."""

    figures: ClassifierFigures
    threshold: GateThreshold
    defective: int
    clean: int

    @property
    def judged(self) -> float:
        """What a loss is counted in: accuracy at an even chance, 0 to 1. Recall is kept by the threshold's choice."""
        return self.figures.accuracy


def predict(session: Session, image: Image, reach: Reach) -> Scores:
    """Scores (classes, h, w) of a whole image, reflected at its four sides as dense inspection does."""
    padded = reflect(image, reach.halo, reach.stride)
    lines, columns = image.shape
    scores: Scores = session.infer(padded[None, None])[0]
    return scores[:, reach.halo : reach.halo + lines, reach.halo : reach.halo + columns]


def measure_segmenter(
    session: Session, validation: Sequence[Labelled], classes: Sequence[str], reach: Reach, what: str = "validation"
) -> SegmenterQuality:
    """Run a segmenter over labelled images. Raises RustEdgeError where a mask holds other classes."""
    confusion, search = Confusion(classes), ThresholdSearch(classes)
    worst: list[tuple[float, int, WorstImage]] = []
    for index, (image, truth) in enumerate(tqdm(validation, desc=what, leave=False, disable=None)):
        mask, confidence = classify(np.ascontiguousarray(predict(session, image, reach)), "softmax")
        confusion.add(truth, mask)
        search.add(truth, mask, confidence)
        wrong = float((mask != truth).mean())
        heapq.heappush(worst, (wrong, -index, WorstImage(wrong, image, truth, mask)))
        if len(worst) > WORST_KEPT:
            heapq.heappop(worst)
    ordered = tuple(entry[2] for entry in sorted(worst, key=lambda entry: entry[:2], reverse=True))
    return SegmenterQuality(confusion, search.choose(), ordered)


def own_masks(session: Session, images: Sequence[Image], reach: Reach) -> list[Labelled]:
    """Images with an engine's own masks as the truth: what a loss is measured against where nobody has labelled any."""
    return [(image, classify(np.ascontiguousarray(predict(session, image, reach)), "softmax")[0]) for image in images]


def measure_gate(
    session: Session, tiles: npt.NDArray[np.uint8], defective: npt.NDArray[np.bool_], classes: Sequence[str], recall: float
) -> GateQuality:
    """Run a gate over labelled tiles, (n, 1, h, w) uint8 and (n,). Raises RustEdgeError where a kind of tile is missing."""
    scores = np.concatenate([gate_scores(part, "sigmoid") for part in gate_logits(session, tiles)])
    confusion = Confusion(classes)
    confusion.add(defective.astype(np.int64), (scores >= 0.5).astype(np.int64))
    return GateQuality(
        figures=classifier_figures(confusion),
        threshold=gate_threshold(scores, defective, recall),
        defective=int(defective.sum()),
        clean=int((~defective).sum()),
    )


def gate_logits(session: Session, tiles: npt.NDArray[np.uint8]) -> Iterator[Scores]:
    """Logits of tiles in batches, (n, 1) float32 each."""
    for start in range(0, len(tiles), TILES_AT_ONCE):
        yield session.infer(tiles[start : start + TILES_AT_ONCE]).copy()
