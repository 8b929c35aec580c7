"""A segmenter's way from its float graph to a bundle: dense where it can, on tiles where it must."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from calibration.thresholds import UNMEASURED
from edge.manifest import Streaming
from edge.sessions import Batch, Session
from edge.sessions.ort import OrtStreamingSession
from export.cost import count_flops
from export.finish import finish
from export.golden import segmenter_golden
from export.halo import FEWEST_PIXELS, HaloMeasurement, measure_halos
from export.job import COMPARED, JUDGED, Exported, Job, finite, manifest_of, reduce_precision
from export.measuring import measure_result
from export.parity import verify_float, verify_stream
from export.passes.row_geometry import StreamRefused
from export.passes.streaming import StreamedModel, stream
from export.quality import Reading, SegmenterQuality, measure_segmenter, own_masks
from export.radius import Reach, WholeTileError, measure_reach, measure_stride
from export.report_sections import segmenter_report
from export.samples import Image, Labelled, mosaic, reflect
from export.sensitivity import Quantization
from export.tile_form import form_of
from export.to_onnx import with_input_size

HALO_FLOPS = 1e13
"""A halo smaller than the radius is searched for up to this cost, about a minute of two cores; beyond, it is the radius."""

ONE_TILE = Reach(1, 0)
"""For images that are an engine's tiles already: nothing is reflected around them."""


@dataclass(frozen=True, slots=True)
class _Geometry:
    """How the network sees a strip.

    reach: stride and receptive radius. whole_tile: why there is no radius. tiled: the station runs it on tiles alone.
    """

    reach: Reach
    whole_tile: str | None
    tiled: bool


@dataclass(frozen=True, slots=True)
class _Examples:
    """What the engine is shown: the float graph for it, calibration inputs, labelled images, and how scores are read."""

    model: onnx.ModelProto
    batches: Sequence[Batch]
    validation: Sequence[Labelled]
    reading: Reading


