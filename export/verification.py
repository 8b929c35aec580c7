"""What is checked of every engine before it becomes a bundle: pure functions over sessions of any backend.

Each gives its figures for the report, and raises ExportError beyond what it tolerates. How scores differ is judged in
`export.parity`, what that does to the defects on a strip in `export.defect_comparison`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from edge.bundle import OUTLIERS, SCORE_TOLERANCE
from edge.errors import SessionError
from edge.manifest import Streaming
from edge.scores import Activation, gate_scores
from edge.sessions import Batch, Scores, Session
from edge.sessions.ort import OrtSession
from export.errors import ExportError
from export.parity import Parity, compare_scores, labels_of, verify_stream
from export.samples import Image

FLIPPED = 0.02
"""Share of verdicts that may differ from the float engine's."""


@dataclass(frozen=True, slots=True)
class BatchAgreement:
    """Largest difference between a tile's scores alone, among others, among its own copies; of how many tiles."""

    tiles: int
    max_difference: float


def verify_batches(session: Session, tiles: Batch, tolerance: float = 0.0) -> BatchAgreement:
    """A tile's scores depend on nothing but the tile: not on its batch's size, nor on the others, nor on its place.

    tiles: (n, 1, h, w) uint8, n >= 2. tolerance: of the scores themselves; 0: bit for bit. Raises ExportError beyond it.
    """
    count = len(tiles)
    if count < 2:
        raise ExportError(f"got {count} tiles to make batches of; expected at least 2")
    alone = np.concatenate([session.infer(tile[None]).copy() for tile in tiles])
    half = count // 2
    asked = {
        "a full batch": (tiles, alone),
        "a partial batch": (tiles[: count - 1], alone[: count - 1]),
        "another partial batch": (tiles[half:], alone[half:]),
        "a batch in reverse": (np.ascontiguousarray(tiles[::-1]), alone[::-1]),
        "a batch of copies": (np.repeat(tiles[:1], count, axis=0), np.repeat(alone[:1], count, axis=0)),
    }
    largest = 0.0
    for what, (batch, expected) in asked.items():
        difference = float(np.abs(session.infer(batch).astype(np.float64) - expected).max())
        if not difference <= tolerance:
            raise ExportError(
                f"{session.backend} answers a tile in {what} by {difference:.2e} otherwise than alone, expected at most "
                f"{tolerance:.0e}: something in the graph mixes tiles (a batch axis that is reduced or reshaped)"
            )
        largest = max(largest, difference)
    return BatchAgreement(count, largest)


def differences(
    reference: Callable[[Batch], Scores],
    candidate: Callable[[Batch], Scores],
    batches: Iterable[Batch],
    activation: Activation = "softmax",
    level: float = 0.5,
) -> Parity:
    """How far an engine's scores are from the float engine's on the same tiles; nothing is too far here.

    reference, candidate: a session's `infer`, or whatever answers logits.
    """
    expected, got = [], []
    for batch in batches:
        expected.append(reference(batch).copy())
        got.append(candidate(batch).copy())
    return compare_scores(expected, got, activation, level)


@dataclass(frozen=True, slots=True)
class VerdictComparison:
    """Decisions of a classifier against the float engine's. missed: defective became clean; added: clean became defective.

    tiles: how many were decided on, tiles or cells of them. renamed: one kind of defect became another.
    flipped: their indices; cells count row by row, tile by tile.
    """

    tiles: int
    missed: int
    added: int
    renamed: int
    flipped: tuple[int, ...]


def compare_verdicts(
    reference: Session,
    candidate: Session,
    tiles: Batch,
    activation: Activation,
    thresholds: tuple[float, float] | None = None,
    allowed: float = FLIPPED,
) -> VerdictComparison:
    """Tiles whose decision changes, (n, 1, h, w) uint8; raises ExportError where they are more than the share `allowed`.

    thresholds: the float engine's and the candidate's, on the probability of a defect; None: the most probable class decides.
    """
    before, after = (
        _verdicts(session, tiles, activation, thresholds and thresholds[place])
        for place, session in enumerate((reference, candidate))
    )
    flipped = np.flatnonzero(before != after)
    comparison = VerdictComparison(
        tiles=len(before),
        missed=int(np.count_nonzero((before > 0) & (after == 0))),
        added=int(np.count_nonzero((before == 0) & (after > 0))),
        renamed=int(np.count_nonzero((before != after) & (before > 0) & (after > 0))),
        flipped=tuple(flipped.tolist()),
    )
    if len(flipped) > allowed * len(before):
        what = "tiles" if len(before) == len(tiles) else "cells"
        raise ExportError(
            f"{len(flipped)} of {len(before)} {what} are judged otherwise than by the float engine ({comparison.missed} of them "
            f"called clean), expected at most {allowed:.1%}: keep more layers in float, or calibrate with more tiles"
        )
    return comparison


def _verdicts(session: Session, tiles: Batch, activation: Activation, threshold: float | None) -> npt.NDArray[np.uint8]:
    """Class of each tile, (n,), or of each of its cells; with a threshold 1 from it on and 0 below."""
    scores = np.concatenate([session.infer(tile[None]).copy() for tile in tiles])
    scores = np.moveaxis(scores, 1, -1).reshape(-1, scores.shape[1])
    if threshold is None:
        return labels_of(scores, activation)
    return np.asarray(gate_scores(scores, activation) >= np.float32(threshold), np.uint8)


@dataclass(frozen=True, slots=True)
class RuntimeAgreement:
    """OpenVINO against ONNX Runtime on one engine; parity None where it was not looked at, for the reason stated."""

    parity: Parity | None
    skipped: str | None = None


def verify_runtimes(
    model: bytes,
    batches: Sequence[Batch],
    activation: Activation = "softmax",
    level: float = 0.5,
    precision: Literal["fp32", "fp16", "int8"] = "fp32",
    threads: int = 0,
) -> RuntimeAgreement:
    """ONNX Runtime against OpenVINO on the same file, as far as a station's golden tiles ask for. Raises ExportError beyond.

    model: an engine's bytes that answers logits.
    """
    try:
        from edge.sessions.ov import OvSession
    except SessionError as error:
        return RuntimeAgreement(None, str(error))
    with OrtSession(model, threads) as reference, OvSession(model, threads) as candidate:
        parity = differences(reference.infer, candidate.infer, batches, activation, level)
    if parity.outliers > OUTLIERS[precision]:
        raise ExportError(
            f"OpenVINO answers otherwise than ONNX Runtime: {parity.outliers:.3%} of the scores differ by more than "
            f"{SCORE_TOLERANCE:.0%} of their spread (at most {parity.max_difference:.1%}), expected {OUTLIERS[precision]:.1%} "
            "at most: one of the two misreads an operator"
        )
    return RuntimeAgreement(parity)


def verify_stream_in_openvino(
    model: bytes,
    stream: bytes,
    streaming: Streaming,
    halo: int,
    strip: Image,
    activation: Activation = "softmax",
    threads: int = 0,
) -> RuntimeAgreement:
    """`export.parity.verify_stream` in OpenVINO: the streaming engine against the tile engine. Raises ExportError."""
    try:
        from edge.sessions.ov import OvSession, OvStreamingSession
    except SessionError as error:
        return RuntimeAgreement(None, str(error))

    def open_stream(width: int, lines: int) -> OvStreamingSession:
        return OvStreamingSession(stream, streaming, width, lines, threads)

    with OvSession(model, threads) as session:
        return RuntimeAgreement(verify_stream(open_stream, session, streaming, halo, strip, activation))
