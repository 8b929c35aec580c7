"""The tiles and answers by which a station recognizes the engine that was verified."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edge.bundle import Golden
from edge.sessions import Session
from export.errors import ExportError
from export.samples import Image, cells

SEGMENTER_TILES, GATE_TILES = 8, 16
PATCH = 128
"""Side of a segmenter's stored patches, px: a bundle that weighs kilobytes cannot keep whole tiles and their scores."""

STEP = 5
"""Every fifth score of a patch is kept: coprime to the strides, so that all phases of the network's grid are among them."""

CANDIDATES = 200


def segmenter_golden(session: Session, images: Sequence[Image], tile: int) -> Golden:
    """Golden patches of a segmenter, evenly spread from the cleanest candidate to the most defective one.

    session: the engine; tile: side of its input, px.
    """
    candidates = np.stack([cell for cell, _ in zip(cells(images, min(PATCH, tile)), range(CANDIDATES), strict=False)])
    asked = Golden(candidates, np.zeros((0, 0), np.float16), np.zeros(0, np.uint8), STEP)
    labels = [asked.answer(session.infer(batch))[1] for batch in np.array_split(asked.tiles(tile, tile), len(candidates))]
    shares = np.array([(label > 0).mean() for label in labels])
    return _ask(session, candidates[_spread(shares, SEGMENTER_TILES)], tile, STEP)


def gate_golden(session: Session, tiles: npt.NDArray[np.uint8]) -> Golden:
    """Golden tiles of a gate, evenly spread over its scores. tiles: (n, 1, side, side) uint8 as the gate gets them."""
    candidates = tiles[np.linspace(0, len(tiles) - 1, min(len(tiles), CANDIDATES)).astype(np.intp), 0]
    scores = session.infer(np.ascontiguousarray(candidates[:, None]))[:, 0].copy()
    return _ask(session, candidates[_spread(scores, GATE_TILES)], tiles.shape[2], 1)


def _ask(session: Session, patches: npt.NDArray[np.uint8], tile: int, step: int) -> Golden:
    asked = Golden(patches, np.zeros((0, 0), np.float16), np.zeros(0, np.uint8), step)
    sampled, labels = asked.answer(session.infer(asked.tiles(tile, tile)))
    if not np.isfinite(sampled).all():
        raise ExportError("the engine answers golden tiles with values that are no finite numbers; expected trained weights")
    # float16 keeps 11 bits, 0.05 % of a score: far inside what a station tolerates
    limit = float(np.finfo(np.float16).max)
    return Golden(patches, np.clip(sampled, -limit, limit).astype(np.float16), labels, step)


def _spread(values: npt.NDArray[np.floating], count: int) -> npt.NDArray[np.intp]:
    """Indices of `count` values, evenly spread over their ranks; some more than once where there are fewer values."""
    ranks = np.linspace(0, len(values) - 1, count).round().astype(np.intp)
    return np.asarray(np.argsort(values, kind="stable")[ranks], np.intp)
