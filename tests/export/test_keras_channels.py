"""Keras models as torch modules, channels first: the same numbers, and a graph as one would write it by hand."""

from __future__ import annotations

import importlib.util
from collections import Counter

import keras_checkpoints as made
import numpy as np
import onnxruntime as ort
import pytest
import torch

from export.errors import ExportError
from export.networks.grey_input import GreyInput, Normalisation
from export.networks.keras_channels import input_channels, to_module
from export.passes.streaming import stream
from export.to_onnx import to_onnx

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="Keras is absent (pip install 'rust-edge[keras]')"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # Keras's own
]


@pytest.fixture(scope="session")
def keras():
    from export.checkpoints.keras_files import import_keras

    torch.set_num_threads(1)
    return import_keras()


def keras_answer(keras, model, images):
    """(n, k, h, w) or (n, k), as Keras itself computes it."""
    answer = keras.ops.convert_to_numpy(model(images, training=False))
    return answer.transpose(0, 3, 1, 2) if answer.ndim == 4 else answer


def module_answer(network, images):
    with torch.inference_mode():
        scores = network(torch.from_numpy(images).permute(0, 3, 1, 2))
        finish = {"softmax": lambda s: s.softmax(1), "sigmoid": torch.sigmoid, None: lambda s: s}[network.final_activation]
        return finish(scores).numpy()


def float_graph(network, height, width, channels):
    return to_onnx(GreyInput(network, Normalisation((0.0,) * channels, (255.0,) * channels)), height, width)


def operators(graph):
    return Counter(node.op_type for node in graph.graph.node)


def one_layer(keras, size, *layers):
    """A settled model of these layers that takes (n, *size)."""
    return made.settle(keras.Sequential([keras.Input(size), *layers]))


def assert_the_same(keras, model, tolerance=1e-5, scale=1.0):
    images = made.pixels(model, scale=scale)
    expected = keras_answer(keras, model, images)
    np.testing.assert_allclose(module_answer(to_module(model), images), expected, rtol=0, atol=tolerance)
    assert expected.std() > 1e-4  # a model that answers the same to everything shows nothing


def test_a_unet_answers_as_keras_does(keras):
    assert_the_same(keras, made.settle(made.small_unet(keras)))


def test_layers_that_few_networks_have_answer_as_in_keras(keras):
    assert_the_same(keras, made.settle(made.uncommon_layers(keras)), scale=255.0)


def test_the_module_ends_in_logits_and_tells_the_activation_apart(keras):
    model = made.settle(made.small_unet(keras))
    network = to_module(model)
    images = made.pixels(model, scale=1.0)
    with torch.inference_mode():
        logits = network(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()

    assert network.final_activation == "sigmoid"
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), keras_answer(keras, model, images), atol=1e-6)


def test_a_model_that_ends_in_logits_is_left_as_it_is(keras):
    model = one_layer(keras, (8, 8, 1), keras.layers.Conv2D(3, 3, padding="same"))
    assert to_module(model).final_activation is None
    assert_the_same(keras, model)


def test_the_graph_is_a_unet_in_channels_first_without_transposes_normalisations_and_pads(keras):
    graph = float_graph(to_module(made.settle(made.small_unet(keras))), 32, 32, 1)

    assert operators(graph) == {"Cast": 1, "Mul": 1, "Conv": 3, "Relu": 2, "ConvTranspose": 1, "Add": 1}
    names = [node.name for node in graph.graph.node]
    assert names[2:] == ["top/Conv", "top_relu/Relu", "low/Conv", "low_relu/Relu", "up/ConvTranspose", "skip/Add", "head/Conv"]
    assert {"top.weight", "low.weight", "low.bias", "head.bias"} <= {i.name for i in graph.graph.initializer}


def test_the_graph_answers_as_the_module(keras):
    model = made.settle(made.uncommon_layers(keras))
    logits = keras.Model(model.inputs, model.layers[-1].input)

    assert_the_graph_does_the_same(keras, logits)
    assert not {"Transpose", "BatchNormalization", "Pad"} & set(operators(float_graph(to_module(model), 36, 36, 2)))


def test_padding_to_one_side_belongs_to_the_operator_that_pads(keras):
    layers = keras.layers
    model = one_layer(
        keras, (16, 16, 1), layers.Conv2D(4, 3, strides=2, padding="same"), layers.MaxPooling2D(3, strides=2, padding="same"),
        layers.ZeroPadding2D(1), layers.Conv2D(4, 3), layers.Conv2DTranspose(4, 3, strides=4, padding="same"),
    )  # fmt: skip
    graph = float_graph(to_module(model), 16, 16, 1)

    assert [(node.op_type, pads_of(node)) for node in graph.graph.node if pads_of(node)] == [
        ("Conv", [0, 0, 1, 1]),
        ("MaxPool", [0, 0, 1, 1]),
        ("Conv", [1, 1, 1, 1]),
        ("ConvTranspose", [0, 0, 0, 0]),
    ]
    assert "Pad" not in operators(graph)
    assert_the_same(keras, model)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 2), (2, 1), (2, 2), (2, 3), (3, 1), (3, 2), (4, 3), (5, 2)])
