from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from foreign_networks import TILE, answer, classifier, save_exported, save_onnx, save_torchscript, segmenter
from small_checkpoints import trained_unet
from torch import nn

from edge.sessions import Batch
from edge.sessions.ort import OrtSession
from export.checkpoints import checkpoint_of, read_checkpoint
from export.errors import ExportError
from export.loading import TrainedNetwork, load_trained
from export.networks import Architecture, find_architecture
from export.networks.grey_input import UNIT, UNIT_RGB, Normalisation

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")  # torch's, of formats that it means to give up: users have files of them

NAMES = ("background", "pit", "rust")
Saver = Callable[[nn.Module, Path], Path]


def anyone(kind: str = "segmenter", normalisation: Normalisation = UNIT, names: tuple[str, ...] = NAMES) -> Architecture:
    generic = find_architecture(f"any-{kind}")
    return dataclasses.replace(generic, classes=names, tile=(TILE, TILE), normalisation=normalisation)


def load(path: Path, architecture: Architecture, clean: str | None = None) -> TrainedNetwork:
    return load_trained(read_checkpoint(path), architecture, clean=clean)


def images(count: int = 3, height: int = TILE, width: int = TILE) -> Batch:
    return np.random.default_rng(height).integers(0, 256, (count, 1, height, width), np.uint8)


def infer(network: TrainedNetwork, batch: Batch) -> np.ndarray:
    with OrtSession(network.model.SerializeToString(), threads=1) as session:
        return session.infer(batch).copy()


def save_half(network: nn.Module, path: Path) -> Path:
    """With weights, input and answer in half precision, as exporters for GPUs write them."""
    model = onnx.load(save_onnx(network, path))
    for tensor in model.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    del model.graph.value_info[:]
    onnx.save(model, path)
    return path


