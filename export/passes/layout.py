"""Graphs that keep channels last, as TensorFlow's do, brought to channels first.

Such graphs turn every image before a convolution and back after it. Here a turn back is only remembered, (n, h, w, c) being a
view of (n, c, h, w), and operators on views are written for what lies beneath: most turns meet their opposite and are gone. What
has no such form (a Reshape of rows and columns) gets the turned tensor, as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from export.passes.image_input import CHANNELS_FIRST, CHANNELS_LAST
from export.passes.naming import names_in, unique
from export.passes.sizes import known_shapes

_UNARY: Final = frozenset((
    "Abs", "Cast", "Ceil", "Celu", "Clip", "Cos", "Dropout", "Elu", "Erf", "Exp", "Floor", "HardSigmoid", "HardSwish", "Identity",
    "LeakyRelu", "Log", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign",
    "Sqrt", "Tanh", "ThresholdedRelu",
))  # fmt: skip
_ELEMENTWISE: Final = frozenset((
    "Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or",
    "PRelu", "Pow", "Sub", "Sum", "Where",
))  # fmt: skip
_OF_AXIS: Final = frozenset(("Concat", "Softmax", "LogSoftmax", "Split", "Hardmax"))
_REDUCING: Final = frozenset(("ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceProd", "ReduceL1", "ReduceL2"))
_RESHAPING: Final = frozenset(("Reshape", "Flatten", "Squeeze"))


def to_channels_first(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that computes the same with as few transposes as it takes. Opset 13 or later."""
    turned = onnx.ModelProto()
    turned.CopyFrom(model)
    _Turner(turned).run()
    return turned


