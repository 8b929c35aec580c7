"""ONNX files, their weights within or beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper

from export.checkpoints.checkpoint import Hints, OnnxContent
from export.checkpoints.hints import hints_of, merged
from export.checkpoints.reasons import first_line
from export.errors import ExportError
from export.passes.image_input import find_image_input

_NO_NUMBERS = frozenset((TensorProto.UNDEFINED, TensorProto.STRING, TensorProto.COMPLEX64, TensorProto.COMPLEX128))


def read_onnx(path: Path) -> tuple[OnnxContent, Hints]:
    """Read a graph with its weights. Raises ExportError."""
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except (DecodeError, ValueError, OSError, RuntimeError) as error:
        raise ExportError(f"{path}: damaged ONNX file ({first_line(error)}); copy it again") from error
    if not model.graph.node:
        raise ExportError(f"{path}: damaged ONNX file: its graph has no nodes; export it again")
    outside = outside_files(model)
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, OSError, ValueError, RuntimeError, DecodeError) as error:
        absent = [name for name in outside if not (path.parent / name).is_file()]
        if absent:
            raise ExportError(f"{path}: its weights are in {absent[0]}, which is not beside it; copy both") from error
        raise ExportError(f"{path}: damaged or invalid ONNX file ({first_line(error)}); export it again") from error
    _check_finite(model, path)
    image = find_image_input(model)
    shape = Hints(tile=(image.height, image.width) if image and image.height and image.width else None)
    said = {entry.key: entry.value for entry in model.metadata_props}
    return OnnxContent(model), merged(hints_of(said), shape)


def outside_files(model: onnx.ModelProto) -> list[str]:
    """Names of the files that hold weights of a graph whose own file does not."""
    names = {
        entry.value
        for tensor in _tensors(model.graph)
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return sorted(names)


def digest_outside(path: Path, digest: hashlib._Hash) -> None:
    """Add the files beside a graph's, in the order of their names, to its hash."""
    for name in outside_files(onnx.load(path, format="protobuf", load_external_data=False)):
        with (path.parent / name).open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)


def _check_finite(model: onnx.ModelProto, path: Path) -> None:
    for tensor in model.graph.initializer:
        if tensor.data_type in _NO_NUMBERS:
            continue
        values = np.asarray(numpy_helper.to_array(tensor))
        values = values.astype(np.float32) if values.dtype.kind not in "fiub" else values
        # single ones are bounds and paddings: infinity is right there
        if np.isnan(values).any() or (values.size > 1 and not np.isfinite(values).all()):
            raise ExportError(f"{path}: {tensor.name} holds values that are no finite numbers; expected trained weights")
