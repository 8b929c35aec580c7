from __future__ import annotations

import numpy as np
import pytest
import torch
from small_checkpoints import steel_image, trained_unet

from edge.manifest import Streaming
from edge.sessions import Batch, Scores
from edge.sessions.ort import OrtSession, OrtStreamingSession
from export.errors import ExportError
from export.parity import HISTOGRAM_EDGES, compare_scores, labels_of, verify_float, verify_stream
from export.passes.streaming import StreamedModel, stream
from export.samples import mosaic, reflect
from export.to_onnx import to_onnx, with_input_size

HALO = 112


def test_differences_are_shares_of_the_references_spread() -> None:
    reference = np.array([[[[0.0, 4.0]], [[2.0, 0.0]]]], np.float32)
    candidate = reference + np.array([[[[0.0, 0.4]], [[0.0, 0.0]]]], np.float32)
    parity = compare_scores([reference], [candidate])
    assert parity.max_difference == pytest.approx(0.1)
    assert parity.mean_difference == pytest.approx(0.025)
    assert (parity.changed, parity.spread, parity.labels) == (0.0, 4.0, 2)


def test_every_score_is_counted_between_two_edges_of_the_histogram() -> None:
    reference = np.array([[0.0, 1.0, 0.0, 0.0, 0.0]], np.float32)
    candidate = reference + np.array([[0.0, 2e-5, 5e-3, 0.02, 7.0]], np.float32)
    parity = compare_scores([reference], [candidate])
    counted = {HISTOGRAM_EDGES[index]: count for index, count in enumerate(parity.histogram) if count}
    assert counted == {0.0: 1, 1e-5: 1, 3e-3: 1, 1e-2: 1, 1.0: 1}
    assert parity.outliers == pytest.approx(2 / 5)


def test_masks_that_agree_but_for_a_pixel_are_so_by_class() -> None:
    """Class 1 holds 4 pixels of one mask and 3 of the other, background 12 and 13; nobody has class 2."""
    reference = np.zeros((1, 3, 4, 4), np.float32)
    reference[0, 1, 0] = 1.0
    candidate = reference.copy()
    candidate[0, 1, 0, 0] = -1.0
    reference[0, 2] = candidate[0, 2] = -5.0
    parity = compare_scores([reference], [candidate])
    assert parity.agreement[:2] == (12 / 13, 3 / 4)
    assert np.isnan(parity.agreement[2])
    assert parity.mean_agreement == pytest.approx((12 / 13 + 3 / 4) / 2)
    assert parity.changed == 1 / 16


def test_labels_that_change_are_counted_also_for_a_gate() -> None:
    assert compare_scores([np.array([[1.0], [-1.0]])], [np.array([[1.0], [1.0]])]).changed == 0.5


def test_a_sigmoid_s_label_is_the_background_s_below_the_level() -> None:
    scores = np.array([[-0.1, -3.0], [0.1, -3.0], [0.1, 0.2], [2.0, -3.0]], np.float32)
    assert labels_of(scores, "sigmoid").tolist() == [0, 1, 2, 1]
    assert labels_of(scores, "sigmoid", level=0.6).tolist() == [0, 0, 0, 1]
    assert labels_of(scores, "softmax").tolist() == [0, 0, 1, 0]


def test_labels_of_maps_lie_where_their_pixels_are() -> None:
    scores = np.zeros((2, 3, 2, 2), np.float32)
    scores[0, 1, 0, 1] = scores[1, 2, 1, 0] = 1.0
    assert labels_of(scores, "softmax").tolist() == [[[0, 1], [0, 0]], [[0, 0], [2, 0]]]


def test_a_nan_anywhere_is_the_largest_difference() -> None:
    scores = np.ones((1, 2, 2, 2), np.float32)
    broken = scores.copy()
    broken[0, 0, 0, 0] = np.nan
    parity = compare_scores([scores, scores], [broken, scores])
    assert np.isnan(parity.max_difference)
    assert parity.outliers == 1 / 16


def test_scores_of_another_shape_are_no_answer() -> None:
    with pytest.raises(ExportError, match="expected the same shape"):
        compare_scores([np.zeros((1, 2, 4, 4))], [np.zeros((1, 3, 4, 4))])


def test_no_tiles_at_all_are_no_comparison() -> None:
    with pytest.raises(ExportError, match="expected at least one tile"):
        compare_scores([], [])


def by_torch(network: torch.nn.Module, batch: Batch) -> Scores:
    with torch.inference_mode():
        return network(torch.from_numpy(batch)).numpy()


def test_the_exported_graph_answers_as_torch_and_another_network_does_not() -> None:
    model = to_onnx(trained_unet(), 96, 96)
    batches = [steel_image(seed)[0][None, None] for seed in range(3)]
    with OrtSession(model.SerializeToString(), threads=1) as session:
        assert verify_float(lambda batch: by_torch(trained_unet(), batch), session, batches).max_difference < 1e-5
        with pytest.raises(ExportError, match="differs from the network by"):
            verify_float(lambda batch: 0.999 * by_torch(trained_unet(), batch), session, batches)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_a_source_that_answers_probabilities_is_compared_with_those_of_the_engine(activation) -> None:
    model = to_onnx(trained_unet(), 96, 96)
    batches = [steel_image(seed)[0][None, None] for seed in range(3)]

    def reference(batch: Batch) -> Scores:
        logits = torch.from_numpy(by_torch(trained_unet(), batch))
        return (logits.softmax(1) if activation == "softmax" else logits.sigmoid()).numpy()

    with OrtSession(model.SerializeToString(), threads=1) as session:
        parity = verify_float(reference, session, batches, activation, "probabilities")
        assert parity.max_difference < 1e-5
        assert parity.changed == 0.0
        with pytest.raises(ExportError, match="differs from the network by"):
            verify_float(reference, session, batches, activation)


def streamed_unet() -> tuple[OrtSession, StreamedModel, np.ndarray]:
    model = with_input_size(to_onnx(trained_unet(), 96, 96), "height", "width")
    strip = reflect(mosaic([steel_image(seed)[0] for seed in range(4)], 96, 4), HALO, 16)
    return OrtSession(model.SerializeToString(), threads=1), stream(model), strip


def test_the_streaming_graph_answers_as_one_inference_over_the_strip() -> None:
    session, streamed, strip = streamed_unet()
    streaming = Streaming(lag_lines=streamed.lag_lines, states=streamed.states)
    content = streamed.model.SerializeToString()

    def opened(width: int, lines: int) -> OrtStreamingSession:
        return OrtStreamingSession(content, streaming, width, lines, threads=1)

    assert verify_stream(opened, session, streaming, HALO, strip).max_difference < 1e-5


def test_a_stream_that_trails_otherwise_than_stated_is_refused() -> None:
    session, streamed, strip = streamed_unet()
    wrong = Streaming(lag_lines=streamed.lag_lines + 1, states=streamed.states)
    content = streamed.model.SerializeToString()
    with pytest.raises(ExportError, match="must not be streamed"):
        verify_stream(lambda width, lines: OrtStreamingSession(content, wrong, width, lines), session, wrong, HALO, strip)
