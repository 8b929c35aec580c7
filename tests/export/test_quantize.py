from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import NodeProto, TensorProto, helper, numpy_helper
from small_networks import EngineBuilder, adding_unet, concatenating_unet, gate, images
from tensorrt_builder import build

from calibration.activations import ActivationRange, RangeMethod, activation_ranges, collect
from edge.sessions.ort import OrtSession
from export.errors import ExportError
from export.quantize import (
    float_name,
    quantizable_layers,
    quantize,
    quantize_weight,
    round_bias,
    tensors_to_observe,
    unrounded_name,
    verify_qdq,
)

NETWORKS = {"adding": adding_unet, "concatenating": concatenating_unet, "gate": gate}


def ranges_of(model: onnx.ModelProto) -> dict[str, ActivationRange]:
    height, width = (d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[2:])
    return activation_ranges(collect(model, tensors_to_observe(model), [images(8, height, width)]), RangeMethod.MIN_MAX)


@pytest.fixture(scope="module", params=NETWORKS)
def float_model(request) -> onnx.ModelProto:
    return NETWORKS[request.param]()


@pytest.fixture(scope="module")
def quantized(float_model) -> onnx.ModelProto:
    return quantize(float_model, ranges_of(float_model))


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}


def node(model: onnx.ModelProto, name: str) -> NodeProto:
    return next(n for n in model.graph.node if n.name == name)


def scale_of(model: onnx.ModelProto, tensor: str) -> float:
    return float(constants(model)[node(model, f"{tensor}/quantize").input[1]])


def test_the_model_given_is_left_as_it_is(float_model):
    before = float_model.SerializeToString()
    quantize(float_model, ranges_of(float_model))
    assert float_model.SerializeToString() == before


def test_every_convolution_but_a_gate_s_head_has_one_q_at_its_end(quantized):
    gate_head = any(n.op_type == "ReduceMax" for n in quantized.graph.node)
    consumers: dict[str, list[NodeProto]] = {}
    for n in quantized.graph.node:
        for name in n.input:
            consumers.setdefault(name, []).append(n)
    for conv in (n for n in quantized.graph.node if n.op_type == "Conv"):
        users = consumers[conv.output[0]]
        if users[0].op_type == "Relu":
            users = consumers[users[0].output[0]]
        expected = ["ReduceMax"] if gate_head and conv.name == "head" else ["QuantizeLinear"]
        assert [n.op_type for n in users] == expected


def test_a_gate_s_head_reads_the_float_weights_it_had():
    float_model = gate()
    quantized = quantize(float_model, ranges_of(float_model))
    assert node(quantized, "head").input[1:] == node(float_model, "head").input[1:]


def test_logits_of_pixels_are_rounded_behind_the_convolution_and_answered_as_floats():
    model = quantize(adding_unet(), ranges_of(adding_unet()))
    assert [n.op_type for n in model.graph.node][-4:] == ["Conv", "QuantizeLinear", "DequantizeLinear", "DepthToSpace"]
    assert model.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    with OrtSession(model.SerializeToString(), 1) as session:
        steps = session.infer(images(4, 32, 48, seed=9)) / np.float32(scale_of(model, "head_out"))
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-4)
    assert steps.min() >= -128
    assert steps.max() <= 127


def last_layer_answers(channels: int) -> onnx.ModelProto:
    """A segmenter whose last convolution is its answer: nothing is moved behind it."""
    b = EngineBuilder(seed=4)
    b.conv(b.conv(b.image(), 8, "first"), channels, "head", relu=False, output="scores")
    return b.model(32, 48, ["n", channels, 32, 48])


def test_a_convolution_that_is_the_answer_keeps_the_answer_s_name_behind_its_dq():
    model = last_layer_answers(3)
    quantized = quantize(model, ranges_of(model))
    assert node(quantized, "head").output[0] == unrounded_name("scores")
    assert float_name(unrounded_name("scores")) == "scores"
    assert node(quantized, "scores/dequantize").output[0] == quantized.graph.output[0].name == "scores"
    kept = quantize(model, ranges_of(model), ["head"])
    assert node(kept, "head").input[1:] == ["head.weight", "head.bias"]


