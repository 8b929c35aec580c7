"""Whether an engine still answers as the network that it was made from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from edge.evaluation import Confusion
from edge.manifest import Streaming
from edge.scores import Activation, classify, probabilities
from edge.sessions import Batch, Scores, Session, StreamingSession
from export.errors import ExportError
from export.samples import Image

ScoreHead = Literal["logits", "probabilities"]

FLOAT_TOLERANCE = 1e-4
"""Largest difference of float scores, as a share of their spread: another order of summation gives some 1e-6."""

STREAM_TOLERANCE = 0.01
"""Of the scores' spread: what dense inspection may differ by from one inference over the whole strip."""

STREAM_CHUNK = 64
"""Lines per step at which the streaming engine is compared, rounded up to its stride."""

HISTOGRAM_EDGES = (0.0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, np.inf)
"""Of differences as shares of the spread: float rounding up to 1e-5, integer steps from there on, another network above 0.1."""

_OUTLIER = 1e-2
"""As `edge.bundle.SCORE_TOLERANCE`: by so much of the spread a score may differ on another processor."""


@dataclass(frozen=True, slots=True)
class Parity:
    """Differences of scores as shares of the reference's spread, highest minus lowest.

    changed: share of labels that differ; labels: how many there are.
    histogram: scores by their difference, counted between the HISTOGRAM_EDGES; what is no number is in the last bin.
    agreement: by class index, intersection over union of the two labellings; nan where neither has the class.
    """

    max_difference: float
    mean_difference: float
    changed: float
    spread: float
    labels: int
    histogram: tuple[int, ...]
    agreement: tuple[float, ...]

    @property
    def outliers(self) -> float:
        """Share of scores that differ by more than 1 % of the spread."""
        return sum(self.histogram[HISTOGRAM_EDGES.index(_OUTLIER) :]) / sum(self.histogram)

    @property
    def mean_agreement(self) -> float:
        """Mean intersection over union of the classes that occur."""
        return float(np.nanmean(self.agreement))

    def figures(self) -> dict[str, float]:
        """By name, for a report."""
        names = ("max_difference", "mean_difference", "outliers", "changed", "mean_agreement", "spread")
        return {name: float(getattr(self, name)) for name in names}


def compare_scores(
    reference: Iterable[Scores],
    candidate: Iterable[Scores],
    activation: Activation = "softmax",
    level: float = 0.5,
    head: ScoreHead = "logits",
) -> Parity:
    """Compare batches of scores, (n, channels, h, w) or (n, channels), of the same input.

    activation, level, head: how a station makes classes of them. Raises ExportError for other shapes.
    """
    highest, lowest = -np.inf, np.inf
    differences: list[npt.NDArray[np.float32]] = []
    confusion: Confusion | None = None
    for expected, got in zip(reference, candidate, strict=True):
        if expected.shape != got.shape:
            raise ExportError(f"the engine answers {got.shape}, the network {expected.shape}; expected the same shape")
        highest, lowest = max(highest, float(expected.max())), min(lowest, float(expected.min()))
        differences.append(np.abs(got.astype(np.float64) - expected).astype(np.float32).ravel())
        confusion = confusion or Confusion(_class_indices(expected, activation))
        confusion.add(labels_of(expected, activation, level, head), labels_of(got, activation, level, head))
    if confusion is None or not confusion.total:
        raise ExportError("no scores to compare; expected at least one tile")
    spread = highest - lowest or 1.0
    shares = np.concatenate(differences) / np.float32(spread)
    iou = confusion.iou()
    return Parity(
        max_difference=float(shares.max()),
        mean_difference=float(shares.mean(dtype=np.float64)),
        changed=1.0 - float(np.trace(confusion.counts)) / confusion.total,
        spread=spread,
        labels=confusion.total,
        histogram=_histogram(shares),
        agreement=tuple(iou.get(name, float("nan")) for name in confusion.classes),
    )


