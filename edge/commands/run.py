"""`rust-edge run`: the daemon of a station."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from edge.commands.arguments import add_camera, add_overrides

if TYPE_CHECKING:
    from edge.commands.arguments import Subparsers
    from edge.config import StationConfig, StationFile
    from edge.daemon import Summary


def register(subparsers: Subparsers) -> None:
    """Add the command to `rust-edge`."""
    parser = subparsers.add_parser(
        "run",
        help="the daemon of a station: camera to events, until it is stopped",
        description="Inspect until the source ends, or SIGINT or SIGTERM closes the strip. Unsent events stay in the outbox. "
        "Of a station with several cameras each has a strip of its own; one that fails is begun again, and the others go on.",
    )
    parser.add_argument("-c", "--config", type=Path, required=True, metavar="STATION.yaml")
    parser.add_argument(
        "--strip-id",
        metavar="ID",
        help="name of the strip, of several cameras' ID-CAMERA; none: the unfinished one, or one made from camera and time",
    )
    add_camera(parser)
    parser.add_argument("-v", "--verbose", action="store_true", help="log what is done, not only what is wrong")
    add_overrides(parser)
    parser.set_defaults(handler=_run)


def _run(arguments: argparse.Namespace) -> int:
    from edge.config import load_file, station_of

    logging.basicConfig(
        level=logging.INFO if arguments.verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    file, origin = load_file(arguments.config, arguments.overrides), str(arguments.config)
    if len(file.cameras) > 1 and arguments.camera is None:
        return _run_cameras(file, origin, arguments.strip_id)
    return _run_camera(station_of(file, origin, arguments.camera), origin, arguments.strip_id)


def _run_camera(station: StationConfig, origin: str, strip_id: str | None) -> int:
    from edge.daemon import Daemon

    with Daemon(station, origin, strip_id) as daemon:
        _stop_by_signals(daemon.stop)
        summary = daemon.run()
    print(_told(summary))
    return 0


def _run_cameras(file: StationFile, origin: str, strip_id: str | None) -> int:
    from edge.cameras import Cameras

    with Cameras(file, origin, strip_id) as cameras:
        _stop_by_signals(cameras.stop)
        endings = cameras.run()
    for ending in endings:
        if ending.summary is not None:
            told = _told(ending.summary)
        elif ending.down is not None:
            told = f"down when it was stopped, its strip goes on with the next start: {ending.down}"
        else:
            told = f"off: {ending.failure}"
        print(f"camera {ending.camera}: {told}")
    return next((ending.failure.exit_code for ending in endings if ending.failure is not None), 0)


def _stop_by_signals(stop: Callable[[str], None]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda caught, _: stop(f"stopped by {signal.Signals(caught).name}"))


def _told(summary: Summary) -> str:
    coverage, fallback = summary.coverage, summary.fallback
    return (
        f"strip {summary.strip_id} {'closed before its end' if summary.interrupted else 'finished'}: {coverage.total} lines, "
        f"{coverage.inspected} inspected, {coverage.gated} gated, {coverage.lost} lost, {coverage.shed} shed"
        + (f"; {fallback}" if fallback.lines else "")
    )
