from __future__ import annotations

import importlib
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from processor import require_whole_integer_products
from small_networks import EngineBuilder, adding_unet, concatenating_unet, gate, images

from calibration.activations import ActivationRange, activation_ranges, collect
from edge.bundle import SCORE_TOLERANCE, Bundle, check_golden, open_bundle, shipped_bundles
from edge.errors import SessionError
from edge.manifest import Streaming
from edge.sessions.ort import OrtSession
from edge.sessions.ov_rewrite import rewrite_for_openvino
from export.passes.half_precision import to_half
from export.passes.heads import with_head
from export.passes.streaming import StreamedModel, stream
from export.quantize import quantize, tensors_to_observe

pytest.importorskip("openvino", reason="OpenVINO is not installed")

from edge.sessions import ov_rewrite
from edge.sessions.ov import OvSession, OvStreamingSession


def residual_net() -> onnx.ModelProto:
    """Two branches, either of them with negative values, that are added and rectified."""
    b = EngineBuilder(seed=5)
    x = b.conv(b.image(), 16, "stem")
    for index in range(2):
        long = b.conv(b.conv(x, 16, f"first_{index}"), 16, f"second_{index}", relu=False)
        added = b.add(long, b.conv(x, 16, f"shortcut_{index}", kernel=1, relu=False), f"sum_{index}")
        x = b.keep(b.node("Relu", [added], f"sum_relu_{index}"), 16)
    b.node("Identity", [b.conv(x, 3, "head", kernel=1, relu=False)], "answer", "scores")
    return b.model(32, 32, ["n", 3, 32, 32])


NETWORKS = {"adding": adding_unet, "concatenating": concatenating_unet, "residual": residual_net, "gate": gate}


def size_of(model: onnx.ModelProto) -> tuple[int, int]:
    height, width = (d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[2:])
    return height, width


def ranges_of(model: onnx.ModelProto) -> dict[str, ActivationRange]:
    return activation_ranges(collect(model, tensors_to_observe(model), [images(8, *size_of(model))]))


def int8(model: onnx.ModelProto) -> onnx.ModelProto:
    require_whole_integer_products()
    return quantize(model, ranges_of(model))


@pytest.fixture(scope="module", params=NETWORKS)
def float_model(request) -> onnx.ModelProto:
    return NETWORKS[request.param]()


def scores_of(session: OrtSession | OvSession, tiles: np.ndarray) -> np.ndarray:
    with session:
        return session.infer(tiles).copy()


def shares_of_spread(model: onnx.ModelProto, tiles: np.ndarray) -> np.ndarray:
    """Differences of OpenVINO's scores from ONNX Runtime's, as shares of their spread."""
    content = model.SerializeToString()
    wanted, got = scores_of(OrtSession(content, 1), tiles), scores_of(OvSession(content, 1), tiles)
    return np.abs(got - wanted) / np.ptp(wanted)


def test_float_scores_are_onnx_runtime_s_but_for_the_order_of_summation(float_model):
    assert shares_of_spread(float_model, images(6, *size_of(float_model), seed=3)).max() < 1e-5


def test_integer_scores_are_onnx_runtime_s_but_for_a_value_at_the_border_of_two_steps(float_model):
    shares = shares_of_spread(int8(float_model), images(6, *size_of(float_model), seed=3))
    assert shares.max() < 0.01
    assert np.mean(shares > 1e-5) < 0.01


@pytest.mark.parametrize(("network", "mean_share"), [("concatenating", 0.01), ("residual", 0.001)])
def test_without_the_rewrite_openvino_reads_the_file_otherwise(network, mean_share):
    """Why the rewrite is more than a matter of speed; once this fails, OpenVINO has mended it."""
    import openvino

    model = int8(NETWORKS[network]())
    tiles = images(6, *size_of(model), seed=3)
    wanted = scores_of(OrtSession(model.SerializeToString(), 1), tiles)
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert np.abs(compiled(tiles)[0] - wanted).mean() > mean_share * np.ptp(wanted)


def test_integers_saturate_where_the_file_says(float_model):
    """Ranges of a quarter of what occurs: uint8 could hold the values beyond 127 steps, and must not."""
    narrow = {name: ActivationRange(r.limit / 4, r.non_negative) for name, r in ranges_of(float_model).items()}
    model, tiles = quantize(float_model, narrow), images(4, *size_of(float_model), seed=5)
    assert np.mean(shares_of_spread(model, tiles) > 1e-5) < 0.02
    loose = rewrite_for_openvino(model)
    for node in loose.graph.node:
        if node.op_type == "Clip":
            node.op_type = "Identity"
            del node.input[1:]
    wanted = scores_of(OrtSession(model.SerializeToString(), 1), tiles)
    assert np.abs(scores_of(OvSession(loose.SerializeToString(), 1), tiles) - wanted).max() > 0.01 * np.ptp(wanted)


