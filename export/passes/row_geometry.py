"""How an ONNX operator moves rows: the geometry that decides whether, and how, it can run as the strip runs.

Padding along rows, of whatever kind, exists in none of these: it only reaches rows near the strip's first and last line, which
the reflected halo takes the place of. Padding along columns stays as it is, since every row is padded by itself.
"""

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


class StreamRefused(ExportError):  # noqa: N818 (a refusal, by which export goes on, is no fault)
    """A network that cannot run as the strip runs. node: name of the operator (or tensor) that stands in the way."""

    def __init__(self, message: str, node: str) -> None:
        super().__init__(message)
        self.node = node


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
class RowSpread:
    """Input row j writes the output rows [j * stride - top, j * stride - top + kernel); `kernel` counts dilation in.

    columns: what is cut off at the left and the right, which stays.
    """

    kernel: int
    stride: int
    top: int = 0
    columns: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class RowShift:
    """Output row j is input row j - top.

    left_over: constant inputs with which the same operator leaves rows alone; None: it then does nothing at all.
    """

    top: int
    left_over: tuple[npt.NDArray[np.int64], ...] | None = None


@dataclass(frozen=True, slots=True)
class RowLocal:
    """Output row j reads row j of every input."""


RowGeometry = RowWindow | RowSpread | RowShift | RowLocal

