"""The published Keras networks: built as they are described, fed as they were trained, and told apart."""

from __future__ import annotations

import importlib.util

import keras_checkpoints as made
import numpy as np
import onnxruntime as ort
import pytest
import torch

from edge.manifest import Clahe, Resize
from export.checkpoints.keras_weights import compare
from export.networks import ARCHITECTURES
from export.networks.grey_input import GreyInput
from export.networks.keras_builders import coating_unet, rust_cls, severstal_gate, severstal_unet
from export.networks.keras_channels import to_module
from export.passes.streaming import stream
from export.to_onnx import to_onnx

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="Keras is absent (pip install 'rust-edge[keras]')"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # Keras's own
]

NAMES = ("rust-cls", "severstal-gate", "severstal-unet", "coating-unet")


@pytest.fixture(scope="session")
def keras():
    from export.checkpoints.keras_files import import_keras

    torch.set_num_threads(1)
    return import_keras()


@pytest.fixture(scope="module")
def unet(keras):
    return made.settle(severstal_unet(keras, 4))


@pytest.fixture(scope="module")
def coating(keras):
    return made.settle(coating_unet(keras, 1))


@pytest.fixture(scope="module")
def gate(keras):
    return made.settle(severstal_gate(keras, 1))


def grey_and_images(architecture):
    """A grey tile, and what the network's own system would have made of it."""
    normalisation = architecture.normalisation
    grey = np.random.default_rng(0).integers(0, 256, (1, 1, *architecture.tile)).astype(np.uint8)
    images = grey.transpose(0, 2, 3, 1).repeat(normalisation.channels, 3) / normalisation.deviation[0]
    return grey, images.astype(np.float32)


def keras_answer(keras, model, images):
    answer = keras.ops.convert_to_numpy(model(images, training=False))
    assert answer.std() > 1e-4 or answer.size == 1
    return answer.transpose(0, 3, 1, 2) if answer.ndim == 4 else answer


def assert_module_like(keras, model, architecture):
    """The torch module on grey bytes against Keras."""
    grey, images = grey_and_images(architecture)
    network = to_module(model, architecture.tile)
    with torch.inference_mode():
        scores = GreyInput(network, architecture.normalisation)(torch.from_numpy(grey))
    got = scores.softmax(1) if architecture.activation == "softmax" else torch.sigmoid(scores)
    np.testing.assert_allclose(got, keras_answer(keras, model, images), atol=1e-5)
    assert network.final_activation == architecture.activation


def test_rust_cls_has_its_layers_and_answers_as_in_keras(keras):
    model = made.settle(rust_cls(keras, 3))
    kinds = [type(layer).__name__ for layer in model.layers]

    assert kinds == ["Sequential"] + ["Conv2D", "MaxPooling2D"] * 6 + ["Flatten", "Dense", "Dense"]
    assert [layer.filters for layer in model.layers if type(layer).__name__ == "Conv2D"] == [32, 64, 64, 64, 64, 64]
    assert {layer.padding for layer in model.layers if type(layer).__name__ == "Conv2D"} == {"valid"}
    assert_module_like(keras, model, ARCHITECTURES["rust-cls"])


def test_severstal_unet_has_its_layers_and_answers_as_in_keras(keras, unet):
    filters = [layer.filters for layer in unet.layers if type(layer).__name__ == "Conv2D" and layer.kernel_size == (3, 3)]

    assert filters == [16, 16, 32, 64, 128, 256, 128, 64, 32, 16]
    assert unet.output_shape == (None, 256, 256, 4)
    assert_module_like(keras, unet, ARCHITECTURES["severstal-unet"])


def test_severstal_unet_runs_as_the_strip_runs(unet):
    streamed = stream(to_onnx(GreyInput(to_module(unet), ARCHITECTURES["severstal-unet"].normalisation), 256, 256))
    assert streamed.stride == 16


