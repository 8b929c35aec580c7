"""`rust-edge calibrate`: what a camera's sensor and lens do to the light, measured: flat field, noise, millimetres a pixel."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from calibration.measurements import Measured
    from edge.commands.arguments import Subparsers

DEFAULT_LINES = 1000
DEFAULT_LEVELS = 9
"""Of light, for noise. The standard wants 50; 9 tell K to a percent where each has a thousand lines of some thousand columns."""


def register(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "calibrate",
        help="flat field, noise and scale of a camera, from frames of known scenes",
        description="Radiometric calibration, and millimetres per pixel: from recorded images (8 or 16 bit), or from the camera "
        "of a station, which asks for each scene in turn.",
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    _register_flat_field(verbs)
    _register_noise(verbs)
    _register_scale(verbs)


def _register_flat_field(verbs: Subparsers) -> None:
    parser = verbs.add_parser(
        "flat-field",
        help="dark signal and gain per column; dead and hot columns",
        description="From frames with the lens covered, and frames of an evenly lit target that moves.",
    )
    _add_station(parser)
    parser.add_argument("--dark", type=Path, nargs="+", metavar="PATH", help="images or folders: the lens covered")
    parser.add_argument("--bright", type=Path, nargs="+", metavar="PATH", help="images or folders: the even target, moving")
    parser.add_argument("--level", type=float, metavar="GREY", help="of the corrected target (default: the median column's)")
    parser.add_argument("--camera-name", metavar="NAME", help="for the file (default: the station's camera)")
    parser.add_argument("--exposure-us", type=float, nargs=2, metavar=("LOW", "HIGH"), help="exposures that it holds for")
    parser.add_argument("--temperature-c", type=float, nargs=2, metavar=("LOW", "HIGH"), help="temperatures that it holds for")
    parser.add_argument("--line-rate-hz", type=float, metavar="HZ", help="for the file (default: the station's)")
    parser.add_argument("--analogue-gain", metavar="TEXT", help="the camera's setting, for the file")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="the flat field: the station's flat_field")
    _add_report(parser)
    parser.set_defaults(handler=_handler("flat_field"))


def _register_noise(verbs: Subparsers) -> None:
    parser = verbs.add_parser(
        "noise",
        help="noise, system gain, DSNU, PRNU, linearity by EMVA 1288",
        description="From frames with the lens covered, and frames of an evenly lit target at several levels of light.",
    )
    _add_station(parser)
    parser.add_argument("--dark", type=Path, nargs="+", metavar="PATH", help="images or folders: the lens covered")
    parser.add_argument("--bright", type=Path, nargs="+", metavar="PATH", help="an image or a folder for each level of light")
    parser.add_argument(
        "--exposures", type=float, nargs="+", metavar="T", help="of each level, in any unit, for linearity (default: none)"
    )
    parser.add_argument(
        "--levels", type=int, default=DEFAULT_LEVELS, metavar="N", help=f"of light, from a station (default: {DEFAULT_LEVELS})"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="the figures")
    _add_report(parser)
    parser.set_defaults(handler=_handler("noise"))


def _register_scale(verbs: Subparsers) -> None:
    parser = verbs.add_parser(
        "scale",
        help="millimetres per column and per line, distortion along the line",
        description="From frames of bars along the motion (across the line), of bars across the motion, or encoder counts.",
    )
    _add_station(parser)
    parser.add_argument("--across", type=Path, nargs="+", metavar="PATH", help="images or folders: bars along the motion")
    parser.add_argument("--along", type=Path, nargs="+", metavar="PATH", help="images or folders: bars across the motion")
    parser.add_argument("--pitch-mm", type=float, metavar="MM", help="from one edge of a bar to the next")
    parser.add_argument("--pitch-along-mm", type=float, metavar="MM", help="of the bars across the motion (default: --pitch-mm)")
    parser.add_argument("--encoder", type=Path, metavar="FILE", help="the encoder's count at each line, one a row")
    parser.add_argument("--mm-per-count", type=float, metavar="MM", help="of the encoder")
    parser.add_argument("--mm-per-line", type=float, metavar="MM", help="where it is known: tells a target that is askew")
    parser.add_argument("--mm-per-column", type=float, metavar="MM", help="the same of columns")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="the figures")
    _add_report(parser)
    parser.set_defaults(handler=_handler("scale"))


def _add_station(parser: argparse.ArgumentParser) -> None:
    from edge.commands.arguments import add_camera, add_overrides

    parser.add_argument("-c", "--config", type=Path, metavar="STATION.yaml", help="take the frames from this station's source")
    parser.add_argument(
        "--lines", type=int, default=DEFAULT_LINES, metavar="N", help=f"of each scene, from a station (default: {DEFAULT_LINES})"
    )
    add_camera(parser)
    add_overrides(parser)


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--html", type=Path, metavar="FILE", help="a report with plots")
    parser.add_argument("--json", action="store_true", help="print the figures for machines")


def _handler(verb: str) -> Callable[[argparse.Namespace], int]:
    def run(args: argparse.Namespace) -> int:
        # here: it imports what reads images, and `--help` need not wait for that
        from calibration import measurements

        measure: Callable[[argparse.Namespace], Measured] = {
            "flat_field": measurements.flat_field,
            "noise": measurements.noise,
            "scale": measurements.scale,
        }[verb]
        return _write(args, measure)

    return run


def _write(args: argparse.Namespace, measure: Callable[[argparse.Namespace], Measured]) -> int:
    """Both files or none; that they can be written is found out before the camera is asked."""
    from calibration.page import page_of
    from edge.outputs.output_file import OutputFile

    with ExitStack() as opened:
        out = opened.enter_context(OutputFile(args.out, "--out")) if args.out else None
        page = opened.enter_context(OutputFile(args.html, "--html")) if args.html else None
        measured = measure(args)
        if out is not None:
            out.file.write(measured.content)
        if page is not None:
            page.file.write(page_of(measured.report).encode())
    if args.json:
        print(json.dumps(_finite(measured.figures), indent=2))
    else:
        print("\n".join(measured.words))
    written = [str(path) for path in (args.out, args.html) if path]
    if written:
        print(f"written: {', '.join(written)}", file=sys.stderr)
    return 0


def _finite(figures: dict[str, Any]) -> dict[str, Any]:
    return {key: None if value != value else value for key, value in figures.items()}
