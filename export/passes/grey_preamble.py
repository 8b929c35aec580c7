"""What stands between the station's grey image and a foreign graph's input: the arithmetic of `GreyInput`, in ONNX."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from export.errors import ExportError
from export.networks.grey_input import Normalisation
from export.passes.image_input import CHANNELS_LAST, ImageInput
from export.passes.naming import label, names_in, unique
from export.passes.sizes import free_batch
from export.to_onnx import BATCH, INPUT

_OF_BYTES: Final = frozenset((
    "Cast", "Transpose", "Reshape", "Identity", "Slice", "Squeeze", "Unsqueeze", "Concat", "Expand", "Flatten", "Gather", "Split",
))  # fmt: skip
"""They do to floats what they do to bytes."""


def with_grey_input(
    model: onnx.ModelProto, image: ImageInput, normalisation: Normalisation | None, tile: tuple[int, int]
) -> onnx.ModelProto:
    """A copy that takes `image`, uint8 (n, 1, h, w) of the tile's size, any batch.

    normalisation: None: grey levels as they are; an uint8 input gets those always. Raises ExportError.
    """
    if image.kind == TensorProto.UINT8:
        _check_bytes(model.graph, image.name)
        normalisation = None
    pairs = _pairs(normalisation, image)
    fitted = free_batch(model, image.batch)
    graph = fitted.graph
    preamble = _Preamble(graph)
    stacked = preamble.normalised(INPUT, pairs)
    if image.channels_last:
        preamble.add("Transpose", [stacked], image.name, perm=CHANNELS_LAST)
    else:
        preamble.add("Identity", [stacked], image.name)
    graph.input[0].CopyFrom(helper.make_tensor_value_info(INPUT, TensorProto.UINT8, [BATCH, 1, *tile]))
    del graph.value_info[:]
    graph.output[0].type.tensor_type.ClearField("shape")
    nodes = [*preamble.nodes, *(NodeProto.FromString(node.SerializeToString()) for node in graph.node)]
    del graph.node[:]
    graph.node.extend(nodes)
    return fitted


def _pairs(normalisation: Normalisation | None, image: ImageInput) -> list[tuple[float, float]]:
    """Mean and deviation of each channel."""
    if normalisation is None:
        return [(0.0, 1.0)] * (image.channels or 1)
    if image.channels not in (None, normalisation.channels):
        raise ExportError(
            f"the network takes {image.channels} channels, its normalisation has {normalisation.channels}; expected one mean and "
            "deviation a channel"
        )
    return list(zip(normalisation.mean, normalisation.deviation, strict=True))


class _Preamble:
    """The nodes so far."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph, self._taken = graph, names_in(graph)
        self.nodes: list[NodeProto] = []

    def normalised(self, image: str, pairs: list[tuple[float, float]]) -> str:
        """The float channels of a grey image; the nodes are those that torch's exporter writes for `GreyInput`."""
        grey = self.add("Cast", [image], to=int(TensorProto.FLOAT))
        if len(set(pairs)) == 1:
            copies = [self._affine(grey, *pairs[0])] * len(pairs)
        else:
            copies = [self._affine(grey, mean, deviation) for mean, deviation in pairs]
        return self.add("Concat", copies, axis=1) if len(copies) > 1 else copies[0]

    def add(self, kind: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        """Write a node; the name of its output."""
        name = unique(kind, self._taken)
        made = output or unique(f"{name}_out", self._taken)
        self.nodes.append(helper.make_node(kind, inputs, [made], name=name, **attributes))
        return made

    def _affine(self, grey: str, mean: float, deviation: float) -> str:
        centred = self.add("Sub", [grey, self._number(mean)]) if mean else grey
        return self.add("Mul", [centred, self._number(1.0 / deviation)]) if deviation != 1.0 else centred

    def _number(self, value: float) -> str:
        name = unique("grey_constant", self._taken)
        self._graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
        return name


def _check_bytes(graph: onnx.GraphProto, name: str) -> None:
    """Raise ExportError where the graph calculates in bytes: what it gets are floats of the same values."""
    reached = {name}
    for node in graph.node:
        if not reached.intersection(node.input):
            continue
        if node.op_type not in _OF_BYTES:
            raise ExportError(f"{label(node)} calculates with the bytes of the image; expected a Cast to float before it")
        if node.op_type != "Cast":
            reached.update(node.output)
