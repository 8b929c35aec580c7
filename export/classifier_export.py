"""A classifier's way from its float graph to a bundle: it sees its tile whole, so there is neither halo nor stream."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx

from export.finish import finish
from export.golden import classifier_golden
from export.job import COMPARED, Exported, Job, finite, manifest_of, reduce_precision
from export.measuring import measure_result
from export.parity import verify_float
from export.quality import ClassifierQuality, ClassifierReading, measure_classifier
from export.radius import Reach
from export.report_sections import classifier_report
from export.samples import DEFECT_PX, defective_tiles
from export.sensitivity import Quantization
from export.tile_form import form_of


def export_classifier(job: Job) -> Exported:
    """Measure, quantize, verify, write. Raises ExportError."""
    architecture, options = job.architecture, job.options
    job.step("tiles")
    tiles, labels = _labelled_tiles(job)
    # one tile a batch: a tile's scores must not depend on which others it came with
    batches = [tile[None] for tile in form_of(architecture).tiles(job.data.calibration)]
    reading = ClassifierReading(
        classes=job.classes,
        activation=architecture.activation,
        recall=options.recall,
        fixed=architecture.gate_threshold,
        gate=len(job.classes) == 2,
    )
    model = job.network.model
    with job.open(model) as session:
        job.step("source against ONNX")
        job.parities["source and ONNX"] = verify_float(
            job.network.reference, session, batches[:COMPARED], architecture.activation, job.network.answer
        )
        job.step("quality in float")
        quality_float = measure_classifier(session, tiles, labels, reading)
    held_at = quality_float.threshold.score if quality_float.threshold else None

    def judge(candidate: onnx.ModelProto) -> float:
        with job.open(candidate) as session:
            return measure_classifier(session, tiles, labels, reading, held_at).judged

    engine, quantization = reduce_precision(job, model, batches, judge, lambda exported: exported)
    job.step(f"quality in {options.precision}")
    with job.open(engine) as session:
        quality = quality_float if engine is model else measure_classifier(session, tiles, labels, reading)
    # a classifier sees its tile whole: nothing outside matters, so it has neither radius nor halo
    reach = Reach(max(1, architecture.stride), 0)
    manifest = manifest_of(job, reach, quantization, *architecture.tile).model_copy(
        update={"gate": quality.threshold, "quality": _figures(quality, quality_float, quantization)}
    )
    measured = measure_result(job, manifest, engine, model, quantization, batches, tiles)
    report = classifier_report(manifest, measured, quality, quality_float, options.defect_px or DEFECT_PX)
    refused = "a classifier looks at tiles whole"
    return finish(job, manifest, engine, None, refused, lambda session: classifier_golden(session, tiles, manifest), report)


def _labelled_tiles(job: Job) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.intp]]:
    """Tiles as the classifier gets them, (n, 1, h, w), and their classes (n,): those of their images, or of their masks."""
    form = form_of(job.architecture)
    if job.data.classified:
        parts = [form.tiles([image]) for image, _ in job.data.classified]
        labels = [np.full(len(part), label) for part, (_, label) in zip(parts, job.data.classified, strict=True)]
        order = job.network.order  # labels count as the names were given, before clean steel came first
        places = np.argsort(order) if order else np.arange(len(job.classes))
        return np.concatenate(parts), places[np.concatenate(labels)].astype(np.intp)
    images, masks = [image for image, _ in job.data.validation], [mask for _, mask in job.data.validation]
    return form.tiles(images), defective_tiles(masks, form, job.options.defect_px or DEFECT_PX).astype(np.intp)


def _figures(quality: ClassifierQuality, quality_float: ClassifierQuality, quantization: Quantization | None) -> dict[str, float]:
    figures: dict[str, float] = {}
    for suffix, found in (("", quality), ("_float", quality_float)):
        figures |= {
            f"accuracy{suffix}": found.figures.accuracy,
            f"recall{suffix}": found.figures.recall,
            f"precision{suffix}": found.figures.precision,
        }
        if found.threshold is not None:
            figures[f"passed_clean_at_threshold{suffix}"] = found.threshold.passed_clean
    figures |= {"tiles_defective": float(quality.defective), "tiles_clean": float(quality.clean)}
    return finite(figures | ({"points_lost": quantization.loss} if quantization else {}))
