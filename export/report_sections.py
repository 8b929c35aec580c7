"""What the report says: the summary's figures and the tables, from what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edge.manifest import Manifest
from export.halo import HaloMeasurement
from export.parity import Parity
from export.passes.streaming import StreamedModel
from export.quality import GateQuality, SegmenterQuality
from export.report import Report, Section, Value
from export.sensitivity import Quantization


@dataclass(frozen=True, slots=True)
class Measured:
    """What both kinds of report need. parities: by what was compared; quantization: None for a float bundle."""

    arch: str
    checkpoint: str
    calibration_tiles: int
    tile_flops: float
    parities: Mapping[str, Parity] = field(default_factory=dict)
    quantization: Quantization | None = None


def segmenter_report(
    manifest: Manifest,
    measured: Measured,
    quality: SegmenterQuality,
    quality_float: SegmenterQuality,
    halos: HaloMeasurement,
    streamed: StreamedModel | None,
    labelled: bool,
) -> Report:
    """Report of a segmenter. labelled: quality was measured against given masks, not against the float network's own."""
    truth = "the given masks" if labelled else "the float network's own masks: nobody labelled any"
    iou, dice = quality.confusion.iou(), quality.confusion.dice()
    iou_float, dice_float = quality_float.confusion.iou(), quality_float.confusion.dice()
    sections = [
        Section(
            "Quality",
            f"One confusion matrix over {quality.confusion.added} images ({quality.confusion.total} pixels), against {truth}; "
            "class of the highest score, no thresholds.",
            ("class", "IoU", "Dice", "IoU float", "Dice float"),
            tuple((name, iou[name], dice[name], iou_float.get(name, 0.0), dice_float.get(name, 0.0)) for name in iou),
        ),
        Section(
            "Thresholds",
            "low: where the class's IoU is highest. high: the peak that 99 % of the defects found without thresholds reach. "
            "A class that the images do not hold has none measured.",
            ("class", "low", "high", "IoU at low", "IoU at 0", "defects found", "kept", "false regions", "kept falsely"),
            tuple(
                (
                    name,
                    chosen.threshold.low,
                    chosen.threshold.high,
                    chosen.iou,
                    chosen.iou_at_zero,
                    chosen.defects,
                    chosen.kept,
                    chosen.false_regions,
                    chosen.false_kept,
                )
                for name, chosen in quality.thresholds.items()
            ),
        ),
        Section(
            "Halo",
            f"Receptive radius {manifest.radius} px, stride {manifest.stride} px, measured on the graph. Share of "
            f"{halos.pixels} pixels of a mosaic strip whose class changes when crops have less halo than that.",
            ("halo", "changed"),
            tuple((share.halo, share.changed) for share in halos.shares),
            bar="changed",
        ),
    ]
    if streamed is not None:
        rows = tuple((row.operator, row.name, row.stride, row.lag, row.state_rows) for row in streamed.table)
        note = f"Scores trail the newest line by {streamed.lag_lines} lines; chunks are multiples of {streamed.stride} lines."
        sections.append(Section("Streaming", note, ("operator", "node", "stride", "lag rows", "state rows"), rows))
    sections += _common_sections(measured)
    return Report(manifest.name, _summary(manifest, measured), tuple(sections), quality.worst if labelled else ())


def gate_report(
    manifest: Manifest, measured: Measured, quality: GateQuality, quality_float: GateQuality, defect_px: int
) -> Report:
    """Report of a gate."""
    rows = tuple(
        (
            name,
            found.figures.accuracy,
            found.figures.recall,
            found.figures.precision,
            found.threshold.score,
            found.threshold.recall,
            found.threshold.passed_clean,
        )
        for name, found in ((manifest.precision, quality), ("float", quality_float))
    )
    counts = quality.figures.confusion
    sections = [
        Section(
            "Quality",
            f"{quality.defective} defective and {quality.clean} clean tiles; a tile with at least {defect_px} defect pixels is "
            "defective. Accuracy, recall and precision at an even chance; the threshold at the stated recall.",
            ("engine", "accuracy", "recall", "precision", "threshold", "recall there", "clean tiles let through"),
            rows,
        ),
        Section(
            "Confusion",
            "Tiles by truth (rows) and decision at an even chance.",
            ("truth", *manifest.classes),
            tuple((name, *counts[index]) for index, name in enumerate(manifest.classes)),
        ),
    ]
    return Report(manifest.name, _summary(manifest, measured), (*sections, *_common_sections(measured)))


def _common_sections(measured: Measured) -> list[Section]:
    sections = [
        Section(
            "Agreement",
            "Differences of scores as shares of their spread; changed: share of pixels or tiles that get another class.",
            ("compared", "max difference", "mean difference", "changed"),
            tuple(
                (name, parity.max_difference, parity.mean_difference, parity.changed)
                for name, parity in measured.parities.items()
            ),
        )
    ]
    found = measured.quantization
    if found is not None:
        sections.append(
            Section(
                "Ranges",
                f"Points lost by how {measured.calibration_tiles} images give ranges; {found.method.name.lower()} is used.",
                ("method", "points lost"),
                tuple(found.methods.items()),
            )
        )
    if found is not None and found.sensitivity:
        note = "Points lost with one layer group alone in float; in float in the end: " + (
            ", ".join(found.float_layers) or "none"
        )
        sections.append(
            Section("Sensitivity", note, ("group", "points lost"), tuple(found.sensitivity.items()), bar="points lost")
        )
    return sections


def _summary(manifest: Manifest, measured: Measured) -> dict[str, Value]:
    summary: dict[str, Value] = {
        "architecture": measured.arch,
        "checkpoint": measured.checkpoint,
        "precision": manifest.precision,
        "classes": ", ".join(manifest.classes),
        "tile": f"{manifest.input.tile_height}x{manifest.input.tile_width}, 1/{manifest.input.reduce} of the strip's scale",
        "parameters": manifest.parameters,
        "GFLOP per tile": measured.tile_flops / 1e9,
        "stride": manifest.stride,
    }
    if manifest.kind == "segmenter":
        summary |= {"receptive radius": manifest.radius, "halo of the cascade": manifest.halo}
    if manifest.gate is not None:
        summary |= {
            "gate threshold": manifest.gate.score,
            "recall": manifest.gate.recall,
            "clean passed": manifest.gate.passed_clean,
        }
    if measured.quantization is not None:
        summary["points lost by INT8"] = measured.quantization.loss
    return summary | {name: value for name, value in manifest.quality.items() if name not in summary}
