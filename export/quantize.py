"""INT8 as explicit Q/DQ nodes: the one file that TensorRT 8.6 to 11, ONNX Runtime and OpenVINO all read.

Symmetric int8 with zero point 0, one scale per activation, one per output channel of a weight; biases stay float. Tensors that
operators hand on unchanged (MaxPool, nearest Resize, Concat, DepthToSpace) share one scale, so that such an operator between
DQ and Q is an operator on integers. Every quantized convolution has exactly one Q at its output, after the ReLU where there is one:
ONNX Runtime's integer convolution needs it. Each consumer gets a DQ of its own. Convolutions with no other convolution behind
them (the head), and what follows them, stay float.

Source: TensorRT developer guide, "Working with Quantized Types", Q/DQ placement; onnx-tensorrt 8.6, QuantDequantLinearHelper.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from calibration.activations import ActivationRange
from edge.sessions.ort_rewrite import pixel_values
from export.errors import ExportError

_INT8_MAX = 127
_LARGEST_BIAS = 2**30
"""In units of the int32 accumulator, of which the products get the other half: no channel's weight scale may be so small that
its bias does not fit (a channel that batch normalisation has all but switched off)."""
_MOVES_VALUES = frozenset({"MaxPool", "Concat", "DepthToSpace", "Identity"})


def tensors_to_observe(model: onnx.ModelProto, float_layers: Collection[str] = ()) -> tuple[str, ...]:
    """Names of the float tensors whose ranges `quantize` wants; with no float layers: enough for any choice of them."""
    plan = _Plan(model, frozenset(float_layers))
    return tuple(sorted(source for source in plan.sources if pixel_values(model, source) is None))


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
    scales = plan.scales(model, ranges)
    weights = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
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
            weight = weights[node.input[1]]
            bias = weights[node.input[2]] if len(node.input) > 2 and node.input[2] else None
            integers, weight_scale = quantize_weight(weight, scales[node.input[0]], bias)
            inputs = [
                constant(f"{node.name}/weight/int8", integers),
                constant(f"{node.name}/weight/scale", weight_scale),
                constant(f"{node.name}/weight/zero", np.zeros(weight_scale.shape, np.int8)),
            ]
            copied.input[1] = f"{node.name}/weight"
            nodes.append(_node("DequantizeLinear", inputs, copied.input[1], f"{node.name}/weight/dequantize", axis=0))
        nodes.append(copied)
        nodes += [q for output in node.output for q in quantized(output)]

    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:], result.graph.initializer[:], result.graph.value_info[:]
    used = {name for node in nodes for name in node.input}
    result.graph.node.extend(nodes)
    result.graph.initializer.extend([*(i for i in model.graph.initializer if i.name in used), *made.values()])
    onnx.checker.check_model(result, full_check=True)
    return result


def quantize_weight(
    weight: npt.NDArray[np.float32], input_scale: float, bias: npt.NDArray[np.float32] | None = None
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Symmetric int8 weights per output channel: (integers of the weight's shape, scales (channels,)).

    A scale is |w|max / 127, but never so small that the channel's bias in accumulator units, bias / (input_scale * scale),
    leaves its half of the int32.
    """
    channels = weight.reshape(weight.shape[0], -1).astype(np.float64)
    scale = np.abs(channels).max(axis=1) / _INT8_MAX
    if bias is not None:
        scale = np.maximum(scale, np.abs(bias.astype(np.float64)) / (input_scale * _LARGEST_BIAS) * (1.0 + 1e-6))
    scale = np.where(scale > 0.0, scale, 1.0).astype(np.float32)
    integers = np.clip(np.rint(channels / scale[:, None].astype(np.float64)), -_INT8_MAX, _INT8_MAX)
    return integers.astype(np.int8).reshape(weight.shape), scale


