"""Where lines come from: the keys of `source`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    model_validator,
)
from pydantic_core import PydanticCustomError

from edge.config.section import Section


class FolderSource(Section):
    """Images of a folder (or the ones listed), in name order, as one strip."""

    kind: Literal["folder"] = "folder"
    path: Path | list[Path] = Field(description="A folder, an image, or a list of both.")
    frame_lines: int = Field(128, ge=1, le=65536, description="Lines per frame that the source hands out.")
    loop: bool = Field(False, description="Begin again after the last image, without end.")
    line_rate_hz: float | None = Field(None, gt=0, description="Pace; none: as fast as the pipeline takes them.")


class SimulatedDefects(Section):
    """How often defects are planted on the simulated strip, as the mean distance between two of one kind."""

    rust_every_mm: float | None = Field(900.0, gt=0)
    pit_every_mm: float | None = Field(700.0, gt=0)
    inclusion_every_mm: float | None = Field(1100.0, gt=0)
    scratch_every_mm: float | None = Field(1500.0, gt=0)
    scratch_max_mm: float = Field(2500.0, gt=0, description="Longest scratch.")


class SimulatedSensor(Section):
    """Lens, sensor and electronics between a scene and the lines of the simulated camera."""

    scene: Literal["strip", "dark", "bright", "target", "ladder"] = Field(
        "strip",
        description="dark: the lens covered; bright: an even target; target: bars along the motion; ladder: bars across it.",
    )
    light: float = Field(1.0, gt=0, le=64, description="Light, or exposure, against that of the camera without this section.")
    bright_grey: float = Field(180.0, gt=0, le=1024, description="Grey level of the even target, and of light bars.")
    pitch_mm: float = Field(5.0, gt=0, description="From one edge of a bar to the next.")
    tilt_deg: float = Field(0.0, ge=-45, le=45, description="Of the bars against the direction they are named by.")
    dark_grey: float = Field(3.0, ge=0, le=128, description="Mean dark signal.")
    dsnu_grey: float = Field(0.5, ge=0, le=32, description="Standard deviation of the columns' dark signals.")
    prnu_percent: float = Field(1.0, ge=0, le=25, description="Standard deviation of the columns' gains.")
    full_well_e: float = Field(15_000.0, ge=100, description="Electrons that are grey level 255: its noise is their square root.")
    read_noise_e: float = Field(15.0, ge=0, description="Temporal noise in the dark, before it becomes whole grey levels.")
    fall_off_deg: float = Field(0.0, ge=0, le=60, description="Angle of view from the middle to an end: light falls as cos^4.")
    distortion: float = Field(
        0.0, ge=-0.3, le=0.3, description="What is seen at u is at u + distortion * u^3; u is 0 in the middle, 1 at an end."
    )
    dead_columns: tuple[Annotated[int, Field(ge=0)], ...] = Field((), description="Columns that see no light.")
    hot_columns: tuple[Annotated[int, Field(ge=0)], ...] = Field((), description="Columns that are always white.")


class SimulatedSource(Section):
    """An endless steel strip made from a seed, with planted defects whose truth is known."""

    kind: Literal["simulated"] = "simulated"
    width: int = Field(4096, ge=64, le=16384)
    frame_lines: int = Field(128, ge=1, le=65536)
    line_rate_hz: float | None = Field(
        None, gt=0, description="Camera pace, lines shed when too slow; none: as fast as the pipeline takes them."
    )
    seed: int = Field(1, ge=0)
    lines: int | None = Field(None, ge=1, description="Length of the strip; none: endless.")
    defects: SimulatedDefects = SimulatedDefects()
    sensor: SimulatedSensor | None = Field(None, description="none: a sensor without faults.")

    @model_validator(mode="after")
    def _columns_there(self) -> SimulatedSource:
        for key in ("dead_columns", "hot_columns"):
            columns: tuple[int, ...] = getattr(self.sensor, key, ())
            if beyond := [column for column in columns if column >= self.width]:
                raise ValueError(f"sensor.{key}: got {beyond[0]}; expected columns from 0 to {self.width - 1}")
        return self


def _is_feature_value(value: object) -> object:
    if isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ValueError("expected true, false, a number or text, as the camera has the feature")


FeatureValue = Annotated[bool | int | float | str, BeforeValidator(_is_feature_value)]
"""Of a GenICam feature: an enumeration's entry is text, and a command is executed by true."""


