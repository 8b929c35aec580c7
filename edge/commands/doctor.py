"""`rust-edge doctor`: what this box has and lacks, and how fast a strip it can carry."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edge import diagnosis
from edge.commands.arguments import add_overrides
from edge.config import Outbox, SessionOptions, load_file
from edge.diagnosis import Finding, State
from edge.errors import RustEdgeError

if TYPE_CHECKING:
    from edge.commands.arguments import Subparsers

_SIGNS = {State.OK: "ok    ", State.ABSENT: "-     ", State.FAULT: "FAULT "}


def register(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "doctor",
        help="what this box has and lacks, and how fast a strip it can carry",
        description="What this box has and lacks, and how fast a strip it can carry. Exit code 1 if something needed is broken.",
    )
    parser.add_argument("-c", "--config", type=Path, metavar="STATION.yaml", help="take broker and outbox from a station file")
    parser.add_argument("--host", help="broker to try (default: the station's, or 127.0.0.1)")
    parser.add_argument("--port", type=int, help="its port (default: the station's, or 1883)")
    parser.add_argument("--bundle", default="steel-unet-int8", help="engine to measure with (default: steel-unet-int8)")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long to measure (default: 3)")
    parser.add_argument("--json", action="store_true", help="print the findings for machines")
    add_overrides(parser)
    parser.set_defaults(handler=_examine)


def _examine(args: argparse.Namespace) -> int:
    worst = State.OK
    told = []
    for finding in _findings(args):
        if finding.state is State.FAULT:
            worst = State.FAULT
        if args.json:
            told.append({"part": finding.part, "state": finding.state.value, "told": finding.told, "figures": finding.figures})
        else:
            print(f"{_SIGNS[finding.state]}{finding.part:24s} {finding.told}", flush=True)
    if args.json:
        print(json.dumps({"ok": worst is State.OK, "findings": told}, indent=2))
    return 1 if worst is State.FAULT else 0


def _findings(args: argparse.Namespace) -> Iterator[Finding]:
    config = load_file(args.config, args.overrides) if args.config else None
    session = config.session if config else SessionOptions()
    host, port = diagnosis.broker_of(config.sinks.mqtt if config else None)
    yield from diagnosis.software()
    yield from diagnosis.hardware()
    yield diagnosis.disk((config.outbox if config else Outbox()).path.parent)
    yield diagnosis.broker(args.host or host, args.port or port)
    yield from diagnosis.bundles(session)
    try:
        yield diagnosis.dense_speed(args.bundle, args.seconds, session)
    except RustEdgeError as error:
        yield Finding("speed", State.FAULT, f"not measured: {error}", {})
