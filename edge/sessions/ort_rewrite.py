"""What ONNX Runtime's CPU kernels need of an engine file, done when it is loaded: a pure function of the graph.

The bundle's INT8 file is written for TensorRT: explicit Q/DQ nodes, int8 everywhere, zero point 0, float biases. ONNX Runtime's
fast integer kernels want unsigned activations, quantized biases and a zero point at the type's minimum after a ReLU; run as it
stands the file is slower than the float one. The rewrite changes the representation and keeps the values:

- Non-negative tensors become uint8 with zero point 0, all others uint8 with zero point 128, at the same scale. A uint8 tensor with
  zero point 0 could hold values up to 255 steps where int8 ends at 127: a Clip at 127 keeps the file's saturation. Without it ONNX
  Runtime would answer closer to the float network than TensorRT does, the quality that the exporter measures here would not be
  the quality of the same file there, and clipping percentiles would look better than they are. It also keeps two neighbouring
  products of a uint8 and an int8 within 16 bits (2 * 127 * 127 < 2**15), so that processors without VNNI, whose instruction adds them
  with saturation (vpmaddubsw), compute the same.
- Convolution, ReLU and the Q/DQ around them become QLinearConv; the bias becomes int32 in units of the accumulator. That
  rounding, half a unit of the accumulator, is the one thing that is not exact: rarely, a value moves by one step.
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

REST_VALUE_KEY: Final = "rust-edge.rest-value."
"""Metadata key prefix: the integer that stands for 0.0 in a state input of the rewritten streaming engine."""

_SIGNED_ZERO: Final = 128
_LARGEST_BIAS: Final = 2**30
"""Half the accumulator's range is left to the products."""
_MOVES_VALUES: Final = frozenset({"Concat", "MaxPool", "Resize", "Slice", "Identity", "Split", "Transpose"})
"""Operators that hand values on unchanged (Resize: nearest only) and that ONNX Runtime has for uint8."""
_KEEPS_SIGN: Final = frozenset({"Concat", "MaxPool", "Resize", "Slice", "Identity", "Transpose", "DepthToSpace", "Add", "Mul"})


@dataclass(slots=True)
class _Graph:
    """A model being rewritten, with who makes and who uses each tensor."""

    nodes: list[NodeProto]
    constants: dict[str, npt.NDArray[np.generic]]
    outputs: frozenset[str]
    made: dict[str, TensorProto] = field(default_factory=dict)
    producers: dict[str, NodeProto] = field(init=False)
    consumers: dict[str, list[NodeProto]] = field(init=False)

    def __post_init__(self) -> None:
        self.index()

    def index(self) -> None:
        self.producers = {output: node for node in self.nodes for output in node.output}
        self.consumers = {}
        for node in self.nodes:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)

    def constant(self, name: str, values: npt.NDArray[np.generic]) -> str:
        """Name of a new initializer."""
        self.made[name] = numpy_helper.from_array(values, name)
        self.constants[name] = values
        return name

    def scale(self, node: NodeProto) -> npt.NDArray[np.float32]:
        return self.constants[node.input[1]].astype(np.float32)

    def only_consumer(self, tensor: str) -> NodeProto | None:
        users = self.consumers.get(tensor, [])
        return users[0] if len(users) == 1 and tensor not in self.outputs else None


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


def rest_values(model: onnx.ModelProto) -> dict[str, int]:
    """By state input of a rewritten streaming engine: the integer that stands for 0.0; states not named rest at 0."""
    return {
        entry.key[len(REST_VALUE_KEY) :]: int(entry.value) for entry in model.metadata_props if entry.key.startswith(REST_VALUE_KEY)
    }


def pixel_values(model: onnx.ModelProto, tensor: str) -> npt.NDArray[np.float32] | None:
    """Value of a float tensor for each of the 256 grey values, (256,); None where it is not the image, normalised.

    Follows Cast, Sub, Add, Mul and Div by one constant each back to a uint8 input of the graph.
    """
    graph = _graph_of(model)
    images = {i.name for i in model.graph.input if i.type.tensor_type.elem_type == TensorProto.UINT8}
    return _pixel_values(graph, images, tensor)


