"""Scores in integers: what sessions answer that were asked for them, and what a station makes of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from processor import require_whole_integer_products
from small_networks import EngineBuilder, adding_unet, concatenating_unet, gate, images
from toy_engines import write_segmenter

from calibration.activations import ActivationRange, activation_ranges, collect
from edge.bundle import check_golden, open_bundle
from edge.manifest import Streaming
from edge.scores import Reading, float_scores
from edge.segmenters.slabs import SlabSegmenter
from edge.segmenters.streaming import StreamingSegmenter
from edge.sessions import Session, StreamingSession
from edge.sessions.integer_scores import Answer, end_at_integers
from edge.sessions.ort import OrtSession, OrtStreamingSession
from edge.sessions.ort_rewrite import rewrite_for_cpu
from export.passes.heads import with_head
from export.passes.streaming import StreamedModel, stream
from export.quantize import quantize, tensors_to_observe

LINES, COLUMNS = 32, 48


def ending(channels: int, mode: str = "", block: int = 1, resize: bool = False) -> onnx.ModelProto:
    """A segmenter that ends in a convolution and what spreads it over the pixels: nothing, DepthToSpace, nearest Resize."""
    b = EngineBuilder(seed=channels)
    x = b.conv(b.image(), 8, "first", kernel=4, stride=2) if mode or resize else b.conv(b.image(), 8, "first")
    if block == 4:
        x = b.pool(x, "pool")
    spread = bool(mode) or resize
    logits = b.conv(x, channels * block**2, "head", kernel=1, relu=False, output="" if spread else "scores")
    if mode:
        b.node("DepthToSpace", [logits], "spread", "scores", blocksize=block, mode=mode)
    if resize:
        scales = b.constant("scales", np.array([1, 1, 2, 2], np.float32))
        modes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        b.node("Resize", [logits, "", scales], "larger", "scores", **modes)
    return b.model(LINES, COLUMNS, ["n", channels, LINES, COLUMNS])


SEGMENTERS: dict[str, Callable[[], onnx.ModelProto]] = {
    "unet": adding_unet,
    "concatenating": concatenating_unet,
    "one channel": lambda: ending(1),
    "three channels": lambda: ending(3),
    "six channels": lambda: ending(6),
    "one channel in blocks": lambda: ending(1, "CRD", 2),
    "blocks of four": lambda: ending(3, "CRD", 4),
    "depth first": lambda: ending(3, "DCR", 2),
    "resized": lambda: ending(3, resize=True),
}


@cache
def int8(name: str) -> onnx.ModelProto:
    return quantized(SEGMENTERS[name]())


def quantized(model: onnx.ModelProto) -> onnx.ModelProto:
    height, width = (d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[2:])
    return quantize(model, activation_ranges(collect(model, tensors_to_observe(model), [images(8, height, width)], 1)))


def open_tiles(backend: str, model: onnx.ModelProto, answer: Answer) -> Session:
    if backend == "ort":
        return OrtSession(model.SerializeToString(), 1, answer=answer)
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    from edge.sessions.ov import OvSession

    return OvSession(model.SerializeToString(), 1, answer=answer)


def open_stream(backend: str, engine: StreamedModel, lines: int, answer: Answer) -> StreamingSession:
    streaming = Streaming(lag_lines=engine.lag_lines, states=engine.states)
    if backend == "ort":
        return OrtStreamingSession(engine.model.SerializeToString(), streaming, COLUMNS, lines, 1, answer=answer)
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    require_whole_integer_products()
    from edge.sessions.ov import OvStreamingSession

    return OvStreamingSession(engine.model.SerializeToString(), streaming, COLUMNS, lines, 1, answer=answer)


def assert_alike(session: Session | StreamingSession, integers: np.ndarray, floats: np.ndarray) -> None:
    """OpenVINO computes floats by another formula, which leaves 1e-6 of them, and now and then rounds a half the other way."""
    got = float_scores(integers, session.steps)
    if session.backend == "ort":
        np.testing.assert_array_equal(got, floats)
        return
    steps = np.abs(got - floats) / session.steps.size
    assert np.mean(steps > 1e-3) < 1e-3
    assert steps.max() < 1.001


@pytest.fixture(params=["ort", "openvino"])
def backend(request) -> str:
    return request.param


@pytest.mark.parametrize("name", SEGMENTERS)
def test_integers_stand_for_the_floats_that_the_file_answers(backend, name):
    with open_tiles(backend, int8(name), "scores") as floats, open_tiles(backend, int8(name), "integers") as integers:
        assert floats.steps is None
        assert integers.steps is not None
        for count in (5, 2, 7):  # buffers are made, used in part, and made larger
            tiles = images(count, LINES, COLUMNS, seed=count)
            scores = integers.infer(tiles)
            assert scores.dtype == np.uint8
            assert_alike(integers, scores, floats.infer(tiles))


@pytest.mark.parametrize("name", ["unet", "three channels", "depth first"])
def test_a_stream_s_integers_are_those_of_its_floats(backend, name):
    engine = stream(int8(name))
    strip = images(1, 96, COLUMNS, seed=3)
    with open_stream(backend, engine, 16, "scores") as floats, open_stream(backend, engine, 16, "integers") as integers:
        for line in range(0, 96, 16):
            chunk = strip[:, :, line : line + 16]
            assert_alike(integers, integers.step(chunk), floats.step(chunk))
        integers.reset()
        floats.reset()
        assert_alike(integers, integers.step(chunk), floats.step(chunk))


@pytest.mark.parametrize("name", ["unet", "three channels", "blocks of four"])
def test_behind_the_last_convolution_onnx_runtime_has_nothing_left_to_do(name, tmp_path):
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    ended, _ = end_at_integers(rewrite_for_cpu(int8(name)))
    ort.InferenceSession(ended.SerializeToString(), options)
    assert onnx.load(tmp_path / "optimized.onnx").graph.node[-1].op_type == "QLinearConv"


def test_the_model_given_is_left_as_it_is():
    model = rewrite_for_cpu(int8("unet"))
    before = model.SerializeToString()
    assert end_at_integers(model)[1] is not None
    assert model.SerializeToString() == before


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(adding_unet, id="float engine"),
        pytest.param(lambda: quantized(gate()), id="gate"),
        pytest.param(lambda: with_head(int8("unet"), "probabilities", "softmax"), id="probabilities"),
        pytest.param(lambda: with_head(int8("unet"), "mask", "softmax"), id="mask"),
    ],
)
def test_an_engine_that_ends_otherwise_answers_as_it_would_for_scores(backend, model):
    height, width = (d.dim_value for d in model().graph.input[0].type.tensor_type.shape.dim[2:])
    tiles = images(3, height, width)
    with open_tiles(backend, model(), "scores") as expected, open_tiles(backend, model(), "integers") as got:
        assert got.steps is None
        np.testing.assert_array_equal(got.infer(tiles), expected.infer(tiles))


def test_integers_that_something_else_reads_stay_inside():
    model = rewrite_for_cpu(int8("unet"))
    dequantize = next(node for node in model.graph.node if node.op_type == "DequantizeLinear")
    model.graph.node.append(onnx.helper.make_node("Identity", [dequantize.input[0]], ["also"], name="also"))
    model.graph.output.append(onnx.helper.make_tensor_value_info("also", onnx.TensorProto.UINT8, None))
    unchanged, integers = end_at_integers(model, states={"also"})
    assert integers is None
    assert unchanged is model


def masks(segmenter: StreamingSegmenter | SlabSegmenter, strip: np.ndarray) -> list[np.ndarray]:
    segmenter.start(0)
    rows = segmenter.push(strip) + segmenter.flush()
    return [np.concatenate([getattr(part, plane) for part in rows]) for plane in ("mask", "confidence")]


@pytest.mark.parametrize("dense", ["slabs", "streaming"])
def test_a_strip_s_mask_is_the_same_from_integers(backend, dense):
    engine = stream(int8("unet"))
    halo = -(-engine.reach_lines // engine.stride) * engine.stride
    width = COLUMNS - 2 * halo
    assert width > 0
    sizes = {"width": width, "halo": halo, "stride": engine.stride, "reading": Reading("softmax")}
    strip = images(1, 64, width, seed=6)[0, 0]
    answers: dict[Answer, list[np.ndarray]] = {}
    for answer in ("scores", "integers"):
        if dense == "slabs":
            with open_tiles(backend, int8("unet"), answer) as session:
                answers[answer] = masks(SlabSegmenter(session, chunk_lines=16, **sizes), strip)
        else:
            with open_stream(backend, engine, 16, answer) as session:
                answers[answer] = masks(StreamingSegmenter(session, **sizes), strip)
    assert 0 < np.count_nonzero(answers["scores"][0]) < strip.size
    for expected, got in zip(answers["scores"], answers["integers"], strict=True):
        assert np.mean(got != expected) <= (0.0 if backend == "ort" else 2e-3)  # where OpenVINO rounds a half the other way


def test_golden_tiles_are_compared_with_what_the_integers_stand_for(tmp_path: Path):
    bundle = open_bundle(write_segmenter(tmp_path / "segmenter"))
    model = onnx.load(bundle.model_path)
    for node in model.graph.node:
        node.name = node.output[0]
    rounded = quantize(model, {"scores": ActivationRange(96.0, False)})
    with OrtSession(rounded.SerializeToString(), 1, answer="integers") as session:
        assert session.steps is not None
        answer = check_golden(bundle, session)
    assert 0.0 < answer.max_difference < 0.01
