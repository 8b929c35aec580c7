"""`rust-edge bench`: what this box carries with a bundle and a station file, measured, and what it means."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.commands.arguments import add_camera, add_overrides
from edge.config import StationConfig, parse_config
from edge.errors import ConfigError
from edge.station_document import read_document

if TYPE_CHECKING:
    from edge.bench.results import Part
    from edge.commands.arguments import Subparsers

SHIPPED_ORIGIN = "shipped bundles"
_LATENCY_MS = 200.0
"""Default budget: at 100 m/min a strip moves 33 cm meanwhile, little against the distance to a marker or a shear."""


def register(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "bench",
        help="what this box carries with this bundle and station file, measured, and what it means",
        description="Measure engines, the whole pipeline, latency to a subscriber, overload, memory and chunk heights on "
        "simulated steel of the station's width, and say what line this box carries. Takes about four minutes on two cores; "
        "an interrupt ends it with what was found until then.",
    )
    parser.add_argument(
        "-c",
        "--config",
        type=Path,
        metavar="STATION.yaml",
        help="its engines, rules, scale and width; its source and sinks are not used (default: shipped bundles at 4096 px)",
    )
    add_camera(parser)
    parser.add_argument("--quick", action="store_true", help="rough figures in less than a minute")
    parser.add_argument(
        "--only", metavar="PART,...", help="some parts alone: engines, pipeline, latency, overload, memory, chunks"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="the results for machines, and for --compare")
    parser.add_argument("--html", type=Path, metavar="FILE", help="the results as one page for a browser")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="ratios against an earlier run's --json")
    parser.add_argument(
        "--latency-ms",
        type=float,
        default=_LATENCY_MS,
        metavar="MS",
        help=f"budget that the chunk height is chosen for (default: {_LATENCY_MS:.0f})",
    )
    parser.add_argument(
        "--metres",
        type=float,
        nargs="+",
        default=[],
        metavar="M",
        help="memory over strips of these lengths, such as 100 10000, however long they take",
    )
    parser.add_argument("--box", type=Path, metavar="FILE", help="where the chunk height is kept for chunk_lines: auto")
    add_overrides(parser)
    parser.set_defaults(handler=_bench)


def _bench(args: argparse.Namespace) -> int:
    # here: what measures imports engines, and `--help` must not
    from edge.bench.comparison import compare, text_of_comparison
    from edge.bench.page import page_of
    from edge.bench.plan import QUICK, WHOLE, make_plan
    from edge.bench.progress import Progress
    from edge.bench.results import json_of, read_results
    from edge.bench.run import measure
    from edge.bench.table import text_of
    from edge.box import own_box_file, read_box
    from edge.cli import INTERRUPTED
    from edge.outputs.output_file import OutputFile

    parts = parts_of(args.only)
    if not 0 < args.latency_ms <= 1e6 or any(not 0 < metres <= 1e6 for metres in args.metres):
        raise ConfigError(
            f"--latency-ms {args.latency_ms:g} --metres {' '.join(f'{metres:g}' for metres in args.metres)}: "
            "expected more than 0, and at most 1000000"
        )
    earlier = read_results(args.compare) if args.compare else None
    config, origin = _station(args)
    budget = QUICK if args.quick else WHOLE
    if args.box and "chunks" in parts:
        # now rather than after minutes: what is there must be a box's file, and be writable
        read_box(args.box)
        OutputFile(args.box, "--box").discard()
    with ExitStack() as opened:
        output = opened.enter_context(OutputFile(args.json, "--json")) if args.json else None
        page = opened.enter_context(OutputFile(args.html, "--html")) if args.html else None
        progress = opened.enter_context(Progress(_expected_s(budget.parts, parts)))
        plan = make_plan(config, origin, budget, args.latency_ms, tuple(args.metres), args.box or own_box_file())
        results = measure(plan, parts, shlex.join(["rust-edge", *sys.argv[1:]]), progress)
        if output is not None:
            output.file.write(json_of(results))
        if page is not None:
            page.file.write(page_of(results).encode())
    print(text_of(results))
    if earlier is not None:
        print("\n" + text_of_comparison(compare(earlier, results), str(args.compare)))
    if not results.complete:
        return INTERRUPTED
    return 1 if results.failed else 0


def parts_of(only: str | None) -> tuple[Part, ...]:
    """The parts that `--only` names, in the order in which they are measured; all without it. Raises ConfigError."""
    from edge.bench.results import PARTS

    if only is None:
        return PARTS
    named = [name.strip() for name in only.split(",") if name.strip()]
    unknown = [name for name in named if name not in PARTS]
    if unknown or not named:
        raise ConfigError(f"--only: got {', '.join(unknown) or 'nothing'}; expected some of {', '.join(PARTS)}")
    return tuple(part for part in PARTS if part in named)


def _station(args: argparse.Namespace) -> tuple[StationConfig, str]:
    if args.config:
        return parse_config(read_document(args.config), str(args.config), args.overrides, camera=args.camera), str(args.config)
    if args.camera:
        raise ConfigError(f"--camera: got {args.camera}, and no station file; expected -c with one that lists it")
    return parse_config(shipped_station(), SHIPPED_ORIGIN, args.overrides), SHIPPED_ORIGIN


def shipped_station() -> dict[str, Any]:
    """The demonstration's station: a gate before a U-Net, 4096 px of steel with background at both sides."""
    from edge.commands.demo import LINE_RATE_HZ, WIDTH

    return {
        "source": {"kind": "simulated", "width": WIDTH, "line_rate_hz": LINE_RATE_HZ},
        "bundle": "steel-unet-int8",
        "gate": "steel-gate-int8",
        "mode": "cascade",
        "filters": {"strip_edges": {"background_below": 40}},
    }


def _expected_s(seconds: Mapping[Part, float], parts: tuple[Part, ...]) -> float:
    opening_s: dict[Part, float] = {"engines": 10.0, "pipeline": 6.0}
    return sum(seconds[part] + opening_s.get(part, 3.0) for part in parts)
