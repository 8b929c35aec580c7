"""Who reads a segmenter's strip: kernels of the GPU, where all of its engines compute on one; else the CPU."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeVar

from edge.cuda.device import CudaDevice
from edge.cuda.kernels import StripKernels
from edge.cuda.strip import DeviceStrip
from edge.errors import SessionError
from edge.segmenters.chunks import HostChunks, OpenChunks
from edge.segmenters.crops import HostCrops, OpenCrops
from edge.segmenters.device_chunks import DeviceChunks
from edge.segmenters.device_crops import DeviceCrops
from edge.segmenters.device_maps import DeviceMaps
from edge.segmenters.device_tile_rows import DeviceTileRows
from edge.segmenters.maps import HostMaps, OpenMaps
from edge.segmenters.state import Feed, RefilledFeed
from edge.segmenters.tile_rows import HostTileRows, OpenTileRows
from edge.sessions import Session, StreamingSession
from edge.sessions.on_device import DeviceSession, DeviceStream
from edge.sessions.standby import StandbyStream

_log = logging.getLogger(__name__)

Made = TypeVar("Made")


class DeviceParts(Protocol):
    """Says which part of a session computes on a GPU now; None: none does."""

    def on_device(self, session: Session) -> DeviceSession | None:
        """Of one for tiles."""
        ...

    def stream_on_device(self, session: StreamingSession) -> DeviceStream | None:
        """Of a streaming one."""
        ...


class Readers(Protocol):
    """Readers for a segmenter's sessions, by what it does with them. engines: to which a session belongs."""

    def crops(self, engines: DeviceParts, session: Session) -> OpenCrops:
        """Of crops and slabs."""
        ...

    def chunks(self, engines: DeviceParts, session: StreamingSession) -> OpenChunks:
        """Of a dense stream."""
        ...

    def maps(self, engines: DeviceParts, session: StreamingSession) -> OpenMaps:
        """Of a gate's stream."""
        ...

    def tile_rows(self, engines: DeviceParts, session: Session) -> OpenTileRows:
        """Of a gate's tiles."""
        ...


class HostReaders:
    """Cut on the CPU."""

    def crops(self, engines: DeviceParts, session: Session) -> OpenCrops:
        """Of crops and slabs."""
        return HostCrops

    def chunks(self, engines: DeviceParts, session: StreamingSession) -> OpenChunks:
        """Of a dense stream."""
        return partial(HostChunks, feed=_feed_of(session))

    def maps(self, engines: DeviceParts, session: StreamingSession) -> OpenMaps:
        """Of a gate's stream."""
        return partial(HostMaps, feed=_feed_of(session))

    def tile_rows(self, engines: DeviceParts, session: Session) -> OpenTileRows:
        """Of a gate's tiles."""
        return HostTileRows


class DeviceReaders:
    """Gather on the GPU, out of one strip. Raise SessionError where a session does not compute on the strip's GPU."""

    def __init__(self, strip: DeviceStrip) -> None:
        self._strip = strip

    def crops(self, engines: DeviceParts, session: Session) -> OpenCrops:
        """Of crops and slabs."""
        self._there(engines.on_device(session))
        return partial(DeviceCrops, self._strip, partial(engines.on_device, session))

    def chunks(self, engines: DeviceParts, session: StreamingSession) -> OpenChunks:
        """Of a dense stream."""
        self._there(engines.stream_on_device(session))
        return partial(DeviceChunks, self._strip, partial(engines.stream_on_device, session))

    def maps(self, engines: DeviceParts, session: StreamingSession) -> OpenMaps:
        """Of a gate's stream."""
        self._there(engines.stream_on_device(session))
        return partial(DeviceMaps, self._strip, partial(engines.stream_on_device, session))

    def tile_rows(self, engines: DeviceParts, session: Session) -> OpenTileRows:
        """Of a gate's tiles."""
        self._there(engines.on_device(session))
        return partial(DeviceTileRows, self._strip, partial(engines.on_device, session))

    def _there(self, part: DeviceSession | DeviceStream | None) -> None:
        if part is None or part.device is not self._strip.device:
            raise SessionError("bundle and gate compute on different devices")


class ReaderChoice:
    """Decides once per segmenter. What its strip has on a GPU is given back when nobody has the segmenter, or by `close`."""

    def __init__(self) -> None:
        self._strips: weakref.WeakSet[DeviceStrip] = weakref.WeakSet()
        self._kernels: tuple[CudaDevice, StripKernels] | None = None

    def segmenter(self, part: DeviceSession | DeviceStream | None, make: Callable[[Readers], Made]) -> Made:
        """What `make` makes of the readers that suit. part: of the bundle's session, on the GPU; None: there is none.

        Where the GPU has no room for the strip, or other sessions compute elsewhere, the strip stays on the host.
        """
        if part is None:
            return make(HostReaders())
        try:
            strip = DeviceStrip(part.device, self._kernels_of(part.device))
            self._strips.add(strip)
            return make(DeviceReaders(strip))
        except SessionError as error:
            _log.warning("the strip stays on the host, and goes up with every batch: %s", error)
        return make(HostReaders())

    def close(self) -> None:
        """Give back the memory of all strips, whose segmenters are not used any more; before the sessions are closed."""
        for strip in list(self._strips):
            strip.close()
        self._kernels = None

    def _kernels_of(self, device: CudaDevice) -> StripKernels:
        # loaded once: a device unloads nothing before its own end
        if self._kernels is None or self._kernels[0] is not device:
            with device.active():
                self._kernels = device, StripKernels(device)
        return self._kernels[1]


def _feed_of(session: StreamingSession) -> type[Feed]:
    """How a streaming session is fed on the host: in a standby's place another engine may stand of a sudden."""
    return RefilledFeed if isinstance(session, StandbyStream) else Feed
