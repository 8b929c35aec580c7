"""Shapes that an engine for a GPU is built for, and those that it then runs.

One optimization profile holds all sizes of a range. TensorRT chooses the kernels of a layer once for a profile: with one for each
batch size, as is usual, a tile's scores would depend on how many came with it. So a range covers all batches of a tile, and its
ends are rounded up, so that most settings of a station ask for the same range and hence for the same kernels.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx

from edge.bundle import Bundle
from edge.errors import SessionError
from edge.manifest import Manifest
from edge.sessions.ort_rewrite import free_height_and_width

IMAGE: Final = "image"
BUCKETS: Final = (1, 4, 8, 16)
"""Tiles of one inference: an execution context has one shape, so that it has nothing left to decide when it runs."""
_RANGE_PIXELS: Final = 1 << 21
"""Of a range's largest batch: TensorRT 8.6 wants scratch memory for the largest shape of a range, on either stream. Of the
shipped U-Net some four tensors of 24 channels at half the resolution live at once: 50 MB in INT8, 200 MB in float."""

Shape = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class ShapeRange:
    """Sizes that an input may take: smallest, the one to be fast at, largest."""

    smallest: tuple[int, ...]
    usual: tuple[int, ...]
    largest: tuple[int, ...]

    def __post_init__(self) -> None:
        ordered = zip(self.smallest, self.usual, self.largest, strict=True)
        if any(not 0 < small <= usual <= large for small, usual, large in ordered):
            raise ValueError(f"sizes grow from smallest to largest, got {self.smallest}, {self.usual}, {self.largest}")

    @staticmethod
    def of(*shape: int) -> ShapeRange:
        """One shape and no other."""
        return ShapeRange(shape, shape, shape)

    def holds(self, shape: Sequence[int]) -> bool:
        """Whether a shape lies in it."""
        return len(shape) == len(self.smallest) and all(
            small <= size <= large for small, size, large in zip(self.smallest, shape, self.largest, strict=True)
        )

    def __str__(self) -> str:
        distinct = dict.fromkeys((self.smallest, self.usual, self.largest))
        return " to ".join("x".join(map(str, shape)) for shape in distinct)


Profile = Mapping[str, ShapeRange]
"""Range of every input with free sizes, by its name."""


def runs_on_any_size(bundle: Bundle) -> bool:
    """Whether `model.onnx` takes images of other sizes than its tile: a segmenter's crops and slabs, a gate's map of cells."""
    manifest = bundle.manifest
    answers_everywhere = manifest.whole_tile is None and (manifest.kind == "segmenter" or manifest.cell is not None)
    return answers_everywhere and _leaves_sizes_free(bundle.model_path, bundle.sha256)


@functools.cache
def _leaves_sizes_free(path: Path, sha256: str) -> bool:
    """Whether no operator pins height and width. sha256: of the bundle, which may have been replaced."""
    model = onnx.load(path, load_external_data=False)
    free_height_and_width(model)
    return not any(size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim[2:])


def tile_profile(bundle: Bundle, shape: Shape | None = None) -> Profile:
    """Of `model.onnx`: the range in which a batch (n, 1, h, w) lies, None: batches of its tile.

    Raises SessionError where the bundle does not take such a batch.
    """
    manifest = bundle.manifest
    size = manifest.input
    tile = (size.tile_height, size.tile_width)
    tiles, channels, height, width = shape or (1, 1, *tile)
    free = runs_on_any_size(bundle)
    fits = height % manifest.stride == width % manifest.stride == 0 if free else (height, width) == tile
    if tiles < 1 or channels != 1 or min(height, width) < 1 or not fits:
        sides = f"multiples of {manifest.stride}" if free else f"{tile[0]}, {tile[1]}"
        got = (tiles, channels, height, width)
        raise SessionError(f"{manifest.name}: got a batch {got}, expected uint8 (n, 1, h, w) with sides of {sides}")
    least = (manifest.stride, manifest.stride) if free else tile
    most = tuple(max(side, _rounded_up(asked)) for side, asked in zip(tile, (height, width), strict=True)) if free else tile
    # what fits into the tile is the tile's, so that every start has the golden tiles' engine and small crops need no other
    most = tile if height <= tile[0] and width <= tile[1] else most
    affordable = [batch for batch in BUCKETS if batch * most[0] * most[1] <= _RANGE_PIXELS]
    largest = (max(tiles, *affordable, 1), 1, *most)
    return {IMAGE: ShapeRange((1, 1, *least), largest, largest)}


def stream_profile(manifest: Manifest, width: int, chunk_lines: int) -> Profile:
    """Of `stream.onnx`, for a strip of one width read in chunks of one height."""
    states = manifest.streaming.states if manifest.streaming else ()
    shapes = {state.input: ShapeRange.of(1, state.channels, state.rows, width // state.stride) for state in states}
    return {IMAGE: ShapeRange.of(1, 1, chunk_lines, width), **shapes}


def bucket_of(tiles: int) -> int:
    """The smallest bucket that holds so many tiles, the largest one where none does.

    >>> bucket_of(5), bucket_of(40)
    (8, 16)
    """
    return next((bucket for bucket in BUCKETS if bucket >= tiles), BUCKETS[-1])


def pieces(tiles: int, buckets: Sequence[int]) -> list[tuple[slice, int]]:
    """How a batch goes through: parts of it, each with the bucket that it is filled up to. buckets: rising.

    >>> pieces(21, (1, 4, 8))
    [(slice(0, 8, None), 8), (slice(8, 16, None), 8), (slice(16, 21, None), 8)]
    """
    parts = []
    for first in range(0, tiles, buckets[-1]):
        last = min(first + buckets[-1], tiles)
        parts.append((slice(first, last), next(bucket for bucket in buckets if bucket >= last - first)))
    return parts


def _rounded_up(side: int) -> int:
    """To 2**k or 1.5 * 2**k.

    >>> [_rounded_up(side) for side in (16, 416, 640, 4256)]
    [16, 512, 768, 6144]
    """
    power = 1 << (side - 1).bit_length()
    return power * 3 // 4 if power >= 4 and side <= power * 3 // 4 else power
