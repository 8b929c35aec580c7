from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from small_networks import adding_unet, concatenating_unet, gate, images

from calibration.activations import ActivationRange, activation_ranges, collect
from edge.errors import SessionError
from edge.manifest import Streaming, StreamState
from edge.sessions.ort import OrtSession, OrtStreamingSession
from edge.sessions.ort_rewrite import rest_values, rewrite_for_cpu
from export.passes.streaming import StreamedModel, stream
from export.quantize import quantize, tensors_to_observe

NETWORKS = {"adding": adding_unet, "concatenating": concatenating_unet, "gate": gate}


def size_of(model: onnx.ModelProto) -> tuple[int, int]:
    height, width = (d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[2:])
    return height, width


def ranges_of(model: onnx.ModelProto) -> dict[str, ActivationRange]:
    return activation_ranges(collect(model, tensors_to_observe(model), [images(8, *size_of(model))]))


def int8(model: onnx.ModelProto) -> onnx.ModelProto:
    return quantize(model, ranges_of(model))


@pytest.fixture(scope="module", params=NETWORKS)
def float_model(request) -> onnx.ModelProto:
    return NETWORKS[request.param]()


def as_written(model: onnx.ModelProto, feeds: dict[str, np.ndarray], outputs: list[str]) -> list[np.ndarray]:
    """What a model's nodes say, one by one, without ONNX Runtime's fusions."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options).run(outputs, feeds)


def with_outputs(model: onnx.ModelProto, names: list[str], elem_type: int) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    copied.graph.output.extend(helper.make_tensor_value_info(name, elem_type, None) for name in names)
    return copied


def integer_tensors(model: onnx.ModelProto, tiles: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By name of an int8 tensor: its values in the file as written, and in the rewritten one with its zero point taken off."""
    rewritten = rewrite_for_cpu(model)
    made = {name for node in rewritten.graph.node for name in node.output}
    names = [n.output[0] for n in model.graph.node if n.op_type == "QuantizeLinear" and n.output[0] in made]
    written = as_written(with_outputs(model, names, TensorProto.INT8), {"image": tiles}, names)
    kernels = as_written(with_outputs(rewritten, names, TensorProto.UINT8), {"image": tiles}, names)
    zero_points = {name: zero_point_in(rewritten, name) for name in names}
    return {
        name: (before.astype(int), after.astype(int) - zero_points[name])
        for name, before, after in zip(names, written, kernels, strict=True)
    }


def zero_point_in(rewritten: onnx.ModelProto, tensor: str) -> int:
    """Zero point that the first operator that asks for one reads a uint8 tensor with, through those that only move it."""
    values = {i.name: numpy_helper.to_array(i) for i in rewritten.graph.initializer}
    for node in rewritten.graph.node:
        if tensor in node.input:
            position = list(node.input).index(tensor)
            if node.op_type in ("QLinearConv", "QLinearAdd", "DequantizeLinear"):
                return int(values[node.input[position + 2]])
            return zero_point_in(rewritten, node.output[0])
    raise AssertionError(f"nothing reads {tensor}")


def test_rewritten_integers_are_those_of_the_file(float_model):
    """Float sums of the file as written round otherwise than exact integer sums: a value near a half may move by one step."""
    tensors = integer_tensors(int8(float_model), images(4, *size_of(float_model), seed=5))
    assert len(tensors) >= 4
    for name, (written, rewritten) in tensors.items():
        assert np.abs(written - rewritten).max() <= 1, name
        assert np.mean(written != rewritten) < 1e-3, name


def test_rewritten_integers_saturate_where_int8_does(float_model):
    """Ranges of a quarter of what occurs: values beyond 127 steps, which uint8 could hold, are cut as the file says."""
    narrow = {name: ActivationRange(r.limit / 4, r.non_negative) for name, r in ranges_of(float_model).items()}
    tensors = integer_tensors(quantize(float_model, narrow), images(4, *size_of(float_model), seed=5))
    saturated = 0
    for name, (written, rewritten) in tensors.items():
        assert np.mean(np.abs(written - rewritten) > 1) == 0, name
        saturated += int(np.count_nonzero(written == 127))
    assert saturated > 1000