def test_the_rewrite_leaves_the_model_given_as_it_is(float_model):
    model = int8(float_model)
    before = model.SerializeToString()
    rewritten = rewrite_for_openvino(model)
    onnx.checker.check_model(rewritten, full_check=True)
    assert model.SerializeToString() == before


def test_the_rewrite_has_nothing_to_do_for_a_float_engine(float_model):
    assert rewrite_for_openvino(float_model) is float_model


def test_tensors_that_may_be_negative_stay_int8_and_the_others_become_uint8():
    rewritten = rewrite_for_openvino(int8(concatenating_unet()))
    types = {i.name: i.data_type for i in rewritten.graph.initializer}
    kinds = {n.output[0]: types[n.input[2]] for n in rewritten.graph.node if n.op_type == "QuantizeLinear"}
    assert {kinds["signed_out/int8"], kinds["stem_relu_out/int8"]} == {TensorProto.INT8}  # the stem is joined with signed values
    assert {kinds["encoder_4_relu_out/int8"], kinds["decoder_2_relu_out/int8"]} == {TensorProto.UINT8}


def test_integers_in_an_unknown_operator_leave_the_file_as_it_is():
    model = int8(gate())
    position = next(i for i, n in enumerate(model.graph.node) if n.op_type == "DequantizeLinear" and "first_relu" in n.input[0])
    reads = model.graph.node[position]
    model.graph.node.insert(position, helper.make_node("Abs", [reads.input[0]], ["absolute"], name="absolute"))
    reads.input[0] = "absolute"
    assert rewrite_for_openvino(model) is model


@pytest.fixture(params=shipped_bundles())
def bundle(request) -> Bundle:
    return open_bundle(request.param)


def test_a_shipped_bundle_answers_its_golden_tiles(bundle):
    with OvSession(bundle.model_path, 1) as session:
        answer = check_golden(bundle, session)
    # a gate's head is float: one step of the integers below it shows in its scores
    stepped = bundle.manifest.cell is not None and bundle.manifest.precision == "int8"
    assert answer.max_difference < (SCORE_TOLERANCE if stepped else 0.001)
    assert answer.outliers == 0


@pytest.mark.parametrize("name", ["steel-unet-fp32", "steel-unet-int8"])
def test_a_shipped_stream_whose_weights_lie_in_the_tile_engine_gives_the_bits_of_one_inference(name):
    opened = open_bundle(name)
    streaming = opened.manifest.streaming
    assert streaming is not None
    assert opened.stream_path is not None
    assert opened.stream_path.stat().st_size < 0.1 * opened.model_path.stat().st_size
    strip = images(1, 352, 64, seed=2)
    with OvStreamingSession(opened.stream_path, streaming, 64, 32, 1) as session:
        rows = np.concatenate([session.step(strip[:, :, line : line + 32]).copy() for line in range(0, 352, 32)], axis=2)
    whole = scores_of(OvSession(opened.model_path, 1), strip)
    inside = slice(112, 352 - streaming.lag_lines - 8)
    np.testing.assert_array_equal(rows[:, :, streaming.lag_lines :][:, :, inside], whole[:, :, inside])
    assert inside.stop - inside.start > 100


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_one_file_serves_any_height_and_width(precision):
    model = adding_unet(32, 48)
    whole = images(1, 64, 80, seed=4)
    with OvSession((model if precision == "fp32" else int8(model)).SerializeToString(), 1) as session:
        assert session.infer(whole).shape == (1, 3, 64, 80)
        middle = session.infer(whole)[:, :, 24:40, 24:56].copy()
        crop = session.infer(np.ascontiguousarray(whole[:, :, 8:56, 8:72]))[:, :, 16:32, 16:48]
        np.testing.assert_array_equal(middle, crop)


def test_a_size_whose_engine_was_given_up_for_others_gives_the_scores_of_the_first_time():
    sizes = [(16 + 4 * index, 16) for index in range(13)]
    with OvSession(adding_unet().SerializeToString(), 1) as session:
        first = session.infer(images(1, *sizes[0])).copy()
        for size in sizes[1:]:
            assert session.infer(images(1, *size)).shape == (1, 3, *size)
        np.testing.assert_array_equal(session.infer(images(1, *sizes[0])), first)


