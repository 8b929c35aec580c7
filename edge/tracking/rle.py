"""Run-length masks: row-major `start, length` in a box, and the column-major text of the Severstal competition."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from edge.defects import BoxPx, Run

Binary = npt.NDArray[np.bool_] | npt.NDArray[np.uint8]


def encode_runs(mask: Binary) -> tuple[Run, ...]:
    """Runs of a mask (h, w), not 0 = foreground: row-major, start counted from 0; a run may go on in the next row.

    >>> encode_runs(np.array([[0, 1, 1], [1, 0, 1]], np.uint8))
    ((1, 3), (5, 1))
    """
    starts, stops = _run_bounds(mask.ravel())
    return tuple(zip(starts.tolist(), (stops - starts).tolist(), strict=True))


def decode_runs(runs: Sequence[Run], height: int, width: int) -> npt.NDArray[np.bool_]:
    """The mask (height, width) of row-major runs. Raises ValueError where a run leaves it or is out of order."""
    return _fill(runs, height * width).reshape(height, width)


def runs_in_box(runs: npt.NDArray[np.int64], box: BoxPx) -> tuple[Run, ...]:
    """Runs in strip coordinates, (n, 3) line, column, length, as row-major runs of the box that holds them."""
    starts = (runs[:, 0] - box.line_start) * (box.column_stop - box.column_start) + runs[:, 1] - box.column_start
    return tuple(zip(starts.tolist(), runs[:, 2].tolist(), strict=True))


def encode_columns(mask: Binary) -> str:
    """`start length start length ...`, column-major (top to bottom, then left to right), start counted from 1.

    Source: Kaggle "Severstal: Steel Defect Detection", submission format `EncodedPixels`.

    >>> encode_columns(np.array([[0, 1], [1, 1]], np.uint8))
    '2 3'
    """
    starts, stops = _run_bounds(mask.T.ravel())
    return " ".join(f"{start + 1} {stop - start}" for start, stop in zip(starts.tolist(), stops.tolist(), strict=True))


def decode_columns(text: str, height: int, width: int) -> npt.NDArray[np.bool_]:
    """The mask (height, width) of column-major text. Raises ValueError for text that is no such mask."""
    try:
        numbers = [int(word) for word in text.split()]
    except ValueError as error:
        raise ValueError(f"got {text[:60]!r}, expected pairs of whole numbers `start length`") from error
    if len(numbers) % 2:
        raise ValueError(f"got {len(numbers)} numbers, expected pairs `start length`")
    runs = [(start - 1, length) for start, length in zip(numbers[::2], numbers[1::2], strict=True)]
    return np.ascontiguousarray(_fill(runs, height * width).reshape(width, height).T)


def severstal_rows(image_id: str, mask: npt.NDArray[np.uint8], class_count: int) -> Iterator[tuple[str, str, int]]:
    """Rows `ImageId, EncodedPixels, ClassId` of a class mask (h, w): one for each class from 1 on that occurs in it."""
    for class_id in range(1, class_count):
        text = encode_columns(mask == class_id)
        if text:
            yield image_id, text, class_id


def _run_bounds(flat: npt.NDArray[np.bool_] | npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    foreground = np.zeros(len(flat) + 2, np.bool_)
    foreground[1:-1] = flat
    edges = np.flatnonzero(foreground[1:] != foreground[:-1]).astype(np.int64)
    return edges[::2], edges[1::2]


def _fill(runs: Iterable[Run], size: int) -> npt.NDArray[np.bool_]:
    flat = np.zeros(size, np.bool_)
    free = 0
    for start, length in runs:
        if start < free or length < 1 or start + length > size:
            raise ValueError(f"run {start},{length}: expected ascending runs of at least 1 pixel within {size} pixels")
        free = start + length
        flat[start:free] = True
    return flat
