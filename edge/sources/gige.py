"""GigE Vision cameras: one source over two clients, Aravis and telegenicam; settings by GenICam name, each read back."""

from __future__ import annotations

import importlib
import importlib.util
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, Protocol

from edge.config import GigeSource
from edge.errors import SourceError
from edge.sources.camera import CameraLink, CameraOptions, CameraSource, FoundCamera
from edge.sources.features import Feature, FeatureAccess, set_feature
from edge.sources.genicam_settings import apply_settings, most_of, running_line_rate_hz
from edge.sources.pixel_formats import PIXEL_FORMATS, PixelFormat

MISSING = (
    "no GigE Vision client on this box; install one of the two: Aravis (`apt-get install gir1.2-aravis-0.8 python3-gi`, or "
    "PyGObject below 3.52 where Python is not Debian's), or telegenicam (`pip install 'rust-edge[gige]'`)"
)
LAST_FRAME_ID = 65535
"""Of 16 bits, 0 left out. Source: GigE Vision 2.2, block_id of the stream protocol's header."""


class GigeCamera(FeatureAccess, Protocol):
    """An open camera that this process controls; nothing comes from it yet."""

    def start(self, pixels: PixelFormat, packet_size: int | None, buffers: int, line_rate_hz: float | None) -> CameraLink:
        """Have it deliver; the link closes the camera. Raises SourceError."""
        ...

    def close(self) -> None:
        """Give it back."""
        ...


class Transport(Protocol):
    """A client of GigE Vision: what its module has."""

    def open_camera(self, address: str) -> GigeCamera:
        """Take control of the camera at an address. Raises SourceError."""
        ...

    def discover(self) -> list[FoundCamera]:
        """All that answer on this box's networks."""
        ...


_MODULES = {"aravis": "edge.sources.gige_aravis", "telegenicam": "edge.sources.gige_telegenicam"}


def transports() -> dict[str, Transport]:
    """Those whose library is installed here, the preferred one first."""
    found = {}
    for name, there in (("aravis", _aravis_there), ("telegenicam", lambda: importlib.util.find_spec("telegenic") is not None)):
        if there():
            found[name] = importlib.import_module(_MODULES[name])
    return found  # type: ignore[return-value]


def _aravis_there() -> bool:
    if importlib.util.find_spec("gi") is None:
        return False
    try:
        import gi

        gi.require_version("Aravis", "0.8")
    except (ImportError, ValueError):
        return False
    return True


def open_gige(source: GigeSource) -> CameraSource:
    """The source that a station file describes. Raises SourceError where no client is there."""
    transport = _chosen(source.transport)
    trigger: Literal["free", "encoder"] = "encoder" if source.trigger == "encoder" else "free"
    options = CameraOptions(_named(source), source.frozen_s, trigger, source.line_rate_hz)
    return CameraSource(lambda: _open_link(transport, source), options)


def _named(source: GigeSource) -> str:
    return source.address or source.serial or source.name or ""


def _chosen(wanted: str) -> Transport:
    there = transports()
    if wanted == "auto" and there:
        return next(iter(there.values()))
    if wanted in there:
        return there[wanted]
    has = f"; transport {', '.join(there)} is there" if there else ""
    raise SourceError(f"source.transport: got {wanted}: {MISSING}{has}")


def _open_link(transport: Transport, source: GigeSource) -> CameraLink:
    camera = transport.open_camera(_address_of(transport, source))
    try:
        name = f"camera {_named(source)}"
        apply_settings(camera, source, name)
        if source.reverse_x is not None:
            set_feature(camera, "ReverseX", source.reverse_x, f"{name}: source.reverse_x")
        line_rate_hz = running_line_rate_hz(camera, source.frame_lines) if source.trigger == "free" else None
        return camera.start(PIXEL_FORMATS[source.pixel_format], source.packet_size, source.buffers, line_rate_hz)
    except BaseException:
        camera.close()
        raise


def _address_of(transport: Transport, source: GigeSource) -> str:
    """The IP address of the camera. Raises SourceError where none answers to what it is named by."""
    if source.address is not None:
        try:
            return socket.gethostbyname(source.address)
        except OSError as error:
            raise SourceError(f"source.address: got {source.address}, which is no address: {error}") from error
    wanted = source.serial or source.name
    found = transport.discover()
    matching = [each.address for each in found if wanted in ((each.serial,) if source.serial else (each.name, each.model))]
    if len(matching) == 1:
        return matching[0]
    key = "serial" if source.serial else "name"
    there = ", ".join(f"{each.address} ({each.model}, serial {each.serial})" for each in found) or "none"
    if matching:
        raise SourceError(f"source.{key}: got {wanted}, which {len(matching)} cameras have; expected address; there are {there}")
    raise SourceError(f"source.{key}: got {wanted}, and no camera answers to it; there are: {there}")


def last_frame_id(camera: FeatureAccess) -> int | None:
    """After which id a camera begins again: 16 bits, or 64 that never end."""
    extended = camera.feature("GevGVSPExtendedIDMode")
    return None if extended is not None and extended.value in ("On", True) else LAST_FRAME_ID


def discover() -> list[FoundCamera]:
    """All GigE Vision cameras that answer, by the preferred client. Raises SourceError where there is none."""
    return _chosen("auto").discover()


def features_of(address: str) -> list[Feature]:
    """All features of a camera with their values. Raises SourceError where it does not answer, or another one controls it."""
    camera = _chosen("auto").open_camera(address)
    try:
        found = (camera.feature(name) for name in camera.names())
        return [feature for feature in found if feature is not None]
    finally:
        camera.close()


def with_picture(found: FoundCamera, opened: Callable[[str], GigeCamera]) -> FoundCamera:
    """The same with size and pixel formats, which only an open camera tells."""
    try:
        camera = opened(found.address)
    except SourceError as error:
        return replace(found, problem=str(error))
    try:
        formats = camera.feature("PixelFormat")
        return replace(
            found,
            width=most_of(camera, "WidthMax", "Width"),
            height=most_of(camera, "HeightMax", "Height"),
            pixel_formats=() if formats is None else formats.choices,
        )
    finally:
        camera.close()