def test_no_step_is_spent_on_logits_of_one_channel_beyond_certainty():
    b = EngineBuilder(seed=4)
    quarters = b.conv(b.conv(b.image(), 8, "first", stride=2), 4, "head", kernel=1, relu=False)
    b.node("DepthToSpace", [quarters], "spread", "scores", blocksize=2, mode="CRD")
    spread = b.model(32, 48, ["n", 1, 32, 48])
    single, several = last_layer_answers(1), last_layer_answers(2)
    for model, logits, expected in ((single, "scores", 8.0), (spread, "head_out", 8.0), (several, "scores", 40.0)):
        ranges = ranges_of(model) | {logits: ActivationRange(40.0, False)}
        assert scale_of(quantize(model, ranges), logits) == np.float32(expected / 127)
        within = ranges | {logits: ActivationRange(5.0, False)}
        assert scale_of(quantize(model, within), logits) == np.float32(5.0 / 127)


def test_scores_of_cells_rather_than_pixels_stay_float():
    b = EngineBuilder(seed=4)
    b.conv(b.conv(b.image(), 8, "first", stride=2), 1, "head", relu=False, output="scores")
    model = b.model(32, 48, ["n", 1, 16, 24])
    assert quantizable_layers(model) == ("first",)
    assert node(quantize(model, ranges_of(model)), "head").input[1] == "head.weight"


def test_tensors_joined_by_pooling_resizing_and_concatenation_share_one_scale():
    model = quantize(concatenating_unet(), ranges_of(concatenating_unet()))
    joined = ["lateral_out", "up_out", "stem_relu_out", "skip_out"]
    assert len({scale_of(model, tensor) for tensor in joined}) == 1
    model = quantize(adding_unet(), ranges_of(adding_unet()))
    assert scale_of(model, "encoder_2_relu_out") == scale_of(model, "pool_out")
    assert scale_of(model, "lateral_relu_out") == scale_of(model, "up_out")
    assert scale_of(model, "skip_out") not in (scale_of(model, "up_out"), scale_of(model, "encoder_2_relu_out"))


def test_the_joined_scale_covers_the_widest_of_them():
    model = concatenating_unet()
    ranges = ranges_of(model)
    widest = max(ranges["lateral_out"].limit, ranges["stem_relu_out"].limit)
    assert scale_of(quantize(model, ranges), "skip_out") == np.float32(widest / 127)


def test_all_256_grey_values_survive_the_first_q(quantized):
    model = onnx.ModelProto()
    model.CopyFrom(quantized)
    first = node(model, "normalise_out/quantize")
    model.graph.output.append(helper.make_tensor_value_info(first.output[0], TensorProto.INT8, None))
    height, width = (d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[2:])
    tile = np.resize(np.arange(256, dtype=np.uint8), (1, 1, height, width))
    integers = ort.InferenceSession(model.SerializeToString()).run([first.output[0]], {"image": tile})[0]
    np.testing.assert_array_equal(integers.astype(int), tile.astype(int) - 128)


def test_scores_stay_close_to_the_float_engine(float_model, quantized):
    """A step's noise, 1 / (127 sqrt(12)), is some 1 % of a tensor's typical values; that of six layers adds in squares."""
    height, width = (d.dim_value for d in float_model.graph.input[0].type.tensor_type.shape.dim[2:])
    tiles = images(16, height, width, seed=9)
    with OrtSession(float_model.SerializeToString(), 1) as floats, OrtSession(quantized.SerializeToString(), 1) as integers:
        wanted, got = floats.infer(tiles), integers.infer(tiles)
        error = np.sqrt(np.mean((wanted - got) ** 2))
        assert 0.0 < error < np.sqrt(6) * 0.02 * np.sqrt(np.mean(wanted**2))


