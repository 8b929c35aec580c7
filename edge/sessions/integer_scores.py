"""Scores as the integers that an INT8 engine computes: its graph ends at them, and what only moves them is done beside it.

The bundle's file answers floats: behind the last convolution stand Q, DQ, and what spreads its channels over the pixels. In
floats that is a tenth of an INT8 U-Net's time and more: runtimes keep tensors channels last, and what DepthToSpace and the change
to planes cost grows with the bytes. Here the DQ is taken off, and the answer is what the convolution makes, channels last. Copied
to planes by words, each a channel's pixels of one row of a block, the scores of a megapixel in four classes take 0.6 ms, for 5 ms
of OpenVINO's DepthToSpace and Reorder on the bytes and 11 ms on the floats.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final, Literal

import cv2
import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper

from edge.sessions import Scores, Steps
from edge.sessions.graph_values import is_nearest_resize
from edge.sessions.integer_graph import IntegerGraph, new_node

Answer = Literal["scores", "integers"]
"""What a session is asked for: scores as the file declares them, or where it can the integers that stand for them."""

_MOVES: Final = frozenset({"DepthToSpace", "Identity", "Slice", "Transpose"})
"""Operators that may stand between the convolution and the answer, and that every runtime has for uint8; nearest Resize too."""
_SIGNED_ZERO: Final = 128
_WORDS: Final[dict[int, Any]] = {2: np.uint16, 4: np.uint32, 8: np.uint64}
"""By side of a block: what holds one row of its pixels."""
_MOST_SPLIT: Final = 4
"""cv2.split takes up to so many channels apart at once (0.3 ms a megapixel of four); with more it is as slow as a runtime."""


@dataclass(frozen=True, slots=True)
class IntegerAnswer:
    """What an engine answers whose graph ends at integers: uint8 (n, h, w, channels), or planes (n, channels, h, w).

    block: where channels come last, the side of the square of pixels that each of them is spread over, row by row; a channel of
    the scores has block * block of the engine's. None: the answer is the planes already.
    """

    steps: Steps
    block: int | None


class ScorePlanes:
    """Planes of scores, (n, channels, h, w), of what an engine answers, in a buffer that the next answer reuses.

    integers: of an engine that ends at integers; None: what it answers is the scores, and handed on.
    """

    def __init__(self, integers: IntegerAnswer | None) -> None:
        self.steps = integers.steps if integers else None
        self._block = integers.block if integers else None
        self._planes: Any = np.empty((0,), np.uint8)

    def shape(self, answer: tuple[int, ...]) -> tuple[int, ...]:
        """That of the scores, for an answer's."""
        if self._block is None:
            return answer
        count, lines, columns, channels = answer
        return count, channels // self._block**2, lines * self._block, columns * self._block

    def of(self, answer: Scores) -> Scores:
        """The scores of an answer, valid until the next call where it has to be spread."""
        if self._block is None:
            return answer
        shape = self.shape(answer.shape)
        if self._planes.shape[1:] != shape[1:] or len(self._planes) < len(answer):
            self._planes = np.empty(shape, np.uint8)
        planes: Scores = self._planes[: len(answer)]
        if self._block == 1:
            for pixels, into in zip(answer, planes, strict=True):
                cv2.split(pixels, list(into))
        else:
            count, lines, columns, _ = answer.shape
            word = _WORDS[self._block]
            rows = answer.view(word).reshape(count, lines, columns, -1, self._block).transpose(0, 3, 1, 4, 2)
            np.copyto(planes.view(word).reshape(rows.shape), rows)
        return planes


def answering(model: onnx.ModelProto, answer: Answer, states: Collection[str] = ()) -> tuple[onnx.ModelProto, ScorePlanes]:
    """The engine that answers what a session is asked for, and what makes planes of scores of that. states: `end_at_integers`."""
    if answer == "scores":
        return model, ScorePlanes(None)
    ended, integers = end_at_integers(model, states)
    return ended, ScorePlanes(integers)


