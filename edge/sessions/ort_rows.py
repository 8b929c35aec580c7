"""Rows of integer tensors joined and cut channels last, as ONNX Runtime's integer convolutions lay them out.

A streaming engine puts a few earlier rows before almost every tensor and cuts the last ones off for its next step. Between
channel planes that made ONNX Runtime transpose each of these tensors there and back: 34 times in a U-Net, a tenth of its time.
Channels last, rows lie one behind the other in memory, and the transposing cancels out between convolutions. The states
themselves enter and leave channels last, (1, rows, columns, channels).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final

import numpy as np
import onnx
from onnx import NodeProto, ValueInfoProto, helper

from edge.sessions.integer_graph import IntegerGraph, new_node

CHANNELS_LAST_KEY: Final = "rust-edge.channels-last."
"""Metadata key prefix: a state of the rewritten streaming engine whose channels come last."""

_LAST: Final = (0, 2, 3, 1)
_FIRST: Final = (0, 3, 1, 2)
_ROWS: Final = 2
_ROWS_OF_PIXELS: Final = 1


def states_with_channels_last(metadata: Mapping[str, str]) -> frozenset[str]:
    """Inputs of a rewritten streaming engine that are (1, rows, columns, channels). metadata: the engine's own, by key."""
    return frozenset(key[len(CHANNELS_LAST_KEY) :] for key in metadata if key.startswith(CHANNELS_LAST_KEY))


def rows_channels_last(
    graph: IntegerGraph, model: onnx.ModelProto, nodes: Iterable[NodeProto], integers: Collection[str]
) -> list[NodeProto]:
    """The nodes, rows of `integers` joined and cut channels last; dead ones may be among them.

    The inputs and outputs of a streaming model among `integers` are declared anew, and named in its metadata. Nodes of a model
    without states come back as they are.
    """
    states = [value for value in model.graph.input if value.name in integers]
    nexts = [value for value in model.graph.output if value.name in integers]
    if not states or any(len(value.type.tensor_type.shape.dim) != 4 for value in [*states, *nexts]):
        return list(nodes)
    pixels = _Pixels(graph, {value.name: value.name for value in states})
    for node in nodes:
        pixels.add(node, integers)
    for value in nexts:
        pixels.leave(value.name)
    for value in [*states, *nexts]:
        _declare_channels_last(value)
    for value in states:
        model.metadata_props.add(key=CHANNELS_LAST_KEY + value.name, value="1")
    return pixels.nodes


class _Pixels:
    """Nodes being written, and what each tensor is called with its channels last.

    last: by the name of a tensor with channel planes. Of states, and of what leaves as one, the name itself is that of the
    pixels; their planes have another.
    """

    def __init__(self, graph: IntegerGraph, last: dict[str, str]) -> None:
        self.nodes: list[NodeProto] = []
        self._graph = graph
        self._last = last
        self._planes: dict[str, str] = {}
        for name in list(last):
            self._to_planes(name, f"{name}/planes")

    def add(self, node: NodeProto, integers: Collection[str]) -> None:
        """A node, channels last where it joins or cuts rows of integers."""
        if node.output[0] in integers and _joins_rows(node):
            joined = [self._as_pixels(name) for name in node.input]
            self._moved(node, joined, [helper.make_attribute("axis", _ROWS_OF_PIXELS)])
        elif node.output[0] in integers and self._cuts_rows(node):
            axes = self._graph.constant("rust_edge/rows_of_pixels", np.array([_ROWS_OF_PIXELS], np.int64))
            self._moved(node, [self._as_pixels(node.input[0]), *node.input[1:3], axes], [])
        else:
            node.input[:] = [self._planes.get(name, name) for name in node.input]
            self.nodes.append(node)

    def leave(self, name: str) -> None:
        """Give an output its own name again, now that of pixels; its planes keep the other for what reads them."""
        pixels, planes = self._as_pixels(name), f"{name}/planes"
        for node in self.nodes:
            for names in (node.input, node.output):
                names[:] = [{name: planes, pixels: name}.get(each, each) for each in names]

    def _moved(self, node: NodeProto, inputs: list[str], attributes: list[onnx.AttributeProto]) -> None:
        pixels = f"{node.output[0]}/rows"
        moved = new_node(node.op_type, inputs, pixels, name=node.name)
        moved.attribute.extend(attributes)
        self.nodes.append(moved)
        self._last[node.output[0]] = pixels
        self._to_planes(pixels, node.output[0])

    def _as_pixels(self, name: str) -> str:
        if name not in self._last:
            self._last[name] = f"{name}/rows"
            self.nodes.append(_transposed(name, self._last[name], _LAST))
        return self._last[name]

    def _to_planes(self, pixels: str, planes: str) -> None:
        """The planes again, for what is not written channels last; dead where nothing is."""
        self.nodes.append(_transposed(pixels, planes, _FIRST))
        self._planes[pixels] = planes

    def _cuts_rows(self, node: NodeProto) -> bool:
        """Whether a Slice takes consecutive rows."""
        if node.op_type != "Slice" or len(node.input) < 4 or len(node.input) > 5:
            return False
        known = self._graph.values.constants
        axes, steps = known.get(node.input[3]), known.get(node.input[4]) if len(node.input) == 5 and node.input[4] else None
        whole = steps is None or bool((steps == 1).all())
        return axes is not None and axes.tolist() == [_ROWS] and whole and (len(node.input) == 4 or steps is not None)


def _joins_rows(node: NodeProto) -> bool:
    return node.op_type == "Concat" and helper.get_attribute_value(node.attribute[0]) == _ROWS


def _transposed(tensor: str, output: str, order: tuple[int, ...]) -> NodeProto:
    node = new_node("Transpose", [tensor], output)
    node.attribute.append(helper.make_attribute("perm", order))
    return node


def _declare_channels_last(value: ValueInfoProto) -> None:
    sizes = list(value.type.tensor_type.shape.dim)
    named = [size.dim_param or size.dim_value for size in sizes]
    kind = value.type.tensor_type.elem_type
    value.CopyFrom(helper.make_tensor_value_info(value.name, kind, [named[axis] or None for axis in _LAST]))