def _graph_of(model: onnx.ModelProto) -> _Graph:
    constants = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return _Graph(list(model.graph.node), constants, frozenset(o.name for o in model.graph.output))


def _pixel_values(graph: _Graph, images: Iterable[str], tensor: str) -> npt.NDArray[np.float32] | None:
    if tensor in images:
        return np.arange(256, dtype=np.float32)
    node = graph.producers.get(tensor)
    if node is None:
        return None
    if node.op_type == "Cast" and helper.get_attribute_value(node.attribute[0]) == TensorProto.FLOAT:
        return _pixel_values(graph, images, node.input[0])
    arithmetic = {"Sub": np.subtract, "Add": np.add, "Mul": np.multiply, "Div": np.divide}.get(node.op_type)
    if arithmetic is None:
        return None
    operands = [
        graph.constants[name].astype(np.float32).ravel() if name in graph.constants else _pixel_values(graph, images, name)
        for name in node.input
    ]
    left, right = operands
    if left is None or right is None or {left.size, right.size} != {1, 256}:
        return None
    return arithmetic(left, right).astype(np.float32)


def _to_integers(model: onnx.ModelProto) -> None:
    """Rewrites the quantized part of the graph in place."""
    graph = _graph_of(model)
    images = {i.name for i in model.graph.input if i.type.tensor_type.elem_type == TensorProto.UINT8}
    _quantize_before_moving(graph)
    _move_integers(graph)
    zero_points = _zero_points(graph, model, images)
    if zero_points is None:
        return
    nodes = _integer_nodes(graph, zero_points, images)
    for value in [*model.graph.input, *model.graph.output]:
        if value.name in zero_points:
            value.type.tensor_type.elem_type = TensorProto.UINT8
            if value in model.graph.input:
                model.metadata_props.add(key=REST_VALUE_KEY + value.name, value=str(zero_points[value.name]))
    live = _live(nodes, graph.outputs)
    used = {name for node in live for name in node.input}
    initializers = [i for i in model.graph.initializer if i.name in used and i.name not in graph.made]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(live)
    model.graph.initializer.extend([*initializers, *(made for name, made in graph.made.items() if name in used)])
    if not any(opset.domain == "com.microsoft" for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def _is_activation_dq(graph: _Graph, name: str) -> bool:
    node = graph.producers.get(name)
    return node is not None and node.op_type == "DequantizeLinear" and node.input[0] not in graph.constants


def _moves_values(graph: _Graph, node: NodeProto) -> bool:
    if node.op_type == "Resize":
        mode = next((helper.get_attribute_value(a) for a in node.attribute if a.name == "mode"), b"nearest")
        return bool(mode == b"nearest")
    return node.op_type in _MOVES_VALUES and len(node.output) == 1


def _data_inputs(node: NodeProto) -> list[str]:
    return list(node.input) if node.op_type == "Concat" else [node.input[0]]


def _quantize_before_moving(graph: _Graph) -> None:
    """X -> Concat -> Q becomes X -> Q -> DQ -> Concat -> Q: the same values, and X's convolution gets the Q that it needs."""
    changed = True
    while changed:
        changed = False
        for position, node in enumerate(graph.nodes):
            quantize = graph.only_consumer(node.output[0])
            if quantize is None or quantize.op_type != "QuantizeLinear" or not _moves_values(graph, node):
                continue
            bare = [name for name in _data_inputs(node) if not _is_activation_dq(graph, name)]
            if not bare or any(graph.only_consumer(name) is not node or name not in graph.producers for name in bare):
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
    for node in graph.nodes:
        quantize = graph.only_consumer(node.output[0]) if node.output else None
        if quantize is None or quantize.op_type != "QuantizeLinear" or not _moves_values(graph, node):
            continue
        inputs = _data_inputs(node)
        if not all(_is_activation_dq(graph, name) for name in inputs):
            continue
        if any(not np.array_equal(graph.scale(graph.producers[name]), graph.scale(quantize)) for name in inputs):
            continue
        for index, name in enumerate(inputs):
            node.input[index] = graph.producers[name].input[0]
        node.output[0] = quantize.output[0]
        graph.nodes = [other for other in graph.nodes if other is not quantize]
        graph.index()


def _zero_points(graph: _Graph, model: onnx.ModelProto, images: set[str]) -> dict[str, int] | None:
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
    signed: set[str] = set()
    for node in graph.nodes:
        if node.op_type == "QuantizeLinear":
            root(node.output[0])
            if not _non_negative(graph, images, node.input[0]):
                signed.add(node.output[0])
        elif node.op_type == "DequantizeLinear" and node.input[0] not in graph.constants:
            root(node.input[0])
    sources = {node.output[0] for node in graph.nodes if node.op_type == "QuantizeLinear"}
    for node in graph.nodes:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        integers = [name for name in _data_inputs(node) if name in parent] if node.input else []
        if not integers:
            continue
        if not (node.op_type in _MOVES_VALUES and _moves_values(graph, node)) or any(i in graph.constants for i in integers):
            return None
        for name in [*integers[1:], *node.output]:
            parent[root(name)] = root(integers[0])
    signed_roots = {root(name) for name in signed}
    fed_roots = {root(name) for name in sources}
    return {name: _SIGNED_ZERO if root(name) in signed_roots or root(name) not in fed_roots else 0 for name in list(parent)}


def _non_negative(graph: _Graph, images: Iterable[str], tensor: str) -> bool:
    """Whether a float tensor can be told to have no value below 0 from the operators before it."""
    node = graph.producers.get(tensor)
    if node is None:
        return False
    if node.op_type in ("Relu", "Sigmoid", "Softmax"):
        return True
    if node.op_type == "DequantizeLinear":
        quantize = _source(graph, node.input[0])
        return quantize is not None and _non_negative(graph, images, quantize.input[0])
    if node.op_type == "Clip" and len(node.input) > 1 and node.input[1] in graph.constants:
        return bool(graph.constants[node.input[1]] >= 0)
    if node.op_type in _KEEPS_SIGN:
        inputs = node.input if node.op_type in ("Concat", "Add", "Mul") else node.input[:1]
        return all(_non_negative(graph, images, name) for name in inputs)
    values = _pixel_values(graph, images, tensor)
    return values is not None and bool(values.min() >= 0.0)


def _source(graph: _Graph, integers: str) -> NodeProto | None:
    """The one QuantizeLinear that an integer tensor comes from; None for several, or for a graph input."""
    node = graph.producers.get(integers)
    while node is not None and node.op_type != "QuantizeLinear":
        node = graph.producers.get(node.input[0]) if len(_data_inputs(node)) == 1 else None
    return node


def _integer_nodes(graph: _Graph, zero_points: Mapping[str, int], images: set[str]) -> list[NodeProto]:
    """The nodes with QLinearConv and QLinearAdd where Q/DQ stood around them; dead ones may be among them."""
    nodes: list[NodeProto] = []
    for node in graph.nodes:
        if node.op_type == "QuantizeLinear":
            nodes += _quantized(graph, node, zero_points, images)
        elif node.op_type == "DequantizeLinear" and node.input[0] in zero_points:
            zero_point = _zero_point_constant(graph, zero_points[node.input[0]])
            nodes.append(_node("DequantizeLinear", [node.input[0], node.input[1], zero_point], node.output[0], name=node.name))
        else:
            nodes.append(node)
    return nodes


def _quantized(graph: _Graph, quantize: NodeProto, zero_points: Mapping[str, int], images: set[str]) -> list[NodeProto]:
    """What makes a Q's integers: the image itself, an operator on integers, or a Q to uint8; saturating as int8 does."""
    output = quantize.output[0]
    pixels = _pixel_values(graph, images, quantize.input[0])
    if pixels is not None and zero_points[output] == _SIGNED_ZERO:
        steps = np.clip(np.rint(pixels / graph.scale(quantize)), -128, 127)
        if np.array_equal(steps, np.arange(-128, 128)):
            return [_node("Identity", [_image_of(graph, images, quantize.input[0])], output)]
    operator, has_relu = graph.producers.get(quantize.input[0]), False
    if operator is not None and operator.op_type == "Relu" and graph.only_consumer(operator.input[0]) is operator:
        has_relu, operator = True, graph.producers.get(operator.input[0])
    fused = None
    if operator is not None and graph.only_consumer(quantize.input[0]) is quantize:
        if operator.op_type == "Conv":
            fused = _integer_convolution(graph, operator, quantize, zero_points)
        elif operator.op_type == "Add":
            fused = _integer_addition(graph, operator, quantize, zero_points)
    zero_point = zero_points[output]
    if fused is None:
        fused = _node("QuantizeLinear", [*quantize.input[:2], _zero_point_constant(graph, zero_point)], output, name=quantize.name)
        has_relu = False
    if zero_point == 0:
        limits = ["", graph.constant("rust_edge/int8_maximum", np.array(127, np.uint8))]
    elif has_relu:
        limits = [graph.constant("rust_edge/signed_zero", np.array(_SIGNED_ZERO, np.uint8))]
    else:
        return [fused]
    unlimited = f"{output}/unlimited"
    fused.output[0] = unlimited
    return [fused, _node("Clip", [unlimited, *limits], output)]


def _integer_convolution(
    graph: _Graph, conv: NodeProto, quantize: NodeProto, zero_points: Mapping[str, int]
) -> NodeProto | None:
    """QLinearConv for DQ -> Conv -> [Relu] -> Q; None where the convolution is not quantized or its bias does not fit."""
    if not _is_activation_dq(graph, conv.input[0]):
        return None
    weights = graph.producers.get(conv.input[1])
    if weights is None or weights.op_type != "DequantizeLinear" or weights.input[0] not in graph.constants:
        return None
    data = graph.producers[conv.input[0]]
    scale, weight_scale = graph.scale(data), graph.scale(weights)
    inputs = [data.input[0], data.input[1], _zero_point_constant(graph, zero_points[data.input[0]]), *weights.input[:2]]
    weight_zeros = np.zeros(weight_scale.shape, np.int8)
    inputs.append(graph.constant(f"{weights.input[0]}/zero_point", weight_zeros))
    inputs += [quantize.input[1], _zero_point_constant(graph, zero_points[quantize.output[0]])]
    if len(conv.input) > 2 and conv.input[2]:
        if conv.input[2] not in graph.constants:
            return None
        bias = np.rint(graph.constants[conv.input[2]].astype(np.float64) / (scale.astype(np.float64) * weight_scale))
        if np.abs(bias).max() > _LARGEST_BIAS:
            return None
        inputs.append(graph.constant(f"{conv.name or conv.output[0]}/bias_int32", bias.astype(np.int32)))
    node = _node("QLinearConv", inputs, quantize.output[0], name=conv.name)
    node.attribute.extend(conv.attribute)
    return node


def _integer_addition(graph: _Graph, add: NodeProto, quantize: NodeProto, zero_points: Mapping[str, int]) -> NodeProto | None:
    """QLinearAdd for DQ, DQ -> Add -> [Relu] -> Q; None where an operand is not quantized."""
    if not all(_is_activation_dq(graph, name) for name in add.input):
        return None
    inputs: list[str] = []
    for name in add.input:
        data = graph.producers[name]
        inputs += [data.input[0], data.input[1], _zero_point_constant(graph, zero_points[data.input[0]])]
    inputs += [quantize.input[1], _zero_point_constant(graph, zero_points[quantize.output[0]])]
    return _node("QLinearAdd", inputs, quantize.output[0], name=add.name, domain="com.microsoft")


def _image_of(graph: _Graph, images: set[str], tensor: str) -> str:
    while tensor not in images:
        tensor = next(name for name in graph.producers[tensor].input if name not in graph.constants)
    return tensor


def _zero_point_constant(graph: _Graph, zero_point: int) -> str:
    return graph.constant(f"rust_edge/zero_point_{zero_point}", np.array(zero_point, np.uint8))


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
