"""MONAI: sliding_window_inference over the strip; behind a gate PatchInferer with a filter of patches."""

from __future__ import annotations

import monai
import numpy as np
import torch
from monai.inferers import AvgMerger, PatchInferer, SlidingWindowSplitter, sliding_window_inference
from torch import Tensor

from benchmarks.peers_bench.engines import Engine
from benchmarks.peers_bench.gate import TileGate, passed
from benchmarks.peers_bench.slicing import Slicing, framed, unframed
from benchmarks.peers_bench.systems import Credit
from edge.frame import Lines
from edge.scores import Bytes

CREDIT = Credit("MONAI", monai.__version__, "Apache-2.0", "https://docs.monai.io/en/stable/inferers.html")
WINDOWS = Slicing((512, 512), (128, 128))
"""Its default overlap, a quarter."""
_BATCH = 4


class MonaiWindows:
    """Scores are averaged where windows overlap, all alike (mode constant, its default).

    A margin is thrown away by a weight map that is 0 there. Behind a gate: a splitter with `filter_fn`, AvgMerger; what no
    patch covers is not a number, hence background.
    """

    name = "MONAI"

    def __init__(self, engine: Engine, slicing: Slicing = WINDOWS, gate: TileGate | None = None) -> None:
        self.engine, self.precision = engine.title, engine.precision
        self._engine, self._slicing, self._gate = engine, slicing, gate
        self.how = f"{slicing.described()}, averaged, batches of {_BATCH}"
        weights = torch.zeros(1, 1, *slicing.tile)
        weights[:, :, slicing.margin : slicing.tile[0] - slicing.margin, slicing.margin : slicing.tile[1] - slicing.margin] = 1.0
        self._weights = weights if slicing.margin else None

    def prepare(self, strip: Lines) -> None:
        """Nothing."""

    def run(self, strip: Lines) -> Bytes:
        """The mask of the framed strip."""
        image = torch.from_numpy(framed(strip, self._slicing)).float()[None, None]
        if self._gate is None:
            scores = sliding_window_inference(
                image,
                self._slicing.tile,
                _BATCH,
                self._predict,
                overlap=[lap / tile for lap, tile in zip(self._slicing.overlap, self._slicing.tile, strict=True)],
                roi_weight_map=self._weights,
            )
            return scores[0].argmax(dim=0).to(torch.uint8).numpy()
        return self._behind_gate(image, strip)

    def mask(self, answer: Bytes, strip: Lines) -> Bytes:
        """The strip's part of it."""
        return unframed(answer, self._slicing, strip.shape)

    def close(self) -> None:
        """Give the engine back."""
        self._engine.close()

    def _behind_gate(self, image: Tensor, strip: Lines) -> Bytes:
        alarms = self._gate.alarms(strip) if self._gate else None
        if alarms is None or not alarms.any():
            return np.zeros(image.shape[2:], np.uint8)
        splitter = SlidingWindowSplitter(
            self._slicing.tile,
            self._slicing.overlap,
            filter_fn=lambda patch, location: passed(alarms, *location),
            pad_mode=None,
        )
        scores: Tensor = PatchInferer(splitter, AvgMerger, batch_size=_BATCH)(image, self._masked)
        best = scores[0].nan_to_num_(0.0).argmax(dim=0)
        return best.to(torch.uint8).numpy()

    def _masked(self, windows: Tensor) -> Tensor:
        scores = self._predict(windows)
        return scores if self._weights is None else scores * self._weights

    def _predict(self, windows: Tensor) -> Tensor:
        return torch.from_numpy(self._engine.scores(np.ascontiguousarray(windows.to(torch.uint8).numpy())))
