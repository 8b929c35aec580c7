"""INT8 by the task's metric: the range method that loses least, then layer groups back to float until the budget holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from tqdm import tqdm

from calibration.activations import ActivationRange, RangeMethod, activation_ranges, collect
from edge.sessions import Batch
from export.errors import ExportError
from export.quantize import quantizable_layers, quantize, tensors_to_observe

MOST_GROUPS = 24
"""Each is measured on its own: a ResNet of 50 layers in groups of two or three tells as much, in half the time."""

Judge = Callable[[onnx.ModelProto], float]
"""What an engine is worth on validation data, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Quantization:
    """An INT8 engine and how it was found. Losses in points, float minus INT8.

    method: how the ranges were found, a RangeMethod or `fine_tuned`. methods: loss by each that was tried.
    sensitivity: loss by layer group, that group alone left in float; measured only where the budget did not hold at once.
    curve: loss as group after group is put back to float, the worst one first, named by it.
    float_layers: what was put back to float. tuning_losses: of each epoch of fine-tuning, where there was one.
    """

    model: onnx.ModelProto
    method: str
    float_layers: tuple[str, ...]
    loss: float
    methods: dict[str, float]
    sensitivity: dict[str, float] = field(default_factory=dict)
    curve: tuple[tuple[str, float], ...] = ()
    tuning_losses: tuple[float, ...] = ()


class QuantizationLossError(ExportError):
    """Every choice loses more than the budget allows; `tried` holds the best one and what else was measured."""

    def __init__(self, message: str, tried: Quantization) -> None:
        super().__init__(message)
        self.tried = tried


def quantize_within(
    model: onnx.ModelProto, batches: Iterable[Batch], judge: Judge, float_value: float, max_drop: float, threads: int = 0
) -> Quantization:
    """The INT8 engine that loses least, with as few layer groups in float as `max_drop` points allow.

    model: float engine; batches: calibration tiles, looked at once; float_value: what `judge` says of the float engine.
    Raises QuantizationLossError where even all groups in turn do not keep the loss within max_drop.
    """
    statistics = collect(model, tensors_to_observe(model), batches, threads)
    by_method = {method: activation_ranges(statistics, method) for method in RangeMethod}

    def loss(ranges: dict[str, ActivationRange], float_layers: Sequence[str] = ()) -> float:
        return 100.0 * (float_value - judge(quantize(model, ranges, float_layers)))

    methods = {method: loss(ranges) for method, ranges in tqdm(by_method.items(), desc="ranges", leave=False, disable=None)}
    method = min(methods, key=lambda candidate: methods[candidate])
    ranges = by_method[method]
    losses = {candidate.value: value for candidate, value in methods.items()}
    if methods[method] <= max_drop:
        return Quantization(quantize(model, ranges), method.value, (), methods[method], losses)
    groups = layer_groups(quantizable_layers(model))
    alone = {name: loss(ranges, layers) for name, layers in tqdm(groups.items(), desc="sensitivity", leave=False, disable=None)}
    kept: list[str] = []
    curve: list[tuple[str, float]] = []
    best: tuple[float, tuple[str, ...]] = (methods[method], ())
    # a group too many would leave nothing to quantize: that is a float engine
    for name in sorted(alone, key=lambda candidate: alone[candidate])[: len(groups) - 1]:
        kept += groups[name]
        curve.append((name, loss(ranges, kept)))
        best = min(best, (curve[-1][1], tuple(kept)), key=lambda tried: tried[0])
        if best[0] <= max_drop:
            break
    found = Quantization(quantize(model, ranges, best[1]), method.value, best[1], best[0], losses, alone, tuple(curve))
    if best[0] > max_drop:
        raise QuantizationLossError(
            f"INT8 loses {best[0]:.2f} points, expected at most {max_drop:.2f} (--max-drop): export fp32, train longer, "
            f"or calibrate with more images\ntried ranges: {_listed(losses)}\ntried single groups in float: {_listed(alone)}",
            found,
        )
    return found


def layer_groups(layers: Iterable[str], limit: int = MOST_GROUPS) -> dict[str, list[str]]:
    """Layers by the outermost module they belong to, in graph order; neighbours together where there are more than `limit`.

    >>> layer_groups(["stem.0/Conv", "encoder_4.0.0/Conv", "encoder_4.1.0/Conv", "Add"])
    {'stem': ['stem.0/Conv'], 'encoder_4': ['encoder_4.0.0/Conv', 'encoder_4.1.0/Conv'], 'Add': ['Add']}
    >>> layer_groups(["a/Conv", "b/Conv", "c/Conv"], limit=2)
    {'a to b': ['a/Conv', 'b/Conv'], 'c': ['c/Conv']}
    """
    groups: dict[str, list[str]] = {}
    for layer in layers:
        groups.setdefault(layer.partition("/")[0].partition(".")[0], []).append(layer)
    names = list(groups)
    if len(names) <= limit:
        return groups
    joined: dict[str, list[str]] = {}
    for part in np.array_split(np.array(names, dtype=object), limit):
        name = part[0] if len(part) == 1 else f"{part[0]} to {part[-1]}"
        joined[name] = [layer for member in part for layer in groups[member]]
    return joined


def _listed(losses: dict[str, float]) -> str:
    return ", ".join(f"{name} loses {value:.2f}" for name, value in losses.items())
