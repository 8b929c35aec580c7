"""A Keras model's configuration: looked through for code before it is loaded, and brought to what Keras 3 reads."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from export.errors import ExportError

Config = dict[str, Any]

_RUNS_CODE = {
    "Lambda": "holds Python code",
    "__lambda__": "holds Python code",
    "TorchModuleWrapper": "holds a pickled PyTorch module",
    "JaxLayer": "holds code of its own",
    "FlaxLayer": "holds code of its own",
    "TFSMLayer": "loads a TensorFlow program from another file",
    "__typespec__": "names a class to import",
    "StringLookup": "reads another file",
    "IntegerLookup": "reads another file",
    "TextVectorization": "reads another file",
}
"""Classes of Keras's own that do more, when loaded, than to build a layer."""

_TAGS = frozenset({
    "__tuple__", "__keras_tensor__", "__tensor__", "__numpy__", "__bytes__", "__ellipsis__", "__slice__", "TensorShape",
    "Policy",
})  # fmt: skip
"""`class_name` of plain values."""

_MODULES = ("layers", "models", "initializers", "regularizers", "constraints", "activations", "dtype_policies", "ops", "engine")
"""Parts of Keras that a configuration names classes of. Not among them: `keras.utils` and `keras.saving`, which read files."""

_TENSORFLOW_CALLS = frozenset({"TFOpLambda", "SlicingOpLambda", "ClassMethod", "InstanceMethod", "InstanceProperty"})
"""What TF-Keras 2 makes of an operation that is called outside a layer."""

_REDUCED = frozenset({"mixed_float16", "mixed_bfloat16", "float16", "bfloat16", "float64"})
"""Types that a layer may have computed in. The engine is made in float32, so what it is held against runs in it, too."""

_TRAINING_ALONE = ("_initializer", "_regularizer", "_constraint")


def find_code(config: object, keras: ModuleType, layer: str = "") -> Iterator[str]:
    """What in a configuration would import or run code, or read other files, when it is loaded: one text each, with the layer."""
    if isinstance(config, (list, tuple)):
        for item in config:
            yield from find_code(item, keras, layer)
    if not isinstance(config, Mapping):
        return
    kind = config.get("class_name")
    if isinstance(kind, str):
        layer = _name_of(config) or layer
        reason = _RUNS_CODE.get(kind) or _foreign(config, kind, keras)
        if reason:
            yield f"layer '{layer}' ({kind}) {reason}"
            return
    for key, value in config.items():
        # how the model was trained is not loaded
        if key not in ("compile_config", "training_config"):
            yield from find_code(value, keras, layer)


def for_keras_3(config: Mapping[str, Any], keras_version: str, origin: str) -> Config:
    """The configuration as `keras.saving.deserialize_keras_object` of Keras 3 takes it; what only training needs is left out.

    keras_version: of the Keras that wrote it, empty where the file does not say. Raises ExportError for what Keras 3 lacks.
    """
    legacy = _is_legacy(config, keras_version)
    adapted = _adapted(config, legacy, origin)
    if legacy:
        adapted = _renamed(adapted, {n: allowed_name(n) for n in _all_names(adapted) if n != allowed_name(n)})
    if not isinstance(adapted, dict) or not isinstance(adapted.get("config"), dict):
        raise ExportError(f"{origin}: its configuration is no Keras model's (no class_name and config); copy the file again")
    if legacy or "module" not in adapted:
        kind = str(adapted.get("class_name"))
        if kind not in ("Functional", "Model", "Sequential"):
            raise ExportError(
                f"{origin}: its model is code (class {kind}), not a graph of layers; expected keras.Sequential or "
                "keras.Model(inputs, outputs), or the network as ONNX"
            )
        adapted |= {"module": "keras", "registered_name": None, "class_name": "Model" if kind == "Functional" else kind}
    return adapted


def allowed_name(layer: str) -> str:
    """A layer's name in Keras 3 on torch, which allows neither `/` nor `.` in it."""
    return layer.replace("/", "_").replace(".", "_")


def layer_names(config: Mapping[str, Any]) -> list[str]:
    """Names of a model's layers in the order of its configuration, without the inputs."""
    layers = config.get("config", {}).get("layers", [])
    return [allowed_name(_name_of(layer)) for layer in layers if layer.get("class_name") != "InputLayer"]


def _is_legacy(config: Mapping[str, Any], keras_version: str) -> bool:
    if keras_version:
        return keras_version.split(".")[0] in ("1", "2")
    module, inner = str(config.get("module", "")), config.get("config")
    layers = inner.get("layers") if isinstance(inner, Mapping) else None
    # Keras 2 writes the modules of classes from 2.13 on, and other ones
    return module.startswith("tf_keras") or ".engine." in module or not layers or "module" not in layers[0]


def _adapted(value: Any, legacy: bool, origin: str) -> Any:
    if isinstance(value, (list, tuple)):
        return [_adapted(item, legacy, origin) for item in value]
    if not isinstance(value, Mapping):
        return value
    kind = value.get("class_name")
    if kind in ("__tuple__", "TensorShape") and "items" in value:
        return [_adapted(item, legacy, origin) for item in value["items"]]
    if kind == "function" and legacy:
        return value.get("config")
    kept = {k: v for k, v in value.items() if k != "compile_config" and not str(k).endswith(_TRAINING_ALONE)}
    adapted = {key: _adapted(item, legacy, origin) for key, item in kept.items()}
    if _reduced(adapted.get("dtype")):
        adapted["dtype"] = "float32"
    return _of_keras_2(adapted, origin) if legacy and isinstance(kind, str) else adapted


