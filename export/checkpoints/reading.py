"""Checkpoint files of all kinds: recognised, then handed to what reads their kind."""

from __future__ import annotations

import hashlib
from pathlib import Path

from export.checkpoints.checkpoint import Checkpoint, Hints, ModuleContent, OnnxContent, StateContent
from export.checkpoints.exported_programs import read_exported
from export.checkpoints.kinds import FileKind, recognise
from export.checkpoints.onnx_files import digest_outside, read_onnx
from export.checkpoints.safetensors_files import read_safetensors
from export.checkpoints.torch_files import read_saved
from export.checkpoints.torchscript import read_torchscript
from export.errors import ExportError


def read_checkpoint(path: Path, *, weights: Path | None = None, trust: bool = False) -> Checkpoint:
    """Read a checkpoint of PyTorch, Keras, safetensors or ONNX, whatever its name.

    weights: of a Keras model.json. trust: code that the file holds may run (pickled networks, Lambda layers).
    Raises ExportError.
    """
    kind = recognise(path)
    if kind is FileKind.KERAS:
        # Keras takes seconds to import, and is an extra of its own
        from export.checkpoints.keras_files import read_keras

        return read_keras(path, weights, trust)
    if weights is not None:
        raise ExportError(f"{path}: holds its weights itself ({kind.value}); --weights goes with a model.json of Keras")
    content, hints = _read(path, kind, trust)
    return Checkpoint(str(path), _sha256(path, kind), content, hints)


def _read(path: Path, kind: FileKind, trust: bool) -> tuple[StateContent | ModuleContent | OnnxContent, Hints]:
    match kind:
        case FileKind.TORCHSCRIPT:
            return read_torchscript(path, trust)
        case FileKind.EXPORTED_PROGRAM:
            return read_exported(path, trust)
        case FileKind.SAFETENSORS:
            return read_safetensors(path)
        case FileKind.ONNX:
            return read_onnx(path)
        case _:
            return read_saved(path, trust)


def _sha256(path: Path, kind: FileKind) -> str:
    """Of the file; of an ONNX file with weights beside it, of all of them."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if kind is FileKind.ONNX:
        digest_outside(path, digest)
    return digest.hexdigest()
