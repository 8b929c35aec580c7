"""`--target tensorrt`: the engine of a new bundle, built at once where this box has a GPU and TensorRT.

A bundle never holds an engine: one runs on the GPU and the TensorRT version that it was built with and on no other. So what is
built here goes into this box's cache beside the bundle; another device builds its own when it first starts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from edge.bundle import Bundle
from edge.engine_cache import engines_beside
from edge.sessions.gpu import Gpu, find_gpu
from edge.sessions.trt.build import obtain_engine
from edge.sessions.trt.library import find_tensorrt
from edge.sessions.trt.shapes import tile_profile


@dataclass(frozen=True, slots=True)
class DeviceBuild:
    """engine: where it lies; None: not built here. said: one line for the user."""

    engine: Path | None
    said: str


def build_for_device(
    bundle: Bundle,
    *,
    find_module: Callable[[], ModuleType | str] = find_tensorrt,
    find_device: Callable[[], Gpu | str] = find_gpu,
) -> DeviceBuild:
    """Build the bundle's tile engine into this box's cache, or say why the device will do it.

    A stream's engine is always the device's: it is built for the width of its strip.
    Raises SessionError where TensorRT is here and refuses the file: that bundle would fail on the device too.
    """
    trt = find_module()
    device = find_device()
    missing = [reason for reason in (trt, device) if isinstance(reason, str)]
    if isinstance(trt, str) or isinstance(device, str):
        return DeviceBuild(None, f"the engine will be built at the first start on the device: here is {' and '.join(missing)}")
    obtained = obtain_engine(trt, device, bundle, [tile_profile(bundle)], engines_beside(bundle.path))
    if obtained.path is None:
        return DeviceBuild(None, f"the engine builds, but cannot be kept beside {bundle.path}; the device will build its own")
    verb = "kept" if obtained.built is None else "built"
    return DeviceBuild(
        obtained.path,
        f"engine {verb} for {device.name} with TensorRT {trt.__version__}: {obtained.path}; other devices build theirs",
    )
