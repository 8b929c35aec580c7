"""Earlier rows of a stream put before the new ones without copying those, for OpenVINO, where a step's height is known.

A streaming engine joins the rows that it kept to almost every tensor. OpenVINO lets an operator write straight into its place in
a Concat's output, but only where all axes before the joined one have size 1; planes of channels it copies whole, a tenth of an
INT8 U-Net's time. Its integer convolutions keep channels last, in memory (rows, columns, channels): seen as (1, rows,
columns * channels) the same bytes can be joined in place, and the changes of view cost nothing. They stand behind the
DequantizeLinear, which OpenVINO moves over them to the convolution; from behind them it moves it up, and computes in floats.

Rows that only wait for another branch lie in the state alone where a step is no higher than the queue: nothing is joined then.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper

from edge.manifest import StreamState
from edge.sessions.integer_graph import IntegerGraph, new_node

_ROWS: Final = 2
_FLAT_ROWS: Final = 1
_TO_THE_END: Final = int(np.iinfo(np.int64).max)
_LAST: Final = (0, 2, 3, 1)
_FIRST: Final = (0, 3, 1, 2)


@dataclass(frozen=True, slots=True)
class _Joint:
    """A state before new rows. held: rows of the state, new: rows that a step brings. joined: the Concat's output.

    leaves: the Slice that keeps rows for the next step. reads: the DequantizeLinear nodes through which all else reads the
    joined rows, each with the first row and the one past the last that it takes.
    """

    state: str
    fresh: str
    joined: str
    channels: int
    held: int
    new: int
    leaves: NodeProto
    reads: tuple[tuple[NodeProto, int, int], ...]


def join_rows_in_place(model: onnx.ModelProto, states: Iterable[StreamState], chunk_lines: int) -> onnx.ModelProto:
    """A streaming engine, rewritten for OpenVINO, whose integer rows are joined where they lie; the one given stays as it is.

    states: of the manifest. Those of what is joined so enter and leave as (1, rows, columns * channels). A state that is not
    as the manifest says stays what it is.
    """
    graph = IntegerGraph.of(model)
    by_input = {state.input: state for state in states}
    found = {
        node.output[0]: _joint(graph, model, node, by_input, chunk_lines) for node in graph.nodes if node.op_type == "Concat"
    }
    joints = {name: joint for name, joint in found.items() if joint is not None}
    if not joints:
        return model
    gone = {read.output[0] for joint in joints.values() for read, _, _ in joint.reads}
    gone.update(joint.leaves.output[0] for joint in joints.values())
    nodes: list[NodeProto] = []
    for node in graph.nodes:
        if joint := joints.get(node.output[0]):
            nodes += _written(graph, joint)
        elif node.output[0] not in gone:
            nodes.append(_waiting_first(node, gone))
    rewritten = onnx.ModelProto()
    rewritten.CopyFrom(model)
    for joint in joints.values():
        _declare_flat(rewritten, joint)
    graph.put_into(rewritten, nodes)
    return rewritten


def _joint(
    graph: IntegerGraph, model: onnx.ModelProto, node: NodeProto, states: Mapping[str, StreamState], chunk_lines: int
) -> _Joint | None:
    """What a Concat joins; None where that are no rows of a state, or something else than DequantizeLinear reads them."""
    state = states.get(node.input[0])
    if state is None or len(node.input) != 2 or helper.get_attribute_value(node.attribute[0]) != _ROWS:
        return None
    declared = next(value.type.tensor_type for value in model.graph.input if value.name == state.input)
    _, channels, held, _ = (size.dim_value for size in declared.shape.dim)
    # one channel lies in planes as it lies in pixels
    if declared.elem_type not in (TensorProto.INT8, TensorProto.UINT8) or channels == 1:
        return None
    if (channels, held) != (state.channels, state.rows):
        return None
    new = chunk_lines // state.stride
    users = graph.consumers.get(node.output[0], [])
    leaves = [user for user in users if user.output[0] in graph.outputs]
    if len(leaves) != 1 or _bounds(graph, leaves[0]) != (-held, _TO_THE_END) or node.output[0] in graph.outputs:
        return None
    reads: list[tuple[NodeProto, int, int]] = []
    for user in users:
        bounds = _bounds(graph, user)
        if user is not leaves[0]:
            first, last, _ = slice(*(bounds or (0, _TO_THE_END))).indices(held + new)
            reads += [(read, first, last) for read in ([user] if bounds is None else graph.consumers.get(user.output[0], []))]
    if any(read.op_type != "DequantizeLinear" or first >= last for read, first, last in reads):
        return None
    # What is both joined in place and kept whole has two places to be written to: OpenVINO 2026.4 then reads rows of neither.
    # Steps so low cost little anyway.
    if new <= held and not (new < held and all(last <= held for _, _, last in reads)):
        return None
    return _Joint(node.input[0], node.input[1], node.output[0], channels, held, new, leaves[0], tuple(reads))


def _bounds(graph: IntegerGraph, node: NodeProto) -> tuple[int, int] | None:
    """First row and the one past the last that a Slice takes, as it counts them; None of other operators."""
    if node.op_type != "Slice" or len(node.input) != 4 or not all(graph.is_constant(name) for name in node.input[1:]):
        return None
    start, stop, axes = (graph.values.constants[name].tolist() for name in node.input[1:])
    return (start[0], stop[0]) if axes == [_ROWS] else None


def _written(graph: IntegerGraph, joint: _Joint) -> Iterator[NodeProto]:
    """The rows for the next step, and the dequantized rows that each read gave."""
    yield from _kept(graph, joint)
    for read, first, last in joint.reads:
        name, quantization = read.output[0], read.input[1:]
        parts: list[str] = []
        if first < joint.held:
            parts.append(f"{name}/held")
            yield _cut(graph, joint.state, first, min(last, joint.held), f"{name}/held/integers", _FLAT_ROWS)
            yield new_node("DequantizeLinear", [f"{name}/held/integers", *quantization], f"{name}/held")
        if last > joint.held:
            parts.append(f"{name}/new")
            yield _cut(graph, joint.fresh, max(0, first - joint.held), last - joint.held, f"{name}/new/integers", _ROWS)
            yield new_node("DequantizeLinear", [f"{name}/new/integers", *quantization], f"{name}/new/planes")
            yield from _flattened(graph, f"{name}/new/planes", f"{name}/new")
        yield _concatenated(parts, f"{name}/rows")
        pixels = graph.constant(f"rust_edge/pixels_of_{joint.channels}", np.array([0, 0, -1, joint.channels], np.int64))
        yield new_node("Reshape", [f"{name}/rows", pixels], f"{name}/pixels")
        yield _transposed(f"{name}/pixels", name, _FIRST)


def _waiting_first(node: NodeProto, waiting: Collection[str]) -> NodeProto:
    """An Add whose first operand is the one that waited: OpenVINO scales the other one there, in floats, a whole upsampling."""
    if node.op_type == "Add" and node.input[1] in waiting:
        node.input[:] = node.input[::-1]
    return node


def _kept(graph: IntegerGraph, joint: _Joint) -> Iterator[NodeProto]:
    """The newest rows, as many as the state has."""
    output = joint.leaves.output[0]
    if joint.new >= joint.held:
        yield _cut(graph, joint.fresh, joint.new - joint.held, joint.new, f"{output}/newest", _ROWS)
        yield from _flattened(graph, f"{output}/newest", output)
    else:
        yield _cut(graph, joint.state, joint.new, joint.held, f"{output}/held", _FLAT_ROWS)
        yield from _flattened(graph, joint.fresh, f"{output}/new")
        yield _concatenated([f"{output}/held", f"{output}/new"], output)


def _cut(graph: IntegerGraph, tensor: str, start: int, stop: int, output: str, axis: int) -> NodeProto:
    named = [graph.constant(f"rust_edge/rows_{value}", np.array([value], np.int64)) for value in (start, stop, axis)]
    return new_node("Slice", [tensor, *named], output)


def _flattened(graph: IntegerGraph, tensor: str, output: str) -> Iterator[NodeProto]:
    flat = graph.constant("rust_edge/flat_rows", np.array([0, 0, -1], np.int64))
    yield _transposed(tensor, f"{output}/pixels", _LAST)
    yield new_node("Reshape", [f"{output}/pixels", flat], output)


def _concatenated(tensors: list[str], output: str) -> NodeProto:
    node = new_node("Concat", tensors, output)
    node.attribute.append(helper.make_attribute("axis", _FLAT_ROWS))
    return node


def _transposed(tensor: str, output: str, order: tuple[int, ...]) -> NodeProto:
    node = new_node("Transpose", [tensor], output)
    node.attribute.append(helper.make_attribute("perm", order))
    return node


def _declare_flat(model: onnx.ModelProto, joint: _Joint) -> None:
    for value in [*model.graph.input, *model.graph.output]:
        if value.name in (joint.state, joint.leaves.output[0]):
            kind = value.type.tensor_type.elem_type
            value.CopyFrom(helper.make_tensor_value_info(value.name, kind, [1, joint.held, None]))
