"""Engines that a device has built for itself, kept beside the bundle and used only where nothing of what they depend on differs.

A bundle `steel-unet-int8` has its engines in `steel-unet-int8.engines`, outside the folder that its manifest vouches for, or in a
folder that the station names. Each is called after its key's digest; a sidecar of the same name holds the key in the open, so
that a rebuild can say what has changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

_NAMES = {
    "model_sha256": "the model",
    "builder": "library",
    "device": "device",
    "compute": "compute capability",
    "precision": "precision",
    "profiles": "input shapes",
    "options": "builder options",
}


@dataclass(frozen=True, slots=True)
class EngineKey:
    """What an engine depends on; it is built again where any of it differs.

    model_sha256: of the ONNX file, and of the file that holds its weights where that is another.
    builder: library and full version, `tensorrt 10.3.0.30`. device: GPU or processor, as the library names it.
    compute: what that can, a GPU's capability `8.7`, a processor's `BF16 FP32 INT8`.
    profiles: shapes that it was built for, options: of the builder, both written out.
    """

    model_sha256: str
    builder: str
    device: str
    compute: str
    precision: str
    profiles: tuple[str, ...]
    options: tuple[str, ...]

    @property
    def digest(self) -> str:
        """sha256 over all parts, hexadecimal."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class CachedEngine:
    """content: the engine, None where there is none that fits. reason: why there is none, for a log."""

    content: bytes | None
    reason: str = ""


def cache_path(bundle: Path, model: str, key: EngineKey) -> Path:
    """Where the engine of a bundle's file (`model.onnx`) is kept.

    >>> key = EngineKey("aa", "tensorrt 10.3.0.30", "Orin", "8.7", "int8", (), ())
    >>> cache_path(Path("bundles/steel-unet"), "stream.onnx", key).parts[-2:]
    ('steel-unet.engines', 'stream-362be2f402d31531.engine')
    """
    return engine_path(engines_beside(bundle), model, key)


def engines_beside(bundle: Path) -> Path:
    """The folder beside a bundle that holds its engines."""
    resolved = bundle.absolute()
    return resolved.with_name(f"{resolved.name}.engines")


def engine_path(folder: Path, model: str, key: EngineKey) -> Path:
    """Where in a folder the engine of a bundle's file (`model.onnx`) is kept."""
    return folder / f"{Path(model).stem}-{key.digest[:16]}.engine"


def read_engine(path: Path, key: EngineKey) -> CachedEngine:
    """The engine at a path from `cache_path`, if it was built for this key and is what was written."""
    described = _sidecar(path.with_suffix(".json"))
    if described is None:
        return CachedEngine(None, _difference(path, key))
    stored, sha256 = described
    if stored != key:
        return CachedEngine(None, f"{path.name} was built otherwise: {_changes(stored, key)}")
    try:
        content = path.read_bytes()
    except OSError as error:
        return CachedEngine(None, f"{path.name} cannot be read ({error.strerror})")
    if hashlib.sha256(content).hexdigest() != sha256:
        return CachedEngine(None, f"{path.name} is damaged: {len(content)} bytes that are not what was written")
    return CachedEngine(content)


def write_engine(path: Path, content: bytes, key: EngineKey) -> None:
    """Keep an engine; a reader finds all of it or nothing, at whatever moment the power fails. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # an old sidecar must not vouch for the new engine, nor the new one for an old engine: without one there is no engine
    path.with_suffix(".json").unlink(missing_ok=True)
    _write(path, content)
    document = {"key": asdict(key), "sha256": hashlib.sha256(content).hexdigest()}
    _write(path.with_suffix(".json"), (json.dumps(document, indent=1) + "\n").encode())


def drop_outdated(folder: Path, key: EngineKey, most: int) -> list[str]:
    """Remove what can no longer be used, and of the rest the oldest beyond `most`; why each was removed, for a log.

    Engines of the key's library alone are looked at: those of another version of it or another device.
    Raises OSError.
    """
    library = key.builder.split()[0]
    fit: list[tuple[float, Path]] = []
    removed: list[str] = []
    for described in sorted(folder.glob("*.json")):
        stored = _sidecar(described)
        if stored is None or stored[0].builder.split()[:1] != [library]:
            continue
        same_device = {name: getattr(key, name) for name in ("builder", "device", "compute")}
        if changes := _changes(stored[0], replace(stored[0], **same_device)):
            _remove(described)
            removed.append(f"{described.stem}: {changes}")
        else:
            fit.append((described.stat().st_mtime, described))
    for _, described in sorted(fit)[: max(0, len(fit) - most)]:
        _remove(described)
        removed.append(f"{described.stem}: the oldest of more than {most}")
    return removed


def _remove(described: Path) -> None:
    """An engine after its sidecar: without one it counts as none."""
    described.unlink(missing_ok=True)
    described.with_suffix(".engine").unlink(missing_ok=True)


def _write(path: Path, content: bytes) -> None:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp's 0600 would keep a service under another user from reading it
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _sidecar(path: Path) -> tuple[EngineKey, str] | None:
    """Key and sha256; None where there is no sidecar, or none that can be read."""
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
        parts: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in document["key"].items()
        }
        return EngineKey(**parts), str(document["sha256"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _difference(path: Path, key: EngineKey) -> str:
    """Of the engines that are kept for the same file, what the nearest one was built for instead."""
    stem = path.name.rpartition("-")[0]
    others = [found[0] for other in sorted(path.parent.glob(f"{stem}-*.json")) if (found := _sidecar(other)) is not None]
    if not others:
        return f"no engine is kept in {path.parent}"
    nearest = min(others, key=lambda other: len(_differing(other, key)))
    return f"none of the {len(others)} kept in {path.parent} fits: {_changes(nearest, key)}"


def _changes(stored: EngineKey, key: EngineKey) -> str:
    """`GPU: Orin, now Thor`; of several values only those that differ."""
    changes = []
    for name in _differing(stored, key):
        before, now = (_values(getattr(of, name)) for of in (stored, key))
        gone, come = ([value for value in these if value not in those] for these, those in ((before, now), (now, before)))
        changes.append(f"{_NAMES[name]}: {', '.join(gone) or 'less'}, now {', '.join(come) or 'without it'}")
    return "; ".join(changes)


def _differing(stored: EngineKey, key: EngineKey) -> list[str]:
    return [field.name for field in fields(key) if getattr(stored, field.name) != getattr(key, field.name)]


def _values(part: str | tuple[str, ...]) -> tuple[str, ...]:
    return part if isinstance(part, tuple) else (f"{part[:12]}..." if len(part) == 64 else part,)
