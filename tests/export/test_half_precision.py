from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_networks import EngineBuilder, adding_unet, concatenating_unet, gate, images
from strip_runs import run, streamed_rows, whole_rows
from tensorrt_builder import build

from calibration.activations import ActivationRange, activation_ranges, collect
from export.errors import ExportError
from export.passes.half_precision import half_tensors, to_half
from export.passes.lint import lint
from export.passes.streaming import stream
from export.quantize import quantize, tensors_to_observe

NETWORKS = {"adding": adding_unet, "concatenating": concatenating_unet, "gate": gate}


@pytest.fixture(scope="module", params=NETWORKS)
def single(request) -> onnx.ModelProto:
    return NETWORKS[request.param]()


@pytest.fixture(scope="module")
def half(single) -> onnx.ModelProto:
    return to_half(single)


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
    return types | {constant.name: constant.data_type for constant in graph.initializer}


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {constant.name: numpy_helper.to_array(constant) for constant in model.graph.initializer}


def replace(model: onnx.ModelProto, name: str, values: np.ndarray) -> None:
    next(c for c in model.graph.initializer if c.name == name).CopyFrom(numpy_helper.from_array(values, name))


def test_the_model_given_is_left_as_it_is(single):
    before = single.SerializeToString()
    to_half(single)
    assert single.SerializeToString() == before


def test_image_and_scores_keep_their_types_and_sizes(single, half):
    for before, after in ((single.graph.input, half.graph.input), (single.graph.output, half.graph.output)):
        assert [value.SerializeToString() for value in before] == [value.SerializeToString() for value in after]


def test_every_convolution_but_the_head_computes_in_half_precision(half):
    types = types_of(half)
    for node in (n for n in half.graph.node if n.op_type == "Conv"):
        expected = TensorProto.FLOAT if node.name == "head" else TensorProto.FLOAT16
        assert {types[name] for name in (*node.input, *node.output)} == {expected}, node.name


def test_the_head_and_the_normalisation_keep_their_constants_to_the_bit(single, half):
    before, after = constants(single), constants(half)
    for name in ("head.weight", "head.bias", "middle", "scale"):
        assert after[name].dtype == np.float32
        np.testing.assert_array_equal(after[name], before[name])


def test_there_is_one_cast_into_half_precision_and_one_out_of_it_for_a_chain(half):
    casts = [node.input[0] for node in half.graph.node if node.op_type == "Cast" and node.name != "cast"]
    assert len(casts) == 2
    assert max(Counter(casts).values()) == 1


def test_scores_are_off_by_the_rounding_of_half_precision(single, half):
    """Rounding is off by 2**-12 of a value on average; five layers add weights' and activations' in squares."""
    height, width = (d.dim_value for d in single.graph.input[0].type.tensor_type.shape.dim[2:])
    tiles = {"image": images(8, height, width)}
    wanted, got = run(single, tiles)[0], run(half, tiles)[0]
    error = np.sqrt(np.mean((wanted - got) ** 2)) / np.sqrt(np.mean(wanted**2))
    assert 0.0 < error < 10 * 2**-11


def test_the_file_is_half_as_large(single, half):
    weights = sum(array.nbytes for array in constants(single).values())
    head = sum(constants(single)[name].nbytes for name in ("head.weight", "head.bias"))
    assert sum(array.nbytes for array in constants(half).values()) == pytest.approx(weights / 2 + head / 2, rel=0.05)


def test_the_file_is_clean_and_every_device_reads_it(half):
    assert lint(half) == ()
    assert (half.opset_import[0].version, half.ir_version) == (17, 8)


def test_tensorrt_parses_and_builds_the_file(half):
    build(half)


@pytest.mark.parametrize("network", [adding_unet, concatenating_unet])
def test_it_streams_with_half_precision_rows_as_state(network):
    half = to_half(network())
    streamed = stream(half)
    assert {state.dtype for state in streamed.states} == {"float16"}
    assert lint(streamed.model) == ()
    strip = images(1, 160, 48)[0, 0]
    inside = slice(streamed.reach_lines, 160 - streamed.reach_lines)
    wanted, got = whole_rows(half, strip)[:, inside], streamed_rows(streamed, strip, 16)[:, inside]
    np.testing.assert_allclose(got, wanted, atol=2**-9 * np.ptp(wanted))
    build(streamed.model)


