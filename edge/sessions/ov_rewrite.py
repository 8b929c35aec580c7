"""What OpenVINO's CPU plugin needs of an INT8 engine file, done when it is loaded: a pure function of the graph.

As it stands the bundle's file (`edge.sessions.integer_graph`) loses precision in OpenVINO, and may be misread:

- A tensor that is never negative becomes uint8 with zero point 0 at the same scale, with a Clip at 127 steps that keeps the
  file's saturation. FakeQuantize counts steps from the lower end of the range, -128 of them below 0 for int8, and rounds what
  has lost seven bits of its small values by then: over a deep network that moved 0.7 % of the scores by more than 1 % of their
  spread. Counted from 0 they were ONNX Runtime's, every bit. The Clip costs 4 % of the time.
- MaxPool, nearest Resize and Concat between equal scales work on the integers. As the file has it, with a DQ before and a Q
  after each, OpenVINO 2026.4 rounds a Concat's operands to whole units instead of steps: scores of U-Nets whose skips are
  concatenated were off by 20 to 120 % of their spread.
- The operands of an Add go through a Clip of the integers to all that they can be. Else a convolution, its Q, the Add and the
  Add's Q become one operator that leaves the first rounding out: residual networks were off by 0.7 % of the spread on average.
  It costs them 6 % of the time.
- A 1x1 convolution with a stride reads pixels that a MaxPool of one pixel has picked from the integers: with the stride in the
  convolution OpenVINO computes a ResNet50's in floats, 36.6 ms instead of 28.8. Where the tensor may be negative scores were off
  by up to 0.5 % of the spread besides.

On processors without VNNI OpenVINO halves the weights where the tensor may be negative, and signed engines are off by a few
percent of the spread; the golden tiles tell.

Source: OpenVINO operator FakeQuantize-1; oneDNN, Nuances of int8 computations; ONNX operator QuantizeLinear-13.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper

from edge.sessions.integer_graph import IntegerGraph, move_integers, negative_integers, new_node, quantize_before_moving

_INT8_MAXIMUM = 127


def rewrite_for_openvino(model: onnx.ModelProto) -> onnx.ModelProto:
    """The engine as OpenVINO computes it fast and exactly; the model given is left as it is.

    Float engines, and those with operators on integers that are not known, come back unchanged.
    """
    if not any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        return model
    graph = IntegerGraph.of(model)
    quantize_before_moving(graph)
    move_integers(graph)
    _pick_before_pointwise(graph)
    negative = negative_integers(graph, model)
    if negative is None:
        return model
    unsigned = frozenset(name for name, may_be in negative.items() if not may_be)
    rewritten = onnx.ModelProto()
    rewritten.CopyFrom(model)
    del rewritten.graph.value_info[:]
    for value in [*rewritten.graph.input, *rewritten.graph.output]:
        if value.name in unsigned:
            value.type.tensor_type.elem_type = TensorProto.UINT8
    graph.put_into(rewritten, _rewritten(graph, unsigned))
    return rewritten


def _pick_before_pointwise(graph: IntegerGraph) -> None:
    """DQ -> Conv of kernel 1 and stride s becomes MaxPool of kernel 1 and stride s -> DQ -> Conv of stride 1."""
    nodes: list[NodeProto] = []
    for node in graph.nodes:
        dequantize = graph.activation_dq(node.input[0]) if node.op_type == "Conv" else None
        strides = None if dequantize is None else _strides_of_pointwise(graph, node)
        if dequantize is not None and strides is not None:
            picked, values = f"{node.output[0]}/picked", f"{node.output[0]}/picked_values"
            pick = new_node("MaxPool", [dequantize.input[0]], picked)
            pick.attribute.append(helper.make_attribute("kernel_shape", [1] * len(strides)))
            pick.attribute.append(helper.make_attribute("strides", strides))
            nodes += [pick, new_node("DequantizeLinear", [picked, *dequantize.input[1:]], values)]
            kept = [attribute for attribute in node.attribute if attribute.name != "strides"]
            node = new_node("Conv", [values, *node.input[1:]], node.output[0], name=node.name)
            node.attribute.extend(kept)
        nodes.append(node)
    graph.nodes = nodes
    graph.index()


def _strides_of_pointwise(graph: IntegerGraph, convolution: NodeProto) -> list[int] | None:
    """Strides of a convolution that looks at single pixels and not at all of them; None of others."""
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in convolution.attribute}
    weights = graph.producer(convolution.input[1])
    if weights is None or weights.op_type != "DequantizeLinear" or not graph.is_constant(weights.input[0]):
        return None
    kernel = graph.values.constants[weights.input[0]].shape[2:]
    padded = any(attributes.get("pads", [])) or attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")
    strides: list[int] = list(attributes.get("strides", []))
    return strides if set(kernel) == {1} and not padded and any(stride > 1 for stride in strides) else None


def _rewritten(graph: IntegerGraph, unsigned: frozenset[str]) -> Iterator[NodeProto]:
    """The nodes, with uint8 in place of int8 for the tensors named, and the operands of an Add apart from what makes them."""
    for node in graph.nodes:
        if node.op_type == "QuantizeLinear" and node.output[0] in unsigned:
            scale = graph.values.constants[node.input[1]]
            limited = f"{node.output[0]}/limited"
            limit = graph.constant(f"{limited}/maximum", np.asarray(_INT8_MAXIMUM * scale, scale.dtype).reshape(()))
            yield new_node("Clip", [node.input[0], "", limit], limited)
            yield new_node("QuantizeLinear", [limited, node.input[1], _zero(graph)], node.output[0], name=node.name)
        elif node.op_type == "DequantizeLinear" and not graph.is_constant(node.input[0]):
            integers = node.input[0]
            if _would_fuse(graph, node):
                integers = f"{integers}/apart"
                yield new_node("Clip", [node.input[0], *_limits(graph, node.input[0] in unsigned)], integers)
            zero = [_zero(graph)] if node.input[0] in unsigned else node.input[2:]
            yield new_node("DequantizeLinear", [integers, node.input[1], *zero], node.output[0], name=node.name)
        else:
            yield node


def _would_fuse(graph: IntegerGraph, dequantize: NodeProto) -> bool:
    """Whether a DQ stands alone between the Q of what may be a convolution and an Add."""
    quantize, add = graph.producer(dequantize.input[0]), graph.only_consumer(dequantize.output[0])
    alone = graph.only_consumer(dequantize.input[0]) is dequantize
    return alone and quantize is not None and quantize.op_type == "QuantizeLinear" and add is not None and add.op_type == "Add"


def _limits(graph: IntegerGraph, is_unsigned: bool) -> list[str]:
    """The least and the greatest integer of the type."""
    dtype = np.dtype(np.uint8 if is_unsigned else np.int8)
    limits = np.iinfo(dtype)
    return [graph.constant(f"rust_edge/{dtype}_{value}", np.array(value, dtype)) for value in (limits.min, limits.max)]


def _zero(graph: IntegerGraph) -> str:
    return graph.constant("rust_edge/uint8_zero", np.array(0, np.uint8))
