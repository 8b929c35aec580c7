"""The settings of a GenICam camera behind a maker's library, by the names of the Standard Features Naming Convention."""

from __future__ import annotations

from edge.config import GenicamCamera
from edge.errors import ConfigError, SourceError
from edge.sources.features import Feature, FeatureAccess, Value, set_feature, set_features

_EXPOSURE = ("ExposureTime", "ExposureTimeAbs")
_LINE_RATE = ("AcquisitionLineRate", "AcquisitionLineRateAbs")
_FRAME_RATE = ("AcquisitionFrameRate", "AcquisitionFrameRateAbs")
"""Names of the Standard Features Naming Convention 2.7, and the older ones that end in Abs."""
_RATE_SWITCHES = ("AcquisitionLineRateEnable", "AcquisitionFrameRateEnable")
_RUNNING_LINE_RATE = ("ResultingLineRate", "ResultingLineRateAbs", *_LINE_RATE)
_RUNNING_FRAME_RATE = ("ResultingFrameRate", "ResultingFrameRateAbs", *_FRAME_RATE)


def apply_settings(camera: FeatureAccess, source: GenicamCamera, name: str) -> None:
    """Set a camera to what a station file says: picture, trigger, `features`, then exposure and rate, which they may unlock.

    name: of the camera in errors. Raises ConfigError naming key and feature, what was wanted, and what the camera has.
    """
    where = f"{name}: source"
    set_feature(camera, "PixelFormat", source.pixel_format, f"{where}.pixel_format")
    if source.width is not None:
        _set_size(camera, "Width", "OffsetX", source.width, f"{where}.width")
    _set_size(camera, "Height", "OffsetY", source.frame_lines, f"{where}.frame_lines")
    _set_trigger(camera, source, where)
    set_features(camera, source.features, f"{where}.features")
    if source.exposure_us is not None:
        _set_first(camera, _EXPOSURE, source.exposure_us, f"{where}.exposure_us")
    if source.line_rate_hz is not None and source.trigger == "free":
        _set_rate(camera, source.line_rate_hz, source.frame_lines, f"{where}.line_rate_hz")


def running_line_rate_hz(camera: FeatureAccess, frame_lines: int) -> float | None:
    """What a free-running camera says that it runs at; None: it does not say."""
    for names, lines in ((_RUNNING_LINE_RATE, 1), (_RUNNING_FRAME_RATE, frame_lines)):
        for name in names:
            feature = camera.feature(name)
            if feature is not None and isinstance(feature.value, int | float) and feature.value > 0:
                return float(feature.value) * lines
    return None


def size_of(camera: FeatureAccess, name: str) -> tuple[int, int]:
    """(lines, columns) of its frames as it is set now. Raises SourceError where it has none."""
    height, width = camera.feature("Height"), camera.feature("Width")
    if height is None or width is None or not isinstance(height.value, int) or not isinstance(width.value, int):
        raise SourceError(f"{name}: has no Height and Width; expected a camera of images")
    return height.value, width.value


def most_of(camera: FeatureAccess, most: str, now: str) -> int | None:
    """The most lines or columns that a camera has; None: it does not say. most, now: its features, as WidthMax and Width."""
    limit, size = camera.feature(most), camera.feature(now)
    if limit is not None and isinstance(limit.value, int):
        return limit.value
    return None if size is None or size.most is None else int(size.most)


def _set_size(camera: FeatureAccess, name: str, offset: str, size: int, where: str) -> None:
    """Width or Height. Where an offset that is still set leaves too little room, that goes first."""
    feature, shifted = camera.feature(name), camera.feature(offset)
    too_large = feature is not None and feature.most is not None and size > feature.most
    if too_large and shifted is not None and shifted.value and shifted.writable:
        set_feature(camera, offset, 0, where)
    set_feature(camera, name, size, where)


def _set_rate(camera: FeatureAccess, line_rate_hz: float, frame_lines: int, where: str) -> None:
    for switch in _RATE_SWITCHES:
        if (feature := camera.feature(switch)) is not None and feature.writable:
            set_feature(camera, switch, True, where)
    if any(camera.feature(name) for name in _LINE_RATE):
        _set_first(camera, _LINE_RATE, line_rate_hz, where)
    else:
        # an area camera that is read as lines
        _set_first(camera, _FRAME_RATE, line_rate_hz / frame_lines, where)


def _set_trigger(camera: FeatureAccess, source: GenicamCamera, where: str) -> None:
    selector, mode = camera.feature("TriggerSelector"), camera.feature("TriggerMode")
    if source.trigger == "encoder" and source.trigger_source is None:
        return
    if mode is None:
        if source.trigger != "free":
            raise ConfigError(f"{where}.trigger: got {source.trigger}, and the camera has no TriggerMode; expected free")
        return
    if source.trigger == "free":
        # a camera keeps what it was set to, and would wait for a trigger of last week
        for choice in selector.choices if selector else ("",):
            if choice:
                set_feature(camera, "TriggerSelector", choice, f"{where}.trigger")
            if (mode := camera.feature("TriggerMode")) is not None and mode.value != "Off":
                set_feature(camera, "TriggerMode", "Off", f"{where}.trigger")
        return
    if selector is not None:
        set_feature(camera, "TriggerSelector", _selected(selector, source), f"{where}.trigger_selector")
    set_feature(camera, "TriggerMode", "On", f"{where}.trigger")
    set_feature(camera, "TriggerSource", source.trigger_source or "Software", f"{where}.trigger_source")


def _selected(selector: Feature, source: GenicamCamera) -> str:
    if source.trigger_selector is not None:
        return source.trigger_selector
    return "LineStart" if source.trigger == "encoder" and "LineStart" in selector.choices else "FrameStart"


def _set_first(camera: FeatureAccess, names: tuple[str, ...], value: Value, where: str) -> None:
    set_feature(camera, next((name for name in names if camera.feature(name) is not None), names[0]), value, where)
