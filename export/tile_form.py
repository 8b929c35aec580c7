"""How a strip, or an image of one, becomes a network's tiles: the same cutting and preparation that a station does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from edge.manifest import EngineInput, TileStep
from edge.preparation import Preparation
from export.networks import Architecture

Image = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class TileForm:
    """engine: height and width of the network's input. steps: what each tile goes through first.

    strip: lines and columns that one tile covers; None: whatever an image has, which a resize then brings to the engine's.
    """

    engine: EngineInput
    steps: tuple[TileStep, ...]
    strip: tuple[int, int] | None

    def cut(self, image: Image) -> Iterator[Image]:
        """The tiles of an image, (lines, columns) uint8: at its end they reach back, small images are reflected."""
        if self.strip is None:
            yield image
            return
        yield from cells(image, *self.strip)

    def tiles(self, images: Sequence[Image]) -> npt.NDArray[np.uint8]:
        """All tiles of some images as the network gets them, (n, 1, height, width) uint8."""
        preparation = Preparation(self.steps, self.engine)
        cut = [tile for image in images for tile in self.cut(image)]
        tiles = np.empty((len(cut), 1, self.engine.tile_height, self.engine.tile_width), np.uint8)
        for tile, out in zip(cut, tiles, strict=True):
            preparation.apply(tile, out[0])
        return tiles

    def masks(self, masks: Sequence[Image]) -> list[Image]:
        """The tiles of some masks, brought to the engine's size by nearest neighbour: (height, width) uint8 each."""
        size = (self.engine.tile_width, self.engine.tile_height)
        cut = [tile for mask in masks for tile in self.cut(mask)]
        return [np.asarray(cv2.resize(tile, size, interpolation=cv2.INTER_NEAREST), np.uint8) for tile in cut]


def form_of(architecture: Architecture) -> TileForm:
    """The tiles of an architecture."""
    height, width = architecture.tile
    reduce = architecture.reduce
    strip = architecture.strip_tile
    if strip is None and not any(step.kind == "resize" for step in architecture.preparation):
        strip = (height * reduce, width * reduce)
    return TileForm(EngineInput(tile_height=height, tile_width=width, reduce=reduce), architecture.preparation, strip)


def cells(image: Image, height: int, width: int) -> Iterator[Image]:
    """Rectangles that an image is cut into; at its end they reach back, a smaller image is reflected."""
    missing = [(0, max(0, side - extent)) for side, extent in zip((height, width), image.shape, strict=True)]
    padded = np.pad(image, missing, mode="reflect") if any(after for _, after in missing) else image
    for row in _starts(padded.shape[0], height):
        for column in _starts(padded.shape[1], width):
            yield padded[row : row + height, column : column + width]


def _starts(extent: int, side: int) -> list[int]:
    starts = list(range(0, extent - side + 1, side))
    return starts if starts[-1] + side == extent else [*starts, extent - side]
