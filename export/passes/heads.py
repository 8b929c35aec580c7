"""What comes behind an engine's logits: nothing, probabilities, or the class and its probability as bytes.

The class is found by comparisons and a minimum rather than by ArgMax: where several channels are equal it then is the lowest
index on every backend, TensorRT's among them, which makes a TopK of an ArgMax.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from edge.scores import Activation, Head
from export.errors import ExportError

_LARGEST = float(np.finfo(np.float32).max)


def with_head(model: onnx.ModelProto, head: Head, activation: Activation, pixel_threshold: float = 0.5) -> onnx.ModelProto:
    """The engine with another head behind its logits, which are its first output; the model given is left as it is.

    probabilities: softmax over the channels or the sigmoid of each, float32 in the logits' shape.
    mask: of a segmenter, uint8 (n, 2, h, w): class index, and its probability in steps of 1/255, 0 where the class is 0.
        The rule is that of `edge.scores.classify`; pixel_threshold: a sigmoid's class is there from this probability on.
    Streaming engines take it as well: a pixel's head depends on its own logits alone.
    Raises ExportError where logits are not float32, or a mask has no pixels or a softmax of one channel.
    """
    if head == "logits":
        unchanged = onnx.ModelProto()
        unchanged.CopyFrom(model)
        return unchanged
    graph = _Continued(model)
    if head == "probabilities":
        if activation == "softmax":
            graph.end("Softmax", graph.logits, axis=1)
        else:
            graph.end("Sigmoid", graph.logits)
        return graph.assembled(TensorProto.FLOAT, graph.channels)
    if graph.axes != 4:
        raise ExportError(f"a mask has a class per pixel, the engine's output has {graph.axes} axes; expected a segmenter's 4")
    if activation == "softmax" and graph.channels < 2:
        raise ExportError(f"a softmax needs a background and a class, the engine has {graph.channels} channel; expected sigmoid")
    found, index, probability = _softmax_classes(graph) if activation == "softmax" else _sigmoid_classes(graph, pixel_threshold)
    zero = graph.constant("zero", 0.0)
    steps = graph.node("Round", graph.node("Mul", probability, graph.constant("steps", 255.0)))
    planes = [graph.node("Where", found, values, zero) for values in (index, steps)]
    graph.end("Cast", graph.node("Concat", *planes, axis=1), to=TensorProto.UINT8)
    return graph.assembled(TensorProto.UINT8, 2)


def _softmax_classes(graph: _Continued) -> tuple[str, str, str]:
    """Where a class beats the background, the lowest such class, and its softmax probability: (n, 1, h, w) each."""
    background, foreground = graph.split(1)
    top, index = _highest(graph, foreground, graph.channels - 1)
    found = graph.node("Greater", top, background)
    powers = graph.node("Exp", graph.node("Sub", graph.logits, top))
    total = graph.node("ReduceSum", powers, graph.constant("channels", np.array([1], np.int64)), keepdims=1)
    return found, index, graph.node("Reciprocal", total)


def _sigmoid_classes(graph: _Continued, pixel_threshold: float) -> tuple[str, str, str]:
    """Where a class is probable enough, the lowest such class, and its probability: (n, 1, h, w) each."""
    top, index = _highest(graph, graph.logits, graph.channels)
    found = graph.node("GreaterOrEqual", top, graph.constant("threshold", _logit(pixel_threshold)))
    return found, index, graph.node("Sigmoid", top)


def _highest(graph: _Continued, planes: str, channels: int) -> tuple[str, str]:
    """The highest of the classes' channels and 1 + its index, the lowest where several are equal: (n, 1, h, w) each."""
    if channels == 1:
        return planes, graph.constant("class", 1.0)
    top = graph.node("ReduceMax", planes, axes=[1], keepdims=1)
    indices = graph.constant("classes", np.arange(1, channels + 1, dtype=np.float32).reshape(1, -1, 1, 1))
    candidates = graph.node("Where", graph.node("Equal", planes, top), indices, graph.constant("no_class", channels + 1.0))
    return top, graph.node("ReduceMin", candidates, axes=[1], keepdims=1)


def _logit(probability: float) -> float:
    """The logit from which a probability is reached; the largest finite numbers stand for those of 0 and 1."""
    if probability <= 0.0 or probability >= 1.0:
        return math.copysign(_LARGEST, probability - 0.5)
    return math.log(probability / (1.0 - probability))


class _Continued:
    """A copy of a graph whose output is called `logits` now, and the nodes written behind it."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = onnx.ModelProto()
        self._model.CopyFrom(model)
        graph = self._model.graph
        output = graph.output[0].type.tensor_type
        if output.elem_type != TensorProto.FLOAT:
            kind = TensorProto.DataType.Name(output.elem_type)
            raise ExportError(f"a head goes behind float32 logits, the engine's {graph.output[0].name} are {kind}")
        self._scores = graph.output[0].name
        self._taken = {name for node in graph.node for name in (node.name, *node.input, *node.output)}
        self._taken |= {initializer.name for initializer in graph.initializer}
        self.axes = len(output.shape.dim)
        self.channels = int(output.shape.dim[1].dim_value)
        self.logits = self._fresh("logits")
        for node in graph.node:
            node.input[:] = [self.logits if name == self._scores else name for name in node.input]
            node.output[:] = [self.logits if name == self._scores else name for name in node.output]

    def node(self, kind: str, *inputs: str, **attributes: object) -> str:
        """Write a node; the name of its output."""
        name = self._fresh(f"head/{kind}")
        return self._write(kind, inputs, [self._fresh(f"{name}_out")], name, attributes)[0]

    def split(self, first: int) -> tuple[str, str]:
        """Logits of the first channels and of the others."""
        sizes = self.constant("split", np.array([first, self.channels - first], np.int64))
        outputs = [self._fresh("head/background"), self._fresh("head/foreground")]
        background, foreground = self._write("Split", (self.logits, sizes), outputs, self._fresh("head/Split"), {"axis": 1})
        return background, foreground

    def end(self, kind: str, *inputs: str, **attributes: object) -> None:
        """Write the node that gives the graph's output."""
        self._write(kind, inputs, [self._scores], self._fresh(f"head/{kind}"), attributes)

    def constant(self, name: str, values: float | npt.NDArray[np.generic]) -> str:
        """A constant; numbers become float32."""
        fresh = self._fresh(f"head/{name}")
        array = values if isinstance(values, np.ndarray) else np.array(values, np.float32)
        self._model.graph.initializer.append(numpy_helper.from_array(array, fresh))
        return fresh

    def assembled(self, kind: int, channels: int) -> onnx.ModelProto:
        """The graph, its output of that element type and so many channels, checked."""
        output = self._model.graph.output[0].type.tensor_type
        output.elem_type = kind
        output.shape.dim[1].dim_value = channels
        inferred = onnx.shape_inference.infer_shapes(self._model, check_type=True, strict_mode=True, data_prop=True)
        onnx.checker.check_model(inferred, full_check=True)
        return inferred

    def _write(
        self, kind: str, inputs: tuple[str, ...], outputs: list[str], name: str, attributes: dict[str, object]
    ) -> list[str]:
        node = helper.make_node(kind, inputs, outputs, name=name)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self._model.graph.node.append(node)
        return outputs

    def _fresh(self, name: str) -> str:
        fresh, count = name, 2
        while fresh in self._taken:
            fresh, count = f"{name}_{count}", count + 1
        self._taken.add(fresh)
        return fresh
