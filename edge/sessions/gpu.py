"""The GPU of this box, asked from NVIDIA's driver itself: no CUDA toolkit, no Python package is needed for that."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

_DRIVER = "libcuda.so.1"
_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR. Source: CUDA driver API, enum CUdevice_attribute."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """name: as the driver gives it, `Orin`. compute: its capability, `8.7`."""

    name: str
    compute: str


def find_gpu(driver: str = _DRIVER) -> Gpu | str:
    """The first GPU, or why there is none. driver: name or path of the driver's library."""
    try:
        library = ctypes.CDLL(driver)
    except OSError:
        return f"no NVIDIA driver ({driver})"
    if status := library.cuInit(0):
        return f"the NVIDIA driver does not start (cuInit: error {status})"
    device, name, major, minor = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_int(), ctypes.c_int()
    for status in (
        library.cuDeviceGet(ctypes.byref(device), 0),
        library.cuDeviceGetName(name, len(name), device),
        library.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device),
        library.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device),
    ):
        if status:
            return f"the NVIDIA driver names no GPU (error {status})"
    return Gpu(name.value.decode(errors="replace"), f"{major.value}.{minor.value}")
