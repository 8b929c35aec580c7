"""A bundle's folder, written whole or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import enum
import errno
import fcntl
import glob
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
from edge.errors import BundleError, SessionError
from edge.manifest import Manifest
from edge.sessions.ort import OrtSession, OrtStreamingSession
from export.errors import ExportError
from export.report import REPORT_HTML, REPORT_JSON, Report, render_html, render_json

SHARED_FROM = 1024
"""Weights of at least so many bytes are kept once for both engines; below, naming the place costs more than it saves."""

_PARTIAL = ".partial-"
"""In the name of a folder beside a bundle's: what is being written, before it gets its name."""

_OLD = "replaced"
"""Where a bundle lies while the one that replaces it gets its name."""

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
"""Source: Linux, fcntl.h and fs.h."""


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
    """Raise ExportError where a bundle cannot be put; called before any work is done, and makes nothing.

    What exports to this place that were killed have left is cleared.
    """
    try:
        place = Path(os.path.realpath(out))  # a link stays a link: what it points at is replaced
        clear_leftovers(place)
        _check_place(out, place, existing)
    except OSError as error:
        raise ExportError(f"{out}: cannot be written ({error.strerror or error}); name another folder") from error
    check_writable(out)


def check_writable(out: Path) -> None:
    """Raise ExportError where no folder can be made, whatever stands there."""
    try:
        place = Path(os.path.realpath(out))
        above = next(folder for folder in place.parents if folder.exists())
        with tempfile.TemporaryDirectory(dir=above, prefix=f".{place.name}{_PARTIAL}"):
            pass
    except OSError as error:
        raise ExportError(f"{out}: cannot be written ({error.strerror or error}); name another folder") from error


def _check_place(out: Path, place: Path, existing: Existing) -> None:
    if not place.name:
        raise ExportError(f"{out}: has no name of its own; expected a folder to make")
    if not place.exists():
        return
    empty = place.is_dir() and not any(place.iterdir())
    if not empty and not (place / MANIFEST).is_file():
        raise ExportError(f"{out}: is not a bundle, and is not replaced; name another folder")
    if existing is Existing.KEEP:
        raise ExportError(f"{out}: exists; expected a new folder: name another, or give --force to replace it")


def clear_leftovers(place: Path) -> None:
    """Remove what exports to this place that were killed have left; what one at work holds stays. Raises OSError."""
    if not place.parent.is_dir():
        return
    for folder in place.parent.glob(f".{glob.escape(place.name)}{_PARTIAL}*"):
        with contextlib.suppress(OSError), _opened(folder) as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if (folder / _OLD).exists() and not place.exists():
                os.rename(folder / _OLD, place)
            shutil.rmtree(folder, ignore_errors=True)


def write_bundle(out: Path, parts: BundleParts, existing: Existing = Existing.KEEP) -> Bundle:
    """Write, verify and put a bundle in place. Before that nothing is there under its name, after a fault neither.

    The written files are opened as a station opens them, and asked the golden tiles. Raises ExportError, BundleError
    and SessionError.
    """
    check_target(out, existing)
    with whole_folder(out, existing) as partial:
        _write_files(partial, parts)
        _verify(partial, out)
    with contextlib.suppress(OSError):
        _refusal_page(out).unlink(missing_ok=True)  # of an earlier attempt, which this bundle answers
    return open_bundle(out)


@contextlib.contextmanager
def whole_folder(out: Path, existing: Existing) -> Iterator[Path]:
    """A folder to fill, which is put in place at the end; after a fault nothing is there under its name. Raises ExportError."""
    place = Path(os.path.realpath(out))
    try:
        with _folders_above(place), _partial_folder(place) as partial:
            yield partial
            for path in partial.rglob("*"):
                _to_disk(path)
            _put(partial, place, existing)
    except FileExistsError as error:
        raise ExportError(f"{out}: was made by somebody else meanwhile; name another, or give --force to replace it") from error
    except OSError as error:
        raise ExportError(f"{out}: cannot be written ({error.strerror or error}); make room or name another folder") from error


def write_refusal(out: Path, report: Report) -> Path:
    """A page beside `out` that says why there is no bundle; gives its path. Raises ExportError."""
    page = _refusal_page(out)
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        with _partial_folder(page.with_name(out.name)) as folder:
            (folder / page.name).write_text(render_html(report), encoding="utf-8")
            os.replace(folder / page.name, page)
    except OSError as error:
        raise ExportError(f"{page}: cannot be written ({error.strerror or error}); make room or name another folder") from error
    return page


def _refusal_page(out: Path) -> Path:
    return out.with_name(f"{out.name}.refused.html")


def _verify(folder: Path, out: Path) -> None:
    """Open what is written as a station does. Raises BundleError and SessionError, which name `out`."""
    try:
        _open_all(open_bundle(folder))
    except (BundleError, SessionError) as error:
        kind = BundleError if isinstance(error, BundleError) else SessionError
        raise kind(str(error).replace(str(folder), str(out))) from error


def _open_all(written: Bundle) -> None:
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


@contextlib.contextmanager
def _folders_above(place: Path) -> Iterator[None]:
    """Make them; after a fault those that were not there are gone again."""
    made = [folder for folder in place.parents if not folder.exists()]
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


@contextlib.contextmanager
def _partial_folder(place: Path) -> Iterator[Path]:
    """A folder beside a place for what is not whole yet; locked, so that others see that somebody is at work in it."""
    partial, held = _locked_folder(place)
    try:
        partial.chmod(0o755)  # mkdtemp's 0700 would be the bundle's
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        os.close(held)


def _locked_folder(place: Path) -> tuple[Path, int]:
    while True:
        partial = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}{_PARTIAL}"))
        with contextlib.suppress(FileNotFoundError):
            held = os.open(partial, os.O_RDONLY)
            with contextlib.suppress(OSError):  # a network drive without locks: there nothing is cleared either
                fcntl.flock(held, fcntl.LOCK_EX)
            if partial.exists():  # somebody who cleared leftovers may have been faster than the lock
                return partial, held
            os.close(held)


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield held
    finally:
        os.close(held)


def _put(partial: Path, place: Path, existing: Existing) -> None:
    """Give the finished folder its name. What stood there under it is in `partial` then. Raises OSError."""
    _to_disk(partial)
    if existing is Existing.KEEP or not place.exists():
        try:
            os.rename(partial, place)
        except OSError as error:
            if error.errno == errno.ENOTEMPTY:  # two exports to one place: the first one stays
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(place)) from error
            raise
    elif not _exchanged(partial, place):
        _replace_in_two_steps(partial, place)
    _to_disk(place.parent)


def _exchanged(first: Path, second: Path) -> bool:
    """Swap two folders' names at once: whoever looks, whenever the power goes, finds one whole bundle under each.

    False: this system or its file system cannot. Raises OSError. Source: renameat2(2), RENAME_EXCHANGE.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    here = ctypes.c_int(_AT_FDCWD)
    if libc.renameat2(here, os.fsencode(first), here, os.fsencode(second), ctypes.c_uint(_RENAME_EXCHANGE)) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(second))


def _replace_in_two_steps(partial: Path, place: Path) -> None:
    """The old bundle goes aside first. Where that is the end, `clear_leftovers` brings it back. Raises OSError."""
    with _partial_folder(place) as aside:
        os.rename(place, aside / _OLD)
        try:
            os.rename(partial, place)
        except BaseException:
            os.rename(aside / _OLD, place)
            raise


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
