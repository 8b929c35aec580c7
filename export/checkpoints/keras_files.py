"""Keras's files, of Keras 3 and TF-Keras 2, read by Keras 3 on torch without running code that they hold."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from export.checkpoints.checkpoint import Checkpoint, Hints, KerasContent
from export.checkpoints.keras_config import Config, allowed_name, find_code, for_keras_3, layer_names
from export.checkpoints.keras_weights import StoredLayer, check_finite, set_by_name, set_by_order, shorten
from export.checkpoints.saved_model import read_saved_model
from export.errors import ExportError

INSTALL = "pip install 'rust-edge[keras]'"

FORMATS = "a .keras or .h5 file, a SavedModel folder, or model.json with its weights beside it"

_HDF5 = b"\x89HDF\r\n\x1a\n"
_WEIGHT_SUFFIXES = (".weights.h5", ".hdf5", ".h5")
_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
"""Members of a .keras archive."""


def import_keras() -> ModuleType:
    """Keras 3 on torch. Raises ExportError where it is absent, or runs on something else."""
    loaded = sys.modules.get("keras")
    if loaded is None:
        settings = {"KERAS_BACKEND": "torch", "KERAS_TORCH_DEVICE": "cpu"}
        before = {name: os.environ.get(name) for name in settings}
        os.environ.update(settings)
        try:
            loaded = importlib.import_module("keras")
        except ImportError as error:
            raise ExportError(f"Keras's files need Keras 3 ({error}): {INSTALL}") from error
        finally:
            for name, value in before.items():
                os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    version, backend = str(getattr(loaded, "__version__", "0")), loaded.config.backend() if hasattr(loaded, "config") else "none"
    if int(version.split(".")[0]) < 3 or backend != "torch":
        raise ExportError(
            f"Keras {version} is already running on {backend}; expected Keras 3 on torch: "
            f"set KERAS_BACKEND=torch before it is imported ({INSTALL})"
        )
    return loaded


def read_keras(path: Path, weights: Path | None = None, trust: bool = False) -> Checkpoint:
    """Read a model: .keras, whole-model .h5, a SavedModel folder, model.json with weights.

    A file of weights alone, and a SavedModel of Keras 3, give a content without a model: `load_weights` puts them into one.
    weights: of a model.json, where they do not have its name. trust: load layers that hold Python code, too.
    The sha256 of a folder, or of a model.json with its weights, is that of its files' hashes, in the order of their names.
    Raises ExportError.
    """
    if weights is not None and not weights.exists():
        raise ExportError(f"{weights}: not found; expected the weights of {path.name} (--weights)")
    origin, kind = str(path), _kind(path)
    if weights is not None and kind != "json":
        raise ExportError(f"{path}: --weights goes with a model.json; this file holds its own, leave --weights out")
    with _as_export_errors(origin):
        if kind == "folder":
            saved = read_saved_model(path)
            if saved.config is None:
                return _checkpoint(None, path)
            model = _build(saved.config, "2", origin, trust)
            set_by_name(model, saved.layers, origin)
            return _checkpoint(model, path)
        if kind == "zip":
            return _checkpoint(_read_archive(path, trust), path)
        if kind == "json":
            found = weights or _beside(path)
            return _checkpoint(_read_json(path, found, trust), path, found)
        return _checkpoint(_read_hdf5(path, trust), path)


def load_weights(path: Path, build: Callable[[int], Any], outputs: int) -> Any:
    """A model that has the weights of a file without one.

    build(outputs): the architecture with so many channels or values in its answer; where the file has another number of them
    than `outputs`, it is built once more. Raises ExportError naming the first layers that differ.
    """
    origin = str(path)
    with _as_export_errors(origin):
        stored = _stored(path)
        held = _outputs(stored) if stored is not None else None
        model = build(held or outputs)
        if stored is not None:
            set_by_order(model, stored, origin)
        else:
            differing = _inventory_differences(path, model)
            sizes = {got[-1] for got, expected in differing.values() if got and expected and got[:-1] == expected[:-1]}
            if len(sizes) == 1 and len(differing) <= 2:
                model = build(sizes.pop())
                differing = _inventory_differences(path, model)
            if differing:
                faults = [f"{name} is {got or 'missing'}, expected {exp or 'none'}" for name, (got, exp) in differing.items()]
                raise ExportError(f"{origin}: {shorten(faults)}")
            _load_weights_of_keras_3(model, path)
        check_finite(model, origin)
    return model


def _read_archive(path: Path, trust: bool) -> Any:
    with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as folder:
        members = archive.namelist()
        if _CONFIG not in members or _WEIGHTS not in members:
            hint = (
                "a PyTorch checkpoint has another --arch"
                if any(name.endswith("data.pkl") for name in members)
                else "save it again"
            )
            raise ExportError(f"{path}: a zip archive without {_CONFIG} and {_WEIGHTS}, hence no Keras file; {hint}")
        metadata = json.loads(archive.read(_METADATA)) if _METADATA in members else {}
        version = str(metadata.get("keras_version", ""))
        config = json.loads(archive.read(_CONFIG))
        weights = Path(archive.extract(_WEIGHTS, folder))
        model = _build(config, version, str(path), trust)
        _set_weights(model, weights, config, version, str(path))
    return model


def _read_json(path: Path, weights: Path, trust: bool) -> Any:
    config = json.loads(path.read_text("utf-8"))
    if not isinstance(config, dict) or "class_name" not in config:
        raise ExportError(f"{path}: is JSON, but no Keras model (no class_name); expected what model.to_json() gives")
    if _kind(weights) != "hdf5":
        raise ExportError(f"{weights}: is no HDF5 file; expected the weights of {path.name} as model.save_weights() writes them")
    version = str(config.get("keras_version", ""))
    model = _build(config, version, str(path), trust)
    _set_weights(model, weights, config, version, str(weights))
    return model


def _read_hdf5(path: Path, trust: bool) -> Any | None:
    """The model; None where the file holds weights alone."""
    with _hdf5(path) as file:
        held = _attribute(file, "model_config")
        version = _attribute(file, "keras_version") or ""
        stored = _legacy_layers(file["model_weights"]) if held and "model_weights" in file else ()
    if not held:
        return None
    model = _build(json.loads(held), version, str(path), trust)
    set_by_name(model, stored, str(path))
    return model


def _build(config: Mapping[str, Any], keras_version: str, origin: str, trust: bool) -> Any:
    """The model of a configuration, its weights not set yet."""
    keras = import_keras()
    adapted: Config = for_keras_3(config, keras_version, origin)
    # what is loaded is looked through, not what the file says: nothing that was taken away runs, nothing that was added is missed
    code = [] if trust else list(find_code(adapted, keras))
    if code:
        raise ExportError(
            f"{origin}: {shorten(code)}, which loading it would run or import; expected Keras's own layers alone. "
            "If you know who made the file, say so with --trust-checkpoint"
        )
    model = keras.saving.deserialize_keras_object(adapted, safe_mode=not trust)
    if not getattr(model, "built", False) or not hasattr(model, "layers"):
        raise ExportError(f"{origin}: its model was never built: the shape of its input is not known; save it after a prediction")
    return model


def _set_weights(model: Any, weights: Path, config: Mapping[str, Any], keras_version: str, origin: str) -> None:
    """Set a whole model's weights from a file that belongs to its configuration."""
    with _hdf5(weights) as file:
        group = file.get("model_weights", file)
        stored = _legacy_layers(group) if _has_names(group) else None
    if stored is not None:
        set_by_name(model, stored, origin)
        return
    # Keras finds layers by their class and number: of use where both Keras count them in one order
    if keras_version.startswith("2") and [layer.name for layer in model.layers if _takes_part(layer)] != layer_names(config):
        raise ExportError(f"{origin}: TF-Keras 2 ordered its layers in another way than Keras 3 does; save the model as .h5")
    differing = _inventory_differences(weights, model)
    if differing:
        faults = [f"{name} is {got or 'missing'}, expected {exp or 'none'}" for name, (got, exp) in differing.items()]
        raise ExportError(f"{origin}: its weights do not fit its layers: {shorten(faults)}")
    _load_weights_of_keras_3(model, weights)


