"""Anybody's ONNX segmenter or classifier brought into the engines' contract.

Afterwards: `image` uint8 (n, 1, h, w) -> `scores` float32 logits (n, channels, h, w) or (n, channels), any batch, opset 17, IR 8.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import onnxslim
from onnx import NodeProto, TensorProto, compose, inliner

from edge.sessions import Batch, Scores
from export.errors import ExportError
from export.networks.grey_input import Normalisation
from export.passes.folding import fold_channel_arithmetic
from export.passes.grey_preamble import with_grey_input
from export.passes.image_input import ImageInput, find_image_input, graph_inputs
from export.passes.layout import to_channels_first
from export.passes.naming import label, name_after_modules
from export.passes.opset import to_opset
from export.passes.scores_output import Activation, final_activation, with_scores_output, without_activation, without_final
from export.passes.sizes import with_scales
from export.passes.widening import to_float32
from export.to_onnx import BATCH, INPUT, check_versions

__all__ = ["Activation", "adopt", "final_activation", "without_activation"]

_QUANTIZED: Final = frozenset((
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger",
))  # fmt: skip
_BRANCHES: Final = frozenset(("If", "Loop", "Scan", "SequenceMap"))

_PREFIX: Final = "source/"
"""Before the tensors of the graph given, so that they never meet those that are added."""

_TRIED: Final = 3
_SPREAD_SHARE: Final = 1e-3
"""Of the scores' spread: kernels sum in another order for another shape, which is a tenth of this at most."""


def adopt(
    model: onnx.ModelProto, normalisation: Normalisation | None, activation: Activation, tile: tuple[int, int]
) -> onnx.ModelProto:
    """The graph in the engines' contract; the one that is given is left as it is.

    normalisation: from grey levels to the graph's float input; None: grey levels as they are, which an uint8 input gets always.
    activation: what is to come behind the scores; the graph may end in it, and in no other one.
    tile: height and width of the input. Raises ExportError.
    """
    _check_operators(model)
    alone = to_float32(_alone(model))
    _image_input(alone)
    source = with_scales(to_opset(_slimmed(alone)))
    image = _image_input(source)
    _check_size(source, image, tile)
    adopted = with_scales(_slimmed(with_scales(with_grey_input(source, image, normalisation, tile))))
    _check_one_path(adopted)
    tried = _run(adopted, np.zeros((2, 1, *tile), np.uint8))
    adopted = without_final(with_scores_output(adopted, tried.shape, tile, image.channels_last), activation)
    adopted = _slimmed(fold_channel_arithmetic(_slimmed(to_channels_first(_slimmed(adopted)))))
    name_after_modules(adopted.graph)
    _declare_output(adopted, _check_batches(adopted, tile))
    check_versions(adopted)
    onnx.checker.check_model(adopted, full_check=True)
    return adopted


def _check_operators(model: onnx.ModelProto) -> None:
    local = {(function.domain, function.name) for function in model.functions}
    for node in _all_nodes(model.graph):
        if node.op_type in _QUANTIZED or node.op_type.startswith("QLinear"):
            raise ExportError(f"{label(node)}: the graph is already quantized; export from the float network that it was made of")
        if node.domain not in ("", "ai.onnx") and (node.domain, node.op_type) not in local:
            raise ExportError(
                f"{label(node)} is an operator of {node.domain}, not of ONNX itself; export the network without operators of one "
                "runtime (files that a runtime has optimized hold some)"
            )