class ChannelsLast(nn.Module):
    """As Keras's graphs are."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.network(image.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def save_channels_last(network: nn.Module, path: Path) -> Path:
    example = torch.zeros(1, TILE, TILE, 1)
    torch.onnx.export(
        ChannelsLast(network), (example,), str(path), dynamo=False, opset_version=17, input_names=["x"], output_names=["y"]
    )
    return path


FORMATS: dict[str, Saver] = {
    "dynamic.onnx": lambda network, path: save_onnx(network, path, free=(0, 2, 3)),
    "static.onnx": lambda network, path: save_onnx(network, path, free=()),
    "channels_last.onnx": save_channels_last,
    "network.ts": save_torchscript,
    "network.pt2": save_exported,
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_network_of_any_format_and_its_graph_answer_the_same_to_images_of_any_size(name: str, tmp_path: Path) -> None:
    network = load(FORMATS[name](segmenter(), tmp_path / name), anyone())
    for height, width in ((TILE, TILE), (96, 128)):
        expected = answer(segmenter(), images(2, height, width))
        np.testing.assert_allclose(network.reference(images(2, height, width)), expected, atol=1e-5)
    np.testing.assert_allclose(infer(network, images()), answer(segmenter(), images()), atol=1e-5)
    assert (network.architecture.activation, network.answer) == ("softmax", "logits")


def test_a_network_in_half_precision_is_read_as_float(tmp_path: Path) -> None:
    network = load(save_half(segmenter(), tmp_path / "half.onnx"), anyone())
    np.testing.assert_allclose(network.reference(images()), infer(network, images()), atol=1e-5)


@pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="Keras is absent (pip install 'rust-edge[keras]')")
def test_a_network_of_keras_for_one_size_is_asked_at_any(tmp_path: Path) -> None:
    from export.checkpoints.keras_files import import_keras

    keras = import_keras()
    image = keras.Input((TILE, TILE, 1))
    features = keras.layers.Conv2D(4, 3, padding="same", activation="relu")(image)
    low = keras.layers.UpSampling2D()(keras.layers.MaxPool2D()(features))
    scores = keras.layers.Conv2D(3, 1, activation="softmax")(keras.layers.Concatenate()([features, low]))
    keras.Model(image, scores).save(tmp_path / "network.keras")
    network = load(tmp_path / "network.keras", anyone())
    assert (network.architecture.activation, network.answer) == ("softmax", "probabilities")
    at_once = network.reference(images(1, TILE, 2 * TILE))
    assert at_once.shape == (1, 3, TILE, 2 * TILE)
    alone = network.reference(np.ascontiguousarray(images(1, TILE, 2 * TILE)[..., :TILE]))
    np.testing.assert_allclose(at_once[..., : TILE - 4], alone[..., : TILE - 4], atol=1e-5)


@pytest.mark.parametrize("save", [save_onnx, save_torchscript], ids=["onnx", "torchscript"])
@pytest.mark.parametrize("ending", ["softmax", "sigmoid"])
def test_an_activation_at_the_end_is_taken_off_and_told(ending: str, save: Saver, tmp_path: Path) -> None:
    source = segmenter(classes=3 if ending == "softmax" else 2, ending=ending)  # type: ignore[arg-type]
    network = load(save(source, tmp_path / "network"), anyone())
    assert (network.architecture.activation, network.answer) == (ending, "probabilities")
    np.testing.assert_allclose(network.reference(images()), answer(source, images()), atol=1e-5)
    logits = torch.from_numpy(infer(network, images()))
    probabilities = logits.softmax(1) if ending == "softmax" else logits.sigmoid()
    np.testing.assert_allclose(probabilities, answer(source, images()), atol=1e-5)


@pytest.mark.parametrize(("channels", "activation"), [(3, "softmax"), (2, "sigmoid")])
def test_logits_are_read_as_many_as_there_are_names(channels: int, activation: str, tmp_path: Path) -> None:
    network = load(save_onnx(segmenter(classes=channels), tmp_path / "network.onnx"), anyone())
    assert network.architecture.activation == activation


def test_one_score_is_a_defects_probability(tmp_path: Path) -> None:
    path = save_onnx(segmenter(classes=1), tmp_path / "network.onnx")
    assert load(path, anyone(names=("background", "pit"))).architecture.activation == "sigmoid"
    with pytest.raises(ExportError, match=r"network\.onnx: the network tells 2 classes apart, got 3 names"):
        load(path, anyone())


def test_colour_networks_get_grey_as_often_as_they_have_channels(tmp_path: Path) -> None:
    source = segmenter(channels=3)
    for save in (save_onnx, save_torchscript):
        network = load(save(source, tmp_path / "network"), anyone(normalisation=UNIT_RGB))
        np.testing.assert_allclose(infer(network, images()), answer(source, images()), atol=1e-5)


@pytest.mark.parametrize(
    ("save", "told"),
    [
        (save_onnx, "the network takes 3 channels, its normalisation has 1"),
        (save_torchscript, f"fed 1 channel of {TILE}x{TILE} (--mean, --deviation, --tile), the network cannot be exported"),
    ],
    ids=["onnx", "torchscript"],
)
def test_a_wrong_number_of_channels_is_refused_in_one_line(save: Saver, told: str, tmp_path: Path) -> None:
    path = save(segmenter(channels=3), tmp_path / "network")
    with pytest.raises(ExportError) as refused:
        load(path, anyone())
    assert str(refused.value).startswith(f"{path}: {told}")
    assert len(str(refused.value).splitlines()) == 1


def test_a_network_for_one_size_alone_says_so_when_it_is_asked_at_another(tmp_path: Path) -> None:
    network = load(save_torchscript(segmenter(size=TILE), tmp_path / "network.ts"), anyone())
    np.testing.assert_allclose(network.reference(images()), infer(network, images()), atol=1e-5)
    with pytest.raises(ExportError, match=r"network\.ts: does not take images of 96x96 .* with dynamic height and width") as told:
        network.reference(images(1, 96, 96))
    assert len(str(told.value).splitlines()) == 1


def test_a_network_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    segments, classifies = save_onnx(segmenter(), tmp_path / "s.onnx"), save_onnx(classifier(), tmp_path / "c.onnx")
    with pytest.raises(ExportError, match="answers scores per pixel, any-classifier is a classifier"):
        load(segments, anyone("classifier"))
    with pytest.raises(ExportError, match="answers scores per image, any-segmenter is a segmenter"):
        load(classifies, anyone(names=("clean", "rust")))


@pytest.mark.parametrize("names", [("a", "b"), ("a", "b", "b"), ("a", "", "b"), ("a", "b\x1b[31m", "c")])
def test_class_names_that_cannot_be_are_refused(names: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"network\.ts: .* expected"):
        load(save_torchscript(segmenter(), tmp_path / "network.ts"), anyone(names=names))


def test_the_clean_class_becomes_the_first_and_its_score_with_it(tmp_path: Path) -> None:
    path = save_onnx(classifier(3), tmp_path / "network.onnx")
    given, clean_first = (load(path, anyone("classifier", names=("rust", "clean", "scale")), clean) for clean in (None, "clean"))
    assert clean_first.architecture.classes == ("clean", "rust", "scale")
    np.testing.assert_array_equal(infer(clean_first, images()), infer(given, images())[:, [1, 0, 2]])
    np.testing.assert_array_equal(clean_first.reference(images()), given.reference(images())[:, [1, 0, 2]])


def test_a_clean_class_that_cannot_come_first_is_refused(tmp_path: Path) -> None:
    path = save_onnx(classifier(1), tmp_path / "network.onnx")
    with pytest.raises(ExportError, match="the network's one score is that of its second class"):
        load(path, anyone("classifier", names=("rust", "clean")), "clean")
    with pytest.raises(ExportError, match=r"--clean: got shiny; expected one of a classifier's classes, here clean, rust"):
        load(path, anyone("classifier", names=("clean", "rust")), "shiny")


def test_weights_alone_are_no_network_and_what_they_fit_is_told() -> None:
    for name in ("any-segmenter", "severstal-unet"):
        with pytest.raises(ExportError, match=rf"unet\.pt: holds weights .* --arch {name} .*; it would fit --arch steel-unet"):
            load_trained(checkpoint_of(trained_unet(), "unet.pt"), find_architecture(name), NAMES)


def test_a_network_of_another_framework_is_refused(tmp_path: Path) -> None:
    scripted = save_torchscript(segmenter(), tmp_path / "network.ts")
    with pytest.raises(ExportError, match="holds a network of PyTorch, which severstal-unet does not read; expected --arch any-"):
        load(scripted, find_architecture("severstal-unet"))
    ends = save_onnx(segmenter(ending="softmax"), tmp_path / "network.onnx")
    with pytest.raises(ExportError, match="ends in a softmax, pits-unet in a sigmoid; expected --arch any-segmenter"):
        load(ends, find_architecture("pits-unet"))


def test_an_engine_of_ours_is_read_as_it_is_bytes_and_all() -> None:
    shipped = Path(__file__).parents[2] / "edge" / "bundles" / "steel-unet-fp32" / "model.onnx"
    names = ("background", "inclusion", "patches", "scratches")
    checkpoint = read_checkpoint(shipped)
    height, width = checkpoint.hints.tile or (0, 0)
    architecture = dataclasses.replace(find_architecture("any-segmenter"), classes=names, tile=(height, width))
    network = load_trained(checkpoint, architecture)
    batch = images(1, height, width)
    with OrtSession(shipped, threads=1) as session:
        expected = session.infer(batch).copy()
    spread = float(np.ptp(expected))
    np.testing.assert_allclose(infer(network, batch), expected, atol=1e-5 * spread)
    np.testing.assert_allclose(network.reference(batch), expected, atol=1e-5 * spread)
