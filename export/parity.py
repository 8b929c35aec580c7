"""Whether an engine still answers as the network that it was made from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edge.manifest import Streaming
from edge.sessions import Batch, Scores, Session
from edge.sessions.ort import OrtStreamingSession
from export.errors import ExportError
from export.samples import Image

FLOAT_TOLERANCE = 1e-4
"""Largest difference of float scores, as a share of their spread: another order of summation gives some 1e-6."""

STREAM_TOLERANCE = 0.01
"""Of the scores' spread: what dense inspection may differ by from one inference over the whole strip."""

STREAM_CHUNK = 64
"""Lines per step at which the streaming engine is compared; any multiple of the stride would do."""


@dataclass(frozen=True, slots=True)
class Parity:
    """Differences of scores as shares of the reference's spread, highest minus lowest; changed: share of labels that differ."""

    max_difference: float
    mean_difference: float
    changed: float
    spread: float

    def figures(self) -> dict[str, float]:
        """By name, for a report."""
        return asdict(self)


def compare_scores(reference: Iterable[Scores], candidate: Iterable[Scores]) -> Parity:
    """Compare batches of scores, (n, classes, h, w) or (n, classes), of the same input. Raises ExportError for other shapes."""
    highest, lowest, largest, total, count, changed, labels = -np.inf, np.inf, 0.0, 0.0, 0, 0, 0
    for expected, got in zip(reference, candidate, strict=True):
        if expected.shape != got.shape:
            raise ExportError(f"the engine answers {got.shape}, the network {expected.shape}; expected the same shape")
        highest, lowest = max(highest, float(expected.max())), min(lowest, float(expected.min()))
        difference = np.abs(got.astype(np.float64) - expected)
        largest = float(np.maximum(largest, difference.max()))  # keeps a NaN, unlike max()
        total, count = total + float(difference.sum()), count + difference.size
        differs = best_labels(expected) != best_labels(got)
        changed, labels = changed + int(differs.sum()), labels + differs.size
    if not count:
        raise ExportError("no scores to compare; expected at least one tile")
    spread = highest - lowest or 1.0
    return Parity(largest / spread, total / count / spread, changed / labels, spread)


def best_labels(scores: Scores) -> npt.NDArray[np.intp]:
    """Class per pixel; of a classifier with one logit, 1 where it is above 0."""
    if scores.ndim == 2 and scores.shape[1] == 1:
        return (scores[:, 0] > 0).astype(np.intp)
    return np.asarray(scores.argmax(axis=1), np.intp)


def verify_float(network: nn.Module, session: Session, batches: Iterable[Batch]) -> Parity:
    """Torch against the float engine on real tiles. Raises ExportError beyond FLOAT_TOLERANCE."""
    reference, candidate = [], []
    with torch.inference_mode():
        for batch in batches:
            reference.append(network(torch.from_numpy(batch)).numpy())
            candidate.append(session.infer(batch).copy())
    parity = compare_scores(reference, candidate)
    if not parity.max_difference <= FLOAT_TOLERANCE:
        raise ExportError(
            f"the exported graph differs from the network by {parity.max_difference:.2e} of the scores' spread, "
            f"expected at most {FLOAT_TOLERANCE:.0e}: an operator was exported wrongly, or weights are not finite"
        )
    return parity


def verify_stream(
    open_stream: Callable[[int, int], OrtStreamingSession], session: Session, streaming: Streaming, halo: int, strip: Image
) -> Parity:
    """The streaming engine against one inference over a strip; raises ExportError beyond STREAM_TOLERANCE.

    open_stream(width, chunk_lines) gives the streaming session. strip: (lines, columns) uint8, already reflected by the halo
    on its four sides, columns a multiple of the stride. Rows within the halo of its ends are not compared.
    """
    lines, columns = strip.shape
    chunks = -(-(lines + streaming.lag_lines) // STREAM_CHUNK)
    fed = np.pad(strip, ((0, chunks * STREAM_CHUNK - lines), (0, 0)), mode="reflect")
    with open_stream(columns, STREAM_CHUNK) as stream:
        parts = [stream.step(chunk[None, None]).copy() for chunk in fed.reshape(chunks, STREAM_CHUNK, columns)]
    inside = slice(halo, lines - halo)
    streamed = np.concatenate(parts, axis=2)[:, :, streaming.lag_lines :][:, :, inside]
    whole = session.infer(strip[None, None])[:, :, inside]
    parity = compare_scores([whole], [streamed])
    if not parity.max_difference <= STREAM_TOLERANCE:
        raise ExportError(
            f"the streaming graph differs from the tile graph by {parity.max_difference:.2%} of the scores' spread, "
            f"expected at most {STREAM_TOLERANCE:.0%}: this network must not be streamed"
        )
    return parity