def test_a_tensor_with_negative_values_keeps_them():
    tensors = integer_tensors(int8(concatenating_unet()), images(2, 32, 48))
    written, rewritten = tensors["signed_out/int8"]
    assert written.min() < -50
    assert np.abs(written - rewritten).max() <= 1


def test_scores_are_those_of_the_file_without_fusions(float_model):
    model, tiles = int8(float_model), images(6, *size_of(float_model), seed=8)
    wanted = as_written(model, {"image": tiles}, ["scores"])[0]
    with OrtSession(model.SerializeToString(), 1) as session:
        got = session.infer(tiles)
    assert np.abs(got - wanted).max() < 0.02 * wanted.std()
    assert np.mean(np.abs(got - wanted) > 1e-4 * wanted.std()) < 0.02


def test_nothing_is_dequantized_but_the_logits(float_model):
    kinds = [node.op_type for node in rewrite_for_cpu(int8(float_model)).graph.node]
    assert kinds.count("DequantizeLinear") == 1
    assert not {"QuantizeLinear", "Cast", "Relu", "Add"}.intersection(kinds)


def test_all_convolutions_but_a_gate_s_head_run_on_integers(float_model, tmp_path):
    optimized = tmp_path / "optimized.onnx"
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(optimized)
    options.log_severity_level = 3
    ort.InferenceSession(rewrite_for_cpu(int8(float_model)).SerializeToString(), options)
    kinds = [node.op_type for node in onnx.load(optimized).graph.node]
    convolutions = sum(node.op_type == "Conv" for node in float_model.graph.node)
    floats = sum(node.op_type == "ReduceMax" for node in float_model.graph.node)
    assert kinds.count("QLinearConv") == convolutions - floats
    assert sum(kind in ("Conv", "FusedConv") for kind in kinds) == floats
    assert kinds.count("QuantizeLinear") == 0
    assert kinds.count("DequantizeLinear") == 1


def test_the_rewrite_leaves_the_model_given_as_it_is(float_model):
    model = int8(float_model)
    before = model.SerializeToString()
    rewrite_for_cpu(model)
    assert model.SerializeToString() == before


class _Tiles(CalibrationDataReader):
    def __init__(self, tiles: np.ndarray) -> None:
        self._tiles = iter(tiles)

    def get_next(self) -> dict[str, np.ndarray] | None:
        tile = next(self._tiles, None)
        return None if tile is None else {"image": tile[None]}


@pytest.fixture(scope="module")
def foreign(tmp_path_factory) -> onnx.ModelProto:
    """A Q/DQ file that ONNX Runtime's own tool wrote: float biases, no Q between a convolution and what follows."""
    folder = tmp_path_factory.mktemp("foreign")
    onnx.save(concatenating_unet(), folder / "float.onnx")
    quantize_static(
        folder / "float.onnx",
        folder / "int8.onnx",
        _Tiles(images(8, 32, 48)),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=["Conv", "MaxPool", "Concat", "Resize"],
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": ["Conv"],
        },
    )
    return onnx.load(folder / "int8.onnx")


def test_a_foreign_file_gets_the_qs_that_its_convolutions_miss(foreign):
    rewritten = rewrite_for_cpu(foreign)
    assert sum(node.op_type == "QLinearConv" for node in rewritten.graph.node) == 5
    tiles = images(4, 32, 48, seed=3)
    wanted = as_written(foreign, {"image": tiles}, ["scores"])[0]
    with OrtSession(foreign.SerializeToString(), 1) as session:
        got = session.infer(tiles)
    assert np.abs(got - wanted).mean() < 0.01 * wanted.std()


