"""Class names, input size and normalisation out of what training scripts and exporters write beside the weights."""

from __future__ import annotations

import argparse
import ast
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from export.checkpoints.checkpoint import Hints
from export.errors import ExportError
from export.networks.grey_input import Normalisation

_CLASSES: Final = ("class_names", "classes", "names", "labels", "label_names", "id2label", "class_to_idx", "label2id")
_TILES: Final = ("input_size", "img_size", "image_size", "imgsz", "input_shape", "tile_size", "tile", "crop_size")
_DEVIATIONS: Final = ("std", "deviation")

_NESTS: Final = (
    "hyper_parameters", "hparams", "config", "cfg", "args", "meta", "metadata", "train_args", "opt", "preprocessing",
    "preprocess", "normalization", "normalisation", "transform", "data", "pretrained_cfg", "default_cfg",
)  # fmt: skip
"""Keys under which scripts keep the settings of a training."""

KEYS: Final = (*_CLASSES, *_TILES, "mean", *_DEVIATIONS, *_NESTS)
"""All names that are looked for."""

_LARGEST_TILE: Final = 1 << 14


def hints_of(document: Mapping[str, object]) -> Hints:
    """What a training dict, or the text metadata of a file, says; what is not understood is not taken for anything."""
    levels = [document, *_nested(document)]
    classes = (_classes(level.get(key)) for level in levels for key in _CLASSES)
    tiles = (_tile(level.get(key)) for level in levels for key in _TILES)
    normalisations = (_normalisation(level) for level in levels)
    return Hints(next(filter(None, classes), None), next(filter(None, tiles), None), next(filter(None, normalisations), None))


def merged(first: Hints, second: Hints) -> Hints:
    """The first one's, and the second one's where it says nothing."""
    return Hints(first.classes or second.classes, first.tile or second.tile, first.normalisation or second.normalisation)


def _nested(document: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    for key in _NESTS:
        value = _parsed(document.get(key))
        if isinstance(value, argparse.Namespace):
            value = vars(value)
        if isinstance(value, Mapping):
            yield value
            yield from _nested({name: inner for name, inner in value.items() if name != key})


def _parsed(value: object) -> object:
    """A text as the list, dict or number that it spells: metadata of ONNX and safetensors are texts alone."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        try:
            return ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return value


def _classes(value: object) -> tuple[str, ...] | None:
    value = _parsed(value)
    if isinstance(value, str) and "," in value:
        value = [name.strip() for name in value.split(",")]
    if isinstance(value, Mapping):
        value = _in_index_order(value)
    if not isinstance(value, Sequence) or isinstance(value, str):
        return None
    names = tuple(name for name in value if isinstance(name, str) and name)
    return names if len(names) == len(value) == len(set(names)) and names else None


def _in_index_order(value: Mapping[object, object]) -> list[object]:
    """Of {0: name} or {name: 0}; empty where the indices are not 0, 1, 2, ..."""
    pairs = [(key, name) if _index(key) is not None else (name, key) for key, name in value.items()]
    by_index = {_index(index): name for index, name in pairs}
    return [by_index[index] for index in range(len(pairs))] if set(by_index) == set(range(len(pairs))) else []


def _index(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    return int(value) if isinstance(value, str) and value.isdecimal() else None


def _tile(value: object) -> tuple[int, int] | None:
    """Of one number, (h, w), (c, h, w), (h, w, c), or either with the batch first; of a dict with height and width."""
    value = _parsed(value)
    if isinstance(value, Mapping):
        value = [value.get("height"), value.get("width")]
    sizes = [value, value] if isinstance(value, int) else list(value) if isinstance(value, Sequence) else []
    if len(sizes) == 4:
        sizes = sizes[1:]
    if len(sizes) == 3 and all(isinstance(size, int) for size in sizes):
        sizes = sizes[1:] if sizes[0] <= 4 else sizes[:2] if sizes[2] <= 4 else []
    if len(sizes) != 2:
        return None
    height, width = sizes
    if any(isinstance(size, bool) or not isinstance(size, int) for size in sizes):
        return None
    return (height, width) if 4 <= height <= _LARGEST_TILE and 4 <= width <= _LARGEST_TILE else None


def _normalisation(level: Mapping[str, object]) -> Normalisation | None:
    mean = _numbers(level.get("mean"))
    deviation = next((found for key in _DEVIATIONS if (found := _numbers(level.get(key)))), None)
    if not mean or not deviation:
        return None
    if len(deviation) == 1:
        deviation *= len(mean)
    # scripts state both for pixels / 255 (ImageNet's .485) or for pixels (123.675): no mean above 1 is one of pixels / 255
    scale = 255.0 if max(*mean, *deviation) <= 1.0 else 1.0
    try:
        return Normalisation(tuple(value * scale for value in mean), tuple(value * scale for value in deviation))
    except ExportError:
        return None


def _numbers(value: object) -> tuple[float, ...] | None:
    value = _parsed(value)
    if hasattr(value, "tolist"):
        value = value.tolist()
    values = [value] if isinstance(value, int | float) else list(value) if isinstance(value, list | tuple) else []
    if not values or any(isinstance(number, bool) or not isinstance(number, int | float) for number in values):
        return None
    numbers = tuple(float(number) for number in values)
    return numbers if all(math.isfinite(number) for number in numbers) else None
