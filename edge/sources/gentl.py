"""Cameras of any maker through a GenTL producer, the .cti file that comes with the maker's software, loaded by harvesters.

A producer can be loaded once in a process, whatever the number of its cameras: they share it here. An incomplete frame is
lost with all its lines: harvesters keeps it back.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edge.config import GentlSource
from edge.errors import ConfigError, RustEdgeError, SourceError
from edge.sources.camera import CameraOptions, CameraSource, FoundCamera, Grab
from edge.sources.features import Feature, Kind, Value
from edge.sources.genicam_settings import apply_settings, most_of, running_line_rate_hz, size_of
from edge.sources.pixel_formats import PIXEL_FORMATS

_GIGE_LAST_ID = 65535
"""Of 16 bits, 0 left out, where a producer hands on the ids of GigE Vision. Source: GigE Vision 2.2, section 24.2: block_id."""
_LOOK_AGAIN_S = 0.001
_FIND_MS = 1000
_TRIGGER_AGAIN_S = 1.0
_READABLE, _WRITABLE = (3, 4), (2, 4)
"""RO and RW; WO and RW. Source: GenApi, EAccessMode."""
_KINDS: dict[int, Kind] = {2: "integer", 3: "boolean", 4: "command", 5: "float", 6: "string", 9: "enumeration"}
"""Source: GenApi, EInterfaceType."""


def open_gentl(source: GentlSource) -> CameraSource:
    """The source of a camera, to be entered as a context manager. Raises SourceError where harvesters is missing, ConfigError."""
    _harvesters()
    for path in source.producers:
        _check_producer(path)
    name = f"gentl {'' if source.device is None else source.device}".strip()
    watched = CameraOptions(
        name,
        source.frozen_s,
        # one that a grab triggers is as silent as whoever asks: that is a fault of the camera
        "encoder" if source.trigger == "encoder" else "free",
        source.line_rate_hz if source.trigger == "free" else None,
    )
    return CameraSource(lambda: GentlLink(source, name), watched)


def discover() -> list[FoundCamera]:
    """The cameras of all producers that are installed as GenTL wants it. Raises SourceError where harvesters is missing."""
    _harvesters()
    found = []
    for path in installed_producers():
        try:
            _check_producer(path)
        except ConfigError as error:
            found.append(FoundCamera("gentl", str(path), problem=str(error)))
            continue
        harvester = _hold(path)
        try:
            found += [_found(harvester, device) for device in harvester.device_info_list]
        finally:
            _let_go(path)
    return found


def features_of(address: str) -> list[Feature]:
    """All features of a camera with their values. address: its id or serial number. Raises SourceError."""
    _harvesters()
    for path in installed_producers():
        harvester = _hold(path)
        try:
            for device in harvester.device_info_list:
                if address in (_info(device, "id_", ""), _info(device, "serial_number", "")):
                    with _told(f"gentl {address}"):
                        acquirer = _opened(harvester, device)
                        try:
                            features = GenapiFeatures(acquirer.remote_device.node_map)
                            found = (features.feature(name) for name in features.names())
                            return [feature for feature in found if feature is not None]
                        finally:
                            acquirer.destroy()
        finally:
            _let_go(path)
    raise SourceError(f"gentl {address}: no camera answers; the producers in GENICAM_GENTL64_PATH are asked")


def installed_producers() -> list[Path]:
    """The .cti files in the folders that GENICAM_GENTL64_PATH lists, as makers' installers set it. Source: GenTL 1.6, 3.1."""
    folders = [folder for folder in os.environ.get("GENICAM_GENTL64_PATH", "").split(os.pathsep) if folder]
    return [path for folder in folders for path in sorted(Path(folder).glob("*.cti"))]


