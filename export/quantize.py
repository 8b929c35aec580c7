"""INT8 as explicit Q/DQ nodes: the one file that TensorRT 8.6 to 11, ONNX Runtime and OpenVINO all read.

Symmetric int8 with zero point 0, one scale per activation, one per output channel of a weight; biases stay float, rounded to
what an int32 bias could hold. Quantized are the layers with weights (convolutions of all kinds, dense layers, which are written
as Gemm) and the additions between them. Tensors that operators hand on unchanged (MaxPool, nearest Resize, Concat, Flatten) share
one scale, so that such an operator between DQ and Q is an operator on integers. Every quantized layer has exactly one Q at its
output, after the ReLU or Clip where there is one: ONNX Runtime's integer kernels need it. Each consumer gets a DQ of its own.
Averages, sigmoids and the like stay float between DQ and Q, as does a squeeze and excitation, whose layers work on a few numbers
per tile; so do layers with no other layer behind them (the head), and what follows them, but for the logits of pixels.

A segmenter's last convolution has Q and DQ right behind it where nothing but a DepthToSpace or a nearest Resize comes before the
answer: the file answers floats as ever, a station takes the integers (`edge.sessions.integer_scores`), since to move float planes
behind that convolution is a sixth of an INT8 U-Net's time. A logit matters near a tie and near a threshold on its probability,
and one step is worth at most a quarter of itself there: of the reference network, whose logits end at 12, 2.4 % of probability.
On 121 images of NEU-Seg that moved 0.04 % of the pixels to another class, nearly all of them ties that go to the background (the
other layers' rounding: 0.10 %), the mean IoU by 0.03 points, and confidences by 0.8 of their 255 steps. A smaller range gains
little: 0.03 % at 8; and where channels are compared it may cost everything, since of two beyond it neither is the higher one.
A classifier keeps its float head: a gate decides far down the slope, and what its head costs is nothing.

Source: TensorRT developer guide, "Working with Quantized Types", Q/DQ placement; onnx-tensorrt 8.6, QuantDequantLinearHelper.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from calibration.activations import ActivationRange
from edge.sessions.graph_values import GraphValues, data_inputs, moves_values
from export.errors import ExportError
from export.passes.lint import quantization_findings

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
_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm"})
_WEIGHTED = _LAYERS | {"MatMul"}
_PLAIN: Mapping[str, Mapping[str, float]] = {"ConvTranspose": {"group": 1}, "Gemm": {"alpha": 1.0, "beta": 1.0, "transA": 0}}
"""Attributes with which int8 layers are known to every backend."""
_LIMITS = frozenset({"Relu", "Clip"})
"""Activations that saturate, as an integer does: the Q goes behind them, and they cost nothing."""
_AVERAGES = frozenset({"AveragePool", "GlobalAveragePool", "ReduceMean", "Resize"})
"""Computed from int8 where an int8 layer follows: TensorRT then runs them on integers."""
_GLOBAL_POOLS = frozenset({"GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax"})
_UNROUNDED = "/unrounded"
_LARGEST_LOGIT = 8.0
"""Of scores with one channel, a sigmoid's: 0.03 % from certainty, a tenth of the step in which confidences are stated. A network
that was trained to be surer than that would spend its integers on it."""
_USUAL_SIDE = 512
"""Rows and columns at which shapes are inferred where the graph leaves them free: a multiple of any network's stride."""
_LARGEST_RATIO = 2.0
"""Tensors joined by a Concat share the widest's scale, one that is used elsewhere only while it loses no more than a bit by it:
in a nest of skips every tensor would have the scale of the widest. Beyond that it is quantized once more for the Concat."""


def tensors_to_observe(model: onnx.ModelProto, float_layers: Collection[str] = ()) -> tuple[str, ...]:
    """Names of the float tensors whose ranges `quantize` wants; with no float layers: enough for any choice of them."""
    plan = _Plan(model, frozenset(float_layers))
    return tuple(sorted(source for source in plan.sources if plan.values.pixel_values(source) is None))