def test_severstal_gate_is_a_resnet50_behind_which_a_quarter_is_averaged(keras, gate):
    tail = [type(layer).__name__ for layer in gate.layers][-5:]

    assert tail == ["AveragePooling2D", "Flatten", "Dense", "Dropout", "Dense"]
    assert gate.get_layer("conv5_block3_out").output.shape == (None, 8, 8, 2048)
    assert gate.layers[-3].kernel.shape == (2 * 2 * 2048, 256)
    assert_module_like(keras, gate, ARCHITECTURES["severstal-gate"])


def test_coating_unet_joins_the_encoder_where_it_is_said_to(keras, coating):
    joined = [layer for layer in coating.layers if type(layer).__name__ == "Concatenate"]
    skips = [layer.input[1]._keras_history.operation.name for layer in joined]
    decoder = [layer.filters for layer in coating.layers if type(layer).__name__ == "Conv2DTranspose"]

    assert skips == ["conv4_block6_out", "conv3_block4_out", "conv2_block3_out", "conv1_relu"]
    assert decoder == [512, 256, 128, 64, 32]
    assert_module_like(keras, coating, ARCHITECTURES["coating-unet"])


def test_coating_unet_is_exported_as_convolutions_alone(keras, coating):
    architecture = ARCHITECTURES["coating-unet"]
    graph = to_onnx(GreyInput(to_module(coating), architecture.normalisation), *architecture.tile)
    grey, images = grey_and_images(architecture)

    scores = ort.InferenceSession(graph.SerializeToString()).run(None, {"image": grey})[0]

    assert {node.op_type for node in graph.graph.node} == {
        "Cast", "Mul", "Concat", "Conv", "Relu", "MaxPool", "Add", "ConvTranspose"
    }  # fmt: skip
    np.testing.assert_allclose(1 / (1 + np.exp(-scores)), keras_answer(keras, coating, images), atol=1e-5)


def test_every_published_network_is_an_architecture_with_what_its_system_feeds_it():
    found = {name: ARCHITECTURES[name] for name in NAMES}

    assert {a.framework for a in found.values()} == {"keras"}
    assert {a.tile for a in found.values()} == {(256, 256)}
    assert found["severstal-gate"].strip_tile == found["severstal-unet"].strip_tile == (256, 1600)
    assert found["severstal-gate"].gate_threshold == 0.01
    assert len(found["severstal-unet"].classes) == 5
    assert found["coating-unet"].preparation == (Clahe(clip_limit=10, grid_rows=8, grid_columns=8), Resize())
    assert found["coating-unet"].pixel_threshold == 0.6
    assert found["rust-cls"].normalisation.deviation == (1.0, 1.0, 1.0)  # the network divides by itself


def test_a_network_compares_equal_to_another_one_with_other_names_and_weights(keras, unet):
    assert compare(unet, severstal_unet(keras, 4)) == []


def test_the_first_layers_that_differ_are_named_with_their_shapes(keras, unet):
    faults = compare(unet, severstal_unet(keras, 2))
    assert len(faults) == 1
    assert "(1, 1, 16, 4) (4,), expected conv2d" in faults[0]
    assert faults[0].endswith("(1, 1, 16, 2) (2,)")

    faults = compare(rust_cls(keras, 3), unet)
    assert faults[0] == "its input is (256, 256, 3), expected (256, 256, 1)"
    assert faults[1] == "it rescales images by ['0.00392157'], expected nothing"
    assert "layer 1 with weights is conv2d" in faults[2]
    assert any("is missing" in fault for fault in faults)


def test_a_network_that_ends_in_another_activation_or_in_logits_is_told_apart(keras):
    layers = keras.layers

    def ending(activation):
        return keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(2, 1, activation=activation)])

    assert compare(ending("softmax"), ending("sigmoid")) == ["its last activation is softmax, expected sigmoid"]
    assert compare(ending(None), ending("sigmoid")) == []
