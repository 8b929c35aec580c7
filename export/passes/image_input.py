"""The image that a foreign graph takes: which of its axes are channels, rows and columns."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from onnx import NodeProto

CHANNELS_FIRST, CHANNELS_LAST = (0, 3, 1, 2), (0, 2, 3, 1)
"""Permutations of Transpose that bring (n, h, w, c) to (n, c, h, w), and back."""

_MOST_CHANNELS = 4
_KEEPS_LAYOUT = frozenset(("Cast", "Sub", "Mul", "Div", "Add", "Identity", "Clip", "Pad", "Neg", "Dropout", "Resize", "Relu"))
_TAKES_CHANNELS_FIRST = frozenset(("Conv", "ConvTranspose", "MaxPool", "AveragePool", "BatchNormalization", "DepthToSpace"))


@dataclass(frozen=True, slots=True)
class ImageInput:
    """A graph's only input, of four axes; sizes are None where the graph leaves them open.

    kind: its element type, as ONNX numbers them. batch: the size that it is exported for.
    """

    name: str
    kind: int
    channels_last: bool
    batch: int | None
    channels: int | None
    height: int | None
    width: int | None


def graph_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """Inputs that are no weights: files before IR version 4 list those, too."""
    weights = {initializer.name for initializer in graph.initializer}
    return [value for value in graph.input if value.name not in weights]


def find_image_input(model: onnx.ModelProto) -> ImageInput | None:
    """The image that the graph takes; None where it takes several things, or none of four axes."""
    inputs = graph_inputs(model.graph)
    if len(inputs) != 1:
        return None
    tensor = inputs[0].type.tensor_type
    if len(tensor.shape.dim) != 4:
        return None
    sizes = [dimension.dim_value or None for dimension in tensor.shape.dim]
    consumer = _first_telling(model.graph, inputs[0].name)
    last = _is_channels_last(consumer, sizes)
    batch, height, width, channels = sizes if last else (sizes[0], sizes[2], sizes[3], sizes[1])
    if channels is None and consumer is not None:
        channels = _channels_of_weights(model.graph, consumer)
    return ImageInput(inputs[0].name, tensor.elem_type, last, batch, channels, height, width)


def _is_channels_last(consumer: NodeProto | None, sizes: list[int | None]) -> bool:
    if consumer is not None and consumer.op_type in _TAKES_CHANNELS_FIRST:
        return False
    if consumer is not None and consumer.op_type == "Transpose":
        return any(tuple(attribute.ints) == CHANNELS_FIRST for attribute in consumer.attribute)

    def few(size: int | None) -> bool:
        return size is not None and size <= _MOST_CHANNELS

    return few(sizes[3]) and not few(sizes[1])


def _first_telling(graph: onnx.GraphProto, name: str) -> NodeProto | None:
    """The first consumer of the image that says where its channels are, behind operators that do not."""
    return _search(graph, name, _TAKES_CHANNELS_FIRST | {"Transpose"})


def _channels_of_weights(graph: onnx.GraphProto, consumer: NodeProto) -> int | None:
    conv = consumer
    if consumer.op_type == "Transpose":
        found = _search(graph, consumer.output[0], frozenset(("Conv",)))
        conv = found if found is not None else consumer
    if conv.op_type != "Conv":
        return None
    shapes = {initializer.name: initializer.dims for initializer in graph.initializer}
    shape = shapes.get(conv.input[1])
    group = next((attribute.i for attribute in conv.attribute if attribute.name == "group"), 1)
    return int(shape[1]) * int(group) if shape else None


def _search(graph: onnx.GraphProto, name: str, wanted: frozenset[str]) -> NodeProto | None:
    reached = {name}
    node: NodeProto
    for node in graph.node:
        if not reached.intersection(node.input):
            continue
        if node.op_type in wanted:
            return node
        if node.op_type in _KEEPS_LAYOUT:
            reached.update(node.output)
    return None
