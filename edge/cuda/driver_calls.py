"""What pycuda has no method for, asked of NVIDIA's driver itself: graphs, modules and the launch of kernels, codes of errors."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from edge.errors import SessionError

LIBRARY: Final = "libcuda.so.1"

# Source: CUDA driver API, enum CUresult. After one of these every call in the process fails: the context is not to be had again.
_LOST: Final = {
    4: "DEINITIALIZED",
    46: "DEVICE_UNAVAILABLE",
    214: "ECC_UNCORRECTABLE",
    220: "NVLINK_UNCORRECTABLE",
    226: "CONTAINED",
    700: "ILLEGAL_ADDRESS",
    702: "LAUNCH_TIMEOUT",
    709: "CONTEXT_IS_DESTROYED",
    710: "ASSERT",
    714: "HARDWARE_STACK_ERROR",
    715: "ILLEGAL_INSTRUCTION",
    716: "MISALIGNED_ADDRESS",
    717: "INVALID_ADDRESS_SPACE",
    718: "INVALID_PC",
    719: "LAUNCH_FAILED",
    999: "UNKNOWN",
}
_THREAD_LOCAL: Final = 1
"""CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may allocate while this one captures. Source: enum CUstreamCaptureMode."""
_SLOT: Final = 16
"""Bytes that an argument of a kernel lies apart from the next: no scalar is longer, all are aligned."""


class CallError(Exception):
    """What the driver answered to a call. answer: its own words."""

    def __init__(self, call: str, answer: str) -> None:
        super().__init__(f"{call} failed: {answer}")
        self.answer = answer


class DriverCalls:
    """The driver's library. Every method raises CallError, for the context that is current on this thread.

    Raises SessionError where the library is not there.
    """

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise SessionError(
                f"no NVIDIA driver on this box ({LIBRARY}): {error}; another session.backend needs none"
            ) from error
        # texts belong to the driver and change with it: compared are those that this one gives
        self._lost_texts = {self._text(code): name for code, name in _LOST.items()}

    def lost(self, answer: str) -> bool:
        """Whether an answer, in the driver's words, means that the GPU is lost to this process."""
        return answer in self._lost_texts

    def pop_context(self) -> None:
        """Leave the context that is current on this thread."""
        self._call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def begin_capture(self, stream: int) -> None:
        """Record what this thread puts on a stream from now on."""
        self._call("cuStreamBeginCapture_v2", ctypes.c_void_p(stream), ctypes.c_int(_THREAD_LOCAL))

    def end_capture(self, stream: int) -> int:
        """What was recorded, as a graph."""
        graph = ctypes.c_void_p()
        self._call("cuStreamEndCapture", ctypes.c_void_p(stream), ctypes.byref(graph))
        return graph.value or 0

    def instantiate(self, graph: int) -> int:
        """A graph made ready to launch."""
        ready = ctypes.c_void_p()
        self._call("cuGraphInstantiateWithFlags", ctypes.byref(ready), ctypes.c_void_p(graph), ctypes.c_ulonglong(0))
        return ready.value or 0

    def launch_graph(self, ready: int, stream: int) -> None:
        """Put a graph on a stream."""
        self._call("cuGraphLaunch", ctypes.c_void_p(ready), ctypes.c_void_p(stream))

    def destroy_graph(self, graph: int) -> None:
        """Forget a recorded graph."""
        self._call("cuGraphDestroy", ctypes.c_void_p(graph))

    def destroy_ready(self, ready: int) -> None:
        """Forget a graph that was made ready."""
        self._call("cuGraphExecDestroy", ctypes.c_void_p(ready))

    def load_module(self, image: bytes) -> int:
        """Load a cubin."""
        module = ctypes.c_void_p()
        self._call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(image))
        return module.value or 0

    def function(self, module: int, name: str) -> int:
        """A kernel of a module."""
        function = ctypes.c_void_p()
        self._call("cuModuleGetFunction", ctypes.byref(function), ctypes.c_void_p(module), name.encode())
        return function.value or 0

    def unload_module(self, module: int) -> None:
        """Forget a module."""
        self._call("cuModuleUnload", ctypes.c_void_p(module))

    def launch(
        self,
        function: int,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: Sequence[np.generic],
        stream: int,
    ) -> None:
        """Put a kernel on a stream."""
        values = ctypes.create_string_buffer(b"".join(argument.tobytes().ljust(_SLOT, b"\0") for argument in arguments))
        start = ctypes.addressof(values)
        # a null behind the last: the driver knows their number, who stands in for it does not
        places = (ctypes.c_void_p * (len(arguments) + 1))(*range(start, start + _SLOT * len(arguments), _SLOT))
        self._call(
            "cuLaunchKernel",
            ctypes.c_void_p(function),
            *map(ctypes.c_uint, (*grid, *block)),
            ctypes.c_uint(0),
            ctypes.c_void_p(stream),
            places,
            None,
        )

    def _call(self, name: str, *arguments: Any) -> None:
        if code := getattr(self._library, name)(*arguments):
            raise CallError(name, self._text(code))

    def _text(self, code: int) -> str:
        text = ctypes.c_char_p()
        self._library.cuGetErrorString(ctypes.c_int(code), ctypes.byref(text))
        return text.value.decode(errors="replace") if text.value else f"error {code}"
