"""`rust-edge run`: the daemon of a station."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edge.commands.arguments import add_overrides

if TYPE_CHECKING:
    from edge.commands.arguments import Subparsers


def register(subparsers: Subparsers) -> None:
    """Add the command to `rust-edge`."""
    parser = subparsers.add_parser(
        "run",
        help="the daemon of a station: camera to events, until it is stopped",
        description="Inspect until the source ends, or SIGINT or SIGTERM closes the strip. Unsent events stay in the outbox.",
    )
    parser.add_argument("-c", "--config", type=Path, required=True, metavar="STATION.yaml")
    parser.add_argument("--strip-id", help="name of the strip; none: the unfinished one, or one made from camera and time")
    parser.add_argument("-v", "--verbose", action="store_true", help="log what is done, not only what is wrong")
    add_overrides(parser)
    parser.set_defaults(handler=_run)


def _run(arguments: argparse.Namespace) -> int:
    from edge.config import load_config
    from edge.daemon import Daemon

    logging.basicConfig(
        level=logging.INFO if arguments.verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    config = load_config(arguments.config, arguments.overrides)
    with Daemon(config, str(arguments.config), arguments.strip_id) as daemon:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda caught, _: daemon.stop(f"stopped by {signal.Signals(caught).name}"))
        summary = daemon.run()
    coverage = summary.coverage
    print(
        f"strip {summary.strip_id} {'closed before its end' if summary.interrupted else 'finished'}: {coverage.total} lines, "
        f"{coverage.inspected} inspected, {coverage.gated} gated, {coverage.lost} lost, {coverage.shed} shed"
    )
    return 0
