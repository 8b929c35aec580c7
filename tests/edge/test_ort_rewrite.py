"""The load-time rewrite, operator by operator, on graphs whose scales are powers of two: no rounding, so every bit must agree."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edge.sessions.ort_rewrite import rewrite_for_cpu

STEP = 2.0**-6
"""Scale of the image in the graphs here: 64 grey values to 1."""


class QuantizedGraph:
    """image -> (x - 128) / 64 in int8, then whatever is put behind it between DQ and Q."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        floats = self.node("Cast", ["image"], to=TensorProto.FLOAT)
        centred = self.node("Sub", [floats, self.constant(np.float32(128))])
        self.top = self.quantized(self.node("Mul", [centred, self.constant(np.float32(STEP))]), STEP)

    def constant(self, values: np.ndarray | np.generic) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(values), f"constant_{len(self.constants)}"))
        return self.constants[-1].name

    def node(self, kind: str, inputs: list[str], **attributes: object) -> str:
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def quantized(self, tensor: str, scale: float) -> str:
        """A float tensor behind Q and DQ."""
        how = [self.constant(np.float32(scale)), self.constant(np.int8(0))]
        return self.node("DequantizeLinear", [self.node("QuantizeLinear", [tensor, *how]), *how])

    def weight(self, shape: tuple[int, ...], axis: int) -> str:
        """A dequantized weight, some channels' scale twice the others'."""
        scales = np.float32(2.0**-5) * self.rng.integers(1, 3, shape[axis]).astype(np.float32)
        integers = self.rng.integers(-64, 65, shape).astype(np.int8)
        how = [self.constant(scales), self.constant(np.zeros(len(scales), np.int8))]
        return self.node("DequantizeLinear", [self.constant(integers), *how], axis=axis)

    def bias(self, channels: int) -> str:
        return self.constant((self.rng.integers(-9, 10, channels) / 8).astype(np.float32))

    def model(self, scores: str) -> onnx.ModelProto:
        nodes = [*self.nodes, helper.make_node("Identity", [scores], ["scores"], name="out")]
        image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 1, "height", "width"])
        output = helper.make_tensor_value_info("scores", TensorProto.FLOAT, None)
        graph = helper.make_graph(nodes, "quantized", [image], [output], self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def answer(model: onnx.ModelProto, image: np.ndarray, fused: bool) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if not fused:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options).run(None, {"image": image})[0]


def assert_same_bits(model: onnx.ModelProto, seed: int) -> list[str]:
    """Kinds of the operators in the rewritten graph, which answers as the file's nodes say one by one."""
    rewritten = rewrite_for_cpu(model)
    image = np.random.default_rng(seed).integers(0, 256, (2, 1, 6, 8)).astype(np.uint8)
    np.testing.assert_array_equal(answer(rewritten, image, True), answer(model, image, False))
    return [node.op_type for node in rewritten.graph.node]


@st.composite
def transposed_convolutions(draw) -> dict[str, object]:
    stride = draw(st.integers(1, 3))
    kernel = [draw(st.integers(1, 5)) for _ in range(2)]
    padding = [draw(st.integers(0, stride - 1)) for _ in range(2)]
    pads = [draw(st.integers(0, min(kernel[axis % 2] - 1, 3))) for axis in range(4)]
    return {"kernel_shape": kernel, "strides": [stride] * 2, "pads": pads, "output_padding": padding}


@settings(max_examples=60, deadline=None)
@given(
    how=transposed_convolutions(),
    channels=st.integers(1, 3),
    activation=st.sampled_from(["", "Relu", "Clip"]),
    seed=st.integers(0, 99),
)
def test_any_transposed_convolution_gives_the_sums_of_the_file(how, channels, activation, seed):
    graph = QuantizedGraph(seed)
    weight = graph.weight((1, channels, *how["kernel_shape"]), axis=1)
    x = graph.node("ConvTranspose", [graph.top, weight, graph.bias(channels)], **how)
    limits = [graph.constant(np.float32(value)) for value in (-0.25, 2.0)] if activation == "Clip" else []
    x = graph.node(activation, [x, *limits]) if activation else x
    kinds = assert_same_bits(graph.model(graph.quantized(x, 2.0**-4)), seed)
    assert ("QLinearConv" in kinds) != ("ConvTranspose" in kinds)


