"""From a checkpoint to a verified bundle: the steps in order, one after the other."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
import onnx
from torch import nn
from tqdm import tqdm

from calibration.thresholds import UNMEASURED
from edge import __version__
from edge.bundle import Bundle
from edge.manifest import EngineInput, Manifest, Streaming
from edge.sessions import Batch, Scores, Session
from edge.sessions.ort import OrtSession, OrtStreamingSession
from export.bundle import BundleParts, Existing, StreamWeights, check_target, write_bundle
from export.checkpoints import Checkpoint, load_network
from export.cost import count_flops, count_parameters
from export.errors import ExportError
from export.golden import gate_golden, segmenter_golden
from export.halo import measure_halos
from export.networks import Architecture
from export.parity import Parity, compare_scores, verify_float, verify_stream
from export.passes.streaming import StreamedModel, stream
from export.quality import GateQuality, SegmenterQuality, measure_gate, measure_segmenter, own_masks
from export.radius import Reach, measure_reach, measure_stride
from export.report import Report
from export.report_sections import Measured, gate_report, segmenter_report
from export.samples import DEFECT_PX, ExportData, Labelled, defective_tiles, gate_tiles, mosaic, reflect
from export.sensitivity import Judge, Quantization, quantize_within
from export.to_onnx import to_onnx, with_input_size

COMPARED = 16
"""Calibration images on which scores are compared, torch against float and float against the result."""

TOOLS = ("torch", "onnx", "onnxruntime", "onnxslim", "numpy")


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """How an export is done.

    classes: names in index order; none: the architecture's.
    max_drop: points of mean IoU (a gate: of accuracy at an even chance) that INT8 may lose.
    recall: share of defective tiles that a gate's threshold keeps.
    defect_px: from so many defect pixels on a gate's tile is defective.
    threads: of ONNX Runtime; 0: one per core.
    """

    precision: Literal["fp32", "int8"] = "fp32"
    classes: tuple[str, ...] | None = None
    max_drop: float = 0.5
    recall: float = 0.999
    defect_px: int = DEFECT_PX
    threads: int = 0
    existing: Existing = Existing.KEEP
    stream_weights: StreamWeights = StreamWeights.SHARED

    def __post_init__(self) -> None:
        if not self.max_drop >= 0.0:
            raise ExportError(f"max_drop is {self.max_drop}, expected points, 0 or more")
        if not 0.0 < self.recall <= 1.0:
            raise ExportError(f"recall is {self.recall}, expected above 0 and up to 1")
        if self.defect_px < 1:
            raise ExportError(f"defect_px is {self.defect_px}, expected at least 1")


@dataclass(frozen=True, slots=True)
class Exported:
    """A bundle in its place, its report, and the streaming pass's table for `--explain` (None: does not stream)."""

    bundle: Bundle
    report: Report
    streamed: StreamedModel | None


@dataclass(frozen=True, slots=True)
class _Job:
    """What every step needs: the network as a float graph, and what it is made of."""

    checkpoint: Checkpoint
    architecture: Architecture
    data: ExportData
    out: Path
    options: ExportOptions
    classes: tuple[str, ...]
    network: nn.Module
    model: onnx.ModelProto
    bar: tqdm[NoReturn]

    def open(self, model: onnx.ModelProto) -> OrtSession:
        return OrtSession(model.SerializeToString(), self.options.threads)

    def step(self, what: str) -> None:
        self.bar.set_description(f"{self.out.name}: {what}")
        self.bar.update()


def export_bundle(
    checkpoint: Checkpoint, architecture: Architecture, data: ExportData, out: Path, options: ExportOptions | None = None
) -> Exported:
    """Make a bundle from a checkpoint and put it at `out`; after a fault nothing is there.

    Raises ExportError, and RustEdgeError where data do not fit the classes.
    """
    options = options or ExportOptions()
    check_target(out, options.existing)
    if architecture.kind == "classifier" and not data.validation:
        raise ExportError(f"{architecture.name} needs labelled images (--masks): its threshold comes from them")
    network = load_network(checkpoint, architecture)
    model = to_onnx(network, architecture.tile, architecture.tile)
    classes = _class_names(architecture, options.classes, model)
    with tqdm(total=7, leave=False, disable=None) as bar:
        job = _Job(checkpoint, architecture, data, out, options, classes, network, model, bar)
        return _export_segmenter(job) if architecture.kind == "segmenter" else _export_gate(job)


