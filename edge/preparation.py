"""What a tile of the strip goes through, by itself, before it goes into the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import cv2
import numpy as np

from edge.errors import ConfigError
from edge.frame import Lines
from edge.manifest import Clahe, EngineInput, Resize, TileStep

Size = tuple[int, int]
"""Lines and columns."""
_Operation = Callable[[Lines, Lines], object]
_INTERPOLATIONS = {"linear": cv2.INTER_LINEAR, "area": cv2.INTER_AREA, "nearest": cv2.INTER_NEAREST}


class Preparation:
    """Tiles (lines, columns) uint8 of the strip made into what the engine wants, each by itself.

    In this order: averaged over `reduce` x `reduce` pixels (cv2.INTER_AREA), then the manifest's steps. With a resize among
    them a tile may have any size, else it must be the engine's, times `reduce`.
    Memory is allocated when a tile of another size than the last one comes. For one thread.
    """

    def __init__(self, steps: Sequence[TileStep], engine_input: EngineInput) -> None:
        self._input = engine_input
        self._steps = tuple(steps)
        self._tile: Size | None = None
        self._operations: list[_Operation] = []
        self._between: list[Lines] = []

    @property
    def engine_size(self) -> Size:
        """What comes out: the engine's input."""
        return self._input.tile_height, self._input.tile_width

    def apply(self, tile: Lines, out: Lines) -> None:
        """Write what the engine gets, (tile_height, tile_width) uint8, to `out`. Raises ConfigError where the size cannot be."""
        if tile.shape != self._tile:
            self._plan((tile.shape[0], tile.shape[1]))
        images = [tile, *self._between, out]
        for operation, (source, target) in zip(self._operations, pairwise(images), strict=True):
            operation(source, target)

    def _plan(self, tile: Size) -> None:
        wanted = self.engine_size
        if prepared_size(self._steps, self._input, tile) != wanted:
            raise ConfigError(
                f"got a tile of {tile[0]} x {tile[1]} px; expected {wanted[0]} x {wanted[1]} px times {self._input.reduce}, "
                "or a preparation with a resize"
            )
        planned: list[tuple[_Operation, Size]] = []
        size = tile
        if self._input.reduce > 1:
            size = (tile[0] // self._input.reduce, tile[1] // self._input.reduce)
            planned.append((partial(_resize, interpolation=cv2.INTER_AREA), size))
        for step in self._steps:
            if isinstance(step, Clahe):
                planned.append((_equalizer(step), size))
            else:
                size = wanted
                planned.append((partial(_resize, interpolation=_INTERPOLATIONS[step.method]), size))
        planned = planned or [(_copy, size)]
        self._operations = [operation for operation, _ in planned]
        self._between = [np.empty(size, np.uint8) for _, size in planned[:-1]]
        self._tile = tile


def prepared_size(steps: Sequence[TileStep], engine_input: EngineInput, tile: Size) -> Size | None:
    """Lines and columns that come out of a preparation; None where `reduce` does not divide the tile."""
    if any(side % engine_input.reduce for side in tile):
        return None
    if any(isinstance(step, Resize) for step in steps):
        return engine_input.tile_height, engine_input.tile_width
    return tile[0] // engine_input.reduce, tile[1] // engine_input.reduce


def _equalizer(step: Clahe) -> _Operation:
    apply: _Operation = cv2.createCLAHE(step.clip_limit, (step.grid_columns, step.grid_rows)).apply
    return apply


def _resize(source: Lines, target: Lines, interpolation: int) -> None:
    cv2.resize(source, target.shape[::-1], dst=target, interpolation=interpolation)


def _copy(source: Lines, target: Lines) -> None:
    np.copyto(target, source)
