"""How an ONNX operator moves rows: the geometry that decides whether, and how, it can run as the strip runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from export.errors import ExportError

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RowWindow:
    """Output row j reads the input rows [j * stride - top, j * stride - top + kernel); `kernel` counts dilation in.

    columns: padding at the left and the right, which stays.
    """

    kernel: int
    stride: int
    top: int
    columns: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class RowRepeat:
    """Output row j is made of input row j // factor alone."""

    factor: int


@dataclass(frozen=True, slots=True)
class RowLocal:
    """Output row j reads row j of every input."""


RowGeometry = RowWindow | RowRepeat | RowLocal

_PER_PIXEL = frozenset({
    "Abs", "Acos", "Asin", "Atan", "Cast", "Ceil", "Celu", "Clip", "Cos", "DequantizeLinear", "Dropout", "Elu", "Erf", "Exp",
    "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log", "LRN", "Mish", "Neg", "Not",
    "QuantizeLinear", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Tan",
    "Tanh", "ThresholdedRelu", "BatchNormalization",
})  # fmt: skip
"""One streamed input; what else goes in (scales, limits, statistics) belongs to channels, never to rows."""
_BROADCAST = frozenset({
    "Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mul", "Or",
    "PRelu", "Pow", "Sub", "Sum", "Where", "Xor",
})  # fmt: skip
_ACROSS_CHANNELS = frozenset({
    "ArgMax", "Concat", "Hardmax", "LogSoftmax", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Softmax", "Split",
})  # fmt: skip
_GLOBAL = frozenset({
    "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", "InstanceNormalization", "GroupNormalization", "Attention",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Operator:
    """A node with what its geometry needs: shapes at the exported tile, and constant inputs by name."""

    node: onnx.NodeProto
    shapes: Mapping[str, Shape]
    constants: Mapping[str, onnx.TensorProto]
    streamed: frozenset[str]

    def attribute(self, name: str, default: object = None) -> object:
        """An attribute's value, or `default` where the node does not give it."""
        for attribute in self.node.attribute:
            if attribute.name == name:
                return onnx.helper.get_attribute_value(attribute)
        return default

    def integer(self, name: str, default: int) -> int:
        """An attribute that is one whole number."""
        return int(self.attribute(name, default))  # type: ignore[call-overload,no-any-return]

    def integers(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """An attribute that is a list of whole numbers."""
        return tuple(self.attribute(name, default))  # type: ignore[arg-type]

    def text(self, name: str, default: str) -> str:
        """An attribute that is text."""
        value = self.attribute(name, default)
        return value.decode() if isinstance(value, bytes) else str(value)

    def constant(self, index: int) -> npt.NDArray[np.generic] | None:
        """Value of a constant input; None where it is absent or not a constant."""
        name = self.node.input[index] if index < len(self.node.input) else ""
        return numpy_helper.to_array(self.constants[name]) if name in self.constants else None

    def refuse(self, why: str) -> ExportError:
        """The error that names this node and says why."""
        return ExportError(f"{describe(self.node)} cannot run as the strip runs: {why}")


def describe(node: onnx.NodeProto) -> str:
    """The node as messages and tables name it."""
    return f"{node.op_type} '{node.name or (node.output[0] if node.output else '?')}'"


def row_geometry(operator: Operator) -> RowGeometry:
    """Geometry of a node that has at least one streamed input.

    Raises ExportError naming the node and why, for operators that mix rows in another way.
    Source: ONNX operator schemas, opset 17.
    """
    node = operator.node
    if node.domain not in ("", "ai.onnx"):
        raise operator.refuse(f"operators of domain {node.domain} are unknown here; expected standard ONNX operators")
    kind = node.op_type
    if kind in ("Conv", "MaxPool", "AveragePool"):
        return _window(operator)
    if kind == "SpaceToDepth":
        block = operator.integer("blocksize", 1)
        return RowWindow(block, block, 0)
    if kind == "DepthToSpace":
        return RowRepeat(operator.integer("blocksize", 1))
    if kind == "ConvTranspose":
        return _transposed(operator)
    if kind in ("Resize", "Upsample"):
        return _upsampled(operator)
    if kind in _PER_PIXEL:
        if node.input[0] not in operator.streamed or len(operator.streamed.intersection(node.input)) > 1:
            raise operator.refuse("its parameters come from the image; expected constants")
        return RowLocal()
    if kind in _BROADCAST:
        return _broadcast(operator)
    if kind in _ACROSS_CHANNELS:
        return _across_channels(operator)
    if kind in _GLOBAL:
        raise operator.refuse("it looks at all rows at once; expected operators that look at a few rows (use dense: slabs)")
    raise operator.refuse(
        "no rule says how it moves rows; expected convolutions, pooling, nearest upsampling and element-wise operators"
    )


def _window(operator: Operator) -> RowWindow:
    node = operator.node
    if node.op_type == "MaxPool" and len([name for name in node.output if name]) > 1:
        raise operator.refuse("it also gives indices, which count rows from the image's top")
    if node.op_type == "Conv" and operator.streamed.intersection(node.input[1:]):
        raise operator.refuse("its weights come from the image; expected constants")
    shape = operator.shapes[node.input[1]][2:] if node.op_type == "Conv" else ()
    kernel = operator.integers("kernel_shape", shape)
    strides = operator.integers("strides", (1, 1))
    dilations = operator.integers("dilations", (1, 1))
    extents = [dilations[axis] * (kernel[axis] - 1) + 1 for axis in (0, 1)]
    (top, _), columns = (_padding(operator, axis, extents[axis] - strides[axis]) for axis in (0, 1))
    return RowWindow(extents[0], strides[0], top, columns)


def _padding(operator: Operator, axis: int, overlap: int) -> tuple[int, int]:
    """Padding before and after along rows (0) or columns (1). Sizes are multiples of the stride, hence it is the same for all."""
    auto_pad = operator.text("auto_pad", "NOTSET")
    total = max(overlap, 0)
    if auto_pad == "SAME_UPPER":
        return total // 2, total - total // 2
    if auto_pad == "SAME_LOWER":
        return total - total // 2, total // 2
    pads = operator.integers("pads", (0, 0, 0, 0)) if auto_pad == "NOTSET" else (0, 0, 0, 0)
    return pads[axis], pads[axis + 2]


def _transposed(operator: Operator) -> RowRepeat:
    node = operator.node
    if operator.streamed.intersection(node.input[1:]):
        raise operator.refuse("its weights come from the image; expected constants")
    kernel = operator.integers("kernel_shape", operator.shapes[node.input[1]][2:])
    strides = operator.integers("strides", (1, 1))
    plain = not any(operator.integers("pads", ())) and not any(operator.integers("output_padding", ()))
    if kernel != strides or not plain or any(step != 1 for step in operator.integers("dilations", ())):
        raise operator.refuse(f"kernel {kernel}, strides {strides}; expected a kernel as large as the strides, without padding")
    return RowRepeat(strides[0])


def _upsampled(operator: Operator) -> RowRepeat:
    node = operator.node
    mode = operator.text("mode", "nearest")
    if mode != "nearest":
        raise operator.refuse(f"mode {mode}; expected nearest")
    scales = operator.constant(1 if node.op_type == "Upsample" else 2)
    if scales is None or scales.size != 4:
        raise operator.refuse(
            "it resizes to sizes; expected constant scales, so that it does not depend on the image's height (scale_factor=2)"
        )
    factors = [float(scale) for scale in scales]
    if factors[:2] != [1.0, 1.0] or factors[2] < 1 or not all(factor.is_integer() for factor in factors):
        raise operator.refuse(f"scales {factors}; expected 1, 1 and whole numbers")
    factor = int(factors[2])
    transform = "asymmetric" if node.op_type == "Upsample" else operator.text("coordinate_transformation_mode", "half_pixel")
    nearest = "floor" if node.op_type == "Upsample" else operator.text("nearest_mode", "round_prefer_floor")
    if any(_nearest_row(row, factor, transform, nearest) != row // factor for row in range(factor, 2 * factor)):
        raise operator.refuse(
            f"{transform} with {nearest} takes rows from their neighbours; expected asymmetric with floor, or half_pixel"
        )
    return RowRepeat(factor)


def _nearest_row(row: int, factor: int, transform: str, nearest: str) -> int | None:
    """Input row that Resize takes for an output row away from the borders. Source: ONNX Resize-13."""
    if transform == "asymmetric":
        position = Fraction(row, factor)
    elif transform in ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric"):
        position = Fraction(2 * row + 1, 2 * factor) - Fraction(1, 2)
    else:
        return None
    half = Fraction(1, 2)
    return {
        "floor": math.floor(position),
        "ceil": math.ceil(position),
        "round_prefer_floor": math.ceil(position - half),
        "round_prefer_ceil": math.floor(position + half),
    }.get(nearest)


def _broadcast(operator: Operator) -> RowLocal:
    for name in operator.node.input:
        if name in operator.streamed:
            continue
        if any(size != 1 for size in operator.shapes[name][-2:]):
            raise operator.refuse(
                f"constant {name} {operator.shapes[name]} has a value per row or column; expected one per channel at most"
            )
    return RowLocal()


def _across_channels(operator: Operator) -> RowLocal:
    node = operator.node
    if node.op_type.startswith("Reduce"):
        given = operator.constant(1)
        axes = operator.integers("axes", ()) if given is None else tuple(int(axis) for axis in given)
    else:
        axes = (operator.integer("axis", -1 if node.op_type in ("Softmax", "LogSoftmax", "Hardmax") else 0),)
    if [axis % 4 for axis in axes] != [1]:
        raise operator.refuse(f"axes {axes}; expected 1, the channels (rows and columns are never mixed)")
    if not operator.integer("keepdims", 1):
        raise operator.refuse("it drops the channel axis; expected keepdims")
    if node.op_type == "Concat" and not operator.streamed.issuperset(node.input):
        raise operator.refuse("it joins a constant image; expected tensors that come from the strip")
    return RowLocal()
