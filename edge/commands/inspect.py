"""`rust-edge inspect`: images or folders as one strip through the pipeline of the daemon."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from edge import config as station_config
from edge.commands.arguments import add_camera, add_overrides
from edge.config import StationConfig, parse_config
from edge.engines import Engines
from edge.errors import ConfigError, SourceError
from edge.events import StripFinished
from edge.outputs.image_masks import StripImage
from edge.outputs.strip_outputs import OutputPaths, StripOutputs
from edge.pipeline import Findings, frames_from
from edge.sources.folder import FolderSource, images_of
from edge.sources.images import read_image_size
from edge.station_document import read_document

if TYPE_CHECKING:
    from edge.commands.arguments import Subparsers


def register(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "inspect",
        help="images or folders as one strip through the same pipeline; writes events, mask, overlay, tables",
        description="Inspect images (8 or 16 bit, grey or colour, PNG, JPEG, TIFF, BMP) or folders of them, in name order, "
        "as one strip, through exactly the pipeline that the daemon runs.",
    )
    parser.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help="an image, or a folder of images")
    parser.add_argument(
        "-c", "--config", type=Path, metavar="STATION.yaml", help="a station's rules and engines; its sinks are not used"
    )
    add_camera(parser)
    parser.add_argument("--bundle", metavar="B", help="segmentation bundle: a shipped name or a path (default: the station's)")
    parser.add_argument("--gate", metavar="G", help="gate bundle: a shipped name or a path; makes it a cascade")
    parser.add_argument(
        "--events", type=Path, metavar="F.jsonl", help="the events a station would publish, one CloudEvent a line"
    )
    parser.add_argument("--mask", type=Path, metavar="F.png", help="class index of every pixel of the strip, 0 background")
    parser.add_argument("--overlay", type=Path, metavar="F.png", help="the strip with its defects tinted, framed and labelled")
    parser.add_argument("--csv", type=Path, metavar="F.csv", help="a row for each defect")
    parser.add_argument(
        "--rle", type=Path, metavar="F.csv", help="ImageId,EncodedPixels,ClassId: column-major runs by image and class"
    )
    parser.add_argument(
        "--contours",
        type=Path,
        metavar="F.csv|F.xlsx",
        help="size and area of every contour by image and class, and the share of each class: two sheets, or F.csv and "
        "F.fractions.csv beside it",
    )
    parser.add_argument("--strip-id", metavar="ID", help="default: the name of the first input")
    parser.add_argument("--json", action="store_true", help="print the summary for machines")
    add_overrides(parser)
    parser.set_defaults(handler=_inspect)


def _inspect(args: argparse.Namespace) -> int:
    paths = OutputPaths(args.events, args.mask, args.overlay, args.csv, args.rle, args.contours)
    images = find_inputs(args.inputs, paths)
    origin = str(args.config or "command line")
    document, overrides = of_one_camera(read_document(args.config) if args.config else {}, origin, args.camera, args.overrides)
    config = inspection_config(document, origin, images, args.bundle, args.gate, overrides)
    strip_id = args.strip_id or strip_id_of(args.inputs[0])
    begun = time.perf_counter()
    assert isinstance(config.source, station_config.FolderSource)
    with Engines(config, origin) as engines, FolderSource(config.source) as source:
        extents = strip_images(images)
        summary: dict[str, Any] = {"strip_id": strip_id, "images": len(extents), "width_px": source.width}
        with StripOutputs(paths, source.width, engines.bundle.manifest.classes, extents) as outputs:
            pipeline = engines.pipeline(source.width, strip_id)
            total = sum(extent.lines for extent in extents)
            for findings in _shown(frames_from(source.frames(), pipeline), total):
                for rows in findings.rows:
                    outputs.on_rows(rows, pipeline.judgement.lines_of(rows))
                outputs.on_events(findings.events)
                summary |= _summary_of(findings)
            notes = outputs.notes()
    seconds = time.perf_counter() - begun
    summary |= {"seconds": round(seconds, 3), "megapixels_per_s": round(total * source.width / 1e6 / seconds, 3)}
    summary["outputs"] = {argument.lstrip("-"): str(path) for argument, path in paths.named().items()}
    for note in notes:
        print(note, file=sys.stderr)
    print(json.dumps(summary, indent=2) if args.json else _in_words(summary))
    return 0


def find_inputs(inputs: Sequence[Path], outputs: OutputPaths) -> list[Path]:
    """Images in strip order: by name, as the folder source has it.

    A file that this run writes is never an input of it, so that a second run gives the same. Raises ConfigError, SourceError.
    """
    written = {path.resolve(): argument for argument, path in outputs.named().items()}
    for path in inputs:
        if path.resolve() in written:
            raise ConfigError(f"{written[path.resolve()]}: got {path}, which is to be inspected; expected another file")
    images = [image for image in images_of(list(inputs)) if image.resolve() not in written]
    if not images:
        raise SourceError(f"{', '.join(map(str, inputs))}: holds no image but what this run writes; expected some to inspect")
    return images


def of_one_camera(
    document: dict[str, Any], origin: str, camera: str | None, overrides: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """A station's document with one of its cameras alone, and the overrides that are not yet in it.

    Raises ConfigError where there is no such camera, or where it is not said which.
    """
    if camera and not document:
        raise ConfigError(f"--camera: got {camera}, and no station file; expected -c with one that lists it")
    mine = [override for override in overrides if override.startswith("cameras.")]
    if not camera and not mine and "cameras" not in document:
        return document, list(overrides)
    kept = {key: value for key, value in document.items() if key not in ("sinks", "outbox")}
    config = parse_config(kept, origin, mine, camera=camera)
    return config.model_dump(exclude_unset=True), [override for override in overrides if override not in mine]


def inspection_config(
    document: dict[str, Any], origin: str, images: Sequence[Path], bundle: str | None, gate: str | None, overrides: Sequence[str]
) -> StationConfig:
    """A station's document (or an empty one) as an inspection wants it: these images, as fast as it goes, no sinks.

    bundle, gate: from the command line, before the station's. overrides: `--set`, on top of everything. Raises ConfigError.
    """
    station_source = document.get("source")
    frame_lines = station_source.get("frame_lines") if isinstance(station_source, dict) else None
    source: dict[str, Any] = {"kind": "folder", "path": [str(image) for image in images]}
    if frame_lines is not None:
        source["frame_lines"] = frame_lines
    ours: dict[str, Any] = {"source": source}
    if bundle:
        ours["bundle"] = bundle
    if gate:
        ours |= {"gate": gate} if document.get("mode") == "tiles" else {"gate": gate, "mode": "cascade"}
    kept = {key: value for key, value in document.items() if key not in ("sinks", "outbox")}
    config = parse_config(kept | ours, origin, overrides)
    if not isinstance(config.source, station_config.FolderSource) or config.source.loop:
        raise ConfigError(f"{origin}: source: got one without an end; expected the images that are to be inspected")
    return config


def strip_images(images: Sequence[Path]) -> list[StripImage]:
    """Names and heights, read from the files' headers. Names without folders where they are unique. Raises ImageError."""
    names = [image.name for image in images]
    if len(set(names)) < len(names):
        names = [str(image) for image in images]
    return [StripImage(name, read_image_size(image).lines) for name, image in zip(names, images, strict=True)]


