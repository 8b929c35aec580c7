"""A bundle's folder, written whole or not at all."""

from __future__ import annotations

import contextlib
import enum
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import yaml

from edge.bundle import GOLDEN, MANIFEST, MODEL, STREAM, Bundle, Golden, check_golden, file_sha256, open_bundle
from edge.manifest import Manifest
from edge.sessions.ort import OrtSession, OrtStreamingSession
from export.errors import ExportError
from export.report import REPORT_HTML, REPORT_JSON, Report, render_html, render_json

SHARED_FROM = 1024
"""Weights of at least so many bytes are kept once for both engines; below, naming the place costs more than it saves."""


class Existing(enum.Enum):
    """What happens to a folder that stands where the bundle shall be."""

    KEEP = "keep"
    REPLACE = "replace"


class StreamWeights(enum.Enum):
    """Where the weights of `stream.onnx` are: in the file itself, or in `model.onnx` beside it, which holds the same ones.

    SHARED halves a bundle. It needs a session that resolves ONNX external data: one that opens the file by its path.
    """

    OWN = "own"
    SHARED = "shared"


@dataclass(frozen=True, slots=True)
class BundleParts:
    """What a bundle is made of. `manifest.files` is filled in by the writer."""

    manifest: Manifest
    model: onnx.ModelProto
    stream: onnx.ModelProto | None
    golden: Golden
    report: Report
    stream_weights: StreamWeights = StreamWeights.OWN


def check_target(out: Path, existing: Existing) -> None:
    """Raise ExportError where a bundle cannot be put; called before any work is done."""
    if out.exists() and existing is Existing.KEEP:
        raise ExportError(f"{out}: exists; expected a new folder: name another, or give --force to replace it")
    if out.exists() and not (out / MANIFEST).exists():
        raise ExportError(f"{out}: is not a bundle, and is not replaced; name another folder")
    if not out.name:
        raise ExportError(f"{out}: has no name; expected a folder to make")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.partial-"):
            pass
    except OSError as error:
        raise ExportError(f"{out.parent}: cannot be written ({error.strerror}); name another folder") from error


def write_bundle(out: Path, parts: BundleParts, existing: Existing = Existing.KEEP) -> Bundle:
    """Write, verify and put a bundle in place. Before that nothing is there under its name, after a fault neither.

    The written files are opened as a station opens them, and asked the golden tiles. Raises ExportError, BundleError
    and SessionError.
    """
    check_target(out, existing)
    try:
        with _partial_folder(out) as partial:
            _write_files(partial, parts)
            _verify(open_bundle(partial))
            _put(partial, out)
    except OSError as error:
        raise ExportError(f"{out}: cannot be written ({error.strerror or error}); make room or name another folder") from error
    return open_bundle(out)


def write_refusal(out: Path, report: Report) -> Path:
    """A page beside `out` that says why there is no bundle; gives its path. Raises ExportError."""
    page = out.with_name(f"{out.name}.refused.html")
    partial = page.with_suffix(".partial")
    try:
        partial.write_text(render_html(report), encoding="utf-8")
        os.replace(partial, page)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ExportError(f"{page}: cannot be written ({error.strerror or error}); make room or name another folder") from error
    return page


def _verify(written: Bundle) -> None:
    with OrtSession(written.model_path) as session:
        check_golden(written, session)
    streaming, path = written.manifest.streaming, written.stream_path
    if streaming is not None and path is not None:
        side = written.manifest.stride
        with OrtStreamingSession(path, streaming, width=side, chunk_lines=side):
            pass  # opening it runs one step


def share_weights(stream: onnx.ModelProto, model: bytes) -> onnx.ModelProto:
    """The streaming graph with its weights taken from the bytes of `model.onnx` beside it, as ONNX external data.

    Source: ONNX documentation, External Data: location, offset, length. Weights that are not in the model stay inside.
    """
    shared = onnx.ModelProto()
    shared.CopyFrom(stream)
    for initializer in shared.graph.initializer:
        if len(initializer.raw_data) < SHARED_FROM:
            continue
        offset = model.find(initializer.raw_data)
        if offset < 0:
            continue
        length = len(initializer.raw_data)
        initializer.ClearField("raw_data")
        initializer.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", MODEL), ("offset", offset), ("length", length)):
            initializer.external_data.add(key=key, value=str(value))
    return shared


def _write_files(folder: Path, parts: BundleParts) -> None:
    model = parts.model.SerializeToString(deterministic=True)
    (folder / MODEL).write_bytes(model)
    names = [MODEL, GOLDEN, REPORT_HTML, REPORT_JSON]
    if parts.stream is not None:
        shared = parts.stream_weights is StreamWeights.SHARED
        stream = share_weights(parts.stream, model) if shared else parts.stream
        (folder / STREAM).write_bytes(stream.SerializeToString(deterministic=True))
        names.append(STREAM)
    golden = parts.golden
    np.savez_compressed(folder / GOLDEN, patches=golden.patches, scores=golden.scores, labels=golden.labels, step=golden.step)
    (folder / REPORT_HTML).write_text(render_html(parts.report), encoding="utf-8")
    (folder / REPORT_JSON).write_text(render_json(parts.report), encoding="utf-8")
    manifest = parts.manifest.model_copy(update={"files": {name: file_sha256(folder / name) for name in sorted(names)}})
    text = yaml.safe_dump(manifest.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    for name in (*names, MANIFEST):
        _to_disk(folder / name)


@contextlib.contextmanager
def _partial_folder(out: Path) -> Iterator[Path]:
    partial = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.partial-"))
    try:
        partial.chmod(0o755)  # mkdtemp's 0700 would be the bundle's
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _put(partial: Path, out: Path) -> None:
    """Rename into place. What stood there goes aside first, since a folder that holds files cannot be renamed over."""
    if not out.exists():
        os.replace(partial, out)
    else:
        with _partial_folder(out) as aside:
            os.replace(out, aside / out.name)
            try:
                os.replace(partial, out)
            except BaseException:
                os.replace(aside / out.name, out)
                raise
    _to_disk(out.parent)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
