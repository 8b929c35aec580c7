"""From a checkpoint to a verified bundle."""

from __future__ import annotations

import time
from pathlib import Path

from tqdm import tqdm

from export.bundle import check_target, write_refusal
from export.checkpoints import Checkpoint
from export.classifier_export import export_classifier
from export.errors import ExportError
from export.gate_export import export_gate
from export.job import Exported, ExportOptions, Job
from export.loading import TrainedNetwork, load_trained
from export.networks import Architecture
from export.report_sections import refusal_report
from export.samples import ExportData
from export.segmenter_export import export_segmenter
from export.sensitivity import QuantizationLossError

STEPS = 9


def export_bundle(
    checkpoint: Checkpoint, architecture: Architecture, data: ExportData, out: Path, options: ExportOptions | None = None
) -> Exported:
    """Make a bundle from a checkpoint and put it at `out`; after a fault nothing is there.

    Raises ExportError, and RustEdgeError where data do not fit the classes. Where quantization loses more than allowed, a
    page beside `out` says what was tried.
    """
    options = options or ExportOptions()
    begun = time.perf_counter()
    check_target(out, options.existing)
    return export_network(load_trained(checkpoint, architecture, options.classes, options.clean), data, out, options, begun)


def export_network(network: TrainedNetwork, data: ExportData, out: Path, options: ExportOptions, begun: float) -> Exported:
    """`export_bundle` of a network that is loaded. begun: when, by `time.perf_counter`. Raises as that does."""
    architecture = network.architecture
    if architecture.cell is not None and not (data.validation or data.simulated):
        raise ExportError(f"{architecture.name} needs labelled images (--masks): its threshold is chosen on them")
    if architecture.kind == "classifier" and not (data.validation or data.classified or data.simulated):
        raise ExportError(f"{architecture.name} needs labelled images (--masks or --labels): its quality is measured on them")
    with tqdm(total=STEPS, leave=False, disable=None) as bar:
        job = Job(network, data, out, options, bar, begun)
        try:
            if architecture.cell is not None:
                return export_gate(job, architecture.cell)
            return export_segmenter(job) if architecture.kind == "segmenter" else export_classifier(job)
        except QuantizationLossError as error:
            page = write_refusal(out, refusal_report(out.name, error.tried, options.max_drop, str(error)))
            raise ExportError(f"{error}; what was tried, with plots: {page}") from error
