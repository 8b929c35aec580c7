from __future__ import annotations

import sys

import numpy as np
import onnx
import pytest
from onnx import helper
from processor import require_whole_integer_products
from small_checkpoints import steel_image, trained_unet
from small_networks import EngineBuilder, adding_unet, concatenating_unet, gate, images

from calibration.activations import activation_ranges, collect
from edge.manifest import Streaming
from edge.sessions.ort import OrtSession
from export.errors import ExportError
from export.passes.streaming import stream
from export.quantize import quantize, tensors_to_observe
from export.samples import mosaic, reflect
from export.to_onnx import to_onnx, with_input_size
from export.verification import (
    compare_verdicts,
    differences,
    verify_batches,
    verify_runtimes,
    verify_stream_in_openvino,
)


def opened(model: onnx.ModelProto) -> OrtSession:
    return OrtSession(model.SerializeToString(), threads=1)


def int8(model: onnx.ModelProto) -> onnx.ModelProto:
    height, width = (d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[2:])
    return quantize(model, activation_ranges(collect(model, tensors_to_observe(model), [images(8, height, width)])))


def mixing_gate() -> onnx.ModelProto:
    """A gate whose scores are counted from the mean of their batch."""
    model = gate()
    model.graph.node[-1].output[0] = "own"
    model.graph.node.append(helper.make_node("ReduceMean", ["own"], ["mean"], name="mean", axes=[0], keepdims=1))
    model.graph.node.append(helper.make_node("Sub", ["own", "mean"], ["scores"], name="from_mean"))
    return model


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_tiles_that_do_not_depend_on_their_batch_agree_bit_for_bit(precision):
    model = gate() if precision == "fp32" else int8(gate())
    with opened(model) as session:
        agreement = verify_batches(session, images(6, 32, 32))
    assert (agreement.tiles, agreement.max_difference) == (6, 0.0)


def test_a_graph_that_mixes_the_tiles_of_a_batch_is_refused():
    with opened(mixing_gate()) as session, pytest.raises(ExportError, match=r"answers a tile in a full batch by .* mixes tiles"):
        verify_batches(session, images(6, 32, 32))


def test_one_tile_makes_no_batches():
    with opened(gate()) as session, pytest.raises(ExportError, match=r"got 1 tiles .* expected at least 2"):
        verify_batches(session, images(1, 32, 32))


def test_an_engine_does_not_differ_from_itself():
    batches = [tile[None] for tile in images(3, 32, 48)]
    with opened(adding_unet()) as first, opened(adding_unet()) as second:
        parity = differences(first.infer, second.infer, batches)
    assert (parity.max_difference, parity.changed, parity.outliers) == (0.0, 0.0, 0.0)
    assert parity.histogram[0] == sum(parity.histogram) == 3 * 3 * 32 * 48


def test_differences_are_those_of_the_candidate_s_scores():
    """The same session on both sides hands out one buffer: answers are kept before they are overwritten."""
    batches = [tile[None] for tile in images(3, 32, 48)]
    with opened(adding_unet()) as session:
        parity = differences(session.infer, lambda batch: session.infer(batch) + np.float32(0.5), batches)
    assert parity.max_difference == pytest.approx(0.5 / parity.spread, rel=1e-5)
    assert parity.mean_difference == pytest.approx(0.5 / parity.spread, rel=1e-5)
    assert parity.changed == 0.0


def gate_probabilities(tiles: np.ndarray) -> np.ndarray:
    with opened(gate()) as session:
        return 1.0 / (1.0 + np.exp(-session.infer(tiles)[:, 0].astype(np.float64)))


def test_verdicts_between_the_two_thresholds_flip():
    tiles = images(9, 32, 32)
    order = np.argsort(gate_probabilities(tiles))
    ranked = np.sort(gate_probabilities(tiles))
    low, high = (float(ranked[place : place + 2].mean()) for place in (2, 5))
    with opened(gate()) as first, opened(gate()) as second:
        stricter = compare_verdicts(first, second, tiles, "sigmoid", (low, high), allowed=1.0)
        looser = compare_verdicts(first, second, tiles, "sigmoid", (high, low), allowed=1.0)
    assert (stricter.missed, stricter.added, looser.missed, looser.added) == (3, 0, 0, 3)
    assert stricter.flipped == looser.flipped == tuple(sorted(order[3:6].tolist()))


