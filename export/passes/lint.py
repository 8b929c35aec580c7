"""What TensorRT misreads or rejects in an engine file, found before a device does.

Held against TensorRT 8.6 (JetPack 5 and 6.0), the oldest that reads these files: what it takes, 10 and 11 take as well.
Source: onnx-tensorrt, branch release/8.6-GA: docs/operators.md (support matrix: opset 17, types, restrictions),
QuantDequantLinearHelper and poolingHelper in its importers; TensorRT developer guide, "Working with Quantized Types".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper

from edge.sessions.graph_values import GraphValues
from export.errors import ExportError

_OPSETS: Final = (13, 17)
"""Per-channel scales came with opset 13; TensorRT 8.6 reads up to 17."""
_LARGEST_IR_VERSION: Final = 8
"""That of ONNX 1.12, which opset 17 came with."""
_STANDARD: Final = ("", "ai.onnx")
_OPERATORS: Final = frozenset({
    "Abs", "Acos", "Acosh", "Add", "And", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan", "Atanh", "AveragePool",
    "BatchNormalization", "Cast", "Ceil", "Celu", "Clip", "Concat", "Constant", "ConstantOfShape", "Conv", "ConvTranspose",
    "Cos", "Cosh", "CumSum", "DepthToSpace", "DequantizeLinear", "Div", "Dropout", "Einsum", "Elu", "Equal", "Erf", "Exp",
    "Expand", "EyeLike", "Flatten", "Floor", "GRU", "Gather", "GatherElements", "GatherND", "Gemm", "GlobalAveragePool",
    "GlobalLpPool", "GlobalMaxPool", "Greater", "GreaterOrEqual", "GridSample", "HardSigmoid", "HardSwish", "Identity",
    "InstanceNormalization", "IsInf", "IsNaN", "LRN", "LSTM", "LayerNormalization", "LeakyRelu", "Less", "LessOrEqual", "Log",
    "LogSoftmax", "LpNormalization", "LpPool", "MatMul", "Max", "MaxPool", "Mean", "MeanVarianceNormalization", "Min", "Mod",
    "Mul", "Neg", "Not", "OneHot", "Or", "PRelu", "Pad", "Pow", "QuantizeLinear", "RNN", "RandomNormal", "RandomNormalLike",
    "RandomUniform", "RandomUniformLike", "Range", "Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp",
    "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Relu", "Reshape", "Resize",
    "ReverseSequence", "RoiAlign", "Round", "ScatterElements", "ScatterND", "Selu", "Shape", "Shrink", "Sigmoid", "Sign",
    "Sin", "Sinh", "Size", "Slice", "Softmax", "Softplus", "Softsign", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub",
    "Sum", "Tan", "Tanh", "ThresholdedRelu", "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze", "Where", "Xor",
})  # fmt: skip
"""The support matrix's, without what opset 13 to 17 no longer has, without branches and loops (If, Loop, Scan), and without
those whose output is as large as the data make it (NonZero, NonMaxSuppression): no engine of ours has a use for them."""
_WEIGHTED: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_INTEGER_OPERATORS: Final = frozenset({"ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"})
_MOVES_INTEGERS: Final = frozenset({"Concat", "Slice", "Identity"})
"""What TensorRT has for int8 tensors outside Q/DQ; a streaming engine's state passes through them."""
_CONSTANT_INPUTS: Final = {"CumSum": 1, "Slice": 3, "Squeeze": 1, "Unsqueeze": 1}
"""Index of the axes, which must not be computed."""
_RESIZE: Final = {
    "mode": ("nearest", "linear"),
    "coordinate_transformation_mode": (
        "half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners",
    ),
    "nearest_mode": ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil"),
}  # fmt: skip
_TYPES: Final = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL})
_INT32: Final = np.iinfo(np.int32)


@dataclass(frozen=True, slots=True)
class Finding:
    """A fault of a node; `node` and `operator` are empty where it is the file's own."""

    node: str
    operator: str
    fault: str

    def __str__(self) -> str:
        return f"{self.node} {self.fault}".strip()


def lint(model: onnx.ModelProto) -> tuple[Finding, ...]:
    """Everything that TensorRT would misread or reject, in float, half, Q/DQ and streaming engines; none: a clean file.

    Weights have to be in the model, not in a file beside it.
    """
    values = GraphValues.of(model)
    return (
        *quantization_findings(model),
        *_file_findings(model),
        *_name_findings(model),
        *_dimension_findings(model),
        *_operator_findings(model, values),
        *_type_findings(model),
        *_constant_findings(model, values),
    )


def require_clean(model: onnx.ModelProto, name: str) -> None:
    """Raise ExportError naming every finding in the engine called `name`."""
    findings = lint(model)
    if findings:
        raise ExportError(f"{name} is no engine that TensorRT reads as it is meant: {'; '.join(map(str, findings))}")


