"""Graphs of other opsets brought to the one that every device reads."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper, version_converter

from export.errors import ExportError
from export.passes.naming import label, names_in, unique
from export.passes.sizes import known_shapes
from export.to_onnx import IR_VERSION, OPSET

_PARKED: Final = "parked"
"""Domain under which onnx's converter leaves nodes alone, for those that it has no rule for although they are the same in 17."""

_SAME: Final = frozenset(("Pad", "Split", "GlobalMaxPool", "LpPool", "GlobalLpPool"))

_WITHOUT_EFFECT: Final = frozenset(("noop_with_empty_axes", "saturate", "antialias", "keep_aspect_ratio_policy"))
"""Attributes of later forms: for no axes where there are some, for 8-bit floats, and two that the converter passes when off."""


def opset_of(model: onnx.ModelProto) -> int:
    """Version of ONNX's own operators that a graph is written in; 0: it does not say."""
    return next((int(opset.version) for opset in model.opset_import if opset.domain in ("", "ai.onnx")), 0)


def to_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in opset 17 and IR 8, with ONNX's own operators alone. Raises ExportError naming the operator that has no equal."""
    version = opset_of(model)
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    if version > OPSET:
        _lower(changed)
    if version != OPSET:
        try:
            changed = version_converter.convert_version(changed, OPSET)
        except (RuntimeError, ValueError) as error:
            raise ExportError(
                f"{_culprit(model, error)} of opset {version} has no equal in opset {OPSET}, which is what every device reads; "
                f"export the network with opset {OPSET}"
            ) from error
    for node in changed.graph.node:
        node.domain = ""
        if version > OPSET:
            _drop_later_attributes(node)
    del changed.opset_import[:]
    changed.opset_import.append(helper.make_opsetid("", OPSET))
    changed.ir_version = IR_VERSION
    return changed


def _drop_later_attributes(node: NodeProto) -> None:
    """Take off what the converter leaves of later forms, in place. Raises ExportError where it would mean something else."""
    known = onnx.defs.get_schema(node.op_type, OPSET).attributes
    for attribute in [attribute for attribute in node.attribute if attribute.name not in known]:
        asks = attribute.name == "noop_with_empty_axes" and attribute.i and not _attribute(node, "axes")
        if attribute.name not in _WITHOUT_EFFECT or asks:
            raise ExportError(f"{label(node)} has no {attribute.name} in opset {OPSET}; export the network with opset {OPSET}")
        node.attribute.remove(attribute)


def _culprit(model: onnx.ModelProto, error: Exception) -> str:
    text = str(error)
    found = re.search(r"(?:for|Version of) (\w+)(?: exists)?\s*$", text) or re.search(r"failed: (\w+) ", text)
    operator = found.group(1) if found else ""
    node = next((node for node in model.graph.node if node.op_type == operator), None)
    return label(node) if node is not None else f"the graph ({text.splitlines()[-1][:120]})"


def _lower(model: onnx.ModelProto) -> None:
    """Write what came after opset 17 in its operators, in place, where the converter does not do so itself."""
    graph = model.graph
    lowering = _Lowering(graph, known_shapes(model))
    nodes = [written for node in graph.node for written in lowering.lower(node)]
    del graph.node[:]
    graph.node.extend(nodes)
    model.opset_import.append(helper.make_opsetid(_PARKED, 1))