def test_layers_named_float_keep_their_weights_and_sums():
    model = adding_unet()
    layers = quantizable_layers(model)
    assert layers == ("stem", "encoder_2", "encoder_4", "lateral", "skip", "decoder_2", "head")
    kept = quantize(model, ranges_of(model), float_layers=["encoder_4", "skip"])
    assert node(kept, "encoder_4").input[1] == "encoder_4.weight"
    assert node(kept, "lateral").input[1] == "lateral/weight"
    assert set(quantizable_layers(model)) - {"encoder_4", "skip"} == {
        n.name for n in kept.graph.node if n.op_type == "Conv" and n.input[1].endswith("/weight")
    }


def test_ranges_for_all_layers_are_enough_for_any_float_layers(float_model):
    ranges = ranges_of(float_model)
    layers = quantizable_layers(float_model)
    for kept in itertools.chain.from_iterable(itertools.combinations(layers, count) for count in (1, 2)):
        if any(name not in kept for name in layers if not name.startswith("skip")):
            quantize(float_model, ranges, kept)


@settings(deadline=None)
@given(
    arrays(np.float32, (3, 2, 3, 3), elements=st.floats(-10, 10, width=32)),
    arrays(np.float32, 3, elements=st.floats(-100, 100, width=32)),
    st.floats(1e-4, 1.0),
    st.sampled_from([64, 127]),
)
def test_weights_are_within_half_a_step_and_the_bias_fits_the_accumulator(weight, bias, input_scale, largest):
    integers, scale = quantize_weight(weight, largest, input_scale, bias)
    assert integers.dtype == np.int8
    assert np.abs(integers.astype(int)).max() <= largest
    error = np.abs(weight - integers * scale[:, None, None, None].astype(np.float64))
    assert (error <= 0.5001 * scale[:, None, None, None]).all()
    units = round_bias(bias, input_scale, scale).astype(np.float64) / (input_scale * scale.astype(np.float64))
    assert np.abs(units).max() <= 2**30 * (1 + 1e-6)


def test_biases_are_whole_units_of_the_accumulator(quantized):
    values = constants(quantized)
    conv = next(n for n in quantized.graph.node if n.op_type == "Conv" and n.name != "head")
    data = next(n for n in quantized.graph.node if conv.input[0] in n.output)
    unit = values[data.input[1]].astype(np.float64) * values[f"{conv.name}/weight/scale"]
    whole = values[f"{conv.name}/bias"] / unit
    np.testing.assert_allclose(whole, np.rint(whole), atol=1e-3)
    assert np.abs(whole).max() > 10


def test_products_behind_a_signed_input_fit_16_bits_in_pairs(quantized):
    stem = node(quantized, "first" if "first" in {n.name for n in quantized.graph.node} else "stem")
    weights = constants(quantized)[f"{stem.name}/weight/int8"].astype(int)
    assert 2 * 255 * np.abs(weights).max() < 2**15


def test_a_missing_range_is_named():
    model = gate()
    with pytest.raises(ExportError, match=r"no activation range for second_relu_out"):
        quantize(model, {"first_relu_out": ActivationRange(1.0, True)})


def test_an_unknown_float_layer_is_named():
    with pytest.raises(ExportError, match="no layer or addition of the engine: thrid"):
        quantize(gate(), ranges_of(gate()), float_layers=["thrid"])


def test_an_engine_with_nothing_to_quantize_is_refused():
    model = gate()
    with pytest.raises(ExportError, match="without any layer to quantize"):
        quantize(model, ranges_of(model), float_layers=["first", "second"])


def test_nodes_need_names():
    model = gate()
    model.graph.node[3].name = ""
    with pytest.raises(ExportError, match="without a name"):
        tensors_to_observe(model)


def replace(model: onnx.ModelProto, name: str, values: np.ndarray) -> None:
    initializer = next(i for i in model.graph.initializer if i.name == name)
    initializer.CopyFrom(numpy_helper.from_array(values, name))