def _load_weights_of_keras_3(model: Any, path: Path) -> None:
    if path.name.endswith(".weights.h5"):
        model.load_weights(str(path))
        return
    with tempfile.TemporaryDirectory() as folder:  # Keras goes by the name
        model.load_weights(shutil.copyfile(path, Path(folder) / _WEIGHTS))


def _stored(path: Path) -> tuple[StoredLayer, ...] | None:
    """Weights in an order of their own; None: laid out by Keras 3, which finds them by class and number."""
    if path.is_dir():
        return read_saved_model(path).layers
    if _kind(path) != "hdf5":
        raise ExportError(f"{path}: is no HDF5 file; expected weights as model.save_weights() writes them")
    with _hdf5(path) as file:
        group = file.get("model_weights", file)
        return _legacy_layers(group) if _has_names(group) else None


def _outputs(stored: tuple[StoredLayer, ...]) -> int | None:
    shapes = [values.shape for layer in stored for _, values in layer.values if values.ndim]
    return int(shapes[-1][-1]) if shapes else None


def _inventory_differences(path: Path, model: Any) -> dict[str, tuple[tuple[int, ...] | None, tuple[int, ...] | None]]:
    """Weights that a file of Keras 3's layout has in another shape than the model would write: got, expected, by name."""
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / _WEIGHTS
        model.save_weights(str(written))
        with _hdf5(written) as expected, _hdf5(path) as got:
            wanted, held = _inventory(expected), _inventory(got)
    names = [name for name in (*wanted, *held) if wanted.get(name) != held.get(name)]
    return {name: (held.get(name), wanted.get(name)) for name in dict.fromkeys(names)}


def _inventory(file: Any) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}

    def visit(name: str, item: Any) -> None:
        # dropout layers keep the state of a random generator, which Keras versions store in different ways
        if name.startswith("layers/") and hasattr(item, "shape") and "seed_generator" not in name:
            found[name.removeprefix("layers/").replace("/layers/", "/").replace("/vars/", "/")] = tuple(item.shape)

    file.visititems(visit)
    return found


