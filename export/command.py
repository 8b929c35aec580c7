"""`rust-edge export`: a trained checkpoint to a verified, quantized, self-describing bundle."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge.commands.arguments import Subparsers


def register(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = subparsers.add_parser("export", help="a trained checkpoint to a verified bundle", description=__doc__)
    parser.add_argument(
        "checkpoint", type=Path, nargs="?", metavar="CHECKPOINT", help="PyTorch state dict, or a dict that holds one"
    )
    parser.add_argument("--arch", metavar="NAME", help="architecture of the checkpoint (see --list)")
    parser.add_argument("--list", action="store_true", help="name the architectures with what they expect, and end")
    parser.add_argument("--calibration", type=Path, metavar="DIR", help="representative images, defects among them")
    parser.add_argument(
        "--masks", type=Path, metavar="DIR", help="masks of the same names, class index per pixel: what quality is measured on"
    )
    parser.add_argument("--classes", metavar="A,B,...", help="class names in index order; none: the architecture's")
    parser.add_argument("--precision", choices=("fp32", "int8"), default="fp32", help="default: %(default)s")
    parser.add_argument(
        "--max-drop",
        type=float,
        default=0.5,
        metavar="POINTS",
        help="mean IoU (a gate: accuracy) that INT8 may lose; default: %(default)s",
    )
    parser.add_argument(
        "--recall", type=float, default=0.999, help="share of defective tiles that a gate lets through; default: %(default)s"
    )
    parser.add_argument(
        "--defect-px", type=int, default=16, help="a gate's tile is defective from so many defect pixels on; default: %(default)s"
    )
    parser.add_argument("--threads", type=int, default=0, help="threads of one inference; default: one per core")
    parser.add_argument("--out", type=Path, metavar="BUNDLE", help="folder to make")
    parser.add_argument("--force", action="store_true", help="replace a bundle that stands there")
    parser.add_argument("--explain", action="store_true", help="print how the network streams: operator, stride, lag, state")
    parser.add_argument("--json", action="store_true", help="print the report for machines")
    parser.set_defaults(handler=_export)


def _export(args: argparse.Namespace) -> int:
    # torch takes seconds to import: only once this command really runs
    from edge.errors import ConfigError
    from export.bundle import Existing
    from export.checkpoints import read_checkpoint
    from export.exporter import ExportOptions, export_bundle
    from export.networks import find_architecture
    from export.passes.streaming import format_table
    from export.report import format_text, render_json
    from export.samples import read_folder

    if args.list:
        return _list(args.json)
    missing = [name for name in ("checkpoint", "arch", "calibration", "out") if getattr(args, name) is None]
    if missing:
        flags = ", ".join(name.upper() if name == "checkpoint" else f"--{name}" for name in missing)
        raise ConfigError(f"export: got no {flags}; expected CHECKPOINT --arch NAME --calibration DIR --out BUNDLE")
    architecture = find_architecture(args.arch)
    classes = tuple(name.strip() for name in args.classes.split(",")) if args.classes else None
    options = ExportOptions(
        precision=args.precision,
        classes=classes,
        max_drop=args.max_drop,
        recall=args.recall,
        defect_px=args.defect_px,
        threads=args.threads,
        existing=Existing.REPLACE if args.force else Existing.KEEP,
    )
    checkpoint = read_checkpoint(args.checkpoint)
    # any value above 0 is a defect to a gate, so the masks of any segmenter serve it
    mask_classes = 256 if architecture.kind == "classifier" else len(classes or architecture.classes)
    data = read_folder(args.calibration, args.masks, mask_classes)
    exported = export_bundle(checkpoint, architecture, data, args.out, options)
    if args.json:
        print(render_json(exported.report), end="")
        return 0
    if args.explain:
        print(
            format_table(exported.streamed) if exported.streamed else "the network does not stream: it looks at tiles whole",
            end="\n\n",
        )
    print(format_text(exported.report))
    path = args.out if len(args.out.parts) > 1 else f"./{args.out}"
    print(
        f"\nwritten: {path}; in a browser: {path}/report.html; use it: --{'gate' if architecture.reduce > 1 else 'bundle'} {path}"
    )
    return 0


def _list(as_json: bool) -> int:
    from export.networks import ARCHITECTURES

    if as_json:
        listed = [
            {"name": a.name, "kind": a.kind, "classes": a.classes, "summary": a.summary, "stride": a.stride, "reduce": a.reduce}
            for a in ARCHITECTURES.values()
        ]
        print(json.dumps(listed, indent=1))
        return 0
    for architecture in ARCHITECTURES.values():
        print(
            f"{architecture.name:<12} {architecture.kind:<11} {architecture.summary}; classes {', '.join(architecture.classes)}"
        )
    return 0
