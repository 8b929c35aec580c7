"""What ONNX Runtime's CPU kernels need of an engine file, done when it is loaded: a pure function of the graph.

The bundle's INT8 file is written for TensorRT: explicit Q/DQ nodes, int8 everywhere, zero point 0, float biases. ONNX Runtime's
fast integer kernels want unsigned activations, quantized biases and a zero point at the type's minimum after a ReLU; run as it
stands the file is slower than the float one. The rewrite changes the representation and keeps the values:

- Non-negative tensors become uint8 with zero point 0, all others uint8 with zero point 128, at the same scale. A uint8 tensor
  with zero point 0 could hold 255 steps where int8 ends at 127: a Clip at 127 keeps the file's saturation (1.5 % of the time).
  Without it ONNX Runtime would answer closer to the float network than TensorRT does, and the quality that the exporter measures
  here would not be the file's quality there, least of all with clipping percentiles. It also keeps two neighbouring products of a
  uint8 and an int8 within 16 bits (2 * 127 * 127 < 2**15), so that processors without VNNI, whose instruction adds them with
  saturation (vpmaddubsw), compute the same.
- Convolution, ReLU and the Q/DQ around them become QLinearConv; the bias becomes int32 in units of the accumulator, exactly
  where the exporter rounded it to them, else to within half a unit.
- MaxPool, nearest Resize and Concat between equal scales work on the integers; Add becomes QLinearAdd.
- A quantized image whose int8 values are `pixel - 128` is the image itself with zero point 128: the normalisation goes away.
- Height and width are freed where nothing in the graph pins them, so that one file serves tiles, slabs and chunks.

Source: ONNX operators QLinearConv-10, QuantizeLinear-13; ONNX Runtime contrib operator com.microsoft QLinearAdd.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edge.sessions.graph_values import GraphValues, is_nearest_resize

REST_VALUE_KEY: Final = "rust-edge.rest-value."
"""Metadata key prefix: the integer that stands for 0.0 in a state input of the rewritten streaming engine."""

_SIGNED_ZERO: Final = 128
_LARGEST_BIAS: Final = 2**30
"""Half the accumulator's range is left to the products."""
_MOVES_VALUES: Final = frozenset({"Concat", "MaxPool", "Slice", "Identity", "Transpose"})
"""Operators that hand values on unchanged and that ONNX Runtime has for uint8; nearest Resize besides."""


@dataclass(slots=True)
class _Graph:
    """A graph being rewritten: its nodes (copies), who makes and who uses each tensor, and the new initializers."""

    nodes: list[NodeProto]
    values: GraphValues
    outputs: frozenset[str]
    made: dict[str, TensorProto] = field(default_factory=dict)
    consumers: dict[str, list[NodeProto]] = field(default_factory=dict)

    @staticmethod
    def of(model: onnx.ModelProto) -> _Graph:
        copied = onnx.ModelProto()
        copied.CopyFrom(model)
        graph = _Graph(list(copied.graph.node), GraphValues.of(copied), frozenset(o.name for o in model.graph.output))
        graph.index()
        return graph

    def index(self) -> None:
        """Follows a change of the nodes."""
        self.values.producers.clear()
        self.values.producers.update((output, node) for node in self.nodes for output in node.output)
        self.consumers.clear()
        for node in self.nodes:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)

    def producer(self, tensor: str) -> NodeProto | None:
        return self.values.producers.get(tensor)

    def only_consumer(self, tensor: str) -> NodeProto | None:
        users = self.consumers.get(tensor, [])
        return users[0] if len(users) == 1 and tensor not in self.outputs else None

    def constant(self, name: str, values: npt.NDArray[np.generic]) -> str:
        """Name of a new initializer."""
        self.made[name] = numpy_helper.from_array(values, name)
        self.values.constants[name] = values
        return name

    def zero_point(self, value: int) -> str:
        return self.constant(f"rust_edge/zero_point_{value}", np.array(value, np.uint8))

    def scale(self, node: NodeProto) -> npt.NDArray[np.float32]:
        """Scale of a Q or DQ node."""
        return self.values.constants[node.input[1]].astype(np.float32)

    def activation_dq(self, tensor: str) -> NodeProto | None:
        """The DequantizeLinear that makes a tensor out of integers that are no constant."""
        node = self.producer(tensor)
        return node if node is not None and node.op_type == "DequantizeLinear" and not self.is_constant(node.input[0]) else None

    def is_constant(self, tensor: str) -> bool:
        return tensor in self.values.constants


