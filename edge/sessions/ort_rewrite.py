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
- Convolution, ReLU or Clip and the Q/DQ around them become QLinearConv, dense layers QGemm; the bias becomes int32 in units of
  the accumulator, exactly where the exporter rounded it to them, else to within half a unit.
- A transposed convolution, for which ONNX Runtime has no integer kernel, becomes one convolution per phase of its stride, all of
  them in one QLinearConv, whose channels are then spread over the pixels: the same sums.
- MaxPool, nearest Resize and Concat between equal scales work on the integers; Add becomes QLinearAdd.
- A quantized image whose int8 values are `pixel - 128` is the image itself with zero point 128: the normalisation goes away.
- Earlier rows of a stream are joined and cut channels last (`edge.sessions.ort_rows`).
- Height and width are freed where nothing in the graph pins them, so that one file serves tiles, slabs and chunks.

Source: ONNX operators QLinearConv-10, QuantizeLinear-13; ONNX Runtime contrib operators com.microsoft QLinearAdd, QGemm;
transposed convolution by sub-pixels: Shi et al., arXiv:1609.07009.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper

from edge.sessions.integer_graph import IntegerGraph, move_integers, negative_integers, new_node, quantize_before_moving
from edge.sessions.ort_rows import rows_channels_last

REST_VALUE_KEY: Final = "rust-edge.rest-value."
"""Metadata key prefix: the integer that stands for 0.0 in a state input of the rewritten streaming engine."""

_SIGNED_ZERO: Final = 128
_LARGEST_BIAS: Final = 2**30
"""Half the accumulator's range is left to the products."""
_CONTRIB: Final = "com.microsoft"
_CHANNELS_LAST: Final = (0, 2, 3, 1)
_CHANNELS_FIRST: Final = (0, 3, 1, 2)


def rewrite_for_cpu(model: onnx.ModelProto) -> onnx.ModelProto:
    """The engine as ONNX Runtime's CPU kernels want it; the model given is left as it is.

    Float engines only have their height and width freed. Quantized engines keep anything that the rewrite does not know in
    its explicit form, which is slower and not wrong.
    """
    rewritten = onnx.ModelProto()
    rewritten.CopyFrom(model)
    del rewritten.graph.value_info[:]
    free_height_and_width(rewritten)
    if any(node.op_type == "QuantizeLinear" for node in rewritten.graph.node):
        _to_integers(rewritten)
    return rewritten


def rest_values(metadata: Mapping[str, str]) -> dict[str, int]:
    """By state input of a rewritten streaming engine: the integer that stands for 0.0; states not named rest at 0.

    metadata: the engine's own, by key.
    """
    return {key[len(REST_VALUE_KEY) :]: int(value) for key, value in metadata.items() if key.startswith(REST_VALUE_KEY)}


def _to_integers(model: onnx.ModelProto) -> None:
    """Rewrites the quantized part of the graph in place; leaves it as it is where integers meet an unknown operator."""
    graph = IntegerGraph.of(model)
    quantize_before_moving(graph)
    move_integers(graph)
    negative = negative_integers(graph, model)
    if negative is None:
        return
    zero_points = {name: _SIGNED_ZERO if may_be else 0 for name, may_be in negative.items()}
    nodes = _integer_nodes(_Rewriting(graph, zero_points))
    for value in [*model.graph.input, *model.graph.output]:
        if value.name in zero_points:
            value.type.tensor_type.elem_type = TensorProto.UINT8
    for value in model.graph.input:
        if value.name in zero_points:
            model.metadata_props.add(key=REST_VALUE_KEY + value.name, value=str(zero_points[value.name]))
    graph.put_into(model, rows_channels_last(graph, model, nodes, zero_points))
    if not any(opset.domain == _CONTRIB for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid(_CONTRIB, 1))


