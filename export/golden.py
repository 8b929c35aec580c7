"""The tiles and answers by which a station recognizes the engine that was verified."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edge.bundle import Golden
from edge.manifest import Manifest
from edge.sessions import Batch, Session
from export.errors import ExportError
from export.samples import Image
from export.tile_form import cells

SEGMENTER_TILES, CLASSIFIER_TILES = 8, 16
PATCH = 128
"""Side of a segmenter's stored patches, px: a bundle that weighs kilobytes cannot keep whole tiles and their scores."""

STEP = 5
"""Every fifth score of a patch is kept: coprime to the strides, so that all phases of the network's grid are among them."""

CANDIDATES = 200


def segmenter_golden(session: Session, images: Sequence[Image], manifest: Manifest) -> Golden:
    """Golden patches of a segmenter, evenly spread from the cleanest candidate to the most defective one.

    session: the engine; images: as its tiles get them. manifest: of its input, activation and head.
    """
    size = manifest.input
    side = min(PATCH, size.tile_height, size.tile_width)
    cut = (cell for image in images for cell in cells(image, side, side))
    candidates = np.stack(list(itertools.islice(cut, CANDIDATES)))
    asked = Golden(candidates, np.zeros((0, 0), np.float16), np.zeros(0, np.uint8), STEP)
    labels = [
        asked.answer(session.infer(batch), manifest.activation, manifest.head)[1]
        for batch in np.array_split(asked.tiles(size.tile_height, size.tile_width), len(candidates))
    ]
    shares = np.array([(label > 0).mean() for label in labels])
    return _ask(session, candidates[_spread(shares, SEGMENTER_TILES)], manifest, STEP)


def classifier_golden(session: Session, tiles: npt.NDArray[np.uint8], manifest: Manifest) -> Golden:
    """Golden tiles of a classifier, evenly spread over its scores. tiles: (n, 1, height, width) uint8 as it gets them."""
    candidates = tiles[np.linspace(0, len(tiles) - 1, min(len(tiles), CANDIDATES)).astype(np.intp), 0]
    scores = session.infer(np.ascontiguousarray(candidates[:, None]))
    # of several logits the first one is clean steel's: a sure one last
    order = scores[:, 0] if scores.shape[1] == 1 else -scores[:, 0]
    return _ask(session, candidates[_spread(order.copy(), CLASSIFIER_TILES)], manifest, 1)


def gate_golden(session: Session, images: Sequence[Batch], manifest: Manifest) -> Golden:
    """Golden patches of a gate that scores cells, evenly spread over the highest score on each. images: (1, 1, h, w) each."""
    size = manifest.input
    side = min(PATCH, size.tile_height, size.tile_width)
    cut = [cell for image in images for cell in cells(image[0, 0], side, side)]
    candidates = np.stack(cut[:: -(-len(cut) // CANDIDATES)])
    asked = Golden(candidates, np.zeros((0, 0), np.float16), np.zeros(0, np.uint8), 1)
    tiles = asked.tiles(size.tile_height, size.tile_width)
    # defects have the channels behind clean steel's, which a sigmoid has none for
    first = int(manifest.activation == "softmax")
    highest = [session.infer(part)[:, first:].max(axis=(1, 2, 3)) for part in np.array_split(tiles, -(-len(tiles) // 8))]
    return _ask(session, candidates[_spread(np.concatenate(highest), CLASSIFIER_TILES)], manifest, 1)


def _ask(session: Session, patches: npt.NDArray[np.uint8], manifest: Manifest, step: int) -> Golden:
    asked = Golden(patches, np.zeros((0, 0), np.float16), np.zeros(0, np.uint8), step)
    tiles = asked.tiles(manifest.input.tile_height, manifest.input.tile_width)
    sampled, labels, _ = asked.answer(session.infer(tiles), manifest.activation, manifest.head)
    if not np.isfinite(sampled).all():
        raise ExportError("the engine answers golden tiles with values that are no finite numbers; expected trained weights")
    limit = float(np.finfo(np.float16).max)
    if np.abs(sampled).max() > limit:
        raise ExportError(f"the engine answers golden tiles with scores beyond {limit:.0f}; expected trained, undamaged weights")
    # float16 keeps 11 bits, 0.05 % of a logit: far inside what a station tolerates. Not of probabilities that hardly differ.
    kept = np.float16 if manifest.head == "logits" else np.float32
    return Golden(patches, sampled.astype(kept), labels, step)


def _spread(values: npt.NDArray[np.floating], count: int) -> npt.NDArray[np.intp]:
    """Indices of `count` values, evenly spread over their ranks; some more than once where there are fewer values."""
    ranks = np.linspace(0, len(values) - 1, count).round().astype(np.intp)
    return np.asarray(np.argsort(values, kind="stable")[ranks], np.intp)
