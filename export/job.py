"""One export under way: its options, its network and data, and what every kind of network goes through."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
import onnx
from tqdm import tqdm

from calibration.activations import RangeMethod, activation_ranges, collect
from edge import __version__
from edge.bundle import Bundle
from edge.manifest import EngineInput, Manifest
from edge.sessions import Batch, Scores
from edge.sessions.ort import OrtSession
from export.bundle import Existing, StreamWeights
from export.cost import count_flops, count_parameters
from export.errors import ExportError
from export.fine_tuning import FineTuning, fine_tune
from export.loading import TrainedNetwork
from export.networks import Architecture
from export.parity import Parity, compare_scores
from export.passes.half_precision import half_tensors, to_half
from export.passes.streaming import StreamedModel
from export.quantize import quantize
from export.radius import Reach
from export.report import Report
from export.samples import ExportData
from export.sensitivity import Judge, Quantization, QuantizationLossError, quantize_within

COMPARED = 16
"""Calibration tiles on which scores are compared, the source against float and float against the result."""

JUDGED = 240
"""Labelled images by which range method and float layers are chosen; the figures that are reported come from all of them."""

TOOLS = ("torch", "onnx", "onnxruntime", "onnxslim", "numpy")

Precision = Literal["fp32", "fp16", "int8"]
Head = Literal["logits", "probabilities", "mask"]


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """How an export is done.

    classes: names in index order; none: the checkpoint's, else the architecture's. clean: a classifier's class that is no
        defect; none: the first.
    max_drop: points that the result may lose: of mean IoU; of a gate, of recall less clean tiles let through; else of accuracy.
    recall: share of defective tiles, or of the regions on the strip, that a gate's threshold keeps.
    defect_px: from so many defect pixels on a gate's tile is defective, or a region one to be found; None: DEFECT_PX of a tile,
        SMALLEST_PX of a region.
    head: what the engine answers. fine_tuning: tried where INT8 alone loses too much.
    speed_s: processor time for measuring speed; 0: not measured, and the same checkpoint gives the same bundle bit for bit.
    threads: of ONNX Runtime; 0: one per core.
    """

    precision: Precision = "fp32"
    classes: tuple[str, ...] | None = None
    clean: str | None = None
    max_drop: float = 0.5
    recall: float = 0.999
    defect_px: int | None = None
    head: Head = "logits"
    fine_tuning: FineTuning | None = None
    speed_s: float = 0.0
    threads: int = 0
    existing: Existing = Existing.KEEP
    stream_weights: StreamWeights = StreamWeights.SHARED

    def __post_init__(self) -> None:
        if not self.max_drop >= 0.0:
            raise ExportError(f"max_drop is {self.max_drop}, expected points, 0 or more")
        if not 0.0 < self.recall <= 1.0:
            raise ExportError(f"recall is {self.recall}, expected above 0 and up to 1")
        if self.defect_px is not None and self.defect_px < 1:
            raise ExportError(f"defect_px is {self.defect_px}, expected at least 1")
        if not self.speed_s >= 0.0:
            raise ExportError(f"speed_s is {self.speed_s}, expected seconds, 0 or more")


@dataclass(frozen=True, slots=True)
class Exported:
    """A bundle in its place, its report, and the streaming pass's table for `--explain`, or why there is none.

    warnings: what else the user should know. seconds: how long the export took.
    """

    bundle: Bundle
    report: Report
    streamed: StreamedModel | None
    refused: str | None
    warnings: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Job:
    """What every step needs. parities: by what was compared, filled in as the export goes on."""

    network: TrainedNetwork
    data: ExportData
    out: Path
    options: ExportOptions
    bar: tqdm[NoReturn]
    begun: float
    parities: dict[str, Parity] = field(default_factory=dict)

    @property
    def architecture(self) -> Architecture:
        """Of the network, complete: classes, tile and preparation are those of this export."""
        return self.network.architecture

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in index order."""
        return self.network.architecture.classes

    @property
    def seconds(self) -> float:
        """Since the export began."""
        return time.perf_counter() - self.begun

    def open(self, model: onnx.ModelProto) -> OrtSession:
        """A session of a graph in memory."""
        return OrtSession(model.SerializeToString(), self.options.threads)

    def step(self, what: str) -> None:
        """Tell what comes next."""
        self.bar.set_description(f"{self.out.name}: {what}")
        self.bar.update()

    def compare(self, reference: onnx.ModelProto, candidate: onnx.ModelProto, batches: Sequence[Batch]) -> Parity:
        """Differences of two engines' scores on some tiles."""

        def scores(of: onnx.ModelProto) -> Iterator[Scores]:
            with self.open(of) as session:
                for batch in batches[:COMPARED]:
                    yield session.infer(batch).copy()

        return compare_scores(
            scores(reference), scores(candidate), self.architecture.activation, self.architecture.pixel_threshold
        )