def flat_gate() -> onnx.ModelProto:
    """A gate that flattens its tile: it takes no other."""
    b = EngineBuilder(seed=4)
    pooled = b.pool(b.conv(b.image(), 4, "first"), "pool")
    flat = b.node("Reshape", [pooled, b.constant("row", np.array([-1, 4 * 16 * 16], np.int64))], "flat")
    weights = b.constant("weights", np.random.default_rng(4).normal(size=(4 * 16 * 16, 1)).astype(np.float32))
    b.node("MatMul", [flat, weights], "linear", "scores")
    return b.model(32, 32, ["n", 1])


def test_an_engine_that_holds_on_to_its_size_refuses_others_and_goes_on():
    tiles = images(3, 32, 32)
    with OvSession(flat_gate().SerializeToString(), 1) as session:
        wanted = session.infer(tiles).copy()
        for height, width in ((64, 64), (40, 32)):  # four rows of the wrong tile; no row at all
            with pytest.raises(SessionError, match=rf"got a batch uint8 \(3, 1, {height}, {width}\), expected uint8 \(n, 1, 32"):
                session.infer(images(3, height, width))
        np.testing.assert_array_equal(session.infer(tiles), wanted)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_masks_and_probabilities_are_those_of_onnx_runtime(activation, precision):
    model = adding_unet() if precision == "fp32" else int8(adding_unet())
    tiles = images(2, 32, 48)
    mask = with_head(model, "mask", activation).SerializeToString()
    wanted, got = scores_of(OrtSession(mask, 1), tiles), scores_of(OvSession(mask, 1), tiles)
    assert (got.dtype, got.shape) == (np.uint8, (2, 2, 32, 48))
    assert np.mean(got[:, 0] != wanted[:, 0]) < 1e-3
    assert np.abs(got[:, 1].astype(int) - wanted[:, 1]).max() <= 1
    assert len(np.unique(got[:, 0])) > 2
    graph = with_head(model, "probabilities", activation)
    np.testing.assert_allclose(
        scores_of(OvSession(graph.SerializeToString(), 1), tiles),
        scores_of(OrtSession(graph.SerializeToString(), 1), tiles),
        atol=1e-4,
    )


def test_a_stream_s_mask_comes_as_bytes():
    model = adding_unet()
    engine, strip = stream(model), images(1, 96, 48, seed=4)
    streaming = Streaming(lag_lines=engine.lag_lines, states=engine.states)
    headed = with_head(engine.model, "mask", "softmax").SerializeToString()
    with OvStreamingSession(headed, streaming, 48, 16, 1) as session:
        rows = np.concatenate([session.step(strip[:, :, line : line + 16]).copy() for line in range(0, 96, 16)], axis=2)
    whole = scores_of(OvSession(with_head(model, "mask", "softmax").SerializeToString(), 1), strip)
    inside = slice(engine.reach_lines, 96 - engine.lag_lines - engine.reach_lines)
    assert rows.dtype == np.uint8
    np.testing.assert_array_equal(rows[:, :, engine.lag_lines :][:, :, inside], whole[:, :, inside])
    assert inside.stop - inside.start > 32


def test_a_half_precision_file_answers_as_in_onnx_runtime():
    shares = shares_of_spread(to_half(adding_unet()), images(4, 32, 48, seed=3))
    assert shares.max() < 0.01


def test_a_batch_that_may_not_be_written_is_read_all_the_same():
    tiles = images(2, 32, 32)
    wanted = scores_of(OvSession(gate().SerializeToString(), 1), tiles)
    tiles.flags.writeable = False
    np.testing.assert_array_equal(scores_of(OvSession(gate().SerializeToString(), 1), tiles), wanted)


def test_a_compiled_engine_is_kept_for_the_next_start(tmp_path):
    model, tiles = adding_unet().SerializeToString(), images(2, 32, 48)
    first = scores_of(OvSession(model, 1, cache=tmp_path), tiles)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert kept
    np.testing.assert_array_equal(scores_of(OvSession(model, 1, cache=tmp_path), tiles), first)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == kept


def test_another_float_precision_is_only_taken_where_it_is_asked_for():
    model, tiles = adding_unet().SerializeToString(), images(2, 32, 48)
    exact = scores_of(OvSession(model, 1), tiles)
    coarse = scores_of(OvSession(model, 1, precision="bf16"), tiles)
    assert np.abs(coarse - exact).max() < 0.05 * np.ptp(exact)
    wanted = scores_of(OrtSession(model, 1), tiles)
    assert np.abs(exact - wanted).max() < 1e-5 * np.ptp(wanted)


