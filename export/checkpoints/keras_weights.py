"""Weights of Keras files, and the layers that they belong to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from export.errors import ExportError

Array = npt.NDArray[Any]

_SEED = "seed_generator"
"""In the name of what dropout layers keep of their random generator, which is no weight."""

SHOWN = 3
"""Layers that an error names."""


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """A layer's weights in a file: names such as `conv2d/kernel:0` with values; those of layers inside it are among them."""

    name: str
    values: tuple[tuple[str, Array], ...]


def compare(model: Any, reference: Any) -> list[str]:
    """What differs in the layers of two models, first ones first: their order and shapes, not their names. Empty: the same.

    Also the shape of the input, what images are multiplied by, and whether the answer is of softmax or sigmoid; logits may be
    of either.
    """
    faults = []
    if _input_shape(model) != _input_shape(reference):
        faults.append(f"its input is {_input_shape(model)}, expected {_input_shape(reference)}")
    if _rescalings(model) != _rescalings(reference):
        faults.append(f"it rescales images by {_rescalings(model) or 'nothing'}, expected {_rescalings(reference) or 'nothing'}")
    faults += _different(_shapes(model), _shapes(reference))
    got, expected = _last_activation(model), _last_activation(reference)
    return faults if got in (expected, "linear") else [*faults, f"its last activation is {got}, expected {expected}"]


def set_by_name(model: Any, stored: Sequence[StoredLayer], origin: str) -> None:
    """Give each of the model's layers the weights of its name. Raises ExportError, before anything is set, where one has none."""
    by_name = {layer.name: layer for layer in stored if layer.values}
    wanted = {layer.name: layer for layer in model.layers if layer.weights}
    if set(by_name) != set(wanted):
        missing, odd = sorted(set(wanted) - set(by_name)), sorted(set(by_name) - set(wanted))
        raise ExportError(
            f"{origin}: its weights do not fit its layers: none for {', '.join(missing[:SHOWN]) or 'no other'}, "
            f"some for {', '.join(odd[:SHOWN]) or 'no other'}; save the model again"
        )
    _set([pair for name, layer in wanted.items() for pair in _paired(_variables(layer), by_name[name], origin)])


def set_by_order(model: Any, stored: Sequence[StoredLayer], origin: str) -> None:
    """Give the model's layers the stored ones' weights, one after the other. Raises ExportError naming the first that differ."""
    layers = [(layer.name, _variables(layer)) for layer in model.layers if layer.weights]
    kept = [layer for layer in stored if layer.values]
    if len(stored) == 1 and not stored[0].name:
        layers = [(variable.path, [variable]) for variable in model.variables if _SEED not in variable.path]
        kept = [StoredLayer(name, ((name, values),)) for name, values in stored[0].values if _SEED not in name]
    faults = _different(
        [(layer.name, [values.shape for _, values in layer.values]) for layer in kept],
        [(name, [tuple(variable.shape) for variable in variables]) for name, variables in layers],
    )
    if faults:
        raise ExportError(f"{origin}: {shorten(faults)}")
    pairs = [pair for (_, variables), layer in zip(layers, kept, strict=True) for pair in _paired(variables, layer, origin)]
    _set(pairs)


def check_finite(model: Any, origin: str) -> None:
    """Raise ExportError where a weight is no finite number."""
    for variable in model.weights:
        if not bool(variable.value.isfinite().all()):
            raise ExportError(f"{origin}: {variable.path} holds values that are no finite numbers; expected trained weights")


def shorten(faults: Sequence[str]) -> str:
    """The first faults, and how many there are beyond."""
    return "; ".join(faults[:SHOWN]) + (f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else "")


def _paired(variables: list[Any], stored: StoredLayer, origin: str) -> list[tuple[Any, Array]]:
    """A layer's variables with their values: by the last two parts of their names, else in their order."""
    values = dict(enumerate(stored.values))
    found = {_key(name): index for index, (name, _) in values.items()}
    keys = [_key(variable.path) for variable in variables]
    if len(found) == len(values) and set(keys) == set(found) and len(set(keys)) == len(keys):
        order = [found[key] for key in keys]
    else:
        order = list(range(len(variables)))
    pairs = []
    if len(values) != len(variables):
        raise ExportError(f"{origin}: layer '{stored.name}' has {len(values)} weights, expected {len(variables)}")
    for variable, index in zip(variables, order, strict=True):
        name, array = values[index]
        role, expected = _key(name)[-1], _key(variable.path)[-1]
        if role != expected or array.shape != tuple(variable.shape):
            title = stored.name or variable.path
            raise ExportError(
                f"{origin}: layer '{title}' holds {role} {array.shape}, expected {expected} {tuple(variable.shape)}"
            )
        pairs.append((variable, array))
    return pairs


def _different(got: list[tuple[str, list[tuple[int, ...]]]], expected: list[tuple[str, list[tuple[int, ...]]]]) -> list[str]:
    faults = []
    for index in range(max(len(got), len(expected))):
        if index >= len(got):
            faults.append(f"{_titled(*expected[index])} is missing")
        elif index >= len(expected):
            faults.append(f"{_titled(*got[index])} is one layer too many")
        elif got[index][1] != expected[index][1]:
            faults.append(f"layer {index + 1} with weights is {_titled(*got[index])}, expected {_titled(*expected[index])}")
    return faults


def _titled(name: str, shapes: list[tuple[int, ...]]) -> str:
    return f"{name} {' '.join(map(str, shapes))}".strip()


def _set(pairs: list[tuple[Any, Array]]) -> None:
    for variable, values in pairs:
        variable.assign(values)


def _shapes(model: Any) -> list[tuple[str, list[tuple[int, ...]]]]:
    return [(layer.name, [tuple(v.shape) for v in _variables(layer)]) for layer in _all_layers(model) if layer.weights]


def _all_layers(model: Any) -> Iterator[Any]:
    """Layers, those of models inside in place of these."""
    for layer in model.layers:
        if hasattr(layer, "layers"):
            yield from _all_layers(layer)
        else:
            yield layer


def _variables(layer: Any) -> list[Any]:
    """In the order of Keras's own HDF5 files: those that train first."""
    return [*layer.trainable_weights, *layer.non_trainable_weights]


def _rescalings(model: Any) -> list[str]:
    layers = [layer for layer in _all_layers(model) if type(layer).__name__ in ("Rescaling", "Normalization")]
    return [f"{layer.scale:.6g}" if isinstance(getattr(layer, "scale", None), float) else layer.name for layer in layers]


def _last_activation(model: Any) -> str:
    layer = list(_all_layers(model))[-1]
    if type(layer).__name__ == "Softmax":
        return "softmax"
    return str(getattr(getattr(layer, "activation", None), "__name__", "linear"))


def _key(name: str) -> tuple[str, ...]:
    """Layer and role: `conv1/kernel` of `resnet50/conv1/kernel:0`."""
    parts = name.partition(":")[0].split("/")
    role = "kernel" if parts[-1] == "depthwise_kernel" else parts[-1]
    return (*parts[-2:-1], role)


def _input_shape(model: Any) -> tuple[int | None, ...]:
    return tuple(model.inputs[0].shape[1:])
