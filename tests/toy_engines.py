"""Bundles whose answers are known by arithmetic: whole ONNX engines, small enough to be made in a test.

The segmenter calls pixels below 64 `dark` and above 192 `bright`; the gate lets tiles through that hold such a pixel.
The gate of cells says the same of every cell of 4 x 4 px and those around it, as the strip runs.
The relative segmenter and classifier look at a tile's lightest and darkest pixel, hence at all of it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import yaml
from onnx import TensorProto, helper, numpy_helper

from edge.sessions.ort import OrtSession
from export.passes.streaming import stream

SEGMENTER_CLASSES = ("background", "dark", "bright")
GATE_CLASSES = ("clean", "defect")
STRIDE = 4
TILE = 32
CELL = 4


def write_segmenter(folder: Path, **changes: object) -> Path:
    """A segmenter bundle; `changes` replace keys of its manifest."""
    weights = np.array([0.0, -0.5, 0.5], np.float32).reshape(3, 1, 1, 1)
    biases = np.array([0.0, 32.0, -96.0], np.float32)
    nodes = [
        helper.make_node("Cast", ["image"], ["grey"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["grey", "weights", "biases"], ["scores"], kernel_shape=[1, 1]),
    ]
    constants = [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(biases, "biases")]
    model = _model(nodes, constants, ["n", 3, "h", "w"])
    manifest = {"kind": "segmenter", "classes": list(SEGMENTER_CLASSES), "activation": "softmax", **changes}
    return write_bundle(folder, model, manifest)


def write_streaming_segmenter(folder: Path, **changes: object) -> Path:
    """A segmenter of `dark` and `bright` surroundings of 5 x 5 px, with its streaming engine; every sum is exact in a float."""
    weights = np.multiply.outer(np.array([0, -1, 1], np.float32), np.full((1, 5, 5), 1 / 128, np.float32))
    nodes = [
        helper.make_node("Cast", ["image"], ["grey"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["grey", "weights", "biases"], ["scores"], kernel_shape=[5, 5], pads=[2, 2, 2, 2]),
    ]
    biases = np.array([0.0, 12.5, -37.5], np.float32)
    constants = [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(biases, "biases")]
    model = _model(nodes, constants, ["n", 3, "h", "w"])
    streamed = stream(onnx.load_model_from_string(model))
    manifest = {
        "kind": "segmenter",
        "classes": list(SEGMENTER_CLASSES),
        "activation": "softmax",
        "radius": streamed.reach_lines,
        "streaming": {"lag_lines": streamed.lag_lines, "states": [state.model_dump() for state in streamed.states]},
    }
    return write_bundle(folder, model, manifest | changes, stream_model=bytes(streamed.model.SerializeToString()))


def write_gate(folder: Path, **changes: object) -> Path:
    """A gate bundle for tiles of 32 x 32 px."""
    nodes = [
        helper.make_node("Cast", ["image"], ["grey"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["grey", "middle"], ["off"]),
        helper.make_node("Abs", ["off"], ["distance"]),
        helper.make_node("ReduceMax", ["distance"], ["farthest"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Sub", ["farthest", "allowed"], ["over"]),
        helper.make_node("Reshape", ["over", "column"], ["scores"]),
    ]
    constants = [
        numpy_helper.from_array(np.float32(128), "middle"),
        numpy_helper.from_array(np.float32(64), "allowed"),
        numpy_helper.from_array(np.array([-1, 1], np.int64), "column"),
    ]
    model = _model(nodes, constants, ["n", 1])
    gate = {"score": 0.5, "recall": 1.0, "passed_clean": 0.0}
    manifest = {"kind": "classifier", "classes": list(GATE_CLASSES), "activation": "sigmoid", "gate": gate, **changes}
    return write_bundle(folder, model, manifest)


def write_cell_gate(folder: Path, **changes: object) -> Path:
    """A gate bundle that scores cells of 4 x 4 px of the strip reduced by 2, with its streaming engine."""
    nodes = [
        helper.make_node("Cast", ["image"], ["grey"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["grey", "middle"], ["off"]),
        helper.make_node("Abs", ["off"], ["distance"]),
        helper.make_node("MaxPool", ["distance"], ["farthest"], kernel_shape=[CELL, CELL], strides=[CELL, CELL]),
        helper.make_node("MaxPool", ["farthest"], ["around"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Sub", ["around", "allowed"], ["scores"]),
    ]
    constants = [numpy_helper.from_array(np.float32(value), name) for name, value in (("middle", 128), ("allowed", 64))]
    model = _model(nodes, constants, ["n", 1, "rows", "columns"])
    streamed = stream(onnx.load_model_from_string(model), CELL)
    states = [state.model_dump() for state in streamed.states]
    manifest = {
        "kind": "classifier",
        "classes": list(GATE_CLASSES),
        "activation": "sigmoid",
        "gate": {"score": 0.5, "recall": 1.0, "passed_clean": 0.0},
        "input": {"tile_height": TILE, "tile_width": TILE, "reduce": 2},
        "cell": CELL,
        "stride": streamed.stride,
        "radius": streamed.reach_lines,
        "halo": 2 * CELL,
        "streaming": {"lag_lines": streamed.lag_lines, "cell": CELL, "states": states},
    }
    return write_bundle(folder, model, manifest | changes, stream_model=bytes(streamed.model.SerializeToString()))


def write_relative_segmenter(folder: Path, tile: tuple[int, int] = (TILE, TILE), defects: int = 1, **changes: object) -> Path:
    """A sigmoid segmenter of `bright` (and `dark`): pixels far above (or below) the middle of their own tile's grey range."""
    weights = np.array([0.125, -0.125], np.float32)[:defects].reshape(1, defects, 1, 1)
    biases = np.array([-1.0, -2.0], np.float32)[:defects].reshape(1, defects, 1, 1)
    nodes = [
        *_grey_range(keepdims=1),
        helper.make_node("Add", ["grey", "grey"], ["twice"]),
        helper.make_node("Sub", ["twice", "range"], ["off"]),
        helper.make_node("Mul", ["off", "weights"], ["weighted"]),
        helper.make_node("Add", ["weighted", "biases"], ["logits"]),
    ]
    head = changes.get("head", "logits")
    nodes.append(helper.make_node("Sigmoid" if head == "probabilities" else "Identity", ["logits"], ["scores"]))
    constants = [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(biases, "biases")]
    manifest = {"kind": "segmenter", "classes": ["background", "bright", "dark"][: defects + 1], "activation": "sigmoid"}
    return write_bundle(folder, _model(nodes, constants, ["n", defects, "h", "w"]), manifest | changes, tile)