def test_a_missing_package_is_named_with_the_extra_that_brings_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "edge.sessions.ov")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(SessionError, match=r"OpenVINO cannot be loaded .*install rust-edge\[openvino\]"):
        importlib.import_module("edge.sessions.ov")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SessionError, match=r"nowhere.onnx: cannot be read: No such file or directory"):
        OvSession(tmp_path / "nowhere.onnx")


def test_a_broken_file_is_named(tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(gate().SerializeToString()[:500])
    with pytest.raises(SessionError, match=r"broken.onnx: OpenVINO cannot load it: .+; export the bundle again"):
        OvSession(path)


def test_an_operator_that_openvino_lacks_is_told_by_its_name(tmp_path):
    model = gate()
    model.graph.node[-1].op_type = "HighestOfAll"
    with pytest.raises(SessionError, match="HighestOfAll"):
        OvSession(model.SerializeToString())


def test_an_engine_with_a_float_input_is_refused():
    model = gate()
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    with pytest.raises(SessionError, match=r"got inputs image f32 \(\?, 1, 32, 32\), expected one uint8 image"):
        OvSession(model.SerializeToString())


def test_an_engine_with_two_outputs_is_refused():
    model = gate()
    model.graph.output.append(helper.make_tensor_value_info("head_out", TensorProto.FLOAT, None))
    with pytest.raises(SessionError, match=r"got outputs scores .*, head_out .*, expected one float32"):
        OvSession(model.SerializeToString())


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
        OvSession(gate().SerializeToString()) as session,
        pytest.raises(SessionError, match=rf"got a batch {got}, expected uint8 \(n, 1, 32, 32\)"),
    ):
        session.infer(batch)


@pytest.fixture(scope="module", params=["fp32", "int8"])
def streamed(request) -> tuple[onnx.ModelProto, StreamedModel]:
    model = concatenating_unet() if request.param == "fp32" else int8(concatenating_unet())
    return model, stream(model)


def open_stream(streamed: StreamedModel, width: int = 48, chunk_lines: int = 8) -> OvStreamingSession:
    streaming = Streaming(lag_lines=streamed.lag_lines, states=streamed.states)
    return OvStreamingSession(streamed.model.SerializeToString(), streaming, width, chunk_lines, threads=1)


def run(session: OvStreamingSession, strip: np.ndarray) -> np.ndarray:
    """Scores of all the strip's rows that come out, from strip row 0 on."""
    step = session.chunk_lines
    scores = [session.step(strip[:, :, line : line + step]).copy() for line in range(0, strip.shape[2], step)]
    return np.concatenate(scores, axis=2)[:, :, session.lag_lines :]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_residual_networks_stream_bit_for_bit_too(precision):
    model = residual_net() if precision == "fp32" else int8(residual_net())
    engine, strip = stream(model), images(1, 128, 32, seed=7)
    reach = engine.reach_lines
    with open_stream(engine, width=32) as session:
        rows = run(session, strip)
    wanted = scores_of(OvSession(model.SerializeToString(), 1), strip)
    np.testing.assert_array_equal(rows[:, :, reach : 128 - reach], wanted[:, :, reach : rows.shape[2]][:, :, : 128 - 2 * reach])


@pytest.mark.parametrize("chunk_lines", [4, 8, 32])
def test_streamed_rows_are_those_of_one_inference(streamed, chunk_lines):
    model, engine = streamed
    strip = images(1, 128, 48, seed=7)
    reach = engine.reach_lines
    with OvSession(model.SerializeToString(), 1) as whole, open_stream(engine, chunk_lines=chunk_lines) as session:
        rows = run(session, strip)
        wanted = whole.infer(strip)[:, :, reach : 128 - reach]
        np.testing.assert_array_equal(rows[:, :, reach : 128 - reach], wanted[:, :, : rows.shape[2] - reach])
        assert rows.shape[2] > 2 * reach


def test_a_reset_stream_forgets_what_it_saw(streamed):
    _, engine = streamed
    strip = images(1, 64, 48, seed=8)
    with open_stream(engine) as session:
        first = run(session, strip)
        run(session, strip[:, :, :24])
        session.reset()
        np.testing.assert_array_equal(run(session, strip), first)


def test_two_streams_of_one_engine_do_not_share_their_state(streamed):
    _, engine = streamed
    strip, other = images(1, 64, 48, seed=8), images(1, 64, 48, seed=9)
    with open_stream(engine) as session:
        wanted = run(session, strip)
    with open_stream(engine) as first, open_stream(engine) as second:
        rows = []
        for line in range(0, 64, 8):
            rows.append(first.step(strip[:, :, line : line + 8]).copy())
            second.step(other[:, :, line : line + 8])
        np.testing.assert_array_equal(np.concatenate(rows, axis=2)[:, :, first.lag_lines :], wanted)