@dataclass(frozen=True, slots=True)
class _Rewriting:
    """The graph, and the zero point of every int8 activation once it is uint8."""

    graph: IntegerGraph
    zero_points: Mapping[str, int]

    def zero_point(self, value: int) -> str:
        """Name of a zero point as a constant."""
        return self.graph.constant(f"rust_edge/zero_point_{value}", np.array(value, np.uint8))

    def operand(self, tensor: str) -> list[str] | None:
        """Integers, scale and zero point of a tensor that a DequantizeLinear makes; None where none does."""
        data = self.graph.activation_dq(tensor)
        return None if data is None else [*data.input[:2], self.zero_point(self.zero_points[data.input[0]])]

    def result(self, quantize: NodeProto) -> list[str]:
        """Scale and zero point of what a QuantizeLinear makes."""
        return [quantize.input[1], self.zero_point(self.zero_points[quantize.output[0]])]


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer between DQ and Q. data: integers, scale, zero point; bias: (channels,) int32, units of the accumulator, or None."""

    node: NodeProto
    data: list[str]
    weight: npt.NDArray[np.int8]
    weight_scale: npt.NDArray[np.float32]
    bias: npt.NDArray[np.int32] | None


def _integer_nodes(rewriting: _Rewriting) -> list[NodeProto]:
    """The nodes with integer kernels where Q/DQ stood around them; dead ones may be among them."""
    nodes: list[NodeProto] = []
    for node in rewriting.graph.nodes:
        if node.op_type == "QuantizeLinear":
            nodes += _quantized(rewriting, node)
        elif node.op_type == "DequantizeLinear" and node.input[0] in rewriting.zero_points:
            zero_point = rewriting.zero_point(rewriting.zero_points[node.input[0]])
            nodes.append(new_node("DequantizeLinear", [*node.input[:2], zero_point], node.output[0], name=node.name))
        elif node.op_type == "Resize" and node.output[0] in rewriting.zero_points:
            nodes += _repeated_pixels(rewriting.graph, node)
        else:
            nodes.append(node)
    return nodes


def _repeated_pixels(graph: IntegerGraph, resize: NodeProto) -> list[NodeProto]:
    """Nearest upsampling by whole numbers as copies of whole pixels, channels last; any other Resize as it is.

    Channels last is how ONNX Runtime lays out integer convolutions, and its Resize then copies value by value: 0.88 ns each, for
    0.09 ns; with the transposing, which cancels out between convolutions, an INT8 U-Net is 12 to 17 % faster.
    """
    factors = _whole_factors(graph, resize)
    if factors is None:
        return [resize]
    output, (rows, columns) = resize.output[0], factors
    pixels, size = f"{output}/pixels", graph.constant(f"{output}/factors", np.array([1, rows, columns, 1], np.int64))
    flat = graph.constant("rust_edge/flat_rows", np.array([0, 0, -1], np.int64))
    return [
        _transposed(resize.input[0], pixels, _CHANNELS_LAST),
        _concatenated([pixels] * columns, f"{output}/in_columns", 3),
        new_node("Reshape", [f"{output}/in_columns", flat], f"{output}/flat"),
        _concatenated([f"{output}/flat"] * rows, f"{output}/in_rows", 2),
        new_node("Shape", [pixels], f"{output}/size"),
        new_node("Mul", [f"{output}/size", size], f"{output}/larger_size"),
        new_node("Reshape", [f"{output}/in_rows", f"{output}/larger_size"], f"{output}/channels_last"),
        _transposed(f"{output}/channels_last", output, _CHANNELS_FIRST),
    ]


def _whole_factors(graph: IntegerGraph, resize: NodeProto) -> tuple[int, int] | None:
    """By how much a nearest Resize repeats rows and columns; None where it does anything else."""
    scales = graph.values.constants.get(resize.input[2]) if len(resize.input) == 3 else None
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in resize.attribute}
    transform = attributes.get("coordinate_transformation_mode", b"half_pixel")
    nearest = attributes.get("nearest_mode", b"round_prefer_floor")
    repeats = (transform, nearest) == (b"asymmetric", b"floor") or (
        transform in (b"half_pixel", b"pytorch_half_pixel") and nearest in (b"round_prefer_floor", b"round_prefer_ceil")
    )
    factors = [] if scales is None else [float(scale) for scale in scales.ravel()]
    if not repeats or factors[:2] != [1.0, 1.0] or not all(factor >= 1.0 and factor.is_integer() for factor in factors):
        return None
    return int(factors[2]), int(factors[3])


def _transposed(tensor: str, output: str, order: tuple[int, ...]) -> NodeProto:
    node = new_node("Transpose", [tensor], output)
    node.attribute.append(helper.make_attribute("perm", order))
    return node


def _concatenated(tensors: list[str], output: str, axis: int) -> NodeProto:
    node = new_node("Concat", tensors, output)
    node.attribute.append(helper.make_attribute("axis", axis))
    return node


def _quantized(rewriting: _Rewriting, quantize: NodeProto) -> list[NodeProto]:
    """What makes a Q's integers: the image itself, an operator on integers, or a Q to uint8; saturating as int8 does."""
    graph, output = rewriting.graph, quantize.output[0]
    zero_point = rewriting.zero_points[output]
    pixels = graph.values.pixel_values(quantize.input[0])
    if pixels is not None and zero_point == _SIGNED_ZERO:
        steps = np.clip(np.rint(pixels / graph.scale(quantize)), -128, 127)
        if np.array_equal(steps, np.arange(-128, 128)):
            return [new_node("Identity", [_image_under(graph, quantize.input[0])], output)]
    lowest, highest = 0, 255 if zero_point else 127
    fused: list[NodeProto] | None = None
    if graph.only_consumer(quantize.input[0]) is quantize:
        operator = graph.producer(quantize.input[0])
        limits = None if operator is None else _limits(graph, operator)
        if operator is not None and limits is not None and graph.only_consumer(operator.input[0]) is operator:
            fused = _integer_operator(rewriting, graph.producer(operator.input[0]), quantize)
        if fused is None:
            fused = _integer_operator(rewriting, operator, quantize)
        elif limits is not None:
            scale = float(graph.scale(quantize))
            # rounding keeps the order: to limit what was rounded is to round what was limited
            lowest = max(lowest, round(max(limits[0] / scale, -_SIGNED_ZERO)) + zero_point)
            highest = min(highest, round(min(limits[1] / scale, 127)) + zero_point)
    if fused is None:
        named = rewriting.zero_point(zero_point)
        fused = [new_node("QuantizeLinear", [*quantize.input[:2], named], output, name=quantize.name)]
    bounds = [
        graph.constant(f"rust_edge/limit_{limit}", np.array(limit, np.uint8)) if limit != at_rest else ""
        for limit, at_rest in ((lowest, 0), (highest, 255))
    ]
    if not any(bounds):
        return fused
    fused[-1].output[0] = f"{output}/unlimited"
    return [*fused, new_node("Clip", [fused[-1].output[0], *bounds], output, name=f"{output}/limit")]


