"""Compilers of CUDA C++ that a box has, each asked for its version and the GPUs it knows: NVRTC, a library, or nvcc, a program.

NVRTC comes with CUDA and JetPack, or as a wheel, which is found by its files; none of it is imported.
Source: NVIDIA NVRTC documentation, CUDA 11.4 to 13; nvcc's, --list-gpu-code (from 11.2 on).
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edge.errors import SessionError

_SONAMES = ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2")
"""All of CUDA 11.2 to 11.8 is called 11.2, as it may replace one another."""
_LIBRARY = re.compile(r"libnvrtc\.so[.\d]*")
_RELEASE = re.compile(rb"release (\d+)\.(\d+), V([\d.]+)")
_NVCC_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Compiler:
    """name: `nvrtc` or `nvcc`. release: CUDA's, (12, 6). version: `12.6`, or longer where it says more. path: where it is.

    architectures: what it compiles for, as `sm_87`. to_cubin: source, options -> cubin; raises SessionError with what it said.
    """

    name: str
    release: tuple[int, int]
    version: str
    path: str
    architectures: frozenset[str]
    to_cubin: Callable[[str, tuple[str, ...]], bytes]

    def __str__(self) -> str:
        return f"{self.name} {self.version} ({self.path})"


def compilers() -> Iterator[Compiler]:
    """Those of this box, NVRTC first and each version once; each is looked for when it is asked for."""
    versions = set()
    for library in _nvrtc_libraries():
        try:
            compiler = _nvrtc(library)
        except (OSError, AttributeError, SessionError):  # not there, of another processor, older than 11.2, or it does not work
            continue
        if compiler.version not in versions:
            versions.add(compiler.version)
            yield compiler
    program = shutil.which("nvcc")
    for path in [Path(program)] if program else [folder / "bin" / "nvcc" for folder in _toolkits()]:
        try:
            yield _nvcc(path)
        except (OSError, subprocess.SubprocessError, SessionError):
            continue


def _nvrtc_libraries() -> Iterator[str]:
    """Files of wheels, names for the loader, then files of CUDA's folders."""
    wheels = importlib.util.find_spec("nvidia")
    folders = (wheels.submodule_search_locations or []) if wheels is not None else []
    for folder in folders:
        yield from _files(Path(folder).glob("*/lib/*"))
    yield from _SONAMES
    for toolkit in _toolkits():
        yield from _files([*toolkit.glob("lib64/*"), *toolkit.glob("targets/*/lib/*")])


def _files(found: Iterator[Path] | list[Path]) -> list[str]:
    """The NVRTC libraries of some files, the newest first, one that has several names once."""
    libraries = {path.resolve() for path in found if _LIBRARY.fullmatch(path.name)}
    return [str(path) for path in sorted(libraries, key=lambda path: _numbers(path.name), reverse=True)]


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(int(digits) for digits in re.findall(r"\d+", name))


def _toolkits() -> list[Path]:
    named = (os.environ.get(variable) for variable in ("CUDA_HOME", "CUDA_PATH"))
    return [Path(folder) for folder in (*named, "/usr/local/cuda") if folder]


def _nvrtc(path: str) -> Compiler:
    """Raises OSError, AttributeError, SessionError."""
    library = ctypes.CDLL(path)
    major, minor, count = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    _check(library, "nvrtcVersion", library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    _check(library, "nvrtcGetNumSupportedArchs", library.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
    known = (ctypes.c_int * count.value)()
    _check(library, "nvrtcGetSupportedArchs", library.nvrtcGetSupportedArchs(known))
    return Compiler(
        "nvrtc",
        (major.value, minor.value),
        f"{major.value}.{minor.value}",
        path,
        frozenset(f"sm_{compute}" for compute in known),
        lambda source, options: _compile_by_nvrtc(library, source, options),
    )


def _compile_by_nvrtc(library: ctypes.CDLL, source: str, options: tuple[str, ...]) -> bytes:
    program = ctypes.c_void_p()
    created = library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None)
    _check(library, "nvrtcCreateProgram", created)
    try:
        wanted = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        if library.nvrtcCompileProgram(program, len(options), wanted):
            log = _output(library, "nvrtcGetProgramLog", program).decode(errors="replace").rstrip("\0\n")
            raise SessionError(f"NVRTC cannot compile the kernels with {' '.join(options)}: {log}")
        return _output(library, "nvrtcGetCUBIN", program)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _output(library: ctypes.CDLL, name: str, program: ctypes.c_void_p) -> bytes:
    """What a function of NVRTC gives that has a second one for its size."""
    size = ctypes.c_size_t()
    _check(library, f"{name}Size", library[f"{name}Size"](program, ctypes.byref(size)))
    content = ctypes.create_string_buffer(size.value)
    _check(library, name, library[name](program, content))
    return content.raw


def _check(library: ctypes.CDLL, called: str, result: int) -> None:
    if result:
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        raise SessionError(f"NVRTC: {called} answered {library.nvrtcGetErrorString(result).decode()}")


def _nvcc(path: Path) -> Compiler:
    """Raises OSError, SubprocessError, SessionError."""
    release = _RELEASE.search(_run(path, "--version"))
    if release is None:
        raise SessionError(f"{path} --version: got no release")
    major, minor, version = release.groups()
    return Compiler(
        "nvcc",
        (int(major), int(minor)),
        version.decode(),
        str(path),
        frozenset(_run(path, "--list-gpu-code").decode().split()),
        lambda source, options: _compile_by_nvcc(path, source, options),
    )


def _compile_by_nvcc(path: Path, source: str, options: tuple[str, ...]) -> bytes:
    with tempfile.TemporaryDirectory(prefix="rust-edge-") as folder:
        written, cubin = Path(folder, "kernels.cu"), Path(folder, "kernels.cubin")
        written.write_text(source, encoding="utf-8")
        try:
            _run(path, "-cubin", *options, "-o", str(cubin), str(written))
            return cubin.read_bytes()
        except subprocess.CalledProcessError as error:
            said = (error.stderr + error.stdout).decode(errors="replace").strip()
            raise SessionError(f"{path} cannot compile the kernels with {' '.join(options)}: {said}") from error
        except (OSError, subprocess.SubprocessError) as error:
            raise SessionError(f"{path} cannot compile the kernels: {error}") from error


def _run(program: Path, *arguments: str) -> bytes:
    return subprocess.run([program, *arguments], check=True, capture_output=True, timeout=_NVCC_SECONDS).stdout