def test_weights_beyond_the_range_are_all_named():
    model = adding_unet()
    for name in ("encoder_2.weight", "decoder_2.bias"):
        values = constants(model)[name].copy()
        values.flat[0] = -70000.0
        replace(model, name, values)
    with pytest.raises(
        ExportError, match=r"encoder_2\.weight of encoder_2 holds 70000; decoder_2\.bias of decoder_2 holds 70000"
    ):
        to_half(model)


def test_a_head_beyond_the_range_stays_as_it_is():
    model = adding_unet()
    replace(model, "head.weight", constants(model)["head.weight"] * np.float32(1e6))
    assert constants(to_half(model))["head.weight"].max() > 65504


def test_activations_beyond_the_range_are_named():
    model = adding_unet()
    ranges = activation_ranges(collect(model, half_tensors(model), [images(4, 32, 48)]))
    to_half(model, ranges)
    with pytest.raises(ExportError, match=r"largest value is 65504: encoder_4_relu_out reaches 80000; export fp32"):
        to_half(model, ranges | {"encoder_4_relu_out": ActivationRange(80000.0, True)})


def test_the_tensors_to_observe_are_those_that_become_half(single, half):
    types = types_of(half)
    produced = {name for node in single.graph.node for name in node.output}
    assert set(half_tensors(single)) == {name for name in produced if types[name] == TensorProto.FLOAT16}


def squeezing() -> onnx.ModelProto:
    """Squeeze and excitation between two convolutions, with a limit that no value reaches."""
    b = EngineBuilder(seed=5)
    first = b.conv(b.image(), 8, "first")
    limits = [b.constant("least", np.float32(0)), b.constant("most", np.float32(3e38))]
    clipped = b.keep(b.node("Clip", [first, *limits], "clip"), 8)
    pooled = b.keep(b.node("GlobalAveragePool", [clipped], "squeeze"), 8)
    weight = b.node("Sigmoid", [b.conv(pooled, 8, "excite", kernel=1, relu=False)], "sigmoid")
    scaled = b.keep(b.node("Mul", [clipped, weight], "scale_channels"), 8)
    b.node("Identity", [b.conv(scaled, 2, "head", relu=False)], "out", "scores")
    return b.model(32, 32, ["n", 2, 32, 32])


def test_sums_over_a_whole_tensor_stay_in_single_precision():
    half = to_half(squeezing())
    types = types_of(half)
    squeeze = next(node for node in half.graph.node if node.name == "squeeze")
    assert types[squeeze.input[0]] == types[squeeze.output[0]] == TensorProto.FLOAT
    assert types["scale_channels_out"] == TensorProto.FLOAT16
    build(half)


def test_a_limit_beyond_the_range_becomes_the_largest_value():
    assert constants(to_half(squeezing()))["most"] == np.float16(65504)


def test_a_constant_that_both_precisions_use_is_there_in_both():
    b = EngineBuilder(seed=6)
    first = b.conv(b.image(), 1, "first")
    shifted = b.keep(b.node("Mul", [first, "scale"], "again"), 1)
    b.node("Mul", [b.conv(shifted, 1, "head", relu=False), "scale"], "out", "scores")
    kept = constants(to_half(b.model(16, 16, ["n", 1, 16, 16])))
    assert (kept["scale"].dtype, kept["scale/half"].dtype) == (np.float32, np.float16)


def test_scales_of_a_resize_stay_in_single_precision():
    assert constants(to_half(adding_unet()))["up.scales"].dtype == np.float32


def test_a_quantized_engine_is_refused():
    model = adding_unet()
    quantized = quantize(model, activation_ranges(collect(model, tensors_to_observe(model), [images(4, 32, 48)])))
    with pytest.raises(ExportError, match="expected a float engine without Q/DQ nodes"):
        to_half(quantized)


def test_an_engine_whose_types_do_not_fit_is_refused():
    model = adding_unet()
    model.graph.node.append(helper.make_node("Add", ["image", "scores"], ["mixed"], name="mixed"))
    with pytest.raises(ExportError, match="types of the engine's tensors do not fit together"):
        to_half(model)