def _limits(graph: IntegerGraph, node: NodeProto) -> tuple[float, float] | None:
    """Between which values an activation keeps what it is given; None of other operators."""
    if node.op_type == "Relu":
        return 0.0, np.inf
    if node.op_type != "Clip" or not all(graph.is_constant(name) for name in node.input[1:] if name):
        return None
    low, high = (float(graph.values.constants[name]) if name else np.nan for name in [*node.input[1:], "", ""][:2])
    return (-np.inf if np.isnan(low) else low), (np.inf if np.isnan(high) else high)


def _integer_operator(rewriting: _Rewriting, operator: NodeProto | None, quantize: NodeProto) -> list[NodeProto] | None:
    """The integer kernel, or several, for what stands between DQ and Q; None where there is none."""
    if operator is None:
        return None
    if operator.op_type == "Add":
        return _integer_addition(rewriting, operator, quantize)
    layer = _layer(rewriting, operator)
    if layer is None:
        return None
    if operator.op_type == "Conv":
        return [_integer_convolution(rewriting, layer, quantize)]
    if operator.op_type == "Gemm":
        product = _integer_product(rewriting, layer, quantize)
        return None if product is None else [product]
    if operator.op_type == "ConvTranspose":
        return _integer_transposed_convolution(rewriting, layer, quantize)
    return None