class GenicamCamera(Section):
    """What a GenICam camera is set to. A key that is none leaves the camera as it is."""

    frame_lines: int = Field(128, ge=1, le=65536, description="Lines per frame: the camera's Height is set to it.")
    width: int | None = Field(None, ge=1, le=65536, description="Columns; none: as the camera has it.")
    pixel_format: Literal["Mono8", "Mono10", "Mono10Packed", "Mono10p", "Mono12", "Mono12Packed", "Mono12p", "Mono16"] = Field(
        "Mono8", description="What the camera sends; more than 8 bits are cut to the 8 highest ones."
    )
    exposure_us: float | None = Field(None, gt=0, description="none: as the camera has it.")
    line_rate_hz: float | None = Field(
        None, gt=0, description="Lines per second; of a camera without a line rate its frame rate times the lines of a frame."
    )
    trigger: Literal["free", "encoder", "software"] = Field(
        "free",
        description="encoder: no lines come while the strip stands still, and that is no fault; "
        "software: a frame is asked for whenever the one before has come.",
    )
    trigger_source: str | None = Field(
        None,
        min_length=1,
        description="Input of trigger encoder, as the camera names it, such as Line1; none: as `features` has it.",
    )
    trigger_selector: str | None = Field(
        None, min_length=1, description="What is triggered; none: LineStart where the camera has it, else FrameStart."
    )
    features: dict[str, FeatureValue] = Field(
        {}, description="GenICam features by name, set in this order and read back; a command by true."
    )
    buffers: int = Field(32, ge=4, le=4096, description="Frames that may be on their way between the driver and capture.")
    frozen_s: float = Field(
        2.0, ge=0.1, le=3600, description="Without a frame for so long a free camera is opened again, one with an encoder asked."
    )

    @model_validator(mode="after")
    def _triggered(self) -> GenicamCamera:
        told = [key for key in ("trigger_source", "trigger_selector") if getattr(self, key) is not None]
        if told and self.trigger != "encoder":
            raise ValueError(
                f"{told[0]}: got {getattr(self, told[0])}, with trigger {self.trigger}; expected trigger encoder, or none"
            )
        return self

    @model_validator(mode="after")
    def _frames_often_enough(self) -> GenicamCamera:
        if self.line_rate_hz and self.trigger == "free" and self.frozen_s < 2 * self.frame_lines / self.line_rate_hz:
            frame_s = self.frame_lines / self.line_rate_hz
            raise ValueError(
                f"frozen_s: got {self.frozen_s:g}, and a frame of {self.frame_lines} lines takes {frame_s:g} s; "
                f"expected at least {2 * frame_s:g}, or fewer frame_lines"
            )
        return self


class GigeSource(GenicamCamera):
    """A GigE Vision camera, without a maker's library."""

    kind: Literal["gige"] = "gige"
    address: str | None = Field(None, min_length=1, description="IP address or host name of the camera.")
    serial: str | None = Field(None, min_length=1, description="In place of the address: found by its serial number.")
    name: str | None = Field(None, min_length=1, description="In place of the address: found by the name given to it.")
    transport: Literal["auto", "aravis", "telegenicam"] = Field(
        "auto", description="Which client receives its frames; auto: Aravis where it is installed, else telegenicam."
    )
    packet_size: int | None = Field(
        None, ge=576, le=16110, description="Bytes of a packet, headers included; none: what the client finds to come through."
    )
    reverse_x: bool | None = Field(None, description="Mirror the columns in the camera; none: as the camera has it.")

    @model_validator(mode="after")
    def _one_camera(self) -> GigeSource:
        told = [key for key in ("address", "serial", "name") if getattr(self, key) is not None]
        if len(told) != 1:
            raise ValueError(
                f"got {' and '.join(told) or 'none of address, serial and name'}; expected one of address, serial, name"
            )
        return self

    @model_validator(mode="after")
    def _runs_by_itself(self) -> GigeSource:
        if self.trigger == "software":
            raise ValueError("trigger: got software; expected free or encoder")
        return self


