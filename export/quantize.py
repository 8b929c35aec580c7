"""INT8 as explicit Q/DQ nodes: the one file that TensorRT 8.6 to 11, ONNX Runtime and OpenVINO all read.

Symmetric int8 with zero point 0, one scale per activation, one per output channel of a weight; biases stay float, rounded to
what an int32 bias could hold. Tensors that operators hand on unchanged (MaxPool, nearest Resize, Concat, DepthToSpace) share one
scale, so that such an operator between DQ and Q is an operator on integers. Every quantized convolution has exactly one Q at its
output, after the ReLU where there is one: ONNX Runtime's integer convolution needs it. Each consumer gets a DQ of its own.
Convolutions with no other convolution behind them (the head), and what follows them, stay float.

Source: TensorRT developer guide, "Working with Quantized Types", Q/DQ placement; onnx-tensorrt 8.6, QuantDequantLinearHelper.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from calibration.activations import ActivationRange
from edge.sessions.graph_values import GraphValues, is_nearest_resize
from export.errors import ExportError

_INT8_MAX = 127
_WEIGHT_MAX_SIGNED_INPUT = 64
"""Behind an input with negative values, which ONNX Runtime's CPU kernels see as uint8 up to 255, weights stay this small: on
processors without VNNI two neighbouring products are added within 16 bits, saturating (vpmaddubsw), and 2 * 255 * 64 < 2**15.
Non-negative inputs use half of uint8, so 2 * 127 * 127 fits. In an ordinary network this touches the first convolution alone."""
_LARGEST_BIAS = 2**30
"""In units of the int32 accumulator, of which the products get the other half: no channel's weight scale may be so small that
its bias does not fit (a channel that batch normalisation has all but switched off)."""
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
"""Below a normal float32 is nothing but zeros, which are exact at any scale."""
_OPSETS = (13, 17)
"""Per-channel scales came with opset 13; TensorRT 8.6 reads up to 17."""
_INTEGER_OPERATORS = frozenset({"ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"})
_MOVES_INTEGERS = frozenset({"Concat", "Slice", "Identity"})
"""What TensorRT has for int8 tensors outside Q/DQ; a streaming engine's state passes through them."""
_MOVES_VALUES = frozenset({"MaxPool", "Concat", "DepthToSpace", "Identity"})


def tensors_to_observe(model: onnx.ModelProto, float_layers: Collection[str] = ()) -> tuple[str, ...]:
    """Names of the float tensors whose ranges `quantize` wants; with no float layers: enough for any choice of them."""
    plan = _Plan(model, frozenset(float_layers))
    return tuple(sorted(source for source in plan.sources if plan.values.pixel_values(source) is None))


