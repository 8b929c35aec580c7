"""Basler cameras, GigE and USB, through pylon.

Lines of an incomplete frame are lost, all of them: pylon does not say which of its packets are missing.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from edge.config import BaslerSource
from edge.errors import SourceError
from edge.sources.camera import CameraOptions, CameraSource, FoundCamera, Grab
from edge.sources.features import Feature, Kind, Value
from edge.sources.genicam_settings import apply_settings, most_of, running_line_rate_hz, size_of
from edge.sources.pixel_formats import PIXEL_FORMATS

_GIGE_LAST_ID = 65535
"""Block ids of GigE Vision 1.x are 16 bits and never 0. Source: GigE Vision 2.2, 24.3.2; Basler, GetBlockID."""
_NO_ID = 2**64 - 1
"""Source: pylon C++ API, CGrabResultData::GetBlockID."""
_LOOK_AGAIN_S = 0.001
_STATISTIC, _COUNT = "Statistic_", "_Count"


def open_basler(source: BaslerSource) -> CameraSource:
    """The source of a camera, to be entered as a context manager. Raises SourceError where pylon is missing."""
    _pylon()
    name = f"basler {source.serial or source.name or ''}".strip()
    watched = CameraOptions(
        name,
        source.frozen_s,
        # one that a grab triggers is as silent as whoever asks: that is a fault of the camera
        "encoder" if source.trigger == "encoder" else "free",
        source.line_rate_hz if source.trigger == "free" else None,
    )
    return CameraSource(lambda: BaslerLink(source, name), watched)


def discover() -> list[FoundCamera]:
    """Basler cameras that answer, those of pylon's emulator too. Raises SourceError where pylon is missing."""
    pylon = _pylon()
    with _told("pylon"):
        devices = list(pylon.TlFactory.GetInstance().EnumerateDevices())
    return [_found(pylon, device) for device in devices]


def features_of(address: str) -> list[Feature]:
    """All features of a camera with their values. address: as `discover` has it, or a serial number. Raises SourceError."""
    pylon = _pylon()
    with _told(f"basler {address}"):
        for device in pylon.TlFactory.GetInstance().EnumerateDevices():
            if address in (_address(device), device.GetSerialNumber()):
                camera = pylon.InstantCamera(pylon.TlFactory.GetInstance().CreateDevice(device))
                camera.Open()
                try:
                    features = PylonFeatures(camera.GetNodeMap())
                    found = (features.feature(name) for name in features.names())
                    return [feature for feature in found if feature is not None]
                finally:
                    camera.Close()
    raise SourceError(f"basler {address}: no camera answers; `rust-edge cameras` lists those that do")


