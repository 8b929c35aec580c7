"""A kernel that scales bytes, for every device of the tests: its twin, for a GPU, for the emulated one."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np

PTX = b"""
.version 6.4
.target sm_70
.address_size 64

.visible .entry scale(.param .u64 source, .param .u64 target, .param .u32 count, .param .f32 factor)
{
    .reg .pred %outside;
    .reg .b16 %byte;
    .reg .f32 %scaled, %factor;
    .reg .b32 %index, %blocks, %threads, %thread, %count, %result;
    .reg .b64 %source, %target, %offset;

    ld.param.u64 %source, [source];
    ld.param.u64 %target, [target];
    ld.param.u32 %count, [count];
    ld.param.f32 %factor, [factor];
    mov.u32 %blocks, %ctaid.x;
    mov.u32 %threads, %ntid.x;
    mov.u32 %thread, %tid.x;
    mad.lo.s32 %index, %blocks, %threads, %thread;
    setp.ge.s32 %outside, %index, %count;
    @%outside bra END;
    cvta.to.global.u64 %source, %source;
    cvta.to.global.u64 %target, %target;
    cvt.s64.s32 %offset, %index;
    add.s64 %source, %source, %offset;
    add.s64 %target, %target, %offset;
    ld.global.u8 %byte, [%source];
    cvt.rn.f32.u16 %scaled, %byte;
    mul.f32 %scaled, %scaled, %factor;
    cvt.rzi.u32.f32 %result, %scaled;
    st.global.u8 [%target], %result;
END:
    ret;
}
"""

_HOST = """
extern "C" void host_scale(unsigned gx, unsigned, unsigned, unsigned bx, unsigned, unsigned, void **parameters) {
    const unsigned char *source = *static_cast<unsigned char **>(parameters[0]);
    unsigned char *target = *static_cast<unsigned char **>(parameters[1]);
    int count = *static_cast<int *>(parameters[2]);
    float factor = *static_cast<float *>(parameters[3]);
    for (unsigned index = 0; index < gx * bx; ++index) {
        if (static_cast<int>(index) < count) target[index] = static_cast<unsigned char>(source[index] * factor);
    }
}
"""

View = Callable[[int, int], np.ndarray]


def scale(view: View, source: np.uint64, target: np.uint64, count: np.int32, factor: np.float32) -> None:
    view(target, count)[:] = (view(source, count) * np.float32(factor)).astype(np.uint8)


def host_module(folder: Path) -> bytes:
    """A module for the emulated GPU. Raises FileNotFoundError without g++."""
    compiler = shutil.which("g++")
    if compiler is None:
        raise FileNotFoundError("no g++ to compile a kernel for the CPU")
    source = folder / "scale.cpp"
    source.write_text(_HOST)
    library = folder / "scale.so"
    subprocess.run([compiler, "-O1", "-fPIC", "-shared", "-o", library, source], check=True)
    return library.read_bytes()