def strip_id_of(path: Path) -> str:
    """A strip id made from a file's or folder's name: what ids allow, the rest as underscores."""
    name = path.resolve().stem if not path.is_dir() else path.resolve().name
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)[:64].lstrip("._-") or "strip"


def _shown(findings: Iterator[Findings], total_lines: int) -> Iterator[Findings]:
    """The same findings, with a progress bar where somebody watches."""
    with tqdm(total=total_lines, unit="line", disable=not sys.stderr.isatty(), file=sys.stderr, leave=False) as bar:
        for found in findings:
            bar.update(sum(len(rows.mask) for rows in found.rows))
            yield found


def _summary_of(findings: Findings) -> dict[str, Any]:
    """The strip's summary, once it has come."""
    for event in findings.events:
        if isinstance(event, StripFinished):
            told = event.data.model_dump(mode="json", include=set(_TOLD))
            return {key: told[key] for key in _TOLD}
    return {}


_TOLD = ("lines", "length_mm", "defects", "area_mm2", "defective_area_fraction", "coverage", "rejected", "lens_alerts")


def _in_words(summary: dict[str, Any]) -> str:
    coverage = summary["coverage"]
    defects = summary["defects"]
    lines = [
        f"{summary['strip_id']}: {summary['images']} image(s), {summary['lines']} lines of {summary['width_px']} px, "
        f"{summary['length_mm'] / 1000:.2f} m",
        f"defects: {sum(defects.values())}"
        + "".join(f", {count} {name} ({summary['area_mm2'].get(name, 0):.1f} mm²)" for name, count in sorted(defects.items())),
        f"rejected: {', '.join(f'{count} {reason}' for reason, count in sorted(summary['rejected'].items())) or 'none'}",
        f"coverage: {coverage['inspected']} lines inspected, {coverage['gated']} by the gate alone, "
        f"{coverage['lost']} lost, {coverage['shed']} shed",
        f"time: {summary['seconds']:.1f} s, {summary['megapixels_per_s']:.2f} MPix/s",
    ]
    lines += [f"{argument}: {path}" for argument, path in summary["outputs"].items()]
    return "\n".join(lines)