def test_windows_see_the_pixels_that_they_see_in_keras(keras, padding, kernel, stride):
    """Every place counts in what comes out: a window one pixel off would show."""
    layers = keras.layers
    image = keras.Input((9, 10, 2))
    windows = (
        layers.Conv2D(3, kernel, strides=stride, padding=padding),
        layers.DepthwiseConv2D(kernel, strides=stride, padding=padding, depth_multiplier=2),
        layers.MaxPooling2D(kernel, strides=stride, padding=padding),
        layers.AveragePooling2D(kernel if padding == "valid" else 2, strides=stride, padding=padding),
        layers.Conv2DTranspose(3, kernel, strides=stride, padding=padding),
    )
    answers = [layers.Dense(2)(layers.Flatten()(window(image))) for window in windows]
    model = made.settle(keras.Model(image, layers.Concatenate()(answers)))

    assert_the_same(keras, model)
    assert_the_graph_does_the_same(keras, model)


def test_flattened_features_keep_their_order(keras):
    layers = keras.layers
    image = keras.Input((4, 6, 3))
    flat = layers.Activation("tanh")(layers.BatchNormalization()(layers.Flatten()(image)))
    model = made.settle(keras.Model(image, layers.Concatenate()([layers.Dense(4)(flat), flat])))

    assert_the_same(keras, model)
    dense = made.settle(keras.Model(image, layers.Dense(4)(flat)))
    assert "Transpose" not in operators(float_graph(to_module(dense), 4, 6, 3))


def test_an_image_made_of_features_keeps_their_order(keras):
    layers = keras.layers
    image = keras.Input((4, 6, 3))
    again = layers.Reshape((4, 6, 3))(layers.Flatten()(image))
    made_up = layers.Reshape((4, 6, 1))(layers.Dense(24)(layers.Flatten()(image)))
    assert_the_same(keras, made.settle(keras.Model(image, layers.Conv2D(2, 3, padding="same")(layers.Add()([again, made_up])))))


def test_a_normalisation_behind_a_relu_is_a_convolution_of_each_channel(keras):
    layers = keras.layers
    model = one_layer(
        keras, (8, 8, 1), layers.Conv2D(4, 3, activation="relu", padding="same"), layers.BatchNormalization(name="after"),
        layers.Conv2D(2, 3, padding="same"),
    )  # fmt: skip
    graph = float_graph(to_module(model), 8, 8, 1)

    assert operators(graph) == {"Cast": 1, "Mul": 1, "Conv": 3, "Relu": 1}
    assert "after/Conv" in [node.name for node in graph.graph.node]
    assert_the_same(keras, model)


def test_a_layer_that_is_called_twice_has_one_module_and_is_not_folded(keras):
    layers = keras.layers
    image = keras.Input((8, 8, 2))
    shared = layers.Conv2D(2, 3, padding="same", name="shared")
    first = layers.BatchNormalization()(shared(image))
    model = made.settle(keras.Model(image, shared(first)))

    assert [kind.__name__ for kind in map(type, to_module(model).children())] == ["Conv2d", "Conv2d"]
    assert_the_same(keras, model)


def test_what_several_layers_read_is_not_changed_by_the_normalisation_of_one(keras):
    layers = keras.layers
    image = keras.Input((8, 8, 2))
    x = layers.Conv2D(2, 3, padding="same")(image)
    assert_the_same(keras, made.settle(keras.Model(image, layers.Add()([layers.BatchNormalization()(x), x]))))


def test_networks_inside_networks_are_laid_out(keras):
    layers = keras.layers
    base = keras.applications.MobileNetV2(input_shape=(32, 32, 3), alpha=0.35, include_top=False, weights=None)
    head = keras.Sequential([layers.GlobalAveragePooling2D(), layers.Dense(3, activation="softmax")])
    model = made.settle(keras.Sequential([keras.Input((32, 32, 3)), layers.Rescaling(1 / 127.5, offset=-1), base, head]))

    assert to_module(model).final_activation == "softmax"
    assert "block_1_expand" in dict(to_module(model).named_children())
    assert_the_same(keras, model, scale=255.0)


def test_arithmetic_between_layers_is_kept(keras):
    image = keras.Input((8, 8, 3))
    x = (image / 127.5 - np.array([1.0, 0.5, 0.25], np.float32)) * 2.0
    x = keras.ops.relu(1.0 - keras.layers.Conv2D(3, 3, padding="same")(x)) + x
    assert_the_same(keras, made.settle(keras.Model(image, x)), scale=255.0)