@pytest.mark.parametrize(("width", "chunk_lines"), [(50, 8), (48, 6), (0, 8), (48, 0)])
def test_width_and_chunk_have_to_be_multiples_of_the_stride(streamed, width, chunk_lines):
    with pytest.raises(SessionError, match=rf"got chunks of {chunk_lines} lines and {width} columns, expected multiples of 4"):
        open_stream(streamed[1], width, chunk_lines)


def test_a_chunk_that_does_not_fit_is_told_with_what_would(streamed):
    with (
        open_stream(streamed[1]) as session,
        pytest.raises(SessionError, match=r"got a chunk uint8 .*, expected uint8 \(1, 1, 8"),
    ):
        session.step(np.zeros((1, 1, 4, 48), np.uint8))


def test_an_engine_that_is_not_the_manifest_s_is_refused(streamed):
    model, engine = streamed
    streaming = Streaming(lag_lines=engine.lag_lines, states=engine.states[1:])
    for content in (engine.model.SerializeToString(), model.SerializeToString()):
        with pytest.raises(SessionError, match=r"states of the manifest; export the bundle again"):
            OvStreamingSession(content, streaming, 48, 8)


def test_states_of_another_size_than_the_manifest_says_are_refused(streamed):
    _, engine = streamed
    states = tuple(state.model_copy(update={"channels": state.channels + 1}) for state in engine.states)
    with pytest.raises(SessionError, match=r"its states are not those of the manifest: .+; export the bundle again"):
        OvStreamingSession(engine.model.SerializeToString(), Streaming(lag_lines=engine.lag_lines, states=states), 48, 8)


def test_numbers_that_a_graph_states_are_not_changed_by_the_rewrite():
    """The scales of the file, and its weights, go through as they are."""
    model = int8(adding_unet())
    before = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    after = {i.name: numpy_helper.to_array(i) for i in rewrite_for_openvino(model).graph.initializer}
    kept = [name for name in before if name.endswith(("/scale", "weight/int8", "/bias"))]
    assert len(kept) > 10
    for name in kept:
        if name in after:
            np.testing.assert_array_equal(after[name], before[name])


def test_a_foreign_file_that_is_uint8_already_is_left_as_it_is():
    """Its 255 steps are its own: cut at 127 it would answer otherwise."""
    foreign = rewrite_for_openvino(int8(adding_unet()))
    assert rewrite_for_openvino(foreign) is foreign


def narrowing_net(signed: bool) -> onnx.ModelProto:
    """A 1x1 convolution of stride 2 beside a 3x3 one, as where a residual network halves its size."""
    b = EngineBuilder(seed=8)
    x = b.conv(b.image(), 16, "stem", relu=not signed)
    weight = np.random.default_rng(8).normal(0.0, 0.35, (16, 16, 1, 1)).astype(np.float32)
    constants = [b.constant("short.weight", weight), b.constant("short.bias", np.zeros(16, np.float32))]
    short = b.node("Conv", [x, *constants], "short", kernel_shape=[1, 1], strides=[2, 2])
    added = b.add(b.conv(x, 16, "long", stride=2), b.keep(b.node("Relu", [short], "short_relu"), 16), "sum")
    b.node("Identity", [b.conv(added, 3, "head", kernel=1, relu=False)], "answer", "scores")
    return b.model(32, 48, ["n", 3, 16, 24])


@pytest.mark.parametrize("signed", [False, True])
def test_a_strided_1x1_convolution_has_its_pixels_picked_and_gives_onnx_runtime_s_scores(signed):
    model = int8(narrowing_net(signed))
    picked = rewrite_for_openvino(model)
    (pool,) = [node for node in picked.graph.node if node.op_type == "MaxPool"]
    assert {a.name: list(a.ints) for a in pool.attribute} == {"kernel_shape": [1, 1], "strides": [2, 2]}
    (short,) = [node for node in picked.graph.node if node.name == "short"]
    assert not [a for a in short.attribute if a.name == "strides"]
    assert shares_of_spread(model, images(5, 32, 48, seed=3)).max() < 1e-5


def test_picking_pixels_before_a_strided_1x1_convolution_changes_no_bit(monkeypatch):
    model, tiles = int8(narrowing_net(signed=False)).SerializeToString(), images(5, 32, 48, seed=3)
    picked = scores_of(OvSession(model, 1), tiles)
    monkeypatch.setattr(ov_rewrite, "_pick_before_pointwise", lambda graph: None)
    np.testing.assert_array_equal(scores_of(OvSession(model, 1), tiles), picked)
