from __future__ import annotations

import numpy as np
import pytest
import torch
from small_checkpoints import steel_image, trained_unet

from edge.manifest import Streaming
from edge.sessions.ort import OrtSession, OrtStreamingSession
from export.errors import ExportError
from export.parity import compare_scores, verify_float, verify_stream
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
    assert (parity.changed, parity.spread) == (0.0, 4.0)


def test_labels_that_change_are_counted_also_for_a_gate() -> None:
    assert compare_scores([np.array([[1.0], [-1.0]])], [np.array([[1.0], [1.0]])]).changed == 0.5


def test_a_nan_anywhere_is_the_largest_difference() -> None:
    scores = np.ones((1, 2, 2, 2), np.float32)
    broken = scores.copy()
    broken[0, 0, 0, 0] = np.nan
    assert np.isnan(compare_scores([scores, scores], [broken, scores]).max_difference)


def test_scores_of_another_shape_are_no_answer() -> None:
    with pytest.raises(ExportError, match="expected the same shape"):
        compare_scores([np.zeros((1, 2, 4, 4))], [np.zeros((1, 3, 4, 4))])


def test_the_exported_graph_answers_as_torch_and_another_network_does_not() -> None:
    model = to_onnx(trained_unet(), 96, 96)
    batches = [steel_image(seed)[0][None, None] for seed in range(3)]
    with OrtSession(model.SerializeToString(), threads=1) as session:
        assert verify_float(trained_unet(), session, batches).max_difference < 1e-5
        other = torch.nn.Sequential(trained_unet(), torch.nn.LeakyReLU(0.99))
        with pytest.raises(ExportError, match="differs from the network by"):
            verify_float(other, session, batches)


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
