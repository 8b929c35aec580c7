"""Stride and receptive radius, measured on the exported graph by perturbing pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from export.errors import ExportError
from export.to_onnx import INPUT, with_input_size

LARGEST_FIELD = 1024
"""Side, px, beyond which a network is taken to see its whole input: a radius of 500 px is no use to a tile or a chunk."""

_CONVOLUTIONS = ("Conv", "ConvTranspose")
_ACTIVATIONS = ("Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Softplus")
_OF_ONE_VALUE = frozenset((*_ACTIVATIONS, "Erf", "Exp", "Log", "Sqrt", "Abs", "Neg", "Clip", "BatchNormalization"))
_OF_TWO_VALUES = frozenset(("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min"))


@dataclass(frozen=True, slots=True)
class Reach:
    """What one output pixel depends on: input pixels at most `radius` away, on a grid of `stride` pixels.

    radius is the larger one of above, below, left and right; an output is the same at every shift by `stride`.
    """

    stride: int
    radius: int

    @property
    def halo(self) -> int:
        """The margin in px, a multiple of the stride, with which a crop's core equals the whole image's."""
        return -(-self.radius // self.stride) * self.stride


def measure_reach(model: onnx.ModelProto) -> Reach:
    """Stride and receptive radius of a float segmenter, `image` (n, 1, h, w) -> `scores` (n, classes, h, w).

    One pixel at a time is changed, at every phase of the stride; what changes in the scores is counted. The weights are
    replaced by ones, each convolution's output by its sign, activations by nothing and products by sums, so that no
    influence cancels, dies in a ReLU or drowns in rounding: what is measured is all that any weights could do.
    Raises ExportError where there is no bound.
    """
    graph = _influence_graph(model)
    stride = measure_stride(model)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    side = 8 * stride
    while side <= LARGEST_FIELD:
        radius = _radius_in_field(session, side, stride)
        if radius is not None:
            return Reach(stride, radius)
        side *= 2
    raise ExportError(
        f"a pixel of the network's output depends on input more than {LARGEST_FIELD // 2} px away; "
        "expected a local network: one that pools over the whole tile has no halo"
    )


def measure_stride(model: onnx.ModelProto) -> int:
    """Input pixels per pixel of the graph's deepest tensor, by the shapes that ONNX infers.

    Raises ExportError where height and width differ in stride.
    """
    height = width = 512
    sized = with_input_size(model, height, width)
    shapes = [[dimension.dim_value for dimension in value.type.tensor_type.shape.dim] for value in sized.graph.value_info]
    # a tensor of one place is a pooled summary of the tile, not a level of it
    levels = [shape for shape in shapes if len(shape) == 4 and shape[2] > 1 and shape[3] > 1]
    along, across = (max(round(size / shape[axis]) for shape in levels) for axis, size in ((2, height), (3, width)))
    if along != across:
        raise ExportError(f"the network's stride is {along} along and {across} across; expected one for both")
    return int(along)


def _radius_in_field(session: ort.InferenceSession, side: int, stride: int) -> int | None:
    """Largest distance at which scores change, or None where the change reaches the border of the field."""
    centre = side // 2
    radius = 0
    quiet = session.run(None, {INPUT: np.zeros((1, 1, side, side), np.uint8)})[0][0]
    for phase in range(stride):
        image = np.zeros((1, 1, side, side), np.uint8)
        image[0, 0, centre + phase, centre + phase] = 255
        changed: npt.NDArray[np.bool_] = (session.run(None, {INPUT: image})[0][0] != quiet).any(axis=0)
        for axis in (0, 1):
            places = np.flatnonzero(changed.any(axis=1 - axis))
            if not places.size:
                raise ExportError(
                    f"no score depends on the pixel at phase {phase} of the stride {stride}; expected all to matter"
                )
            if places[0] == 0 or places[-1] == side - 1:
                return None
            radius = max(radius, int(np.abs(places - (centre + phase)).max()))
    return radius


def _influence_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph of 0 (untouched) and above 0 (touched): what meets is added, what is done to one value leaves it.

    Convolutions have weights of one, no bias, and hand on their sign. One that reads the preprocessed image reads instead
    how far that is from a black image's.
    """
    graph_model = with_input_size(model, "height", "width")
    graph = graph_model.graph
    black = _preprocessed_black(model)
    weights = {initializer.name: initializer for initializer in graph.initializer}
    touched: set[str] = set()
    nodes: list[onnx.NodeProto] = []
    added: list[onnx.TensorProto] = []
    for index, node in enumerate(graph.node):
        features = [name for name in node.input if name in touched]
        if node.op_type in _CONVOLUTIONS:
            if node.input[1] not in weights:
                raise ExportError(f"{node.name} has no constant weights; expected a float graph")
            source = node.input[0]
            if source in black:
                added.append(numpy_helper.from_array(black[source], f"reach_black_{index}"))
                nodes.append(helper.make_node("Sub", [source, f"reach_black_{index}"], [f"reach_difference_{index}"]))
                nodes.append(helper.make_node("Abs", [f"reach_difference_{index}"], [f"reach_distance_{index}"]))
                source = f"reach_distance_{index}"
            ones = np.ones(tuple(weights[node.input[1]].dims), np.float32)
            added.append(numpy_helper.from_array(ones, f"reach_ones_{index}"))
            convolution = onnx.NodeProto()
            convolution.CopyFrom(node)
            convolution.input[:] = [source, f"reach_ones_{index}"]
            convolution.output[:] = [f"reach_sum_{index}"]
            nodes += [convolution, helper.make_node("Sign", [f"reach_sum_{index}"], [node.output[0]])]
            touched.add(node.output[0])
            continue
        if not features:
            nodes.append(node)
            continue
        touched.update(node.output)
        if node.op_type in _OF_ONE_VALUE or (node.op_type in _OF_TWO_VALUES and len(features) == 1):
            nodes.append(helper.make_node("Identity", features[:1], node.output[:1]))
        elif node.op_type in _OF_TWO_VALUES:
            nodes.append(helper.make_node("Add", features, node.output[:1]))
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(added)
    del graph.value_info[:]
    return graph_model


def _preprocessed_black(model: onnx.ModelProto) -> dict[str, npt.NDArray[np.float32]]:
    """Tensors between the image and its first convolutions -> (1, c, 1, 1), their values on a black image."""
    reached = {model.graph.input[0].name}
    first: list[str] = []
    for node in model.graph.node:
        if node.op_type in _CONVOLUTIONS:
            first += [name for name in node.input[:1] if name in reached]
        elif any(name in reached for name in node.input):
            reached.update(node.output)
    observing = with_input_size(model, "height", "width")
    del observing.graph.output[:]
    observing.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in dict.fromkeys(first))
    session = ort.InferenceSession(observing.SerializeToString(), providers=["CPUExecutionProvider"])
    side = 4 * measure_stride(model)
    values = session.run(None, {INPUT: np.zeros((1, 1, side, side), np.uint8)})
    names = [output.name for output in session.get_outputs()]
    return {name: value[:, :, :1, :1].astype(np.float32) for name, value in zip(names, values, strict=True)}
