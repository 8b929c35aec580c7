"""GigE Vision by Aravis 0.8, through GObject introspection. Its own thread fills memory of ours; nothing is copied.

What is closed is given back in a thread: towards a camera that is gone, Aravis tries for up to 12 s.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import gi
import numpy as np

gi.require_version("Aravis", "0.8")
from gi.repository import Aravis, GLib  # noqa: E402

from edge.errors import SourceError  # noqa: E402
from edge.frame import Lines  # noqa: E402
from edge.sources.camera import FoundCamera, Grab  # noqa: E402
from edge.sources.features import Feature, Kind, Value  # noqa: E402
from edge.sources.gige import last_frame_id, with_picture  # noqa: E402
from edge.sources.pixel_formats import Bytes, PixelFormat  # noqa: E402

_GIVEN_BACK_S = 0.3
"""A camera that is there takes its control back within a few ms."""
_SOCKET_BYTES = 32 << 20
"""Asked of the kernel for the stream's socket, which gives no more than net.core.rmem_max."""
_COUNTERS = (
    "n_completed_buffers",
    "n_failures",
    "n_underruns",
    "n_timeouts",
    "n_aborted",
    "n_missing_frames",
    "n_size_mismatch_errors",
    "n_missing_packets",
    "n_error_packets",
    "n_resend_requests",
    "n_resent_packets",
    "n_duplicated_packets",
)


def open_camera(address: str) -> AravisCamera:
    """Take control of the camera at an address. Raises SourceError."""
    try:
        camera = Aravis.Camera.new(address)
    except GLib.Error as error:
        raise SourceError(f"no GigE Vision camera answers at {address}: {error.message}") from error
    if not camera.get_device().is_controller():
        raise SourceError(f"the camera at {address} is controlled by another program or box; close that first")
    return AravisCamera(camera, address)


def discover() -> list[FoundCamera]:
    """All that answer on this box's networks within a second."""
    Aravis.update_device_list()
    found = [
        FoundCamera(
            transport="aravis",
            address=Aravis.get_device_address(index),
            vendor=Aravis.get_device_vendor(index) or "",
            model=Aravis.get_device_model(index) or "",
            serial=Aravis.get_device_serial_nbr(index) or "",
        )
        for index in range(Aravis.get_n_devices())
        if Aravis.get_device_protocol(index) == "GigEVision"
    ]
    return [with_picture(each, open_camera) for each in found]


class AravisCamera:
    """An open camera that this process controls."""

    def __init__(self, camera: Any, address: str) -> None:
        self._camera, self._device, self._address = camera, camera.get_device(), address

    def names(self) -> Sequence[str]:
        """All features, category by category."""
        return list(self._within("Root"))

    def feature(self, name: str) -> Feature | None:
        """One of them as it is now."""
        device, node = self._device, self._device.get_feature(name)
        kind = _kind_of(node)
        if kind is None or not node.is_implemented():
            return None
        writable = not node.is_locked() and node.get_actual_access_mode() != Aravis.GcAccessMode.RO
        value: Value | None = None
        least = most = step = None
        choices: tuple[str, ...] = ()
        try:
            if kind == "boolean":
                value = device.get_boolean_feature_value(name)
            elif kind == "integer":
                value = device.get_integer_feature_value(name)
                least, most = device.get_integer_feature_bounds(name)
                step = device.get_integer_feature_increment(name)
            elif kind == "float":
                value = device.get_float_feature_value(name)
                least, most = device.get_float_feature_bounds(name)
            elif kind == "enumeration":
                value = device.get_string_feature_value(name)
                choices = tuple(device.dup_available_enumeration_feature_values_as_strings(name))
            elif kind == "string":
                value = device.get_string_feature_value(name)
        except GLib.Error:
            # write-only, or not there in this state of the camera: what was read before it stays
            writable = writable and node.is_available()
        return Feature(name, kind, value, least, most, step, choices, writable)

    def write(self, feature: Feature, value: Value) -> None:
        """Set it. Raises ValueError with the camera's reason."""
        device, name = self._device, feature.name
        try:
            if feature.kind == "boolean":
                device.set_boolean_feature_value(name, value)
            elif feature.kind == "integer":
                device.set_integer_feature_value(name, value)
            elif feature.kind == "float":
                device.set_float_feature_value(name, value)
            elif feature.kind == "command":
                device.execute_command(name)
            else:
                device.set_string_feature_value(name, value)
        except GLib.Error as error:
            raise ValueError(error.message) from error

    def start(self, pixels: PixelFormat, packet_size: int | None, buffers: int, line_rate_hz: float | None) -> AravisLink:
        """Have it deliver; the link closes the camera. Raises SourceError."""
        try:
            return AravisLink(self._camera, self._address, pixels, packet_size, buffers, line_rate_hz, last_frame_id(self))
        except GLib.Error as error:
            raise SourceError(f"the camera at {self._address} does not start: {error.message}") from error

    def close(self) -> None:
        """Give it back."""
        camera = self._camera
        del self._camera, self._device
        _give_back([camera])

    def _within(self, category: str) -> Iterator[str]:
        for name in self._device.get_feature(category).get_features():
            node = self._device.get_feature(name)
            if isinstance(node, Aravis.GcCategory):
                yield from self._within(name)
            elif node is not None:
                yield name