def reduce_precision(
    job: Job, model: onnx.ModelProto, batches: Sequence[Batch], judge: Judge, resize: Callable[[onnx.ModelProto], onnx.ModelProto]
) -> tuple[onnx.ModelProto, Quantization | None]:
    """The float engine in the precision that is asked for, and how an INT8 one was found.

    model: the float engine; judge: its worth; resize: gives a graph as the network exports it the input size of `model`.
    Raises ExportError, QuantizationLossError where every choice loses more than allowed.
    """
    options = job.options
    job.step({"fp32": "no quantization", "fp16": "half precision", "int8": "quantization"}[options.precision])
    if options.precision == "fp32":
        return model, None
    float_value = judge(model)
    if options.precision == "fp16":
        ranges = activation_ranges(collect(model, half_tensors(model), batches, options.threads), RangeMethod.MIN_MAX)
        half = to_half(model, ranges)
        loss = 100.0 * (float_value - judge(half))
        if not loss <= options.max_drop:
            raise ExportError(f"FP16 loses {loss:.2f} points, expected at most {options.max_drop:.2f} (--max-drop): export fp32")
        return half, None
    try:
        found = quantize_within(model, batches, judge, float_value, options.max_drop, options.threads)
    except QuantizationLossError as error:
        if options.fine_tuning is None:
            raise
        job.bar.set_description(f"{job.out.name}: quantization-aware fine-tuning")
        found = _fine_tuned(job, options.fine_tuning, batches, judge, float_value, resize, error.tried)
    return found.model, found


def _fine_tuned(
    job: Job,
    recipe: FineTuning,
    batches: Sequence[Batch],
    judge: Judge,
    float_value: float,
    resize: Callable[[onnx.ModelProto], onnx.ModelProto],
    tried: Quantization,
) -> Quantization:
    network = job.network
    if network.module is None:
        raise ExportError(f"{network.origin}: is a graph, which cannot be fine-tuned; expected a checkpoint of PyTorch or Keras")
    tuned = fine_tune(network.module, batches, recipe, job.architecture.activation, threads=job.options.threads)
    quantized = quantize(resize(network.export_again(tuned.network)), tuned.ranges)
    loss = 100.0 * (float_value - judge(quantized))
    found = dataclasses.replace(
        tried,
        model=quantized,
        method="fine_tuned",
        float_layers=(),
        loss=loss,
        methods=tried.methods | {"fine_tuned": loss},
        tuning_losses=tuned.losses,
    )
    if not loss <= job.options.max_drop:
        raise QuantizationLossError(
            f"INT8 loses {loss:.2f} points even after fine-tuning ({tried.loss:.2f} before), expected at most "
            f"{job.options.max_drop:.2f} (--max-drop): train longer, or export fp32 or fp16",
            found,
        )
    return found


def manifest_of(job: Job, reach: Reach, quantization: Quantization | None, height: int, width: int) -> Manifest:
    """What every manifest says, for an engine input of height x width; the kind of network adds to it."""
    architecture = job.architecture
    model = job.network.model
    return Manifest(
        name=job.out.name,
        kind=architecture.kind,
        classes=job.classes,
        input=EngineInput(tile_height=height, tile_width=width, reduce=architecture.reduce),
        activation=architecture.activation,
        head=job.options.head,
        preparation=architecture.preparation,
        strip_tile=architecture.strip_tile,
        pixel_threshold=architecture.pixel_threshold,
        cell=architecture.cell,
        stride=reach.stride,
        radius=reach.radius,
        halo=0,
        precision=job.options.precision,
        float_layers=quantization.float_layers if quantization else (),
        parameters=count_parameters(model),
        flops_per_pixel=count_flops(model, *architecture.tile) / (architecture.tile[0] * architecture.tile[1]),
        files={},
        source_checkpoint=job.network.sha256,
        tools={"rust-edge": __version__} | {name: importlib.metadata.version(name) for name in TOOLS},
    )


def finite(figures: dict[str, float]) -> dict[str, float]:
    """What could not be measured (no such class among the images) is left out rather than written as nan."""
    return {name: float(value) for name, value in figures.items() if np.isfinite(value)}