class GentlLink:
    """One open camera, set up and delivering. name: names it in errors. Raises SourceError, ConfigError."""

    def __init__(self, source: GentlSource, name: str) -> None:
        self._source, self._name = source, name
        self._held: list[Path] = []
        self._acquirer: Any = None
        try:
            with _told(name):
                self._acquirer = _opened(*_chosen([self._hold(path) for path in source.producers], source, name))
                self._begin()
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        source, acquirer = self._source, self._acquirer
        self._features = GenapiFeatures(acquirer.remote_device.node_map)
        apply_settings(self._features, source, self._name)
        self._height, self._width = size_of(self._features, self._name)
        self._rate_hz = running_line_rate_hz(self._features, self._height) if source.trigger == "free" else None
        extended = self._features.feature("GevGVSPExtendedIDMode")
        short_ids = acquirer.device.module.tl_type == "GEV" and (extended is None or extended.value != "On")
        self._last_frame_id = _GIGE_LAST_ID if short_ids else None
        self._triggered_s: float | None = None
        self._incomplete, self._has_ids = 0, False
        core = _harvesters()
        acquirer.add_callback(core.ImageAcquirer.Events.INCOMPLETE_BUFFER, _callback(core, self._count_incomplete))
        acquirer.num_buffers = max(source.buffers, acquirer.min_num_buffers)
        # the driver is asked, and waited for in Python: its own waiting would keep every other thread of the process waiting
        acquirer.timeout_period_on_update_event_data_call = 0
        acquirer.start()

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
        """65535 of GigE Vision cameras with short ids; None: they never begin again."""
        return self._last_frame_id

    @property
    def line_rate_hz(self) -> float | None:
        """What a free-running camera says it runs at."""
        return self._rate_hz

    def grab(self, timeout_s: float) -> Grab | None:
        """The next frame, complete or not; None: nothing came in time. Raises SourceError where the camera is lost."""
        incomplete, until_s = self._incomplete, time.monotonic() + timeout_s
        with _told(self._name):
            if timeout_s:
                self._trigger()
            while (buffer := self._acquirer.try_fetch(timeout=_LOOK_AGAIN_S / 10, is_raw=True)) is None:
                if self._incomplete > incomplete and not self._has_ids:
                    return Grab(None, None, 0, time.time_ns())
                if time.monotonic() >= until_s:
                    return None
                time.sleep(_LOOK_AGAIN_S)
            try:
                self._triggered_s = None
                return self._grab_of(buffer)
            finally:
                buffer.parent.queue_buffer(buffer)

    def _trigger(self) -> None:
        """Ask for one frame, and again where the camera was not ready for it."""
        now_s = time.monotonic()
        if self._source.trigger == "software" and (self._triggered_s is None or now_s - self._triggered_s > _TRIGGER_AGAIN_S):
            self._acquirer.remote_device.node_map.get_node("TriggerSoftware").execute()
            self._triggered_s = now_s

    def _grab_of(self, buffer: Any) -> Grab:
        now_ns = time.time_ns()
        frame_id = _info(buffer, "frame_id", None)
        self._has_ids = self._has_ids or frame_id is not None
        pixels = PIXEL_FORMATS[self._source.pixel_format]
        height, width = _info(buffer, "height", self._height), _info(buffer, "width", self._width)
        if (height, width) != (self._height, self._width):
            raise SourceError(f"{self._name}: got a frame of {width} x {height}, expected {self._width} x {self._height}")
        line_bytes, padding = pixels.bytes_of(1, width), _info(buffer, "padding_x", 0)
        size = (line_bytes + padding) * height if padding else pixels.bytes_of(height, width)
        data = np.frombuffer(buffer.raw_buffer, np.uint8, size, _info(buffer, "image_offset", 0))
        if padding:
            data = np.ascontiguousarray(data.reshape(height, -1)[:, :line_bytes]).reshape(-1)
        lines = pixels.lines(data, height, width)
        # the buffer goes back to the driver
        return Grab(lines.copy(), frame_id, height, now_ns)

    def ask(self) -> None:
        """Have the camera answer. Raises SourceError where it does not."""
        with _told(self._name):
            # past the cache: from the camera itself
            self._acquirer.remote_device.node_map.get_node("Width").get_value(False, True)

    def counters(self) -> dict[str, int]:
        """Frames that the producer delivered, those it had no buffer for, and those kept back as incomplete."""
        streams = self._acquirer.data_streams
        names = {"delivered": "num_delivered", "underrun": "num_underrun"}
        told = {key: [_info(stream, name, None) for stream in streams] for key, name in names.items()}
        known = {key: sum(counts) for key, counts in told.items() if counts and None not in counts}
        return {**known, "incomplete": self._incomplete}

    def close(self) -> None:
        """Give the camera back, and the producer where it was the last one."""
        if self._acquirer is not None:
            with suppress(_gentl().GenericException, _genapi().GenericException):
                self._acquirer.destroy()
        held, self._held = self._held, []
        for path in held:
            _let_go(path)

    def _hold(self, path: Path) -> Any:
        harvester = _hold(path)
        self._held.append(path)
        return harvester

    def _count_incomplete(self) -> None:
        self._incomplete += 1


