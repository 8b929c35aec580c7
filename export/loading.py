"""A checkpoint and an architecture to one float graph in the engines' contract, and to the source itself to hold it against."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from onnx import helper, numpy_helper
from torch import nn

from edge.sessions import Batch, Scores
from export.checkpoints import Checkpoint, KerasContent, ModuleContent, OnnxContent, load_network
from export.errors import ExportError
from export.networks import Architecture
from export.networks.grey_input import UNIT, GreyInput, Normalisation
from export.passes.adoption import adopt, final_activation
from export.passes.image_input import find_image_input
from export.to_onnx import OUTPUT, to_onnx

Reference = Callable[[Batch], Scores]
Answer = Literal["logits", "probabilities"]


@dataclass(frozen=True, slots=True)
class TrainedNetwork:
    """A network as the exporter works with it.

    architecture: complete, with the classes in index order.
    model: the float graph, `image` uint8 (n, 1, h, w) -> `scores` float32 logits, at the architecture's tile.
    reference: what the framework that trained it answers to the same tiles: logits or probabilities, as `answer` says.
    module: the same in torch, for fine-tuning; None where the file is a graph. order: the channels' places, if others.
    """

    origin: str
    sha256: str
    architecture: Architecture
    model: onnx.ModelProto
    reference: Reference
    answer: Answer
    module: nn.Module | None
    order: tuple[int, ...] | None = None

    def export_again(self, module: nn.Module) -> onnx.ModelProto:
        """The float graph of a network like `module`, with other weights."""
        return _reordered(to_onnx(module, *self.architecture.tile), self.order)


def load_trained(
    checkpoint: Checkpoint, architecture: Architecture, classes: tuple[str, ...] | None = None, clean: str | None = None
) -> TrainedNetwork:
    """Build, convert, and name the classes. classes: in index order; None: the architecture's.

    clean: name of a classifier's class that is no defect, which becomes class 0; None: the first one.
    Raises ExportError.
    """
    architecture = dataclasses.replace(architecture, classes=classes or architecture.classes)
    content = checkpoint.content
    if isinstance(content, KerasContent):
        loaded = _load_keras(checkpoint, content, architecture)
    elif isinstance(content, OnnxContent):
        loaded = _load_onnx(checkpoint, content, architecture)
    else:
        loaded = _load_torch(checkpoint, architecture)
    return _with_clean_first(_named(loaded), clean)


def _load_torch(checkpoint: Checkpoint, architecture: Architecture) -> TrainedNetwork:
    normalisation = architecture.normalisation
    source: nn.Module | None = checkpoint.content.module if isinstance(checkpoint.content, ModuleContent) else None
    if architecture.build is not None:
        network = load_network(checkpoint, architecture)
    elif source is not None:
        network = source
    else:
        raise ExportError(
            f"{checkpoint.origin}: holds weights alone, and --arch {architecture.name} takes the network that a file holds; "
            "expected the architecture's name (`rust-edge export --list`), or the network saved whole (torch.export, TorchScript)"
        )
    module = GreyInput(network, normalisation) if normalisation else network
    asked = GreyInput(source, normalisation) if source is not None and normalisation else source or module

    def reference(batch: Batch) -> Scores:
        with torch.inference_mode():
            answer: Scores = asked(torch.from_numpy(batch)).float().numpy()
        return answer

    model, answer = _to_logits(to_onnx(module, *architecture.tile), architecture)
    return TrainedNetwork(
        checkpoint.origin, checkpoint.sha256, architecture, model, reference, answer, module if answer == "logits" else None
    )


def _load_keras(checkpoint: Checkpoint, content: KerasContent, architecture: Architecture) -> TrainedNetwork:
    from export.checkpoints.keras_files import import_keras, load_weights  # Keras takes seconds to import
    from export.networks.keras_channels import input_channels, to_module

    keras, model = import_keras(), content.model
    if model is None:
        if architecture.build_keras is None:
            raise ExportError(
                f"{checkpoint.origin}: holds weights of Keras alone, and --arch {architecture.name} builds no network of Keras; "
                "expected one of its own architectures (`rust-edge export --list`), or the model saved whole"
            )
        build, channels = architecture.build_keras, _channels(architecture)
        model = load_weights(_path(checkpoint), lambda outputs: build(keras, outputs), channels)
    elif architecture.build_keras is not None:
        _require_like(checkpoint, model, architecture)
    elif architecture.framework != "any":
        raise ExportError(
            f"{checkpoint.origin}: holds a network of Keras, {architecture.name} is one of {architecture.framework}; "
            f"expected --arch any-{architecture.kind}, or an architecture of Keras (`rust-edge export --list`)"
        )
    normalisation = architecture.normalisation or UNIT
    if normalisation.channels != input_channels(model):
        raise ExportError(
            f"{checkpoint.origin}: takes {input_channels(model)} channels, the normalisation has {normalisation.channels}; "
            "expected one mean and deviation a channel (--mean, --deviation)"
        )
    network = to_module(model, architecture.tile)
    module = GreyInput(network, normalisation)

    def reference(batch: Batch) -> Scores:
        images = _normalised(batch, normalisation).transpose(0, 2, 3, 1)
        scores = np.asarray(keras.ops.convert_to_numpy(model(images, training=False)), np.float32)
        return scores.transpose(0, 3, 1, 2) if scores.ndim == 4 else scores

    answer: Answer = "probabilities" if network.final_activation in ("softmax", "sigmoid") else "logits"
    if architecture.framework == "any" and network.final_activation:
        architecture = dataclasses.replace(architecture, activation=network.final_activation)  # type: ignore[arg-type]
    exported = to_onnx(module, *architecture.tile)
    return TrainedNetwork(checkpoint.origin, checkpoint.sha256, architecture, exported, reference, answer, module)


def _load_onnx(checkpoint: Checkpoint, content: OnnxContent, architecture: Architecture) -> TrainedNetwork:
    normalisation = architecture.normalisation or UNIT
    source = content.model
    ending = final_activation(source)
    if architecture.framework == "any" and ending is not None:
        architecture = dataclasses.replace(architecture, activation=ending)
    model = adopt(source, normalisation, architecture.activation, architecture.tile)
    image = find_image_input(source)
    assert image is not None  # `adopt` refuses a graph that has none
    session = ort.InferenceSession(source.SerializeToString(), providers=["CPUExecutionProvider"])
    kind = np.uint8 if image.kind == onnx.TensorProto.UINT8 else np.float32

    def reference(batch: Batch) -> Scores:
        images = _normalised(batch, normalisation).astype(kind)
        images = images.transpose(0, 2, 3, 1) if image.channels_last else images
        parts = [images] if image.batch is None else np.split(images, len(images))
        scores = np.concatenate([session.run(None, {image.name: np.ascontiguousarray(part)})[0] for part in parts])
        channels_last = scores.ndim == 4 and scores.shape[1:3] == batch.shape[2:]
        return np.asarray(scores.transpose(0, 3, 1, 2) if channels_last else scores, np.float32)

    return TrainedNetwork(
        checkpoint.origin, checkpoint.sha256, architecture, model, reference, "probabilities" if ending else "logits", None
    )


def _require_like(checkpoint: Checkpoint, model: Any, architecture: Architecture) -> None:
    """Raise ExportError where a Keras model is not the named architecture's."""
    from export.checkpoints.keras_weights import compare
    from export.networks import ARCHITECTURES

    def faults_of(candidate: Architecture) -> list[str]:
        from export.checkpoints.keras_files import import_keras

        assert candidate.build_keras is not None
        return compare(model, candidate.build_keras(import_keras(), int(model.outputs[0].shape[-1])))

    faults = faults_of(architecture)
    if not faults:
        return
    others = [a for a in ARCHITECTURES.values() if a.build_keras is not None and a is not architecture]
    fitting = [a.name for a in others if not faults_of(a)] or [f"any-{architecture.kind}"]
    raise ExportError(
        f"{checkpoint.origin}: does not fit {architecture.name}: {'; '.join(faults[:3])}"
        f"{f'; and {len(faults) - 3} more' if len(faults) > 3 else ''}; it would fit --arch {' or '.join(fitting)}"
    )


