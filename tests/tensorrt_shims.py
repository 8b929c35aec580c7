"""TensorRT's Python module as four versions and TensorRT for RTX have it: strict, so that a removed name is an AttributeError.

Names and values are those of NVIDIA's open-source bindings (python/src/infer/pyCore.cpp, pyEngine.cpp, parsers/pyOnnx.cpp of the
releases) and of the installed bindings of TensorRT for RTX. The parser reads the ONNX file for real; the builder refuses what the
real one refuses, and its engine tells how it was asked; the runtime executes it on a strict device.
"""

from __future__ import annotations

import enum
from pathlib import Path
from types import ModuleType

import onnx
from strict_device import StrictDevice
from tensorrt_builder_shims import UNSUPPORTED, add_builder
from tensorrt_plans import asked
from tensorrt_runtime_shims import add_runtime

__all__ = ["RTX", "VERSIONS", "asked", "file_of", "tensorrt", "unsupported"]

VERSIONS = ("8.6.1.6", "10.3.0.30", "10.13.3.9", "11.1.0.106")
RTX = "1.7.1.116"


def tensorrt(
    version: str,
    without: tuple[str, ...] = (),
    refuses: str = UNSUPPORTED,
    device: StrictDevice | None = None,
    *,
    dla_cores: int = 0,
    dla_layers: int = 1,
    uncapturable: bool = False,
    uneven: float = 0,
    off: float = 0,
) -> ModuleType:
    """The module of a version; RTX: TensorRT for RTX.

    without: creation flags that it has not after all; refuses: an operator that it does not know. device: None: it builds alone.
    """
    module = ModuleType("tensorrt_rtx_bindings" if version == RTX else "tensorrt")
    module.__version__ = version

    class Severity(enum.IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    class ILogger:
        __slots__ = ("__dict__",)

        def log(self, severity: Severity, message: str) -> None:
            raise NotImplementedError

    ILogger.Severity = Severity
    module.ILogger = ILogger
    gpu = ("", "") if device is None else (device.properties.name, device.properties.compute)
    add_builder(module, without=without, refuses=refuses, gpu=gpu, dla_cores=dla_cores, dla_layers=dla_layers)
    if device is not None:
        add_runtime(module, device, uncapturable=uncapturable, uneven=uneven, off=off)
    return module


def unsupported(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with one node of an operator that nobody has."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    changed.graph.node[3].op_type = UNSUPPORTED
    return changed


def file_of(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path
