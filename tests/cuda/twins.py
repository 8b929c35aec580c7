"""What each kernel of edge/cuda/kernels.cu computes, in numpy, written from its definition and slowly.

`TWINS[name](view, *parameters)`: the kernel's parameters in order as Python numbers, addresses as int;
`view(address, nbytes)` is the device's memory, (nbytes,) uint8, live.

    gather            ring, capacity, width, begin, line_stop, corners, crops, lines, columns, out
    reduce            ring, capacity, width, begin, line_stop, line, column, factor, lines, columns, out
    classes_of_floats scores, n, channels, height, width, top, left, lines, columns, meaning, least, out
    classes_of_halves scores, n, channels, height, width, top, left, lines, columns, meaning, least, out
    classes_of_masks  scores, n, height, width, top, left, lines, columns, out
    flat_field        raw, out, capacity, width, line, lines, dark, gain
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

View = Callable[[int, int], np.ndarray]

SOFTMAX_LOGITS, SOFTMAX_PROBABILITIES, SIGMOID_LOGITS, SIGMOID_PROBABILITIES = range(4)


def gather(
    view: View,
    ring: int,
    capacity: int,
    width: int,
    begin: int,
    line_stop: int,
    corners: int,
    crops: int,
    lines: int,
    columns: int,
    out: int,
) -> None:
    rows = view(ring, capacity * width).reshape(capacity, width)
    places = view(corners, 16 * crops).view(np.int64).reshape(crops, 2).tolist()
    cut = view(out, crops * lines * columns).reshape(crops, lines, columns)
    for target, (line, column) in zip(cut, places, strict=True):
        target[:] = _rectangle(rows, begin, line_stop, range(line, line + lines), range(column, column + columns))


def reduce(
    view: View,
    ring: int,
    capacity: int,
    width: int,
    begin: int,
    line_stop: int,
    line: int,
    column: int,
    factor: int,
    lines: int,
    columns: int,
    out: int,
) -> None:
    rows = view(ring, capacity * width).reshape(capacity, width)
    pixels = _rectangle(
        rows, begin, line_stop, range(line, line + factor * lines), range(column, column + factor * columns)
    ).astype(np.int64)
    sums = pixels.reshape(lines, factor, columns, factor).sum(axis=(1, 3))
    reduced = view(out, lines * columns).reshape(lines, columns)
    if factor == 2:
        reduced[:] = (sums + 2) // 4
    else:
        reduced[:] = np.rint(sums.astype(np.float32) * (np.float32(1) / np.float32(factor * factor)))


def classes_of_floats(
    view: View,
    scores: int,
    n: int,
    channels: int,
    height: int,
    width: int,
    top: int,
    left: int,
    lines: int,
    columns: int,
    meaning: int,
    least: float,
    out: int,
) -> None:
    pixels = view(scores, 4 * n * channels * height * width).view(np.float32).reshape(n, channels, height, width)
    _classes(view, pixels[:, :, top : top + lines, left : left + columns], meaning, least, out)


def classes_of_halves(
    view: View,
    scores: int,
    n: int,
    channels: int,
    height: int,
    width: int,
    top: int,
    left: int,
    lines: int,
    columns: int,
    meaning: int,
    least: float,
    out: int,
) -> None:
    pixels = view(scores, 2 * n * channels * height * width).view(np.float16).reshape(n, channels, height, width)
    _classes(view, pixels[:, :, top : top + lines, left : left + columns], meaning, least, out)


def classes_of_masks(
    view: View, scores: int, n: int, height: int, width: int, top: int, left: int, lines: int, columns: int, out: int
) -> None:
    decided = view(scores, 2 * n * height * width).reshape(n, 2, height, width)[:, :, top : top + lines, left : left + columns]
    written = view(out, 2 * n * lines * columns).reshape(n, 2, lines, columns)
    written[:, 0] = decided[:, 0]
    written[:, 1] = np.where(decided[:, 0] > 0, decided[:, 1], 0)


def flat_field(view: View, raw: int, out: int, capacity: int, width: int, line: int, lines: int, dark: int, gain: int) -> None:
    darks, gains = (view(address, 2 * width).view(np.uint16).astype(np.int64) for address in (dark, gain))
    sources, targets = (view(address, capacity * width).reshape(capacity, width) for address in (raw, out))
    for row in (position % capacity for position in range(line, line + lines)):
        above = np.maximum(sources[row].astype(np.int64) * 256 - darks, 0)
        targets[row] = np.clip((above * gains + 2**19) // 2**20, 0, 255)


TWINS: dict[str, Callable[..., None]] = {
    twin.__name__: twin for twin in (gather, reduce, classes_of_floats, classes_of_halves, classes_of_masks, flat_field)
}


def _rectangle(ring: np.ndarray, begin: int, line_stop: int, lines: range, columns: range) -> np.ndarray:
    return ring[np.ix_(_folded(lines, begin, line_stop) % len(ring), _folded(columns, 0, ring.shape[1]))]


def _folded(positions: range, start: int, stop: int) -> np.ndarray:
    """Up from start to stop - 1, down again, and so on, as a triangle wave."""
    last = stop - 1 - start
    phase = (np.arange(positions.start, positions.stop) - start) % (2 * last) if last else np.zeros(len(positions), np.int64)
    return start + np.minimum(phase, 2 * last - phase)


def _classes(view: View, scores: np.ndarray, meaning: int, least: float, out: int) -> None:
    with np.errstate(invalid="ignore"):  # a signalling NaN
        pixels = scores.astype(np.float64)
    written = view(out, 2 * pixels[:, 0].size).reshape(len(pixels), 2, *pixels.shape[2:])
    highest, winner = pixels.max(axis=1), pixels.argmax(axis=1)
    softmax = meaning in (SOFTMAX_LOGITS, SOFTMAX_PROBABILITIES)
    found = ~np.isnan(pixels).any(axis=1) & (winner > 0 if softmax else highest >= np.float32(least))
    with np.errstate(invalid="ignore", over="ignore"):
        probability = highest
        if meaning == SIGMOID_LOGITS:
            probability = 1 / (1 + np.exp(-highest))
        if meaning == SOFTMAX_LOGITS:
            probability = 1 / sum(np.exp(channel - highest) for channel in pixels.swapaxes(0, 1))
    written[:, 0] = np.where(found, winner if softmax else winner + 1, 0)
    written[:, 1] = np.where(found, np.rint(np.clip(np.nan_to_num(probability, nan=0.0), 0, 1) * 255), 0)