class BaslerSource(GenicamCamera):
    """A Basler camera, GigE or USB, through pylon."""

    kind: Literal["basler"] = "basler"
    serial: str | None = Field(None, min_length=1, description="Its serial number; none, and no name: the only one there is.")
    name: str | None = Field(None, min_length=1, description="In place of the serial number: the name given to it.")

    @model_validator(mode="after")
    def _one_camera(self) -> BaslerSource:
        if self.serial is not None and self.name is not None:
            raise ValueError("got serial and name; expected one of serial, name, or none of them")
        return self


class GentlSource(GenicamCamera):
    """A camera of any maker through its GenTL producer."""

    kind: Literal["gentl"] = "gentl"
    producer: Path | Annotated[tuple[Path, ...], Field(min_length=1)] = Field(
        description="Its .cti file, or a list of them: the cameras of all of them are one list."
    )
    device: str | Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="Id or serial number in quotes, or place from 0 in the list of cameras; none: the only one there is.",
    )

    @property
    def producers(self) -> tuple[Path, ...]:
        """The .cti files, in order."""
        return (self.producer,) if isinstance(self.producer, Path) else self.producer


def _is_stream_url(value: str) -> str:
    scheme, _, rest = value.partition("://")
    if scheme not in ("rtsp", "rtsps", "http", "https", "udp", "tcp") or not rest or any(map(str.isspace, rest)):
        raise ValueError("expected an address such as rtsp://host/stream; rtsp, rtsps, http, https, udp and tcp are known")
    if "@" in rest.split("/")[0]:
        raise PydanticCustomError(
            "secret_in_url", "expected an address without a user: username and password have keys of their own"
        )
    return value


StreamUrl = Annotated[str, AfterValidator(_is_stream_url)]


class VideoSource(Section):
    """A video file as one strip, or the stream of a network camera."""

    kind: Literal["video"] = "video"
    path: Path | None = Field(None, description="A file; its images follow each other without a gap, and it waits.")
    url: StreamUrl | None = Field(None, description="In place of the file: a stream, such as `rtsp://host/stream`.")
    username: str | None = Field(None, min_length=1, description="Of the stream.")
    password: str | None = Field(None, repr=False, description="From the environment: `${CAMERA_PASSWORD}`.")
    frame_lines: int = Field(128, ge=1, le=65536, description="Lines per frame; of a stream: as many as its images have.")
    line_rate_hz: float | None = Field(None, gt=0, description="Pace of a file; none: as fast as the pipeline takes it.")
    frame_rate_hz: float | None = Field(
        None, gt=0, description="Of a stream, whose time stamps then say what images are missing; none: each is the next one."
    )
    frozen_s: float = Field(2.0, ge=0.1, le=3600, description="Without an image for so long a stream is opened again.")

    @model_validator(mode="after")
    def _file_or_stream(self) -> VideoSource:
        if (self.path is None) == (self.url is None):
            raise ValueError(f"got {'neither path nor' if self.path is None else 'path and'} url; expected one of path, url")
        only = ("line_rate_hz",) if self.path is None else ("frame_rate_hz", "frozen_s", "username", "password")
        for key in only:
            if getattr(self, key) != type(self).model_fields[key].default:
                of = "file" if self.path is None else "stream"
                raise ValueError(f"{key}: got one, and it is of a {of} only; expected none")
        return self


Source = Annotated[
    FolderSource | SimulatedSource | GigeSource | BaslerSource | GentlSource | VideoSource, Field(discriminator="kind")
]