def test_transposed_convolutions_of_the_usual_kinds_run_on_integers():
    for kernel, pads, padding in ((2, [0] * 4, 0), (4, [1] * 4, 0), (3, [1] * 4, 1), (3, [0, 0, 1, 1], 0), (5, [2] * 4, 1)):
        graph = QuantizedGraph(0)
        how = {"kernel_shape": [kernel] * 2, "strides": [2, 2], "pads": pads, "output_padding": [padding] * 2}
        x = graph.node("ConvTranspose", [graph.top, graph.weight((1, 3, kernel, kernel), 1), graph.bias(3)], **how)
        kinds = assert_same_bits(graph.model(graph.quantized(x, 2.0**-4)), 1)
        assert "QLinearConv" in kinds
        assert not {"ConvTranspose", "DepthToSpace"}.intersection(kinds)


@settings(max_examples=40, deadline=None)
@given(
    factors=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    how=st.sampled_from(
        [("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"), ("pytorch_half_pixel", "round_prefer_ceil")]
    ),
    seed=st.integers(0, 99),
)
def test_nearest_upsampling_of_integers_repeats_pixels(factors, how, seed):
    graph = QuantizedGraph(seed)
    x = graph.quantized(graph.node("Conv", [graph.top, graph.weight((4, 1, 3, 3), 0)], pads=[1] * 4), 2.0**-3)
    scales = graph.constant(np.array([1, 1, *factors], np.float32))
    x = graph.node("Resize", [x, "", scales], mode="nearest", coordinate_transformation_mode=how[0], nearest_mode=how[1])
    assert "Resize" not in assert_same_bits(graph.model(graph.quantized(x, 2.0**-3)), seed)


def test_nearest_resizing_that_repeats_nothing_is_left_as_it_is():
    graph = QuantizedGraph(0)
    x = graph.quantized(graph.node("Conv", [graph.top, graph.weight((4, 1, 3, 3), 0)], pads=[1] * 4), 2.0**-3)
    scales = graph.constant(np.array([1, 1, 0.5, 0.5], np.float32))
    x = graph.node("Resize", [x, "", scales], mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    assert "Resize" in assert_same_bits(graph.model(graph.quantized(x, 2.0**-3)), 0)


@settings(max_examples=40, deadline=None)
@given(
    low=st.sampled_from([None, -3.0, -0.5, 0.0, 0.25]),
    high=st.sampled_from([None, 0.25, 1.0, 6.0, 100.0]),
    scale=st.sampled_from([2.0**-6, 2.0**-4, 2.0**-3]),
    seed=st.integers(0, 99),
)
def test_any_clip_behind_a_convolution_becomes_limits_of_its_integers(low, high, scale, seed):
    graph = QuantizedGraph(seed)
    x = graph.node("Conv", [graph.top, graph.weight((4, 1, 3, 3), 0), graph.bias(4)], pads=[1] * 4)
    x = graph.node("Clip", [x, *("" if value is None else graph.constant(np.float32(value)) for value in (low, high))])
    kinds = assert_same_bits(graph.model(graph.quantized(x, scale)), seed)
    assert kinds.count("QLinearConv") == 1


@settings(max_examples=30, deadline=None)
@given(transposed=st.booleans(), biased=st.booleans(), relu=st.booleans(), seed=st.integers(0, 99))
def test_dense_layers_run_on_integers(transposed, biased, relu, seed):
    graph = QuantizedGraph(seed)
    x = graph.quantized(graph.node("Flatten", [graph.top]), STEP)
    weight = graph.weight((5, 48), 0) if transposed else graph.weight((48, 5), 1)
    x = graph.node("Gemm", [x, weight, *([graph.bias(5)] if biased else [])], transB=int(transposed))
    x = graph.node("Relu", [x]) if relu else x
    kinds = assert_same_bits(graph.model(graph.quantized(x, 2.0**-2)), seed)
    assert "QGemm" in kinds
    assert not {"Gemm", "Relu"}.intersection(kinds)


@pytest.mark.skipif(
    ort.__version__.startswith("1.23."),
    reason="ONNX Runtime 1.23 itself fuses a scaled Gemm wrongly; a station's golden tiles would tell",
)
def test_a_dense_layer_that_scales_its_product_is_left_as_it_is():
    graph = QuantizedGraph(0)
    x = graph.quantized(graph.node("Flatten", [graph.top]), STEP)
    x = graph.node("Gemm", [x, graph.weight((48, 5), 1), graph.bias(5)], alpha=0.5)
    assert "Gemm" in assert_same_bits(graph.model(graph.quantized(x, 2.0**-2)), 0)
