"""TensorRT's Python module: which one is here, what is missing for it to run, and what it says.

TensorRT 8.6, 10 and 11 are `tensorrt`; TensorRT for RTX is `tensorrt_rtx`, or with its bindings alone `tensorrt_rtx_bindings`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

import numpy as np

from edge.errors import SessionError
from edge.sessions.gpu import Gpu, find_gpu

_log = logging.getLogger(__name__)
_MODULES: Final = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")
_SILENT: Final = "it says no more"
_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "FLOAT": np.dtype(np.float32),
    "HALF": np.dtype(np.float16),
    "INT8": np.dtype(np.int8),
    "UINT8": np.dtype(np.uint8),
}


def find_tensorrt(names: tuple[str, ...] = _MODULES) -> ModuleType | str:
    """TensorRT's Python module, or why there is none."""
    broken = []
    for name in names:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                broken.append(f"{name} without {error.name}")
        except (ImportError, OSError) as error:  # its own libraries are missing, or made for another system
            broken.append(f"{name} that cannot be loaded ({' '.join(str(error).split())})")
    return broken[0] if broken else "no TensorRT"


def missing_parts(
    find_device: Callable[[], Gpu | str] = find_gpu, modules: tuple[str, ...] = _MODULES, pycuda: str = "pycuda"
) -> list[str]:
    """What a box lacks to run engines on a GPU, in words; nothing is imported for that."""
    missing = []
    if not any(importlib.util.find_spec(name) for name in modules):
        missing.append("no TensorRT")
    if importlib.util.find_spec(pycuda) is None:
        missing.append("no pycuda")
    device = find_device()
    return [*missing, device] if isinstance(device, str) else missing


def version_of(trt: ModuleType) -> str:
    """`10.3.0.30`, or `1.7.1.116 for RTX`."""
    return f"{trt.__version__} for RTX" if "rtx" in trt.__name__ else str(trt.__version__)


def require_supported(trt: ModuleType) -> None:
    """Raises SessionError where TensorRT is older than 8.6, which brought contexts that share a profile."""
    major, minor = (int(number) for number in str(trt.__version__).split(".")[:2])
    if "rtx" not in trt.__name__ and (major, minor) < (8, 6):
        raise SessionError(f"TensorRT {trt.__version__} is installed, expected 8.6 or newer: JetPack 6.0, or another backend")


def numpy_type(kind: Any) -> np.dtype[Any] | None:
    """Of a `DataType`; None: one that no engine of ours has. 8.6's own `nptype` fails with NumPy 1.24 and newer."""
    return _DTYPES.get(kind.name)


class Listener:
    """What TensorRT said last of an error. logger: for its builder, runtime and parser."""

    def __init__(self, trt: ModuleType) -> None:
        said = self
        error = int(trt.ILogger.Severity.ERROR)

        class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                # INTERNAL_ERROR 0, ERROR 1, WARNING 2, INFO 3, VERBOSE 4
                if int(severity) <= error:
                    said.last = message
                _log.log(logging.DEBUG if int(severity) > error else logging.ERROR, "%s", message)

        self.last = _SILENT
        self.logger = Logger()

    def forget(self) -> None:
        """Before a call whose error is to be told."""
        self.last = _SILENT


@functools.cache
def listener(trt: ModuleType) -> Listener:
    """The one of this process: TensorRT keeps the first logger that it is given, and leaves later ones unused."""
    return Listener(trt)
