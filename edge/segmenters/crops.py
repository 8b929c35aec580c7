"""Crops of the strip, cut out of its window, inferred in batches, and their classes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby, islice
from math import prod
from typing import Protocol

import numpy as np

from edge.scores import Bytes, Reading
from edge.sessions import Session
from edge.window import StripWindow

Size = tuple[int, int]
"""Lines and columns."""


@dataclass(frozen=True, slots=True)
class Crop:
    """A rectangle of the strip, and the part of it whose classes are wanted: its core.

    line, column: where it begins on the strip, maybe before it; size: lines and columns. top, left: where its core begins in it;
    core: the core's lines and columns.
    """

    line: int
    column: int
    size: Size
    top: int
    left: int
    core: Size


class CropReader(Protocol):
    """Says what crops show. For one thread.

    spans_ahead: how many spans after a crop's own may be asked for before its classes are out.
    """

    spans_ahead: int

    def window(self, width: int, capacity: int) -> StripWindow:
        """A window that crops can be read from."""
        ...

    def read(self, window: StripWindow, crops: Iterable[Crop]) -> Iterator[tuple[Crop, Bytes, Bytes]]:
        """Crops in their order with class and confidence of their cores, (lines, columns) uint8 each, new arrays.

        crops: of sizes announced before; drawn as results are taken, and some of the same size are inferred together.
        """
        ...


OpenCrops = Callable[[Session, Reading, Collection[Size], int], CropReader]
"""A session, what its answers mean, sizes of the crops to come, how many may be inferred at once -> their reader."""


class HostCrops:
    """Cuts on the CPU; implements `CropReader`."""

    spans_ahead = 0

    def __init__(self, session: Session, reading: Reading, sizes: Collection[Size], batch: int) -> None:
        self._session = session
        self._reading = replace(reading, steps=session.steps)
        self._most = batch
        # all in the same memory, one is used at a time
        memory = np.empty(batch * max(map(prod, sizes)), np.uint8)
        self._batches = {size: memory[: batch * prod(size)].reshape(batch, 1, *size) for size in sizes}
        # the largest first: TensorRT builds an engine for a range of sizes, and the smaller ones then need no other
        for images in sorted(self._batches.values(), key=lambda images: images.size, reverse=True):
            session.prepare(images.shape)

    def window(self, width: int, capacity: int) -> StripWindow:
        """A window of the host."""
        return StripWindow(width, capacity)

    def read(self, window: StripWindow, crops: Iterable[Crop]) -> Iterator[tuple[Crop, Bytes, Bytes]]:
        """Cut, infer, classify."""
        for some in batches(crops, self._most):
            images = self._batches[some[0].size][: len(some)]
            for image, crop in zip(images[:, 0], some, strict=True):
                window.cut(crop.line, crop.line + crop.size[0], crop.column, crop.column + crop.size[1], out=image)
            for scores, crop in zip(self._session.infer(images), some, strict=True):
                core = scores[:, crop.top : crop.top + crop.core[0], crop.left : crop.left + crop.core[1]]
                yield crop, *self._reading.classes(core)


def batches(crops: Iterable[Crop], most: int) -> Iterator[list[Crop]]:
    """Crops in their order, those of the same size that follow each other together, at most so many."""
    for _, alike in groupby(crops, key=lambda crop: crop.size):
        while some := list(islice(alike, most)):
            yield some
