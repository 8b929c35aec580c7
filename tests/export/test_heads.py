from __future__ import annotations

import functools
import math

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper
from small_networks import adding_unet, concatenating_unet, gate, images
from strip_runs import run, streamed_rows, whole_rows
from tensorrt_builder import build

from edge.scores import classify, probabilities
from export.errors import ExportError
from export.passes.half_precision import to_half
from export.passes.heads import with_head
from export.passes.lint import lint
from export.passes.streaming import stream

ACTIVATIONS = ("softmax", "sigmoid")
THRESHOLDS = (0.0, 0.25, 0.5, 0.6, 1.0)


def bare(channels: int) -> onnx.ModelProto:
    """An engine whose scores are what it is fed."""
    shape = ["n", channels, "height", "width"]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["fed"], ["scores"], name="out")],
        "bare",
        [helper.make_tensor_value_info("fed", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, shape)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@functools.cache
def session(channels: int, head: str, activation: str, threshold: float = 0.5) -> ort.InferenceSession:
    model = with_head(bare(channels), head, activation, threshold)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@st.composite
def logits(draw) -> np.ndarray:
    """Scores of many sizes, whole numbers among them, so that channels are often equal."""
    channels = draw(st.integers(1, 5))
    steps = st.integers(-6, 6).map(float) | st.floats(-40, 40, width=32) | st.sampled_from([1e30, -1e30, 88.5, -104.0])
    return draw(arrays(np.float32, (channels, 3, 4), elements=steps))


def assert_confidence(got: np.ndarray, exact: np.ndarray, expected: np.ndarray) -> None:
    """The same byte, but where single precision rounds a probability to the other side of half a step."""
    off = got != expected
    halves = np.abs(exact[off] * 255.0 % 1.0 - 0.5)
    assert (halves < 1e-3).all()
    assert (np.abs(got.astype(int) - expected)[off] == 1).all()


@settings(deadline=None, max_examples=100)
@given(logits(), st.sampled_from(ACTIVATIONS), st.sampled_from(THRESHOLDS))
def test_a_mask_is_what_classify_makes_of_the_logits(scores: np.ndarray, activation: str, threshold: float):
    if activation == "softmax" and len(scores) == 1:
        return
    mask, confidence = session(len(scores), "mask", activation, threshold).run(None, {"fed": scores[None]})[0][0]
    expected, expected_confidence = classify(scores, activation, "logits", threshold)
    np.testing.assert_array_equal(mask, expected)
    assert_confidence(confidence, probabilities(scores, activation).max(axis=0), expected_confidence)


@settings(deadline=None, max_examples=50)
@given(logits(), st.sampled_from(ACTIVATIONS))
def test_probabilities_are_those_of_the_logits(scores: np.ndarray, activation: str):
    got = session(len(scores), "probabilities", activation).run(None, {"fed": scores[None]})[0][0]
    np.testing.assert_allclose(got, probabilities(scores, activation), atol=1e-6)


def test_where_channels_are_equal_the_lowest_wins():
    scores = np.array([[0.0, 0.0, 2.0], [5.0, 5.0, 2.0], [5.0, 4.0, 2.0]], np.float32)[:, None]
    mask = session(3, "mask", "softmax").run(None, {"fed": scores[None]})[0][0, 0, 0]
    np.testing.assert_array_equal(mask, [1, 1, 0])
    mask = session(3, "mask", "sigmoid").run(None, {"fed": scores[None]})[0][0, 0, 0]
    np.testing.assert_array_equal(mask, [2, 2, 1])


@pytest.mark.parametrize("threshold", [0.25, 0.5, 0.6])
def test_a_sigmoid_s_class_is_there_from_the_threshold_on(threshold: float):
    at = np.float32(math.log(threshold / (1.0 - threshold)))
    scores = np.array([np.nextafter(at, np.float32(-100)), at, np.nextafter(at, np.float32(100))], np.float32)
    mask, confidence = session(1, "mask", "sigmoid", threshold).run(None, {"fed": scores[None, None, None]})[0][0, :, 0]
    np.testing.assert_array_equal(mask, [0, 1, 1])
    assert confidence[0] == 0
    assert abs(int(confidence[1]) - 255 * threshold) <= 0.5


def test_thresholds_of_0_and_1_take_everything_and_nothing():
    scores = np.array([-80.0, 80.0], np.float32)[None, None, None]
    assert (session(1, "mask", "sigmoid", 0.0).run(None, {"fed": scores})[0][0, 0] == 1).all()
    assert (session(1, "mask", "sigmoid", 1.0).run(None, {"fed": scores})[0][0, 0] == 0).all()


def test_logits_are_left_alone():
    model = adding_unet()
    assert with_head(model, "logits", "softmax").SerializeToString() == model.SerializeToString()


@pytest.mark.parametrize("head", ["probabilities", "mask"])
def test_the_output_keeps_its_name_and_the_file_is_clean(head: str):
    model = adding_unet()
    before = model.SerializeToString()
    headed = with_head(model, head, "softmax")
    assert model.SerializeToString() == before
    (output,) = headed.graph.output
    kind, channels = (TensorProto.UINT8, 2) if head == "mask" else (TensorProto.FLOAT, 3)
    assert (output.name, output.type.tensor_type.elem_type) == ("scores", kind)
    assert [d.dim_value or d.dim_param for d in output.type.tensor_type.shape.dim] == ["n", channels, 32, 48]
    assert lint(headed) == ()
    assert (headed.opset_import[0].version, headed.ir_version) == (17, 8)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_classifier_gives_probabilities_but_no_mask(activation: str):
    tiles = {"image": images(4, 32, 32)}
    scores = run(gate(), tiles)[0]
    got = run(with_head(gate(), "probabilities", activation), tiles)[0]
    np.testing.assert_allclose(got.T, probabilities(scores.T, activation), atol=1e-6)
    with pytest.raises(ExportError, match="a class per pixel, the engine's output has 2 axes"):
        with_head(gate(), "mask", activation)


def test_a_softmax_of_one_channel_is_refused():
    with pytest.raises(ExportError, match="the engine has 1 channel; expected sigmoid"):
        with_head(bare(1), "mask", "softmax")


def test_a_second_head_is_refused():
    with pytest.raises(ExportError, match="behind float32 logits, the engine's scores are UINT8"):
        with_head(with_head(adding_unet(), "mask", "softmax"), "mask", "softmax")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("network", [adding_unet, concatenating_unet])
def test_masks_stream_whichever_comes_first(network, activation: str):
    strip = images(1, 160, 48)[0, 0]
    logits_streamed = stream(network())
    inside = slice(logits_streamed.reach_lines, 160 - logits_streamed.reach_lines)
    first = stream(with_head(network(), "mask", activation))
    assert (first.lag_lines, first.states) == (logits_streamed.lag_lines, logits_streamed.states)
    behind = with_head(logits_streamed.model, "mask", activation)
    assert [value.name for value in behind.graph.output] == [value.name for value in logits_streamed.model.graph.output]
    wanted = whole_rows(with_head(network(), "mask", activation), strip)[:, inside]
    assert len(np.unique(wanted[0])) > 2
    for model in (first.model, behind):
        assert lint(model) == ()
    got = streamed_rows(first, strip, 16)[:, inside]
    # whole strips and chunks may take other kernels, which round otherwise
    assert (got[0] != wanted[0]).mean() < 1e-3
    assert np.abs(got[1].astype(int) - wanted[1])[got[0] == wanted[0]].max() <= 1


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_tensorrt_parses_and_builds_masks_of_tiles_and_of_streams(activation: str):
    headed = with_head(to_half(adding_unet()), "mask", activation)
    build(headed)
    build(stream(headed).model)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_openvino_gives_the_same_mask(activation: str):
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
    model = with_head(concatenating_unet(), "mask", activation, 0.6)
    tiles = images(2, 32, 48)
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    got, wanted = compiled([tiles])[0], run(model, {"image": tiles})[0]
    assert got.dtype == np.uint8
    assert (got[:, 0] != wanted[:, 0]).mean() < 1e-3
    assert np.abs(got[:, 1].astype(int) - wanted[:, 1])[got[:, 0] == wanted[:, 0]].max() <= 1
