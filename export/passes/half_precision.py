"""FP16 written into the graph: convolutions and what lies between them compute in half precision, both ends in single.

A uint8 image is normalised in float32 and cast where the first convolution takes it; the convolutions with none behind them
(the head) and what follows stay float32, so that scores keep their resolution. Operators that add over a whole tensor, or take
exponentials and powers, stay float32 too: their sums, not their results, leave float16's range. One cast a tensor and direction.

An own pass because what ONNX Runtime's converter writes with such a head is not sorted topologically, casts the normalisation
down and up again, and its import puts a folder of generically named modules on the path.
Source: TensorRT developer guide, "Strongly Typed Networks" (precision is what the file says); ONNX operators Cast, Resize-13.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from calibration.activations import ActivationRange
from export.errors import ExportError

LARGEST = float(np.finfo(np.float16).max)
"""65504; what is larger becomes infinite."""

_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_ADDS_UP = frozenset({
    "CumSum", "Exp", "GlobalAveragePool", "GlobalLpPool", "InstanceNormalization", "LayerNormalization", "LogSoftmax",
    "LpNormalization", "MeanVarianceNormalization", "Pow", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp",
    "ReduceMean", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Softmax", "Softplus",
})  # fmt: skip
_FIXED_TYPE = frozenset({
    "ConstantOfShape", "EyeLike", "OneHot", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Range",
})  # fmt: skip
"""Their output's type stands in an attribute or comes from several inputs."""
_ALWAYS_SINGLE = {"Resize": (1, 2), "Upsample": (1,)}
"""Inputs that the operator wants in float32 whatever its data: regions and scales."""
_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
_SUBGRAPHS = frozenset({"If", "Loop", "Scan"})