def relative_logits(tile: np.ndarray, defects: int = 1) -> np.ndarray:
    """What the relative segmenter answers to one tile (h, w) uint8, by arithmetic: (defects, h, w) float32, exact."""
    off = 2.0 * tile - (float(tile.max()) + float(tile.min()))
    return np.stack([off / 8 - 1, -off / 8 - 2][:defects]).astype(np.float32)


def write_range_classifier(folder: Path, tile: tuple[int, int] = (TILE, TILE), **changes: object) -> Path:
    """A softmax classifier of clean, `light` and `gloomy` tiles, from the middle of a tile's grey range."""
    nodes = [
        *_grey_range(keepdims=0),
        helper.make_node("Reshape", ["range", "column"], ["sum"]),
        helper.make_node("Sub", ["sum", "middle"], ["off"]),
        helper.make_node("Mul", ["off", "weights"], ["weighted"]),
        helper.make_node("Add", ["weighted", "biases"], ["scores"]),
    ]
    constants = [
        numpy_helper.from_array(np.array([-1, 1], np.int64), "column"),
        numpy_helper.from_array(np.float32(256), "middle"),
        numpy_helper.from_array(np.array([[0, 1 / 8, -1 / 8]], np.float32), "weights"),
        numpy_helper.from_array(np.array([[0, -6, -7]], np.float32), "biases"),
    ]
    manifest = {"kind": "classifier", "classes": ["clean", "light", "gloomy"], "activation": "softmax"}
    return write_bundle(folder, _model(nodes, constants, ["n", 3]), manifest | changes, tile)


def range_logits(tile: np.ndarray) -> np.ndarray:
    """What the range classifier answers to one tile (h, w) uint8, by arithmetic: (3,) float32, exact."""
    off = float(tile.max()) + float(tile.min()) - 256
    return np.array([0, off / 8 - 6, -off / 8 - 7], np.float32)


def _grey_range(keepdims: int) -> list[onnx.NodeProto]:
    """Nodes from `image` to `grey`, and to `range`: the sum of a tile's lightest and darkest grey."""
    return [
        helper.make_node("Cast", ["image"], ["grey"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["grey"], ["lightest"], axes=[1, 2, 3], keepdims=keepdims),
        helper.make_node("ReduceMin", ["grey"], ["darkest"], axes=[1, 2, 3], keepdims=keepdims),
        helper.make_node("Add", ["lightest", "darkest"], ["range"]),
    ]


def steel(lines: int, columns: int, *patches: tuple[int, int, int, int, int]) -> np.ndarray:
    """Grey steel with rectangles (line, column, lines, columns, grey)."""
    image = np.full((lines, columns), 128, np.uint8)
    for line, column, height, width, grey in patches:
        image[line : line + height, column : column + width] = grey
    return image


def _model(nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto], scores: list[str | int]) -> bytes:
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 1, "h", "w"])
    graph = helper.make_graph(
        nodes, "toy", [image], [helper.make_tensor_value_info("scores", TensorProto.FLOAT, scores)], initializer=constants
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def write_bundle(
    folder: Path,
    model: bytes,
    changes: dict[str, object],
    tile: tuple[int, int] = (TILE, TILE),
    stream_model: bytes | None = None,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(model)
    names = ["model.onnx", "golden.npz"]
    if stream_model is not None:
        (folder / "stream.onnx").write_bytes(stream_model)
        names.append("stream.onnx")
    patches = np.random.default_rng(1).integers(0, 256, (8, *tile), dtype=np.uint8)
    patches[:4] = 128
    with OrtSession(model, threads=1) as session:
        scores = session.infer(patches[:, None])
    undecided = 0.5 if changes.get("head") == "probabilities" else 0.0
    nothing = [] if changes["activation"] == "softmax" else [np.full_like(scores[:, :1], undecided)]
    labels = np.concatenate([*nothing, scores], axis=1).argmax(axis=1)
    np.savez(folder / "golden.npz", patches=patches, scores=scores.astype(np.float16), labels=labels.astype(np.uint8), step=1)
    manifest = {
        "format_version": 1,
        "name": folder.name,
        "input": {"tile_height": tile[0], "tile_width": tile[1]},
        "stride": STRIDE,
        "radius": 0,
        "halo": STRIDE,
        "precision": "fp32",
        "parameters": 1,
        "flops_per_pixel": 1.0,
        "source_checkpoint": "0" * 64,
        "files": {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names},
        **changes,
    }
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    return folder
