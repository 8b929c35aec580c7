"""TensorFlow's SavedModel folders as Keras writes them, read without TensorFlow.

TF-Keras 2 (`model.save(folder)`) puts the layers' configuration beside the graph, in `keras_metadata.pb`. Keras 3
(`model.export(folder)`) does not: of such a folder the weights alone can be had, in the order of the model's variables.

Source: TF-Keras, `saved_metadata.proto`; TensorFlow, `trackable_object_graph.proto`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.checkpoints.keras_config import allowed_name
from export.checkpoints.keras_weights import StoredLayer
from export.checkpoints.tensor_bundle import Array, TensorBundle
from export.checkpoints.wire_format import Value, as_bytes, as_number, read_fields, text_of
from export.errors import ExportError

_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"


@dataclass(frozen=True, slots=True)
class SavedModel:
    """config: of TF-Keras 2, None where the folder has none. layers: outermost ones with their weights, those of layers inside
    them included; without a configuration one that stands for all, in the order of the model's variables.
    """

    config: dict[str, Any] | None
    layers: tuple[StoredLayer, ...]


@dataclass(frozen=True, slots=True)
class _Node:
    """An object of the checkpoint. name, key: of the variable that it is."""

    children: dict[str, int]
    name: str
    key: str


def read_saved_model(folder: Path) -> SavedModel:
    """Read a folder with `saved_model.pb`. Raises ExportError."""
    bundle = TensorBundle(folder / "variables" / "variables")
    try:
        nodes = [_node(message) for _, message in read_fields(bundle.text(_OBJECT_GRAPH))]
        metadata = folder / "keras_metadata.pb"
        if metadata.is_file():
            return _of_tf_keras(folder, metadata.read_bytes(), nodes, bundle)
        listed = nodes[nodes[0].children["variables"]].children if nodes and "variables" in nodes[0].children else {}
        variables = [nodes[index] for _, index in sorted(listed.items(), key=lambda child: int(child[0]))]
    except (ValueError, KeyError, IndexError, RecursionError) as error:
        raise ExportError(f"{folder}: damaged SavedModel ({type(error).__name__}: {error}); copy the folder again") from error
    if not variables:
        raise ExportError(
            f"{folder}: a SavedModel without Keras's description (keras_metadata.pb) or list of variables; expected one of "
            "TF-Keras 2 (model.save), or of Keras 3 (model.export) with --arch; or the model as .keras, .h5 or ONNX"
        )
    return SavedModel(None, (StoredLayer("", tuple((v.name, bundle.tensor(v.key)) for v in variables)),))


def _of_tf_keras(folder: Path, metadata: bytes, nodes: list[_Node], bundle: TensorBundle) -> SavedModel:
    described: dict[tuple[str, ...], dict[str, Any]] = {}
    for _, message in read_fields(metadata):
        fields: dict[int, Value] = dict(read_fields(as_bytes(message)))
        document = json.loads(text_of(fields.get(5, b"{}")))
        described[tuple(text_of(fields.get(3, b"")).split(".")[1:])] = document
    root = described.get((), {})
    if "class_name" not in root or "config" not in root:
        raise ExportError(
            f"{folder}: its model is code, not a graph of layers; expected keras.Sequential or "
            "keras.Model(inputs, outputs), or the network as ONNX"
        )
    layers: dict[str, list[tuple[str, Array]]] = {}
    # objects that are met by several ways are described once: at the first
    for path, document in described.items():
        names = [described[path[:end]].get("name") for end in range(1, len(path) + 1) if path[:end] in described]
        if not path or len(names) != len(path):
            continue
        index = 0
        for step in path:
            index = nodes[index].children[step]
        for role, child in nodes[index].children.items():
            if nodes[child].key and "/" not in role and not role.isdecimal():
                layers.setdefault(str(names[0]), []).append((f"{document['name']}/{role}", bundle.tensor(nodes[child].key)))
    stored = tuple(StoredLayer(allowed_name(name), tuple(values)) for name, values in layers.items())
    return SavedModel({"class_name": root["class_name"], "config": root["config"]}, stored)


def _node(message: Value) -> _Node:
    children, name, key = {}, "", ""
    for number, value in read_fields(as_bytes(message)):
        if number == 1:
            child: dict[int, Value] = dict(read_fields(as_bytes(value)))
            children[text_of(child.get(2, b""))] = as_number(child.get(1, 0))
        elif number == 2:
            attribute: dict[int, Value] = dict(read_fields(as_bytes(value)))
            name, key = text_of(attribute.get(2, b"")), text_of(attribute.get(3, b""))
    return _Node(children, name, key)
