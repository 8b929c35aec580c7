"""The pass that makes a graph run as the strip runs, on random networks whose arithmetic is exact.

Weights, inputs and all values in between are small integers (or quarters of such) in float32, so that every order of
adding gives the same bits: whole-strip inference and any chunks must then agree exactly, whatever kernels are chosen.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from edge.sessions.ort_rewrite import rewrite_for_cpu
from export.errors import ExportError
from export.passes.streaming import StreamedModel, StreamRefused, format_table, stream

TILE = 96
SLOW_OK = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


class Graph:
    """Builds a network node by node; knows channels and stride of each tensor."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.known: dict[str, tuple[int, int]] = {"image": (1, 1)}
        self.node("Cast", ["image"], 1, 1, to=TensorProto.FLOAT)
        self.top = self.node("Sub", [self.top, self.constant(np.float32(2))], 1, 1)

    def constant(self, value) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, kind: str, inputs: list[str], channels: int, stride: int, **attributes) -> str:
        self.top = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [self.top], name=f"node_{self.top}", **attributes))
        self.known[self.top] = (channels, stride)
        return self.top

    def conv(self, source: str, channels: int, kernel=3, step=1, dilation=1, top=1, bottom=1, **more) -> str:
        known, stride = self.known[source]
        weights = self.constant(self.rng.integers(-1, 2, (channels, known, kernel, kernel)).astype(np.float32))
        pads = [top, bottom, bottom, top]
        self.node(
            "Conv",
            [source, weights],
            channels,
            stride * step,
            kernel_shape=[kernel] * 2,
            strides=[step] * 2,
            dilations=[dilation] * 2,
            pads=pads,
            **more,
        )
        return self.clip(self.top)

    def transposed(self, source: str, channels: int, kernel: int, step=2, top=0, bottom=0, more=0, dilation=1, **how) -> str:
        """more: output_padding; what is cut off at the top is so at the left."""
        known, stride = self.known[source]
        weights = self.constant(self.rng.integers(-1, 2, (known, channels, kernel, kernel)).astype(np.float32))
        how = how or {"pads": [top, top, bottom, bottom]}
        steps = {"strides": [step] * 2, "dilations": [dilation] * 2, "output_padding": [more] * 2}
        return self.clip(self.node("ConvTranspose", [source, weights], channels, stride // step, **steps, **how))

    def pad(self, source: str, top: int, bottom: int, mode: str = "constant") -> str:
        pads = self.constant(np.array([0, 0, top, top, 0, 0, bottom, bottom], np.int64))
        return self.node("Pad", [source, pads, self.constant(np.float32(1))], *self.known[source], mode=mode)

    def crop(self, source: str, top: int, bottom: int) -> str:
        stop = -bottom if bottom else np.iinfo(np.int64).max
        bounds = [self.constant(np.array([value] * 2, np.int64)) for value in (top, stop)]
        return self.node("Slice", [source, *bounds, self.constant(np.array([2, 3], np.int64))], *self.known[source])

    def clip(self, source: str) -> str:
        bounds = [self.constant(np.float32(value)) for value in (-3, 7)]
        return self.node("Clip", [source, *bounds], *self.known[source])

    def pool(self, kind: str, source: str, kernel: int, step: int, top: int, bottom: int, **how) -> str:
        channels, stride = self.known[source]
        return self.node(
            kind,
            [source],
            channels,
            stride * step,
            kernel_shape=[kernel] * 2,
            strides=[step] * 2,
            pads=[top, top, bottom, bottom],
            **how,
        )

    def upsample(self, source: str, factor: int = 2, **how) -> str:
        channels, stride = self.known[source]
        scales = self.constant(np.array([1, 1, factor, factor], np.float32))
        how = how or {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return self.node("Resize", [source, "", scales], channels, stride // factor, **{"mode": "nearest"} | how)

    def floor(self, source: str) -> str:
        """Whole numbers again after averages: these are exact, their sums of sums would not stay so."""
        return self.node("Floor", [source], *self.known.pop(source))

    def model(self, height: int | str = TILE, width: int | str = TILE, cell: int = 1) -> onnx.ModelProto:
        while self.known[self.top][1] > cell:
            self.upsample(self.top)
        channels, _ = self.known[self.conv(self.top, 3, kernel=1, top=0, bottom=0)]
        graph = helper.make_graph(
            [*self.nodes, helper.make_node("Identity", [self.top], ["scores"], name="out")],
            "net",
            [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 1, height, width])],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", channels, *(s // cell for s in (height, width))])],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        return model


def session(model: onnx.ModelProto, optimized: Path | None = None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if optimized:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def whole(model: onnx.ModelProto, strip: np.ndarray) -> np.ndarray:
    free = onnx.ModelProto()
    free.CopyFrom(model)
    del free.graph.value_info[:]
    for value in (*free.graph.input, *free.graph.output):
        value.type.tensor_type.shape.dim[2].dim_param = f"{value.name}_h"
        value.type.tensor_type.shape.dim[3].dim_param = f"{value.name}_w"
    return session(free).run(None, {"image": strip[None, None]})[0][0]


def streamed_rows(streamed: StreamedModel, strip: np.ndarray, chunk: int) -> np.ndarray:
    """Score rows of the strip's lines or cells, computed chunk by chunk; what lies before and beyond the strip is junk."""
    running = session(streamed.model)
    width = strip.shape[1]
    names = ["scores", *(state.output for state in streamed.states)]
    states = {s.input: np.ones((1, s.channels, s.rows, width // s.stride), s.dtype) for s in streamed.states}
    steps = -(-(len(strip) + streamed.lag_lines) // chunk)
    fed = np.pad(strip, ((0, steps * chunk - len(strip)), (0, 0)))
    rows = []
    for lines in np.split(fed, steps):
        scores, *after = running.run(names, {"image": lines[None, None], **states})
        states = dict(zip(states, after, strict=True))
        rows.append(scores[0])
    first, cell = streamed.lag_lines // streamed.cell, streamed.cell
    assert rows[0].shape[1:] == (chunk // cell, width // cell)
    return np.concatenate(rows, axis=1)[:, first : first + len(strip) // cell]


def assert_streams_exactly(model: onnx.ModelProto, chunks: int, columns: int, cell: int = 1, seed: int = 0) -> StreamedModel:
    streamed = stream(model, cell)
    reach, stride = streamed.reach_lines, streamed.stride
    chunk, width = chunks * stride, columns * stride
    height = 2 * (-(-reach // stride) * stride) + 2 * chunk + 3 * stride
    strip = np.random.default_rng(seed).integers(0, 5, (height, width)).astype(np.uint8)
    inside = slice(-(-reach // cell), (height - reach) // cell)
    np.testing.assert_array_equal(streamed_rows(streamed, strip, chunk)[:, inside], whole(model, strip)[:, inside])
    return streamed


LINEAR = [{"mode": "linear", "coordinate_transformation_mode": how} for how in ("half_pixel", "asymmetric", "pytorch_half_pixel")]


@st.composite
def networks(draw) -> tuple[onnx.ModelProto, int]:
    """A network, and the lines per row of its scores: one, or as many as its last tensor has."""
    graph = Graph(draw(st.integers(0, 1000)))
    graph.conv(graph.top, 4)
    for _ in range(draw(st.integers(1, 7))):
        source = graph.top
        channels, stride = graph.known[source]
        kinds = ["conv", "conv", "pool", "average", "pad", "crop", "residual", "join", "concat"]
        kinds += ["up", "linear", "transposed", "transposed", "spread"] if stride > 1 else []
        kinds += ["gather"] if stride < 8 else []
        kind = draw(st.sampled_from(kinds))
        step = draw(st.sampled_from([1, 2] if stride < 8 else [1]))
        if kind == "conv":
            kernel, dilation = draw(st.integers(1, 5)), draw(st.integers(1, 2))
            extent = dilation * (kernel - 1) + 1
            total = draw(st.integers(max(0, extent - step), extent - 1))
            top = draw(st.integers(0, total))
            graph.conv(source, draw(st.sampled_from([4, 8])), kernel, step, dilation, top, total - top)
        elif kind in ("pool", "average"):
            kernel = draw(st.integers(max(2, step), 3))
            top = draw(st.integers(0, kernel - step))
            if kind == "pool":
                graph.pool("MaxPool", source, kernel, step, top, kernel - step - top)
            else:
                how = {"count_include_pad": draw(st.integers(0, 1))}
                graph.floor(graph.pool("AveragePool", source, kernel, step, top, kernel - step - top, **how))
        elif kind == "pad":
            kernel = draw(st.integers(max(2, step), 3))
            top = draw(st.integers(0, kernel - step))
            graph.pad(source, top, kernel - step - top, draw(st.sampled_from(["constant", "reflect", "edge"])))
            if draw(st.booleans()):
                graph.node("Relu", [graph.top], channels, stride)
            if draw(st.booleans()):
                graph.conv(graph.top, 4, kernel, step, top=0, bottom=0)
            else:
                graph.pool("MaxPool", graph.top, kernel, step, 0, 0)
        elif kind == "crop":
            top, bottom = draw(st.integers(0, 1)), draw(st.integers(0, 1))
            graph.crop(graph.pad(source, 2, 1, "edge"), *draw(st.sampled_from([(2, 1), (1, 2), (3, 0)])))
            graph.conv(graph.pad(graph.crop(source, top, bottom), top + 1, bottom + 1), 4, top=0, bottom=0)
        elif kind == "residual":
            branch = graph.conv(graph.conv(source, 4, 3, step), 4)
            shortcut = graph.conv(source, 4, 1, step, top=0, bottom=0)
            graph.clip(graph.node("Add", [branch, shortcut], 4, stride * step))
        elif kind == "up":
            graph.upsample(source)
        elif kind == "linear":
            factor = draw(st.sampled_from([2, 4] if stride > 2 else [2]))
            graph.floor(graph.upsample(source, factor, **draw(st.sampled_from(LINEAR))))
        elif kind == "transposed":
            kernel, more, dilation = draw(st.integers(1, 5)), draw(st.integers(0, 1)), draw(st.integers(1, 2))
            total = max(0, dilation * (kernel - 1) + 1 + more - 2)
            more += max(0, 2 - dilation * (kernel - 1) - 1 - more)
            top = draw(st.integers(0, total))
            graph.transposed(source, 4, kernel, 2, top, total - top, more, dilation)
        elif kind == "spread":
            graph.node(
                "DepthToSpace", [source], channels // 4, stride // 2, blocksize=2, mode=draw(st.sampled_from(["DCR", "CRD"]))
            )
            graph.conv(graph.top, 4)
        elif kind == "gather":
            graph.node("SpaceToDepth", [source], channels * 4, stride * 2, blocksize=2)
            graph.conv(graph.top, 4, kernel=1, top=0, bottom=0)
        else:
            others = [name for name, known in graph.known.items() if known == (channels, stride) and name != source]
            others = [name for name in others if not name.startswith(("pad", "relu", "slice"))]
            if others:
                other = draw(st.sampled_from(others))
                if kind == "join":
                    graph.clip(graph.node(draw(st.sampled_from(["Add", "Sub", "Mul", "Max"])), [source, other], channels, stride))
                else:
                    graph.conv(graph.node("Concat", [other, source], 2 * channels, stride, axis=1), 4)
    cell = draw(st.sampled_from([1, graph.known[graph.top][1]]))
    return graph.model(cell=cell), cell


@SLOW_OK
@given(network=networks(), chunks=st.integers(1, 5), columns=st.integers(3, 6))
def test_any_network_gives_the_rows_of_one_inference_at_any_chunk_height_and_width(network, chunks, columns):
    model, cell = network
    assert_streams_exactly(model, chunks, columns, cell)


def unet(levels: int = 2) -> Graph:
    graph = Graph(7)
    skips = [graph.conv(graph.top, 4, kernel=4, step=2, top=1, bottom=1)]
    for _ in range(levels):
        graph.pool("MaxPool", graph.top, 2, 2, 0, 0)
        skips.append(graph.conv(graph.conv(graph.top, 4), 4))
    for skip in skips[-2::-1]:
        graph.conv(graph.node("Add", [graph.upsample(graph.top), skip], *graph.known[skip]), 4)
    return graph


def test_lags_and_states_of_a_unet_are_those_of_the_rules():
    streamed = assert_streams_exactly(unet(1).model(), chunks=3, columns=5)
    # Stem 4x4/2: ceil((0 + 4 - 1 - 2) / 2) = 1; pool 2/2: ceil((1 + 2 - 0 - 2) / 2) = 1; two 3x3: 3; twice that after
    # upsampling: 6, so the skip of lag 1 waits 5 rows; 3x3: 7; upsampling to full resolution: 14.
    moved = [(row.operator, row.stride, row.lag, row.state_rows) for row in streamed.table]
    assert moved == [
        ("Conv", 2, 1, 3),
        ("MaxPool", 4, 1, 1),
        ("Conv", 4, 2, 2),
        ("Conv", 4, 3, 2),
        ("Resize", 2, 6, 0),
        ("Add", 2, 6, 5),
        ("Conv", 2, 7, 2),
        ("Resize", 1, 14, 0),
        ("Conv", 1, 14, 0),
    ]
    assert (streamed.lag_lines, streamed.stride) == (14, 4)
    assert [(s.rows, s.stride, s.channels, s.dtype) for s in streamed.states[:2]] == [(3, 1, 1, "float32"), (1, 2, 4, "float32")]


def test_scores_of_cells_trail_by_whole_cells():
    graph = Graph(7)
    graph.conv(graph.top, 4, kernel=4, step=2, top=1, bottom=1)
    graph.pool("MaxPool", graph.conv(graph.top, 4), 2, 2, 0, 0)
    graph.conv(graph.top, 4)
    streamed = assert_streams_exactly(graph.model(cell=4), chunks=3, columns=5, cell=4)
    # Stem 4x4/2: 1 row of 2 lines; 3x3: 2; pool: ceil((2 + 2 - 0 - 2) / 2) = 1 row of 4 lines; 3x3: 2 rows of 4 lines.
    assert [(row.stride, row.lag) for row in streamed.table] == [(2, 1), (2, 2), (4, 1), (4, 2), (4, 2)]
    assert (streamed.cell, streamed.lag_lines, streamed.stride) == (4, 8, 4)
    # One row of the last 3x3 is 4 lines, one of the first 2, and the stem looks one line further than its own two.
    assert streamed.reach_lines == 4 + 2 + 1
    assert "scores of cells of 4 x 4 pixels trail the newest line by 8 lines" in format_table(streamed)


def test_the_table_names_every_operator_that_moves_rows_and_sums_up():
    streamed = stream(unet(1).model())
    text = format_table(streamed)
    assert text.count("\n") == 2 + len(streamed.table)
    assert re.search(r"^Add +node_add_\w+ +2 +6 +5$", text, re.MULTILINE)
    assert "trail the newest line by 14 lines" in text
    assert "multiples of 4" in text


def test_opset_and_ir_version_stay_and_the_input_is_untouched():
    model = unet().model()
    before = model.SerializeToString()
    streamed = stream(model).model
    assert model.SerializeToString() == before
    assert (streamed.ir_version, streamed.opset_import[0].version) == (8, 17)
    assert [dim.dim_param or dim.dim_value for dim in streamed.graph.input[0].type.tensor_type.shape.dim] == [
        1,
        1,
        "lines",
        "columns",
    ]


@pytest.mark.parametrize("auto_pad", ["SAME_LOWER", "SAME_UPPER"])
@pytest.mark.parametrize("kernel", [3, 4])
def test_automatic_padding_streams_too(auto_pad, kernel):
    graph = Graph(3)
    weights = graph.constant(graph.rng.integers(-1, 2, (4, 1, kernel, kernel)).astype(np.float32))
    graph.clip(graph.node("Conv", [graph.top, weights], 4, 2, strides=[2, 2], auto_pad=auto_pad))
    assert_streams_exactly(graph.model(), chunks=2, columns=5)


def test_average_pooling_and_upsampling_by_four_stream_too():
    graph = Graph(3)
    graph.conv(graph.top, 4, step=2, top=1, bottom=0)
    graph.pool("AveragePool", graph.top, 2, 2, 0, 0)
    graph.upsample(graph.top, 4, coordinate_transformation_mode="half_pixel", nearest_mode="round_prefer_floor")
    assert_streams_exactly(graph.model(), chunks=2, columns=3)


def test_operators_that_want_the_same_rows_of_a_tensor_share_one_state():
    graph = Graph(4)
    trunk = graph.conv(graph.top, 4)
    branches = [graph.conv(trunk, 4), graph.conv(trunk, 4)]
    graph.node("Add", branches, 4, 1)
    streamed = assert_streams_exactly(graph.model(), chunks=3, columns=9)
    assert [state.rows for state in streamed.states] == [2, 2]
    assert streamed.table[1].states == streamed.table[2].states


def test_channel_softmax_and_batch_normalisation_pass_rows_on():
    graph = Graph(5)
    graph.conv(graph.top, 4)
    statistics = [graph.constant(np.full(4, value, np.float32)) for value in (2, 1, 0, 1)]
    graph.node("BatchNormalization", [graph.top, *statistics], 4, 1, epsilon=0.0)
    graph.node("ReduceMax", [graph.top], 1, 1, axes=[1], keepdims=1)
    assert_streams_exactly(graph.model(), chunks=4, columns=8)
    graph = Graph(5)
    graph.node("Softmax", [graph.conv(graph.top, 4)], 4, 1, axis=1)
    model = graph.model()
    strip = np.random.default_rng(0).integers(0, 5, (40, 16)).astype(np.uint8)
    rows = streamed_rows(stream(model), strip, 8)
    np.testing.assert_allclose(rows[:, 3:-3], whole(model, strip)[:, 3:-3], rtol=1e-5)


@pytest.mark.parametrize("auto_pad", ["SAME_LOWER", "SAME_UPPER"])
@pytest.mark.parametrize("kernel", [2, 3, 4, 5])
def test_transposed_convolutions_that_keep_the_size_stream_with_the_cut_that_onnx_runtime_makes(auto_pad, kernel):
    graph = Graph(3)
    graph.conv(graph.top, 4, step=2, top=1, bottom=0)
    graph.transposed(graph.top, 4, kernel, auto_pad=auto_pad)
    assert_streams_exactly(graph.model(), chunks=2, columns=5)


def test_keras_s_transposed_convolution_of_3x3_streams():
    graph = Graph(3)
    graph.conv(graph.top, 4, step=2, top=1, bottom=0)
    graph.transposed(graph.top, 4, kernel=3, top=0, bottom=1)
    streamed = assert_streams_exactly(graph.model(), chunks=3, columns=5)
    # Stem 3x3/2 with the padding above: ceil((0 + 3 - 1 - 2) / 2) = 0. Row j of the transposed one writes rows 2 j .. 2 j + 2:
    # the last is the next step's first, one row of state holds the input for it, and nothing waits.
    assert [(row.lag, row.state_rows) for row in streamed.table[:2]] == [(0, 1), (0, 1)]


def test_a_stem_of_7x7_padded_more_below_than_above_streams():
    graph = Graph(3)
    graph.conv(graph.top, 4, kernel=7, step=2, top=2, bottom=3)
    graph.pool("MaxPool", graph.top, 3, 2, 0, 1)
    assert_streams_exactly(graph.model(), chunks=2, columns=5)


@pytest.mark.parametrize("how", LINEAR, ids=lambda how: how["coordinate_transformation_mode"])
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_linear_upsampling_waits_for_the_next_row_and_keeps_the_last(how, factor):
    graph = Graph(3)
    graph.floor(graph.pool("AveragePool", graph.conv(graph.top, 4), factor, factor, 0, 0))
    graph.upsample(graph.top, factor, **how)
    model = graph.model(height=96, width=96)
    streamed = stream(model)
    row = next(row for row in streamed.table if row.operator == "Resize")
    pool = next(row for row in streamed.table if row.operator == "AveragePool")
    assert row.lag == pool.lag * factor + (factor - 1 if how["coordinate_transformation_mode"] == "asymmetric" else factor // 2)
    assert row.state_rows == 1
    strip = np.random.default_rng(1).integers(0, 5, (120, 24)).astype(np.uint8)
    reach = streamed.reach_lines
    rows = streamed_rows(streamed, strip, 4 * factor)[:, reach:-reach]
    # thirds are no floats: where a row lies, counted from the chunk's first or the strip's, changes the last bit
    np.testing.assert_allclose(rows, whole(model, strip)[:, reach:-reach], atol=0 if factor != 3 else 1e-4)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_padding_before_a_convolution_costs_no_state_and_stays_along_columns(mode):
    graph = Graph(3)
    graph.conv(graph.pad(graph.conv(graph.top, 4), 1, 1, mode), 4, top=0, bottom=0)
    streamed = assert_streams_exactly(graph.model(), chunks=3, columns=7)
    assert [(row.operator, row.lag, row.state_rows) for row in streamed.table[:3]] == [
        ("Conv", 1, 2),
        ("Pad", 0, 0),
        ("Conv", 2, 2),
    ]
    pad = next(node for node in streamed.model.graph.node if node.op_type == "Pad")
    pads = next(numpy_helper.to_array(i) for i in streamed.model.graph.initializer if i.name == pad.input[1])
    assert pads.tolist() == [0, 0, 0, 1, 0, 0, 0, 1]


def test_first_in_first_outs_of_one_tensor_are_one_state_as_long_as_the_longest():
    graph = Graph(3)
    skip = graph.conv(graph.top, 4)
    for _ in range(3):
        graph.conv(graph.node("Concat", [skip, graph.conv(graph.conv(graph.top, 4), 4)], 8, 1, axis=1), 4)
    streamed = assert_streams_exactly(graph.model(), chunks=4, columns=6)
    waits = [row for row in streamed.table if row.operator == "Concat"]
    assert [row.state_rows for row in waits] == [2, 5, 8]
    assert len({row.states for row in waits}) == 1
    held = {state.input: state.rows for state in streamed.states}
    assert held[waits[0].states[0]] == 8


def test_half_precision_rows_are_kept_as_such():
    graph = Graph(3)
    half = graph.node("Cast", [graph.conv(graph.top, 4)], 4, 1, to=TensorProto.FLOAT16)
    pooled = graph.pool("MaxPool", half, 3, 1, 1, 1)
    graph.node("Cast", [graph.node("Max", [pooled, half], 4, 1)], 4, 1, to=TensorProto.FLOAT)
    streamed = assert_streams_exactly(graph.model(), chunks=4, columns=6)
    assert [state.dtype for state in streamed.states] == ["float32", "float16", "float16"]


def test_a_head_of_class_and_confidence_streams():
    graph = Graph(5)
    logits = graph.conv(graph.top, 4)
    label = graph.node("Cast", [graph.node("ArgMax", [logits], 1, 1, axis=1, keepdims=1)], 1, 1, to=TensorProto.FLOAT)
    highest = graph.node("ReduceMax", [logits], 1, 1, axes=[1], keepdims=1)
    graph.node("Concat", [label, highest], 2, 1, axis=1)
    assert_streams_exactly(graph.model(), chunks=4, columns=8)


class TestRefusals:
    """What cannot stream is refused with the node's name and the reason."""

    def refused(self, graph: Graph) -> str:
        with pytest.raises(StreamRefused) as caught:
            stream(graph.model())
        assert isinstance(caught.value, ExportError)
        assert f"'{caught.value.node}'" in str(caught.value)
        return str(caught.value)

    def refused_model(self, model: onnx.ModelProto) -> str:
        with pytest.raises(StreamRefused) as caught:
            stream(model)
        return str(caught.value)

    def test_global_pooling(self):
        graph = unet()
        pooled = graph.node("GlobalAveragePool", [graph.top], 4, 2)
        graph.node("Mul", ["clip_3", pooled], 4, 2)
        assert re.search(
            r"GlobalAveragePool 'node_globalaveragepool_\d+' cannot run as the strip runs: .*all rows", self.refused(graph)
        )

    def test_resizing_to_sizes(self):
        graph = Graph()
        graph.conv(graph.top, 4, step=2, top=1, bottom=0)
        sizes = graph.constant(np.array([1, 4, TILE, TILE], np.int64))
        graph.node(
            "Resize",
            [graph.top, "", "", sizes],
            4,
            1,
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
        assert re.search(r"Resize 'node_resize_\d+'.*to sizes", self.refused(graph))

    @pytest.mark.parametrize(
        ("how", "why"),
        [
            ({"coordinate_transformation_mode": "align_corners"}, "align_corners"),
            ({"coordinate_transformation_mode": "asymmetric", "nearest_mode": "ceil"}, "neighbours"),
            ({"coordinate_transformation_mode": "half_pixel", "nearest_mode": "floor"}, "neighbours"),
        ],
    )
    def test_nearest_upsampling_that_takes_rows_from_elsewhere(self, how, why):
        graph = Graph()
        graph.conv(graph.top, 4, step=2, top=1, bottom=0)
        graph.upsample(graph.top, 2, **how)
        assert why in self.refused(graph)

    @pytest.mark.parametrize(
        ("how", "why"),
        [
            ({"mode": "linear", "coordinate_transformation_mode": "align_corners"}, "align_corners"),
            ({"mode": "cubic", "coordinate_transformation_mode": "half_pixel"}, "mode cubic"),
        ],
    )
    def test_upsampling_that_depends_on_the_height_or_looks_further(self, how, why):
        graph = Graph()
        graph.conv(graph.top, 4, step=2, top=1, bottom=0)
        graph.upsample(graph.top, 2, **how)
        assert re.search(rf"Resize 'node_resize_\d+'.*{why}", self.refused(graph))

    def test_padding_from_the_other_end(self):
        graph = Graph()
        graph.pad(graph.conv(graph.top, 4), 1, 1, "wrap")
        graph.pool("MaxPool", graph.top, 3, 1, 0, 0)
        model = graph.model()
        model.opset_import[0].version, model.ir_version = 19, 9
        with pytest.raises(StreamRefused, match=r"Pad 'node_pad_\d+'.*mode wrap takes rows from the image's other end"):
            stream(model)

    def test_cropping_counted_from_the_top(self):
        graph = Graph()
        padded = graph.pad(graph.conv(graph.top, 4), 1, 1)
        bounds = [graph.constant(np.array([value], np.int64)) for value in (0, TILE, 2)]
        graph.node("Slice", [padded, *bounds], 4, 1)
        graph.crop(graph.pad(graph.top, 0, 0), 0, 0)
        model = graph.model()
        assert re.search(r"Slice 'node_slice_\d+'.*\[0:96:1\] of axis 2", self.refused_model(model))

    @pytest.mark.parametrize("axes", [[2], [2, 3]])
    def test_means_over_rows(self, axes):
        graph = Graph()
        source = graph.conv(graph.top, 4)
        graph.node("Mul", [source, graph.node("ReduceMean", [source], 4, 1, axes=axes, keepdims=1)], 4, 1)
        assert re.search(r"ReduceMean 'node_reducemean_\d+'.*expected 1, the channels", self.refused(graph))

    def test_attention_over_rows(self):
        graph = Graph()
        graph.conv(graph.top, 4)
        graph.node("Softmax", [graph.top], 4, 1, axis=2)
        assert re.search(r"Softmax 'node_softmax_\d+'.*expected 1, the channels", self.refused(graph))

    def test_a_value_per_row(self):
        graph = Graph()
        graph.conv(graph.top, 4)
        graph.node("Add", [graph.top, graph.constant(np.zeros((1, 1, TILE, 1), np.float32))], 4, 1)
        assert "a value per row or column" in self.refused(graph)

    def test_scores_at_another_stride_than_expected(self):
        graph = Graph()
        graph.conv(graph.top, 4, step=2, top=1, bottom=0)
        model = graph.model(cell=2)
        with pytest.raises(StreamRefused, match=r"its scores have 2 lines a row; expected one row of scores per line"):
            stream(model)
        with pytest.raises(StreamRefused, match=r"its scores have 2 lines a row; expected one row of scores per 4 lines"):
            stream(model, cell=4)

    def test_convolutions_that_shrink_the_image(self):
        graph = Graph()
        graph.conv(graph.top, 4, kernel=3, top=0, bottom=0)
        assert re.search(r"Conv 'node_conv_\d+'.*94, 94", self.refused(graph))

    def test_swapping_rows_and_columns(self):
        graph = Graph()
        graph.node("Transpose", [graph.conv(graph.top, 4)], 4, 1, perm=[0, 1, 3, 2])
        assert re.search(r"Transpose 'node_transpose_\d+'.*no rule", self.refused(graph))

    def test_a_model_with_two_outputs(self):
        model = unet().model()
        model.graph.output.append(helper.make_tensor_value_info("clip_3", TensorProto.FLOAT, ["n", 4, TILE // 2, TILE // 2]))
        with pytest.raises(ExportError, match="clip_3"):
            stream(model)


class Images(CalibrationDataReader):
    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        self._batches = iter([{"image": rng.integers(0, 5, (1, 1, TILE, TILE)).astype(np.uint8)} for _ in range(2)])

    def get_next(self):
        return next(self._batches, None)


@pytest.fixture(scope="module", params=[QuantType.QUInt8, QuantType.QInt8], ids=["u8s8", "s8s8"])
def quantized(request, tmp_path_factory) -> onnx.ModelProto:
    folder = tmp_path_factory.mktemp("quantized")
    graph = unet()
    onnx.save(graph.model(), folder / "float.onnx")
    quantize_static(
        folder / "float.onnx",
        folder / "int8.onnx",
        Images(),
        quant_format=QuantFormat.QDQ,
        activation_type=request.param,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["Conv", "Add", "MaxPool", "Resize"],
        per_channel=True,
        extra_options={"ActivationSymmetric": request.param == QuantType.QInt8},
    )
    return onnx.load(folder / "int8.onnx")


def test_quantized_states_are_integers_and_the_rows_those_of_one_inference(quantized):
    streamed = assert_streams_exactly(quantized, chunks=4, columns=6)
    kept = Counter(state.dtype for state in streamed.states)
    assert kept[("uint8" if kept["uint8"] else "int8")] >= len(streamed.states) - 1


def test_the_quantized_operators_that_onnx_runtime_fuses_are_the_same_after_the_pass(quantized, tmp_path):
    def kinds(model: onnx.ModelProto, name: str) -> Counter[str]:
        session(rewrite_for_cpu(model), tmp_path / name)
        return Counter(node.op_type for node in onnx.load(tmp_path / name).graph.node)

    before, after = kinds(quantized, "before.onnx"), kinds(stream(quantized).model, "after.onnx")
    assert before["QLinearConv"] >= 5
    for kind in ("QLinearConv", "QLinearAdd", "FusedConv", "Conv", "QuantizeLinear"):
        assert after[kind] == before[kind], (before, after)
