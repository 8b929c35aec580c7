"""What an engine is worth on labelled images: mean IoU of a segmenter, recall and clean tiles let through of a classifier."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from calibration.thresholds import ClassThreshold, ThresholdSearch, gate_threshold, threshold_at
from edge.evaluation import ClassifierFigures, Confusion, classifier_figures
from edge.manifest import GateThreshold
from edge.scores import Activation, classify, gate_scores
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
class ClassifierQuality:
    """Measured over tiles: figures and confusion by the most probable class, and the threshold on the defect's probability.

    threshold: None where the classes alone decide. passed: share of defective, and of clean tiles at or above `held_at`,
    the threshold that the float engine was given.
    """

    figures: ClassifierFigures
    threshold: GateThreshold | None
    passed: tuple[float, float]
    defective: int
    clean: int

    @property
    def judged(self) -> float:
        """What a loss is counted in, 0 to 1.

        With a threshold Youden's J there, recall minus the share of clean tiles let through: an engine that keeps its
        recall by letting everything through has lost it too. Source: Youden, Cancer 3 (1950) 32. Without one, accuracy.
        """
        return self.passed[0] - self.passed[1] if self.threshold else self.figures.accuracy


@dataclass(frozen=True, slots=True)
class Reading:
    """How a segmenter's scores of an image are read.

    reach: the margin that an image is reflected by, and the multiple that its size becomes; (1, 0) for ready-made tiles.
    """

    classes: Sequence[str]
    activation: Activation
    pixel_threshold: float
    reach: Reach

    def masks(self, session: Session, image: Image) -> tuple[Image, Image]:
        """Class and confidence of every pixel of an image, both (h, w) uint8."""
        scores = np.ascontiguousarray(predict(session, image, self.reach))
        return classify(scores, self.activation, level=self.pixel_threshold)


def predict(session: Session, image: Image, reach: Reach) -> Scores:
    """Scores (channels, h, w) of a whole image, reflected at its four sides as dense inspection does."""
    padded = reflect(image, reach.halo, reach.stride)
    lines, columns = image.shape
    scores: Scores = session.infer(padded[None, None])[0]
    return scores[:, reach.halo : reach.halo + lines, reach.halo : reach.halo + columns]


def measure_segmenter(
    session: Session, validation: Sequence[Labelled], reading: Reading, what: str = "validation"
) -> SegmenterQuality:
    """Run a segmenter over labelled images. Raises RustEdgeError where a mask holds other classes."""
    confusion, search = Confusion(reading.classes), ThresholdSearch(reading.classes)
    worst: list[tuple[float, int, WorstImage]] = []
    for index, (image, truth) in enumerate(tqdm(validation, desc=what, leave=False, disable=None)):
        mask, confidence = reading.masks(session, image)
        confusion.add(truth, mask)
        search.add(truth, mask, confidence)
        wrong = float((mask != truth).mean())
        heapq.heappush(worst, (wrong, -index, WorstImage(wrong, image, truth, mask)))
        if len(worst) > WORST_KEPT:
            heapq.heappop(worst)
    ordered = tuple(entry[2] for entry in sorted(worst, key=lambda entry: entry[:2], reverse=True))
    return SegmenterQuality(confusion, search.choose(), ordered)


def own_masks(session: Session, images: Sequence[Image], reading: Reading) -> list[Labelled]:
    """Images with an engine's own masks as the truth: what a loss is measured against where nobody has labelled any."""
    return [(image, reading.masks(session, image)[0]) for image in images]


@dataclass(frozen=True, slots=True)
class ClassifierReading:
    """How a classifier's logits are judged.

    fixed: the threshold that its system has; None: chosen at `recall` for a gate. gate: whether there is a threshold at all.
    """

    classes: Sequence[str]
    activation: Activation
    recall: float
    fixed: float | None
    gate: bool


def measure_classifier(
    session: Session,
    tiles: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.intp],
    reading: ClassifierReading,
    held_at: float | None = None,
) -> ClassifierQuality:
    """Run a classifier over labelled tiles, (n, 1, h, w) uint8 and their class indices (n,).

    held_at: threshold at which to compare with the float engine; None: this engine's own.
    Raises RustEdgeError where a gate's tiles are all defective or all clean.
    """
    logits = np.concatenate(list(classifier_logits(session, tiles)))
    scores = gate_scores(logits, reading.activation)
    defective = labels > 0
    threshold = None
    if reading.gate and reading.fixed is None:
        threshold = gate_threshold(scores, defective, reading.recall)
    elif reading.gate and reading.fixed is not None:
        threshold = threshold_at(scores, defective, reading.fixed)
    confusion = Confusion(reading.classes)
    confusion.add(labels, _decided(logits, reading.activation))
    held = held_at if held_at is not None else threshold.score if threshold else 0.5
    return ClassifierQuality(
        figures=classifier_figures(confusion),
        threshold=threshold,
        passed=(_share(scores[defective] >= held), _share(scores[~defective] >= held)),
        defective=int(defective.sum()),
        clean=int((~defective).sum()),
    )


def classifier_logits(session: Session, tiles: npt.NDArray[np.uint8]) -> Iterator[Scores]:
    """Logits of tiles in batches, (n, channels) float32 each."""
    for start in range(0, len(tiles), TILES_AT_ONCE):
        yield session.infer(tiles[start : start + TILES_AT_ONCE]).copy()


def _decided(logits: Scores, activation: Activation) -> npt.NDArray[np.intp]:
    """The most probable class; where clean steel has no logit, clean below an even chance."""
    if activation == "sigmoid":
        logits = np.concatenate([np.zeros_like(logits[:, :1]), logits], axis=1)
    return np.asarray(logits.argmax(axis=1), np.intp)


def _share(flags: npt.NDArray[np.bool_]) -> float:
    return float(flags.mean()) if flags.size else 0.0
