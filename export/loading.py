"""A checkpoint and an architecture to one float graph in the engines' contract, and to the source itself to hold it against."""

from __future__ import annotations

import dataclasses
import tempfile
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
from export.checkpoints import Checkpoint, KerasContent, ModuleContent, OnnxContent, StateContent, load_network
from export.errors import ExportError
from export.networks import Architecture
from export.networks.grey_input import UNIT, GreyInput, Normalisation
from export.passes.adoption import Activation, adopt, final_activation
from export.passes.image_input import ImageInput, find_image_input
from export.passes.sizes import with_scales
from export.passes.widening import to_float32
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
    try:
        loaded = _named(_load(checkpoint, architecture))
    except ExportError as error:
        if checkpoint.origin in str(error) or isinstance(error.__cause__, OSError):
            raise
        raise ExportError(f"{checkpoint.origin}: {_one_line(error)}") from error
    return _with_clean_first(loaded, clean)


def check_framework(checkpoint: Checkpoint, architecture: Architecture) -> None:
    """Raise ExportError where an architecture reads no file of this kind, whatever the file holds."""
    content, origin, kind = checkpoint.content, checkpoint.origin, architecture.kind
    if isinstance(content, StateContent) and architecture.build is None:
        load_network(checkpoint, architecture)  # raises, naming the architectures that would fit
    if isinstance(content, ModuleContent) and architecture.framework == "keras":
        held, expected = "a network of PyTorch", f"--arch any-{kind}, or an architecture of PyTorch"
    elif not isinstance(content, KerasContent) or architecture.build_keras is not None:
        return
    elif content.model is None:
        held, expected = "weights of Keras alone", "one of Keras's architectures, or the model saved whole"
    elif architecture.framework != "any":
        held, expected = "a network of Keras", f"--arch any-{kind}, or an architecture of Keras"
    else:
        return
    raise ExportError(
        f"{origin}: holds {held}, which {architecture.name} does not read; expected {expected} (`rust-edge export --list`)"
    )


def _load(checkpoint: Checkpoint, architecture: Architecture) -> TrainedNetwork:
    check_framework(checkpoint, architecture)
    content = checkpoint.content
    if isinstance(content, KerasContent):
        return _load_keras(checkpoint, content, architecture)
    if isinstance(content, OnnxContent):
        return _load_onnx(checkpoint, content, architecture)
    return _load_torch(checkpoint, architecture)


def _load_torch(checkpoint: Checkpoint, architecture: Architecture) -> TrainedNetwork:
    normalisation = architecture.normalisation
    source: nn.Module | None = checkpoint.content.module if isinstance(checkpoint.content, ModuleContent) else None
    network = source if source is not None and architecture.build is None else load_network(checkpoint, architecture)
    module = GreyInput(network, normalisation) if normalisation else network
    asked = GreyInput(source, normalisation) if source is not None and normalisation else source or module

    def reference(batch: Batch) -> Scores:
        with torch.inference_mode():
            try:
                answer: Scores = asked(torch.from_numpy(batch)).float().numpy()
            except RuntimeError as error:
                raise _other_size(checkpoint, batch, error) from error
        return answer

    try:
        model = to_onnx(module, *architecture.tile)
    except ExportError as error:
        if isinstance(error.__cause__, OSError):  # torch writes the graph to a file of its own first
            full = f"{tempfile.gettempdir()}: cannot be written ({error.__cause__.strerror})"
            raise ExportError(f"{full}; make room, or name another folder (TMPDIR)") from error.__cause__
        height, width = architecture.tile
        channels = normalisation.channels if normalisation else 1
        raise ExportError(
            f"{checkpoint.origin}: fed {_counted(channels)} of {height}x{width} (--mean, --deviation, --tile), {_one_line(error)}"
        ) from error
    ending = final_activation(model)
    if ending is not None:
        model = adopt(model, None, ending, architecture.tile)
        architecture = dataclasses.replace(architecture, activation=_read_as(checkpoint, architecture, ending))
    return TrainedNetwork(
        checkpoint.origin,
        checkpoint.sha256,
        architecture,
        model,
        reference,
        "probabilities" if ending else "logits",
        None if ending else module,
    )


