"""What the result is against the float engine: scores, defects on strips, batches, runtimes, size and speed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from edge.errors import SessionError
from edge.manifest import Manifest
from edge.pages.page import Section
from edge.sessions import Batch, Session
from edge.sessions.ort import OrtSession
from export.cost import count_flops
from export.defect_comparison import FLIPPED, compare_defects, inspection_of, strips_of
from export.job import COMPARED, Job
from export.report_sections import FLOAT, Measured
from export.samples import Image
from export.sensitivity import Quantization
from export.speed import tiles_per_cpu_second
from export.verification import compare_verdicts, verify_batches, verify_runtimes

BATCHED = 5
"""Tiles that are put into batches of several sizes, to see that none depends on the others."""

ROUNDING = 1e-4
"""Of the scores' own unit: what a float kernel may add up otherwise for another batch; integer kernels do not."""

FLIPPED_VERDICTS = 0.05
"""Share of tiles that a classifier may decide otherwise: those that it is in two minds about flip either way, and what that
costs in recall or accuracy has its own budget. More than this is another network."""

SPEED_BATCH = 2


def measure_result(
    job: Job,
    manifest: Manifest,
    engine: onnx.ModelProto,
    float_model: onnx.ModelProto,
    quantization: Quantization | None,
    batches: Sequence[Batch],
    images: Sequence[Image] | npt.NDArray[np.uint8],
) -> Measured:
    """Compare and verify; raises ExportError where something is beyond what is tolerated.

    engine, float_model: as the calibration `batches` want them, of any size or of the tile's. images: of a segmenter, what
    strips are put together from; of a classifier its tiles, (n, 1, h, w).
    """
    job.step("verification")
    changed = engine is not float_model
    name = manifest.precision.upper()
    if changed:
        job.parities[f"float and {name}"] = job.compare(float_model, engine, batches)
    sections = []
    with job.open(engine) as session, job.open(float_model) as reference:
        tiles = np.concatenate([batch for batch in batches if batch.shape == batches[0].shape][:BATCHED])
        if len(tiles) > 1:
            verify_batches(session, tiles, 0.0 if manifest.precision == "int8" else ROUNDING)
        if changed and manifest.kind == "segmenter":
            sections.append(_defects(job, manifest, reference, session, images))
        elif changed:
            sections.append(_verdicts(job, manifest, reference, session, np.asarray(images)))
    runtimes = verify_runtimes(
        engine.SerializeToString(),
        batches[: COMPARED // 4],
        manifest.activation,
        manifest.pixel_threshold,
        manifest.precision,
        job.options.threads,
    )
    if runtimes.parity is not None:
        job.parities["ONNX Runtime and OpenVINO"] = runtimes.parity
    height, width = manifest.input.tile_height, manifest.input.tile_width
    engines = {FLOAT: float_model} | ({name: engine} if changed else {})
    return Measured(
        arch=job.architecture.name,
        checkpoint=f"{Path(job.network.origin).name} (sha256 {job.network.sha256[:16]}...)",
        calibration_tiles=len(job.data.calibration),
        tile_flops=count_flops(job.network.model, height, width),
        parities=job.parities,
        quantization=quantization,
        max_drop=job.options.max_drop if changed else None,
        sizes={precision: model.ByteSize() for precision, model in engines.items()},
        tuning_losses=quantization.tuning_losses if quantization else (),
        speeds=_speeds(job, engines, _speed_tiles(batches, height, width)),
        sections=(*sections, *_selection(job)),
    )


def _defects(
    job: Job, manifest: Manifest, reference: Session, session: Session, images: Sequence[Image] | npt.NDArray[np.uint8]
) -> Section:
    manifest = manifest.model_copy(update={"head": "logits"})  # as both engines answer before the head is put on
    shown = [*job.data.calibration, *(image for image, _ in job.data.validation)] if manifest.preparation else list(images)
    strips = strips_of(shown[:: -(-len(shown) // 256)])
    allowed = min(1.0, max(FLIPPED, job.options.max_drop / 100.0))
    comparison = compare_defects(inspection_of(reference, manifest), inspection_of(session, manifest), strips, allowed=allowed)
    rows = [
        (
            what,
            defect.class_name,
            f"strip {defect.strip}, line {defect.box.line_start}, column {defect.box.column_start}",
            defect.area_mm2,
        )
        for what, defects in (("missed", comparison.missed), ("added", comparison.added))
        for defect in defects
    ]
    lines = sum(len(strip) for strip in strips)
    note = (
        f"Through the whole pipeline on {len(strips)} strips, {lines} lines in all, from {comparison.smallest_mm2:g} mm² on: "
        f"{comparison.found} defects reported by both engines, {len(comparison.missed)} missed, {len(comparison.added)} added."
    )
    return Section("Defects", note, ("flip", "class", "place", "mm²"), tuple(rows))


def _verdicts(job: Job, manifest: Manifest, reference: Session, session: Session, tiles: npt.NDArray[np.uint8]) -> Section:
    thresholds = (manifest.gate.score, manifest.gate.score) if manifest.gate else None
    allowed = min(1.0, max(FLIPPED_VERDICTS, job.options.max_drop / 100.0))
    found = compare_verdicts(reference, session, tiles, manifest.activation, thresholds, allowed)
    what = "tiles" if manifest.cell is None else "cells"
    note = f"{found.tiles} {what}, decided by either engine at the threshold, or by the most probable class where there is none."
    rows = (("defective became clean", found.missed), ("clean became defective", found.added), ("another class", found.renamed))
    return Section("Verdicts", note, ("flip", what), rows)


def _selection(job: Job) -> list[Section]:
    selection = job.data.selection
    if selection is None:
        return []
    strata = [(stratum.named(job.classes), stratum.candidates, stratum.chosen) for stratum in selection.strata]
    chosen = [(tile.origin, tile.row, tile.column, tile.mean, tile.contrast) for tile in selection.chosen]
    note = "Chosen by a seed, one of each kind and the rest in proportion." + "".join(f" {text}." for text in selection.warnings)
    return [
        Section("Calibration images", note, ("shows", "images", "chosen"), tuple(strata)),
        Section("Calibration list", "All that were chosen.", ("image", "row", "column", "mean grey", "contrast"), tuple(chosen)),
    ]


def _speed_tiles(batches: Sequence[Batch], height: int, width: int) -> Batch:
    """A batch of the engine's own tile size, cut from what calibrates it."""
    tiles = []
    for batch in batches[:SPEED_BATCH]:
        image = batch[0, 0, :height, :width]
        missing = [(0, side - extent) for side, extent in zip((height, width), image.shape, strict=True)]
        tiles.append(np.pad(image, missing, mode="reflect"))
    return np.ascontiguousarray(np.stack(tiles)[:, None])


def _speeds(job: Job, engines: Mapping[str, onnx.ModelProto], tiles: Batch) -> dict[str, dict[str, float]]:
    seconds = job.options.speed_s
    if not seconds:
        return {}
    job.step("speed")
    runtimes: dict[str, Callable[[bytes], Session]] = {"ONNX Runtime": lambda content: OrtSession(content, 1)}
    try:
        from edge.sessions.ov import OvSession

        runtimes["OpenVINO"] = lambda content: OvSession(content, 1)
    except SessionError:
        pass  # the report of the runtimes' agreement says so already
    measured: dict[str, dict[str, float]] = {}
    for runtime, opening in runtimes.items():
        with ExitStack() as opened:
            sessions = {name: opened.enter_context(opening(model.SerializeToString())) for name, model in engines.items()}
            measured[runtime] = tiles_per_cpu_second(sessions, tiles, seconds / len(runtimes))
    return measured