def labels_of(scores: Scores, activation: Activation, level: float = 0.5, head: ScoreHead = "logits") -> npt.NDArray[np.uint8]:
    """Class of every pixel or tile as a station decides: scores (n, channels, h, w) -> (n, h, w); (n, channels) -> (n,)."""
    tiles, channels, *size = scores.shape
    planes = np.moveaxis(scores, 1, 0).reshape(channels, tiles, -1)
    with np.errstate(invalid="ignore"):  # what is no number has no confidence, and no caller asks for one here
        labels, _ = classify(planes, _activation(channels, activation), head, level)
    return labels.reshape(tiles, *size)


def verify_float(
    reference: Callable[[Batch], Scores],
    session: Session,
    batches: Iterable[Batch],
    activation: Activation = "softmax",
    head: ScoreHead = "logits",
) -> Parity:
    """The framework that trained a network against the float engine on real tiles. Raises ExportError beyond FLOAT_TOLERANCE.

    head: what `reference` answers; the engine answers logits.
    """
    expected, got = [], []
    for batch in batches:
        expected.append(np.array(reference(batch), np.float32))
        scores = session.infer(batch)
        got.append(scores.copy() if head == "logits" else _to_probabilities(scores, activation))
    parity = compare_scores(expected, got, activation, head=head)
    if not parity.max_difference <= FLOAT_TOLERANCE:
        raise ExportError(
            f"the exported graph differs from the network by {parity.max_difference:.2e} of the scores' spread, "
            f"expected at most {FLOAT_TOLERANCE:.0e}: an operator was exported wrongly, or weights are not finite"
        )
    return parity


def verify_stream(
    open_stream: Callable[[int, int], StreamingSession],
    session: Session,
    streaming: Streaming,
    halo: int,
    strip: Image,
    activation: Activation = "softmax",
) -> Parity:
    """The streaming engine against one inference over a strip; raises ExportError beyond STREAM_TOLERANCE.

    open_stream(width, chunk_lines) gives the streaming session, of the same backend as `session`. strip: (lines, columns)
    uint8, already reflected by the halo on its four sides, columns a multiple of the stride. Rows within the halo of its
    ends, a multiple of the cell, are not compared.
    """
    (lines, columns), cell = strip.shape, streaming.cell
    stride = max((cell, *(state.stride for state in streaming.states)))
    step = -(-STREAM_CHUNK // stride) * stride
    chunks = -(-(lines + streaming.lag_lines) // step)
    fed = np.pad(strip, ((0, chunks * step - lines), (0, 0)), mode="reflect")
    with open_stream(columns, step) as stream:
        parts = [stream.step(chunk[None, None]).copy() for chunk in fed.reshape(chunks, step, columns)]
    inside = slice(halo // cell, (lines - halo) // cell)
    streamed = np.concatenate(parts, axis=2)[:, :, streaming.lag_lines // cell :][:, :, inside]
    whole = session.infer(strip[None, None])[:, :, inside]
    parity = compare_scores([whole], [streamed], activation)
    if not parity.max_difference <= STREAM_TOLERANCE:
        raise ExportError(
            f"the streaming graph differs from the tile graph by {parity.max_difference:.2%} of the scores' spread, "
            f"expected at most {STREAM_TOLERANCE:.0%}: this network must not be streamed"
        )
    return parity


def _activation(channels: int, activation: Activation) -> Activation:
    """One channel alone is a sigmoid's: the softmax of one says nothing."""
    return "sigmoid" if channels == 1 else activation


def _class_indices(scores: Scores, activation: Activation) -> list[str]:
    channels = scores.shape[1]
    return [str(index) for index in range(channels + (_activation(channels, activation) == "sigmoid"))]


def _to_probabilities(logits: Scores, activation: Activation) -> Scores:
    channels = np.moveaxis(logits, 1, 0)
    return np.moveaxis(probabilities(channels, _activation(len(channels), activation)), 0, 1)


def _histogram(shares: npt.NDArray[np.float32]) -> tuple[int, ...]:
    bins = np.searchsorted(np.array(HISTOGRAM_EDGES, np.float32), shares, side="right") - 1
    counts = np.bincount(np.minimum(bins, len(HISTOGRAM_EDGES) - 2), minlength=len(HISTOGRAM_EDGES) - 1)
    return tuple(int(count) for count in counts)