def _load_keras(checkpoint: Checkpoint, content: KerasContent, architecture: Architecture) -> TrainedNetwork:
    from export.checkpoints.keras_files import import_keras, load_weights  # Keras takes seconds to import
    from export.networks.keras_channels import input_channels, to_module

    keras, model = import_keras(), content.model
    if model is None:
        build, channels = architecture.build_keras, _channels(architecture)
        assert build is not None  # `check_framework` refuses weights alone that nothing is built for
        model = load_weights(_path(checkpoint), lambda outputs: build(keras, outputs), channels)
    elif architecture.build_keras is not None:
        _require_like(checkpoint, model, architecture)
    normalisation = architecture.normalisation or UNIT
    if normalisation.channels != input_channels(model):
        raise ExportError(
            f"{checkpoint.origin}: takes {_counted(input_channels(model))}, the normalisation has {normalisation.channels}; "
            "expected one mean and deviation a channel (--mean, --deviation)"
        )
    network = to_module(model, architecture.tile)
    module = GreyInput(network, normalisation)
    asked = _of_any_size(keras, model) if architecture.framework == "any" and architecture.kind == "segmenter" else model

    def reference(batch: Batch) -> Scores:
        images = _normalised(batch, normalisation).transpose(0, 2, 3, 1)
        try:
            scores = np.asarray(keras.ops.convert_to_numpy(asked(images, training=False)), np.float32)
        except (ValueError, RuntimeError, TypeError) as error:
            raise _other_size(checkpoint, batch, error) from error
        return scores.transpose(0, 3, 1, 2) if scores.ndim == 4 else scores

    answer: Answer = "probabilities" if network.final_activation in ("softmax", "sigmoid") else "logits"
    if architecture.framework == "any" and network.final_activation:
        architecture = dataclasses.replace(architecture, activation=network.final_activation)  # type: ignore[arg-type]
    exported = to_onnx(module, *architecture.tile)
    return TrainedNetwork(checkpoint.origin, checkpoint.sha256, architecture, exported, reference, answer, module)


def _of_any_size(keras: Any, model: Any) -> Any:
    """The same model for images of any height and width; as it is where Keras cannot make that of it."""
    if None in model.input_shape[1:3]:
        return model
    try:
        free = keras.models.clone_model(model, input_tensors=keras.Input((None, None, model.input_shape[3])))
        free.set_weights(model.get_weights())
    except (ValueError, TypeError, RuntimeError, AttributeError, NotImplementedError):  # layers that need the size
        return model
    return free


def _load_onnx(checkpoint: Checkpoint, content: OnnxContent, architecture: Architecture) -> TrainedNetwork:
    source = to_float32(content.model)
    ending = final_activation(source)
    if ending is not None:
        architecture = dataclasses.replace(architecture, activation=_read_as(checkpoint, architecture, ending))
    normalisation = architecture.normalisation
    model = adopt(source, normalisation, architecture.activation, architecture.tile)
    image = find_image_input(source)
    assert image is not None  # `adopt` refuses a graph that has none
    session = ort.InferenceSession(_with_free_size(source, image).SerializeToString(), providers=["CPUExecutionProvider"])
    kind = helper.tensor_dtype_to_np_dtype(image.kind)
    if kind == np.uint8 or normalisation is None:
        normalisation = _as_they_are(image.channels or 1)
    per_tile = len(model.graph.output[0].type.tensor_type.shape.dim) == 2

    def reference(batch: Batch) -> Scores:
        images = _normalised(batch, normalisation).astype(kind)
        images = images.transpose(0, 2, 3, 1) if image.channels_last else images
        parts = [images] if image.batch is None else np.split(images, len(images))
        try:
            scores = np.concatenate([session.run(None, {image.name: np.ascontiguousarray(part)})[0] for part in parts])
        except Exception as error:  # ONNX Runtime's errors have no common class of their own
            raise _other_size(checkpoint, batch, error) from error
        scores = np.asarray(scores, np.float32)
        if per_tile or scores.ndim == 3:
            return scores.reshape((len(scores), -1) if per_tile else (len(scores), 1, *scores.shape[1:]))
        return scores.transpose(0, 3, 1, 2) if scores.shape[1:3] == batch.shape[2:] else scores

    return TrainedNetwork(
        checkpoint.origin, checkpoint.sha256, architecture, model, reference, "probabilities" if ending else "logits", None
    )