def _callback(core: Any, call: Callable[[], None]) -> Any:
    """An object that harvesters calls back."""
    return type("Callback", (core.Callback,), {"emit": lambda self, context=None: call()})()


class GenapiFeatures:
    """The features of an open camera."""

    def __init__(self, nodes: Any) -> None:
        self._nodes = nodes

    def names(self) -> list[str]:
        """All features that it has."""
        nodes = [node.node for node in self._nodes.nodes]
        return [str(node.name) for node in nodes if node.is_feature() and node.principal_interface_type in _KINDS]

    def feature(self, name: str) -> Feature | None:
        """One of them as it is now."""
        node = self._nodes.get_node(name) if self._nodes.has_node(name) else None
        kind = None if node is None else _KINDS.get(node.node.principal_interface_type)
        if node is None or kind is None:
            return None
        access = node.get_access_mode()
        if access == 0:
            return None
        writable = access in _WRITABLE
        if kind == "command" or access not in _READABLE:
            return Feature(name, kind, writable=writable)
        value: Value = node.value
        if kind == "enumeration":
            choices = tuple(str(entry.symbolic) for entry in node.entries if entry.get_access_mode() in _READABLE)
            return Feature(name, kind, value, choices=choices, writable=writable)
        if kind in ("boolean", "string"):
            return Feature(name, kind, value, writable=writable)
        step = node.inc if kind == "integer" or node.has_inc() else None
        return Feature(name, kind, value, node.min, node.max, step, writable=writable)

    def write(self, feature: Feature, value: Value) -> None:
        """Set it, or execute it. Raises ValueError with the camera's reason."""
        node = self._nodes.get_node(feature.name)
        try:
            if feature.kind == "command":
                node.execute()
            else:
                node.value = value
        except (_genapi().GenericException, _gentl().GenericException, TypeError) as error:
            raise ValueError(_reason(error)) from error


_AT_PRODUCERS = threading.RLock()
_LOADED: dict[Path, tuple[Any, int]] = {}
"""Harvesters of the producers that are loaded now, by path, and how many hold each."""


def _hold(path: Path) -> Any:
    """A producer's harvester, loaded where nobody has. Raises SourceError."""
    path = path.resolve()
    with _AT_PRODUCERS, _told(str(path)):
        harvester, holders = _LOADED.get(path, (None, 0))
        if harvester is None:
            harvester = _harvesters().Harvester()
            harvester.add_file(str(path))
            harvester.update()
        _LOADED[path] = harvester, holders + 1
        return harvester


def _let_go(path: Path) -> None:
    path = path.resolve()
    with _AT_PRODUCERS, suppress(_gentl().GenericException):
        harvester, holders = _LOADED.pop(path)
        if holders > 1:
            _LOADED[path] = harvester, holders - 1
        else:
            harvester.reset()