def _to_logits(model: onnx.ModelProto, architecture: Architecture) -> tuple[onnx.ModelProto, Answer]:
    """The graph without a final softmax or sigmoid, and what the network itself answers."""
    ending = final_activation(model)
    if ending is None:
        return model, "logits"
    return adopt(model, None, ending, architecture.tile), "probabilities"


def _named(network: TrainedNetwork) -> TrainedNetwork:
    """With its classes counted: `any` architectures learn here whether the background has a channel of its own."""
    architecture = network.architecture
    names, activation = architecture.classes, architecture.activation
    channels = network.model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    if architecture.framework == "any" and channels in (len(names), len(names) - 1) and network.answer == "logits":
        activation = "softmax" if channels == len(names) else "sigmoid"
    expected = channels if activation == "softmax" else channels + 1
    if len(names) != expected:
        raise ExportError(
            f"the network tells {expected} classes apart, got {len(names)} names ({', '.join(names)}); "
            "expected one each, the background's or clean steel's first (--classes background,...)"
        )
    if len(set(names)) != len(names) or not all(names):
        raise ExportError(f"class names are {', '.join(names)}; expected every one once, none empty")
    return dataclasses.replace(network, architecture=dataclasses.replace(architecture, activation=activation))


def _with_clean_first(network: TrainedNetwork, clean: str | None) -> TrainedNetwork:
    architecture = network.architecture
    if clean is None or clean == architecture.classes[0]:
        return network
    if clean not in architecture.classes or architecture.kind != "classifier" or architecture.activation != "softmax":
        raise ExportError(
            f"--clean: got {clean}; expected one of the classes {', '.join(architecture.classes)} of a softmax classifier"
        )
    first = architecture.classes.index(clean)
    order = (first, *(index for index in range(len(architecture.classes)) if index != first))
    names = tuple(architecture.classes[index] for index in order)
    source = network.reference
    return dataclasses.replace(
        network,
        architecture=dataclasses.replace(architecture, classes=names),
        model=_reordered(network.model, order),
        reference=lambda batch: source(batch)[:, list(order)],
        order=order,
    )


def _reordered(model: onnx.ModelProto, order: tuple[int, ...] | None) -> onnx.ModelProto:
    """The graph with its scores' channels in another order."""
    if order is None:
        return model
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for node in changed.graph.node:
        node.output[:] = ["scores_unordered" if name == OUTPUT else name for name in node.output]
    changed.graph.initializer.append(numpy_helper.from_array(np.array(order, np.int64), "class_order"))
    gather = helper.make_node("Gather", ["scores_unordered", "class_order"], [OUTPUT], "class_order/Gather", axis=1)
    changed.graph.node.append(gather)
    onnx.checker.check_model(changed, full_check=True)
    return changed


def _normalised(batch: Batch, normalisation: Normalisation) -> npt.NDArray[np.float32]:
    """(n, channels, h, w) float32 as the network was trained with."""
    grey = batch.astype(np.float64)
    channels = [(grey - mean) / deviation for mean, deviation in zip(normalisation.mean, normalisation.deviation, strict=True)]
    return np.concatenate(channels, axis=1).astype(np.float32)


def _channels(architecture: Architecture) -> int:
    return max(1, len(architecture.classes) - (architecture.activation == "sigmoid"))


def _path(checkpoint: Checkpoint) -> Path:
    return Path(checkpoint.origin)
