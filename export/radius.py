"""Stride and receptive radius, measured on the exported graph by perturbing pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import NodeProto, TensorProto, helper, numpy_helper

from export.errors import ExportError
from export.passes.row_geometry import ACROSS_CHANNELS, BROADCAST, PER_PIXEL, describe
from export.to_onnx import INPUT, with_input_size

LARGEST_FIELD = 4096
"""Side, px, beyond which a network is taken to see its whole input: a radius of 2000 px is no use to a tile or a chunk."""

_NARROW = 2
"""Strides across the axis that is not measured. Kernels are rectangles: how far they reach along one axis does not depend on
the other, and a network of 50 GFLOP per tile costs little on a strip as narrow as its deepest tensor allows."""
_ROUNDING = 1e-6
"""Of the scores' spread: kernels that compute several pixels at once round by what they find beside them."""
_POOLS = frozenset({"MaxPool", "AveragePool", "LpPool"})


class WholeTileError(ExportError):
    """A network that has no receptive radius, because the operator `node` looks at the whole tile."""

    def __init__(self, node: str, why: str) -> None:
        super().__init__(f"{why}; expected a local network: one that pools over the whole tile has no halo")
        self.node = node


@dataclass(frozen=True, slots=True)
class Reach:
    """What one output pixel depends on: input pixels at most `radius` away, on a grid of `stride` pixels.

    radius is the larger one of above, below, left and right; an output is the same at every shift by `stride`. Where one
    output stands for a cell of pixels, it counts from the cell's own.
    """

    stride: int
    radius: int

    @property
    def halo(self) -> int:
        """The margin in px, a multiple of the stride, with which a crop's core equals the whole image's."""
        return -(-self.radius // self.stride) * self.stride


def measure_reach(model: onnx.ModelProto, cell: int = 1) -> Reach:
    """Stride and receptive radius of a float network, `image` (n, 1, h, w) -> `scores` (n, channels, h / cell, w / cell).

    One line of pixels at a time is changed, at every phase of the stride, once along and once across; what changes in the scores
    is counted. Every tensor is reduced to one channel that says where influence has got to: weights are ones, each sum its sign,
    activations nothing, and what meets is joined, so that no influence cancels, dies in a ReLU or drowns in rounding. What is
    measured is all that any weights could do. Then the radius is shown to be enough on the network itself: pixels beyond it are
    changed, and the scores must stay.

    Raises WholeTileError where there is no bound, ExportError where the radius is not enough.
    """
    stride = measure_stride(model)
    session = _session(_influence_graph(model))
    radius = max(_radius_along(session, axis, stride, cell) for axis in (0, 1))
    reach = Reach(stride, radius)
    _show_enough(model, reach, cell)
    return reach


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


def _radius_along(session: ort.InferenceSession, axis: int, stride: int, cell: int) -> int:
    """Largest distance, px, at which scores change along rows (0) or columns (1). Raises WholeTileError."""
    side = 8 * stride
    while side <= LARGEST_FIELD:
        radius = _radius_in_field(session, axis, side, stride, cell)
        if radius is not None:
            return radius
        side *= 2
    raise WholeTileError("", f"a pixel of the network's output depends on input more than {LARGEST_FIELD // 2} px away")


def _radius_in_field(session: ort.InferenceSession, axis: int, side: int, stride: int, cell: int) -> int | None:
    """Largest distance at which scores change, or None where the change reaches the border of the field."""
    first = side // 2
    touched = np.zeros((stride, 1, side, _NARROW * stride), np.float32)
    for phase in range(stride):
        touched[phase, 0, first + phase] = 1.0
    scores = session.run(None, {INPUT: touched if axis == 0 else touched.swapaxes(2, 3).copy()})[0]
    radius = 0
    for phase, reached in enumerate((scores != 0.0).any(axis=(1, 3 - axis))):
        places = np.flatnonzero(reached)
        if not places.size:
            raise ExportError(f"no score depends on the pixel at phase {phase} of the stride {stride}; expected all to matter")
        if places[0] == 0 or places[-1] == side // cell - 1:
            return None
        pixel, begins = first + phase, places * cell
        radius = max(radius, int(np.maximum(begins - pixel, pixel - (begins + cell - 1)).max()))
    return radius


def _show_enough(model: onnx.ModelProto, reach: Reach, cell: int = 1) -> None:
    """Raises ExportError where scores change although no pixel within the radius does."""
    session = _session(with_input_size(model, "height", "width"))
    rng = np.random.default_rng(0)
    margin = reach.halo + reach.stride
    core = slice(margin, margin + reach.stride)
    for axis in (0, 1):
        one, other = rng.integers(0, 256, (2, 2 * margin + reach.stride, _NARROW * reach.stride), np.uint8)
        near = slice(core.start - reach.radius, core.stop + reach.radius)
        other[near] = one[near]
        answers = []
        for image in (one, other) if axis == 0 else (one.T, other.T):
            scores = session.run(None, {INPUT: np.ascontiguousarray(image[None, None])})[0]
            answers.append(np.moveaxis(scores, 2 + axis, 0)[core.start // cell : core.stop // cell].astype(np.float64))
        difference, spread = float(np.abs(answers[0] - answers[1]).max()), float(np.ptp(answers[0]))
        if not difference <= _ROUNDING * spread:
            raise ExportError(
                f"scores change by {difference:.2g} of a spread of {spread:.2g} when pixels more than {reach.radius} px "
                f"{'along' if axis == 0 else 'across'} the strip do; expected no change: please report the network"
            )


def _session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _influence_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph of one channel, 0 (untouched) or above 0 (touched): `image` (n, 1, height, width) float32 -> `scores`."""
    influence = _Influence(model)
    for node in model.graph.node:
        influence.visit(node)
    image, scores = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1, f"{name}_height", f"{name}_width"])
        for name in (model.graph.input[0].name, model.graph.output[0].name)
    )
    graph = helper.make_graph(influence.nodes, "influence", [image], [scores], influence.constants)
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


class _Influence:
    """The influence graph as it is written, operator by operator."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self._given: Mapping[str, npt.NDArray[np.generic]] = {
            initializer.name: numpy_helper.to_array(initializer) for initializer in model.graph.initializer
        }
        self._touched = {model.graph.input[0].name}

    def visit(self, node: NodeProto) -> None:
        """Writes what a node does to influence. Raises WholeTileError."""
        inputs = [name for name in node.input if name in self._touched]
        if not inputs:
            return
        self._touched.update(node.output)
        kind = node.op_type
        if kind in ("Conv", "ConvTranspose"):
            self._convolve(node)
        elif kind in _POOLS:
            self._again(node, inputs)
        elif kind in ("Resize", "Upsample"):
            self._resize(node, inputs)
        elif kind in ("Pad", "Slice"):
            self._pad_or_slice(node, inputs)
        elif kind in ("DepthToSpace", "SpaceToDepth"):
            self._space(node, inputs)
        elif kind in PER_PIXEL or kind in BROADCAST or (kind in ACROSS_CHANNELS and self._axes(node) == [1]):
            joined = "Max" if len(inputs) > 1 else "Identity"
            self.nodes += [helper.make_node(joined, inputs, [output]) for output in node.output if output]
        else:
            raise WholeTileError(node.name, f"{describe(node)} may look at the whole tile")

    def _convolve(self, node: NodeProto) -> None:
        weight = self._given.get(node.input[1])
        if weight is None:
            raise ExportError(f"{node.name} has no constant weights; expected a float graph")
        ones = self._constant(np.ones((1, 1, *weight.shape[2:]), np.float32))
        copied = self._copied(node, [node.input[0], ones])
        kept = [attribute for attribute in copied.attribute if attribute.name != "group"]
        del copied.attribute[:]
        copied.attribute.extend(kept)
        self._signed(copied)

    def _resize(self, node: NodeProto, inputs: list[str]) -> None:
        attributes = _attributes(node)
        scales = self._given.get(node.input[1 if node.op_type == "Upsample" else 2]) if len(node.input) < 4 else None
        if scales is None or not scales.size:
            raise WholeTileError(node.name, f"{describe(node)} resizes to the whole tile's size")
        if attributes.get("coordinate_transformation_mode") == b"align_corners":
            raise WholeTileError(node.name, f"{describe(node)} aligns the corners of the whole tile")
        self._again(node, inputs)

    def _pad_or_slice(self, node: NodeProto, inputs: list[str]) -> None:
        """Rows and columns alone: there is one channel, and what a padding holds is untouched."""
        given = [self._given.get(name) for name in node.input[1:]]
        if given[0] is None or (node.op_type == "Slice" and any(value is None for value in given)):
            raise WholeTileError(node.name, f"{describe(node)} takes what is computed from the tile")
        if node.op_type == "Pad":
            pads = np.array(given[0], np.int64).reshape(2, 4) * [0, 0, 1, 1]
            self.nodes.append(self._copied(node, [inputs[0], self._constant(pads.ravel())]))
            return
        starts, stops = (np.array(value, np.int64) for value in given[:2])
        axes = np.array(given[2], np.int64) % 4 if len(given) > 2 else np.arange(len(starts))
        steps = np.array(given[3], np.int64) if len(given) > 3 else np.ones_like(starts)
        kept = axes > 1
        constants = [self._constant(values[kept]) for values in (starts, stops, axes, steps)]
        self.nodes.append(self._copied(node, [inputs[0], *constants]))

    def _space(self, node: NodeProto, inputs: list[str]) -> None:
        block = int(_attributes(node)["blocksize"])  # type: ignore[call-overload]
        if node.op_type == "SpaceToDepth":
            self.nodes.append(helper.make_node("MaxPool", inputs, node.output, kernel_shape=[block] * 2, strides=[block] * 2))
            return
        scales = self._constant(np.array([1, 1, block, block], np.float32))
        repeated = helper.make_node("Resize", [inputs[0], "", scales], node.output, mode="nearest")
        repeated.attribute.append(helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
        repeated.attribute.append(helper.make_attribute("nearest_mode", "floor"))
        self.nodes.append(repeated)

    def _again(self, node: NodeProto, inputs: list[str]) -> None:
        """The operator itself: it moves influence as it moves values."""
        kept = {constant.name for constant in self.constants}
        self.constants += [
            numpy_helper.from_array(self._given[name], name) for name in node.input if name in self._given.keys() - kept
        ]
        self._signed(self._copied(node, [inputs[0], *node.input[1:]]))

    def _signed(self, node: NodeProto) -> None:
        total = f"{node.output[0]}_total"
        self.nodes += [node, helper.make_node("Sign", [total], [node.output[0]])]
        node.output[0] = total

    def _axes(self, node: NodeProto) -> list[int]:
        """Axes that a node mixes, counted from the front."""
        attributes = _attributes(node)
        default = -1 if node.op_type in ("Softmax", "LogSoftmax", "Hardmax") else 0
        axes = attributes.get("axes", [attributes.get("axis", default)])
        if len(node.input) > 1 and node.op_type.startswith("Reduce"):
            axes = self._given.get(node.input[1], np.zeros(0))
        return [int(axis) % 4 for axis in axes]  # type: ignore[attr-defined]

    def _constant(self, values: npt.NDArray[np.generic]) -> str:
        name = f"constant_{len(self.constants)}_of_influence"
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    @staticmethod
    def _copied(node: NodeProto, inputs: list[str]) -> NodeProto:
        copied = NodeProto()
        copied.CopyFrom(node)
        copied.input[:] = inputs
        return copied


def _attributes(node: NodeProto) -> dict[str, object]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
