"""A torch network to the ONNX file that every runtime here reads: opset 17, IR 8, dynamic batch, static tile."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnxslim
import torch
from torch import nn

from export.errors import ExportError
from export.passes.folding import fold_channel_arithmetic
from export.passes.naming import label, name_after_modules
from export.passes.sizes import with_scales

OPSET = 17
IR_VERSION = 8
"""JetPack 5 and 6.0 (TensorRT 8.6) read no newer ones."""

INPUT, OUTPUT, BATCH = "image", "scores", "n"


def to_onnx(network: nn.Module, height: int, width: int) -> onnx.ModelProto:
    """Export a network in evaluation mode: input `image` uint8 (n, 1, height, width), output `scores` float32.

    Batch normalisation is folded; nodes and weights carry the names of their torch modules. Raises ExportError.
    """
    # torch's exporter of traced graphs rather than the one of torch.export: it writes opset 17 and IR 8 itself, where the
    # other starts at opset 18, converts down by rules that do not know every operator, and stays at 18 where they fail;
    # and it names nodes by module. Neither of our networks branches on data, all that tracing cannot see.
    example = torch.zeros((2, 1, height, width), dtype=torch.uint8)
    try:
        with _quiet(), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            written = Path(folder) / "model.onnx"
            if any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
                # the exporter takes TorchScript at the top alone, not within a module of ours
                network = torch.jit.trace(network.eval(), example, check_trace=False)  # type: ignore[no-untyped-call]
            torch.onnx.export(
                network.eval(),
                (example,),
                str(written),
                dynamo=False,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_axes={INPUT: {0: BATCH}, OUTPUT: {0: BATCH}},
            )
            model = onnxslim.slim(onnx.load(written))
            scaled = with_scales(model)
            if len(scaled.graph.initializer) > len(model.graph.initializer):
                model = onnxslim.slim(scaled)  # what calculated the sizes is of no use now
    except ExportError:
        raise
    except Exception as error:
        # the exporter raises whatever the network's own code raises: none of it is for the user to tell apart
        raise ExportError(f"the network cannot be exported to ONNX: {type(error).__name__}: {error}") from error
    _check_answer(model)
    model = fold_channel_arithmetic(model)
    model.ir_version = IR_VERSION
    name_after_modules(model.graph)
    model = with_input_size(model, height, width)
    check_versions(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def with_input_size(model: onnx.ModelProto, height: int | str, width: int | str) -> onnx.ModelProto:
    """A copy whose input has another height and width; names instead of numbers leave them open.

    Only for graphs that hold no sizes, as convolutional ones do: a size baked in fails the shape inference.
    Raises ExportError.
    """
    resized = onnx.ModelProto()
    resized.CopyFrom(model)
    del resized.graph.value_info[:]
    _set_dimensions(resized.graph.input[0], (BATCH, 1, height, width))
    # the inference fills in what an output of rows and columns becomes
    for dimension in list(resized.graph.output[0].type.tensor_type.shape.dim)[2:]:
        dimension.Clear()
    try:
        return onnx.shape_inference.infer_shapes(resized, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise ExportError(f"the graph does not take an input of {height}x{width}: {error}") from error


def check_versions(model: onnx.ModelProto) -> None:
    """Raise ExportError unless opset and IR version are the ones that every device reads."""
    opsets = {opset.domain or "ai.onnx": opset.version for opset in model.opset_import}
    if opsets != {"ai.onnx": OPSET} or model.ir_version != IR_VERSION:
        raise ExportError(
            f"graph has opsets {opsets} and IR version {model.ir_version}, expected opset {OPSET} and IR {IR_VERSION}"
        )


def _check_answer(model: onnx.ModelProto) -> None:
    """Raise ExportError unless there is one answer, for any batch, of a network in evaluation mode."""
    outputs = model.graph.output
    if len(outputs) != 1:
        raise ExportError(f"the network answers {len(outputs)} tensors; expected one, the scores")
    for node in model.graph.node:
        if node.op_type == "Dropout" or any(attribute.name == "training_mode" and attribute.i for attribute in node.attribute):
            raise ExportError(f"{label(node)} is in training mode; call model.eval() before the network is traced or exported")
    dimensions = outputs[0].type.tensor_type.shape.dim
    if not dimensions or dimensions[0].dim_value:
        got = f"{dimensions[0].dim_value} tiles" if dimensions else "one number"
        raise ExportError(
            f"the network answers for {got} whatever the batch; expected one answer a tile: reshape with x.flatten(1) or "
            "x.size(0) instead of a number"
        )


def _set_dimensions(value: onnx.ValueInfoProto, sizes: tuple[int | str, ...]) -> None:
    for dimension, size in zip(value.type.tensor_type.shape.dim, sizes, strict=True):
        _set_dimension(dimension, size)


def _set_dimension(dimension: onnx.TensorShapeProto.Dimension, size: int | str) -> None:
    dimension.Clear()
    if isinstance(size, int):
        dimension.dim_value = size
    else:
        dimension.dim_param = size


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch announces on every call that it has a newer exporter; the reason for this one stands above."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