def test_integers_in_an_unknown_operator_leave_the_file_as_it_is():
    model = int8(gate())
    position = next(i for i, n in enumerate(model.graph.node) if n.op_type == "DequantizeLinear" and "first_relu" in n.input[0])
    reads = model.graph.node[position]
    model.graph.node.insert(position, helper.make_node("Abs", [reads.input[0]], ["absolute"], name="absolute"))
    reads.input[0] = "absolute"
    rewritten = rewrite_for_cpu(model)
    assert [n.op_type for n in rewritten.graph.node] == [n.op_type for n in model.graph.node]
    tiles = images(2, 32, 32)
    with OrtSession(model.SerializeToString(), 1) as session:
        np.testing.assert_allclose(session.infer(tiles), as_written(model, {"image": tiles}, ["scores"])[0], atol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_one_file_serves_any_height_and_width(precision):
    model = adding_unet(32, 48)
    whole = images(1, 64, 80, seed=4)
    with OrtSession((model if precision == "fp32" else int8(model)).SerializeToString(), 1) as session:
        assert session.infer(whole).shape == (1, 3, 64, 80)
        middle = session.infer(whole)[:, :, 24:40, 24:56].copy()
        crop = session.infer(np.ascontiguousarray(whole[:, :, 8:56, 8:72]))[:, :, 16:32, 16:48]
        np.testing.assert_array_equal(middle, crop)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_scores_of_a_tile_do_not_depend_on_its_batch_bit_for_bit(float_model, precision, threads):
    model = float_model if precision == "fp32" else int8(float_model)
    tiles = images(9, *size_of(float_model), seed=6)
    with OrtSession(model.SerializeToString(), 1) as alone:
        wanted = np.concatenate([alone.infer(tile[None]).copy() for tile in tiles])
    with OrtSession(model.SerializeToString(), threads) as session:
        for size in range(1, 10):
            batches = [session.infer(tiles[start : start + size]).copy() for start in range(0, 9, size)]
            np.testing.assert_array_equal(np.concatenate(batches), wanted)


def test_a_larger_batch_after_a_smaller_one_gets_a_buffer_of_its_own():
    with OrtSession(gate().SerializeToString(), 1) as session:
        one = session.infer(images(1, 32, 32))
        kept = one.copy()
        assert session.infer(images(5, 32, 32, seed=2)).shape == (5, 1)
        np.testing.assert_array_equal(one, kept)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SessionError, match=r"nowhere.onnx: cannot be read: No such file or directory"):
        OrtSession(tmp_path / "nowhere.onnx")


