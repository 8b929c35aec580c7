"""What the report says: facts, plots, tables and the summary's figures, from what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edge.manifest import Manifest
from edge.pages.page import Fact, Section, Value
from edge.pages.plots import Bars, Histogram, Plot, Series, Steps, short
from export.gate_quality import GateQuality
from export.halo import HaloMeasurement
from export.parity import HISTOGRAM_EDGES, Parity
from export.passes.streaming import StreamedModel
from export.quality import ClassifierQuality, SegmenterQuality
from export.report import Report
from export.sensitivity import Quantization

FLOAT = "FP32"
FINE_TUNED = "fine_tuned"
"""Among the methods by which ranges were found: trained with the weights."""

EPOCHS_SHOWN = 16
"""Of a fine-tuning, the last one among them."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What both kinds of report need.

    tile_flops: of one tile. parities: by what was compared. quantization: None unless INT8; max_drop: points it might lose.
    sizes: bytes of the engine by precision, the float one first. speeds: tiles per CPU-second by backend and precision.
    tuning_losses: of each epoch of fine-tuning, where there was one. sections: further tables, shown behind the others.
    """

    arch: str
    checkpoint: str
    calibration_tiles: int
    tile_flops: float
    parities: Mapping[str, Parity] = field(default_factory=dict)
    quantization: Quantization | None = None
    max_drop: float | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    speeds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    tuning_losses: tuple[float, ...] = ()
    sections: tuple[Section, ...] = ()


def segmenter_report(
    manifest: Manifest,
    measured: Measured,
    quality: SegmenterQuality,
    quality_float: SegmenterQuality,
    halos: HaloMeasurement | None,
    streamed: StreamedModel | None,
    refused: str | None,
    labelled: bool,
) -> Report:
    """Report of a segmenter.

    halos: None where they were not measured. streamed: None where it does not stream, and `refused` says why.
    labelled: quality was measured against given masks, not against the float network's own.
    """
    truth = "the given masks" if labelled else "the float network's own masks: nobody labelled any"
    iou, dice = quality.confusion.iou(), quality.confusion.dice()
    iou_float, dice_float = quality_float.confusion.iou(), quality_float.confusion.dice()
    images, pixels = quality.confusion.added, f"{quality.confusion.total:,}".replace(",", " ")
    sections = [
        Section(
            "Quality",
            f"One confusion matrix over {images} images ({pixels} pixels), against {truth}; "
            "class of the highest score, no thresholds.",
            ("class", "IoU", "Dice", "IoU float", "Dice float"),
            tuple((name, iou[name], dice[name], iou_float.get(name, math.nan), dice_float.get(name, math.nan)) for name in iou),
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
    ]
    if halos is not None:
        sections.append(
            Section(
                "Halo",
                f"Receptive radius {manifest.radius} px, stride {manifest.stride} px, measured on the graph. Share of "
                f"{halos.pixels} pixels of a mosaic strip whose class changes when crops have less halo than that.",
                ("halo", "changed"),
                tuple((share.halo, share.changed) for share in halos.shares),
                bar="changed",
            )
        )
    sections.append(_streaming_section(streamed, refused))
    per_class = _compared(
        "IoU by class",
        f"Against {truth}, over {images} images. Behind the bars: points gained or lost.",
        "intersection over union",
        tuple(iou),
        [iou_float.get(name, math.nan) for name in iou],
        list(iou.values()),
        manifest.precision,
    )
    quality_fact = Fact(
        "mean IoU" if labelled else "agreement with float",
        f"{100 * quality.confusion.mean_iou():.2f} %",
        f"{100 * quality.confusion.mean_iou_defects():.2f} % without background; {images} images",
    )
    return _report(manifest, measured, sections, per_class, quality_fact, quality, labelled)


def classifier_report(
    manifest: Manifest, measured: Measured, quality: ClassifierQuality, quality_float: ClassifierQuality, defect_px: int
) -> Report:
    """Report of a classifier. defect_px: from so many defect pixels a tile counted as defective, where masks said so."""
    engines = ((manifest.precision, quality), ("float", quality_float))
    figures: list[Value]
    rows = []
    for name, found in engines:
        figures = [name, found.figures.accuracy, found.figures.recall, found.figures.precision]
        if found.threshold is not None:
            figures += [found.threshold.score, found.threshold.recall, found.threshold.passed_clean]
        rows.append(tuple(figures))
    head: tuple[str, ...] = ("engine", "accuracy", "recall", "precision")
    gated = quality.threshold is not None and quality_float.threshold is not None
    counted = f"{quality.defective} defective and {quality.clean} clean tiles"
    if gated:
        head += ("threshold", "recall there", "clean tiles let through")
        counted += f"; where masks say which, a tile with at least {defect_px} defect pixels is defective"
    sections = [
        Section("Quality", f"{counted}. Accuracy, recall and precision by the most probable class.", head, tuple(rows)),
        Section(
            "Confusion",
            "Tiles by truth (rows) and by the most probable class.",
            ("truth", *manifest.classes),
            tuple((name, *quality.figures.confusion[index]) for index, name in enumerate(manifest.classes)),
        ),
    ]
    labels = ["accuracy", "recall", "precision"]
    before, after = (
        [found.figures.accuracy, found.figures.recall, found.figures.precision] for found in (quality_float, quality)
    )
    if quality.threshold is not None and quality_float.threshold is not None:
        labels += ["recall at threshold", "clean let through"]
        for values, threshold in ((before, quality_float.threshold), (after, quality.threshold)):
            values += [threshold.recall, threshold.passed_clean]
    compared = _compared(
        "Decisions",
        f"{counted}. Behind the bars: points gained or lost.",
        "share of tiles",
        tuple(labels),
        before,
        after,
        manifest.precision,
    )
    if quality.threshold is not None:
        remark = f"{100 * quality.threshold.passed_clean:.1f} % of clean tiles let through"
        fact = Fact("recall at the threshold", f"{100 * quality.threshold.recall:.2f} %", remark)
    else:
        fact = Fact("accuracy", f"{100 * quality.figures.accuracy:.2f} %", f"{quality.defective + quality.clean} tiles")
    return _report(manifest, measured, sections, compared, fact, None, True)


def gate_report(
    manifest: Manifest,
    measured: Measured,
    quality: GateQuality,
    quality_float: GateQuality,
    streamed: StreamedModel | None,
    refused: str | None,
    smallest_px: int,
) -> Report:
    """Report of a gate that scores cells.

    streamed: None where it does not stream, and `refused` says why. smallest_px: regions below count as no defects.
    """
    cell_px = (manifest.cell or 1) * manifest.input.reduce
    rows = [
        (
            name,
            steel,
            found.threshold.score,
            recall.regions,
            recall.recall,
            recall.covered,
            recall.clean_cells,
            recall.alarmed_clean,
        )
        for name, found in ((manifest.precision, quality), ("float", quality_float))
        for steel, recall in {"all": found.overall, **found.by_steel}.items()
    ]
    counted = f"{quality.overall.regions} regions of at least {smallest_px} px, {quality.overall.clean_cells} clean cells"
    sections = [
        Section(
            "Quality",
            f"Cells of {cell_px} x {cell_px} px; {counted}. A region is found where one of its cells is alarmed. Each engine "
            "has a threshold of its own, chosen by the share of the regions found, which it keeps on every kind of steel.",
            ("engine", "steel", "threshold", "regions", "found", "defect px in alarmed cells", "clean cells", "clean alarmed"),
            tuple(rows),
        ),
        Section(
            "Choice of the threshold",
            "What finding so many of the regions on every kind of steel costs in alarmed clean cells. Where regions are few, the "
            "highest shares hang on one or two of them.",
            ("recall", "threshold", *(f"clean alarmed, {name}" for name in quality.by_steel)),
            tuple(
                (share, next(iter(found.values())).threshold, *(recall.alarmed_clean for recall in found.values()))
                for share, found in quality.choices.items()
            ),
        ),
        _streaming_section(streamed, refused),
    ]
    names = ["all", *quality.by_steel]
    labels = [f"{what}, {name}" for name in names for what in ("regions found", "clean cells alarmed")]
    before, after = (
        [value for recall in (found.overall, *found.by_steel.values()) for value in (recall.recall, recall.alarmed_clean)]
        for found in (quality_float, quality)
    )
    compared = _compared(
        "Recall and alarms",
        f"{counted}; each engine at its own threshold. Behind the bars: points gained or lost.",
        "share",
        tuple(labels),
        before,
        after,
        manifest.precision,
    )
    fact = Fact(
        "regions found at the threshold",
        f"{100 * quality.threshold.recall:.2f} %",
        f"{100 * quality.threshold.passed_clean:.1f} % of clean cells alarmed",
    )
    return _report(manifest, measured, sections, compared, fact, None, True)


def refusal_report(name: str, tried: Quantization, max_drop: float, reason: str) -> Report:
    """Why a network did not become a bundle: what was tried, and what each try lost."""
    measured = Measured("", "", 0, 0.0, quantization=tried, max_drop=max_drop)
    rows = tuple((f"ranges: {method}", loss) for method, loss in tried.methods.items())
    rows += tuple((f"in float alone: {group}", loss) for group, loss in tried.sensitivity.items())
    facts = (Fact("points lost by INT8", f"{tried.loss:.2f}", f"{short(max_drop)} allowed: refused", "bad"),)
    return Report(
        f"{name}: refused",
        {"points lost by INT8": tried.loss, "points allowed": max_drop},
        (Section("What was tried", reason.splitlines()[0], ("tried", "points lost"), rows),),
        plots=tuple(_quantization_plots(measured)),
        facts=facts,
        about="INT8 loses more than allowed, whatever was tried. No bundle was written.",
    )


def _report(
    manifest: Manifest,
    measured: Measured,
    sections: Sequence[Section],
    compared: Plot,
    fact: Fact,
    segmenter: SegmenterQuality | None,
    labelled: bool,
) -> Report:
    return Report(
        manifest.name,
        _summary(manifest, measured),
        (*sections, *_common_sections(measured), *measured.sections),
        segmenter.worst if segmenter is not None and labelled else (),
        (compared, *_quantization_plots(measured), *_difference_plots(measured), *_cost_plots(measured)),
        (fact, *_facts(manifest, measured)),
        f"{manifest.kind.capitalize()} for {', '.join(manifest.classes)}; {measured.arch} in {manifest.precision.upper()}, "
        f"exported from {measured.checkpoint}.",
        manifest.classes,
    )


def _compared(
    title: str, note: str, unit: str, labels: tuple[str, ...], before: Sequence[float], after: Sequence[float], precision: str
) -> Bars:
    """Float against the result; of a float bundle, the result alone."""
    if precision == "fp32":
        return Bars(title, note.split(" Behind")[0], unit, labels, (Series("", tuple(after)),))
    changes = [100.0 * (new - old) for old, new in zip(before, after, strict=True)]
    return Bars(
        title,
        note,
        unit,
        labels,
        (Series(FLOAT, tuple(before)), Series(precision.upper(), tuple(after))),
        tuple(map(_signed, changes)),
    )


def _signed(points: float) -> str:
    if not math.isfinite(points):
        return ""
    return f"{points:+.2f}".replace("-", "−") if abs(points) >= 0.005 else "0.00"


def _quantization_plots(measured: Measured) -> list[Plot]:
    found = measured.quantization
    if found is None:
        return []
    plots: list[Plot] = []
    in_float: set[str] = set()
    if found.curve:
        names = [name for name, _ in found.curve]
        ranges = [loss for method, loss in found.methods.items() if method != FINE_TUNED]
        losses = (min(ranges, default=math.nan), *(loss for _, loss in found.curve))
        # the one that was taken is the first that has its loss; fine-tuning took none
        chosen = next((index for index, loss in enumerate(losses) if loss == found.loss and found.method != FINE_TUNED), None)
        in_float = set(names[:chosen]) if chosen else set()
        plots.append(
            Steps(
                "Loss against layer groups in float",
                "From top to bottom one group after the other goes back to float, the one that helps most first.",
                "points lost",
                ("all in INT8", *(f"+ {name}" for name in names)),
                losses,
                measured.max_drop,
                chosen,
            )
        )
    if found.sensitivity:
        plots.append(
            Bars(
                "Sensitivity by layer group",
                "What is lost with this group alone in float: the shorter, the more the group is to blame.",
                "points lost",
                tuple(found.sensitivity),
                (Series("", tuple(found.sensitivity.values())),),
                tuple("float" if name in in_float else "" for name in found.sensitivity),
            )
        )
    if measured.tuning_losses:
        epochs = len(measured.tuning_losses)
        shown = range((epochs - 1) % -(-epochs // EPOCHS_SHOWN), epochs, -(-epochs // EPOCHS_SHOWN))
        plots.append(
            Steps(
                "Quantization-aware fine-tuning",
                "How far the INT8 simulation is from the float network, mean over each epoch.",
                "divergence, nats",
                tuple(f"epoch {index + 1}" for index in shown),
                tuple(measured.tuning_losses[index] for index in shown),
            )
        )
    return plots


def _difference_plots(measured: Measured) -> list[Plot]:
    if not measured.parities:
        return []
    series = tuple(
        Series(name, tuple(count / max(1, sum(parity.histogram)) for count in parity.histogram))
        for name, parity in measured.parities.items()
    )
    return [
        Histogram(
            "Differences of scores",
            "Share of the scores that differ by so much of their spread: float rounding up to 10⁻⁵, integer steps above.",
            "difference, share of the scores' spread",
            HISTOGRAM_EDGES,
            series,
        )
    ]


def _cost_plots(measured: Measured) -> list[Plot]:
    plots: list[Plot] = []
    if measured.sizes:
        sizes = list(measured.sizes.values())
        series = tuple(Series(name, (size / 1e6,)) for name, size in measured.sizes.items())
        remarks = (f"÷{sizes[0] / sizes[-1]:.2g}",) if len(sizes) > 1 else ()
        plots.append(Bars("Size", "Of the engine for tiles.", "MB", ("model.onnx",), _named(series), remarks))
    precisions = list(dict.fromkeys(name for found in measured.speeds.values() for name in found))
    if precisions:
        series = tuple(
            Series(name, tuple(found.get(name, math.nan) for found in measured.speeds.values())) for name in precisions
        )
        plots.append(
            Bars(
                "Speed",
                "One thread, by processor time, engines in turn.",
                "tiles per CPU-second",
                tuple(measured.speeds),
                _named(series),
                tuple(_faster(found) for found in measured.speeds.values()),
            )
        )
    return plots


def _named(series: tuple[Series, ...]) -> tuple[Series, ...]:
    """What is alone needs no name."""
    return series if len(series) > 1 else (Series("", series[0].values),)


def _facts(manifest: Manifest, measured: Measured) -> list[Fact]:
    facts = []
    found = measured.quantization
    if found is not None:
        budget = "" if measured.max_drop is None else f"{short(measured.max_drop)} allowed; "
        layers = "1 layer" if len(found.float_layers) == 1 else f"{len(found.float_layers)} layers"
        kept = f"{layers} in float" if found.float_layers else "no layer put back to float"
        within = measured.max_drop is None or found.loss <= measured.max_drop
        facts.append(Fact("points lost by INT8", f"{found.loss:.2f}", budget + kept, "good" if within else "bad"))
    if measured.sizes:
        first, last = next(iter(measured.sizes.values())), list(measured.sizes.values())[-1]
        remark = f"{first / 1e6:.2f} MB in float" if len(measured.sizes) > 1 else ""
        facts.append(Fact("size", f"{last / 1e6:.2f} MB", remark))
    for backend, speeds in measured.speeds.items():
        values = list(speeds.values())
        faster = _faster(speeds)
        remark = f"tiles per CPU-second{f', {faster} of float' if faster else ''}"
        facts.append(Fact(f"speed in {backend}", short(values[-1]), remark))
    size = manifest.input
    per_tile = f"{measured.tile_flops / 1e9:.3g} GFLOP"
    facts.append(
        Fact("tile", f"{size.tile_height}×{size.tile_width}", f"{per_tile}, {manifest.parameters / 1e6:.2f} M parameters")
    )
    return facts


def _faster(speeds: Mapping[str, float]) -> str:
    values = list(speeds.values())
    return f"×{values[-1] / values[0]:.2g}" if len(values) > 1 and values[0] > 0 else ""


def _streaming_section(streamed: StreamedModel | None, refused: str | None) -> Section:
    head = ("operator", "node", "stride", "lag rows", "state rows")
    if streamed is None:
        return Section("Streaming", f"Runs on tiles alone: {refused or 'no streaming engine was made'}.", head, ())
    rows = tuple((row.operator, row.name, row.stride, row.lag, row.state_rows) for row in streamed.table)
    note = f"Scores trail the newest line by {streamed.lag_lines} lines; chunks are multiples of {streamed.stride} lines."
    return Section("Streaming", note, head, rows)


def _common_sections(measured: Measured) -> list[Section]:
    sections = []
    if measured.parities:
        sections.append(
            Section(
                "Agreement",
                "Differences of scores as shares of their spread; outliers: share of scores beyond 1 % of it; changed: share of "
                "pixels or tiles that get another class; IoU: mean over classes, of the one labelling with the other.",
                ("compared", "max difference", "mean difference", "outliers", "changed", "IoU"),
                tuple(
                    (
                        name,
                        parity.max_difference,
                        parity.mean_difference,
                        parity.outliers,
                        parity.changed,
                        parity.mean_agreement,
                    )
                    for name, parity in measured.parities.items()
                ),
            )
        )
    found = measured.quantization
    if found is not None:
        sections.append(
            Section(
                "Ranges",
                f"Points lost by how {measured.calibration_tiles} images give ranges; {found.method} is used. "
                f"Put back to float: {', '.join(found.float_layers) or 'nothing'}.",
                ("method", "points lost"),
                tuple(found.methods.items()),
            )
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
    if manifest.cell is not None:
        summary |= {"cell": manifest.cell, "receptive radius": manifest.radius, "halo": manifest.halo}
    if manifest.gate is not None:
        summary |= {
            "gate threshold": manifest.gate.score,
            "recall": manifest.gate.recall,
            "clean passed": manifest.gate.passed_clean,
        }
    if measured.quantization is not None:
        summary["points lost by INT8"] = measured.quantization.loss
    summary |= {f"bytes {name}": size for name, size in measured.sizes.items()}
    summary |= {
        f"tiles per CPU-second {backend} {name}": value
        for backend, found in measured.speeds.items()
        for name, value in found.items()
    }
    return summary | {name: value for name, value in manifest.quality.items() if name not in summary}