def half_tensors(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the activations that `to_half` turns to float16: those whose ranges show whether they fit."""
    plan = _Plan(model)
    return tuple(name for node in model.graph.node if plan.is_half(node) for name in node.output if plan.is_float(name))


def to_half(model: onnx.ModelProto, ranges: Mapping[str, ActivationRange] | None = None) -> onnx.ModelProto:
    """The float engine in float16 but for its ends; input and output as they were, the model given is left as it is.

    ranges: by tensor name, of the activations that `half_tensors` names; without them only the weights are checked.
    Raises ExportError naming every weight and activation beyond 65504, and for graphs that are no float engine.
    """
    plan = _Plan(model)
    nodes: list[NodeProto] = []
    casts: dict[tuple[str, bool], str] = {}
    halved: set[str] = set()
    constants: dict[str, TensorProto] = {}
    faults = [f"{name} reaches {found.limit:.6g}" for name, found in (ranges or {}).items() if found.limit > LARGEST]

    def cast(name: str, to_half_precision: bool) -> str:
        key = name, to_half_precision
        if key not in casts:
            word, kind = ("half", TensorProto.FLOAT16) if to_half_precision else ("single", TensorProto.FLOAT)
            casts[key] = f"{name}/{word}"
            nodes.append(helper.make_node("Cast", [name], [casts[key]], name=f"{name}/to_{word}", to=kind))
        return casts[key]

    def halve(name: str, user: NodeProto) -> str:
        """The constant in float16, under its own name where nobody needs it in float32."""
        own = name if name not in plan.needed_single else f"{name}/half"
        values = numpy_helper.to_array(plan.constants[name])
        largest = float(np.abs(values).max(initial=0.0))
        # a Clip's limit beyond the range limits nothing
        if not largest <= LARGEST and user.op_type != "Clip":
            faults.append(f"{name} of {user.name} holds {largest:.6g}")
        if own not in constants:
            constants[own] = numpy_helper.from_array(np.clip(values, -LARGEST, LARGEST).astype(np.float16), own)
        return own

    for node in model.graph.node:
        copied = NodeProto()
        copied.CopyFrom(node)
        half = plan.is_half(node)
        for index, name in _float_inputs(node, plan):
            if name in plan.constants:
                if half:
                    copied.input[index] = halve(name, node)
            elif (name in halved) != half:
                copied.input[index] = cast(name, half)
        if half:
            halved.update(name for name in node.output if plan.is_float(name))
            if node.op_type == "Cast" and plan.is_float(node.output[0]):
                copied.attribute[0].i = TensorProto.FLOAT16
        nodes.append(copied)
    if faults:
        raise ExportError(f"engine does not fit float16, whose largest value is {LARGEST:.0f}: {'; '.join(faults)}; export fp32")
    return _assembled(model, nodes, constants)


class _Plan:
    """Which nodes of a float graph become float16, what is constant, and which tensors are float32 now."""

    def __init__(self, model: onnx.ModelProto) -> None:
        _check_float(model)
        nodes = list(model.graph.node)
        self._types = _element_types(model)
        self.constants = {initializer.name: initializer for initializer in model.graph.initializer}
        weighted: set[str] = set()  # tensors with a weighted operator at or before them
        feeding: set[str] = set()  # tensors with one behind them
        for node in nodes:
            if node.op_type in _WEIGHTED or weighted.intersection(node.input):
                weighted.update(node.output)
        for node in reversed(nodes):
            if node.op_type in _WEIGHTED or feeding.intersection(node.output):
                feeding.update(node.input)
        inner = (weighted & feeding) - {output.name for output in model.graph.output}
        stays = _ADDS_UP | _FIXED_TYPE
        self._half = {node.name for node in nodes if node.op_type not in stays and inner.intersection(node.output)}
        self.needed_single = {
            name
            for node in nodes
            for index, name in enumerate(node.input)
            if not self.is_half(node) or index in _ALWAYS_SINGLE.get(node.op_type, ())
        }

    def is_half(self, node: NodeProto) -> bool:
        """Whether a node computes in float16."""
        return node.name in self._half

    def is_float(self, tensor: str) -> bool:
        """Whether a tensor of the given graph is float32."""
        return self._types.get(tensor) == TensorProto.FLOAT


def _float_inputs(node: NodeProto, plan: _Plan) -> Iterator[tuple[int, str]]:
    """Index and name of the inputs that follow the node's precision."""
    for index, name in enumerate(node.input):
        if plan.is_float(name) and index not in _ALWAYS_SINGLE.get(node.op_type, ()):
            yield index, name


def _check_float(model: onnx.ModelProto) -> None:
    names = [node.name for node in model.graph.node]
    if "" in names or len(set(names)) != len(names):
        raise ExportError("got nodes without a name or with the same one, expected a name of its own for every node")
    strange = [node.name for node in model.graph.node if node.op_type in _QUANTIZERS | _SUBGRAPHS]
    if strange:
        raise ExportError(f"{strange[0]} cannot become float16; expected a float engine without Q/DQ nodes and branches")


def _element_types(model: onnx.ModelProto) -> dict[str, int]:
    try:
        graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True).graph
    except onnx.shape_inference.InferenceError as error:
        raise ExportError(f"types of the engine's tensors do not fit together: {error}") from error
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
    return types | {initializer.name: initializer.data_type for initializer in graph.initializer}


def _assembled(model: onnx.ModelProto, nodes: Iterable[NodeProto], constants: Mapping[str, TensorProto]) -> onnx.ModelProto:
    half = onnx.ModelProto()
    half.CopyFrom(model)
    del half.graph.node[:], half.graph.initializer[:], half.graph.value_info[:]
    half.graph.node.extend(nodes)
    used = {name for node in half.graph.node for name in node.input}
    kept = (initializer for initializer in model.graph.initializer if initializer.name not in constants)
    half.graph.initializer.extend(initializer for initializer in (*kept, *constants.values()) if initializer.name in used)
    try:
        half = onnx.shape_inference.infer_shapes(half, check_type=True, strict_mode=True, data_prop=True)
        onnx.checker.check_model(half, full_check=True)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        raise ExportError(f"an operator of the engine does not take float16: {error}; export fp32") from error
    return half
