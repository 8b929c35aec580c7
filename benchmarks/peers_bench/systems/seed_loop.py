"""The seed systems' loop: torch eager, one tile at a time, a plain stitch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from benchmarks.peers_bench.gate import TileGate, passed
from benchmarks.peers_bench.slicing import Slicing, framed, unframed
from benchmarks.peers_bench.systems import Credit
from edge.frame import Lines
from edge.scores import Bytes

CREDIT = Credit("torch", torch.__version__.split("+")[0], "BSD-3-Clause", "https://docs.pytorch.org/docs/2.13/")
LOOP = Slicing((256, 256), (32, 32))
"""The tiles of such systems: 256 px, 32 px overlap."""


def classes_of_logits(scores: Tensor) -> Tensor:
    """Most probable class of (1, classes, h, w), by softmax as those systems do it."""
    return torch.softmax(scores, dim=1).argmax(dim=1)


def above_half(scores: Tensor) -> Tensor:
    """Class 1 where the only sigmoid is above a half."""
    return torch.sigmoid(scores)[:, 0] > 0.5


def grey_bytes(tile: npt.NDArray[np.uint8]) -> Tensor:
    """The shipped network takes grey levels as they are."""
    return torch.from_numpy(tile)[None, None]


def grey_unit(tile: npt.NDArray[np.uint8]) -> Tensor:
    """Grey levels over 255, as the seed systems prepare them."""
    return torch.from_numpy(tile)[None, None].float() / 255.0


class SeedLoop:
    """One tile after the other through a torch module; where tiles overlap half of it belongs to each.

    sample: so many tiles, evenly spread over the strip, are inferred instead of all: what a dear network costs is known after
    a few, since each tile costs the same. The answer is then no whole mask.
    """

    engine = "torch eager FP32"
    precision = "fp32"

    def __init__(
        self,
        network: nn.Module,
        name: str = "seed loop",
        slicing: Slicing = LOOP,
        *,
        prepared: Callable[[npt.NDArray[np.uint8]], Tensor] = grey_bytes,
        classes: Callable[[Tensor], Tensor] = classes_of_logits,
        gate: TileGate | None = None,
        sample: int | None = None,
    ) -> None:
        self.name, self._slicing, self._gate, self._sample = name, slicing, gate, sample
        self._network, self._prepared, self._classes = network, prepared, classes
        self.how = slicing.described() + ", one at a time"

    def prepare(self, strip: Lines) -> None:
        """Nothing."""

    def run(self, strip: Lines) -> Bytes:
        """The mask of the framed strip."""
        image = framed(strip, self._slicing)
        alarms = self._gate.alarms(strip) if self._gate else None
        mask = np.zeros(image.shape, np.uint8)
        places = [place for place in self._places(image.shape) if passed(alarms, *place)]
        if self._sample:
            places = [places[index] for index in np.linspace(0, len(places) - 1, self._sample).round().astype(int)]
        with torch.inference_mode():
            for top, left in places:
                tile = image[top : top + self._slicing.tile[0], left : left + self._slicing.tile[1]]
                found = self._classes(self._network(self._prepared(np.ascontiguousarray(tile))))[0].to(torch.uint8).numpy()
                rows, columns = (self._kept(start, size) for start, size in zip((top, left), found.shape, strict=True))
                mask[top + rows : top + found.shape[0], left + columns : left + found.shape[1]] = found[rows:, columns:]
        return mask

    def mask(self, answer: Bytes, strip: Lines) -> Bytes:
        """The strip's part of it."""
        return unframed(answer, self._slicing, strip.shape)

    def inspected(self, strip: Lines) -> float:
        """Share of the strip's tiles that a run infers."""
        return self._sample / len(self._places(framed(strip, self._slicing).shape)) if self._sample else 1.0

    def close(self) -> None:
        """Nothing."""

    def _places(self, shape: tuple[int, ...]) -> list[tuple[int, int]]:
        """Top left corners; the last tiles are moved back to end with the image, as long as it holds a tile."""
        starts = [
            sorted({min(start, max(0, length - tile)) for start in range(0, max(1, length - tile + step), step)})
            for length, tile, step in zip(shape, self._slicing.tile, self._slicing.step, strict=True)
        ]
        return [(top, left) for top in starts[0] for left in starts[1]]

    def _kept(self, start: int, size: int) -> int:
        """Lines or columns at a tile's begin that stay its predecessor's: half of the overlap."""
        return 0 if start == 0 else self._slicing.overlap[0] // 2
