"""Whole segmenters, streamed: the rows of one inference over the strip, in every runtime, float and INT8."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import onnx
import pytest
from dense_networks import narrow
from small_networks import images
from tensorrt_builder import build

from calibration.activations import activation_ranges, collect
from edge.manifest import Streaming
from edge.sessions import Session, StreamingSession
from edge.sessions.ort import OrtSession, OrtStreamingSession
from export.passes.streaming import StreamedModel, StreamRefused, stream
from export.quantize import quantize, tensors_to_observe

WIDTH, CHUNK = 64, 32
FLOAT_TOLERANCE = 1e-6
"""Of the scores' spread: float kernels sum in an order of their own for every height."""

Sessions = tuple[
    Callable[[onnx.ModelProto], AbstractContextManager[Session]],
    Callable[[StreamedModel], AbstractContextManager[StreamingSession]],
]


def streaming(engine: StreamedModel) -> Streaming:
    return Streaming(lag_lines=engine.lag_lines, states=engine.states)


def onnx_runtime() -> Sessions:
    return (
        lambda model: OrtSession(model.SerializeToString(), 1),
        lambda engine: OrtStreamingSession(engine.model.SerializeToString(), streaming(engine), WIDTH, CHUNK, 1),
    )


def openvino() -> Sessions:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    from edge.sessions.ov import OvSession, OvStreamingSession

    return (
        lambda model: OvSession(model.SerializeToString(), 1),
        lambda engine: OvStreamingSession(engine.model.SerializeToString(), streaming(engine), WIDTH, CHUNK, 1),
    )


def int8(model: onnx.ModelProto) -> onnx.ModelProto:
    height, width = (d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[2:])
    return quantize(model, activation_ranges(collect(model, tensors_to_observe(model), [images(2, height, width)], 1)))


def rows(session: StreamingSession, strip: np.ndarray) -> np.ndarray:
    """Scores of the strip's rows; what lies before and beyond it is black."""
    lines = strip.shape[2]
    after = -(-(lines + session.lag_lines) // CHUNK) * CHUNK - lines
    fed = np.pad(strip, ((0, 0), (0, 0), (0, after), (0, 0)))
    steps = [session.step(np.ascontiguousarray(fed[:, :, line : line + CHUNK])).copy() for line in range(0, lines + after, CHUNK)]
    return np.concatenate(steps, axis=2)[:, :, session.lag_lines : session.lag_lines + lines]


@pytest.fixture(scope="module", params=["residual", "bottleneck", "plain", "nested"])
def network(request) -> str:
    return request.param


@pytest.fixture(scope="module", params=["fp32", "int8"])
def engine(request, network) -> tuple[onnx.ModelProto, StreamedModel, float]:
    model = narrow(network) if request.param == "fp32" else int8(narrow(network))
    return model, stream(model), FLOAT_TOLERANCE if request.param == "fp32" else 0.0


@pytest.mark.parametrize("runtime", [onnx_runtime, openvino])
def test_streamed_rows_are_those_of_one_inference_over_the_strip(engine, runtime):
    model, streamed, tolerance = engine
    open_whole, open_stream = runtime()
    reach = streamed.reach_lines
    strip = images(1, 2 * reach // CHUNK * CHUNK + 3 * CHUNK, WIDTH, seed=3)
    with open_whole(model) as session:
        wanted = session.infer(strip).copy()
    with open_stream(streamed) as session:
        got = rows(session, strip)
    inside = slice(reach, strip.shape[2] - reach)
    np.testing.assert_allclose(got[:, :, inside], wanted[:, :, inside], rtol=0, atol=tolerance * np.ptp(wanted))


def test_tensorrt_parses_and_builds_the_streaming_engine(engine):
    build(engine[1].model)


def test_the_state_of_a_quantized_network_is_integers(engine):
    model, streamed, _ = engine
    quantized = any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    assert {state.dtype for state in streamed.states} == {"int8" if quantized else "float32"}


def test_squeeze_and_excitation_is_refused_with_the_name_of_what_pools():
    with pytest.raises(
        StreamRefused, match=r"GlobalAveragePool 'excite.0/GlobalAveragePool' .* looks at all rows at once"
    ) as caught:
        stream(narrow("squeezed"))
    assert caught.value.node == "excite.0/GlobalAveragePool"


def test_lag_and_state_of_the_networks():
    """The plain one by hand: two 3x3 convolutions a level add 2, 2x2 pooling halves upwards, upsampling doubles.

    2; (2 / 2) + 2 = 3; ceil(3 / 2) + 2 = 4; 4 / 2 + 2 = 4 at strides 1, 2, 4, 8; then 2 * 4 + 2 = 10; 22; 46.
    """
    figures = {}
    for name in ("residual", "bottleneck", "plain", "nested"):
        streamed = stream(narrow(name))
        figures[name] = streamed.stride, streamed.lag_lines
    # the nest's longest way is the plain one's
    assert figures == {"residual": (16, 47), "bottleneck": (16, 62), "plain": (8, 46), "nested": (8, 46)}
