"""The real TensorRT parser and builder, which TensorRT for RTX brings without a GPU."""

from __future__ import annotations

import onnx
import pytest

_SIDE = 64
"""Lines and columns where a streaming engine leaves them free; a state at stride s has `columns_s`."""


def build(model: onnx.ModelProto) -> None:
    """Fails where TensorRT does not parse or build the file, for a batch of 1; skips where it is not installed."""
    trt = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed (tensorrt-rtx-cu13-bindings)")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(model.SerializeToString()), [parser.get_error(index).desc() for index in range(parser.num_errors)]
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for value in model.graph.input:
        shape = [size.dim_value or _free_size(size.dim_param) for size in value.type.tensor_type.shape.dim]
        profile.set_shape(value.name, shape, shape, shape)
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None


def _free_size(name: str) -> int:
    word, _, stride = name.partition("_")
    return _SIDE // int(stride or 1) if word in ("lines", "columns") else 1