def test_more_flipped_verdicts_than_allowed_are_refused():
    tiles = images(9, 32, 32)
    ranked = np.sort(gate_probabilities(tiles))
    thresholds = (float(ranked[2:4].mean()), float(ranked[5:7].mean()))
    with opened(gate()) as first, opened(gate()) as second:
        assert compare_verdicts(first, second, tiles, "sigmoid", thresholds, allowed=3 / 9).missed == 3
        with pytest.raises(ExportError, match=r"3 of 9 tiles are judged otherwise .* \(3 of them called clean\)"):
            compare_verdicts(first, second, tiles, "sigmoid", thresholds, allowed=2 / 9)


def three_kinds(biases: tuple[float, float, float]) -> onnx.ModelProto:
    """A classifier of three logits: the mean of the tile, (x - 128) / 64, and its negative, against nothing."""
    b = EngineBuilder()
    mean = b.node("ReduceMean", [b.image()], "mean", axes=[2, 3], keepdims=0)
    logits = b.node("MatMul", [mean, b.constant("signs", np.array([[0.0, 1.0, -1.0]], np.float32))], "kinds")
    b.node("Add", [logits, b.constant("biases", np.array([biases], np.float32))], "biased", "scores")
    return b.model(32, 32, ["n", 3])


def test_without_thresholds_the_most_probable_of_several_classes_decides():
    greys = np.array([10, 100, 128, 150, 200], np.uint8)
    tiles = np.broadcast_to(greys[:, None, None, None], (5, 1, 32, 32)).copy()
    with opened(three_kinds((0.5, 0.0, 0.0))) as first, opened(three_kinds((0.0, 0.0, 3.0))) as second:
        comparison = compare_verdicts(first, second, tiles, "softmax", allowed=1.0)
    assert comparison.flipped == (1, 2, 3, 4)  # 10 is of kind 2 for both; 100, 128 and 150 were clean, 200 of kind 1
    assert (comparison.missed, comparison.added, comparison.renamed) == (0, 3, 1)


@pytest.fixture
def openvino() -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    require_whole_integer_products()


@pytest.mark.usefixtures("openvino")
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_both_runtimes_give_the_same_scores(precision):
    model = concatenating_unet() if precision == "fp32" else int8(concatenating_unet())
    batches = [tile[None] for tile in images(4, 32, 48, seed=3)]
    agreement = verify_runtimes(model.SerializeToString(), batches, precision=precision, threads=1)
    assert agreement.skipped is None
    assert agreement.parity.mean_difference < 1e-5
    assert agreement.parity.outliers <= 0.001


@pytest.mark.usefixtures("openvino")
def test_a_file_that_openvino_misreads_is_refused(monkeypatch):
    monkeypatch.setattr("edge.sessions.ov.rewrite_for_openvino", lambda model: model)
    batches = [tile[None] for tile in images(4, 32, 48, seed=3)]
    with pytest.raises(ExportError, match="OpenVINO answers otherwise than ONNX Runtime"):
        verify_runtimes(int8(concatenating_unet()).SerializeToString(), batches, precision="int8", threads=1)


def test_without_openvino_the_comparison_says_why_it_was_left_out(monkeypatch):
    monkeypatch.delitem(sys.modules, "edge.sessions.ov", raising=False)
    monkeypatch.setitem(sys.modules, "openvino", None)
    agreement = verify_runtimes(gate().SerializeToString(), [images(1, 32, 32)])
    assert agreement.parity is None
    assert "install rust-edge[openvino]" in agreement.skipped


@pytest.mark.usefixtures("openvino")
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_stream_gives_in_openvino_the_bits_of_one_inference(precision):
    model = to_onnx(trained_unet(), 96, 96)
    if precision == "int8":
        batches = [steel_image(seed)[0][None, None] for seed in range(6)]
        model = quantize(model, activation_ranges(collect(model, tensors_to_observe(model), batches)))
    streamed = stream(model)
    strip = reflect(mosaic([steel_image(seed)[0] for seed in range(4)], 96, 4), 112, 16)
    streaming = Streaming(lag_lines=streamed.lag_lines, states=streamed.states)
    whole = with_input_size(model, "height", "width").SerializeToString()
    content = streamed.model.SerializeToString()
    assert verify_stream_in_openvino(whole, content, streaming, 112, strip, threads=1).parity.max_difference == 0.0
    late = Streaming(lag_lines=streamed.lag_lines + 1, states=streamed.states)
    with pytest.raises(ExportError, match="must not be streamed"):
        verify_stream_in_openvino(whole, content, late, 112, strip, threads=1)