def _kind_of(node: Any) -> Kind | None:
    kinds: tuple[tuple[Any, Kind], ...] = (
        # an enumeration is an integer and a string as well
        (Aravis.GcEnumeration, "enumeration"),
        (Aravis.GcBoolean, "boolean"),
        (Aravis.GcCommand, "command"),
        (Aravis.GcInteger, "integer"),
        (Aravis.GcFloat, "float"),
        (Aravis.GcString, "string"),
    )
    return next((kind for each, kind in kinds if isinstance(node, each)), None)


class AravisLink:
    """A stream into `buffers` frames of our own memory. A frame's memory goes back to the stream when nobody holds it."""

    def __init__(
        self,
        camera: Any,
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
        if packet_size is not None:
            camera.gv_set_packet_size_adjustment(Aravis.GvPacketSizeAdjustment.NEVER)
            camera.gv_set_packet_size(packet_size)
        self._stream = camera.create_stream(None, None)
        self._stream.set_property("socket-buffer", Aravis.GvStreamSocketBuffer.FIXED)
        self._stream.set_property("socket-buffer-size", _SOCKET_BYTES)
        self._lost = threading.Event()
        lost = self._lost
        camera.get_device().connect("control-lost", lambda _device: lost.set())
        payload = camera.get_payload()
        self._memory: dict[Any, Bytes] = {}
        for _ in range(buffers):
            memory = np.empty(payload, np.uint8)
            buffer = Aravis.Buffer.new(payload, memory.ctypes.data)
            self._memory[buffer] = memory
            self._stream.push_buffer(buffer)
        self._held: set[Any] = set()
        camera.start_acquisition()

    def grab(self, timeout_s: float) -> Grab | None:
        """The next frame, complete or not. Raises SourceError where control of the camera is lost."""
        buffer = self._stream.timeout_pop_buffer(round(timeout_s * 1e6))
        if buffer is None:
            if self._lost.is_set():
                raise SourceError(f"the camera at {self._address} does not answer any more")
            return None
        captured_ns, frame_id = time.time_ns(), buffer.get_frame_id()
        whole = buffer.get_status() == Aravis.BufferStatus.SUCCESS
        fits = whole and (buffer.get_image_width(), buffer.get_image_height()) == (self.width, self.height)
        if not fits:
            self._stream.push_buffer(buffer)
            return Grab(None, frame_id, 0, captured_ns)
        return Grab(self._lines(buffer), frame_id, self.height, captured_ns)

    def _lines(self, buffer: Any) -> Lines:
        memory = self._memory[buffer]
        if self._pixels.name == "Mono8" and len(self._held) < len(self._memory) // 2:
            # a name of its own for this use of the memory: arrays made of it keep it, and its end is the frame's end
            use: Any = (ctypes.c_ubyte * memory.size).from_buffer(memory.data)
            self._held.add(buffer)
            weakref.finalize(use, self._taken_back, buffer).atexit = False
            return self._pixels.lines(np.frombuffer(use, np.uint8), self.height, self.width)
        # half of the memory is held by whoever looks at frames: the other half stays the stream's
        lines = self._pixels.lines(memory, self.height, self.width)
        lines = lines.copy() if self._pixels.name == "Mono8" else lines
        self._stream.push_buffer(buffer)
        return lines

    def _taken_back(self, buffer: Any) -> None:
        self._held.discard(buffer)
        if (stream := self._stream) is not None:
            stream.push_buffer(buffer)

    def ask(self) -> None:
        """Have the camera answer. Raises SourceError where it does not."""
        try:
            self._camera.get_integer("Width")
        except GLib.Error as error:
            raise SourceError(f"the camera at {self._address} does not answer: {error.message}") from error

    def counters(self) -> dict[str, int]:
        """Aravis's own counters of the stream."""
        return {name.removeprefix("n_"): self._stream.get_info_uint64_by_name(name) for name in _COUNTERS}

    def close(self) -> None:
        """Stop the camera and give it back."""
        # the memory last: until the stream is gone its thread may write there
        parts = [self._stream, self._camera, self._memory]
        self._stream = self._camera = None
        _give_back(parts)


def _give_back(parts: list[Any]) -> None:
    """Let go of a stream, its camera and its memory, or of a camera alone; in a thread where it does not answer."""

    def let_go() -> None:
        if len(parts) > 1:
            with contextlib.suppress(GLib.Error):
                parts[1].stop_acquisition()
        while parts:
            parts.pop(0)

    thread = threading.Thread(target=let_go, name="camera given back", daemon=True)
    thread.start()
    thread.join(_GIVEN_BACK_S)