def quantizable_layers(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the layers and additions that `quantize` quantizes, in graph order: what may be named as a float layer."""
    plan = _Plan(model, frozenset())
    return tuple(node.name for node in model.graph.node if node.name in plan.quantized)


def quantize(
    model: onnx.ModelProto, ranges: Mapping[str, ActivationRange], float_layers: Collection[str] = ()
) -> onnx.ModelProto:
    """The float engine with Q/DQ nodes; the model given is left as it is.

    model: opset 13 to 17, batch normalisation folded, every node named.
    ranges: by tensor name, of the activations that `tensors_to_observe` names.
    float_layers: names of layers with weights and of additions that stay float.
    Raises ExportError for a missing range, an unknown float layer, a graph with nothing to quantize.
    """
    plan = _Plan(model, frozenset(float_layers))
    scales = plan.join(ranges)
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
        named = tensor if tensor not in plan.outputs else unrounded_name(tensor)
        q = _node("QuantizeLinear", [named, *scale_and_zero(tensor)], f"{tensor}/int8", f"{tensor}/quantize")
        if tensor not in plan.outputs:
            return [q]
        return [q, _node("DequantizeLinear", [q.output[0], *scale_and_zero(tensor)], tensor, f"{tensor}/dequantize")]

    def requantized(tensor: str, wider: str, reader: str) -> list[NodeProto]:
        """A tensor at another's scale. OpenVINO 2026.4 computes a Concat of tensors with different scales wrongly."""
        narrow, again = f"{tensor}/at/{reader}", f"{tensor}/int8/at/{reader}"
        return [
            _node("DequantizeLinear", [f"{tensor}/int8", *scale_and_zero(tensor)], narrow, f"{narrow}/dequantize"),
            _node("QuantizeLinear", [narrow, *scale_and_zero(wider)], again, f"{narrow}/quantize"),
        ]

    for node in plan.nodes:
        copied = NodeProto()
        copied.CopyFrom(node)
        for name in dict.fromkeys(node.input):
            if name in plan.integers:
                held, at = f"{name}/int8", name
                if node.op_type == "Concat" and (output := node.output[0]) in scales and scales[output] != scales[name]:
                    nodes += requantized(name, output, node.name)
                    held, at = nodes[-1].output[0], output
                dequantized = f"{name}/for/{node.name}"
                copied.input[:] = [dequantized if given == name else given for given in copied.input]
                inputs = [held, *scale_and_zero(at)]
                nodes.append(_node("DequantizeLinear", inputs, dequantized, f"{dequantized}/dequantize"))
        if node.op_type in _LAYERS and node.name in plan.quantized:
            weight = plan.values.constants[node.input[1]].astype(np.float32)
            bias = plan.values.constants[node.input[2]].astype(np.float32) if node.input[2:] and node.input[2] else None
            largest = _WEIGHT_MAX_SIGNED_INPUT if plan.root(node.input[0]) in signed else _INT8_MAX
            axis = weight_axis(node)
            integers, weight_scale = quantize_weight(weight, largest, scales[node.input[0]], bias, axis)
            inputs = [
                constant(f"{node.name}/weight/int8", integers),
                constant(f"{node.name}/weight/scale", weight_scale),
                constant(f"{node.name}/weight/zero", np.zeros(weight_scale.shape, np.int8)),
            ]
            copied.input[1] = f"{node.name}/weight"
            nodes.append(_node("DequantizeLinear", inputs, copied.input[1], f"{node.name}/weight/dequantize", axis=axis))
            if bias is not None:
                copied.input[2] = constant(f"{node.name}/bias", round_bias(bias, scales[node.input[0]], weight_scale))
        if node.output[0] in plan.integers and node.output[0] in plan.outputs:
            copied.output[0] = unrounded_name(node.output[0])
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


def unrounded_name(scores: str) -> str:
    """What the quantized graph calls its output before rounding, where a layer makes the output: the name is the DQ's."""
    return f"{scores}{_UNROUNDED}"


def float_name(tensor: str) -> str:
    """What the float graph calls a tensor that a layer of the quantized one makes."""
    return tensor.removesuffix(_UNROUNDED)


def weight_axis(node: NodeProto) -> int:
    """Axis of a layer's weight that counts output channels: the one with a scale each."""
    if node.op_type == "Gemm":
        return 0 if _attribute(node, "transB", 0) else 1
    return 0 if node.op_type == "Conv" else 1


def _dense_layers(model: onnx.ModelProto) -> list[NodeProto]:
    """The graph's nodes with every MatMul by a constant matrix, and the addition of its bias, as a Gemm of the MatMul's name."""
    nodes = list(model.graph.node)
    if not any(node.op_type == "MatMul" for node in nodes):
        return nodes
    inferred = onnx.shape_inference.infer_shapes(model).graph
    sizes = {i.name: list(i.dims) for i in inferred.initializer}
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in inferred.value_info if v.type.tensor_type.HasField("shape")}
    users: dict[str, list[NodeProto]] = {}
    for node in nodes:
        for name in node.input:
            users.setdefault(name, []).append(node)
    outputs = {output.name for output in model.graph.output}
    written: list[NodeProto] = []
    biases: set[str] = set()
    for node in nodes:
        if node.name in biases:
            continue
        if node.op_type != "MatMul" or ranks.get(node.input[0]) != 2 or len(sizes.get(node.input[1], [])) != 2:
            written.append(node)
            continue
        channels, followers = sizes[node.input[1]][1], users.get(node.output[0], [])
        dense = _node("Gemm", list(node.input), node.output[0], node.name)
        if len(followers) == 1 and followers[0].op_type == "Add" and node.output[0] not in outputs:
            other = next((name for name in followers[0].input if sizes.get(name) == [channels]), None)
            if other is not None:
                biases.add(followers[0].name)
                dense = _node("Gemm", [*node.input, other], followers[0].output[0], node.name)
        written.append(dense)
    return written