def uint8_activations(model: onnx.ModelProto) -> None:
    replace(model, "int8_zero", np.array(0, np.uint8))


def zero_point_off_zero(model: onnx.ModelProto) -> None:
    replace(model, "int8_zero", np.array(-128, np.int8))


def zero_point_left_out(model: onnx.ModelProto) -> None:
    del node(model, "first_relu_out/quantize").input[2]


def int32_bias(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(16, np.int32), "bias_int32"))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(16, np.float32), "bias_scale"))
    dq = helper.make_node("DequantizeLinear", ["bias_int32", "bias_scale"], ["bias"], name="bias/dequantize", axis=0)
    model.graph.node.insert(0, dq)
    node(model, "second").input[2] = "bias"


def one_scale_for_a_weight(model: onnx.ModelProto) -> None:
    replace(model, "second/weight/scale", np.array(0.1, np.float32))
    replace(model, "second/weight/zero", np.array(0, np.int8))


def weight_scales_on_the_input_axis(model: onnx.ModelProto) -> None:
    dq = node(model, "second/weight/dequantize")
    dq.attribute[0].i = 1


def negative_scale(model: onnx.ModelProto) -> None:
    replace(model, "first_relu_out/scale", np.array(-0.1, np.float32))


def scale_per_channel_of_an_activation(model: onnx.ModelProto) -> None:
    replace(model, "first_relu_out/scale", np.full(8, 0.1, np.float32))


def float_input_of_int8_weights(model: onnx.ModelProto) -> None:
    node(model, "second").input[0] = "pool_1_out"


def operator_of_integers(model: onnx.ModelProto) -> None:
    node(model, "second").op_type = "QLinearConv"


def contrib_operator(model: onnx.ModelProto) -> None:
    node(model, "second").domain = "com.microsoft"


def pooling_of_integers(model: onnx.ModelProto) -> None:
    node(model, "pool_1").input[0] = "first_relu_out/int8"


def opset_too_new(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 18


def no_activation_quantized(model: onnx.ModelProto) -> None:
    kept = [n for n in model.graph.node if n.op_type != "QuantizeLinear"]
    del model.graph.node[:]
    model.graph.node.extend(kept)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (uint8_activations, "first_relu_out/quantize has zero point uint8 0, expected a constant int8 0"),
        (zero_point_off_zero, "zero point int8 -128"),
        (zero_point_left_out, "first_relu_out/quantize has zero point none"),
        (int32_bias, "bias/dequantize has int32 constants, expected int8 weights and float biases"),
        (int32_bias, "second has a quantized bias"),
        (one_scale_for_a_weight, r"second/weight/dequantize has 1 scales on axis 0 for a weight \(16, 8, 3, 3\)"),
        (weight_scales_on_the_input_axis, "second/weight/dequantize has 16 scales on axis 1"),
        (negative_scale, "first_relu_out/quantize has a scale that is not constant, float32 and positive"),
        (scale_per_channel_of_an_activation, "first_relu_out/quantize has 8 scales for an activation, expected one"),
        (float_input_of_int8_weights, "second has int8 weights and a float input"),
        (operator_of_integers, "second is QLinearConv, expected float operators"),
        (contrib_operator, "second is Conv, expected float operators"),
        (pooling_of_integers, "pool_1 is MaxPool on int8, expected one of Concat, Identity, Slice"),
        (opset_too_new, "opset 18, expected 13 to 17"),
        (no_activation_quantized, "no QuantizeLinear"),
    ],
)
def test_a_file_that_tensorrt_would_misread_is_refused(harm: Callable[[onnx.ModelProto], None], message: str):
    model = quantize(gate(), ranges_of(gate()))
    verify_qdq(model)
    harm(model)
    with pytest.raises(ExportError, match=message):
        verify_qdq(model)


def test_tensorrt_parses_and_builds_the_file(quantized):
    build(quantized)