def quantization_findings(model: onnx.ModelProto) -> Iterator[Finding]:
    """Of explicit quantization alone: opset, operators on integers, and everything about Q/DQ nodes."""
    opset = next((o.version for o in model.opset_import if o.domain in _STANDARD), 0)
    if not _OPSETS[0] <= opset <= _OPSETS[1]:
        yield Finding("", "", f"opset {opset}, expected {_OPSETS[0]} to {_OPSETS[1]}")
    values = GraphValues.of(model)
    integers = {i.name for i in model.graph.input if i.type.tensor_type.elem_type == TensorProto.INT8}
    axes = {node.input[1]: _channel_axis(node) for node in model.graph.node if node.op_type in _WEIGHTED}
    for node in model.graph.node:
        if _is_foreign(node):
            fault = f"is {node.op_type}, expected float operators between DequantizeLinear and QuantizeLinear"
            yield Finding(node.name, node.op_type, fault if node.domain in _STANDARD else f"{fault} (domain {node.domain})")
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            yield from (Finding(node.name, node.op_type, fault) for fault in _quantizer_faults(node, values, integers, axes))
        elif integers.intersection(node.input):
            if node.op_type not in _MOVES_INTEGERS:
                expected = ", ".join(sorted(_MOVES_INTEGERS))
                yield Finding(node.name, node.op_type, f"is {node.op_type} on int8, expected one of {expected}")
            integers.update(node.output)
        elif node.op_type in _WEIGHTED:
            yield from (Finding(node.name, node.op_type, fault) for fault in _layer_faults(node, values))


def _is_foreign(node: NodeProto) -> bool:
    integer = node.op_type in _INTEGER_OPERATORS or node.op_type.startswith("QLinear")
    return integer or node.domain not in _STANDARD


def _channel_axis(node: NodeProto) -> int:
    """Axis of a layer's weight that counts output channels. Source: ONNX operators Conv, ConvTranspose, Gemm, MatMul."""
    if node.op_type == "Gemm":
        return 0 if _attribute(node, "transB", 0) else 1
    return 0 if node.op_type == "Conv" else 1


def _quantizer_faults(node: NodeProto, values: GraphValues, integers: set[str], axes: Mapping[str, int]) -> Iterator[str]:
    """Of a Q or DQ: its integers int8 around an explicit zero, its scales constant and positive, a weight's one a channel.

    axes: by the weight's name as its layer reads it, the axis of the output channels.
    """
    weight = values.constants.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
    scale = values.constants.get(node.input[1])
    zero = values.constants.get(node.input[2]) if len(node.input) > 2 else None
    if node.op_type == "QuantizeLinear":
        integers.add(node.output[0])
    elif weight is None and node.input[0] not in integers:
        yield "takes a tensor that is not int8"
    if weight is not None and weight.dtype != np.int8:
        yield f"has {weight.dtype} constants, expected int8 weights and float biases"
    if zero is None or zero.dtype != np.int8 or np.any(zero.astype(np.int64)):
        got = "none" if zero is None else f"{zero.dtype} {', '.join(str(z) for z in np.unique(zero.astype(np.int64))[:4])}"
        yield f"has zero point {got}, expected a constant int8 0"
    if scale is None or scale.dtype != np.float32 or not np.all(np.isfinite(s := scale.astype(np.float64)) & (s > 0.0)):
        yield "has a scale that is not constant, float32 and positive"
        return
    if zero is not None and zero.size != scale.size:
        yield f"has {scale.size} scales and {zero.size} zero points"
    axis = _attribute(node, "axis", 1)
    if weight is None and scale.size != 1:
        yield f"has {scale.size} scales for an activation, expected one"
    elif weight is not None:
        channel_axis = axes.get(node.output[0], 0)
        if scale.shape != weight.shape[channel_axis : channel_axis + 1] or axis % weight.ndim != channel_axis:
            expected = f"expected one a channel on axis {channel_axis}"
            yield f"has {scale.size} scales on axis {axis} for a weight {weight.shape}, {expected}"


def _layer_faults(node: NodeProto, values: GraphValues) -> Iterator[str]:
    """A layer has int8 input and weights with a float bias, or none of it is int8."""
    is_dq = [name in values.producers and values.producers[name].op_type == "DequantizeLinear" for name in node.input]
    if is_dq[1] and not is_dq[0]:
        yield "has int8 weights and a float input, expected both or neither"
    if len(is_dq) > 2 and is_dq[2]:
        yield "has a quantized bias, expected a float one"


def _file_findings(model: onnx.ModelProto) -> Iterator[Finding]:
    if not 0 < model.ir_version <= _LARGEST_IR_VERSION:
        yield Finding("", "", f"IR version {model.ir_version}, expected at most {_LARGEST_IR_VERSION}")
    for domain in sorted({o.domain for o in model.opset_import} - set(_STANDARD)):
        yield Finding("", "", f"asks for operators of domain {domain}, expected standard ONNX alone")
    for function in model.functions:
        yield Finding("", "", f"defines the function {function.name}, expected a flat graph")


