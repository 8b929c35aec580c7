"""`rust-edge bundles`: the shipped bundles and the ones given, what each is and its measured quality."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from edge.bundle import Bundle, open_bundle, shipped_bundles
from edge.errors import BundleError
from edge.manifest import GateThreshold, Manifest

if TYPE_CHECKING:
    from edge.commands.arguments import Subparsers

KILOBYTE = 1000


def register(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "bundles", help="shipped and given bundles, what each is and its measured quality", description=__doc__
    )
    parser.add_argument("bundles", nargs="*", metavar="BUNDLE", help="folders besides the shipped ones")
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.set_defaults(handler=_show)


def _show(args: argparse.Namespace) -> int:
    """Sound bundles are shown even where others are not; the faults of those are raised at the end."""
    found: list[tuple[str, Bundle]] = []
    faults: list[str] = []
    for name in [*shipped_bundles(), *args.bundles]:
        try:
            found.append((name, open_bundle(name)))
        except BundleError as error:
            faults.append(str(error))
    if args.json:
        print(json.dumps([_document(name, bundle) for name, bundle in found], indent=1))
    else:
        print("\n\n".join(_text(name, bundle) for name, bundle in found) or "no bundles: none is shipped, and none was given")
    if faults:
        raise BundleError("\n".join(faults))
    return 0


def _document(name: str, bundle: Bundle) -> dict[str, object]:
    manifest = bundle.manifest.model_dump(mode="json")
    return {"name": name, "path": str(bundle.path), "sha256": bundle.sha256, "bytes": _size(bundle.path), "manifest": manifest}


def _text(name: str, bundle: Bundle) -> str:
    manifest = bundle.manifest
    size = manifest.input
    lines = [
        f"{name}: {manifest.kind}, {manifest.precision}, {_size(bundle.path) / KILOBYTE:.0f} kB in {bundle.path}",
        f"  classes     {', '.join(manifest.classes)}",
        f"  input       {size.tile_height}x{size.tile_width} px"
        + (f", averaged over {size.reduce}x{size.reduce} px of the strip" if size.reduce > 1 else ""),
        f"  network     {manifest.parameters:,} parameters, {manifest.flops_per_pixel / 1e3:.1f} kFLOP per pixel",
    ]
    if manifest.kind == "segmenter":
        streaming = f"scores trail by {manifest.streaming.lag_lines} lines" if manifest.streaming else "does not stream"
        changed = [share.changed for share in manifest.halo_shares if share.halo == manifest.halo]
        told = f" (changes {changed[0]:.2g} of the pixels)" if changed else ""
        lines.append(
            f"  reach       radius {manifest.radius} px, stride {manifest.stride} px; cascade's halo {manifest.halo} px{told}"
        )
        lines.append(f"  streaming   {streaming}")
    if manifest.gate is not None:
        lines.append(f"  gate        from {manifest.gate.score:.6f} on lets {_let_through(manifest, manifest.gate)}")
    if manifest.float_layers:
        lines.append(f"  in float    {', '.join(manifest.float_layers)}")
    lines += [f"  {figure:<32} {value:.4f}" for figure, value in manifest.quality.items()]
    return "\n".join(lines)


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir() if file.is_file())


def _let_through(manifest: Manifest, gate: GateThreshold) -> str:
    if manifest.cell is None:
        return f"tiles through: {gate.recall:.2%} of the defective, {gate.passed_clean:.2%} of the clean ones"
    side, clean = manifest.cell * manifest.input.reduce, f"{gate.passed_clean:.2%} of the clean ones"
    return f"cells of {side} px through: of {gate.recall:.2%} of the defects at least one, {clean}"