def _of_keras_2(value: Config, origin: str) -> Config:
    """A class's configuration in Keras 2's form, without what Keras 3 has no argument for."""
    kind, config = value["class_name"], value.get("config")
    adapted = {key: item for key, item in value.items() if key not in ("module", "registered_name", "build_config")}
    if kind in _TENSORFLOW_CALLS:
        raise ExportError(
            f"{origin}: layer '{_name_of(value)}' ({kind}) is a TensorFlow function outside a layer, which Keras 3 cannot load; "
            "expected layers such as Rescaling or Normalization in its place, or the network as ONNX"
        )
    if kind == "Model":
        adapted["class_name"] = "Functional"
    if not isinstance(config, dict):
        return adapted
    if kind in ("Model", "Functional") and isinstance(config.get("layers"), list):
        adapted["config"] = _with_counted_calls(config)
        for ends in ("input_layers", "output_layers"):
            # one image and one answer are not lists of one in Keras 3
            if isinstance(config.get(ends), list) and len(config[ends]) == 1:
                adapted["config"][ends] = adapted["config"][ends][0]
    # Keras 2 writes the argument of the base class, which these layers of Keras 3 do not take
    if kind in ("Conv2DTranspose", "DepthwiseConv2D", "SeparableConv2D") and config.get("groups", 1) == 1:
        adapted["config"] = {key: item for key, item in config.items() if key != "groups"}
    # clip(0.2 x + 0.5) there, clip(x / 6 + 0.5) in Keras 3. Source: `hard_sigmoid` of either
    if "hard_sigmoid" in (config.get("activation"), config.get("recurrent_activation")):
        raise ExportError(
            f"{origin}: layer '{_name_of(value)}' ({kind}) has the activation hard_sigmoid, another function in Keras 3; "
            "expected one that is the same in both, or the network as ONNX"
        )
    return adapted


def _with_counted_calls(config: Config) -> Config:
    """A graph whose references count the calls of a Sequential inside it from 0, as Keras 3 does; Keras 2 begins at 1."""
    calls = {
        _name_of(layer): len(layer.get("inbound_nodes", ()))
        for layer in config["layers"]
        if isinstance(layer, Mapping) and layer.get("class_name") == "Sequential"
    }

    def references(value: Any) -> Iterator[list[Any]]:
        if isinstance(value, Mapping):
            value = list(value.values())
        if not isinstance(value, list):
            return
        if len(value) >= 3 and isinstance(value[0], str) and value[0] in calls and isinstance(value[1], int):
            yield value
        for item in value:
            yield from references(item)

    connected = copy.deepcopy(config)
    nodes = [layer.get("inbound_nodes", []) for layer in connected["layers"] if isinstance(layer, Mapping)]
    found = list(references([*nodes, connected.get("output_layers", [])]))
    for name, count in calls.items():
        own = [reference for reference in found if reference[0] == name]
        if any(reference[1] >= count for reference in own):
            for reference in own:
                reference[1] -= 1
    return connected


def _all_names(value: Any) -> set[str]:
    if isinstance(value, list):
        return set().union(*map(_all_names, value))
    if not isinstance(value, Mapping):
        return set()
    names = {_name_of(value)} if isinstance(value.get("class_name"), str) else set()
    return names.union(*map(_all_names, value.values()))


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """With every name, and every reference to it, replaced."""
    if isinstance(value, list):
        return [_renamed(item, names) for item in value]
    if isinstance(value, Mapping):
        return {key: _renamed(item, names) for key, item in value.items()}
    return names.get(value, value) if isinstance(value, str) else value


def _foreign(config: Mapping[str, Any], kind: str, keras: ModuleType) -> str | None:
    """Why a class is none of Keras's own; None where it is one."""
    if kind in _TAGS or kind in _TENSORFLOW_CALLS:
        return None
    module = config.get("module")
    if kind == "function":
        name = config.get("config")
        known = isinstance(name, str) and name not in ("get", "serialize", "deserialize") and hasattr(keras.activations, name)
        return None if known and module in ("builtins", "keras.activations") else f"names the function {module}.{name}"
    if module is None:
        parts = (
            getattr(keras, part) for part in ("layers", "models", "initializers", "regularizers", "constraints", "dtype_policies")
        )
        # `Model` and `Functional` stand for a graph of layers
        known = kind in ("Model", "Functional", "Sequential") or any(
            isinstance(getattr(part, kind, None), type) for part in parts
        )
        return None if known else "is of a class that is not Keras's own"
    places = str(module).split(".")
    inner = places[2:3] if places[1:2] == ["src"] else places[1:2]
    own = places[0] in ("keras", "tf_keras") and (not inner or inner[0] in _MODULES)
    return None if own else f"is of a class that is not Keras's own (module {module})"


def _reduced(dtype: object) -> bool:
    if isinstance(dtype, Mapping):
        dtype = (dtype.get("config") or {}).get("name") if isinstance(dtype.get("config"), Mapping) else None
    return isinstance(dtype, str) and dtype in _REDUCED


def _name_of(config: Mapping[str, Any]) -> str:
    inner = config.get("config")
    name = inner.get("name") if isinstance(inner, Mapping) else None
    return str(name or config.get("name") or "")
