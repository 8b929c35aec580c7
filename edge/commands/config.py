"""`rust-edge config`: check a station file, show it with everything filled in, or print its JSON Schema."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from edge.bundle import Bundle, open_bundle
from edge.commands.arguments import add_overrides
from edge.config import Camera, StationFile, load_file, stations_of, survey_file
from edge.errors import BundleError, ConfigError
from edge.station import check_file
from edge.station_document import read_document

if TYPE_CHECKING:
    from edge.commands.arguments import Subparsers


def register(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = subparsers.add_parser("config", help="check, show or describe a station file", description=__doc__)
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    check = verbs.add_parser("check", help="every fault of a station file at once; exit code 2 if there is one")
    check.add_argument("file", type=Path)
    add_overrides(check)
    check.set_defaults(handler=_check)

    show = verbs.add_parser("show", help="the station file with every default filled in, secrets masked")
    show.add_argument("file", type=Path)
    add_overrides(show)
    show.set_defaults(handler=_show)

    schema = verbs.add_parser("schema", help="JSON Schema of the station file, for an editor or another program")
    schema.set_defaults(handler=_schema)


def _check(args: argparse.Namespace) -> int:
    file, faults = survey_file(read_document(args.file), args.overrides)
    if file is not None:
        bundle = _open(file.bundle, "bundle", faults)
        gate = _open(file.gate, "gate", faults) if file.gate is not None else None
        faults += [fault for fault in check_file(file, bundle, gate) if not _told(fault, faults)]
    if faults:
        raise ConfigError("\n".join(f"{args.file}: {fault}" for fault in faults))
    print(f"{args.file}: sound")
    return 0


def _open(named: str, key: str, faults: list[str]) -> Bundle | None:
    try:
        return open_bundle(named)
    except BundleError as error:
        faults += [f"{key}: {line}" for line in str(error).splitlines()]
        return None


def _told(fault: str, faults: list[str]) -> bool:
    """Whether something was already said about the same key: what follows from a faulty value helps nobody."""
    key = fault.partition(":")[0]
    return any(told.partition(":")[0] == key for told in faults)


def _show(args: argparse.Namespace) -> int:
    file = load_file(args.file, args.overrides)
    document = _filled_in(file)
    for section in (document["sinks"]["mqtt"], *(each.get("source") for each in (document, *document.get("cameras", [])))):
        if section and section.get("password") is not None:
            section["password"] = "***"
    yaml.safe_dump(document, sys.stdout, sort_keys=False, allow_unicode=True)
    return 0


def _filled_in(file: StationFile) -> dict[str, Any]:
    """The file with every default written out; each camera with what it has of the station's keys."""
    document = file.model_dump(mode="json", exclude={"camera", "source", "cameras"} if file.cameras else {"cameras"})
    if file.cameras:
        told = [station.model_dump(mode="json") for station in stations_of(file)]
        document["cameras"] = [{key: each[key] for key in Camera.model_fields} for each in told]
    return document


def _schema(args: argparse.Namespace) -> int:
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **StationFile.model_json_schema()}
    print(json.dumps(schema, indent=2))
    return 0
