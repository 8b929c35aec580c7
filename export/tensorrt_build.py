"""`--target tensorrt`: the engine of a new bundle, built at once where this box has a GPU and TensorRT.

A bundle never holds an engine: one runs on the GPU and the TensorRT version that it was built with and on no other. So what is
built here goes into this box's cache beside the bundle; another device builds its own when it first starts.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from edge.bundle import Bundle
from edge.sessions.gpu import Gpu, find_gpu
from edge.sessions.trt_build import Progress, obtain_engine, tile_profiles

_MODULES = ("tensorrt", "tensorrt_rtx")


@dataclass(frozen=True, slots=True)
class DeviceBuild:
    """engine: where it lies; None: not built here. said: one line for the user."""

    engine: Path | None
    said: str


def build_for_device(
    bundle: Bundle,
    progress: Progress | None = None,
    *,
    find_module: Callable[[], ModuleType | str] | None = None,
    find_device: Callable[[], Gpu | str] = find_gpu,
) -> DeviceBuild:
    """Build the bundle's tile engine into this box's cache, or say why the device will do it.

    A stream's engine is always the device's: it is built for the width of its strip.
    Raises SessionError where TensorRT is here and refuses the file: that bundle would fail on the device too.
    """
    trt = (find_module or find_tensorrt)()
    device = find_device()
    missing = [reason for reason in (trt, device) if isinstance(reason, str)]
    if isinstance(trt, str) or isinstance(device, str):
        return DeviceBuild(None, f"the engine will be built at the first start on the device: here is {' and '.join(missing)}")
    obtained = obtain_engine(trt, device, bundle, tile_profiles(bundle.manifest), progress=progress)
    if obtained.path is None:
        return DeviceBuild(None, f"the engine builds, but cannot be kept beside {bundle.path}; the device will build its own")
    verb = "kept" if obtained.built is None else "built"
    return DeviceBuild(
        obtained.path,
        f"engine {verb} for {device.name} with TensorRT {trt.__version__}: {obtained.path}; other devices build theirs",
    )


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