class BaslerLink:
    """One open camera, set up and grabbing. name: names it in errors. Raises SourceError, ConfigError."""

    def __init__(self, source: BaslerSource, name: str) -> None:
        pylon = _pylon()
        self._source, self._name = source, name
        with _told(name):
            self._camera = pylon.InstantCamera(_device(pylon, source, name))
            self._camera.Open()
        try:
            with _told(name):
                self._begin(pylon)
        except BaseException:
            self.close()
            raise

    def _begin(self, pylon: Any) -> None:
        camera, source = self._camera, self._source
        features = PylonFeatures(camera.GetNodeMap())
        apply_settings(features, source, self._name)
        self._height, self._width = size_of(features, self._name)
        self._rate_hz = running_line_rate_hz(features, self._height) if source.trigger == "free" else None
        extended = features.feature("GevGVSPExtendedIDMode")
        short_ids = camera.GetDeviceInfo().GetDeviceClass() == "BaslerGigE" and getattr(extended, "value", "Off") != "On"
        self._has_ids = False
        self._last_frame_id = _GIGE_LAST_ID if short_ids else None
        camera.MaxNumBuffer.Value = source.buffers
        # every frame once, in order; where the driver has no buffer left, ids tell what it lost
        camera.StartGrabbing(pylon.GrabStrategy_OneByOne)
        self._no_error = pylon.TimeoutHandling_Return

    @property
    def width(self) -> int:
        """Columns of every frame."""
        return self._width

    @property
    def height(self) -> int:
        """Lines of every complete frame."""
        return self._height

    @property
    def last_frame_id(self) -> int | None:
        """65535 of GigE cameras with short block ids; None: they never begin again."""
        return self._last_frame_id

    @property
    def line_rate_hz(self) -> float | None:
        """What a free-running camera says it runs at."""
        return self._rate_hz

    def grab(self, timeout_s: float) -> Grab | None:
        """The next frame, complete or not; None: nothing came in time. Raises SourceError where the camera is lost."""
        with _told(self._name):
            # with no time to wait only what has come is wanted
            if self._source.trigger == "software" and timeout_s:
                if not self._is_ready(timeout_s):
                    return None
                self._camera.ExecuteSoftwareTrigger()
            # not with RetrieveResult's own time limit: pylon 26.9 was seen to wait there for ever, beyond an interrupt's reach
            self._camera.GetGrabResultWaitObject().Wait(round(timeout_s * 1000))
            with self._camera.RetrieveResult(0, self._no_error) as result:
                if not result.IsValid():
                    self._check_there()
                    return None
                return self._grab_of(result)

    def _is_ready(self, timeout_s: float) -> bool:
        """Whether the camera takes a trigger, within that time."""
        until_s = time.monotonic() + timeout_s
        while not self._camera.WaitForFrameTriggerReady(0, self._no_error):
            if time.monotonic() >= until_s:
                return False
            time.sleep(_LOOK_AGAIN_S)
        return True

    def _grab_of(self, result: Any) -> Grab | None:
        now_ns = time.time_ns()
        frame_id = None if result.BlockID == _NO_ID else int(result.BlockID)
        if not result.GrabSucceeded():
            # where only this one lacks an id, the next one's tells that it is missing
            return None if frame_id is None and self._has_ids else Grab(None, frame_id, 0, now_ns)
        self._has_ids = frame_id is not None
        size = int(result.Height), int(result.Width)
        if size != (self._height, self._width) or result.PaddingX:
            raise SourceError(f"{self._name}: got a frame of {size[1]} x {size[0]}, expected {self._width} x {self._height}")
        # its bytes are a copy: the buffer goes back to the driver
        data = np.frombuffer(result.GetBuffer(), np.uint8)
        lines = PIXEL_FORMATS[self._source.pixel_format].lines(data, *size)
        return Grab(lines, frame_id, len(lines), now_ns)

    def ask(self) -> None:
        """Have the camera answer. Raises SourceError where it does not."""
        with _told(self._name):
            self._check_there()
            # past the cache: from the camera itself
            self._camera.GetNodeMap().GetNode("Width").GetValue(False, True)

    def counters(self) -> dict[str, int]:
        """Pylon's statistics since this link was opened: buffers failed, underruns, packets failed and resent."""
        found = {}
        with _told(self._name):
            for node in self._camera.GetStreamGrabberNodeMap().GetNodes():
                name = node.GetNode().GetName()
                if name.startswith(_STATISTIC) and name.endswith(_COUNT) and _genicam().IsReadable(node):
                    found[name[len(_STATISTIC) : -len(_COUNT)].lower()] = int(node.GetValue())
        return found

    def close(self) -> None:
        """Give the camera back."""
        errors = _genicam().GenericException
        for end in (self._camera.StopGrabbing, self._camera.Close, self._camera.DestroyDevice):
            try:
                end()
            except errors:
                # gone already: there is nothing to give back
                continue

    def _check_there(self) -> None:
        if self._camera.IsCameraDeviceRemoved():
            raise SourceError(f"{self._name}: the camera is gone")


