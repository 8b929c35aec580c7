"""From a segmenter's graph to one that runs as the strip runs: every row of every tensor is computed once.

On the row axis a tensor has a stride `s` (input lines per row of it) and a lag `L` (rows, in its own stride, by which it
trails the newest input). A step feeds C lines, C a multiple of the deepest stride; a tensor then gets C / s new rows, the
global rows [k C / s - L, (k + 1) C / s - L). Operators that look at several rows keep the few that the next step still
needs, branches that meet again wait for each other in a first-in-first-out; these rows are the state, which enters and
leaves as extra inputs and outputs. All slices are counted so that the graph fits any chunk height and any width.

What the first rows hold before there is state never matters: the caller feeds reflected lines first and drops what comes
out for them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edge.manifest import StreamState
from export.errors import ExportError
from export.passes.row_geometry import Operator, RowLocal, RowRepeat, RowWindow, Shape, describe, row_geometry

_STATE_DTYPES: dict[int, Literal["float32", "float16", "int8", "uint8"]] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "uint8",
}
_BYTES = {"float32": 4, "float16": 2, "int8": 1, "uint8": 1}
_TO_THE_END = int(np.iinfo(np.int64).max)
_FREE_TILE = 512
"""Lines and columns at which shapes are inferred where the model leaves them free: any multiple of the deepest stride."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one tensor against the strip's lines.

    stride: lines per row. lag: rows by which it trails the newest line.
    above, below: row j depends on the lines [j * stride - above, (j + 1) * stride + below) at most.
    """

    stride: int
    lag: int
    above: int
    below: int


@dataclass(frozen=True, slots=True)
class OperatorRow:
    """One line of `rust-edge export --explain`: an operator that moves rows or holds some. Lag and stride of its output."""

    name: str
    operator: str
    stride: int
    lag: int
    state_rows: int
    states: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StreamedModel:
    """`stream.onnx` and what a session has to know of it.

    lag_lines: scores trail the newest line by so many lines. stride: chunks and widths are multiples of it.
    reach_lines: lines above and below that a row of scores can depend on; the halo has to be as large.
    """

    model: onnx.ModelProto
    lag_lines: int
    stride: int
    states: tuple[StreamState, ...]
    table: tuple[OperatorRow, ...]
    reach_lines: int


def stream(model: onnx.ModelProto) -> StreamedModel:
    """Turn a segmenter, `image` (n, 1, h, w) -> `scores` (n, classes, h, w), into a streaming one; the input stays untouched.

    The result takes `image` (1, 1, C, w) and the states, and gives `scores` (1, classes, C, w) and the next states.
    Raises ExportError naming the first node that cannot stream, and why.
    """
    return _Streamer(model).run()


def format_table(streamed: StreamedModel) -> str:
    """The table of operators, strides, lags and state rows as text, with its sum below."""
    head = ("operator", "node", "stride", "lag rows", "state rows")
    cells = [head, *((r.operator, r.name, str(r.stride), str(r.lag), str(r.state_rows or "")) for r in streamed.table)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = [
        "  ".join(c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))) for row in cells
    ]
    size = sum(s.channels * s.rows * _BYTES[s.dtype] / s.stride for s in streamed.states)
    lines.insert(1, "  ".join("-" * width for width in widths))
    lines.append(
        f"scores trail the newest line by {streamed.lag_lines} lines; chunks and widths are multiples of {streamed.stride}; "
        f"{len(streamed.states)} states, {size:.0f} bytes per column of the strip ({size * 4096 / 1e6:.1f} MB at 4096 columns)"
    )
    return "\n".join(line.rstrip() for line in lines)


class _Streamer:
    """The walk over the graph: what is known of each tensor, and the nodes written so far."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self._source = model
        self._image, self._scores = _ends(graph)
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._constants |= {
            n.output[0]: n.attribute[0].t for n in graph.node if n.op_type == "Constant" and n.attribute[0].name == "value"
        }
        self._tile, self._types, self._shapes = _inferred(model, self._image)
        self._producers = {name: node for node in graph.node for name in node.output}
        self._taken = {name for node in graph.node for name in (*node.input, *node.output, node.name)} | set(self._constants)
        self._rows = {self._image.name: Rows(stride=1, lag=0, above=0, below=0)}
        self._nodes: list[onnx.NodeProto] = []
        self._slices: dict[str, onnx.TensorProto] = {}
        self._states: list[StreamState] = []
        self._carried: dict[tuple[str, int], tuple[str, StreamState]] = {}
        self._table: list[OperatorRow] = []

    def run(self) -> StreamedModel:
        for node in self._source.graph.node:
            self._visit(node)
        rows = self._rows.get(self._scores.name)
        if rows is None or rows.stride != 1:
            got = "do not depend on the image" if rows is None else f"have {rows.stride} lines a row"
            raise ExportError(f"output {self._scores.name} cannot stream: its scores {got}; expected one row of scores per line")
        return StreamedModel(
            model=self._assembled(),
            lag_lines=rows.lag,
            stride=max(row.stride for row in self._rows.values()),
            states=tuple(self._states),
            table=tuple(self._table),
            reach_lines=max(rows.above, rows.below),
        )

    def _visit(self, node: onnx.NodeProto) -> None:
        inputs = [name for name in node.input if name in self._rows]
        if not inputs:
            self._nodes.append(node)
            return
        for name in node.input:
            if name and name not in self._shapes:
                raise ExportError(
                    f"{describe(node)} cannot stream: the shape of its input {name} is not known; expected a fixed tile"
                )
        operator = Operator(node, self._shapes, self._constants, frozenset(self._rows))
        geometry = row_geometry(operator)
        if isinstance(geometry, RowWindow):
            rows, held, written = self._windowed(node, geometry)
        elif isinstance(geometry, RowRepeat):
            rows, held, written = self._repeated(operator, geometry), [], node
        else:
            rows, held, written = self._joined(operator, inputs)
        for name in node.output:
            if name:
                self._rows[name] = rows
                self._check_size(operator, name, rows)
        self._nodes.append(written)
        if held or not isinstance(geometry, RowLocal):
            state_rows = sum(state.rows for state in held)
            name = node.name or node.output[0]
            self._table.append(
                OperatorRow(name, node.op_type, rows.stride, rows.lag, state_rows, tuple(state.input for state in held))
            )

    def _windowed(self, node: onnx.NodeProto, window: RowWindow) -> tuple[Rows, list[StreamState], onnx.NodeProto]:
        """A convolution or pooling becomes valid on rows: the rows before and behind come out of the state instead of padding."""
        source = self._rows[node.input[0]]
        kernel, stride, top = window.kernel, window.stride, window.top
        # The last row of a step, -lag - 1 strides from the newest input row, must not read beyond that one.
        lag = max(0, -((source.lag + kernel - top - stride) // -stride))
        keep = lag * stride + top - source.lag
        spare = keep + stride - kernel
        name, held = self._with_state(node, node.input[0], keep, spare)
        written = onnx.NodeProto()
        written.CopyFrom(node)
        written.input[0] = name
        if node.op_type != "SpaceToDepth":
            pads = helper.make_attribute("pads", [0, window.columns[0], 0, window.columns[1]])
            kept = [attribute for attribute in node.attribute if attribute.name not in ("pads", "auto_pad")]
            del written.attribute[:]
            written.attribute.extend([*kept, pads])
        rows = Rows(
            stride=source.stride * stride,
            lag=lag,
            above=source.above + top * source.stride,
            below=source.below + (kernel - top - stride) * source.stride,
        )
        return rows, held, written

    def _repeated(self, operator: Operator, repeat: RowRepeat) -> Rows:
        source = self._rows[operator.node.input[0]]
        if source.stride % repeat.factor:
            raise operator.refuse(f"it makes {repeat.factor} rows of {source.stride} lines; expected at least one line a row")
        stride = source.stride // repeat.factor
        more = (repeat.factor - 1) * stride
        return Rows(stride=stride, lag=source.lag * repeat.factor, above=source.above + more, below=source.below + more)

    def _joined(self, operator: Operator, inputs: list[str]) -> tuple[Rows, list[StreamState], onnx.NodeProto]:
        """Branches meet at the same row: those ahead wait in a first-in-first-out for the one that trails most."""
        node = operator.node
        sources = [self._rows[name] for name in inputs]
        if len({source.stride for source in sources}) > 1:
            raise operator.refuse(f"its inputs have {[source.stride for source in sources]} lines a row; expected the same")
        lag = max(source.lag for source in sources)
        rows = Rows(sources[0].stride, lag, max(source.above for source in sources), max(source.below for source in sources))
        written = onnx.NodeProto()
        written.CopyFrom(node)
        held: list[StreamState] = []
        for index, name in enumerate(node.input):
            if name in self._rows and (behind := lag - self._rows[name].lag):
                written.input[index], more = self._with_state(node, name, behind, behind)
                held += more
        return rows, held, written

    def _with_state(self, node: onnx.NodeProto, tensor: str, keep: int, spare: int) -> tuple[str, list[StreamState]]:
        """`tensor` with the `keep` rows before its new ones in front and without its last `spare` rows.

        Behind a DequantizeLinear the rows are kept as integers and dequantized afterwards, so that runtimes still find
        their quantized patterns and the state is a quarter as large.
        """
        if keep == 0 and spare == 0:
            return tensor, []
        dequantize = self._producers.get(tensor)
        quantized = dequantize is not None and dequantize.op_type == "DequantizeLinear" and dequantize.input[0] in self._rows
        base = dequantize.input[0] if dequantize is not None and quantized else tensor
        held: list[StreamState] = []
        name = base
        if keep > 0:
            name, state = self._carry(node, base, keep)
            held.append(state)
        if spare > 0 or keep < 0:
            name = self._slice(name, max(0, -keep), -spare if spare else _TO_THE_END, f"{base}_rows")
        if dequantize is not None and quantized:
            again = onnx.NodeProto()
            again.CopyFrom(dequantize)
            again.name = self._fresh(f"{dequantize.name or tensor}_carried")
            again.input[0] = name
            again.output[0] = name = self._fresh(f"{tensor}_carried")
            self._nodes.append(again)
        return name, held

    def _carry(self, node: onnx.NodeProto, tensor: str, keep: int) -> tuple[str, StreamState]:
        if (tensor, keep) in self._carried:
            return self._carried[tensor, keep]
        dtype = _STATE_DTYPES.get(self._types[tensor])
        if dtype is None:
            kind = TensorProto.DataType.Name(self._types[tensor])
            raise ExportError(f"{describe(node)} cannot stream: rows of {tensor} would be kept, {kind}; expected float or 8 bits")
        label = f"{len(self._states):02d}_{_label(node)}"
        shape = self._shapes[tensor]
        state = StreamState(
            input=self._fresh(f"state_{label}"),
            output=self._fresh(f"next_{label}"),
            channels=shape[1],
            rows=keep,
            stride=self._rows[tensor].stride,
            dtype=dtype,
        )
        joined = self._fresh(f"{tensor}_with_state")
        self._nodes.append(
            helper.make_node("Concat", [state.input, tensor], [joined], name=self._fresh(f"prepend_{label}"), axis=2)
        )
        self._slice(joined, -keep, _TO_THE_END, state.output, output=state.output)
        self._states.append(state)
        self._carried[tensor, keep] = joined, state
        return joined, state

    def _slice(self, tensor: str, start: int, stop: int, label: str, output: str | None = None) -> str:
        """Rows [start, stop) of a tensor, each counted from its own end of the tensor: free of the chunk's height."""
        output = output or self._fresh(label)
        bounds = [self._integer(value) for value in (start, stop, 2)]
        self._nodes.append(helper.make_node("Slice", [tensor, *bounds], [output], name=self._fresh(f"rows_of_{label}")))
        return output

    def _integer(self, value: int) -> str:
        name = "rows_to_the_end" if value == _TO_THE_END else f"rows_{value}".replace("-", "minus_")
        if name not in self._slices:
            self._slices[name] = numpy_helper.from_array(np.array([value], np.int64), self._fresh(name))
        return self._slices[name].name

    def _check_size(self, operator: Operator, tensor: str, rows: Rows) -> None:
        """At the exported tile every tensor must have tile / stride rows and columns: then it does at any size."""
        shape = self._shapes.get(tensor, ())
        expected = tuple(size // rows.stride for size in self._tile)
        if len(shape) != 4 or shape[2:] != expected or any(size % rows.stride for size in self._tile):
            raise operator.refuse(
                f"at a tile of {self._tile} its output has shape {shape}; expected {expected} rows and columns, "
                f"one per {rows.stride} lines (padding that keeps the size, and the same stride along and across)"
            )

    def _fresh(self, name: str) -> str:
        fresh, count = name, 1
        while fresh in self._taken:
            fresh, count = f"{name}_{count}", count + 1
        self._taken.add(fresh)
        return fresh

    def _assembled(self) -> onnx.ModelProto:
        graph = self._source.graph
        image, scores = self._image, self._scores
        outputs = [scores.name, *(state.output for state in self._states)]
        nodes = _reachable(self._nodes, outputs)
        used = {name for node in nodes for name in node.input}
        channels = self._shapes[image.name][1], self._shapes[scores.name][1]
        model = onnx.ModelProto()
        model.CopyFrom(self._source)
        model.graph.Clear()
        model.graph.name = f"{graph.name}_streaming"
        model.graph.node.extend(nodes)
        model.graph.initializer.extend(t for t in graph.initializer if t.name in used)
        model.graph.initializer.extend(t for t in self._slices.values() if t.name in used)
        kind_in, kind_out = self._types[image.name], self._types[scores.name]
        model.graph.input.append(helper.make_tensor_value_info(image.name, kind_in, [1, channels[0], "lines", "columns"]))
        model.graph.output.append(helper.make_tensor_value_info(scores.name, kind_out, [1, channels[1], "lines", "columns"]))
        for state in self._states:
            kind = helper.np_dtype_to_tensor_dtype(np.dtype(state.dtype))
            shape: list[int | str | None] = [
                1,
                state.channels,
                state.rows,
                "columns" if state.stride == 1 else f"columns_{state.stride}",
            ]
            model.graph.input.append(helper.make_tensor_value_info(state.input, kind, shape))
            model.graph.output.append(helper.make_tensor_value_info(state.output, kind, shape))
        onnx.checker.check_model(model, full_check=True)
        return model


def _ends(graph: onnx.GraphProto) -> tuple[onnx.ValueInfoProto, onnx.ValueInfoProto]:
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    if len(inputs) != 1 or len(graph.output) != 1:
        names = [value.name for value in inputs], [value.name for value in graph.output]
        raise ExportError(
            f"graph {graph.name} cannot stream: inputs {names[0]}, outputs {names[1]}; expected an image in and scores out"
        )
    return inputs[0], graph.output[0]


def _inferred(model: onnx.ModelProto, image: onnx.ValueInfoProto) -> tuple[tuple[int, int], dict[str, int], dict[str, Shape]]:
    """The tile, and element types and shapes of all tensors at one image of it."""
    dims = image.type.tensor_type.shape.dim
    if len(dims) != 4 or not dims[1].dim_value:
        raise ExportError(
            f"input {image.name} cannot stream: got {len(dims)} axes; expected (n, channels, h, w) with fixed channels"
        )
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    del fixed.graph.value_info[:]
    sizes = [1, dims[1].dim_value, dims[2].dim_value or _FREE_TILE, dims[3].dim_value or _FREE_TILE]
    for value in fixed.graph.input:
        if value.name == image.name:
            value.CopyFrom(helper.make_tensor_value_info(image.name, image.type.tensor_type.elem_type, sizes))
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        fixed = onnx.shape_inference.infer_shapes(fixed, check_type=True, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise ExportError(f"graph {model.graph.name} cannot stream: its shapes do not fit together: {error}") from error
    types: dict[str, int] = {}
    shapes: dict[str, Shape] = {}
    for value in (*fixed.graph.input, *fixed.graph.value_info, *fixed.graph.output):
        tensor = value.type.tensor_type
        types[value.name] = tensor.elem_type
        if tensor.HasField("shape"):
            shapes[value.name] = tuple(dim.dim_value for dim in tensor.shape.dim)
    for constant in fixed.graph.initializer:
        types[constant.name], shapes[constant.name] = constant.data_type, tuple(constant.dims)
    return (sizes[2], sizes[3]), types, shapes


def _reachable(nodes: list[onnx.NodeProto], outputs: list[str]) -> list[onnx.NodeProto]:
    """Nodes that the outputs need, in order: the old DequantizeLinear nodes under a state drop out."""
    wanted = set(outputs)
    kept = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(node)
    return kept[::-1]


def _label(node: onnx.NodeProto) -> str:
    """A node's name as a part of an identifier."""
    return re.sub(r"[^A-Za-z0-9]+", "_", node.name or node.output[0]).strip("_") or node.op_type.lower()
