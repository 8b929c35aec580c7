"""What a graph alone tells of its tensors' values: what a grey value becomes once normalised, and which are never negative."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

_ARITHMETIC = {"Sub": np.subtract, "Add": np.add, "Mul": np.multiply, "Div": np.divide}
_MOVES_VALUES = frozenset({
    "Concat", "DepthToSpace", "Flatten", "Identity", "MaxPool", "Reshape", "Slice", "SpaceToDepth", "Squeeze", "Transpose",
    "Unsqueeze",
})  # fmt: skip
"""Operators that hand values on unchanged and that runtimes have for 8-bit integers; nearest Resize besides."""
_KEEPS_SIGN = dict.fromkeys(
    _MOVES_VALUES | {"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Pad", "ReduceMax", "ReduceMean"}, 1
) | {
    "Concat": None,
    "Add": None,
    "Mul": None,
}
"""Operators whose outputs are not negative where their first so many inputs are not; None: all of them."""


@dataclass(frozen=True, slots=True)
class GraphValues:
    """The producer of each tensor, the constants by name, and the names of the uint8 images."""

    producers: dict[str, NodeProto]
    constants: dict[str, npt.NDArray[np.generic]]
    images: frozenset[str]

    @staticmethod
    def of(model: ModelProto) -> GraphValues:
        """Those of a model's graph."""
        constants = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        images = frozenset(i.name for i in model.graph.input if i.type.tensor_type.elem_type == TensorProto.UINT8)
        return GraphValues({output: node for node in model.graph.node for output in node.output}, constants, images)

    def pixel_values(self, tensor: str) -> npt.NDArray[np.float32] | None:
        """Value of a float tensor for each of the 256 grey values, (256,); None where it is not the image, normalised.

        Follows Cast, Sub, Add, Mul and Div by one constant each back to an image.
        """
        if tensor in self.images:
            return np.arange(256, dtype=np.float32)
        node = self.producers.get(tensor)
        if node is None:
            return None
        if node.op_type == "Cast" and helper.get_attribute_value(node.attribute[0]) == TensorProto.FLOAT:
            return self.pixel_values(node.input[0])
        if node.op_type not in _ARITHMETIC:
            return None
        left, right = (
            self.constants[name].astype(np.float32).ravel() if name in self.constants else self.pixel_values(name)
            for name in node.input
        )
        if left is None or right is None or {left.size, right.size} != {1, 256}:
            return None
        return np.asarray(_ARITHMETIC[node.op_type](left, right), np.float32)

    def non_negative(self, tensor: str, integers: Callable[[str], bool] = lambda _: False) -> bool:
        """Whether the operators before a float tensor rule out values below 0.

        integers: the same of the integer tensor under a DequantizeLinear.
        """
        if tensor in self.constants:
            return bool(np.all(self.constants[tensor].astype(np.float64) >= 0.0))
        node = self.producers.get(tensor)
        if node is None:
            return False
        if node.op_type in ("Relu", "Sigmoid", "Softmax"):
            return True
        if node.op_type == "DequantizeLinear":
            return integers(node.input[0])
        if node.op_type == "Clip" and len(node.input) > 1 and node.input[1] in self.constants:
            return self.non_negative(node.input[1])
        if node.op_type == "Pad" and any(name and not self.non_negative(name) for name in node.input[2:3]):
            return False  # by what it pads with
        if node.op_type in _KEEPS_SIGN or is_nearest_resize(node):
            return all(self.non_negative(name, integers) for name in node.input[: _KEEPS_SIGN.get(node.op_type, 1)])
        values = self.pixel_values(tensor)
        return values is not None and bool(values.min() >= 0.0)


def is_nearest_resize(node: NodeProto) -> bool:
    """Whether a node resizes by repeating or dropping values, the operator's default, and computes none."""
    mode = next((helper.get_attribute_value(a) for a in node.attribute if a.name == "mode"), b"nearest")
    return node.op_type == "Resize" and bool(mode == b"nearest")


def moves_values(node: NodeProto) -> bool:
    """Whether a node hands values on unchanged, so that it can do so with the integers that stand for them."""
    return (node.op_type in _MOVES_VALUES and len(node.output) == 1) or is_nearest_resize(node)


def data_inputs(node: NodeProto) -> list[str]:
    """Inputs of a node that moves values, without what says how (sizes, places)."""
    return list(node.input) if node.op_type == "Concat" else list(node.input[:1])