class _Plan:
    """Which tensors of a float graph become int8, which of them share a scale, and where the Qs take them from.

    quantized: names of the convolutions and additions between DQ and Q.
    integers: tensors that get a Q.
    sources: tensors of `integers` whose own range matters; the others only hand values on.
    """

    def __init__(self, model: onnx.ModelProto, float_layers: frozenset[str]) -> None:
        graph = model.graph
        self._constants = {i.name for i in graph.initializer} | {n.output[0] for n in graph.node if n.op_type == "Constant"}
        self._producers = {output: node for node in graph.node for output in node.output}
        self._consumers: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self._consumers.setdefault(name, []).append(node)
        self._outputs = {output.name for output in graph.output}
        self._parent: dict[str, str] = {}
        self.quantized: set[str] = set()
        self.integers: set[str] = set()
        self.sources: set[str] = set()
        _check_names(graph.node)
        convolutions = self._convolutions_before_others(graph.node)
        self._check_float_layers(graph.node, float_layers)
        for node in convolutions:
            if node.name not in float_layers:
                self.quantized.add(node.name)
                self._need(node.input[0], float_layers)
                self._need(self._end(node), float_layers)
        if not self.quantized:
            raise ExportError("got an engine without any convolution to quantize, expected at least one before the head")
        self._join(graph.node)

    def root(self, tensor: str) -> str:
        """Name of the tensor that stands for all those sharing its scale."""
        while self._parent.setdefault(tensor, tensor) != tensor:
            tensor = self._parent[tensor]
        return tensor

    def scales(self, model: onnx.ModelProto, ranges: Mapping[str, ActivationRange]) -> dict[str, float]:
        """Scale of every int8 tensor: the largest limit among those that share it, / 127; an image's own step."""
        images = {name: values for name in self.sources if (values := pixel_values(model, name)) is not None}
        missing = sorted(name for name in self.sources if name not in ranges and name not in images)
        if missing:
            raise ExportError(f"got no activation range for {', '.join(missing)}; calibrate with the same engine")
        limits: dict[str, float] = {}
        steps: dict[str, float] = {}
        for source in sorted(self.sources):
            group = self.root(source)
            if source in images:
                limit, steps[group] = float(np.abs(images[source]).max()), _image_step(images[source])
            else:
                limit = ranges[source].limit
            limits[group] = max(limits.get(group, 0.0), limit)
        alone = {g for g in steps if sum(self.root(s) == g for s in self.sources) == 1}
        # A tensor that never leaves zero has no range: any scale does.
        scale = {g: steps[g] if g in alone else (limit if limit > 0.0 else 1.0) / _INT8_MAX for g, limit in limits.items()}
        return {tensor: float(np.float32(scale[self.root(tensor)])) for tensor in self.integers}

    def _convolutions_before_others(self, nodes: Iterable[NodeProto]) -> list[NodeProto]:
        """Convolutions with constant weights that have another convolution behind them."""
        feeds_convolution: set[str] = set()
        found = []
        for node in reversed(list(nodes)):
            if node.op_type == "Conv" and node.input[1] in self._constants and feeds_convolution.intersection(node.output):
                found.append(node)
            if node.op_type in ("Conv", "ConvTranspose") or feeds_convolution.intersection(node.output):
                feeds_convolution.update(node.input)
        return found[::-1]

    def _check_float_layers(self, nodes: Iterable[NodeProto], float_layers: frozenset[str]) -> None:
        unknown = float_layers - {node.name for node in nodes if node.op_type in ("Conv", "Add")}
        if unknown:
            raise ExportError(f"got float layers that are no convolution or addition of the engine: {', '.join(sorted(unknown))}")

    def _end(self, node: NodeProto) -> str:
        """The tensor that a convolution's Q takes: its output, or that of the ReLU that alone follows."""
        output: str = node.output[0]
        users = self._consumers.get(output, [])
        if len(users) == 1 and users[0].op_type == "Relu" and output not in self._outputs:
            return str(users[0].output[0])
        return output

    def _need(self, tensor: str, float_layers: frozenset[str]) -> None:
        """Marks a tensor as int8, and those that it is handed on or added from."""
        if tensor in self.integers or tensor in self._outputs:
            return
        self.integers.add(tensor)
        node = self._producers.get(tensor)
        if node is not None and self._moves_values(node):
            for name in self._data_inputs(node):
                self._need(name, float_layers)
            return
        self.sources.add(tensor)
        while node is not None and node.op_type == "Relu" and self._consumers[node.input[0]] == [node]:
            node = self._producers.get(node.input[0])
        if node is not None and node.op_type == "Add" and node.name not in float_layers and not self._constants & set(node.input):
            self.quantized.add(node.name)
            for name in node.input:
                self._need(name, float_layers)

    def _join(self, nodes: Iterable[NodeProto]) -> None:
        """Takes in what an operator only hands on from int8 tensors, and gives both ends one scale."""
        for node in nodes:
            if not self._moves_values(node):
                continue
            names = self._data_inputs(node)
            if all(name in self.integers for name in names) and node.output[0] not in self._outputs:
                self.integers.add(node.output[0])
                for name in names:
                    self._parent[self.root(node.output[0])] = self.root(name)

    def _moves_values(self, node: NodeProto) -> bool:
        if node.op_type == "Resize":
            mode = next((helper.get_attribute_value(a) for a in node.attribute if a.name == "mode"), b"nearest")
            return bool(mode == b"nearest")
        single = len(node.output) == 1 and not self._constants & set(self._data_inputs(node))
        return node.op_type in _MOVES_VALUES and single

    @staticmethod
    def _data_inputs(node: NodeProto) -> list[str]:
        return list(node.input) if node.op_type == "Concat" else list(node.input[:1])


def _image_step(values: npt.NDArray[np.float32]) -> float:
    """Scale of the normalised image: one grey value, where int8 then holds them all without loss; else its range / 127."""
    step = float(values[129]) - float(values[128])
    if step > 0.0 and np.array_equal(np.rint(values / np.float32(step)), np.arange(-128.0, 128.0)):
        return step
    return float(np.abs(values).max()) / _INT8_MAX


def _check_names(nodes: Iterable[NodeProto]) -> None:
    names = [node.name for node in nodes]
    if "" in names or len(set(names)) != len(names):
        raise ExportError("got nodes without a name or with the same one, expected a name of its own for every node")


def _node(kind: str, inputs: list[str], output: str, name: str, **attributes: int) -> NodeProto:
    return helper.make_node(kind, inputs, [output], name=name, **attributes)
