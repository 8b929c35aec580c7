"""How the rows that a stream keeps are joined to new ones: without transposing in ONNX Runtime, without copying in OpenVINO."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from processor import require_whole_integer_products
from small_networks import adding_unet, concatenating_unet, images

from calibration.activations import activation_ranges, collect
from edge.manifest import Streaming
from edge.sessions.ort_rewrite import rewrite_for_cpu
from edge.sessions.ort_rows import states_with_channels_last
from edge.sessions.ov_rewrite import rewrite_for_openvino
from edge.sessions.ov_rows import join_rows_in_place
from export.passes.streaming import StreamedModel, stream
from export.quantize import quantize, tensors_to_observe

NETWORKS = {"adding": adding_unet, "concatenating": concatenating_unet}


@cache
def streamed(name: str) -> StreamedModel:
    model = NETWORKS[name]()
    return stream(quantize(model, activation_ranges(collect(model, tensors_to_observe(model), [images(8, 32, 48)]))))


@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_runtime_transposes_fewer_tensors_than_there_are_states(name: str, tmp_path: Path) -> None:
    engine = streamed(name)
    rewritten = rewrite_for_cpu(engine.model)
    onnx.checker.check_model(rewritten)
    options = ort.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimized.onnx"), 3
    session = ort.InferenceSession(rewritten.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("Transpose") < len(engine.states) < kinds.count("Concat") + kinds.count("Slice")
    last = states_with_channels_last(session.get_modelmeta().custom_metadata_map)
    assert last == {state.input for state in engine.states if state.dtype == "int8"}
    shapes = {given.name: given.shape for given in session.get_inputs()}
    for state in engine.states:
        if state.input in last:
            assert (shapes[state.input][1], shapes[state.input][3]) == (state.rows, state.channels)


def test_a_float_stream_keeps_its_states_in_planes() -> None:
    engine = stream(adding_unet())
    rewritten = rewrite_for_cpu(engine.model)
    assert not [entry for entry in rewritten.metadata_props if "channels-last" in entry.key]
    assert join_rows_in_place(engine.model, engine.states, 64) is engine.model


def run_in_openvino(engine: StreamedModel, chunk_lines: int, strip: np.ndarray) -> np.ndarray:
    from edge.sessions.ov import OvStreamingSession

    manifest = Streaming(lag_lines=engine.lag_lines, states=engine.states)
    with OvStreamingSession(engine.model.SerializeToString(), manifest, strip.shape[3], chunk_lines, 1) as session:
        chunks = range(0, strip.shape[2], chunk_lines)
        return np.concatenate([session.step(strip[:, :, line : line + chunk_lines]).copy() for line in chunks], axis=2)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("chunk_lines", [4, 8, 16, 64])
def test_openvino_s_stream_has_the_same_bits_with_rows_joined_in_place(
    name: str, chunk_lines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of 4 and 8 lines bring no more rows than some states hold, which stay as they are."""
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    require_whole_integer_products()
    from edge.sessions import ov

    engine, strip = streamed(name), images(1, 192, 48, seed=6)
    joined = run_in_openvino(engine, chunk_lines, strip)
    monkeypatch.setattr(ov, "join_rows_in_place", lambda model, states, lines: model)
    np.testing.assert_array_equal(joined, run_in_openvino(engine, chunk_lines, strip))


def test_a_state_that_is_as_high_as_a_step_is_joined_as_the_file_has_it() -> None:
    """OpenVINO 2026.4 gives wrong rows where one tensor is joined in place and kept whole."""
    engine = streamed("adding")
    rewritten = rewrite_for_openvino(engine.model)
    flat = {}
    for lines in (8, 16):
        inputs = join_rows_in_place(rewritten, engine.states, lines).graph.input
        flat[lines] = {given.name for given in inputs if len(given.type.tensor_type.shape.dim) == 3}
    as_high = {state.input for state in engine.states if state.rows == 8 // state.stride and state.channels > 1}
    assert as_high
    assert not flat[8] & as_high
    assert flat[16] > flat[8]
