"""What a graph answers: the activation that it ends in, and its scores in the engines' form."""

from __future__ import annotations

from typing import Any, Final, Literal

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from export.errors import ExportError
from export.passes.image_input import CHANNELS_FIRST
from export.passes.naming import label, names_in, unique
from export.passes.sizes import known_shapes
from export.passes.widening import FLOATS
from export.to_onnx import OUTPUT

Activation = Literal["softmax", "sigmoid"]

_ACTIVATIONS: Final[dict[str, Activation]] = {"Softmax": "softmax", "Sigmoid": "sigmoid"}
"""A LogSoftmax is none: the softmax of its answers is the softmax of its input, so that they are logits themselves."""
_CHANGE_NO_SCORE: Final = frozenset(("Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast", "Dropout"))

_NO_LOGITS: Final = frozenset((
    "And", "ArgMax", "ArgMin", "Ceil", "Clip", "Equal", "Erf", "Exp", "Floor", "Greater", "GreaterOrEqual", "HardSigmoid",
    "Hardmax", "Less", "LessOrEqual", "NonMaxSuppression", "Not", "OneHot", "Or", "Round", "Sign", "Softplus", "Softsign", "Tanh",
    "TopK", "Where",
))  # fmt: skip
"""Decisions, and values within bounds: a softmax or sigmoid behind them means nothing."""


def final_activation(model: onnx.ModelProto) -> Activation | None:
    """The activation that a graph's first output ends in; None: something else."""
    node = _ending(model.graph)
    return _ACTIVATIONS.get(node.op_type) if node is not None else None


def without_activation(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that gives the logits before its final activation, channels being axis 1; the same where it ends in none.

    Raises ExportError where a softmax is not over the channels, or no logits come from what ends the graph.
    """
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    node = _ending(bare.graph)
    if node is None:
        return bare
    if node.op_type in _NO_LOGITS or (node.op_type == "Cast" and node.attribute[0].i not in FLOATS):
        raise ExportError(
            f"the graph ends in {label(node)}, from which no logits come; export the network without what it does to its scores"
        )
    if node.op_type not in _ACTIVATIONS:
        return bare
    channels = _channel_axis(bare.graph, node)
    axes = len(known_shapes(bare).get(node.input[0], []))
    if node.op_type == "Softmax" and axes and channels is not None:
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), -1)
        if axis % axes != channels:
            raise ExportError(f"the graph ends in {label(node)} over axis {axis}; expected the channels, axis {channels}")
    passed = helper.make_node("Identity", [node.input[0]], [node.output[0]], name=node.name)
    node.CopyFrom(passed)
    return bare


def without_final(model: onnx.ModelProto, activation: Activation) -> onnx.ModelProto:
    """As `without_activation`, for a graph that may end in this activation alone. Raises ExportError."""
    found, node = final_activation(model), _ending(model.graph)
    if found not in (None, activation) and node is not None:
        raise ExportError(
            f"the graph ends in {label(node)}, expected a {activation} or nothing: its scores mean something else; "
            "take another --arch, or export the network without it"
        )
    return without_activation(model)


def with_scores_output(
    model: onnx.ModelProto, shape: tuple[int, ...], tile: tuple[int, int], channels_last: bool
) -> onnx.ModelProto:
    """A copy whose output is `scores`, (n, channels, h, w) or (n, channels).

    shape: of what the graph answers to a batch of tiles. channels_last: its layout where the shape leaves that open.
    Raises ExportError.
    """
    answered = onnx.ModelProto()
    answered.CopyFrom(model)
    graph = answered.graph
    (value,) = graph.output
    inputs: list[str] = [value.name]
    attributes: dict[str, Any] = {}
    first, last = len(shape) == 4 and shape[2:] == tile, len(shape) == 4 and shape[1:3] == tile
    if last and (channels_last or not first):
        kind, attributes = "Transpose", {"perm": CHANNELS_FIRST}
    elif first or len(shape) == 2:
        kind = "Identity"
    elif len(shape) == 4 and (shape[2:] == (1, 1) or shape[1:3] == (1, 1)):
        kind, attributes = "Flatten", {"axis": 1}
    elif len(shape) == 3 and shape[1:] == tile:
        kind = "Unsqueeze"
        inputs.append(unique("channel_axis", names_in(graph)))
        graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), inputs[1]))
    else:
        raise ExportError(
            f"the graph answers {list(shape[1:])} to a tile of {tile[0]}x{tile[1]}; expected scores per pixel of the tile, "
            "(channels, h, w), or per tile, (channels)"
        )
    graph.node.append(helper.make_node(kind, inputs, [OUTPUT], name=f"to_{OUTPUT}", **attributes))
    value.CopyFrom(helper.make_empty_tensor_value_info(OUTPUT))
    value.type.tensor_type.elem_type = TensorProto.FLOAT
    return answered


def _channel_axis(graph: onnx.GraphProto, node: NodeProto) -> int | None:
    """The axis of a node's answer that is axis 1 of the graph's; None: reshaped in between."""
    producers = {name: other for other in graph.node for name in other.output}
    axis, behind = 1, producers[graph.output[0].name]
    while behind is not node:
        if behind.op_type == "Transpose":
            axis = int(behind.attribute[0].ints[axis])
        elif behind.op_type not in ("Identity", "Cast", "Dropout"):
            return None
        behind = producers[behind.input[0]]
    return axis


def _ending(graph: onnx.GraphProto) -> NodeProto | None:
    """The last node that does something to the scores."""
    producers = {name: node for node in graph.node for name in node.output}
    node = producers.get(graph.output[0].name)
    while node is not None and node.op_type in _CHANGE_NO_SCORE:
        if node.op_type == "Cast" and node.attribute[0].i not in FLOATS:
            break
        node = producers.get(node.input[0])
    return node