def quantizable_layers(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the convolutions and additions that `quantize` quantizes, in graph order: what may be named as a float layer."""
    plan = _Plan(model, frozenset())
    return tuple(node.name for node in model.graph.node if node.name in plan.quantized)


def quantize(
    model: onnx.ModelProto, ranges: Mapping[str, ActivationRange], float_layers: Collection[str] = ()
) -> onnx.ModelProto:
    """The float engine with Q/DQ nodes; the model given is left as it is.

    model: opset 13 to 17, batch normalisation folded, every node named.
    ranges: by tensor name, of the activations that `tensors_to_observe` names.
    float_layers: names of convolutions and additions that stay float.
    Raises ExportError for a missing range, an unknown float layer, a graph with nothing to quantize.
    """
    plan = _Plan(model, frozenset(float_layers))
    scales = plan.scales(ranges)
    signed = plan.signed_groups()
    made: dict[str, TensorProto] = {}
    nodes: list[NodeProto] = []

    def constant(name: str, values: npt.NDArray[np.generic]) -> str:
        made[name] = numpy_helper.from_array(values, name)
        return name

    def scale_and_zero(tensor: str) -> list[str]:
        group = plan.root(tensor)
        scale = constant(f"{group}/scale", np.array(scales[tensor], np.float32))
        return [scale, constant("int8_zero", np.array(0, np.int8))]

    def quantized(tensor: str) -> list[NodeProto]:
        if tensor not in plan.integers:
            return []
        return [_node("QuantizeLinear", [tensor, *scale_and_zero(tensor)], f"{tensor}/int8", f"{tensor}/quantize")]

    for node in model.graph.node:
        copied = NodeProto()
        copied.CopyFrom(node)
        for index, name in enumerate(node.input):
            if name in plan.integers:
                copied.input[index] = f"{name}/for/{node.name}"
                inputs = [f"{name}/int8", *scale_and_zero(name)]
                nodes.append(_node("DequantizeLinear", inputs, copied.input[index], f"{copied.input[index]}/dequantize"))
        if node.op_type == "Conv" and node.name in plan.quantized:
            weight = plan.values.constants[node.input[1]].astype(np.float32)
            bias = plan.values.constants[node.input[2]].astype(np.float32) if len(node.input) > 2 else None
            largest = _WEIGHT_MAX_SIGNED_INPUT if plan.root(node.input[0]) in signed else _INT8_MAX
            integers, weight_scale = quantize_weight(weight, largest, scales[node.input[0]], bias)
            inputs = [
                constant(f"{node.name}/weight/int8", integers),
                constant(f"{node.name}/weight/scale", weight_scale),
                constant(f"{node.name}/weight/zero", np.zeros(weight_scale.shape, np.int8)),
            ]
            copied.input[1] = f"{node.name}/weight"
            nodes.append(_node("DequantizeLinear", inputs, copied.input[1], f"{node.name}/weight/dequantize", axis=0))
            if bias is not None:
                copied.input[2] = constant(f"{node.name}/bias", round_bias(bias, scales[node.input[0]], weight_scale))
        nodes.append(copied)
        nodes += [q for output in node.output for q in quantized(output)]

    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:], result.graph.initializer[:], result.graph.value_info[:]
    used = {name for node in nodes for name in node.input}
    result.graph.node.extend(nodes)
    result.graph.initializer.extend([*(i for i in model.graph.initializer if i.name in used), *made.values()])
    onnx.checker.check_model(result, full_check=True)
    verify_qdq(result)
    return result


def quantize_weight(
    weight: npt.NDArray[np.float32], largest: int, input_scale: float, bias: npt.NDArray[np.float32] | None = None
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Symmetric int8 weights per output channel: (integers of the weight's shape within +-largest, scales (channels,)).

    A scale is |w|max / largest, but never so small that the channel's bias in accumulator units, bias / (input_scale * scale),
    leaves its half of the int32.
    """
    channels = weight.reshape(weight.shape[0], -1).astype(np.float64)
    scale = np.abs(channels).max(axis=1) / largest
    if bias is not None:
        scale = np.maximum(scale, np.abs(bias.astype(np.float64)) / (input_scale * _LARGEST_BIAS))
    scale = np.where(scale >= _SMALLEST_SCALE, scale, 1.0).astype(np.float32)
    integers = np.clip(np.rint(channels / scale[:, None].astype(np.float64)), -largest, largest)
    return integers.astype(np.int8).reshape(weight.shape), scale


def round_bias(
    bias: npt.NDArray[np.float32], input_scale: float, weight_scale: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """The float bias (channels,) rounded to the integer accumulator's unit, input_scale * weight_scale.

    A backend with int32 biases then computes with the same numbers as one with float biases.
    """
    unit = np.float64(input_scale) * weight_scale.astype(np.float64)
    return np.asarray(np.rint(bias.astype(np.float64) / unit) * unit, np.float32)


class _Plan:
    """Which tensors of a float graph become int8, which of them share a scale, and where the Qs take them from.

    quantized: names of the convolutions and additions between DQ and Q.
    integers: tensors that get a Q.
    sources: tensors of `integers` whose own range matters; the others only hand values on.
    """

    def __init__(self, model: onnx.ModelProto, float_layers: frozenset[str]) -> None:
        nodes = list(model.graph.node)
        _check_names(nodes, float_layers)
        self.values = GraphValues.of(model)
        self._consumers: dict[str, list[NodeProto]] = {}
        for node in nodes:
            for name in node.input:
                self._consumers.setdefault(name, []).append(node)
        self._outputs = {output.name for output in model.graph.output}
        self._float_layers = float_layers
        self._parent: dict[str, str] = {}
        self.quantized: set[str] = set()
        self.integers: set[str] = set()
        self.sources: set[str] = set()
        for node in self._convolutions_before_others(nodes):
            if node.name not in float_layers:
                self.quantized.add(node.name)
                self._need(node.input[0])
                self._need(self._end(node))
        if not self.quantized:
            raise ExportError("got an engine without any convolution to quantize, expected at least one before the head")
        self._join(nodes)

    def root(self, tensor: str) -> str:
        """Name of the tensor that stands for all those sharing its scale."""
        while self._parent.setdefault(tensor, tensor) != tensor:
            tensor = self._parent[tensor]
        return tensor

    def scales(self, ranges: Mapping[str, ActivationRange]) -> dict[str, float]:
        """Scale of every int8 tensor: the largest limit among those that share it, / 127; an image's own step."""
        images = {name: values for name in self.sources if (values := self.values.pixel_values(name)) is not None}
        missing = sorted(name for name in self.sources if name not in ranges and name not in images)
        if missing:
            raise ExportError(f"got no activation range for {', '.join(missing)}; calibrate with the same engine")
        members: dict[str, list[str]] = {}
        for source in sorted(self.sources):
            members.setdefault(self.root(source), []).append(source)
        scale: dict[str, float] = {}
        for group, sources in members.items():
            if len(sources) == 1 and sources[0] in images:
                scale[group] = _image_step(images[sources[0]])
                continue
            limit = max(float(np.abs(images[s]).max()) if s in images else ranges[s].limit for s in sources)
            scale[group] = limit / _INT8_MAX if limit / _INT8_MAX >= _SMALLEST_SCALE else 1.0
        return {tensor: float(np.float32(scale[self.root(tensor)])) for tensor in self.integers}

    def signed_groups(self) -> set[str]:
        """Roots of the groups of which the graph does not tell that they have no values below 0."""
        return {self.root(source) for source in self.sources if not self.values.non_negative(source)}

    def _convolutions_before_others(self, nodes: Iterable[NodeProto]) -> list[NodeProto]:
        """Convolutions with constant weights that have another convolution behind them."""
        feeds_convolution: set[str] = set()
        found = []
        for node in reversed(list(nodes)):
            feeds = bool(feeds_convolution.intersection(node.output))
            if node.op_type == "Conv" and feeds and all(name in self.values.constants for name in node.input[1:]):
                found.append(node)
            if feeds or node.op_type in ("Conv", "ConvTranspose"):
                feeds_convolution.update(node.input)
        return found[::-1]

    def _end(self, node: NodeProto) -> str:
        """The tensor that a convolution's Q takes: its output, or that of the ReLU that alone follows."""
        output = str(node.output[0])
        users = self._consumers.get(output, [])
        if len(users) == 1 and users[0].op_type == "Relu" and output not in self._outputs:
            return str(users[0].output[0])
        return output

    def _need(self, tensor: str) -> None:
        """Marks a tensor as int8, and those that it is handed on or added from."""
        if tensor in self.integers:
            return
        self.integers.add(tensor)
        node = self.values.producers.get(tensor)
        if node is not None and self._moves_values(node):
            for name in _data_inputs(node):
                self._need(name)
            return
        self.sources.add(tensor)
        if node is not None and node.op_type == "Relu":
            node = self.values.producers.get(node.input[0])
        if node is None or node.op_type != "Add" or node.name in self._float_layers or self._end(node) != tensor:
            return
        if not any(name in self.values.constants for name in node.input):
            self.quantized.add(node.name)
            for name in node.input:
                self._need(name)

    def _join(self, nodes: Iterable[NodeProto]) -> None:
        """Takes in what an operator only hands on from int8 tensors, and gives both ends one scale."""
        for node in nodes:
            if not self._moves_values(node) or not all(name in self.integers for name in _data_inputs(node)):
                continue
            if node.output[0] not in self._outputs:
                self.integers.add(node.output[0])
            for name in _data_inputs(node):
                self._parent[self.root(node.output[0])] = self.root(name)

    def _moves_values(self, node: NodeProto) -> bool:
        if node.op_type not in _MOVES_VALUES and not is_nearest_resize(node):
            return False
        return len(node.output) == 1 and not any(name in self.values.constants for name in _data_inputs(node))


def _data_inputs(node: NodeProto) -> list[str]:
    return list(node.input) if node.op_type == "Concat" else list(node.input[:1])


def verify_qdq(model: onnx.ModelProto) -> None:
    """Raises ExportError naming every place where a Q/DQ file breaks what TensorRT 8.6 to 11 want of it.

    TensorRT's parser takes some of it for a warning, uint8 for int8 among them, and computes something else: so this decides.
    """
    faults = list(_faults(model))
    if faults:
        raise ExportError(f"engine is no explicit Q/DQ file for TensorRT: {'; '.join(faults)}; export it again with quantize()")


def _faults(model: onnx.ModelProto) -> Iterator[str]:
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if not _OPSETS[0] <= opset <= _OPSETS[1]:
        yield f"opset {opset}, expected {_OPSETS[0]} to {_OPSETS[1]}"
    values = GraphValues.of(model)
    integers = {i.name for i in model.graph.input if i.type.tensor_type.elem_type == TensorProto.INT8}
    if not any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        yield "no QuantizeLinear, expected quantized activations"
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx") or node.op_type in _INTEGER_OPERATORS or node.op_type.startswith("QLinear"):
            yield f"{node.name} is {node.op_type}, expected float operators between DequantizeLinear and QuantizeLinear"
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            yield from _quantizer_faults(node, values, integers)
        elif integers.intersection(node.input):
            if node.op_type not in _MOVES_INTEGERS:
                yield f"{node.name} is {node.op_type} on int8, expected one of {', '.join(sorted(_MOVES_INTEGERS))}"
            integers.update(node.output)
        elif node.op_type == "Conv":
            yield from _convolution_faults(node, values)


def _quantizer_faults(node: NodeProto, values: GraphValues, integers: set[str]) -> Iterator[str]:
    """Of a Q or DQ: its integers int8 around an explicit zero, its scales constant, positive, and on axis 0 where several."""
    weight = values.constants.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
    scale = values.constants.get(node.input[1])
    zero = values.constants.get(node.input[2]) if len(node.input) > 2 else None
    if node.op_type == "QuantizeLinear":
        integers.add(node.output[0])
    elif weight is None and node.input[0] not in integers:
        yield f"{node.name} takes a tensor that is not int8"
    if weight is not None and weight.dtype != np.int8:
        yield f"{node.name} has {weight.dtype} constants, expected int8 weights and float biases"
    if zero is None or zero.dtype != np.int8 or np.any(zero.astype(np.int64)):
        got = "none" if zero is None else f"{zero.dtype} {', '.join(str(z) for z in np.unique(zero.astype(np.int64))[:4])}"
        yield f"{node.name} has zero point {got}, expected a constant int8 0"
    if scale is None or scale.dtype != np.float32 or not np.all(np.isfinite(s := scale.astype(np.float64)) & (s > 0.0)):
        yield f"{node.name} has a scale that is not constant, float32 and positive"
        return
    if zero is not None and zero.size != scale.size:
        yield f"{node.name} has {scale.size} scales and {zero.size} zero points"
    axis = next((helper.get_attribute_value(a) for a in node.attribute if a.name == "axis"), 1)
    if weight is None and scale.size != 1:
        yield f"{node.name} has {scale.size} scales for an activation, expected one"
    elif weight is not None and (scale.shape != weight.shape[:1] or axis != 0):
        yield f"{node.name} has {scale.size} scales on axis {axis} for a weight {weight.shape}, expected one a channel on axis 0"


def _convolution_faults(node: NodeProto, values: GraphValues) -> Iterator[str]:
    """A convolution has int8 input and weights with a float bias, or none of it is int8."""
    is_dq = [name in values.producers and values.producers[name].op_type == "DequantizeLinear" for name in node.input]
    if is_dq[1] and not is_dq[0]:
        yield f"{node.name} has int8 weights and a float input, expected both or neither"
    if len(is_dq) > 2 and is_dq[2]:
        yield f"{node.name} has a quantized bias, expected a float one"


def _image_step(values: npt.NDArray[np.float32]) -> float:
    """Scale of the normalised image: one grey value, where int8 then holds them all without loss; else its range / 127."""
    step = float(values[129]) - float(values[128])
    if step > 0.0 and np.array_equal(np.rint(values / np.float32(step)), np.arange(-128.0, 128.0)):
        return step
    return float(np.abs(values).max()) / _INT8_MAX


def _check_names(nodes: Iterable[NodeProto], float_layers: frozenset[str]) -> None:
    names = [node.name for node in nodes]
    if "" in names or len(set(names)) != len(names):
        raise ExportError("got nodes without a name or with the same one, expected a name of its own for every node")
    unknown = float_layers - {node.name for node in nodes if node.op_type in ("Conv", "Add")}
    if unknown:
        raise ExportError(f"got float layers that are no convolution or addition of the engine: {', '.join(sorted(unknown))}")


def _node(kind: str, inputs: list[str], output: str, name: str, axis: int | None = None) -> NodeProto:
    node = helper.make_node(kind, inputs, [output], name=name)
    if axis is not None:
        node.attribute.append(helper.make_attribute("axis", axis))
    return node