def _export_segmenter(job: _Job) -> Exported:
    data, options, core = job.data, job.options, job.architecture.tile
    job.step("stride and radius")
    reach = measure_reach(job.model)
    free = with_input_size(job.model, "height", "width")
    batches = [reflect(image, reach.halo, reach.stride)[None, None] for image in data.calibration]
    with job.open(free) as session:
        job.step("torch against ONNX")
        parities = {"torch and ONNX": verify_float(job.network, session, batches[:COMPARED])}
        job.step("quality in float")
        validation = list(data.validation) or own_masks(session, data.calibration, reach)
        quality_float = measure_segmenter(session, validation, job.classes, reach)
    quantization = _quantize(job, free, batches, _segmenter_judge(job, validation, reach), quality_float.judged)
    engine = quantization.model if quantization else free
    streamed = stream(engine)
    streaming = Streaming(lag_lines=streamed.lag_lines, states=streamed.states)
    with job.open(engine) as session:
        quality = quality_float if quantization is None else measure_segmenter(session, validation, job.classes, reach)
        if quantization is not None:
            parities["float and INT8"] = _compare(job, free, engine, batches)
        job.step("streaming")
        strip = reflect(mosaic(data.calibration, 2 * reach.stride + core // 2, 2), reach.halo, reach.stride)
        parities["tiles and stream"] = verify_stream(_stream_opener(job, streamed), session, streaming, reach.halo, strip)
        job.step("halos")
        halos = measure_halos(session, [image for image, _ in validation], reach, core)
        tile = core + 2 * halos.halo
        golden = segmenter_golden(session, [image for image, _ in validation], tile)
    labelled = bool(data.validation)
    manifest = _manifest(job, reach, quantization, tile).model_copy(
        update={
            "halo": halos.halo,
            "halo_shares": halos.shares,
            "thresholds": {name: chosen.threshold if labelled else UNMEASURED for name, chosen in quality.thresholds.items()},
            "streaming": streaming,
            "quality": _segmenter_figures(quality, quality_float, quantization, labelled),
        }
    )
    measured = _measured(job, parities, quantization, tile)
    report = segmenter_report(manifest, measured, quality, quality_float, halos, streamed, labelled)
    job.step("writing")
    parts = BundleParts(manifest, with_input_size(engine, tile, tile), streamed.model, golden, report, options.stream_weights)
    return Exported(write_bundle(job.out, parts, options.existing), report, streamed)


def _export_gate(job: _Job) -> Exported:
    data, options, architecture = job.data, job.options, job.architecture
    job.step("tiles")
    tiles = gate_tiles([image for image, _ in data.validation], architecture)
    defective = defective_tiles([mask for _, mask in data.validation], architecture, options.defect_px)
    calibration = gate_tiles(data.calibration, architecture)
    # one tile a batch: a tile's scores must not depend on which others it came with
    batches = [tile[None] for tile in calibration]
    with job.open(job.model) as session:
        job.step("torch against ONNX")
        parities = {"torch and ONNX": verify_float(job.network, session, batches[:COMPARED])}
        job.step("quality in float")
        quality_float = measure_gate(session, tiles, defective, job.classes, options.recall)
    judge = _judge(job, lambda session: measure_gate(session, tiles, defective, job.classes, options.recall).judged)
    quantization = _quantize(job, job.model, batches, judge, quality_float.judged)
    engine = quantization.model if quantization else job.model
    with job.open(engine) as session:
        quality = measure_gate(session, tiles, defective, job.classes, options.recall)
        if quantization is not None:
            parities["float and INT8"] = _compare(job, job.model, engine, batches)
        golden = gate_golden(session, tiles)
    # a gate sees its tile whole: nothing outside matters, so it has neither radius nor halo
    manifest = _manifest(job, Reach(measure_stride(job.model), 0), quantization, architecture.tile).model_copy(
        update={"gate": quality.threshold, "quality": _gate_figures(quality, quality_float, quantization)}
    )
    report = gate_report(
        manifest, _measured(job, parities, quantization, architecture.tile), quality, quality_float, options.defect_px
    )
    job.step("writing")
    return Exported(write_bundle(job.out, BundleParts(manifest, engine, None, golden, report), options.existing), report, None)


def _quantize(job: _Job, model: onnx.ModelProto, batches: list[Batch], judge: Judge, float_value: float) -> Quantization | None:
    job.step("quantization")
    if job.options.precision == "fp32":
        return None
    return quantize_within(model, batches, judge, float_value, job.options.max_drop, job.options.threads)


def _judge(job: _Job, measure: Callable[[Session], float]) -> Judge:
    def judge(model: onnx.ModelProto) -> float:
        with job.open(model) as session:
            return measure(session)

    return judge


def _segmenter_judge(job: _Job, validation: list[Labelled], reach: Reach) -> Judge:
    return _judge(job, lambda session: measure_segmenter(session, validation, job.classes, reach).judged)


def _stream_opener(job: _Job, streamed: StreamedModel) -> Callable[[int, int], OrtStreamingSession]:
    content = streamed.model.SerializeToString()
    streaming = Streaming(lag_lines=streamed.lag_lines, states=streamed.states)
    return lambda width, lines: OrtStreamingSession(content, streaming, width, lines, job.options.threads)


def _compare(job: _Job, model: onnx.ModelProto, candidate: onnx.ModelProto, batches: list[Batch]) -> Parity:
    def scores(of: onnx.ModelProto) -> Iterator[Scores]:
        with job.open(of) as session:
            for batch in batches[:COMPARED]:
                yield session.infer(batch).copy()

    return compare_scores(scores(model), scores(candidate))


def _class_names(architecture: Architecture, given: tuple[str, ...] | None, model: onnx.ModelProto) -> tuple[str, ...]:
    names = given or architecture.classes
    channels = model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    # a gate's one logit tells its two classes apart
    expected = 2 if architecture.kind == "classifier" else channels
    if len(names) != expected:
        raise ExportError(
            f"the network tells {expected} classes apart, got {len(names)} names ({', '.join(names)}); "
            "expected one each (--classes background,...)"
        )
    if len(set(names)) != len(names) or not all(names):
        raise ExportError(f"class names are {', '.join(names)}; expected every one once, none empty")
    return names


def _manifest(job: _Job, reach: Reach, quantization: Quantization | None, tile: int) -> Manifest:
    architecture = job.architecture
    return Manifest(
        name=job.out.name,
        kind=architecture.kind,
        classes=job.classes,
        input=EngineInput(tile_height=tile, tile_width=tile, reduce=architecture.reduce),
        activation=architecture.activation,
        stride=reach.stride,
        radius=reach.radius,
        halo=reach.halo,
        precision=job.options.precision,
        float_layers=quantization.float_layers if quantization else (),
        parameters=count_parameters(job.model),
        flops_per_pixel=count_flops(job.model, tile, tile) / tile**2,
        files={},
        source_checkpoint=job.checkpoint.sha256,
        tools={"rust-edge": __version__} | {name: importlib.metadata.version(name) for name in TOOLS},
    )


def _measured(job: _Job, parities: dict[str, Parity], quantization: Quantization | None, tile: int) -> Measured:
    return Measured(
        arch=job.architecture.name,
        checkpoint=f"{Path(job.checkpoint.origin).name} (sha256 {job.checkpoint.sha256[:16]}...)",
        calibration_tiles=len(job.data.calibration),
        tile_flops=count_flops(job.model, tile, tile),
        parities=parities,
        quantization=quantization,
    )


def _segmenter_figures(
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
    return _finite(figures | ({"points_lost": quantization.loss} if quantization else {}))


def _gate_figures(quality: GateQuality, quality_float: GateQuality, quantization: Quantization | None) -> dict[str, float]:
    figures: dict[str, float] = {}
    for suffix, found in (("", quality), ("_float", quality_float)):
        figures |= {
            f"accuracy{suffix}": found.figures.accuracy,
            f"recall{suffix}": found.figures.recall,
            f"precision{suffix}": found.figures.precision,
            f"passed_clean_at_threshold{suffix}": found.threshold.passed_clean,
        }
    figures |= {"tiles_defective": float(quality.defective), "tiles_clean": float(quality.clean)}
    return _finite(figures | ({"points_lost": quantization.loss} if quantization else {}))


def _finite(figures: dict[str, float]) -> dict[str, float]:
    """What could not be measured (no such class among the images) is left out rather than written as nan."""
    return {name: float(value) for name, value in figures.items() if np.isfinite(value)}
