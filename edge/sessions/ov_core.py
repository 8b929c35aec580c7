"""OpenVINO's core, one for the whole process, and never released."""

from __future__ import annotations

from functools import cache

import openvino


@cache
def core() -> openvino.Core:
    """The core whose CPU plugin all engines share.

    The plugin lays an alternate signal stack under the thread that loads it, and when it goes puts back the one that was
    there before. Of two plugins the first one's stack is thus put back after it was freed, and the next signal that Python
    handles, an interrupt or a stop, kills the process: SIGSEGV of the kernel, where no code is at fault.
    """
    return openvino.Core()