def _name_findings(model: onnx.ModelProto) -> Iterator[Finding]:
    seen: set[str] = set()
    for node in model.graph.node:
        if not node.name:
            yield Finding(
                node.output[0] if node.output else "?", node.op_type, f"is made by a node without a name ({node.op_type})"
            )
        elif node.name in seen:
            yield Finding(node.name, node.op_type, "is the name of several nodes")
        seen.add(node.name)


def _dimension_findings(model: onnx.ModelProto) -> Iterator[Finding]:
    """Free are the batch, or the lines and columns of an engine that takes its state beside the image."""
    constants = {initializer.name for initializer in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    free, what = ((2, 3), "lines and columns") if len(inputs) > 1 else ((0,), "the batch")
    for value in (*inputs, *model.graph.output):
        if not value.type.tensor_type.HasField("shape"):
            yield Finding(value.name, "", "has no shape, expected one")
        for axis, size in enumerate(value.type.tensor_type.shape.dim):
            if size.dim_value <= 0 and axis not in free:
                yield Finding(value.name, "", f"leaves axis {axis} free ({size.dim_param or '?'}), expected only {what}")


def _operator_findings(model: onnx.ModelProto, values: GraphValues) -> Iterator[Finding]:
    for node in model.graph.node:
        if _is_foreign(node):
            continue
        if node.op_type not in _OPERATORS:
            yield Finding(node.name, node.op_type, f"is {node.op_type}, which TensorRT 8.6 does not have or cannot size")
        else:
            yield from (Finding(node.name, node.op_type, fault) for fault in _restriction_faults(node, values))


def _restriction_faults(node: NodeProto, values: GraphValues) -> Iterator[str]:
    if node.op_type == "MaxPool" and len(node.output) > 1:
        yield "also gives indices, expected the maxima alone"
    if node.op_type in ("MaxPool", "AveragePool") and any(step != 1 for step in _attribute(node, "dilations", ())):
        yield "is a pooling with dilations, expected none"
    for name, expected in _RESIZE.items() if node.op_type == "Resize" else ():
        value = _attribute(node, name, expected[0])
        text = value.decode() if isinstance(value, bytes) else value
        if text not in expected:
            yield f"has {name} {text}, expected one of {', '.join(expected)}"
    index = _CONSTANT_INPUTS.get(node.op_type, len(node.input))
    if index < len(node.input) and node.input[index] and node.input[index] not in values.constants:
        yield f"computes its axes ({node.input[index]}), expected constant ones"


def _type_findings(model: onnx.ModelProto) -> Iterator[Finding]:
    """uint8 enters and leaves through a Cast, int8 comes from a Q or the state; double and the like are nowhere."""
    graph = model.graph
    try:
        graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    except onnx.shape_inference.InferenceError as error:
        yield Finding("", "", f"types do not fit together: {error}")
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
    types |= {initializer.name: initializer.data_type for initializer in graph.initializer}
    ends = {value.name for value in (*graph.input, *graph.output)}
    for node in graph.node:
        first: dict[int, str] = {}  # of each type, the tensor to name
        for name in (*node.input, *node.output):
            first.setdefault(types.get(name, TensorProto.UNDEFINED), name)
        for kind, name in first.items():
            if fault := _type_fault(node.op_type, kind, name in ends):
                yield Finding(node.name, node.op_type, f"works on {name}, {TensorProto.DataType.Name(kind).lower()}; {fault}")


def _type_fault(operator: str, kind: int, at_an_end: bool) -> str:
    """What is wrong with an operator that has a tensor of that type; empty: nothing, or nothing that is not told elsewhere."""
    if kind in _TYPES or kind == TensorProto.UNDEFINED or operator in ("QuantizeLinear", "DequantizeLinear"):
        return ""
    if kind == TensorProto.INT8:
        return "expected QuantizeLinear or DequantizeLinear" if operator == "Cast" else ""
    if kind == TensorProto.UINT8:
        return "" if operator == "Cast" and at_an_end else "expected that only of a Cast at either end"
    return "TensorRT has no such type"


def _constant_findings(model: onnx.ModelProto, values: GraphValues) -> Iterator[Finding]:
    """TensorRT 8.6 makes int32 of int64, and of what does not fit the largest there is."""
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            constant = values.constants.get(name)
            if constant is None or constant.dtype != np.int64 or constant.size == 0:
                continue
            # the bounds of a Slice are meant so: beyond the end is the end
            bounds = node.op_type == "Slice" and index in (1, 2)
            least, most = int(constant.min()), int(constant.max())
            if not bounds and (least < _INT32.min or most > _INT32.max):
                yield Finding(node.name, node.op_type, f"has {name} of {least} to {most}, expected values that fit int32")


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)
