"""The end of every export: what the result is against the float engine, and the bundle put in its place."""

from __future__ import annotations

from collections.abc import Callable

import onnx

from edge.bundle import Golden
from edge.manifest import Manifest
from edge.sessions import Session
from export.bundle import BundleParts, write_bundle
from export.job import Exported, Job
from export.passes.heads import with_head
from export.passes.lint import require_clean
from export.passes.streaming import StreamedModel
from export.report import Report


def finish(
    job: Job,
    manifest: Manifest,
    engine: onnx.ModelProto,
    streamed: StreamedModel | None,
    refused: str | None,
    golden: Callable[[Session], Golden],
    report: Report,
) -> Exported:
    """Put the head on, lint, ask the golden tiles, write.

    engine: at the manifest's tile, answering logits. golden: asks an engine its golden tiles. Raises ExportError.
    """
    job.step("writing")

    def headed(graph: onnx.ModelProto) -> onnx.ModelProto:
        if manifest.head == "logits":
            return graph
        return with_head(graph, manifest.head, manifest.activation, manifest.pixel_threshold)

    model = headed(engine)
    lines = headed(streamed.model) if streamed else None
    require_clean(model, "model.onnx")
    if lines is not None:
        require_clean(lines, "stream.onnx")
    with job.open(model) as session:
        asked = golden(session)
    parts = BundleParts(manifest, model, lines, asked, report, job.options.stream_weights)
    bundle = write_bundle(job.out, parts, job.options.existing)
    warnings = job.data.selection.warnings if job.data.selection else ()
    return Exported(bundle, report, streamed, refused, warnings, job.seconds)
