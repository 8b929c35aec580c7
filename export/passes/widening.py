"""Graphs of half-precision or double numbers brought to float32."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

FLOATS: Final = frozenset((TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE))

_OTHERS: Final = FLOATS - {TensorProto.FLOAT}
_TYPED: Final = ("to", "dtype")
"""Attributes that name an element type: of Cast; of EyeLike, RandomNormal and such."""


def to_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose tensors are float32 where they were floating-point numbers of another width."""
    widened = onnx.ModelProto()
    widened.CopyFrom(model)
    _widen(widened.graph)
    return widened


def _widen(graph: onnx.GraphProto) -> None:
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type in _OTHERS:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _widen_tensor(attribute.t)
            if attribute.HasField("g"):
                _widen(attribute.g)
            if attribute.name in _TYPED and attribute.i in _OTHERS:
                attribute.i = TensorProto.FLOAT


def _widen_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in _OTHERS:
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(numpy_helper.to_array(tensor), np.float32), tensor.name))