def _chosen(harvesters: Sequence[Any], source: GentlSource, name: str) -> tuple[Any, Any]:
    """The camera that a station file names, and the harvester that found it. Raises SourceError."""
    with _AT_PRODUCERS:
        for harvester in harvesters:
            _look_again(harvester)
        devices = [(harvester, device) for harvester in harvesters for device in harvester.device_info_list]
    wanted = [
        pair
        for index, pair in enumerate(devices)
        if source.device in (None, index, _info(pair[1], "id_", ""), _info(pair[1], "serial_number", ""))
    ]
    if len(wanted) == 1:
        return wanted[0]
    told = ", ".join(f"{index}: {_label(device)}" for index, (_, device) in enumerate(devices)) or "none"
    if not wanted:
        raise SourceError(f"{name}: not there; the producers find {told}: is it powered, connected, and of this producer?")
    raise SourceError(f"{name}: source.device: got {len(wanted)} cameras, {told}; expected id, serial number or place of one")


def _look_again(harvester: Any) -> None:
    """Add cameras that came since the producer was loaded. Not `update`, which takes the others from who uses them."""
    core = _harvesters()
    known = {device.id_ for device in harvester.device_info_list}
    for interface in {id(device.parent): device.parent for device in harvester.device_info_list}.values():
        interface.update_device_info_list(_FIND_MS)
        for device in interface.device_info_list:
            if device.id_ not in known:
                harvester.device_info_list.append(core.DeviceInfo(module=device, parent=interface))


def _opened(harvester: Any, device: Any) -> Any:
    with _AT_PRODUCERS, ThreadPoolExecutor(1) as other_thread:
        # from the main thread it would take Ctrl+C away from whoever handles it
        return other_thread.submit(harvester.create, device).result()


def _label(device: Any) -> str:
    return f"{_info(device, 'model', '')} {_info(device, 'serial_number', '')} ({_info(device, 'id_', '')})"


def _found(harvester: Any, device: Any) -> FoundCamera:
    told = {key: str(_info(device, key, "")) for key in ("id_", "vendor", "model", "serial_number", "user_defined_name")}
    found = FoundCamera("gentl", told["id_"], told["vendor"], told["model"], told["serial_number"], told["user_defined_name"])
    acquirer = None
    try:
        with _told(found.address):
            acquirer = _opened(harvester, device)
            features = GenapiFeatures(acquirer.remote_device.node_map)
            formats = features.feature("PixelFormat")
            return replace(
                found,
                width=most_of(features, "WidthMax", "Width"),
                height=most_of(features, "HeightMax", "Height"),
                pixel_formats=formats.choices if formats else (),
            )
    except RustEdgeError as error:
        return replace(found, problem=str(error))
    finally:
        if acquirer is not None:
            acquirer.destroy()


def _info(thing: Any, name: str, otherwise: Any) -> Any:
    """What a producer tells of a thing; `otherwise` where it does not: most of it is optional."""
    try:
        return getattr(thing, name)
    except _gentl().GenericException:
        return otherwise


def _check_producer(path: Path) -> None:
    """Raises ConfigError where a file is no GenTL producer: harvesters would find no cameras, and say nothing."""
    if not path.is_file():
        raise ConfigError(f"source.producer: {path} does not exist; expected the .cti file of the maker's software")
    try:
        ctypes.CDLL(str(path.resolve())).GCInitLib  # noqa: B018
    except (OSError, AttributeError) as error:
        raise ConfigError(f"source.producer: {path} is no GenTL producer for this machine: {error}") from error


@contextmanager
def _told(where: str) -> Iterator[None]:
    """Whatever producer and camera raise within, as a SourceError that names the camera."""
    try:
        yield
    except (_gentl().GenericException, _genapi().GenericException) as error:
        raise SourceError(f"{where}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """What an error says, without the place in the reference implementation's sources."""
    return str(error).strip().splitlines()[0].split(" : ")[0].rstrip(". ")


def _harvesters() -> Any:
    try:
        # by name: types do not depend on whether it is installed. Its import changes what warnings are shown: undone
        with warnings.catch_warnings():
            return importlib.import_module("harvesters.core")
    except ImportError as error:
        raise SourceError(
            f"source.kind gentl needs harvesters, which cannot be loaded ({error}); "
            "expected the extra: pip install 'rust-edge[gentl]'"
        ) from error


def _gentl() -> Any:
    return importlib.import_module("genicam.gentl")


def _genapi() -> Any:
    return importlib.import_module("genicam.genapi")
