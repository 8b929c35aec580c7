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
    except Exception as error:
        # the exporter raises whatever the network's own code raises: none of it is for the user to tell apart
        raise ExportError(f"the network cannot be exported to ONNX: {type(error).__name__}: {error}") from error
    model.ir_version = IR_VERSION
    _name_after_modules(model.graph)
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


def _name_after_modules(graph: onnx.GraphProto) -> None:
    """`/encoder_8/encoder_8.1/encoder_8.1.0/Conv` becomes `encoder_8.1.0/Conv`; its weights `encoder_8.1.0.weight`, `.bias`."""
    renamed: dict[str, str] = {}
    taken = {value.name for value in (*graph.input, *graph.output)}
    nodes: set[str] = set()
    for node in graph.node:
        path, _, operator = node.name.removeprefix("/").rpartition("/")
        module = path.rpartition("/")[2]
        node.name = _unique(f"{module}/{operator}" if module else operator, nodes)
        for name in node.output:
            if name not in taken:
                renamed[name] = _unique(f"{node.name}_out", taken)
    _own_weights(graph, taken)
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]


def _own_weights(graph: onnx.GraphProto, taken: set[str]) -> None:
    """Name weights and constants after the operators that use them.

    The clean-up merged equal ones (the zero biases of two layers): small ones become each operator's own again, so that a
    name says one thing. Weights of convolutions stay shared where they are.
    """
    shared = {initializer.name: initializer for initializer in graph.initializer}
    del graph.initializer[:]
    weights: dict[str, str] = {}
    for node in graph.node:
        weighted = node.op_type in ("Conv", "ConvTranspose", "Gemm")
        module = node.name.rpartition("/")[0] or node.name
        for index, name in enumerate(node.input):
            if name not in shared:
                continue
            if name not in weights:
                own = graph.initializer.add()
                own.CopyFrom(shared[name])
                role = f"{module}.{('weight', 'bias')[index - 1]}" if weighted and index else f"{node.name}_constant"
                own.name = _unique(role, taken)
                if weighted and index == 1:
                    weights[name] = own.name
                node.input[index] = own.name
            else:
                node.input[index] = weights[name]


def _unique(name: str, taken: set[str]) -> str:
    candidate, number = name, 1
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    taken.add(candidate)
    return candidate


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
