"""The way of a gate that scores cells, from its float graph to a bundle: it runs over the whole strip, line by line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnx

from calibration.gate_recall import SMALLEST_PX
from edge.manifest import Streaming
from edge.sessions import Batch
from edge.sessions.ort import OrtStreamingSession
from export.cell_form import CellForm
from export.errors import ExportError
from export.finish import finish
from export.gate_quality import GateQuality, GateReading, measure_gate, steels_of
from export.golden import gate_golden
from export.job import COMPARED, Exported, Job, finite, manifest_of, reduce_precision
from export.measuring import measure_result
from export.parity import verify_float, verify_stream
from export.passes.row_geometry import StreamRefused
from export.passes.streaming import StreamedModel, stream
from export.radius import Reach, WholeTileError, measure_reach
from export.report_sections import gate_report
from export.samples import mosaic
from export.sensitivity import Quantization
from export.to_onnx import with_input_size
from export.verification import verify_stream_in_openvino

JUDGED_PIXELS = 40_000_000
"""Of labelled images of each kind of steel, by which range method and float layers are chosen; figures come from all of them.
A thousand images of 200 px a side: with a region or two each, one region is less than a tenth of a point of recall."""

GOLDEN_FROM = 200
"""Labelled images of each kind of steel, at most, that golden tiles and images to compare decisions on are taken from."""

DECIDED = 48
"""Images of one size on which decisions are compared, cell by cell."""


def export_gate(job: Job, cell: int) -> Exported:
    """Measure, quantize, stream, verify, write. cell: the network's input pixels a side per score. Raises ExportError."""
    architecture, options = job.architecture, job.options
    job.step("stride and radius")
    form = CellForm(cell, architecture.reduce, _reach(job, cell))
    steels = steels_of(job.data)
    reading = GateReading(
        form, architecture.activation, options.recall, architecture.gate_threshold, options.defect_px or SMALLEST_PX
    )
    batches = [form.image(image) for image in job.data.calibration]
    model = _free(job.network.model)
    with job.open(model) as session:
        job.step("source against ONNX")
        job.parities["source and ONNX"] = verify_float(
            job.network.reference, session, batches[:COMPARED], architecture.activation, job.network.answer
        )
        job.step("quality in float")
        quality_float = measure_gate(session, steels, reading)
    judged = {name: images[:: -(-sum(mask.size for _, mask in images) // JUDGED_PIXELS)] for name, images in steels.items()}
    held_at = quality_float.threshold.score

    def judge(candidate: onnx.ModelProto) -> float:
        with job.open(candidate) as session:
            return measure_gate(session, judged, reading, held_at).judged

    engine, quantization = reduce_precision(job, model, batches, judge, _free)
    job.step("streaming")
    streamed, refused = _stream(engine, cell)
    if streamed is not None:
        _verify_stream(job, engine, streamed, form)
    with job.open(engine) as session:
        job.step(f"quality in {options.precision}")
        quality = quality_float if engine is model else measure_gate(session, steels, reading)
    height, width = (side + 2 * form.reach.halo for side in architecture.tile)
    manifest = manifest_of(job, form.reach, quantization, height, width).model_copy(
        update={
            "halo": form.reach.halo,
            "gate": quality.threshold,
            "streaming": _streaming(streamed) if streamed else None,
            "quality": _figures(quality, quality_float, quantization),
        }
    )
    images = [form.image(image) for of_kind in steels.values() for image, _ in of_kind[:: -(-len(of_kind) // GOLDEN_FROM)]]
    measured = measure_result(job, manifest, engine, model, quantization, batches, _of_one_size(images))
    report = gate_report(manifest, measured, quality, quality_float, streamed, refused, reading.smallest_px)
    sized = with_input_size(engine, height, width)
    return finish(job, manifest, sized, streamed, refused, lambda session: gate_golden(session, images, manifest), report)


def _free(model: onnx.ModelProto) -> onnx.ModelProto:
    return with_input_size(model, "height", "width")


def _reach(job: Job, cell: int) -> Reach:
    try:
        return measure_reach(job.network.model, cell)
    except WholeTileError as error:
        raise ExportError(f"{job.network.origin}: scores cells, but {error}") from error


def _stream(engine: onnx.ModelProto, cell: int) -> tuple[StreamedModel | None, str | None]:
    """The streaming engine, or why there is none."""
    try:
        return stream(engine, cell), None
    except StreamRefused as error:
        return None, str(error)


def _streaming(streamed: StreamedModel) -> Streaming:
    return Streaming(lag_lines=streamed.lag_lines, cell=streamed.cell, states=streamed.states)


def _verify_stream(job: Job, engine: onnx.ModelProto, streamed: StreamedModel, form: CellForm) -> None:
    """In ONNX Runtime and, where it is installed, in OpenVINO."""
    content, streaming, halo = streamed.model.SerializeToString(), _streaming(streamed), form.reach.halo
    activation, threads = job.architecture.activation, job.options.threads

    def open_stream(width: int, lines: int) -> OrtStreamingSession:
        return OrtStreamingSession(content, streaming, width, lines, threads)

    strip = form.image(mosaic(job.data.calibration, 2 * form.strip_px + form.reduce * job.architecture.tile[0] // 2, 4))[0, 0]
    with job.open(engine) as session:
        job.parities["tiles and stream"] = verify_stream(open_stream, session, streaming, halo, strip, activation)
    in_openvino = verify_stream_in_openvino(engine.SerializeToString(), content, streaming, halo, strip, activation, threads)
    if in_openvino.parity is not None:
        job.parities["tiles and stream in OpenVINO"] = in_openvino.parity


def _of_one_size(images: Sequence[Batch]) -> Batch:
    """The images of the commonest size, DECIDED at most, evenly taken: (n, 1, h, w)."""
    size, _ = Counter(image.shape for image in images).most_common(1)[0]
    alike = [image for image in images if image.shape == size]
    return np.concatenate(alike[:: -(-len(alike) // DECIDED)])


def _figures(quality: GateQuality, quality_float: GateQuality, quantization: Quantization | None) -> dict[str, float]:
    figures: dict[str, float] = {}
    for suffix, found in (("", quality), ("_float", quality_float)):
        for kind, recall in (("", found.overall), *((f"_{name}", of_kind) for name, of_kind in found.by_steel.items())):
            figures |= {
                f"region_recall{kind}{suffix}": recall.recall,
                f"defect_pixels_covered{kind}{suffix}": recall.covered,
                f"clean_cells_alarmed{kind}{suffix}": recall.alarmed_clean,
            }
        figures[f"threshold{suffix}"] = found.threshold.score
    for kind, recall in (("", quality.overall), *((f"_{name}", of_kind) for name, of_kind in quality.by_steel.items())):
        figures |= {f"regions{kind}": float(recall.regions), f"clean_cells{kind}": float(recall.clean_cells)}
    return finite(figures | ({"points_lost": quantization.loss} if quantization else {}))