PER_PIXEL = frozenset({
    "Abs", "Acos", "Asin", "Atan", "Cast", "Ceil", "Celu", "Clip", "Cos", "DequantizeLinear", "Dropout", "Elu", "Erf", "Exp",
    "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log", "LRN", "Mish", "Neg", "Not",
    "QuantizeLinear", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Tan",
    "Tanh", "ThresholdedRelu", "BatchNormalization",
})  # fmt: skip
"""One streamed input; what else goes in (scales, limits, statistics) belongs to channels, never to rows."""
BROADCAST = frozenset({
    "Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mul", "Or",
    "PRelu", "Pow", "Sub", "Sum", "Where", "Xor",
})  # fmt: skip
ACROSS_CHANNELS = frozenset({
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

    def refuse(self, why: str) -> StreamRefused:
        """The error that names this node and says why."""
        return refused(self.node, f"cannot run as the strip runs: {why}")


def describe(node: onnx.NodeProto) -> str:
    """The node as messages and tables name it."""
    return f"{node.op_type} '{node.name or (node.output[0] if node.output else '?')}'"


def refused(node: onnx.NodeProto, why: str) -> StreamRefused:
    """The error for one node: its name, then why."""
    return StreamRefused(f"{describe(node)} {why}", node.name or (node.output[0] if node.output else "?"))


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
        block = operator.integer("blocksize", 1)
        return RowSpread(block, block)
    if kind == "ConvTranspose":
        return _transposed(operator)
    if kind in ("Resize", "Upsample"):
        return _upsampled(operator)
    if kind == "Pad":
        return _padded(operator)
    if kind == "Slice":
        return _sliced(operator)
    if kind in PER_PIXEL:
        if node.input[0] not in operator.streamed or len(operator.streamed.intersection(node.input)) > 1:
            raise operator.refuse("its parameters come from the image; expected constants")
        return RowLocal()
    if kind in BROADCAST:
        return _broadcast(operator)
    if kind in ACROSS_CHANNELS:
        return _across_channels(operator)
    if kind in _GLOBAL:
        raise operator.refuse("it looks at all rows at once; expected operators that look at a few rows")
    raise operator.refuse("no rule says how it moves rows; expected convolutions, pooling, upsampling and element-wise operators")


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


def _transposed(operator: Operator) -> RowSpread:
    node = operator.node
    if operator.streamed.intersection(node.input[1:]):
        raise operator.refuse("its weights come from the image; expected constants")
    kernel = operator.integers("kernel_shape", operator.shapes[node.input[1]][2:])
    strides = operator.integers("strides", (1, 1))
    dilations = operator.integers("dilations", (1, 1))
    extents = [dilations[axis] * (kernel[axis] - 1) + 1 for axis in (0, 1)]
    (top, _), columns = (_cut_off(operator, axis, extents[axis], strides[axis]) for axis in (0, 1))
    return RowSpread(extents[0], strides[0], top, columns)


def _cut_off(operator: Operator, axis: int, extent: int, stride: int) -> tuple[int, int]:
    """What a transposed convolution cuts off before and after along rows (0) or columns (1). Source: ONNX ConvTranspose-11."""
    auto_pad = operator.text("auto_pad", "NOTSET")
    output_shape = operator.integers("output_shape", ())
    if auto_pad in ("NOTSET", "VALID") and not output_shape:
        pads = operator.integers("pads", (0, 0, 0, 0)) if auto_pad == "NOTSET" else (0, 0, 0, 0)
        return pads[axis], pads[axis + 2]
    size = operator.shapes[operator.node.input[0]][2 + axis]
    wanted = output_shape[-2:][axis] if output_shape else size * stride
    total = stride * (size - 1) + operator.integers("output_padding", (0, 0))[axis] + extent - wanted
    if total < 0:
        raise operator.refuse(f"its output_shape is {-total} larger than what it computes; expected output_padding")
    return (total // 2, total - total // 2) if auto_pad == "SAME_UPPER" else (total - total // 2, total // 2)


def _upsampled(operator: Operator) -> RowSpread:
    node = operator.node
    mode = {"bilinear": "linear"}.get(mode := operator.text("mode", "nearest"), mode)
    if mode not in ("nearest", "linear"):
        raise operator.refuse(f"mode {mode}; expected nearest or linear")
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
    if transform == "align_corners":
        raise operator.refuse(
            "align_corners makes every row's place depend on the image's height; expected half_pixel (align_corners=False)"
        )
    if mode == "linear":
        return _blended(operator, factor, transform)
    nearest = "floor" if node.op_type == "Upsample" else operator.text("nearest_mode", "round_prefer_floor")
    if any(_nearest_row(row, factor, transform, nearest) != row // factor for row in range(factor, 2 * factor)):
        raise operator.refuse(
            f"{transform} with {nearest} takes rows from their neighbours; expected asymmetric with floor, or half_pixel"
        )
    return RowSpread(factor, factor)


def _blended(operator: Operator, factor: int, transform: str) -> RowSpread:
    """Linear upsampling is a transposed convolution with a triangle: which rows it mixes, not how, is what counts here."""
    if factor == 1:
        return RowSpread(1, 1)
    if transform in ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric"):
        return RowSpread(2 * factor - factor % 2, factor, factor // 2)
    if transform == "asymmetric":
        return RowSpread(2 * factor - 1, factor, factor - 1)
    raise operator.refuse(f"{transform} places rows by the image's height; expected half_pixel or asymmetric")


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


def _padded(operator: Operator) -> RowShift:
    """What is padded above and below is left out: the rows that would see it are the halo's."""
    pads = operator.constant(1) if len(operator.node.input) > 1 else np.array(operator.integers("pads", ()))
    axes = operator.constant(3)
    if pads is None or (axes is None and len(operator.node.input) > 3 and operator.node.input[3]):
        raise operator.refuse("how much it pads is computed; expected constants")
    mode = operator.text("mode", "constant")
    padding = np.zeros(8, np.int64)
    for index, axis in enumerate(range(4) if axes is None else (int(axis) % 4 for axis in axes)):
        padding[axis], padding[axis + 4] = pads[index], pads[len(pads) // 2 + index]
    if padding[0] or padding[4]:
        raise operator.refuse("it pads the batch; expected rows, columns or channels")
    top, bottom = int(padding[2]), int(padding[6])
    if mode not in ("constant", "reflect", "edge") and (top or bottom):
        raise operator.refuse(f"mode {mode} takes rows from the image's other end; expected constant, reflect or edge")
    padding[[2, 6]] = 0
    return RowShift(top, (padding,) if padding.any() else None)


def _sliced(operator: Operator) -> RowShift | RowLocal:
    """Cropping a fixed number of rows and columns from each side, or taking channels."""
    starts, stops, axes, steps = (operator.constant(index) for index in (1, 2, 3, 4))
    given = [bool(name) for name in [*operator.node.input, "", "", ""][1:5]]
    if starts is None or stops is None or any(g and v is None for g, v in zip(given[2:], (axes, steps), strict=True)):
        raise operator.refuse("what it takes is computed; expected constants")
    places = [int(axis) % 4 for axis in axes] if axes is not None else list(range(len(starts)))
    top, kept = 0, []
    for index, axis in enumerate(places):
        start, stop, step = int(starts[index]), int(stops[index]), int(steps[index]) if steps is not None else 1
        if axis < 2:
            kept.append((start, stop, axis, step))
            continue
        if step != 1 or start < 0 or 0 <= stop < np.iinfo(np.int32).max:
            raise operator.refuse(
                f"it takes [{start}:{stop}:{step}] of axis {axis}; expected to crop so many from each side ([a:-b])"
            )
        if axis == 2:
            top = -start
        else:
            kept.append((start, stop, axis, step))
    if 2 not in places and 3 not in places:
        return RowLocal()
    return RowShift(top, tuple(np.array(values, np.int64) for values in zip(*kept, strict=True)) if kept else None)


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