def end_at_integers(model: onnx.ModelProto, states: Collection[str] = ()) -> tuple[onnx.ModelProto, IntegerAnswer | None]:
    """The engine without what makes floats of its integers; the model given, and None, where its answer is not made that way.

    model: a backend's rewriting of the bundle's file: its integers are uint8, or int8 as a QuantizeLinear made them.
    states: names of the outputs that are none. The scores are those of the file: its answer is `(q - zero) * size` in float32.
    """
    scores, *others = [output.name for output in model.graph.output if output.name not in states] or [""]
    if not scores or others:
        return model, None  # not the engine that is expected: for the session to tell
    graph = IntegerGraph.of(model)
    moving = _moves_before(graph, scores)
    dequantize = graph.producer(moving[0].input[0] if moving else scores)
    known = dequantize is not None and dequantize.op_type == "DequantizeLinear" and len(dequantize.input) == 3
    if dequantize is None or not known or graph.consumers.get(scores):
        return model, None
    integers, size, zero = dequantize.input[0], *(graph.values.constants.get(name) for name in dequantize.input[1:3])
    if graph.only_consumer(integers) is not dequantize or size is None or zero is None or size.size != 1 or zero.size != 1:
        return model, None
    zero_point = int(zero.ravel()[0])
    if zero.dtype != np.uint8:
        if zero_point or not _make_unsigned(graph, integers):
            return model, None
        zero_point = _SIGNED_ZERO
    block = _block(graph, moving, integers)
    left_out = [dequantize] if block is None else [dequantize, *moving]
    nodes = [node for node in graph.nodes if not any(node is other for other in left_out)]
    if block is not None:
        nodes.append(new_node("Transpose", [integers], scores, name=f"{scores}/channels_last"))
        nodes[-1].attribute.append(helper.make_attribute("perm", (0, 2, 3, 1)))
    elif moving:
        moving[0].input[0] = integers
    else:
        nodes.append(new_node("Identity", [integers], scores, name=f"{scores}/integers"))
    ended = onnx.ModelProto()
    ended.CopyFrom(model)
    del ended.graph.value_info[:]
    output = next(value for value in ended.graph.output if value.name == scores)
    output.type.tensor_type.elem_type = TensorProto.UINT8
    if block is not None:
        for axis, name in zip(output.type.tensor_type.shape.dim[1:], ("height", "width", "channels"), strict=False):
            axis.dim_param = f"answer_{name}"
    graph.put_into(ended, nodes)
    return ended, IntegerAnswer(Steps(float(np.float32(size.ravel()[0])), zero_point), block)


def _moves_before(graph: IntegerGraph, scores: str) -> list[NodeProto]:
    """What only moves scores before they are the answer, in the graph's order."""
    moving: list[NodeProto] = []
    tensor = scores
    while (node := graph.producer(tensor)) is not None and (node.op_type in _MOVES or is_nearest_resize(node)):
        if tensor != scores and graph.only_consumer(tensor) is not moving[0]:
            break
        moving.insert(0, node)
        tensor = node.input[0]
    return moving if not moving or graph.only_consumer(tensor) is moving[0] else []


def _make_unsigned(graph: IntegerGraph, integers: str) -> bool:
    """Turn int8 around 0 into uint8 around 128 where a QuantizeLinear makes them; False where something else does."""
    quantize = graph.producer(integers)
    if quantize is None or quantize.op_type != "QuantizeLinear" or not graph.is_symmetric(quantize):
        return False
    quantize.input[2] = graph.constant("rust_edge/zero_of_scores", np.array(_SIGNED_ZERO, np.uint8))
    return True


def _block(graph: IntegerGraph, moving: list[NodeProto], integers: str) -> int | None:
    """Side of the squares over which channels are spread outside the graph; None where it is better done, or known, inside."""
    if not moving:
        return 1 if 1 < _channels(graph, integers) <= _MOST_SPLIT else None
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in moving[0].attribute}
    if len(moving) > 1 or moving[0].op_type != "DepthToSpace" or attributes.get("mode", b"DCR") != b"CRD":
        return None
    return int(attributes["blocksize"]) if attributes["blocksize"] in _WORDS else None


def _channels(graph: IntegerGraph, integers: str) -> int:
    """Channels of what a convolution makes; 0 where none does."""
    node = graph.producer(integers)
    while node is not None and node.op_type in ("QuantizeLinear", "Clip", "Relu"):
        node = graph.producer(node.input[0])
    if node is None or node.op_type not in ("Conv", "QLinearConv"):
        return 0
    weight = node.input[3 if node.op_type == "QLinearConv" else 1]
    made = graph.producer(weight)
    weight = made.input[0] if made is not None else weight
    return len(graph.values.constants[weight]) if weight in graph.values.constants else 0