def _layer(rewriting: _Rewriting, node: NodeProto) -> _Layer | None:
    """A layer with quantized input and weights and constant bias; None of other operators, and where the bias does not fit."""
    graph = rewriting.graph
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm"):
        return None
    data, weights = rewriting.operand(node.input[0]), graph.producer(node.input[1])
    if data is None or weights is None or weights.op_type != "DequantizeLinear" or not graph.is_constant(weights.input[0]):
        return None
    weight_scale, bias = graph.scale(weights), None
    if len(node.input) > 2 and node.input[2]:
        if not graph.is_constant(node.input[2]):
            return None
        unit = graph.values.constants[data[1]].astype(np.float64) * weight_scale
        units = np.rint(graph.values.constants[node.input[2]].astype(np.float64) / unit)
        if np.abs(units).max() > _LARGEST_BIAS:
            return None
        bias = units.astype(np.int32)
    return _Layer(node, data, graph.values.constants[weights.input[0]].astype(np.int8), weight_scale, bias)


def _layer_inputs(rewriting: _Rewriting, layer: _Layer) -> tuple[list[str], list[str]]:
    """Names of data and weights, each with scale and zero point, and of the bias, as all integer kernels want them."""
    graph, name = rewriting.graph, layer.node.name or layer.node.output[0]
    weights = [
        graph.constant(f"{name}/weight_int8", layer.weight),
        graph.constant(f"{name}/weight_scale", layer.weight_scale),
        graph.constant(f"{name}/weight_zero_point", np.zeros(layer.weight_scale.shape, np.int8)),
    ]
    return [*layer.data, *weights], [] if layer.bias is None else [graph.constant(f"{name}/bias_int32", layer.bias)]


def _integer_convolution(rewriting: _Rewriting, layer: _Layer, quantize: NodeProto) -> NodeProto:
    operands, bias = _layer_inputs(rewriting, layer)
    inputs = [*operands, *rewriting.result(quantize), *bias]
    node = new_node("QLinearConv", inputs, quantize.output[0], name=layer.node.name)
    node.attribute.extend(layer.node.attribute)
    return node


def _integer_product(rewriting: _Rewriting, layer: _Layer, quantize: NodeProto) -> NodeProto | None:
    """QGemm; None where operands are scaled or the first is transposed."""
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in layer.node.attribute}
    if attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0 or attributes.get("transA", 0):
        return None
    operands, bias = _layer_inputs(rewriting, layer)
    inputs = [*operands, *(bias or [""]), *rewriting.result(quantize)]
    node = new_node("QGemm", inputs, quantize.output[0], name=layer.node.name, domain=_CONTRIB)
    node.attribute.append(helper.make_attribute("transB", attributes.get("transB", 0)))
    return node


