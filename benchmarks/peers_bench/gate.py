"""Our gate in front of a tiler: which tiles of a strip it lets through, asked tile by tile as any of them could."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from edge.bundle import open_bundle
from edge.manifest import Manifest
from edge.scores import Bytes, gate_scores
from edge.sessions import Scores, Session
from edge.sessions.ort import OrtSession

TILE = 256
"""Lines and columns of the strip that one verdict is for."""
BATCH = 8
"""Tiles asked at once: a gate gains by batches where a U-Net does not."""

Alarms = npt.NDArray[np.bool_]


class TileGate:
    """A gate bundle, asked about every tile of 256 x 256 px of a strip.

    A classifier gives a verdict for its tile; a map gate one for each cell, the tile's is its highest.
    """

    def __init__(self, bundle: str, backend: str, threads: int) -> None:
        opened = open_bundle(bundle)
        self.manifest = opened.manifest
        self.precision = self.manifest.precision
        if self.manifest.gate is None:
            raise ValueError(f"{bundle} states no gate threshold, expected a gate's bundle")
        self.threshold = self.manifest.gate.score
        if backend == "openvino":
            from edge.sessions.ov import OvSession

            self._session: Session = OvSession(opened.model_path, threads)
        else:
            self._session = OrtSession(opened.model_path, threads)

    def close(self) -> None:
        """Give the session back."""
        self._session.__exit__(None, None, None)

    def alarms(self, strip: Bytes) -> Alarms:
        """Tiles that go on, (tile rows, tile columns); what a last tile lacks is reflected."""
        image = np.pad(strip, [(0, -length % TILE) for length in strip.shape], mode="reflect")
        rows, columns = image.shape[0] // TILE, image.shape[1] // TILE
        small = TILE // self.manifest.input.reduce
        if self.manifest.input.reduce > 1:
            image = cv2.resize(image, (columns * small, rows * small), interpolation=cv2.INTER_AREA)
        tiles = image.reshape(rows, small, columns, small).swapaxes(1, 2).reshape(-1, 1, small, small)
        scores = [
            tile_scores(self._session.infer(np.ascontiguousarray(tiles[first : first + BATCH])), self.manifest)
            for first in range(0, len(tiles), BATCH)
        ]
        return (np.concatenate(scores) >= np.float32(self.threshold)).reshape(rows, columns)


def tile_scores(scores: Scores, manifest: Manifest) -> npt.NDArray[np.float32]:
    """Probability of a defect of each tile, (n,): of a classifier's (n, k), or the highest of a map's (n, k, rows, columns)."""
    if scores.ndim == 2:
        return gate_scores(scores, manifest.activation, manifest.head)
    cells = np.moveaxis(scores.reshape(*scores.shape[:2], -1), 1, 2)
    each = gate_scores(cells.reshape(-1, scores.shape[1]), manifest.activation, manifest.head)
    return each.reshape(len(scores), -1).max(axis=1)


def passed(alarms: Alarms | None, top: int, left: int) -> bool:
    """Whether the slice that begins there goes on: slices lie on the gate's grid, a tile apart. No gate: all do.

    >>> passed(np.array([[False, True]]), 0, 0), passed(np.array([[False, True]]), 0, 256), passed(None, 0, 0)
    (False, True, True)
    """
    return alarms is None or bool(alarms[top // TILE, left // TILE])
