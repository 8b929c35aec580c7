"""INT8 by the task's metric: the range method that loses least, then layer groups back to float until the budget holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import onnx
from tqdm import tqdm

from calibration.activations import ActivationRange, RangeMethod, activation_ranges, collect
from edge.sessions import Batch
from export.errors import ExportError
from export.quantize import quantizable_layers, quantize, tensors_to_observe

Judge = Callable[[onnx.ModelProto], float]
"""What an engine is worth on validation data, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Quantization:
    """An INT8 engine and how it was found. Losses in points, float minus INT8.

    methods: loss by range method. sensitivity: loss by layer group, that group alone left in float; measured only where the
    budget did not hold at once. float_layers: what stays float besides the head.
    """

    model: onnx.ModelProto
    method: RangeMethod
    float_layers: tuple[str, ...]
    loss: float
    methods: dict[str, float]
    sensitivity: dict[str, float] = field(default_factory=dict)


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
    losses = {candidate.name.lower(): value for candidate, value in methods.items()}
    if methods[method] <= max_drop:
        return Quantization(quantize(model, ranges), method, (), methods[method], losses)
    groups = layer_groups(quantizable_layers(model))
    alone = {name: loss(ranges, layers) for name, layers in tqdm(groups.items(), desc="sensitivity", leave=False, disable=None)}
    kept: list[str] = []
    best: tuple[float, tuple[str, ...]] = (methods[method], ())
    # a group too many would leave nothing to quantize: that is a float engine
    for name in sorted(alone, key=lambda candidate: alone[candidate])[: len(groups) - 1]:
        kept += groups[name]
        best = min(best, (loss(ranges, kept), tuple(kept)), key=lambda tried: tried[0])
        if best[0] <= max_drop:
            break
    found = Quantization(quantize(model, ranges, best[1]), method, best[1], best[0], losses, alone)
    if best[0] > max_drop:
        raise QuantizationLossError(
            f"INT8 loses {best[0]:.2f} points, expected at most {max_drop:.2f} (--max-drop): export fp32, train longer, "
            f"or calibrate with more images\ntried ranges: {_listed(losses)}\ntried single groups in float: {_listed(alone)}",
            found,
        )
    return found


def layer_groups(layers: Iterable[str]) -> dict[str, list[str]]:
    """Layers by the outermost module they belong to, in graph order.

    >>> layer_groups(["stem.0/Conv", "encoder_4.0.0/Conv", "encoder_4.1.0/Conv", "Add"])
    {'stem': ['stem.0/Conv'], 'encoder_4': ['encoder_4.0.0/Conv', 'encoder_4.1.0/Conv'], 'Add': ['Add']}
    """
    groups: dict[str, list[str]] = {}
    for layer in layers:
        groups.setdefault(layer.partition("/")[0].partition(".")[0], []).append(layer)
    return groups


def _listed(losses: dict[str, float]) -> str:
    return ", ".join(f"{name} loses {value:.2f}" for name, value in losses.items())