def _takes_part(layer: Any) -> bool:
    return type(layer).__name__ != "InputLayer"


def _has_names(group: Any) -> bool:
    return "layer_names" in group.attrs or "layer_names0" in group.attrs


def _legacy_layers(group: Any) -> tuple[StoredLayer, ...]:
    """Layers of an HDF5 file of Keras 2's layout, which Keras 3 writes as well. Source: Keras, `legacy_h5_format.py`."""
    return tuple(
        StoredLayer(
            allowed_name(name), tuple((weight, group[name][weight][()]) for weight in _names(group[name], "weight_names"))
        )
        for name in _names(group, "layer_names")
    )


def _names(group: Any, attribute: str) -> list[str]:
    """A list of names; one too long for HDF5 is cut into numbered attributes."""
    parts = [attribute] if attribute in group.attrs else []
    while not parts or parts[-1] != attribute:
        numbered = f"{attribute}{len(parts)}"
        if numbered not in group.attrs:
            break
        parts.append(numbered)
    return [name.decode("utf-8") if isinstance(name, bytes) else str(name) for part in parts for name in group.attrs[part]]


def _attribute(file: Any, name: str) -> str | None:
    value = file.attrs.get(name)
    return value.decode("utf-8") if isinstance(value, bytes) else None if value is None else str(value)


@contextmanager
def _hdf5(path: Path) -> Iterator[Any]:
    """An HDF5 file whose values are all its own. Raises ExportError."""
    try:
        h5py = importlib.import_module("h5py")
    except ImportError as error:
        raise ExportError(f"Keras's files need h5py: {INSTALL}") from error
    with h5py.File(path, "r") as file:
        _check_own(file, h5py, path, set())
        yield file


def _check_own(group: Any, h5py: ModuleType, path: Path, seen: set[int]) -> None:
    """Raise ExportError where a group takes values from other files: a checkpoint has no business with them."""
    for name in group:
        link = group.get(name, getlink=True)
        if isinstance(link, h5py.SoftLink):
            continue
        foreign = isinstance(link, h5py.ExternalLink)
        item: Any = None if foreign else group[name]
        if foreign or getattr(item, "external", None) or getattr(item, "is_virtual", False):
            raise ExportError(
                f"{path}: {name} takes its values from another file; expected a Keras file that holds all of its own"
            )
        address = h5py.h5o.get_info(item.id).addr
        if isinstance(item, h5py.Group) and address not in seen:
            seen.add(address)
            _check_own(item, h5py, path, seen)


def _kind(path: Path) -> str:
    """`folder`, `zip`, `hdf5` or `json`. Raises ExportError for anything else."""
    if path.is_dir():
        if (path / "saved_model.pb").is_file():
            return "folder"
        raise ExportError(f"{path}: a folder without saved_model.pb; expected {FORMATS}")
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise ExportError(f"{path}: cannot be read ({error.strerror}); expected {FORMATS}") from error
    if start.startswith(b"PK\x03\x04"):
        return "zip"
    if start.startswith(_HDF5):
        return "hdf5"
    if start.lstrip()[:1] == b"{":
        return "json"
    got = "is empty" if not start else f"begins with {start[:8]!r}"
    raise ExportError(f"{path}: {got}, which no Keras file does; expected {FORMATS}")


def _beside(path: Path) -> Path:
    candidates = [path.with_name(path.stem + suffix) for suffix in _WEIGHT_SUFFIXES]
    found = [candidate for candidate in candidates if candidate.is_file()]
    if not found:
        raise ExportError(f"{path}: no weights beside it; expected {' or '.join(c.name for c in candidates)}, or --weights FILE")
    return found[0]


def _hash_of(*paths: Path) -> str:
    files = sorted(file for path in paths for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
    hashes = []
    for file in files:
        digest = hashlib.sha256()
        with file.open("rb") as content:
            while chunk := content.read(1 << 20):
                digest.update(chunk)
        hashes.append(digest.hexdigest())
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _checkpoint(model: Any | None, *files: Path) -> Checkpoint:
    origin, hints = str(files[0]), Hints()
    if model is not None:
        check_finite(model, origin)
        size = tuple(model.inputs[0].shape[1:3]) if model.inputs else ()
        hints = Hints(tile=(size[0], size[1]) if len(size) == 2 and all(size) else None)
    return Checkpoint(origin, _hash_of(*files), KerasContent(model), hints)


@contextmanager
def _as_export_errors(origin: str) -> Iterator[None]:
    try:
        yield
    except ExportError:
        raise
    except Exception as error:
        # Keras, h5py and zipfile raise whatever a damaged file leads them to: none of it is for the user to tell apart
        first = (str(error).strip().splitlines() or [""])[0][:300]
        raise ExportError(
            f"{origin}: damaged, or no Keras file of a kind that is read ({type(error).__name__}: {first}); expected {FORMATS}"
        ) from error
