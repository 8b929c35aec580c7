"""What a graph costs: parameters and arithmetic."""

from __future__ import annotations

import math

import onnx

from export.errors import ExportError
from export.to_onnx import with_input_size

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that multiply by weights, their second input."""


def count_parameters(model: onnx.ModelProto) -> int:
    """Weights and biases of a float graph, batch normalisation folded."""
    sizes = {initializer.name: math.prod(initializer.dims) for initializer in model.graph.initializer}
    return sum(sizes.get(name, 0) for node in model.graph.node if node.op_type in WEIGHTED for name in node.input)


def count_flops(model: onnx.ModelProto, height: int, width: int) -> float:
    """Floating-point operations for one tile: two (multiply, add) per weight and place where it is applied.

    Element-wise operators and pooling are left out, as is customary: they are a few percent. Raises ExportError.
    """
    sized = with_input_size(model, height, width)
    weights = {initializer.name: tuple(initializer.dims) for initializer in sized.graph.initializer}
    shapes = {value.name: _shape(value) for value in (*sized.graph.value_info, *sized.graph.input, *sized.graph.output)}
    total = 0.0
    for node in sized.graph.node:
        if node.op_type not in WEIGHTED or node.input[1] not in weights:
            continue
        # a convolution applies every weight once per place of its output, a transposed one per place of its input
        applied = shapes.get(node.input[0] if node.op_type == "ConvTranspose" else node.output[0])
        if applied is None or not all(applied[1:]):
            raise ExportError(f"shape inference left the size of {node.output[0]} open, expected a static tile")
        total += 2.0 * math.prod(weights[node.input[1]]) * math.prod(applied[2:])
    return total


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(dimension.dim_value for dimension in value.type.tensor_type.shape.dim)
