"""From a graph that scores pixels, or cells of them, to one that runs as the strip runs: every row is computed once.

On the row axis a tensor has a stride `s` (input lines per row of it) and a lag `L` (rows, in its own stride, by which it
trails the newest input). A step feeds C lines, C a multiple of the deepest stride; a tensor then gets C / s new rows, the
global rows [k C / s - L, (k + 1) C / s - L). Operators that look at several rows keep the few that the next step still
needs, branches that meet again wait for each other in a first-in-first-out; these rows are the state, which enters and
leaves as extra inputs and outputs. All first-in-first-outs of one tensor are one state, as long as the longest of them: a nest
of skips has many. All slices are counted so that the graph fits any chunk height and any width.

What the first rows hold before there is state never matters: the caller feeds reflected lines first and drops what comes
out for them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edge.manifest import StreamState
from export.passes.row_geometry import (
    Operator,
    RowLocal,
    RowShift,
    RowSpread,
    RowWindow,
    Shape,
    StreamRefused,
    refused,
    row_geometry,
)

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
_Held = list[tuple[int, StreamState]]
"""Rows that an operator reads of a state, and the state."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one tensor against the strip's lines.

    stride: lines per row. lag: rows by which it trails the newest line; below 0 behind padding, which moves rows down.
    above, below: row j depends on the lines [j * stride - above, (j + 1) * stride + below) at most.
    extra: rows and columns that padding gave it beyond one per `stride` lines or columns.
    """

    stride: int
    lag: int
    above: int
    below: int
    extra: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class OperatorRow:
    """One line of `rust-edge export --explain`: an operator that moves rows or holds some. Lag and stride of its output.

    state_rows: earlier rows that it reads; states: where from, which other operators may read too.
    """

    name: str
    operator: str
    stride: int
    lag: int
    state_rows: int
    states: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StreamedModel:
    """`stream.onnx` and what a session has to know of it.

    cell: lines and columns per row and column of scores; 1: of every pixel. lag_lines: scores trail the newest line by so many
    lines, a multiple of the cell: row 0 of step k's scores is the cell that begins at line k * C - lag_lines.
    stride: chunks and widths are multiples of it.
    reach_lines: lines above and below its own that a row of scores can depend on; the halo has to be as large.
    """

    model: onnx.ModelProto
    cell: int
    lag_lines: int
    stride: int
    states: tuple[StreamState, ...]
    table: tuple[OperatorRow, ...]
    reach_lines: int


def stream(model: onnx.ModelProto, cell: int = 1) -> StreamedModel:
    """Turn a network, `image` (n, 1, h, w) -> `scores` (n, channels, h / cell, w / cell), into a streaming one.

    The result takes `image` (1, 1, C, w) and the states, and gives `scores` (1, channels, C / cell, w / cell) and the next
    states. The input stays untouched. cell: lines per row of scores that are expected; 1: a segmenter.
    Raises StreamRefused naming the first node that cannot stream, and why.
    """
    layout = _Layout.of(model)
    # Which rows each tensor's longest state has to hold is known at the graph's end: the first walk finds out.
    first = _Streamer(layout, {}, cell)
    first.run()
    return _Streamer(layout, first.wanted, cell).run()


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
    of_what = "scores" if streamed.cell == 1 else f"scores of cells of {streamed.cell} x {streamed.cell} pixels"
    lines.append(
        f"{of_what} trail the newest line by {streamed.lag_lines} lines; chunks and widths are multiples of {streamed.stride}; "
        f"{len(streamed.states)} states, {size:.0f} bytes per column of the strip ({size * 4096 / 1e6:.1f} MB at 4096 columns)"
    )
    return "\n".join(line.rstrip() for line in lines)


@dataclass(frozen=True, slots=True)
class _Layout:
    """What is known of a graph before the walk: its ends, constants, and element types and shapes at a tile.

    larger: shapes at a tile twice as high and wide; empty where the graph fixes its size.
    """

    model: onnx.ModelProto
    image: onnx.ValueInfoProto
    scores: onnx.ValueInfoProto
    constants: dict[str, onnx.TensorProto]
    producers: dict[str, onnx.NodeProto]
    tile: tuple[int, int]
    types: dict[str, int]
    shapes: dict[str, Shape]
    larger: dict[str, Shape]

    @staticmethod
    def of(model: onnx.ModelProto) -> _Layout:
        graph = model.graph
        image, scores = _ends(graph)
        constants = {tensor.name: tensor for tensor in graph.initializer}
        constants |= {n.output[0]: n.attribute[0].t for n in graph.node if _is_constant(n)}
        dims = image.type.tensor_type.shape.dim
        if len(dims) != 4 or not dims[1].dim_value:
            raise StreamRefused(
                f"input {image.name} cannot stream: got {len(dims)} axes; expected (n, channels, h, w) with fixed channels",
                image.name,
            )
        tile = dims[2].dim_value or _FREE_TILE, dims[3].dim_value or _FREE_TILE
        try:
            types, shapes = _inferred(model, image, tile)
        except onnx.shape_inference.InferenceError as error:
            raise StreamRefused(
                f"graph {graph.name} cannot stream: its shapes do not fit together: {error}", graph.name
            ) from error
        try:
            _, larger = _inferred(model, image, (2 * tile[0], 2 * tile[1]))
        except onnx.shape_inference.InferenceError:
            larger = {}  # the operator that fixes the size is yet to be met, and named
        producers = {name: node for node in graph.node for name in node.output}
        return _Layout(model, image, scores, constants, producers, tile, types, shapes, larger)


class _Streamer:
    """The walk over the graph: what is known of each tensor, and the nodes written so far.

    longest: rows that a tensor's first-in-first-out holds. wanted: what the walk found that it has to.
    """

    def __init__(self, layout: _Layout, longest: Mapping[str, int], cell: int) -> None:
        self._layout = layout
        self._cell = cell
        self._longest = longest
        self.wanted: dict[str, int] = {}
        graph = layout.model.graph
        self._taken = {name for node in graph.node for name in (*node.input, *node.output, node.name)} | set(layout.constants)
        self._rows = {layout.image.name: Rows(stride=1, lag=0, above=0, below=0)}
        self._nodes: list[onnx.NodeProto] = []
        self._written: dict[str, onnx.NodeProto] = {}
        self._integers: dict[tuple[int, ...], onnx.TensorProto] = {}
        self._states: list[StreamState] = []
        self._carried: dict[tuple[str, int], tuple[str, StreamState]] = {}
        self._table: list[OperatorRow] = []

    def run(self) -> StreamedModel:
        for node in self._layout.model.graph.node:
            self._visit(node)
        output = self._layout.scores.name
        rows = self._rows.get(output)
        if rows is None or rows.stride != self._cell or rows.extra != (0, 0) or rows.lag < 0:
            got = "do not depend on the image" if rows is None else f"have {rows.stride} lines a row"
            if rows is not None and rows.stride == self._cell:
                got = f"have {rows.extra} rows and columns more than the image, the first {-rows.lag} rows below its line"
            per = "line" if self._cell == 1 else f"{self._cell} lines"
            raise StreamRefused(f"output {output} cannot stream: its scores {got}; expected one row of scores per {per}", output)
        return StreamedModel(
            model=self._assembled(),
            cell=self._cell,
            lag_lines=rows.lag * self._cell,
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
        layout = self._layout
        for name in node.input:
            if name and name not in layout.shapes:
                raise refused(node, f"cannot stream: the shape of its input {name} is not known; expected a fixed tile")
        operator = Operator(node, layout.shapes, layout.constants, frozenset(self._rows))
        geometry = row_geometry(operator)
        if isinstance(geometry, RowWindow):
            rows, held = self._windowed(node, geometry)
        elif isinstance(geometry, RowSpread):
            rows, held = self._spread(operator, geometry)
        elif isinstance(geometry, RowShift):
            rows, held = self._shifted(node, geometry)
        else:
            rows, held = self._joined(operator, inputs)
        rows = self._sized(operator, rows, isinstance(geometry, RowLocal | RowShift))
        if isinstance(geometry, RowShift):  # rows cropped away are outside for what follows, as lines beyond the strip are
            rows = replace(rows, above=max(0, rows.above), below=max(-rows.extra[0] * rows.stride, rows.below))
        for name in node.output:
            if name:
                self._rows[name] = rows
                self._written[name] = self._nodes[-1]
        if held or not isinstance(geometry, RowLocal):
            name = node.name or node.output[0]
            read, states = sum(keep for keep, _ in held), tuple(state.input for _, state in held)
            self._table.append(OperatorRow(name, node.op_type, rows.stride, rows.lag, read, states))

    def _windowed(self, node: onnx.NodeProto, window: RowWindow) -> tuple[Rows, _Held]:
        """A convolution or pooling becomes valid on rows: the rows before and behind come out of the state instead of padding."""
        source = self._rows[node.input[0]]
        kernel, stride, top = window.kernel, window.stride, window.top
        # The last row of a step, -lag - 1 strides from the newest input row, must not read beyond that one.
        lag = max(0, -((source.lag + kernel - top - stride) // -stride))
        keep = lag * stride + top - source.lag
        spare = keep + stride - kernel
        name, held = self._with_state(node, node.input[0], keep, spare)
        written = _copied(node, name)
        if node.op_type != "SpaceToDepth":
            _set_attributes(written, {"pads": [0, window.columns[0], 0, window.columns[1]]}, "auto_pad")
        self._nodes.append(written)
        rows = Rows(
            stride=source.stride * stride,
            lag=lag,
            above=source.above + top * source.stride,
            below=source.below + (kernel - top - stride) * source.stride,
        )
        return rows, held

    def _spread(self, operator: Operator, spread: RowSpread) -> tuple[Rows, _Held]:
        """Upsampling: of the rows that it makes, those that lack a contribution from rows still to come wait for them."""
        node, source = operator.node, self._rows[operator.node.input[0]]
        kernel, factor, top = spread.kernel, spread.stride, spread.top
        if source.stride % factor:
            raise operator.refuse(f"it makes {factor} rows of {source.stride} lines; expected at least one line a row")
        keep = max(0, -(-kernel // factor) - 1)
        name, held = self._with_state(node, node.input[0], keep, 0)
        written = _copied(node, name)
        self._nodes.append(written)
        if node.op_type == "ConvTranspose":
            # Its first rows belong to the kept ones, its last ones to the next step: cut off as padding is.
            pads = [keep * factor, spread.columns[0], max(0, kernel - factor), spread.columns[1]]
            padding = [max(0, factor - kernel), operator.integers("output_padding", (0, 0))[1]]
            _set_attributes(written, {"pads": pads, "output_padding": padding}, "auto_pad", "output_shape")
        elif keep:
            whole = written.output[0] = self._fresh(f"{node.output[0]}_uncut")
            self._slice(whole, keep * factor - top, -top if top else _TO_THE_END, node.output[0], output=node.output[0])
        stride = source.stride // factor
        rows = Rows(
            stride=stride,
            lag=source.lag * factor + top,
            above=source.above + (kernel - 1 - top) * stride,
            below=source.below + (factor - 1 + top) * stride,
        )
        return rows, held

    def _shifted(self, node: onnx.NodeProto, shift: RowShift) -> tuple[Rows, _Held]:
        """Padding and cropping: along rows only the counting changes, along columns they stay."""
        source = self._rows[node.input[0]]
        written = _copied(node, node.input[0])
        if shift.left_over is None:
            written = helper.make_node("Identity", [node.input[0]], node.output, name=node.name)
        else:
            constants = [self._integer(*(int(value) for value in values)) for values in shift.left_over]
            # a Pad's axes are all of them now
            others = list(node.input[1 + len(constants) : 3]) if node.op_type == "Pad" else []
            written.input[:] = [node.input[0], *constants, *others]
            _set_attributes(written, {}, "pads")
        self._nodes.append(written)
        down = shift.top * source.stride
        return Rows(source.stride, source.lag - shift.top, source.above + down, source.below - down, source.extra), []

    def _joined(self, operator: Operator, inputs: list[str]) -> tuple[Rows, _Held]:
        """Branches meet at the same row: those ahead wait in a first-in-first-out for the one that trails most."""
        node = operator.node
        sources = [self._rows[name] for name in inputs]
        if len({source.stride for source in sources}) > 1:
            raise operator.refuse(f"its inputs have {[source.stride for source in sources]} lines a row; expected the same")
        lag = max(source.lag for source in sources)
        above, below = max(source.above for source in sources), max(source.below for source in sources)
        written = _copied(node, node.input[0])
        held: _Held = []
        for index, name in enumerate(node.input):
            if name in self._rows and (behind := lag - self._rows[name].lag):
                written.input[index], more = self._with_state(node, name, behind, behind, waits=True)
                held += more
        self._nodes.append(written)
        return Rows(sources[0].stride, lag, above, below), held

    def _with_state(self, node: onnx.NodeProto, tensor: str, keep: int, spare: int, waits: bool = False) -> tuple[str, _Held]:
        """`tensor` with the `keep` rows before its new ones in front and without its last `spare` rows; waits: in a queue.

        Behind a DequantizeLinear the rows are kept as integers and dequantized afterwards, so that runtimes still find
        their quantized patterns and the state is a quarter as large; behind padding along columns they are kept unpadded.
        """
        if keep == 0 and spare == 0:
            return tensor, []
        name, again = tensor, []
        while (made := self._written.get(name)) and (made.op_type == "DequantizeLinear" or self._rows[name].extra[1]):
            if len(self._rows.keys() & set(made.input)) > 1:
                raise refused(node, f"cannot stream: rows of {name}, joined after padding, would be kept; pad once, behind")
            name = made.input[0]
            again.append(made)
        base, start = name, -keep
        held: _Held = []
        if keep > 0:
            rows = keep
            if waits:
                # a kernel's few rows gain nothing by sharing, and ONNX Runtime transposes more where more operators read a state
                self.wanted[base] = max(keep, self.wanted.get(base, 0))
                rows = max(keep, self._longest.get(base, 0))
            name, state = self._carry(node, base, rows)
            held, start = [(keep, state)], state.rows - keep
        if start > 0 or spare > 0:
            name = self._slice(name, start, -spare if spare else _TO_THE_END, f"{base}_rows")
        for made in reversed(again):
            repeated = _copied(made, name)
            repeated.name = self._fresh(f"{made.name or made.output[0]}_carried")
            repeated.output[0] = name = self._fresh(f"{made.output[0]}_carried")
            self._nodes.append(repeated)
        return name, held

    def _carry(self, node: onnx.NodeProto, tensor: str, rows: int) -> tuple[str, StreamState]:
        """A tensor behind its state of so many rows."""
        if (tensor, rows) in self._carried:
            return self._carried[tensor, rows]
        kind = self._layout.types[tensor]
        dtype = _STATE_DTYPES.get(kind)
        if dtype is None:
            name = TensorProto.DataType.Name(kind)
            raise refused(node, f"cannot stream: rows of {tensor} would be kept, {name}; expected float or 8 bits")
        label = f"{len(self._states):02d}_{_label(node)}"
        state = StreamState(
            input=self._fresh(f"state_{label}"),
            output=self._fresh(f"next_{label}"),
            channels=self._layout.shapes[tensor][1],
            rows=rows,
            stride=self._rows[tensor].stride,
            dtype=dtype,
        )
        joined = self._fresh(f"{tensor}_with_state")
        self._nodes.append(
            helper.make_node("Concat", [state.input, tensor], [joined], name=self._fresh(f"prepend_{label}"), axis=2)
        )
        self._slice(joined, -state.rows, _TO_THE_END, state.output, output=state.output)
        self._states.append(state)
        self._carried[tensor, rows] = joined, state
        return joined, state

    def _slice(self, tensor: str, start: int, stop: int, label: str, output: str | None = None) -> str:
        """Rows [start, stop) of a tensor, each counted from its own end of the tensor: free of the chunk's height."""
        output = output or self._fresh(label)
        bounds = [self._integer(value) for value in (start, stop, 2)]
        self._nodes.append(helper.make_node("Slice", [tensor, *bounds], [output], name=self._fresh(f"rows_of_{label}")))
        return output

    def _integer(self, *values: int) -> str:
        """Name of a constant (len(values),) int64."""
        words = ["to_the_end" if value == _TO_THE_END else str(value).replace("-", "minus_") for value in values]
        if values not in self._integers:
            name = self._fresh("rows_" + "_".join(words))
            self._integers[values] = numpy_helper.from_array(np.array(values, np.int64), name)
        return self._integers[values].name

    def _sized(self, operator: Operator, rows: Rows, may_exceed: bool) -> Rows:
        """Rows with what its output has in excess; every other tensor must have one row and column per `stride`, at any size.

        Raises StreamRefused.
        """
        layout, tile = self._layout, self._layout.tile
        for name in operator.node.output:
            if not name:
                continue
            shape, larger = layout.shapes.get(name, ()), layout.larger.get(name)
            expected = tuple(size // rows.stride for size in tile)
            fits = len(shape) == 4 and not any(size % rows.stride for size in tile)
            extra = (shape[2] - expected[0], shape[3] - expected[1]) if fits else (0, 0)
            if larger is not None:
                grown = tuple(after - before for after, before in zip(larger[2:], shape[2:], strict=True))
                fits = fits and grown == expected
            if not fits or (extra != (0, 0) and not (may_exceed and layout.larger)):
                raise operator.refuse(
                    f"at a tile of {tile} its output has shape {shape}; expected {expected} rows and columns, "
                    f"one per {rows.stride} lines (padding that keeps the size, and the same stride along and across)"
                )
            rows = replace(rows, extra=extra)
        return rows

    def _fresh(self, name: str) -> str:
        fresh, count = name, 1
        while fresh in self._taken:
            fresh, count = f"{name}_{count}", count + 1
        self._taken.add(fresh)
        return fresh

    def _assembled(self) -> onnx.ModelProto:
        graph = self._layout.model.graph
        image, scores = self._layout.image, self._layout.scores
        outputs = [scores.name, *(state.output for state in self._states)]
        nodes = _reachable(self._nodes, outputs)
        used = {name for node in nodes for name in node.input}
        channels = self._layout.shapes[image.name][1], self._layout.shapes[scores.name][1]
        model = onnx.ModelProto()
        model.CopyFrom(self._layout.model)
        model.graph.Clear()
        model.graph.name = f"{graph.name}_streaming"
        model.graph.node.extend(nodes)
        model.graph.initializer.extend(t for t in graph.initializer if t.name in used)
        model.graph.initializer.extend(t for t in self._integers.values() if t.name in used)
        kind_in, kind_out = self._layout.types[image.name], self._layout.types[scores.name]
        model.graph.input.append(helper.make_tensor_value_info(image.name, kind_in, [1, channels[0], "lines", "columns"]))
        of_scores = ("lines", "columns") if self._cell == 1 else (f"lines_{self._cell}", f"columns_{self._cell}")
        model.graph.output.append(helper.make_tensor_value_info(scores.name, kind_out, [1, channels[1], *of_scores]))
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
        raise StreamRefused(
            f"graph {graph.name} cannot stream: inputs {names[0]}, outputs {names[1]}; expected an image in and scores out",
            graph.name,
        )
    return inputs[0], graph.output[0]


def _inferred(
    model: onnx.ModelProto, image: onnx.ValueInfoProto, tile: tuple[int, int]
) -> tuple[dict[str, int], dict[str, Shape]]:
    """Element types and shapes of all tensors at one image of `tile` lines and columns. Raises InferenceError."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    del fixed.graph.value_info[:]
    sizes = [1, image.type.tensor_type.shape.dim[1].dim_value, *tile]
    for value in fixed.graph.input:
        if value.name == image.name:
            value.CopyFrom(helper.make_tensor_value_info(image.name, image.type.tensor_type.elem_type, sizes))
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    fixed = onnx.shape_inference.infer_shapes(fixed, check_type=True, strict_mode=True, data_prop=True)
    types: dict[str, int] = {}
    shapes: dict[str, Shape] = {}
    for value in (*fixed.graph.input, *fixed.graph.value_info, *fixed.graph.output):
        tensor = value.type.tensor_type
        types[value.name] = tensor.elem_type
        if tensor.HasField("shape"):
            shapes[value.name] = tuple(dim.dim_value for dim in tensor.shape.dim)
    for constant in fixed.graph.initializer:
        types[constant.name], shapes[constant.name] = constant.data_type, tuple(constant.dims)
    return types, shapes


def _is_constant(node: onnx.NodeProto) -> bool:
    return node.op_type == "Constant" and node.attribute[0].name == "value"


def _copied(node: onnx.NodeProto, source: str) -> onnx.NodeProto:
    """The node, reading another tensor first."""
    copied = onnx.NodeProto()
    copied.CopyFrom(node)
    copied.input[0] = source
    return copied


def _set_attributes(node: onnx.NodeProto, attributes: Mapping[str, list[int]], *dropped: str) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name not in attributes and attribute.name not in dropped]
    del node.attribute[:]
    node.attribute.extend([*kept, *(helper.make_attribute(name, value) for name, value in attributes.items())])


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
