"""Batch normalisation and other arithmetic per channel, folded into the convolutions before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, helper, numpy_helper

from export.errors import ExportError
from export.passes.naming import label, names_in, unique
from export.passes.sizes import known_shapes

Floats = npt.NDArray[np.float64]

_WEIGHTED: Final = frozenset(("Conv", "ConvTranspose", "Gemm"))


@dataclass(frozen=True, slots=True)
class _Affine:
    """x -> x * scale + shift, one pair a channel, (channels,), or one for all, (1,)."""

    scale: Floats
    shift: Floats


def fold_channel_arithmetic(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which no BatchNormalization is left, nor a constant per channel behind a convolution or a dense layer.

    A BatchNormalization that no convolution comes before becomes Mul and Add. Raises ExportError where one is in training mode.
    """
    folded = onnx.ModelProto()
    folded.CopyFrom(model)
    _Folder(folded).run()
    return folded


class _Folder:
    """The walk over the graph."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self._taken = names_in(model.graph)
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._ranks = {name: len(shape) for name, shape in known_shapes(model).items()}
        self._outputs = {value.name for value in model.graph.output}
        self._uses: dict[str, int] = {}
        for node in model.graph.node:
            for name in node.input:
                self._uses[name] = self._uses.get(name, 0) + 1
        self._producers: dict[str, NodeProto] = {}

    def run(self) -> None:
        nodes: list[NodeProto] = []
        for node in self._graph.node:
            affine, source = self._affine(node)
            weighted = self._producers.get(source)
            if affine is not None and weighted is not None and self._fold(weighted, affine, source):
                weighted.output[0] = node.output[0]
                self._producers[node.output[0]] = weighted
                continue
            written = self._as_arithmetic(node, affine) if node.op_type == "BatchNormalization" else [node]
            for own in written:
                nodes.append(own)
                self._producers.update(dict.fromkeys(own.output, own))
        del self._graph.node[:]
        self._graph.node.extend(nodes)
        used = {name for node in nodes for name in node.input} | self._outputs
        kept = [tensor for tensor in self._graph.initializer if tensor.name in used]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)

    def _affine(self, node: NodeProto) -> tuple[_Affine | None, str]:
        """What a node does to each channel of its input, and that input; None: something else."""
        if node.op_type == "BatchNormalization":
            return self._of_normalisation(node), node.input[0]
        if node.op_type not in ("Mul", "Add", "Sub", "Div") or len(node.input) != 2:
            return None, ""
        left, right = node.input
        constant, source = (right, left) if right in self._constants else (left, right)
        if constant not in self._constants or source in self._constants:
            return None, ""
        if node.op_type in ("Sub", "Div") and constant == left:
            return None, ""
        values = self._per_channel(constant, self._ranks.get(source, 0))
        if values is None:
            return None, ""
        one, zero = np.ones_like(values), np.zeros_like(values)
        affine = {
            "Mul": _Affine(values, zero),
            "Add": _Affine(one, values),
            "Sub": _Affine(one, -values),
            "Div": _Affine(1.0 / np.where(values == 0, np.nan, values), zero),
        }[node.op_type]
        return affine if np.isfinite(affine.scale).all() else None, source

    def _of_normalisation(self, node: NodeProto) -> _Affine | None:
        """Source: ONNX operator BatchNormalization."""
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        if attributes.get("training_mode") or len(node.output) > 1:
            raise ExportError(f"{label(node)} is in training mode; call model.eval() before the network is exported")
        if any(name not in self._constants for name in node.input[1:]):
            return None
        gain, bias, mean, variance = (numpy_helper.to_array(self._constants[name]).astype(np.float64) for name in node.input[1:])
        scale = gain / np.sqrt(variance + attributes.get("epsilon", 1e-5))
        return _Affine(scale, bias - mean * scale)

    def _per_channel(self, name: str, rank: int) -> Floats | None:
        """A constant's values, where it has one for all or one a channel of a tensor with so many axes."""
        tensor = self._constants[name]
        if tensor.data_type != onnx.TensorProto.FLOAT or rank not in (2, 4):
            return None
        values = numpy_helper.to_array(tensor).astype(np.float64)
        if values.ndim > rank:
            return None
        shape = (1,) * (rank - values.ndim) + values.shape
        return values.ravel() if values.size == shape[1] else None

    def _fold(self, weighted: NodeProto, affine: _Affine, source: str) -> bool:
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in weighted.attribute}
        known = all(name in self._constants for name in weighted.input[1:] if name)
        if weighted.op_type not in _WEIGHTED or not known or self._uses.get(source) != 1 or source in self._outputs:
            return False
        transposed = weighted.op_type == "ConvTranspose"
        if transposed and attributes.get("group", 1) != 1:
            return False
        if weighted.op_type == "Gemm" and (attributes.get("alpha", 1.0), attributes.get("beta", 1.0)) != (1.0, 1.0):
            return False
        axis = 1 if transposed or (weighted.op_type == "Gemm" and not attributes.get("transB")) else 0
        weight = numpy_helper.to_array(self._constants[weighted.input[1]]).astype(np.float64)
        channels = weight.shape[axis]
        if affine.scale.size not in (1, channels):
            return False
        has_bias = len(weighted.input) > 2 and weighted.input[2]
        bias = numpy_helper.to_array(self._constants[weighted.input[2]]).astype(np.float64).ravel() if has_bias else np.zeros(1)
        along = [1] * weight.ndim
        along[axis] = -1
        if bias.size not in (1, channels):
            return False
        scaled = weight * affine.scale.reshape(along)
        shifted = np.broadcast_to(bias * affine.scale + affine.shift, channels)
        del weighted.input[1:]
        weighted.input.extend((self._constant("weight", scaled), self._constant("bias", shifted)))
        return True

    def _as_arithmetic(self, node: NodeProto, affine: _Affine | None) -> list[NodeProto]:
        rank = self._ranks.get(node.input[0], 0)
        if affine is None or rank < 2:
            return [node]
        shape = (1, -1) + (1,) * (rank - 2)
        scaled = unique(f"{node.output[0]}_scaled", self._taken)
        name = node.name or "BatchNormalization"
        scale, shift = self._constant("scale", affine.scale.reshape(shape)), self._constant("shift", affine.shift.reshape(shape))
        return [
            helper.make_node("Mul", [node.input[0], scale], [scaled], name=unique(f"{name}/Mul", self._taken)),
            helper.make_node("Add", [scaled, shift], [node.output[0]], name=unique(f"{name}/Add", self._taken)),
        ]

    def _constant(self, role: str, values: Floats) -> str:
        name = unique(f"folded_{role}", self._taken)
        tensor = numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name)
        self._graph.initializer.append(tensor)
        self._constants[name] = tensor
        return name
