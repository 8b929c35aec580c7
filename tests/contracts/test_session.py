"""What everything that calls itself a session has to do; one more implementation is one more parameter."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from processor import require_whole_integer_products
from small_networks import adding_unet, gate, images
from tensorrt_sessions import EVERY_VERSION, a_device, bundle_around, open_stream, open_tiles

from calibration.activations import activation_ranges, collect
from edge.errors import SessionError
from edge.manifest import Streaming
from edge.sessions import Session, StreamingSession
from edge.sessions.ort import OrtSession, OrtStreamingSession
from edge.sessions.shared import SharedSession
from export.passes.streaming import StreamedModel, stream
from export.quantize import quantize, tensors_to_observe


def open_ov(model: onnx.ModelProto, folder: Path) -> Session:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    from edge.sessions.ov import OvSession

    return OvSession(model.SerializeToString(), threads=2)


def open_ov_stream(engine: StreamedModel, width: int, lines: int, folder: Path) -> StreamingSession:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    require_whole_integer_products()
    from edge.sessions.ov import OvStreamingSession

    return OvStreamingSession(engine.model.SerializeToString(), streaming_of(engine), width, lines, threads=2)


def open_ort_stream(engine: StreamedModel, width: int, lines: int, folder: Path) -> StreamingSession:
    return OrtStreamingSession(engine.model.SerializeToString(), streaming_of(engine), width, lines, threads=2)


def open_trt(version: str, model: onnx.ModelProto, folder: Path) -> Session:
    return open_tiles(version, bundle_around(folder / "tiles", model), a_device(version))


def open_trt_stream(version: str, engine: StreamedModel, width: int, lines: int, folder: Path) -> StreamingSession:
    bundle = bundle_around(folder / "stream", adding_unet(), engine)
    return open_stream(version, bundle, a_device(version), width, lines)


def streaming_of(engine: StreamedModel) -> Streaming:
    return Streaming(lag_lines=engine.lag_lines, states=engine.states)


SESSIONS: dict[str, Callable[[onnx.ModelProto, Path], Session]] = {
    "ort": lambda model, folder: OrtSession(model.SerializeToString(), threads=2),
    "openvino": open_ov,
    "shared": lambda model, folder: SharedSession(OrtSession(model.SerializeToString(), threads=2)),
    **{f"tensorrt {version}": functools.partial(open_trt, version) for version in EVERY_VERSION},
}
STREAMING_SESSIONS: dict[str, Callable[[StreamedModel, int, int, Path], StreamingSession]] = {
    "ort": open_ort_stream,
    "openvino": open_ov_stream,
    **{f"tensorrt {version}": functools.partial(open_trt_stream, version) for version in EVERY_VERSION},
}


def with_precision(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    if precision == "fp32":
        return model
    height, width = (d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[2:])
    return quantize(model, activation_ranges(collect(model, tensors_to_observe(model), [images(8, height, width)])))


@pytest.fixture(params=["fp32", "int8"])
def precision(request) -> str:
    return request.param


@pytest.fixture(params=SESSIONS)
def segmenter(request, precision, tmp_path) -> Session:
    with SESSIONS[request.param](with_precision(adding_unet(), precision), tmp_path) as session:
        yield session


@pytest.fixture(params=SESSIONS)
def classifier(request, precision, tmp_path) -> Session:
    with SESSIONS[request.param](with_precision(gate(), precision), tmp_path) as session:
        yield session


@pytest.fixture(params=STREAMING_SESSIONS)
def streaming(request, precision, tmp_path) -> tuple[StreamingSession, StreamedModel, Callable[[], Session]]:
    model = with_precision(adding_unet(), precision)
    engine = stream(model)
    with STREAMING_SESSIONS[request.param](engine, 48, 16, tmp_path) as session:
        yield session, engine, lambda: SESSIONS[request.param](model, tmp_path)


def test_a_session_has_the_protocol_s_members_and_names_its_backend(segmenter):
    assert isinstance(segmenter, Session)
    assert segmenter.backend in {name.split()[0] for name in SESSIONS} - {"shared"}


def test_a_segmenter_gives_a_float32_score_for_every_class_and_pixel(segmenter):
    scores = segmenter.infer(images(3, 32, 48))
    assert (scores.dtype, scores.shape) == (np.float32, (3, 3, 32, 48))


def test_a_classifier_gives_a_float32_score_for_every_tile(classifier):
    scores = classifier.infer(images(5, 32, 32))
    assert (scores.dtype, scores.shape) == (np.float32, (5, 1))


BATCH_SIZES = (1, 2, 3, 4, 5, 8, 9, 16, 21)
"""Sizes that kernels and sessions like to treat apart, and some between them."""


def test_rows_of_a_segmenter_s_batch_do_not_depend_on_the_others(segmenter):
    check_rows(segmenter, images(21, 32, 48))


def test_rows_of_a_classifier_s_batch_do_not_depend_on_the_others(classifier):
    check_rows(classifier, images(21, 32, 32))


def check_rows(session: Session, tiles: np.ndarray) -> None:
    alone = np.concatenate([session.infer(tile[None]).copy() for tile in tiles])
    for size in BATCH_SIZES:
        np.testing.assert_array_equal(session.infer(tiles[:size]), alone[:size])
        np.testing.assert_array_equal(session.infer(tiles[21 - size :]), alone[21 - size :])


def test_the_batch_is_left_as_it_is_and_may_be_a_view(classifier):
    wide = images(4, 64, 96)
    before = wide.copy()
    view = wide[::2, :, 16:48, 32:64]
    wanted = classifier.infer(view.copy()).copy()
    np.testing.assert_array_equal(classifier.infer(view), wanted)
    np.testing.assert_array_equal(wide, before)


def test_what_does_not_fit_raises_a_session_error_and_leaves_the_session_usable(classifier):
    wanted = classifier.infer(images(2, 32, 32)).copy()
    with pytest.raises(SessionError):
        classifier.infer(np.zeros((2, 2, 32, 32), np.uint8))
    np.testing.assert_array_equal(classifier.infer(images(2, 32, 32)), wanted)


def test_a_streaming_session_tells_chunk_and_lag(streaming):
    session, engine, _ = streaming
    assert isinstance(session, StreamingSession)
    assert (session.chunk_lines, session.lag_lines) == (16, engine.lag_lines)


def test_row_0_of_a_step_is_the_strip_row_that_the_lag_says(streaming):
    session, engine, open_whole = streaming
    strip, reach = images(1, 96, 48, seed=4), engine.reach_lines
    with open_whole() as whole:
        wanted = whole.infer(strip)
        compared = 0
        for k in range(6):
            scores = session.step(strip[:, :, 16 * k : 16 * (k + 1)])
            assert (scores.dtype, scores.shape) == (np.float32, (1, 3, 16, 48))
            for row, line in enumerate(range(16 * k - session.lag_lines, 16 * (k + 1) - session.lag_lines)):
                if reach <= line < 96 - reach:
                    np.testing.assert_array_equal(scores[:, :, row], wanted[:, :, line])
                    compared += 1
    assert compared > 16


def test_after_reset_a_stream_starts_anew(streaming):
    session, _, _ = streaming
    strip = images(1, 48, 48, seed=5)
    chunks = [strip[:, :, line : line + 16] for line in (0, 16, 32)]
    first = [session.step(chunk).copy() for chunk in chunks]
    session.reset()
    for chunk, wanted in zip(chunks, first, strict=True):
        np.testing.assert_array_equal(session.step(chunk), wanted)