def test_a_broken_file_is_named(tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(gate().SerializeToString()[:500])
    with pytest.raises(SessionError, match=r"broken.onnx: ONNX Runtime cannot load it: .+; export the bundle again"):
        OrtSession(path)


def test_an_empty_file_is_refused(tmp_path):
    path = tmp_path / "empty.onnx"
    path.touch()
    with pytest.raises(SessionError, match=r"empty.onnx: ONNX Runtime cannot load it"):
        OrtSession(path)


def test_an_engine_with_a_float_input_is_refused():
    model = gate()
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    with pytest.raises(SessionError, match=r"got inputs image tensor\(float\).*expected one uint8 image"):
        OrtSession(model.SerializeToString())


def test_an_engine_with_two_outputs_is_refused():
    model = with_outputs(gate(), ["head_out"], TensorProto.FLOAT)
    with pytest.raises(SessionError, match=r"got outputs scores .*, head_out .*, expected one float32"):
        OrtSession(model.SerializeToString())


@pytest.mark.parametrize(
    ("batch", "got"),
    [
        (np.zeros((1, 1, 32, 32), np.float32), r"float32 \(1, 1, 32, 32\)"),
        (np.zeros((1, 3, 32, 32), np.uint8), r"uint8 \(1, 3, 32, 32\)"),
        (np.zeros((32, 32), np.uint8), r"uint8 \(32, 32\)"),
        (np.zeros((0, 1, 32, 32), np.uint8), r"uint8 \(0, 1, 32, 32\)"),
    ],
)
def test_a_batch_that_does_not_fit_is_told_with_what_would(batch, got):
    with (
        OrtSession(gate().SerializeToString()) as session,
        pytest.raises(SessionError, match=f"got a batch {got}, expected uint8"),
    ):
        session.infer(batch)


@pytest.fixture(scope="module", params=["fp32", "int8"])
def streamed(request) -> tuple[onnx.ModelProto, StreamedModel]:
    model = concatenating_unet() if request.param == "fp32" else int8(concatenating_unet())
    return model, stream(model)


def open_stream(streamed: StreamedModel, width: int = 48, chunk_lines: int = 8) -> OrtStreamingSession:
    streaming = Streaming(lag_lines=streamed.lag_lines, states=streamed.states)
    return OrtStreamingSession(streamed.model.SerializeToString(), streaming, width, chunk_lines, threads=1)


def run(session: OrtStreamingSession, strip: np.ndarray) -> np.ndarray:
    """Scores of all the strip's rows that come out, from strip row 0 on."""
    step = session.chunk_lines
    scores = [session.step(strip[:, :, line : line + step]).copy() for line in range(0, strip.shape[2], step)]
    return np.concatenate(scores, axis=2)[:, :, session.lag_lines :]


@pytest.mark.parametrize("chunk_lines", [4, 8, 32])
def test_streamed_rows_are_those_of_one_inference(streamed, chunk_lines):
    model, engine = streamed
    strip = images(1, 128, 48, seed=7)
    reach = engine.reach_lines
    with OrtSession(model.SerializeToString(), 1) as whole, open_stream(engine, chunk_lines=chunk_lines) as session:
        rows = run(session, strip)
        wanted = whole.infer(strip)[:, :, reach : 128 - reach]
        np.testing.assert_array_equal(rows[:, :, reach : 128 - reach], wanted[:, :, : rows.shape[2] - reach])
        assert rows.shape[2] > 2 * reach


def test_quantized_states_are_carried_as_unsigned_integers_that_rest_at_their_zero(streamed):
    _, engine = streamed
    rewritten = rewrite_for_cpu(engine.model)
    kinds = {i.name: i.type.tensor_type.elem_type for i in rewritten.graph.input}
    rests = rest_values({entry.key: entry.value for entry in rewritten.metadata_props})
    quantized = {state.input for state in engine.states if state.dtype == "int8"}
    assert {name for name, kind in kinds.items() if kind == TensorProto.UINT8} == {"image"} | quantized
    assert set(rests) == quantized
    assert set(rests.values()) == ({0, 128} if quantized else set())


def test_a_reset_stream_forgets_what_it_saw(streamed):
    _, engine = streamed
    strip = images(1, 64, 48, seed=8)
    with open_stream(engine) as session:
        first = run(session, strip)
        run(session, strip[:, :, :24])
        session.reset()
        np.testing.assert_array_equal(run(session, strip), first)


def test_a_width_that_the_stride_does_not_divide_is_refused(streamed):
    with pytest.raises(SessionError, match="got chunks of 8 lines and 46 columns, expected multiples of 4"):
        open_stream(streamed[1], width=46)


def test_a_chunk_height_that_the_stride_does_not_divide_is_refused(streamed):
    with pytest.raises(SessionError, match="got chunks of 6 lines and 48 columns, expected multiples of 4"):
        open_stream(streamed[1], chunk_lines=6)


def test_a_chunk_of_another_size_is_refused(streamed):
    message = r"got a chunk uint8 \(1, 1, 4, 48\), expected uint8 \(1, 1, 8, 48\)"
    with open_stream(streamed[1]) as session, pytest.raises(SessionError, match=message):
        session.step(np.zeros((1, 1, 4, 48), np.uint8))


def test_states_that_the_manifest_does_not_name_are_told(streamed):
    _, engine = streamed
    streaming = Streaming(lag_lines=engine.lag_lines, states=engine.states[1:])
    with pytest.raises(SessionError, match=f"expected an image, scores and the {len(engine.states) - 1} states of the manifest"):
        OrtStreamingSession(engine.model.SerializeToString(), streaming, 48, 8)


def test_states_of_another_shape_than_the_engine_s_are_told(streamed):
    _, engine = streamed
    first = engine.states[0]
    wrong = StreamState(**{**first.model_dump(), "channels": first.channels + 1})
    streaming = Streaming(lag_lines=engine.lag_lines, states=(wrong, *engine.states[1:]))
    with pytest.raises(SessionError, match="ONNX Runtime failed"):
        OrtStreamingSession(engine.model.SerializeToString(), streaming, 48, 8)
