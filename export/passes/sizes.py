"""Sizes that an export baked into a graph, written so that the batch, and where it can be the image, may have others."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.passes.naming import names_in, unique

_BY_SCALE: Final = frozenset((b"half_pixel", b"pytorch_half_pixel", b"align_corners", b"asymmetric"))


def free_batch(model: onnx.ModelProto, batch: int | None) -> onnx.ModelProto:
    """A copy whose reshapes keep the batch of what they reshape, where they named the size that it was exported for."""
    freed = onnx.ModelProto()
    freed.CopyFrom(model)
    if batch is None:
        return freed
    graph, taken, shapes = freed.graph, names_in(freed.graph), known_shapes(freed)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type != "Reshape" or node.input[1] not in constants or any(attribute.i for attribute in node.attribute):
            continue
        sizes = numpy_helper.to_array(constants[node.input[1]]).copy()
        given = shapes.get(node.input[0], [])
        if sizes.size and given and sizes[0] == given[0] == batch:
            sizes[0] = 0  # as it comes. Source: ONNX operator Reshape, allowzero 0
            node.input[1] = unique("reshape_sizes", taken)
            graph.initializer.append(numpy_helper.from_array(sizes, node.input[1]))
    return freed


def with_scales(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which images are resized by whole factors instead of to sizes, where the sizes are such multiples.

    So the graph takes other sizes than the one that it was exported at.
    """
    scaled = onnx.ModelProto()
    scaled.CopyFrom(model)
    graph, taken, shapes = scaled.graph, names_in(scaled.graph), known_shapes(scaled)
    for node in graph.node:
        if node.op_type != "Resize" or len(node.input) < 4 or not node.input[3]:
            continue
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        before, after = shapes.get(node.input[0], []), shapes.get(node.output[0], [])
        known = len(before) == len(after) == 4 and all((*before[1:], *after[1:])) and before[1] == after[1]
        if not known or attributes.get("coordinate_transformation_mode", b"half_pixel") not in _BY_SCALE:
            continue
        if any(
            large % small for large, small in (sorted(pair, reverse=True) for pair in zip(before[2:], after[2:], strict=True))
        ):
            continue
        scales = np.array([1, 1, after[2] / before[2], after[3] / before[3]], np.float32)
        node.input[:] = [node.input[0], "", unique("resize_scales", taken)]
        graph.initializer.append(numpy_helper.from_array(scales, node.input[2]))
    return scaled


def known_shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Sizes of the tensors whose shape can be told; 0: open."""
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    return {
        value.name: [int(dimension.dim_value) for dimension in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }
