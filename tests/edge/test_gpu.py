from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from edge.sessions.gpu import Gpu, find_gpu

DRIVER = r"""
#include <string.h>
int cuInit(unsigned flags) { return INIT; }
int cuDeviceGet(int *device, int ordinal) { *device = 7; return COUNT > ordinal ? 0 : 101; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "Orin", length); return device == 7 ? 0 : 101; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 8 : attribute == 76 ? 7 : -1;
    return device == 7 ? 0 : 101;
}
"""


def driver(folder: Path, init: int = 0, count: int = 1) -> str:
    """A driver's library with the functions that are asked, and nothing behind them."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to make a stand-in of the NVIDIA driver with")
    source, library = folder / "driver.c", folder / "libcuda.so"
    source.write_text(DRIVER)
    command = [compiler, "-shared", "-fPIC", f"-DINIT={init}", f"-DCOUNT={count}", "-o", str(library), str(source)]
    subprocess.run(command, check=True)
    return str(library)


def test_the_driver_names_the_gpu_and_its_capability(tmp_path):
    assert find_gpu(driver(tmp_path)) == Gpu("Orin", "8.7")


def test_a_box_without_the_driver_says_so():
    assert find_gpu("libcuda-of-another-box.so.1") == "no NVIDIA driver (libcuda-of-another-box.so.1)"


def test_a_driver_that_does_not_start_says_so(tmp_path):
    assert find_gpu(driver(tmp_path, init=100)) == "the NVIDIA driver does not start (cuInit: error 100)"


def test_a_driver_without_a_gpu_says_so(tmp_path):
    assert find_gpu(driver(tmp_path, count=0)) == "the NVIDIA driver names no GPU (error 101)"
