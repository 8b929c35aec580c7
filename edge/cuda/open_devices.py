"""The GPUs that this process has open: one device for all sessions on it, from the first that asks to the last that closes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from edge.cuda.device import CudaDevice


class OpenDevices:
    """Devices by index. open_device: makes one, which is a context manager. Any thread may lend."""

    def __init__(self, open_device: Callable[[int], CudaDevice]) -> None:
        self._open_device = open_device
        self._lock = threading.Lock()
        self._lent: dict[int, tuple[CudaDevice, ExitStack, int]] = {}

    @contextmanager
    def lend(self, index: int) -> Iterator[CudaDevice]:
        """The device, opened where nobody has it, and closed where nobody has it any more. Raises SessionError."""
        with self._lock:
            if index not in self._lent:
                with ExitStack() as opening:
                    device = opening.enter_context(self._open_device(index))
                    self._lent[index] = device, opening.pop_all(), 0
            device, opened, holders = self._lent[index]
            self._lent[index] = device, opened, holders + 1
        try:
            yield device
        finally:
            with self._lock:
                device, opened, holders = self._lent.pop(index)
                if holders > 1:
                    self._lent[index] = device, opened, holders - 1
                else:
                    opened.close()


def _open(index: int) -> CudaDevice:
    # imported here: it needs pycuda, an extra
    from edge.cuda.driver import open_device

    return open_device(index)


OPEN_DEVICES = OpenDevices(_open)
"""Those of this process."""
