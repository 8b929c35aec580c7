"""NVIDIA's driver with the CPU for a GPU: `build` compiles it, a process started with `environment` finds it as libcuda.so.1."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("libcuda.cpp")
NAME = "emulated GPU"


def build(folder: Path) -> Path:
    """The library in a folder. Raises FileNotFoundError without g++."""
    compiler = shutil.which("g++")
    if compiler is None:
        raise FileNotFoundError("no g++ to compile the emulated driver")
    library = folder / "libcuda.so.1"
    options = ("-std=c++17", "-O0", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", f"-Wl,-soname,{library.name}", "-pthread")
    subprocess.run([compiler, *options, "-o", library, SOURCE, "-ldl"], check=True)
    return library


def environment(library: Path) -> dict[str, str]:
    """This process's, and the library found before any other of its name."""
    found = os.environ.get("LD_LIBRARY_PATH")
    return {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(filter(None, (str(library.parent), found)))}