def _with_free_size(source: onnx.ModelProto, image: ImageInput) -> onnx.ModelProto:
    """The graph itself, but for the height and width that it declares: a network of convolutions takes others too."""
    free = with_scales(source)
    places = (1, 2) if image.channels_last else (2, 3)
    value = next(value for value in free.graph.input if value.name == image.name)
    for place, name in zip(places, ("height", "width"), strict=True):
        value.type.tensor_type.shape.dim[place].dim_param = name
    for output in free.graph.output:
        output.type.tensor_type.ClearField("shape")
    del free.graph.value_info[:]
    return free


def _as_they_are(channels: int) -> Normalisation:
    return Normalisation((0.0,) * channels, (1.0,) * channels)


def _read_as(checkpoint: Checkpoint, architecture: Architecture, ending: Activation) -> Activation:
    """The activation that a network ends in. Raises ExportError where its architecture has another one."""
    if architecture.framework != "any" and ending != architecture.activation:
        raise ExportError(
            f"{checkpoint.origin}: ends in a {ending}, {architecture.name} in a {architecture.activation}; "
            f"expected --arch any-{architecture.kind}"
        )
    return ending


def _other_size(checkpoint: Checkpoint, batch: Batch, error: Exception) -> ExportError:
    return ExportError(
        f"{checkpoint.origin}: does not take images of {batch.shape[2]}x{batch.shape[3]} ({_one_line(error)}); "
        "expected one that takes any size: export it with dynamic height and width"
    )


def _counted(channels: int) -> str:
    return "1 channel" if channels == 1 else f"{channels} channels"


def _one_line(error: Exception) -> str:
    """What an error says first and, where a runtime tells its way there, last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[0] if len(lines) == 1 else f"{lines[0]} ... {lines[-1]}"


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


def _named(network: TrainedNetwork) -> TrainedNetwork:
    """With its classes counted: `any` architectures learn here whether the background has a channel of its own."""
    architecture = network.architecture
    names, activation = architecture.classes, architecture.activation
    sizes = network.model.graph.output[0].type.tensor_type.shape.dim
    kind = "segmenter" if len(sizes) == 4 and architecture.cell is None else "classifier"
    if architecture.cell is not None and [size.dim_value * architecture.cell for size in sizes[2:]] != list(architecture.tile):
        scores = "x".join(str(size.dim_value) for size in sizes[2:]) or "one score"
        height, width = architecture.tile
        raise ExportError(
            f"the network answers {scores} to a tile of {height}x{width}, {architecture.name} scores cells of "
            f"{architecture.cell}x{architecture.cell}; take another --arch"
        )
    if kind != architecture.kind:
        scores = "scores per pixel" if kind == "segmenter" else "scores per image"
        raise ExportError(f"the network answers {scores}, {architecture.name} is a {architecture.kind}; take another --arch")
    channels = sizes[1].dim_value
    if architecture.framework == "any" and network.answer == "logits":
        activation = "sigmoid" if channels in (1, len(names) - 1) else "softmax"
    expected = channels if activation == "softmax" else channels + 1
    if len(names) != expected:
        raise ExportError(
            f"the network tells {expected} classes apart, got {len(names)} names ({', '.join(names)}); "
            "expected one each, the background's or clean steel's first (--classes background,...)"
        )
    if len(set(names)) != len(names) or not all(name and name.isprintable() for name in names):
        raise ExportError(f"class names are {', '.join(map(repr, names))}; expected every one once, none empty, all printable")
    return dataclasses.replace(network, architecture=dataclasses.replace(architecture, activation=activation))


def _with_clean_first(network: TrainedNetwork, clean: str | None) -> TrainedNetwork:
    architecture = network.architecture
    if clean is None or clean == architecture.classes[0]:
        return network
    if clean not in architecture.classes or architecture.kind != "classifier":
        raise ExportError(f"--clean: got {clean}; expected one of a classifier's classes, here {', '.join(architecture.classes)}")
    if architecture.activation != "softmax":
        raise ExportError(
            f"--clean: got {clean}, but the network's one score is that of its second class; expected that to be the defect"
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