def rewrite_for_cpu(model: onnx.ModelProto) -> onnx.ModelProto:
    """The engine as ONNX Runtime's CPU kernels want it; the model given is left as it is.

    Float engines only have their height and width freed. Quantized engines keep anything that the rewrite does not know in
    its explicit form, which is slower and not wrong.
    """
    rewritten = onnx.ModelProto()
    rewritten.CopyFrom(model)
    del rewritten.graph.value_info[:]
    if any(node.op_type == "QuantizeLinear" for node in rewritten.graph.node):
        _to_integers(rewritten)
    _free_height_and_width(rewritten)
    return rewritten


def rest_values(metadata: Mapping[str, str]) -> dict[str, int]:
    """By state input of a rewritten streaming engine: the integer that stands for 0.0; states not named rest at 0.

    metadata: the engine's own, by key.
    """
    return {key[len(REST_VALUE_KEY) :]: int(value) for key, value in metadata.items() if key.startswith(REST_VALUE_KEY)}


def _to_integers(model: onnx.ModelProto) -> None:
    """Rewrites the quantized part of the graph in place; leaves it as it is where integers meet an unknown operator."""
    graph = _Graph.of(model)
    _quantize_before_moving(graph)
    _move_integers(graph)
    zero_points = _zero_points(graph, model)
    if zero_points is None:
        return
    nodes = _integer_nodes(graph, zero_points)
    for value in [*model.graph.input, *model.graph.output]:
        if value.name in zero_points:
            value.type.tensor_type.elem_type = TensorProto.UINT8
    for value in model.graph.input:
        if value.name in zero_points:
            model.metadata_props.add(key=REST_VALUE_KEY + value.name, value=str(zero_points[value.name]))
    live = _live(nodes, graph.outputs)
    used = {name for node in live for name in node.input}
    initializers = [i for i in model.graph.initializer if i.name in used and i.name not in graph.made]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(live)
    model.graph.initializer.extend([*initializers, *(made for name, made in graph.made.items() if name in used)])
    if not any(opset.domain == "com.microsoft" for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def _moves_values(node: NodeProto) -> bool:
    return (node.op_type in _MOVES_VALUES and len(node.output) == 1) or is_nearest_resize(node)


def _data_inputs(node: NodeProto) -> list[str]:
    return list(node.input) if node.op_type == "Concat" else list(node.input[:1])


def _quantize_before_moving(graph: _Graph) -> None:
    """X -> Concat -> Q becomes X -> Q -> DQ -> Concat -> Q: the same values, and X's convolution gets the Q that it needs."""
    changed = True
    while changed:
        changed = False
        for position, node in enumerate(graph.nodes):
            quantize = graph.only_consumer(node.output[0])
            if quantize is None or quantize.op_type != "QuantizeLinear" or not _moves_values(node):
                continue
            bare = [name for name in _data_inputs(node) if graph.activation_dq(name) is None]
            if not bare or any(graph.only_consumer(name) is not node or graph.producer(name) is None for name in bare):
                continue
            inserted = []
            for name in bare:
                integers, floats = f"{name}/mended_int8", f"{name}/mended"
                inserted.append(_node("QuantizeLinear", [name, *quantize.input[1:]], integers))
                inserted.append(_node("DequantizeLinear", [integers, *quantize.input[1:]], floats))
                node.input[list(node.input).index(name)] = floats
            graph.nodes[position:position] = inserted
            graph.index()
            changed = True
            break


def _move_integers(graph: _Graph) -> None:
    """DQ -> MaxPool -> Q at one scale becomes MaxPool on the integers; so do nearest Resize, Concat and the like."""
    for node in list(graph.nodes):
        quantize = graph.only_consumer(node.output[0])
        if quantize is None or quantize.op_type != "QuantizeLinear" or not _moves_values(node):
            continue
        dequantized = [graph.activation_dq(name) for name in _data_inputs(node)]
        if any(dq is None or not np.array_equal(graph.scale(dq), graph.scale(quantize)) for dq in dequantized):
            continue
        for index, dq in enumerate(dequantized):
            node.input[index] = dq.input[0] if dq is not None else ""
        node.output[0] = quantize.output[0]
        graph.nodes = [other for other in graph.nodes if other is not quantize]
        graph.index()


def _zero_points(graph: _Graph, model: onnx.ModelProto) -> dict[str, int] | None:
    """Zero point of every int8 activation once it is uint8, one for all tensors that operators on integers join.

    None: an operator on integers that the rewrite does not know.
    """
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for value in [*model.graph.input, *model.graph.output]:
        if value.type.tensor_type.elem_type == TensorProto.INT8:
            root(value.name)
    quantizers = [node for node in graph.nodes if node.op_type == "QuantizeLinear"]
    for node in graph.nodes:
        if node.op_type == "QuantizeLinear":
            root(node.output[0])
        elif node.op_type == "DequantizeLinear" and not graph.is_constant(node.input[0]):
            root(node.input[0])
        elif integers := [name for name in node.input if name in parent]:
            if not _moves_values(node) or integers != _data_inputs(node):
                return None
            for name in [*integers[1:], *node.output]:
                parent[root(name)] = root(integers[0])
    # A state holds earlier rows of what it is joined with; integers that nothing in the graph quantizes may be anything.
    signed = {root(name) for name in parent} - {root(node.output[0]) for node in quantizers}
    found = -1
    while found != len(signed):  # an Add is not negative while its operands are not, so what is found signed spreads
        found = len(signed)
        for node in quantizers:
            if not graph.values.non_negative(node.input[0], lambda name: root(name) not in signed):
                signed.add(root(node.output[0]))
    return {name: _SIGNED_ZERO if root(name) in signed else 0 for name in parent}


def _integer_nodes(graph: _Graph, zero_points: Mapping[str, int]) -> list[NodeProto]:
    """The nodes with QLinearConv and QLinearAdd where Q/DQ stood around them; dead ones may be among them."""
    nodes: list[NodeProto] = []
    for node in graph.nodes:
        if node.op_type == "QuantizeLinear":
            nodes += _quantized(graph, node, zero_points)
        elif node.op_type == "DequantizeLinear" and node.input[0] in zero_points:
            zero_point = graph.zero_point(zero_points[node.input[0]])
            nodes.append(_node("DequantizeLinear", [*node.input[:2], zero_point], node.output[0], name=node.name))
        else:
            nodes.append(node)
    return nodes


def _quantized(graph: _Graph, quantize: NodeProto, zero_points: Mapping[str, int]) -> list[NodeProto]:
    """What makes a Q's integers: the image itself, an operator on integers, or a Q to uint8; saturating as int8 does."""
    output, zero_point = quantize.output[0], zero_points[quantize.output[0]]
    pixels = graph.values.pixel_values(quantize.input[0])
    if pixels is not None and zero_point == _SIGNED_ZERO:
        steps = np.clip(np.rint(pixels / graph.scale(quantize)), -128, 127)
        if np.array_equal(steps, np.arange(-128, 128)):
            return [_node("Identity", [_image_under(graph, quantize.input[0])], output)]
    operator, has_relu = graph.producer(quantize.input[0]), False
    if operator is not None and operator.op_type == "Relu" and graph.only_consumer(operator.input[0]) is operator:
        has_relu, operator = True, graph.producer(operator.input[0])
    fused = None
    if operator is not None and graph.only_consumer(quantize.input[0]) is quantize:
        if operator.op_type == "Conv":
            fused = _integer_convolution(graph, operator, quantize, zero_points)
        elif operator.op_type == "Add":
            fused = _integer_addition(graph, operator, quantize, zero_points)
    if fused is None:
        fused = _node("QuantizeLinear", [*quantize.input[:2], graph.zero_point(zero_point)], output, name=quantize.name)
        has_relu = False
    if zero_point == 0:
        limits = ["", graph.constant("rust_edge/int8_maximum", np.array(127, np.uint8))]
    elif has_relu:
        limits = [graph.zero_point(_SIGNED_ZERO)]
    else:
        return [fused]
    fused.output[0] = f"{output}/unlimited"
    return [fused, _node("Clip", [fused.output[0], *limits], output)]


def _integer_convolution(graph: _Graph, conv: NodeProto, quantize: NodeProto, zero_points: Mapping[str, int]) -> NodeProto | None:
    """QLinearConv for DQ -> Conv -> [Relu] -> Q; None where the convolution is not quantized or its bias does not fit."""
    data, weights = graph.activation_dq(conv.input[0]), graph.producer(conv.input[1])
    if data is None or weights is None or weights.op_type != "DequantizeLinear" or not graph.is_constant(weights.input[0]):
        return None
    weight_scale = graph.scale(weights)
    weight_zeros = graph.constant(f"{weights.input[0]}/zero_point", np.zeros(weight_scale.shape, np.int8))
    inputs = [*data.input[:2], graph.zero_point(zero_points[data.input[0]]), *weights.input[:2], weight_zeros]
    inputs += [quantize.input[1], graph.zero_point(zero_points[quantize.output[0]])]
    if len(conv.input) > 2 and conv.input[2]:
        if not graph.is_constant(conv.input[2]):
            return None
        unit = graph.scale(data).astype(np.float64) * weight_scale
        bias = np.rint(graph.values.constants[conv.input[2]].astype(np.float64) / unit)
        if np.abs(bias).max() > _LARGEST_BIAS:
            return None
        inputs.append(graph.constant(f"{conv.name or conv.output[0]}/bias_int32", bias.astype(np.int32)))
    node = _node("QLinearConv", inputs, quantize.output[0], name=conv.name)
    node.attribute.extend(conv.attribute)
    return node


def _integer_addition(graph: _Graph, add: NodeProto, quantize: NodeProto, zero_points: Mapping[str, int]) -> NodeProto | None:
    """QLinearAdd for DQ, DQ -> Add -> [Relu] -> Q; None where an operand is not quantized."""
    inputs: list[str] = []
    for name in add.input:
        data = graph.activation_dq(name)
        if data is None:
            return None
        inputs += [*data.input[:2], graph.zero_point(zero_points[data.input[0]])]
    inputs += [quantize.input[1], graph.zero_point(zero_points[quantize.output[0]])]
    return _node("QLinearAdd", inputs, quantize.output[0], name=add.name, domain="com.microsoft")


def _image_under(graph: _Graph, tensor: str) -> str:
    while tensor not in graph.values.images:
        tensor = next(name for name in graph.values.producers[tensor].input if not graph.is_constant(name))
    return tensor


def _node(kind: str, inputs: list[str], output: str, name: str = "", domain: str = "") -> NodeProto:
    return helper.make_node(kind, inputs, [output], name=name or output, domain=domain)


def _live(nodes: list[NodeProto], outputs: Iterable[str]) -> list[NodeProto]:
    """The nodes that the outputs depend on, in their order."""
    needed = set(outputs)
    kept: list[NodeProto] = []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    return kept[::-1]


def _free_height_and_width(model: onnx.ModelProto) -> None:
    """Names height and width of the image and of map-like outputs instead of fixing them, where no operator pins them."""
    if len(model.graph.input) != 1:
        return  # a streaming engine is free already, and its states' rows are fixed
    for node in model.graph.node:
        if node.op_type in ("Reshape", "Expand", "Tile") or (node.op_type == "Resize" and len(node.input) > 3 and node.input[3]):
            return
    for prefix, value in [("", model.graph.input[0]), *((f"{output.name}_", output) for output in model.graph.output)]:
        dimensions = value.type.tensor_type.shape.dim
        if len(dimensions) == 4:
            dimensions[2].dim_param, dimensions[3].dim_param = f"{prefix}height", f"{prefix}width"
