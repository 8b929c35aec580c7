"""Arguments that several commands share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]
    """What `register(subparsers)` of every command gets."""


def add_camera(parser: argparse.ArgumentParser) -> None:
    """`--camera NAME`, of a station that has several; lands in `args.camera`."""
    parser.add_argument("--camera", metavar="NAME", help="the one of the station's cameras, where it has several")


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """`--set key.path=value`, as often as wanted; lands in `args.overrides`."""
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY.PATH=VALUE",
        help="set a key of the station file, such as source.frame_lines=37 or cameras.0.queue_frames=8; may be repeated",
    )