def test_layers_named_as_what_a_torch_module_has_anyway_do_not_hide_it(keras):
    layers = keras.layers
    names = ("training", "forward", "final_activation", "_steps")
    model = one_layer(keras, (8, 8, 1), *(layers.Conv2D(2, 3, padding="same", name=name) for name in names))
    assert_the_same(keras, model)


def test_resizing_to_the_tile_is_nothing_and_to_another_size_is_bilinear(keras):
    layers = keras.layers
    model = one_layer(keras, (12, 10, 1), layers.Resizing(12, 10), layers.Resizing(7, 5), layers.Flatten(), layers.Dense(3))

    assert operators(float_graph(to_module(model), 12, 10, 1))["Resize"] == 1
    assert_the_same(keras, model)


def test_a_model_of_any_size_is_made_for_the_tile(keras):
    layers = keras.layers
    model = made.settle(keras.Sequential([keras.Input((None, None, 1)), layers.Conv2D(2, 3, padding="same")]))

    with pytest.raises(ExportError, match="--tile"):
        to_module(model)
    graph = float_graph(to_module(model, (24, 16)), 24, 16, 1)
    assert [d.dim_value for d in graph.graph.output[0].type.tensor_type.shape.dim][1:] == [2, 24, 16]
    assert input_channels(model) == 1


def test_a_unet_with_nearest_upsampling_runs_as_the_strip_runs(keras):
    layers = keras.layers
    image = keras.Input((32, 32, 1))
    top = layers.BatchNormalization()(layers.Conv2D(4, 3, padding="same", activation="relu")(image))
    low = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu")(top)
    x = layers.Concatenate()([layers.UpSampling2D(2)(low), top])
    model = made.settle(keras.Model(image, layers.Conv2D(2, 1)(x)))

    streamed = stream(float_graph(to_module(model), 32, 32, 1))

    assert streamed.stride == 2
    assert_the_same(keras, model)


def test_the_module_can_be_trained_further(keras):
    network = to_module(made.settle(made.small_unet(keras)))
    network(torch.rand(2, 1, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda layers: layers.LayerNormalization(name="norm"), r"'norm' \(LayerNormalization\).*no rule"),
        (lambda layers: layers.BatchNormalization(axis=1, name="norm"), "'norm'.*axis 1"),
        (lambda layers: layers.Permute((2, 1, 3), name="turn"), "'turn'.*axes"),
        (lambda layers: layers.Softmax(axis=1, name="soft"), "'soft'.*axis 1"),
        (lambda layers: layers.UpSampling2D(data_format="channels_first", name="first"), "'first'.*channels_first"),
        (lambda layers: layers.Activation("hard_tanh", name="odd"), "'odd'.*hard_tanh"),
        (lambda layers: layers.Reshape((64, 1), name="flat"), "'flat'"),
        (lambda layers: layers.AveragePooling2D(3, strides=2, padding="same", name="mean"), "'mean'.*differ"),
        (lambda layers: layers.MaxPooling2D(2), "4x4 from tiles of 8x8"),
    ],
)  # fmt: skip
def test_what_cannot_be_exported_is_refused_with_the_layers_name(keras, bad, message):
    model = keras.Sequential([keras.Input((8, 8, 1)), bad(keras.layers)])
    with pytest.raises(ExportError, match=message):
        to_module(model)


def test_a_tile_that_a_dense_layer_does_not_fit_is_refused(keras):
    model = one_layer(keras, (8, 8, 1), keras.layers.Flatten(), keras.layers.Dense(2, name="dense_head"))
    with pytest.raises(ExportError, match=r"'dense_head'.*64 features.*256"):
        to_module(model, (16, 16))


def test_a_model_with_two_answers_is_refused(keras):
    image = keras.Input((8, 8, 1))
    both = [keras.layers.Conv2D(1, 1)(image), keras.layers.Conv2D(1, 3)(image)]
    with pytest.raises(ExportError, match="2 outputs"):
        to_module(keras.Model(image, both))


def pads_of(node):
    return next((list(a.ints) for a in node.attribute if a.name == "pads" and node.op_type != "Pad"), None)


def assert_the_graph_does_the_same(keras, model):
    network = to_module(model)
    _, height, width, channels = model.input_shape
    grey = np.random.default_rng(0).integers(0, 256, (2, 1, height, width)).astype(np.uint8)
    images = (grey.transpose(0, 2, 3, 1) / 255.0).repeat(channels, axis=3).astype(np.float32)
    graph = float_graph(network, height, width, channels)
    scores = ort.InferenceSession(graph.SerializeToString()).run(None, {"image": grey})[0]
    assert network.final_activation is None
    np.testing.assert_allclose(scores, keras_answer(keras, model, images), atol=1e-5)
