"""`rust-edge cameras`: what cameras there are, on every client that is installed here, and what a camera can be set to."""

from __future__ import annotations

import argparse
import importlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from edge.errors import ConfigError, SourceError

if TYPE_CHECKING:
    from edge.commands.arguments import Subparsers
    from edge.sources.camera import FoundCamera
    from edge.sources.features import Feature

FAMILIES = {"gige": "edge.sources.gige", "basler": "edge.sources.basler", "gentl": "edge.sources.gentl"}
"""Kinds of sources whose cameras can be found, and the module of each: `discover()` and `features_of(address)`.

`discover` raises SourceError where the library is missing, `features_of` also where no camera answers.
"""


def register(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = subparsers.add_parser("cameras", help="cameras that answer, and what one of them can be set to", description=__doc__)
    parser.add_argument("--features", metavar="ADDRESS", help="features and values of the camera at an address, as found before")
    parser.add_argument(
        "--kind",
        choices=sorted(FAMILIES),
        help="cameras of one kind of source alone; for --features: the address's (default: gige)",
    )
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.set_defaults(handler=_show)


def _show(args: argparse.Namespace) -> int:
    if args.features:
        features = _module(args.kind or "gige").features_of(args.features)
        print(json.dumps([asdict(each) for each in features], indent=1) if args.json else "\n".join(map(feature_text, features)))
        return 0
    found: dict[str, list[FoundCamera]] = {}
    missing: dict[str, str] = {}
    for kind in [args.kind] if args.kind else FAMILIES:
        try:
            found[kind] = _module(kind).discover()
        except SourceError as error:
            missing[kind] = str(error)
    if args.json:
        cameras = [{"kind": kind, **asdict(each)} for kind, there in found.items() for each in there]
        print(json.dumps({"cameras": cameras, "missing": missing}, indent=1))
    else:
        print("\n".join(_told(kind, there) for kind, there in found.items()) or "no client for any kind of camera is installed")
        for kind, why in missing.items():
            print(f"{kind}: {why}")
    return 0


def _module(kind: str) -> Any:
    if kind not in FAMILIES:
        raise ConfigError(f"--kind: got {kind}; expected {' or '.join(FAMILIES)}")
    return importlib.import_module(FAMILIES[kind])


def _told(kind: str, found: list[FoundCamera]) -> str:
    return "\n".join(f"{kind}: {camera_text(each)}" for each in found) or f"{kind}: no camera answers"


def camera_text(found: FoundCamera) -> str:
    """One line.

    >>> from edge.sources.camera import FoundCamera
    >>> camera_text(FoundCamera("aravis", "10.0.0.2", "Maker", "L2K", "77", width=2048, height=512, pixel_formats=("Mono8",)))
    '10.0.0.2: Maker L2K, serial 77, 2048 columns x 512 lines, Mono8 (by aravis)'
    """
    size = f", {found.width} columns x {found.height} lines" if found.width and found.height else ""
    name = f" named {found.name}" if found.name else ""
    formats = f", {' '.join(found.pixel_formats)}" if found.pixel_formats else ""
    problem = f"; {found.problem}" if found.problem else ""
    whose = " ".join(part for part in (found.vendor, found.model) if part)
    serial = f", serial {found.serial}" if found.serial else ""
    return f"{found.address}: {whose}{name}{serial}{size}{formats} (by {found.transport}){problem}"


def feature_text(feature: Feature) -> str:
    """One line: name, value, and what it takes.

    >>> from edge.sources.features import Feature
    >>> feature_text(Feature("Width", "integer", 2048, 16, 4096, 16))
    'Width = 2048  (integer, 16 to 4096 in steps of 16)'
    """
    takes = [feature.kind if feature.writable else f"{feature.kind}, read only"]
    if feature.least is not None and feature.most is not None and feature.writable:
        steps = f" in steps of {feature.step:g}" if feature.step and feature.step > 1 else ""
        takes.append(f"{feature.least:g} to {feature.most:g}{steps}")
    if feature.choices:
        takes.append(" ".join(feature.choices))
    value = feature.value if not isinstance(feature.value, bool) else str(feature.value).lower()
    return f"{feature.name} = {'' if value is None else value}  ({', '.join(takes)})"