def _integer_transposed_convolution(rewriting: _Rewriting, layer: _Layer, quantize: NodeProto) -> list[NodeProto] | None:
    """QLinearConv to channels for each phase of the stride, which are then interleaved; None for what that does not express.

    Output row r * stride + phase sums up input row r - q times kernel row phase + q * stride, q from 0 on.
    """
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in layer.node.attribute}
    stride, *others = attributes.get("strides", [1, 1])
    dilated = any(step != 1 for step in attributes.get("dilations", []))
    sized = attributes.get("auto_pad", b"NOTSET") != b"NOTSET" or "output_shape" in attributes
    if others != [stride] or dilated or sized or attributes.get("group", 1) != 1:
        return None
    channels_in, channels, *kernel = layer.weight.shape
    reach = [-(-size // stride) for size in kernel]
    spread = np.zeros((channels_in, channels, reach[0] * stride, reach[1] * stride), np.int8)
    spread[:, :, : kernel[0], : kernel[1]] = layer.weight
    phases = spread.reshape(channels_in, channels, reach[0], stride, reach[1], stride)[:, :, ::-1, :, ::-1]
    weight = phases.transpose(3, 5, 1, 0, 2, 4).reshape(stride**2 * channels, channels_in, *reach)
    pads, padding = attributes.get("pads", [0] * 4), attributes.get("output_padding", [0, 0])
    cut = [*pads[:2], *(reach[axis] * stride - kernel[axis] - padding[axis] + pads[axis + 2] for axis in (0, 1))]
    if min(cut) < 0:
        return None
    # what is cut by whole input rows is not computed at all
    whole = [min(cut[side] // stride, reach[side % 2] - 1) for side in range(4)]
    cut = [cut[side] - whole[side] * stride for side in range(4)]
    by_phase = _Layer(
        layer.node,
        layer.data,
        np.ascontiguousarray(weight),
        np.tile(layer.weight_scale, stride**2),
        None if layer.bias is None else np.tile(layer.bias, stride**2),
    )
    graph, output = rewriting.graph, quantize.output[0]
    operands, bias = _layer_inputs(rewriting, by_phase)
    convolution = new_node(
        "QLinearConv", [*operands, *rewriting.result(quantize), *bias], f"{output}/phases", name=layer.node.name
    )
    convolution.attribute.append(helper.make_attribute("kernel_shape", reach))
    convolution.attribute.append(helper.make_attribute("pads", [reach[side % 2] - 1 - whole[side] for side in range(4)]))
    return [convolution, *_interleaved_phases(graph, convolution.output[0], output, stride, cut)]


def _interleaved_phases(graph: IntegerGraph, phases: str, output: str, stride: int, cut: list[int]) -> list[NodeProto]:
    """DepthToSpace of channels (row phase, column phase, channel), cropped at the top, left, bottom and right.

    Channels last, for `_repeated_pixels`' reason: 0.1 ns a value, for 1.2 ns of DepthToSpace.
    """
    split = graph.constant(f"rust_edge/split_{stride}", np.array([0, 0, 0, stride, -1], np.int64))
    factors = graph.constant(f"rust_edge/factors_{stride}", np.array([1, stride, stride, 1], np.int64))
    divisors = graph.constant(f"rust_edge/divisors_{stride}", np.array([1, 1, 1, stride**2], np.int64))
    nodes = [
        _transposed(phases, f"{output}/pixels", _CHANNELS_LAST),
        new_node("Reshape", [f"{output}/pixels", split], f"{output}/split"),
        _transposed(f"{output}/split", f"{output}/in_rows", (0, 1, 3, 2, 4)),
        new_node("Shape", [f"{output}/pixels"], f"{output}/size"),
        new_node("Mul", [f"{output}/size", factors], f"{output}/larger_size"),
        new_node("Div", [f"{output}/larger_size", divisors], f"{output}/spread_size"),
        new_node("Reshape", [f"{output}/in_rows", f"{output}/spread_size"], f"{output}/channels_last"),
    ]
    if any(cut):
        ends = [-size if size else np.iinfo(np.int64).max for size in cut[2:]]
        bounds = (("from", cut[:2]), ("to", ends), ("axes", [1, 2]))
        named = [graph.constant(f"{output}/{what}", np.array(values, np.int64)) for what, values in bounds]
        nodes.append(new_node("Slice", [nodes[-1].output[0], *named], f"{output}/cropped"))
    nodes.append(_transposed(nodes[-1].output[0], output, _CHANNELS_FIRST))
    return nodes


def _integer_addition(rewriting: _Rewriting, add: NodeProto, quantize: NodeProto) -> list[NodeProto] | None:
    """QLinearAdd for DQ, DQ -> Add -> [Relu] -> Q; None where an operand is not quantized."""
    operands = [rewriting.operand(name) for name in add.input]
    if operands[0] is None or operands[1] is None:
        return None
    inputs = [*operands[0], *operands[1], *rewriting.result(quantize)]
    return [new_node("QLinearAdd", inputs, quantize.output[0], name=add.name, domain=_CONTRIB)]


def _image_under(graph: IntegerGraph, tensor: str) -> str:
    while tensor not in graph.values.images:
        tensor = next(name for name in graph.values.producers[tensor].input if not graph.is_constant(name))
    return tensor


def free_height_and_width(model: onnx.ModelProto) -> None:
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
