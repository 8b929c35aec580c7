"""Station files read, with every fault at once, and the station of each camera of a file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import (
    ValidationError,
)
from pydantic_core import ErrorDetails

from edge.config.section import Section
from edge.config.station import Camera, StationConfig, StationFile
from edge.config_faults import explain, take_out
from edge.errors import ConfigError
from edge.station_document import apply_override, copy_apart, expand_variables, read_document


def stations_of(file: StationFile) -> tuple[StationConfig, ...]:
    """The station of each camera of a file: a station with that camera alone, in the file's order.

    Several cameras have files of their own, named after them: `out/outbox.db` of camera top is `out/outbox-top.db`, and so are
    `sinks.jsonl` and `sinks.csv`. So each file holds one strip after the other, and has one writer.
    """
    if not file.cameras:
        return (StationConfig.model_validate(_said(file)),)
    return tuple(StationConfig.model_validate(_document_of(file, camera)) for camera in file.cameras)


def station_of(file: StationFile, origin: str, camera: str | None = None) -> StationConfig:
    """The station of one camera of a file. camera: its name; None: the only one. origin: names the file in errors.

    Raises ConfigError where there is no such camera, or where it is not said which.
    """
    stations = stations_of(file)
    for station in stations:
        if camera == station.camera or (camera is None and len(stations) == 1):
            return station
    names = ", ".join(station.camera for station in stations)
    if camera is None:
        raise ConfigError(f"{origin}: cameras: got {len(stations)}; expected --camera with one of {names}")
    raise ConfigError(f"{origin}: --camera: got {camera}; expected {'one of ' if len(stations) > 1 else ''}{names}")


def path_of_camera(path: Path, camera: str) -> Path:
    """The file of one of several cameras, beside where the only camera of a station has it.

    >>> path_of_camera(Path("out/outbox.db"), "top").as_posix()
    'out/outbox-top.db'
    """
    return path.with_name(f"{path.stem}-{camera}{path.suffix}")


def _said(section: Section) -> dict[str, Any]:
    """What a file says of a section, without defaults: as many keys as stand there."""
    return section.model_dump(exclude_unset=True, exclude={"cameras"})


def _document_of(file: StationFile, camera: Camera) -> dict[str, Any]:
    own = {key: value for key, value in _said(camera).items() if value is not None}
    document: dict[str, Any] = _merged({key: value for key, value in _said(file).items() if key != "source"}, own)
    document["outbox"] = document.get("outbox", {}) | {"path": path_of_camera(file.outbox.path, camera.camera)}
    files = {"jsonl": file.sinks.jsonl, "csv": file.sinks.csv}
    named = {key: path_of_camera(path, camera.camera) for key, path in files.items() if path is not None}
    return document | {"sinks": document.get("sinks", {}) | named}


def _merged(base: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Keys of both, of sections too; where both say something, what stands above."""
    result = dict(base)
    for key, value in above.items():
        below = result.get(key)
        result[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result


def load_config(
    path: Path, overrides: Iterable[str] = (), environment: Mapping[str, str] | None = None, camera: str | None = None
) -> StationConfig:
    """The station of one camera, as `load_file` and `station_of` have it."""
    return station_of(load_file(path, overrides, environment), str(path), camera)


def load_file(path: Path, overrides: Iterable[str] = (), environment: Mapping[str, str] | None = None) -> StationFile:
    """Read a station file, apply `key.path=value` overrides, replace `${NAME}` by the environment.

    Relative paths in the file stay relative to the working directory. Raises ConfigError naming every fault.
    """
    return parse_file(read_document(path), str(path), overrides, environment)


def parse_config(
    document: dict[str, Any],
    origin: str,
    overrides: Iterable[str] = (),
    environment: Mapping[str, str] | None = None,
    camera: str | None = None,
) -> StationConfig:
    """The station of one camera, as `parse_file` and `station_of` have it."""
    return station_of(parse_file(document, origin, overrides, environment), origin, camera)


def parse_file(
    document: dict[str, Any], origin: str, overrides: Iterable[str] = (), environment: Mapping[str, str] | None = None
) -> StationFile:
    """Validate a parsed document. `origin` names it in errors. Raises ConfigError naming every fault."""
    file, faults = survey_file(document, overrides, environment)
    if faults or file is None:
        raise ConfigError("\n".join(f"{origin}: {fault}" for fault in faults))
    return file


def survey_file(
    document: dict[str, Any], overrides: Iterable[str] = (), environment: Mapping[str, str] | None = None
) -> tuple[StationFile | None, list[str]]:
    """Every fault of a document, and what the station would be with each faulty value taken out.

    A validator that compares several keys only runs once each of them is sound on its own; so faulty values are taken
    out and the rest is looked at again, until nothing new is found.
    """
    document = copy_apart(document)
    variables = os.environ if environment is None else environment
    faults: list[str] = []
    for override in overrides:
        apply_override(document, override, faults)
    rest = expand_variables(document, variables, faults)
    while errors := _errors_in(rest):
        found = {explain(error, StationFile): error for error in errors}
        faults += [fault for fault in found if fault not in faults]
        if not all([take_out(rest, error) for error in found.values()]):
            return None, faults
    return StationFile.model_validate(rest), faults


def _errors_in(document: dict[str, Any]) -> list[ErrorDetails]:
    """What is wrong with a file; where it is sound by itself, with what a camera makes of the station's keys."""
    try:
        file = StationFile.model_validate(document)
    except ValidationError as error:
        return error.errors()
    found: list[ErrorDetails] = []
    for index, camera in enumerate(file.cameras):
        try:
            StationConfig.model_validate(_document_of(file, camera))
        except ValidationError as error:
            found += [ErrorDetails({**each, "loc": ("cameras", index, *each["loc"])}) for each in error.errors()]
    return found