def export_segmenter(job: Job) -> Exported:
    """Measure, quantize, stream, verify, write. Raises ExportError."""
    job.step("stride and radius")
    geometry = _geometry(job)
    examples = _tile_examples(job) if geometry.tiled else _image_examples(job, geometry.reach)
    batches, reading = examples.batches, examples.reading
    labelled = bool(examples.validation)
    with job.open(examples.model) as session:
        job.step("source against ONNX")
        network = job.network
        job.parities["source and ONNX"] = verify_float(
            network.reference, session, batches[:COMPARED], job.architecture.activation, network.answer
        )
        job.step("quality in float")
        validation = examples.validation or own_masks(session, _images(job, examples, geometry), reading)
        quality_float = measure_segmenter(session, validation, reading)
    judged = validation[:: -(-len(validation) // JUDGED)]

    def judge(model: onnx.ModelProto) -> float:
        with job.open(model) as session:
            return measure_segmenter(session, judged, reading).judged

    engine, quantization = reduce_precision(job, examples.model, batches, judge, lambda model: _sized(model, geometry))
    job.step("streaming")
    streamed, refused = _stream(engine, geometry)
    if streamed is not None:
        _verify_stream(job, engine, streamed, geometry)
    with job.open(engine) as session:
        job.step(f"quality in {job.options.precision}")
        quality = quality_float if engine is examples.model else measure_segmenter(session, validation, reading)
        job.step("halos")
        halos = None if geometry.tiled else _halos(job, session, [image for image, _ in validation], reading)
    margin = 0 if geometry.tiled else halos.halo if halos else geometry.reach.halo
    height, width = (side + 2 * margin for side in job.architecture.tile)
    manifest = manifest_of(job, geometry.reach, quantization, height, width).model_copy(
        update={
            "halo": margin,
            "halo_shares": halos.shares if halos else (),
            "whole_tile": geometry.whole_tile,
            "thresholds": {name: chosen.threshold if labelled else UNMEASURED for name, chosen in quality.thresholds.items()},
            "streaming": _streaming(streamed) if streamed else None,
            "quality": _figures(quality, quality_float, quantization, labelled),
        }
    )
    images = [image for image, _ in validation]
    model = engine if geometry.tiled else with_input_size(engine, height, width)
    measured = measure_result(job, manifest, engine, examples.model, quantization, batches, images)
    report = segmenter_report(manifest, measured, quality, quality_float, halos, streamed, refused, labelled)
    return finish(job, manifest, model, streamed, refused, lambda session: segmenter_golden(session, images, manifest), report)


def _geometry(job: Job) -> _Geometry:
    model, prepared = job.network.model, bool(job.architecture.preparation)
    try:
        return _Geometry(measure_reach(model), None, prepared)
    except WholeTileError as error:
        stride = job.architecture.stride or measure_stride(model)
        return _Geometry(Reach(stride, 0), str(error), True)


def _tile_examples(job: Job) -> _Examples:
    form = form_of(job.architecture)
    data = job.data
    validation: list[Labelled] = []
    if data.validation:
        tiles = form.tiles([image for image, _ in data.validation])[:, 0]
        validation = list(zip(tiles, form.masks([mask for _, mask in data.validation]), strict=True))
    batches = [tile[None] for tile in form.tiles(data.calibration)]
    return _Examples(job.network.model, batches, validation, _reading(job, ONE_TILE))


def _image_examples(job: Job, reach: Reach) -> _Examples:
    batches = [reflect(image, reach.halo, reach.stride)[None, None] for image in job.data.calibration]
    model = with_input_size(job.network.model, "height", "width")
    return _Examples(model, batches, list(job.data.validation), _reading(job, reach))


def _reading(job: Job, reach: Reach) -> Reading:
    return Reading(job.classes, job.architecture.activation, job.architecture.pixel_threshold, reach)


def _images(job: Job, examples: _Examples, geometry: _Geometry) -> Sequence[Image]:
    return [batch[0, 0] for batch in examples.batches] if geometry.tiled else job.data.calibration


def _sized(model: onnx.ModelProto, geometry: _Geometry) -> onnx.ModelProto:
    return model if geometry.tiled else with_input_size(model, "height", "width")


def _stream(engine: onnx.ModelProto, geometry: _Geometry) -> tuple[StreamedModel | None, str | None]:
    """The streaming engine, or why there is none."""
    if geometry.whole_tile is not None:
        return None, geometry.whole_tile
    try:
        return stream(engine), None
    except StreamRefused as error:
        return None, str(error)


def _streaming(streamed: StreamedModel) -> Streaming:
    return Streaming(lag_lines=streamed.lag_lines, states=streamed.states)


def _verify_stream(job: Job, engine: onnx.ModelProto, streamed: StreamedModel, geometry: _Geometry) -> None:
    reach = geometry.reach
    content, streaming = streamed.model.SerializeToString(), _streaming(streamed)

    def open_stream(width: int, lines: int) -> OrtStreamingSession:
        return OrtStreamingSession(content, streaming, width, lines, job.options.threads)

    side = 2 * reach.stride + job.architecture.tile[0] // 2
    strip = reflect(mosaic(job.data.calibration, side, 2), reach.halo, reach.stride)
    with job.open(with_input_size(engine, "height", "width")) as session:
        job.parities["tiles and stream"] = verify_stream(
            open_stream, session, streaming, reach.halo, strip, job.architecture.activation
        )


def _halos(job: Job, session: Session, images: Sequence[Image], reading: Reading) -> HaloMeasurement | None:
    """What smaller halos change; None where looking would cost too much."""
    height, width = job.architecture.tile
    reach = reading.reach
    sides = [min(height, width) + 2 * halo for halo in range(0, reach.halo + 1, reach.stride)]
    per_pixel = count_flops(job.network.model, height, width) / (height * width)
    flops = sum(FEWEST_PIXELS * (side / min(height, width)) ** 2 * per_pixel for side in sides)
    return measure_halos(session, images, reading, min(height, width)) if flops <= HALO_FLOPS else None


def _figures(
    quality: SegmenterQuality, quality_float: SegmenterQuality, quantization: Quantization | None, labelled: bool
) -> dict[str, float]:
    """Without labels only how far the engine's masks agree with the float network's: that is no quality."""
    if not labelled:
        return {"agreement_iou": quality.judged, "images": float(quality.confusion.added)}
    figures: dict[str, float] = {}
    for suffix, found in (("", quality), ("_float", quality_float)):
        confusion = found.confusion
        figures |= {f"mean_iou{suffix}": confusion.mean_iou(), f"mean_iou_defects{suffix}": confusion.mean_iou_defects()}
        figures |= {f"iou_{name}{suffix}": value for name, value in confusion.iou().items()}
        figures |= {f"dice_{name}{suffix}": value for name, value in confusion.dice().items()}
    figures["images"] = float(quality.confusion.added)
    return finite(figures | ({"points_lost": quantization.loss} if quantization else {}))