def _check_one_path(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type in _BRANCHES:
            raise ExportError(f"{label(node)} branches or loops; expected one path: export the network for one input size")


def _all_nodes(graph: onnx.GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _all_nodes(attribute.g)


def _alone(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with one input and one output, and without functions, remarks, and weights among its inputs. Raises ExportError."""
    inputs, outputs = [value.name for value in graph_inputs(model.graph)], [value.name for value in model.graph.output]
    if len(inputs) != 1:
        raise ExportError(f"the graph takes {', '.join(inputs) or 'nothing'}; expected one image")
    if len(outputs) != 1:
        raise ExportError(
            f"the graph answers {', '.join(outputs) or 'nothing'}; expected one, the scores: export the network with that "
            "alone, or cut the others off (onnx.utils.extract_model)"
        )
    alone = onnx.ModelProto()
    alone.CopyFrom(inliner.inline_local_functions(model) if model.functions else model)
    kept = [value for value in alone.graph.input if value.name == inputs[0]]
    entry = onnx.ValueInfoProto.FromString(kept[0].SerializeToString())
    del alone.graph.input[:]
    alone.graph.input.append(entry)
    del alone.metadata_props[:]
    del alone.functions[:]
    alone.doc_string = alone.graph.doc_string = ""
    for node in alone.graph.node:
        node.doc_string = ""
        node.ClearField("metadata_props")
    return compose.add_prefix(alone, _PREFIX, rename_nodes=False)


def _image_input(model: onnx.ModelProto) -> ImageInput:
    image = find_image_input(model)
    if image is None or image.kind not in (TensorProto.FLOAT, TensorProto.UINT8):
        (value,) = graph_inputs(model.graph)
        shape = [dimension.dim_value or dimension.dim_param or "?" for dimension in value.type.tensor_type.shape.dim]
        kind = TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()
        raise ExportError(
            f"the graph takes {value.name.removeprefix(_PREFIX)}, {kind} {shape}; expected an image, float or uint8, of four axes"
        )
    return image


def _check_size(model: onnx.ModelProto, image: ImageInput, tile: tuple[int, int]) -> None:
    """Raise ExportError where the graph is for one size and resizes to sizes that belong to it."""
    weights = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        baked = node.op_type == "Resize" and len(node.input) > 3 and node.input[3] in weights
        if baked and None not in (image.height, image.width) and (image.height, image.width) != tile:
            raise ExportError(
                f"{label(node)} resizes to what belongs to images of {image.height}x{image.width}, the tile is "
                f"{tile[0]}x{tile[1]}; take the graph's own size (--tile {image.height}x{image.width})"
            )


def _slimmed(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        slimmed: onnx.ModelProto = onnxslim.slim(model)
    except Exception as error:  # it raises whatever an operator that it does not know makes it stumble on
        raise ExportError(f"the graph cannot be cleaned: {type(error).__name__}: {error}") from error
    return slimmed


def _run(model: onnx.ModelProto, batch: Batch) -> Scores:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        scores: npt.NDArray[np.float32] = session.run(None, {INPUT: batch})[0]
    except Exception as error:  # ONNX Runtime's errors have no common class of their own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise ExportError(
            f"the graph does not take {len(batch)} tiles of {batch.shape[2]}x{batch.shape[3]} ({reason}); expected any number "
            "of them: export the network with a dynamic batch axis, or take its own size as the tile"
        ) from error
    return scores


def _check_batches(model: onnx.ModelProto, tile: tuple[int, int]) -> tuple[int, ...]:
    """The shape of one tile's scores. Raises ExportError where they depend on what else is in the batch."""
    batch = np.random.default_rng(0).integers(0, 256, (_TRIED, 1, *tile), dtype=np.uint8)
    together, alone = _run(model, batch), [_run(model, tile_[None]) for tile_ in batch]
    close = together.shape[0] == _TRIED and all(scores.shape == (1, *together.shape[1:]) for scores in alone)
    allowed = _SPREAD_SHARE * (float(np.ptp(together)) or 1.0)
    if not close or not np.allclose(together, np.concatenate(alone), rtol=0, atol=allowed):
        raise ExportError(
            "the graph's answers to a tile depend on the others in its batch: it was exported for one batch size, or in training "
            "mode; export it in evaluation mode with a dynamic batch axis"
        )
    return tuple(together.shape[1:])


def _declare_output(model: onnx.ModelProto, shape: tuple[int, ...]) -> None:
    """State the output's shape, and with it those of all tensors, in place."""
    del model.graph.value_info[:]
    (value,) = model.graph.output
    value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, TensorProto.FLOAT, [BATCH, *shape]))
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    model.graph.value_info.extend(inferred.graph.value_info)
