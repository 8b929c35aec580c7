"""`rust-edge evaluate`: the quality of a bundle on labelled images."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm import tqdm

from edge.bundle import Bundle, open_bundle
from edge.errors import ConfigError
from edge.evaluation import classifier_figures
from edge.labelled import ClassedImage, MaskedImage, classed_by_folder, classed_by_table, pair_with_masks
from edge.outputs.output_file import OutputFile
from edge.quality import evaluate_classifier, evaluate_segmenter
from edge.sessions.ort import OrtSession

if TYPE_CHECKING:
    from edge.commands.arguments import Subparsers


Labelled = TypeVar("Labelled")
FOLDERS = "folders"


def register(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "evaluate",
        help="quality of a bundle on labelled images: IoU and Dice, or accuracy and recall",
        description="Quality of a bundle on labelled images, matched to masks by name. Of a segmenter: IoU and Dice per class "
        "from one confusion matrix over all images, each image inspected as a strip of its own. Of a classifier: accuracy, "
        "recall, precision and confusion, from masks, from a table of labels or from folders named as its classes.",
    )
    parser.add_argument("--bundle", required=True, metavar="B", help="a shipped name or a path")
    parser.add_argument("--images", required=True, type=Path, metavar="DIR", help="images, in folders of any depth")
    labels = parser.add_mutually_exclusive_group()
    labels.add_argument("--masks", type=Path, metavar="DIR", help="masks of the same names: class index per pixel, 0 background")
    labels.add_argument(
        "--labels",
        metavar="FILE.csv|folders",
        help="of a classifier: a CSV file with the columns image and class, or folders named as the classes (default)",
    )
    parser.add_argument("--threads", type=int, default=0, help="threads of the engine (default: one a core)")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="the figures for machines, to a file or printed")
    parser.set_defaults(handler=_evaluate)


def _evaluate(args: argparse.Namespace) -> int:
    bundle = open_bundle(args.bundle)
    with ExitStack() as opened:
        file = opened.enter_context(OutputFile(Path(args.json), "--json")) if args.json not in (None, "-") else None
        figures = evaluate(bundle, args.images, args.masks, args.threads, args.labels or FOLDERS)
        document = json.dumps(figures, indent=2)
        if file:
            file.file.write(document.encode() + b"\n")
    print(document if args.json == "-" else in_words(figures))
    return 0


def evaluate(bundle: Bundle, images: Path, masks: Path | None, threads: int = 0, labels: str = FOLDERS) -> dict[str, Any]:
    """Figures of a bundle on labelled images, as `--json` prints them; null where a figure is undefined.

    labels: where the classes of whole images come from, if there are no masks: `folders`, or the path of a CSV file.
    Raises ConfigError, ImageError, SessionError.
    """
    manifest = bundle.manifest
    labelled: Sequence[MaskedImage | ClassedImage]
    if masks is not None:
        labelled = pairs = pair_with_masks(images, masks)
    elif manifest.kind == "segmenter":
        raise ConfigError(f"--masks: got none; {manifest.name} is a segmenter: expected a folder of masks")
    elif labels == FOLDERS:
        labelled = classed_by_folder(images, manifest.classes)
    else:
        labelled = classed_by_table(images, Path(labels), manifest.classes)
    with OrtSession(bundle.model_path, threads) as session:
        if manifest.kind == "segmenter":
            quality = evaluate_segmenter(session, bundle, _shown(pairs))
            confusion = quality.confusion
            figures: dict[str, Any] = {
                "mean_iou": confusion.mean_iou(),
                "mean_iou_defects": confusion.mean_iou_defects(),
                "iou": confusion.iou(),
                "dice": confusion.dice(),
                "defects": {name: dataclasses.asdict(count) for name, count in quality.defects.items()},
                "pixels": confusion.total,
            }
        else:
            confusion = evaluate_classifier(session, manifest, _shown(labelled))
            judged = "cells" if manifest.cell and masks is not None else "tiles"
            figures = {**dataclasses.asdict(classifier_figures(confusion)), judged: confusion.total}
    figures |= {"classes": list(manifest.classes), "images": len(labelled), "bundle": manifest.name}
    return _null_for_nan(figures)


def in_words(figures: dict[str, Any]) -> str:
    """The figures as a table."""
    title = f"{figures['bundle']} on {figures['images']} image(s)"
    if "iou" not in figures:
        rows = [f"{name:10s} {_percent(figures[name])}" for name in ("accuracy", "recall", "precision", "passed_clean")]
        table = ["confusion, rows are the truth: " + ", ".join(figures["classes"])]
        table += ["  ".join(f"{count:9d}" for count in row) for row in figures["confusion"]]
        judged = "cells" if "cells" in figures else "tiles"
        return "\n".join([f"{title}, {figures[judged]} {judged}", *rows, *table])
    rows = [f"{'class':16s} {'IoU':>8s} {'Dice':>8s} {'found':>8s} {'missed':>8s} {'false':>8s}"]
    for name in figures["classes"]:
        count = figures["defects"].get(name)
        counted = "".join(f" {count[key]:8d}" for key in ("found", "missed", "false_alarms")) if count else ""
        rows.append(f"{name:16s} {_percent(figures['iou'].get(name))} {_percent(figures['dice'].get(name))}{counted}")
    rows.append(f"mean IoU {_percent(figures['mean_iou'])}, of the defect classes {_percent(figures['mean_iou_defects'])}")
    return "\n".join([f"{title}, {figures['pixels']} pixels", *rows])


def _percent(share: float | None) -> str:
    return f"{'-':>8s}" if share is None else f"{share:8.2%}"


def _shown(labelled: Sequence[Labelled]) -> Iterator[Labelled]:
    """The same images, with a progress bar where somebody watches."""
    yield from tqdm(labelled, unit="image", disable=not sys.stderr.isatty(), leave=False)


def _null_for_nan(figures: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no nan: an undefined figure is null."""
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in figures.items()}
