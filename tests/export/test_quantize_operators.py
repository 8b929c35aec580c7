"""INT8 of every operator that the seed networks need: what is quantized, at which scales, and that all runtimes agree."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from dense_networks import convolution, exported, narrow
from onnx import NodeProto, numpy_helper
from small_networks import EngineBuilder, images
from tensorrt_builder import build
from torch import Tensor, nn

from calibration.activations import activation_ranges, collect
from edge.sessions.ort import OrtSession
from edge.sessions.ort_rewrite import rewrite_for_cpu
from export.networks.grey_input import IMAGENET, UNIT, UNIT_RGB
from export.passes.streaming import stream
from export.quantize import quantizable_layers, quantize, tensors_to_observe

SIDE = 64


class Limited(nn.Module):
    """Depthwise and grouped convolutions, ReLU6, leaky ReLU, average pooling, bilinear upsampling."""

    normalisation = UNIT

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8), nn.LeakyReLU(0.1))
        self.grouped = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.ReLU6(), nn.AvgPool2d(2))
        self.spread = nn.ConvTranspose2d(8, 8, 4, stride=2, padding=1)
        self.last = convolution(8, 8)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.spread(self.grouped(self.depthwise(self.stem(x)))))
        x = nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.head(self.last(x))


class Dense(nn.Module):
    """A classifier: three copies of a grey image, convolutions, Flatten, two dense layers."""

    normalisation = UNIT_RGB

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(convolution(3, 8, 3, 2), nn.MaxPool2d(2), convolution(8, 8), nn.AvgPool2d(4))
        self.first, self.last = nn.Linear(8 * 16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(torch.flatten(self.features(x), 1))))


class Product(Dense):
    """The same with a product and a sum where a dense layer was, as Keras writes it, behind channels last."""

    normalisation = IMAGENET

    def forward(self, x: Tensor) -> Tensor:
        flat = self.features(x).permute(0, 2, 3, 1).reshape(x.shape[0], 8 * 16)
        return self.last(torch.relu(torch.matmul(flat, self.first.weight.T.contiguous()) + self.first.bias))


BUILT = {"limited": Limited, "dense": Dense, "product": Product}
NETWORKS = (*BUILT, "residual", "bottleneck", "plain", "nested", "squeezed")


@functools.cache
def float_model(name: str) -> onnx.ModelProto:
    if name not in BUILT:
        return narrow(name)
    torch.manual_seed(0)
    return exported(BUILT[name](), SIDE)


@functools.cache
def int8(name: str) -> onnx.ModelProto:
    return quantized(float_model(name))


def quantized(model: onnx.ModelProto, float_layers: tuple[str, ...] = ()) -> onnx.ModelProto:
    height, width = (d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[2:])
    statistics = collect(model, tensors_to_observe(model, float_layers), [images(4, height, width)], 1)
    return quantize(model, activation_ranges(statistics), float_layers)


def as_written(model: onnx.ModelProto, tiles: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options).run(None, {"image": tiles})[0]


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}


def producers(model: onnx.ModelProto) -> dict[str, NodeProto]:
    return {output: node for node in model.graph.node for output in node.output}


def nodes(model: onnx.ModelProto, kind: str) -> list[NodeProto]:
    return [node for node in model.graph.node if node.op_type == kind]


def scale_of(model: onnx.ModelProto, tensor: str) -> float:
    return float(constants(model)[next(n for n in nodes(model, "QuantizeLinear") if n.input[0] == tensor).input[1]])


def assert_scores_are_the_file_s(name: str, scores: np.ndarray, tiles: np.ndarray) -> None:
    """Float sums round otherwise than integer ones: now and then a value moves by a step, and with it what it is summed into."""
    wanted = as_written(int8(name), tiles)
    error = np.sqrt(np.mean((scores - wanted) ** 2))
    of_rounding_to_int8 = np.sqrt(np.mean((as_written(float_model(name), tiles) - wanted) ** 2))
    assert error < 0.1 * of_rounding_to_int8


@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_runtime_s_scores_are_those_of_the_file_node_by_node(name):
    tiles = images(4, SIDE, SIDE, seed=9)
    with OrtSession(int8(name).SerializeToString(), 1) as session:
        assert_scores_are_the_file_s(name, session.infer(tiles), tiles)


@pytest.mark.parametrize("name", NETWORKS)
def test_openvino_s_scores_are_those_of_the_file_node_by_node(name):
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    from edge.sessions.ov import OvSession

    tiles = images(4, SIDE, SIDE, seed=9)
    with OvSession(int8(name).SerializeToString(), 1) as session:
        assert_scores_are_the_file_s(name, session.infer(tiles), tiles)


@pytest.mark.parametrize("name", NETWORKS)
def test_tensorrt_parses_and_builds_the_file(name):
    build(int8(name))


@pytest.mark.parametrize("name", ["residual", "bottleneck", "plain", "nested", "dense", "product"])
def test_in_onnx_runtime_only_a_classifier_s_head_is_left_in_float(name):
    kinds = [node.op_type for node in rewrite_for_cpu(int8(name)).graph.node]
    assert sum(kind in ("Conv", "Gemm", "MatMul") for kind in kinds) == (name in ("dense", "product"))
    assert not {"ConvTranspose", "Add", "Relu", "Resize", "DepthToSpace"}.intersection(kinds)
    floats = {"dense": 2, "product": 2}.get(name, 1)  # the average pooling too, which ONNX Runtime itself fuses
    assert kinds.count("DequantizeLinear") == floats


@pytest.mark.parametrize(("name", "kind", "axis"), [("plain", "ConvTranspose", 1), ("dense", "Gemm", 0), ("product", "Gemm", 1)])
def test_weights_have_one_scale_per_output_channel_wherever_that_lies(name, kind, axis):
    model = int8(name)
    values, makers = constants(model), producers(model)
    floats = constants(float_model(name))
    for layer in nodes(model, kind)[: len(nodes(model, kind)) - (kind == "Gemm")]:
        dequantize = makers[layer.input[1]]
        integers, scales = values[dequantize.input[0]], values[dequantize.input[1]]
        assert (dequantize.attribute[0].name, dequantize.attribute[0].i) == ("axis", axis)
        assert scales.shape == (integers.shape[axis],)
        shape = [-1 if place == axis else 1 for place in range(integers.ndim)]
        back = integers * scales.reshape(shape)
        source = next(w for w in floats.values() if w.shape == back.shape and np.abs(w - back).max() <= scales.max())
        assert (np.abs(source - back) <= 0.5001 * scales.reshape(shape)).all()
        assert np.abs(integers).max(axis=tuple(a for a in range(integers.ndim) if a != axis)).min() >= 64


def test_a_product_with_its_bias_is_written_as_the_dense_layer_that_it_is():
    assert len(nodes(float_model("product"), "MatMul")) == 1
    model = int8("product")
    assert not nodes(model, "MatMul")
    dense = nodes(model, "Gemm")[0]
    assert dense.name == nodes(float_model("product"), "MatMul")[0].name
    assert dense.name in quantizable_layers(float_model("product"))


def test_layers_of_all_kinds_may_stay_float():
    model = float_model("plain")
    spread = tuple(node.name for node in nodes(model, "ConvTranspose"))
    kept = quantized(model, spread)
    assert all(not producers(kept).get(node.input[1]) for node in nodes(kept, "ConvTranspose"))
    dense = nodes(float_model("dense"), "Gemm")[0].name
    assert nodes(quantized(float_model("dense"), (dense,)), "Gemm")[0].input[1] == nodes(float_model("dense"), "Gemm")[0].input[1]


def test_the_layers_of_a_squeeze_and_excitation_stay_float_and_what_it_weighs_does_not():
    model = float_model("squeezed")
    layers = quantizable_layers(model)
    excitations = {node.name for node in nodes(model, "Conv") if "excite" in node.name}
    assert len(excitations) == 6
    assert not excitations.intersection(layers)
    weighed = [node for node in nodes(model, "Mul") if node.name not in ("Mul", "network/Mul")]
    integers = {node.input[0] for node in nodes(int8("squeezed"), "QuantizeLinear")}
    readers = {name for node in nodes(model, "Conv") if node.name in layers for name in node.input}
    assert any(node.output[0] in readers and node.output[0] in integers for node in weighed)


def test_an_average_behind_which_a_layer_is_quantized_reads_integers():
    for name in ("limited", "dense"):
        model = int8(name)
        makers = producers(model)
        assert all(makers[node.input[0]].op_type == "DequantizeLinear" for node in nodes(model, "AveragePool"))


@pytest.mark.parametrize("name", ["dense", "product"])
def test_copies_of_a_grey_image_share_one_scale_and_one_reader_dequantizes_each_once(name):
    model = int8(name)
    stacked = nodes(model, "Concat")[0]
    makers = producers(model)
    readers = {makers[tensor].input[1] for tensor in stacked.input}
    assert len(readers) == 1
    outputs = [output for node in model.graph.node for output in node.output]
    assert len(set(outputs)) == len(outputs)
    values = np.concatenate(
        [(np.arange(256) - mean) / deviation for mean, deviation in zip(IMAGENET.mean, IMAGENET.deviation, strict=True)]
    )
    expected = 1 / 127 if name == "dense" else np.abs(values).max() / 127
    assert scale_of(model, stacked.output[0]) == pytest.approx(expected, rel=1e-5)


def branches(gain: float, elsewhere: bool) -> onnx.ModelProto:
    """Two branches, one `gain` times the other, joined; `elsewhere`: the first is read by another layer too."""
    b = EngineBuilder(seed=5)
    stem = b.conv(b.image(), 8, "stem", kernel=4, stride=2)
    first, second = b.conv(stem, 8, "first"), b.conv(stem, 8, "second")
    joined = b.conv(b.concat(first, second, "joined"), 8, "behind")
    if elsewhere:
        joined = b.add(joined, b.conv(first, 8, "other"), "sum")
    b.node("DepthToSpace", [b.conv(joined, 12, "head", kernel=1, relu=False)], "spread", "scores", blocksize=2, mode="CRD")
    model = b.model(32, 48, ["n", 3, 32, 48])
    for constant in model.graph.initializer:
        if constant.name.startswith("first."):
            constant.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(constant) * np.float32(gain), constant.name))
    return model


@pytest.mark.parametrize(
    ("gain", "elsewhere", "shared"), [(1.0, True, True), (0.1, False, True), (0.1, True, False), (10.0, True, True)]
)
def test_an_operand_used_elsewhere_keeps_its_scale_where_the_joined_one_would_cost_more_than_a_bit(gain, elsewhere, shared):
    model = quantized(branches(gain, elsewhere))
    assert (scale_of(model, "first_relu_out") == scale_of(model, "joined_out")) == shared
    joined = nodes(model, "Concat")[0]
    assert len({producers(model)[tensor].input[1] for tensor in joined.input}) == 1  # the Concat itself always has one scale


@pytest.mark.parametrize("gain", [0.1, 10.0])
def test_a_join_of_unequal_operands_is_computed_as_the_file_says_by_both_runtimes(gain):
    model, tiles = quantized(branches(gain, True)), images(4, 32, 48, seed=9)
    wanted = as_written(model, tiles)
    with OrtSession(model.SerializeToString(), 1) as session:
        assert np.abs(session.infer(tiles) - wanted).max() < 0.02 * np.ptp(wanted)
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    from edge.sessions.ov import OvSession

    with OvSession(model.SerializeToString(), 1) as session:
        assert np.abs(session.infer(tiles) - wanted).max() < 0.02 * np.ptp(wanted)


@pytest.mark.parametrize("name", ["limited", "plain"])
def test_the_quantized_network_streams_on_integers(name):
    states = stream(int8(name)).states
    assert {state.dtype for state in states} == {"int8"}