class _Lowering:
    """The rules, and the names that their nodes take."""

    def __init__(self, graph: onnx.GraphProto, shapes: dict[str, list[int]]) -> None:
        self._graph = graph
        self._shapes = shapes
        self._taken = names_in(graph)
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._rules: dict[str, Callable[[NodeProto], list[NodeProto]]] = {
            "Gelu": self._gelu,
            "Mish": self._mish,
            "Pad": self._pad,
            "Split": self._split,
        }

    def lower(self, node: NodeProto) -> list[NodeProto]:
        """The nodes that stand for one."""
        rule = self._rules.get(node.op_type)
        written = rule(node) if rule and node.domain in ("", "ai.onnx") else [node]
        for own in written:
            if own.op_type in _SAME:
                own.domain = _PARKED
        return written

    def _gelu(self, node: NodeProto) -> list[NodeProto]:
        """Source: ONNX operator Gelu."""
        approximate = _attribute(node, "approximate")
        image = node.input[0]
        if approximate not in (None, b"none"):
            cube = self._chain(node, ("Mul", image, image), ("Mul", "", image), ("Mul", "", self._number(0.044715)))
            inner = self._chain(node, ("Add", cube[-1].output[0], image), ("Mul", "", self._number(math.sqrt(2 / math.pi))))
            nodes = [*cube, *inner, *self._chain(node, ("Tanh", inner[-1].output[0]))]
        else:
            nodes = self._chain(node, ("Mul", image, self._number(math.sqrt(0.5))), ("Erf", ""))
        tail = ("Add", nodes[-1].output[0], self._number(1.0)), ("Mul", "", image), ("Mul", "", self._number(0.5))
        return self._ending(node, [*nodes, *self._chain(node, *tail)])

    def _mish(self, node: NodeProto) -> list[NodeProto]:
        """Source: ONNX operator Mish."""
        return self._ending(node, self._chain(node, ("Softplus", node.input[0]), ("Tanh", ""), ("Mul", "", node.input[0])))

    def _pad(self, node: NodeProto) -> list[NodeProto]:
        if _attribute(node, "mode") == b"wrap":
            raise ExportError(f"{label(node)} pads by wrapping round, which has no equal in opset {OPSET}")
        if len(node.input) < 4 or not node.input[3]:
            return [node]
        rank, axes = len(self._shapes.get(node.input[0], ())), self._constants.get(node.input[3])
        pads = self._constants.get(node.input[1])
        if not rank or axes is None or pads is None:
            raise ExportError(f"{label(node)} computes its axes; export the network with opset {OPSET}")
        whole, given = np.zeros((2, rank), np.int64), numpy_helper.to_array(pads).reshape(2, -1)
        whole[:, numpy_helper.to_array(axes) % rank] = given
        del node.input[3:]
        node.input[1] = self._constant(whole.ravel())
        return [node]

    def _split(self, node: NodeProto) -> list[NodeProto]:
        count = _attribute(node, "num_outputs")
        if count is None:
            return [node]
        axis = _attribute(node, "axis") or 0
        shape = self._shapes.get(node.input[0], [])
        size = shape[axis] if -len(shape) <= axis < len(shape) else 0
        kept = [attribute for attribute in node.attribute if attribute.name != "num_outputs"]
        del node.attribute[:]
        node.attribute.extend(kept)
        if not size:  # parts of one size, as opset 17 splits where it is told none
            return [node]
        each = -(-size // count)
        sizes = [min(each, size - start) for start in range(0, size, each)]
        node.input[:] = [node.input[0], self._constant(np.array(sizes, np.int64))]
        return [node]

    def _chain(self, node: NodeProto, *steps: tuple[str, ...]) -> list[NodeProto]:
        """Nodes one behind the other; an empty name among the inputs is the output of the one before."""
        nodes: list[NodeProto] = []
        for kind, *inputs in steps:
            name = unique(f"{node.name or node.op_type}/{kind}", self._taken)
            given = [value or nodes[-1].output[0] for value in inputs]
            nodes.append(helper.make_node(kind, given, [unique(f"{name}_out", self._taken)], name=name))
        return nodes

    def _ending(self, node: NodeProto, nodes: list[NodeProto]) -> list[NodeProto]:
        nodes[-1].output[0] = node.output[0]
        return nodes

    def _number(self, value: float) -> str:
        return self._constant(np.array(value, np.float32))

    def _constant(self, values: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> str:
        name = unique("constant", self._taken)
        self._graph.initializer.append(numpy_helper.from_array(values, name))
        return name


def _attribute(node: NodeProto, name: str) -> Any:
    return next((helper.get_attribute_value(attribute) for attribute in node.attribute if attribute.name == name), None)
