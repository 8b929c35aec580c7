"""GigE Vision by telegenicam (`import telegenic`): one wheel without system libraries. Frames are copied out once."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import telegenic

from edge.errors import SourceError
from edge.sources.camera import FoundCamera, Grab
from edge.sources.features import Feature, Kind, Value
from edge.sources.gige import last_frame_id, with_picture
from edge.sources.pixel_formats import PixelFormat

_ANSWER_S, _RETRIES, _HEARTBEAT_S, _DISCOVERY_S = 0.5, 2, 3.0, 1.0
_SOCKET_BYTES = 32 << 20
"""Asked of the kernel for the stream's socket, which gives no more than net.core.rmem_max."""
_ERRORS = (telegenic.CameraError, telegenic.GenicamError)
_COUNTERS = (
    "completed_frames",
    "failed_frames",
    "frames_dropped",
    "underruns",
    "timed_out_frames",
    "aborted_frames",
    "missing_frames",
    "size_mismatch_errors",
    "missing_packets",
    "error_packets",
    "resend_requests",
    "resent_packets",
    "duplicated_packets",
    "socket_drops",
)


def open_camera(address: str) -> TelegenicamCamera:
    """Take control of the camera at an address. Raises SourceError."""
    camera = telegenic.Camera(address, gvcp_timeout=_ANSWER_S, retries=_RETRIES, heartbeat_timeout=_HEARTBEAT_S)
    try:
        camera.connect()
    except _ERRORS as error:
        raise SourceError(
            f"no GigE Vision camera answers at {address}, or another program or box controls it: {error}"
        ) from error
    return TelegenicamCamera(camera, address)


def discover() -> list[FoundCamera]:
    """All that answer on this box's networks within a second."""
    found = [
        FoundCamera(
            transport="telegenicam",
            address=str(each.ip),
            vendor=each.manufacturer,
            model=each.model,
            serial=each.serial,
            name=each.user_defined_name,
        )
        for each in telegenic.discover(_DISCOVERY_S)
    ]
    return [with_picture(each, open_camera) for each in found]


class TelegenicamCamera:
    """An open camera that this process controls."""

    def __init__(self, camera: telegenic.Camera, address: str) -> None:
        self._camera, self._address = camera, address

    def names(self) -> Sequence[str]:
        """All nodes of its description: features, and the registers behind them."""
        return list(self._camera.feature_names())

    def feature(self, name: str) -> Feature | None:
        """One of them as it is now."""
        camera = self._camera
        if not camera.has_feature(name):
            return None
        try:
            mode = camera.access_mode(name)
        except _ERRORS:
            return None
        writable = mode != telegenic.AccessMode.RO
        # the library does not tell a feature's kind: it is what can be asked of it
        if (choices := _asked(camera.enum_entries, name)) is not None:
            return Feature(name, "enumeration", _asked(camera.get_enum, name), choices=tuple(choices), writable=writable)
        if (bounds := _asked(camera.integer_bounds, name)) is not None:
            least, most = bounds
            step = _asked(camera.integer_increment, name)
            return Feature(name, "integer", _asked(camera.get_integer, name), least, most, step, writable=writable)
        if (bounds := _asked(camera.float_bounds, name)) is not None:
            least, most = bounds
            return Feature(name, "float", _asked(camera.get_float, name), least, most, writable=writable)
        if (text := _asked(camera.get_string, name)) is not None:
            return Feature(name, "string", text, writable=writable)
        if (yes := _asked(camera.get_boolean, name)) is not None:
            return Feature(name, "boolean", yes, writable=writable)
        return Feature(name, "command") if mode == telegenic.AccessMode.WO else None

    def write(self, feature: Feature, value: Value) -> None:
        """Set it. Raises ValueError with the camera's reason."""
        camera, name = self._camera, feature.name
        writers: dict[Kind, Callable[..., None]] = {
            "boolean": camera.set_boolean,
            "integer": camera.set_integer,
            "float": camera.set_float,
            "enumeration": camera.set_enum,
            "string": camera.set_string,
            "command": lambda name, _value: camera.execute(name),
        }
        try:
            writers[feature.kind](name, value)
            camera.invalidate_caches()
        except _ERRORS as error:
            raise ValueError(str(error)) from error

    def start(self, pixels: PixelFormat, packet_size: int | None, buffers: int, line_rate_hz: float | None) -> TelegenicamLink:
        """Have it deliver; the link closes the camera. Raises SourceError."""
        try:
            return TelegenicamLink(self._camera, self._address, pixels, packet_size, buffers, line_rate_hz, last_frame_id(self))
        except _ERRORS as error:
            raise SourceError(f"the camera at {self._address} does not start: {error}") from error

    def close(self) -> None:
        """Give it back."""
        with contextlib.suppress(*_ERRORS, ValueError):
            self._camera.disconnect()


def _asked(question: Callable[[str], Any], name: str) -> Any:
    try:
        return question(name)
    except _ERRORS:
        return None


class TelegenicamLink:
    """A running acquisition. Its own thread receives; what capture does not take in time is dropped there and counted."""

    def __init__(
        self,
        camera: telegenic.Camera,
        address: str,
        pixels: PixelFormat,
        packet_size: int | None,
        buffers: int,
        line_rate_hz: float | None,
        last_id: int | None,
    ) -> None:
        self._camera, self._address, self._pixels = camera, address, pixels
        self.width, self.height = camera.get_integer("Width"), camera.get_integer("Height")
        self.line_rate_hz, self.last_frame_id = line_rate_hz, last_id
        self._acquisition = camera.start_acquisition(
            packet_size=packet_size, n_buffers=buffers, stream_socket=[("recv_buffer", _SOCKET_BYTES)]
        )

    def grab(self, timeout_s: float) -> Grab | None:
        """The next frame, complete or not. Raises SourceError where control of the camera is lost."""
        frame = self._acquisition.wait_for(timeout_s)
        if frame is None:
            if not self._camera.is_connected():
                raise SourceError(f"the camera at {self._address} does not answer any more")
            return None
        captured_ns = time.time_ns()
        if not frame.is_complete or (frame.width, frame.height) != (self.width, self.height):
            return Grab(None, frame.frame_id, 0, captured_ns)
        lines = self._pixels.lines(np.frombuffer(frame.data(), np.uint8), self.height, self.width)
        return Grab(lines, frame.frame_id, self.height, captured_ns)

    def ask(self) -> None:
        """Have the camera answer. Raises SourceError where it does not."""
        try:
            self._camera.invalidate_caches()
            self._camera.get_integer("Width")
        except _ERRORS as error:
            raise SourceError(f"the camera at {self._address} does not answer: {error}") from error

    def counters(self) -> dict[str, int]:
        """telegenicam's own counters of the stream."""
        stats = self._acquisition.stats()
        return {name: getattr(stats, name) for name in _COUNTERS}

    def close(self) -> None:
        """Stop the camera and give it back."""
        for step in (self._acquisition.stop, self._camera.disconnect):
            with contextlib.suppress(*_ERRORS, ValueError):
                step()
