"""A quantized graph's integer tensors: who makes and uses them, what hands them on unchanged, and which are never negative.

The bundle's INT8 file is written for TensorRT: every operator stands between DequantizeLinear and QuantizeLinear, MaxPool and
Concat as well. What runs it on a processor wants the integers themselves there, and to know which of them are never negative.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edge.sessions.graph_values import GraphValues, data_inputs, moves_values


@dataclass(slots=True)
class IntegerGraph:
    """A graph being rewritten: its nodes (copies), who makes and who uses each tensor, and the new initializers."""

    nodes: list[NodeProto]
    values: GraphValues
    outputs: frozenset[str]
    made: dict[str, TensorProto] = field(default_factory=dict)
    consumers: dict[str, list[NodeProto]] = field(default_factory=dict)

    @staticmethod
    def of(model: onnx.ModelProto) -> IntegerGraph:
        """That of a model, which is left as it is."""
        copied = onnx.ModelProto()
        copied.CopyFrom(model)
        graph = IntegerGraph(list(copied.graph.node), GraphValues.of(copied), frozenset(o.name for o in model.graph.output))
        graph.index()
        return graph

    def index(self) -> None:
        """Follows a change of the nodes."""
        self.values.producers.clear()
        self.values.producers.update((output, node) for node in self.nodes for output in node.output)
        self.consumers.clear()
        for node in self.nodes:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)

    def producer(self, tensor: str) -> NodeProto | None:
        """The node that makes a tensor; None for inputs and constants."""
        return self.values.producers.get(tensor)

    def only_consumer(self, tensor: str) -> NodeProto | None:
        """The one node that uses a tensor; None where several do, none does, or it is an output of the graph."""
        users = self.consumers.get(tensor, [])
        return users[0] if len(users) == 1 and tensor not in self.outputs else None

    def constant(self, name: str, values: npt.NDArray[np.generic]) -> str:
        """Name of a new initializer."""
        self.made[name] = numpy_helper.from_array(values, name)
        self.values.constants[name] = values
        return name

    def scale(self, node: NodeProto) -> npt.NDArray[np.float32]:
        """Scale of a Q or DQ node."""
        return self.values.constants[node.input[1]].astype(np.float32)

    def is_symmetric(self, node: NodeProto) -> bool:
        """Whether a Q or DQ node is for int8 around zero point 0."""
        zero_point = self.values.constants.get(node.input[2]) if len(node.input) > 2 else None  # none stands for uint8
        return zero_point is not None and zero_point.dtype == np.int8 and not zero_point.any()

    def activation_dq(self, tensor: str) -> NodeProto | None:
        """The DequantizeLinear that makes a tensor out of integers that are no constant."""
        node = self.producer(tensor)
        return node if node is not None and node.op_type == "DequantizeLinear" and not self.is_constant(node.input[0]) else None

    def is_constant(self, tensor: str) -> bool:
        """Whether a tensor is a weight or another constant."""
        return tensor in self.values.constants

    def put_into(self, model: onnx.ModelProto, nodes: Iterable[NodeProto]) -> None:
        """Make `nodes` the model's, as far as the outputs depend on them, with the initializers that they use."""
        live = _live(list(nodes), self.outputs)
        used = {name for node in live for name in node.input}
        kept = [i for i in model.graph.initializer if i.name in used and i.name not in self.made]
        del model.graph.node[:], model.graph.initializer[:]
        model.graph.node.extend(live)
        model.graph.initializer.extend([*kept, *(made for name, made in self.made.items() if name in used)])


def quantize_before_moving(graph: IntegerGraph) -> None:
    """X -> Concat -> Q becomes X -> Q -> DQ -> Concat -> Q: the same values, and X's convolution gets the Q that it needs."""
    changed = True
    while changed:
        changed = False
        for position, node in enumerate(graph.nodes):
            quantize = graph.only_consumer(node.output[0])
            if quantize is None or quantize.op_type != "QuantizeLinear" or not moves_values(node):
                continue
            bare = [name for name in data_inputs(node) if graph.activation_dq(name) is None]
            if not bare or any(graph.only_consumer(name) is not node or graph.producer(name) is None for name in bare):
                continue
            inserted = []
            for name in bare:
                integers, floats = f"{name}/mended_int8", f"{name}/mended"
                inserted.append(new_node("QuantizeLinear", [name, *quantize.input[1:]], integers))
                inserted.append(new_node("DequantizeLinear", [integers, *quantize.input[1:]], floats))
                node.input[list(node.input).index(name)] = floats
            graph.nodes[position:position] = inserted
            graph.index()
            changed = True
            break


def move_integers(graph: IntegerGraph) -> None:
    """DQ -> MaxPool -> Q at one scale becomes MaxPool on the integers; so do nearest Resize, Concat and the like."""
    for node in list(graph.nodes):
        quantize = graph.only_consumer(node.output[0])
        if quantize is None or quantize.op_type != "QuantizeLinear" or not moves_values(node):
            continue
        dequantized = [graph.activation_dq(name) for name in data_inputs(node)]
        if any(dq is None or not np.array_equal(graph.scale(dq), graph.scale(quantize)) for dq in dequantized):
            continue
        for index, dq in enumerate(dequantized):
            node.input[index] = dq.input[0] if dq is not None else ""
        node.output[0] = quantize.output[0]
        graph.nodes = [other for other in graph.nodes if other is not quantize]
        graph.index()


def negative_integers(graph: IntegerGraph, model: onnx.ModelProto) -> dict[str, bool] | None:
    """By name of every int8 activation: whether it may be negative; alike for all tensors that operators on integers join.

    None: integers in an operator that is not known here, or some that are not int8 around zero point 0.
    """
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for value in [*model.graph.input, *model.graph.output]:
        if value.type.tensor_type.elem_type == TensorProto.INT8:
            root(value.name)
    quantizers = [node for node in graph.nodes if node.op_type == "QuantizeLinear"]
    if not all(graph.is_symmetric(node) for node in quantizers):
        return None
    for node in graph.nodes:
        if node.op_type == "QuantizeLinear":
            root(node.output[0])
        elif node.op_type == "DequantizeLinear" and not graph.is_constant(node.input[0]):
            root(node.input[0])
        elif integers := [name for name in node.input if name in parent]:
            if not moves_values(node) or integers != data_inputs(node):
                return None
            for name in [*integers[1:], *node.output]:
                parent[root(name)] = root(integers[0])
    # A state holds earlier rows of what it is joined with; integers that nothing in the graph quantizes may be anything.
    signed = {root(name) for name in parent} - {root(node.output[0]) for node in quantizers}
    found = -1
    while found != len(signed):  # an Add is not negative while its operands are not, so what is found signed spreads
        found = len(signed)
        for node in quantizers:
            if not graph.values.non_negative(node.input[0], lambda name: root(name) not in signed):
                signed.add(root(node.output[0]))
    return {name: root(name) in signed for name in parent}


def new_node(kind: str, inputs: list[str], output: str, name: str = "", domain: str = "") -> NodeProto:
    """A node with one output, after which it is called where it has no name of its own."""
    return helper.make_node(kind, inputs, [output], name=name or output, domain=domain)


def _live(nodes: list[NodeProto], outputs: Iterable[str]) -> list[NodeProto]:
    """The nodes that the outputs depend on, in their order."""
    needed = set(outputs)
    kept: list[NodeProto] = []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    return kept[::-1]