class _Turner:
    """The walk over the graph: which tensors are views, and the nodes written so far."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self._taken = names_in(model.graph)
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._shapes = known_shapes(model)
        self._beneath: dict[str, str] = {}
        """Of each view (n, h, w, c) the tensor (n, c, h, w)."""
        self._aliases: dict[str, str] = {}
        self._orders: dict[str, tuple[str, tuple[int, ...]]] = {}
        """Of each other transposed tensor what it is made of, and how."""
        self._opposite: dict[str, str] = {}
        self._written: set[str] = set()
        self._nodes: list[NodeProto] = []

    def run(self) -> None:
        for original in list(self._graph.node):
            node = NodeProto()
            node.CopyFrom(original)
            node.input[:] = [self._aliases.get(name, name) for name in node.input]
            if not (self._turns(node) or (any(name in self._beneath for name in node.input) and self._rewritten(node))):
                self._write(node)
        for value in self._graph.output:
            self._provide(value.name)
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)
        del self._graph.value_info[:]

    def _turns(self, node: NodeProto) -> bool:
        """Take a Transpose between the two layouts for a view, or for the end of one."""
        if node.op_type != "Transpose":
            return False
        order, source, outputs = tuple(node.attribute[0].ints), node.input[0], {value.name for value in self._graph.output}
        if order == CHANNELS_LAST and source not in self._beneath:
            self._beneath[node.output[0]] = source
            return True
        if order == CHANNELS_FIRST and source in self._beneath:
            if node.output[0] in outputs:
                self._nodes.append(helper.make_node("Identity", [self._beneath[source]], [node.output[0]], name=node.name))
            else:
                self._aliases[node.output[0]] = self._beneath[source]
            return True
        return self._merged(node, order)

    def _merged(self, node: NodeProto, order: tuple[int, ...]) -> bool:
        """Take a Transpose behind another one for one of what comes before both; for nothing, where they undo each other."""
        before = self._orders.get(node.input[0])
        if before is None:
            self._orders[node.output[0]] = node.input[0], order
            return False
        source, first = before
        whole = tuple(first[axis] for axis in order)
        if whole == tuple(range(len(whole))) and node.output[0] not in {value.name for value in self._graph.output}:
            self._aliases[node.output[0]] = source
            return True
        node.input[0] = source
        _set(node, "perm", list(whole))
        return self._turns(node) if whole == CHANNELS_LAST else False

    def _rewritten(self, node: NodeProto) -> bool:
        """Write an operator for what lies beneath its views; False: it has no such form."""
        rule = self._rule(node.op_type)
        return rule is not None and rule(node)

    def _rule(self, kind: str) -> Callable[[NodeProto], bool] | None:
        if kind in _UNARY:
            return self._unary
        if kind in _ELEMENTWISE:
            return self._elementwise
        if kind in _OF_AXIS:
            return self._of_axis
        if kind in _REDUCING:
            return self._reducing
        if kind in _RESHAPING:
            return self._reshaping
        return {"Pad": self._pad, "Resize": self._resize, "Slice": self._slice}.get(kind)

    def _unary(self, node: NodeProto) -> bool:
        node.input[0] = self._beneath[node.input[0]] if node.input[0] in self._beneath else node.input[0]
        return self._as_view(node)

    def _elementwise(self, node: NodeProto) -> bool:
        turned = [self._operand(name) for name in node.input]
        if None in turned:
            return False
        node.input[:] = [name for name in turned if name is not None]
        return self._as_view(node)

    def _of_axis(self, node: NodeProto) -> bool:
        if any(
            name not in self._beneath and len(self._shapes.get(name, ())) != 4
            for name in node.input
            if name not in self._constants
        ):
            return False
        axis = next((attribute for attribute in node.attribute if attribute.name == "axis"), None)
        position = -1 if node.op_type in ("Softmax", "LogSoftmax", "Hardmax") else 0
        position = axis.i if axis is not None else position
        turned = [self._operand(name) for name in node.input[: 1 if node.op_type == "Split" else None]]
        if None in turned:
            return False
        node.input[: len(turned)] = [name for name in turned if name is not None]
        _set(node, "axis", CHANNELS_LAST[position % 4])
        return self._as_view(node)

    def _reducing(self, node: NodeProto) -> bool:
        axes = self._axes(node, 1)
        if axes is None:
            return False
        keeps = next((attribute.i for attribute in node.attribute if attribute.name == "keepdims"), 1)
        beneath = [CHANNELS_LAST[axis % 4] for axis in axes]
        # without the reduced axes what is left must come in the same order in both layouts
        left = [axis for axis in range(4) if axis not in [position % 4 for position in axes]]
        if not keeps and [CHANNELS_LAST[axis] for axis in left] != sorted(CHANNELS_LAST[axis] for axis in left):
            return False
        node.input[0] = self._beneath[node.input[0]]
        self._set_axes(node, 1, sorted(beneath))
        if keeps:
            return self._as_view(node)
        self._nodes.append(node)
        return True

    def _reshaping(self, node: NodeProto) -> bool:
        """Of one pixel an image holds its channels in the same order in both layouts."""
        beneath = self._beneath.get(node.input[0], "")
        shape = self._shapes.get(node.input[0]) or self._shapes.get(beneath, [])
        spatial = shape[1:3] if node.input[0] in self._shapes else shape[2:4]
        result = self._shapes.get(node.output[0], [])
        channels = shape[3:] if node.input[0] in self._shapes else shape[1:2]
        if spatial != [1, 1] or len(result) != 2 or result[1:] != channels:
            return False
        flattened = helper.make_node("Flatten", [beneath], [node.output[0]], name=node.name, axis=1)
        self._nodes.append(flattened)
        return True

    def _pad(self, node: NodeProto) -> bool:
        pads = self._values(node.input[1]) if node.input[0] in self._beneath else None
        if pads is None or pads.size != 8:
            return False
        node.input[0] = self._beneath[node.input[0]]
        node.input[1] = self._constant(pads.reshape(2, 4)[:, CHANNELS_FIRST].ravel())
        return self._as_view(node)

    def _resize(self, node: NodeProto) -> bool:
        if node.input[0] not in self._beneath:
            return False
        replaced: dict[int, str] = {}
        for index in range(2, len(node.input)):
            if node.input[index]:
                values = self._values(node.input[index])
                if values is None or values.size not in (0, 4):
                    return False
                if values.size:
                    replaced[index] = self._constant(values[list(CHANNELS_FIRST)])
        for index, name in replaced.items():
            node.input[index] = name
        node.input[0] = self._beneath[node.input[0]]
        return self._as_view(node)

    def _slice(self, node: NodeProto) -> bool:
        starts = self._values(node.input[1])
        if starts is None or node.input[0] not in self._beneath:
            return False
        axes = self._values(node.input[3]) if len(node.input) > 3 and node.input[3] else np.arange(starts.size)
        if axes is None:
            return False
        turned = self._constant(np.array([CHANNELS_LAST[int(axis) % 4] for axis in axes], np.int64))
        if len(node.input) > 3:
            node.input[3] = turned
        else:
            node.input.append(turned)
        node.input[0] = self._beneath[node.input[0]]
        return self._as_view(node)

    def _operand(self, name: str) -> str | None:
        """The tensor in the layout beneath: of a view, of a constant that is broadcast, of another tensor of four axes."""
        if name in self._beneath:
            return self._beneath[name]
        tensor = self._constants.get(name)
        if tensor is not None:
            values = numpy_helper.to_array(tensor)
            if values.size == 1 or values.ndim > 4:
                return name if values.ndim <= 4 else None
            whole = values.reshape((1,) * (4 - values.ndim) + values.shape)
            return self._constant(whole.transpose(CHANNELS_FIRST))
        shape = self._shapes.get(name)
        if shape is not None and len(shape) == 0:
            return name
        if shape is None or len(shape) != 4:
            return None
        if name not in self._opposite:
            self._opposite[name] = unique(f"{name}_channels_first", self._taken)
            turn = unique("Transpose", self._taken)
            self._nodes.append(helper.make_node("Transpose", [name], [self._opposite[name]], name=turn, perm=CHANNELS_FIRST))
        return self._opposite[name]

    def _as_view(self, node: NodeProto) -> bool:
        """Write a node whose outputs are in the layout beneath, under names of their own."""
        for index, name in enumerate(node.output):
            if name:
                node.output[index] = unique(f"{name}_beneath", self._taken)
                self._beneath[name] = node.output[index]
        self._nodes.append(node)
        return True

    def _write(self, node: NodeProto) -> None:
        for name in node.input:
            self._provide(name)
        self._nodes.append(node)

    def _provide(self, name: str) -> None:
        """Turn a view for those who need it as it was, once."""
        if name in self._beneath and name not in self._written:
            self._written.add(name)
            turn = unique("Transpose", self._taken)
            self._nodes.append(helper.make_node("Transpose", [self._beneath[name]], [name], name=turn, perm=CHANNELS_LAST))

    def _axes(self, node: NodeProto, index: int) -> list[int] | None:
        """Axes given as an attribute or as a constant input; None: neither."""
        given = next((list(attribute.ints) for attribute in node.attribute if attribute.name == "axes"), None)
        if given is None and len(node.input) > index and node.input[index]:
            values = self._values(node.input[index])
            given = None if values is None else [int(axis) for axis in values]
        return given

    def _set_axes(self, node: NodeProto, index: int, axes: Sequence[int]) -> None:
        if len(node.input) > index:
            node.input[index] = self._constant(np.array(axes, np.int64))
        else:
            _set(node, "axes", list(axes))

    def _values(self, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]] | None:
        tensor = self._constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def _constant(self, values: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> str:
        name = unique("turned", self._taken)
        tensor = numpy_helper.from_array(np.ascontiguousarray(values), name)
        self._graph.initializer.append(tensor)
        self._constants[name] = tensor
        return name


def _set(node: NodeProto, name: str, value: int | list[int]) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])