class PylonFeatures:
    """The features of an open camera."""

    def __init__(self, nodes: Any) -> None:
        self._nodes, self._genicam = nodes, _genicam()
        self._kinds: dict[int, Kind] = {
            self._genicam.intfIBoolean: "boolean",
            self._genicam.intfIInteger: "integer",
            self._genicam.intfIFloat: "float",
            self._genicam.intfIEnumeration: "enumeration",
            self._genicam.intfIString: "string",
            self._genicam.intfICommand: "command",
        }

    def names(self) -> list[str]:
        """All features that it has."""
        nodes = [node.GetNode() for node in self._nodes.GetNodes()]
        return [str(node.GetName()) for node in nodes if node.IsFeature() and node.GetPrincipalInterfaceType() in self._kinds]

    def feature(self, name: str) -> Feature | None:
        """One of them as it is now."""
        node = self._nodes.GetNode(name)
        if not node.IsValid() or not self._genicam.IsImplemented(node):
            return None
        kind = self._kinds.get(node.GetNode().GetPrincipalInterfaceType())
        if kind is None:
            return None
        readable, writable = bool(self._genicam.IsReadable(node)), bool(self._genicam.IsWritable(node))
        if kind == "command" or not readable:
            return Feature(name, kind, writable=writable)
        value: Value = node.GetValue()
        if kind == "enumeration":
            return Feature(name, kind, value, choices=tuple(node.GetSettableValues()), writable=writable)
        if kind in ("boolean", "string"):
            return Feature(name, kind, value, writable=writable)
        step = node.GetInc() if kind == "integer" or node.HasInc() else None
        return Feature(name, kind, value, node.GetMin(), node.GetMax(), step, writable=writable)

    def write(self, feature: Feature, value: Value) -> None:
        """Set it, or execute it. Raises ValueError with the camera's reason."""
        node = self._nodes.GetNode(feature.name)
        try:
            if feature.kind == "command":
                node.Execute()
            else:
                node.SetValue(value)
        except (self._genicam.GenericException, TypeError) as error:
            raise ValueError(_first_line(error)) from error


def _device(pylon: Any, source: BaslerSource, name: str) -> Any:
    factory = pylon.TlFactory.GetInstance()
    devices = list(factory.EnumerateDevices())
    told = ", ".join(_label(device) for device in devices) or "none"
    wanted = [
        device
        for device in devices
        if source.serial in (None, device.GetSerialNumber()) and source.name in (None, device.GetUserDefinedName())
    ]
    if len(wanted) != 1:
        if not wanted:
            raise SourceError(f"{name}: not there; pylon finds {told}: is it powered, in this network, and in nobody's use?")
        raise SourceError(f"{name}: got {len(wanted)} cameras, {told}; expected serial or name of one")
    return factory.CreateDevice(wanted[0])


def _label(device: Any) -> str:
    name = device.GetUserDefinedName()
    return f"{device.GetModelName()} {device.GetSerialNumber()}" + (f" ({name})" if name else "")


def _address(device: Any) -> str:
    return str(device.GetIpAddress() if device.IsIpAddressAvailable() else device.GetFullName())


def _found(pylon: Any, device: Any) -> FoundCamera:
    found = FoundCamera(
        "basler",
        _address(device),
        str(device.GetVendorName()),
        str(device.GetModelName()),
        str(device.GetSerialNumber()),
        str(device.GetUserDefinedName()),
    )
    camera = None
    try:
        camera = pylon.InstantCamera(pylon.TlFactory.GetInstance().CreateDevice(device))
        camera.Open()
        features = PylonFeatures(camera.GetNodeMap())
        formats = features.feature("PixelFormat")
        return replace(
            found,
            width=most_of(features, "WidthMax", "Width"),
            height=most_of(features, "HeightMax", "Height"),
            pixel_formats=formats.choices if formats else (),
        )
    except _genicam().GenericException as error:
        return replace(found, problem=_first_line(error))
    finally:
        if camera is not None:
            camera.Close()


@contextmanager
def _told(where: str) -> Iterator[None]:
    """Whatever pylon raises within, as a SourceError that names the camera."""
    try:
        yield
    except _genicam().GenericException as error:
        raise SourceError(f"{where}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    """What an error says, without the place in pylon's sources."""
    return str(error).strip().splitlines()[0].split(" : ")[0].rstrip(". ")


def _pylon() -> Any:
    try:
        # by name: types do not depend on whether it is installed
        return importlib.import_module("pypylon.pylon")
    except ImportError as error:
        raise SourceError(
            f"source.kind basler needs pypylon, which cannot be loaded ({error}); "
            "expected the extra: pip install 'rust-edge[basler]'"
        ) from error


def _genicam() -> Any:
    return importlib.import_module("pypylon.genicam")