def quantize_weight(
    weight: npt.NDArray[np.float32],
    largest: int,
    input_scale: float,
    bias: npt.NDArray[np.float32] | None = None,
    axis: int = 0,
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Symmetric int8 weights per output channel: (integers of the weight's shape within +-largest, scales (channels,)).

    axis: counts output channels. A scale is |w|max / largest, but never so small that the channel's bias in accumulator units,
    bias / (input_scale * scale), leaves its half of the int32.
    """
    by_channel = np.moveaxis(weight, axis, 0)
    channels = by_channel.reshape(len(by_channel), -1).astype(np.float64)
    scale = np.abs(channels).max(axis=1) / largest
    if bias is not None:
        scale = np.maximum(scale, np.abs(bias.astype(np.float64)) / (input_scale * _LARGEST_BIAS))
    scale = np.where(scale >= _SMALLEST_SCALE, scale, 1.0).astype(np.float32)
    integers = np.clip(np.rint(channels / scale[:, None].astype(np.float64)), -largest, largest)
    return np.ascontiguousarray(np.moveaxis(integers.astype(np.int8).reshape(by_channel.shape), 0, axis)), scale


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

    nodes: the graph's, dense layers as Gemm. quantized: names of the layers and additions between DQ and Q.
    integers: tensors that get a Q.
    sources: tensors of `integers` whose own range matters; the others only hand values on.
    """

    def __init__(self, model: onnx.ModelProto, float_layers: frozenset[str]) -> None:
        _check_names(model.graph.node, float_layers)
        nodes = self.nodes = _dense_layers(model)
        self.values = GraphValues.of(model)
        self.values.producers.update((output, node) for node in nodes for output in node.output)
        self._consumers: dict[str, list[NodeProto]] = {}
        for node in nodes:
            for name in node.input:
                self._consumers.setdefault(name, []).append(node)
        self.outputs = {output.name for output in model.graph.output}
        self._float_layers = float_layers
        self._parent: dict[str, str] = {}
        self.quantized: set[str] = set()
        self.integers: set[str] = set()
        self.sources: set[str] = set()
        heads = self._pixel_heads(model)
        channels = model.graph.output[0].type.tensor_type.shape.dim[1:2]
        self._lone_logits = {node.output[0] for node in heads if [size.dim_value for size in channels] == [1]}
        for node in (*self._layers_before_others(), *heads):
            if node.name not in float_layers:
                self.quantized.add(node.name)
                self._need(node.input[0])
                self._need(self._end(node))
        for node in nodes:  # an addition of int8 tensors is one on integers, whatever reads it
            if node.op_type == "Add" and all(name in self.integers for name in node.input):
                self._need(self._end(node))
        if not self.quantized:
            raise ExportError("got an engine without any layer to quantize, expected at least one before the head")
        for node in nodes:
            if self._moves_integers(node) and node.output[0] not in self.outputs:
                self.integers.add(node.output[0])

    def root(self, tensor: str) -> str:
        """Name of the tensor that stands for all those sharing its scale."""
        while self._parent.setdefault(tensor, tensor) != tensor:
            tensor = self._parent[tensor]
        return tensor

    def join(self, ranges: Mapping[str, ActivationRange]) -> dict[str, float]:
        """Gives tensors that share a scale one root, and every int8 tensor its scale: the largest limit among them / 127."""
        images = {name: values for name in self.sources if (values := self.values.pixel_values(name)) is not None}
        missing = sorted(name for name in self.sources if name not in ranges and name not in images)
        if missing:
            raise ExportError(f"got no activation range for {', '.join(missing)}; calibrate with the same engine")
        limits = {s: float(np.abs(images[s]).max()) if s in images else ranges[s].limit for s in self.sources}
        limits |= {s: min(limits[s], _LARGEST_LOGIT) for s in self._lone_logits.intersection(limits)}
        moving = [node for node in self.nodes if self._moves_integers(node)]
        for node in moving:
            if node.op_type != "Concat":
                self._share(limits, node.output[0], node.input[0])
        joined = -1
        while joined != (joined := len({self.root(tensor) for tensor in self.integers})):
            for node in moving:
                if node.op_type == "Concat":
                    self._join_operands(limits, node)
        members: dict[str, list[str]] = {}
        for source in self.sources:
            members.setdefault(self.root(source), []).append(source)
        scale: dict[str, float] = {}
        for group in {self.root(tensor) for tensor in self.integers}:
            if len(only := members.get(group, [])) == 1 and only[0] in images:
                scale[group] = _image_step(images[only[0]])
            else:
                scale[group] = limit if (limit := limits[group] / _INT8_MAX) >= _SMALLEST_SCALE else 1.0
        return {tensor: float(np.float32(scale[self.root(tensor)])) for tensor in self.integers}

    def signed_groups(self) -> set[str]:
        """Roots of the groups of which the graph does not tell that they have no values below 0."""
        return {self.root(tensor) for tensor in self.integers if not self.values.non_negative(tensor)}

    def _share(self, limits: dict[str, float], tensor: str, other: str) -> None:
        """Puts two tensors into one group. limits: by root, brought up to date."""
        one, another = self.root(tensor), self.root(other)
        self._parent[one] = another
        limits[another] = max(limits.get(one, 0.0), limits.get(another, 0.0))

    def _join_operands(self, limits: dict[str, float], node: NodeProto) -> None:
        """The Concat's output takes the widest operand's scale, and so do operands that lose little or are nothing else's."""
        widest = max(limits.get(self.root(name), 0.0) for name in (*node.input, node.output[0]))
        for name in node.input:
            limit = limits.get(self.root(name), 0.0)
            if limit == widest or limit * _LARGEST_RATIO >= widest or len(self._consumers[name]) == 1:
                self._share(limits, node.output[0], name)
        limits[self.root(node.output[0])] = widest

    def _layers_before_others(self) -> list[NodeProto]:
        """Layers with constant weights that have another one behind them and are no squeeze's."""
        feeds_layer: set[str] = set()
        found = []
        excitations = self._excitations()
        for node in reversed(self.nodes):
            feeds = bool(feeds_layer.intersection(node.output))
            if feeds and node.name not in excitations and self._is_layer(node):
                found.append(node)
            if feeds or node.op_type in _WEIGHTED:
                feeds_layer.update(node.input)
        return found[::-1]

    def _pixel_heads(self, model: onnx.ModelProto) -> list[NodeProto]:
        """Convolutions whose output, moved at most, is the graph's answer, with as many rows and columns as the image."""
        if not _answers_every_pixel(model):
            return []
        found = []
        for output in sorted(self.outputs):
            node = self.values.producers.get(output)
            while node is not None and self._moves_values(node) and len(data_inputs(node)) == 1:
                alone = len(self._consumers[node.input[0]]) == 1
                node = self.values.producers.get(node.input[0]) if alone else None
            if node is not None and node.op_type in ("Conv", "ConvTranspose") and self._is_layer(node):
                found.append(node)
        return found

    def _is_layer(self, node: NodeProto) -> bool:
        """Whether it is one that backends have for int8: constant weights, no transposed or scaled operands."""
        if node.op_type not in _LAYERS or any(name not in self.values.constants for name in node.input[1:] if name):
            return False
        if node.input[2:] and node.input[2]:
            channels = self.values.constants[node.input[1]].shape[weight_axis(node)]
            if self.values.constants[node.input[2]].shape != (channels,):
                return False
        return all(_attribute(node, name, value) == value for name, value in _PLAIN.get(node.op_type, {}).items())

    def _excitations(self) -> set[str]:
        """Names of the layers between a global pool and the Mul by which what it pooled weighs the channels."""
        found: set[str] = set()
        for node in self.nodes:
            if node.op_type == "Mul":
                for name in node.input:
                    found |= self._pooled_layers(name)
        return found

    def _pooled_layers(self, tensor: str) -> set[str]:
        """Names of the layers between a global pool and this tensor, which depends on nothing else; none where it does."""
        layers: set[str] = set()
        waiting, seen = [tensor], {tensor}
        while waiting:
            node = self.values.producers.get(waiting.pop())
            if node is None:
                return set()
            if node.op_type in _GLOBAL_POOLS:
                continue
            if node.op_type in _WEIGHTED:
                layers.add(node.name)
            behind = {name for name in node.input if name and name not in self.values.constants} - seen
            seen |= behind
            waiting += sorted(behind)
        return layers

    def _end(self, node: NodeProto) -> str:
        """The tensor that a layer's Q takes: its output, or that of the ReLU or Clip that alone follows."""
        output = str(node.output[0])
        users = self._consumers.get(output, [])
        if len(users) != 1 or output in self.outputs or users[0].op_type not in _LIMITS:
            return output
        return str(users[0].output[0]) if all(n in self.values.constants for n in users[0].input[1:] if n) else output

    def _need(self, tensor: str) -> None:
        """Marks a tensor as int8, and those that it is handed on, averaged or added from."""
        if tensor in self.integers:
            return
        self.integers.add(tensor)
        node = self.values.producers.get(tensor)
        if node is not None and self._moves_values(node):
            for name in data_inputs(node):
                self._need(name)
            return
        self.sources.add(tensor)
        if node is not None and node.op_type in _AVERAGES:
            self._need(node.input[0])
        if node is not None and node.op_type in _LIMITS:
            node = self.values.producers.get(node.input[0])
        if node is None or node.op_type != "Add" or node.name in self._float_layers or self._end(node) != tensor:
            return
        if not any(name in self.values.constants for name in node.input):
            self.quantized.add(node.name)
            for name in node.input:
                self._need(name)

    def _moves_integers(self, node: NodeProto) -> bool:
        return self._moves_values(node) and all(name in self.integers for name in data_inputs(node))

    def _moves_values(self, node: NodeProto) -> bool:
        return moves_values(node) and not any(name in self.values.constants for name in data_inputs(node))


def verify_qdq(model: onnx.ModelProto) -> None:
    """Raises ExportError naming every place where a Q/DQ file breaks what TensorRT 8.6 to 11 want of it.

    TensorRT's parser takes some of it for a warning, uint8 for int8 among them, and computes something else: so this decides.
    """
    faults = [str(finding) for finding in quantization_findings(model)]
    if not any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        faults.append("no QuantizeLinear, expected quantized activations")
    if faults:
        raise ExportError(f"engine is no explicit Q/DQ file for TensorRT: {'; '.join(faults)}; export it again with quantize()")


def _answers_every_pixel(model: onnx.ModelProto) -> bool:
    """Whether the answer is a map of the image's rows and columns."""
    sized = onnx.ModelProto()
    sized.CopyFrom(model)
    del sized.graph.value_info[:]
    image, answer = sized.graph.input[0].type.tensor_type.shape, sized.graph.output[0].type.tensor_type.shape
    if len(image.dim) != 4 or len(answer.dim) != 4:
        return False
    for side in image.dim[2:]:
        if not side.dim_value:
            side.dim_value = _USUAL_SIDE
    for side in answer.dim[2:]:
        side.Clear()
    sized = onnx.shape_inference.infer_shapes(sized, data_prop=True)
    image, answer = sized.graph.input[0].type.tensor_type.shape, sized.graph.output[0].type.tensor_type.shape
    return [side.dim_value for side in image.dim[2:]] == [side.dim_value for side in answer.dim[2:]]


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
    unknown = float_layers - {node.name for node in nodes if node.op_type in _WEIGHTED or node.op_type == "Add"}
    if unknown:
        raise ExportError(f"got float layers that are no layer or addition of the engine: {', '.join(sorted(unknown))}")


def _attribute(node: NodeProto, name: str, default: object) -> object:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _node(kind: str, inputs: list[str], output: str, name: str, axis: int | None = None) -> NodeProto:
    node = helper.make_node(kind, inputs, [output], name=name)
    if axis is not None:
        node.attribute.append(helper.make_attribute("axis", axis))
    return node
