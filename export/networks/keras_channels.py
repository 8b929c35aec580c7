"""A Keras model, channels last, as a torch module, channels first, that ends in logits.

The graph is written anew from torch's own layers rather than run by Keras on torch: so the exported file has a convolution
where Keras has one, with its name, without transposes between them; batch normalisation is folded; padding belongs to the
operator that pads; and the module can be trained further like any other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from export.errors import ExportError
from export.networks.keras_layers import apply_operation, refuse, translate
from export.networks.keras_steps import GraphWriter, KerasNetwork, Signal


def to_module(model: Any, tile: tuple[int, int] | None = None) -> KerasNetwork:
    """The network of a Keras 3 model with one image in and one answer out, in evaluation mode.

    tile: height and width that it shall take; None: those of the model's input. Raises ExportError naming the first layer that
    cannot be exported.
    """
    channels, size = _input_size(model)
    height, width = tile or (size[0] or 0, size[1] or 0)
    if not height or not width:
        raise ExportError(f"model '{model.name}' takes images of any size; say which size its tiles have: --tile HEIGHTxWIDTH")
    if len(model.outputs) != 1:
        raise ExportError(f"model '{model.name}' gives {len(model.outputs)} outputs; expected one, of the scores")
    writer = GraphWriter((height, width, channels))
    uses = _count_uses(model)
    (scores,) = _write(model, [writer.image], writer, uses)
    scores = writer.plain(scores)
    if len(scores.shape) == 3 and scores.shape[:2] != (height, width):
        raise ExportError(
            f"model '{model.name}' makes scores of {scores.shape[0]}x{scores.shape[1]} from tiles of {height}x{width}; "
            "expected one score per pixel, or one per image"
        )
    return writer.finish(scores)


def input_channels(model: Any) -> int:
    """Channels of the images that the model takes. Raises ExportError where it takes something else."""
    return _input_size(model)[0]


def _input_size(model: Any) -> tuple[int, tuple[int | None, int | None]]:
    inputs = list(getattr(model, "inputs", None) or [])
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].shape[3] is None:
        got = ", ".join(str(tuple(tensor.shape)) for tensor in inputs) or "none: it was never built"
        raise ExportError(f"model '{model.name}' has inputs {got}; expected one of images (None, height, width, channels)")
    _, height, width, channels = inputs[0].shape
    return int(channels), (height, width)


def _write(model: Any, images: list[Signal], writer: GraphWriter, uses: Counter[int]) -> list[Signal]:
    """Write a model's calls behind its inputs; gives its outputs."""
    graph = _graph(model)
    signals = {id(tensor): signal for tensor, signal in zip(graph.inputs, images, strict=True)}
    for node in _nodes(graph):
        operation, arguments = node.operation, _arguments(node)
        found = [signals.get(id(a), a) for a in arguments]
        inputs = [signal for signal in found if isinstance(signal, Signal)]
        if hasattr(operation, "layers"):
            outputs = _write(operation, inputs, writer, uses)
        elif type(operation).__module__.startswith("keras.src.ops"):
            outputs = [apply_operation(operation, found, writer)]
        else:
            outputs = [translate(operation, inputs, writer)]
        if len(outputs) != len(node.outputs):
            raise refuse(operation, f"it gives {len(node.outputs)} outputs; expected one")
        for tensor, signal in zip(node.outputs, outputs, strict=True):
            # what several layers read, or a layer that is called twice computes, keeps its own weights
            folds = uses[id(tensor)] == 1 and uses[id(operation)] == 1
            signals[id(tensor)] = signal if folds else replace(signal, weighted=None)
    return [signals[id(tensor)] for tensor in graph.outputs]


def _count_uses(model: Any) -> Counter[int]:
    """How often each tensor is read and each layer called, by `id`, nested models included."""
    graph = _graph(model)
    uses = Counter(id(tensor) for tensor in graph.outputs)
    for node in _nodes(graph):
        uses.update(id(tensor) for tensor in _arguments(node))
        uses[id(node.operation)] += 1
        if hasattr(node.operation, "layers"):
            uses += _count_uses(node.operation)
    return uses


def _graph(model: Any) -> Any:
    """The model's functional graph; a Sequential keeps one of its own."""
    graph = getattr(model, "_functional", None) or model
    if not hasattr(graph, "_nodes_by_depth"):
        raise ExportError(
            f"model '{model.name}' ({type(model).__name__}) is code, not a graph of layers; expected keras.Sequential or the "
            "functional keras.Model(inputs, outputs)"
        )
    return graph


def _nodes(graph: Any) -> Iterator[Any]:
    """Calls of layers, each behind those whose outputs it reads."""
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        yield from (node for node in graph._nodes_by_depth[depth] if not node.is_input)


def _arguments(node: Any) -> list[Any]:
    """Tensors and constants in their order; lists of tensors, as merging layers take them, laid out."""
    listed: list[Any] = []
    for argument in (*node.arguments.args, *(v for v in node.arguments.kwargs.values() if hasattr(v, "shape"))):
        listed.extend(argument) if isinstance(argument, (list, tuple)) else listed.append(argument)
    return [argument for argument in listed if argument is not None]
