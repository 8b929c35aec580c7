"""Files that TF-Keras 2 wrote, read without TensorFlow: the same answers as TF-Keras gave, in Keras, torch and ONNX Runtime.

They are made by `keras_checkpoints.py` with the interpreter that RUST_EDGE_TENSORFLOW_PYTHON names: TensorFlow takes 1.6 GB and
wants other versions than torch, so it has an environment of its own.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import keras_checkpoints as made
import numpy as np
import pytest
import torch

from export.checkpoints.keras_files import import_keras, load_weights, read_keras
from export.checkpoints.tensor_bundle import TensorBundle, crc32c
from export.errors import ExportError
from export.networks.keras_builders import rust_cls, severstal_gate, severstal_unet
from export.networks.keras_channels import to_module

PYTHON = os.environ.get("RUST_EDGE_TENSORFLOW_PYTHON", "")

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="Keras is absent (pip install 'rust-edge[keras]')"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # Keras's own
]
TOLERANCE = 1e-4


@pytest.fixture(scope="session")
def keras():
    torch.set_num_threads(1)
    return import_keras()


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """The folder that the script filled."""
    if not PYTHON:
        pytest.skip("RUST_EDGE_TENSORFLOW_PYTHON does not name a Python with tensorflow-cpu, tf_keras and keras")
    folder = tmp_path_factory.mktemp("tf_keras")
    ran = subprocess.run([PYTHON, made.__file__, str(folder)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    yield folder
    shutil.rmtree(folder)  # 280 MB


def assert_answers(keras, model, answer):
    """Keras on torch, and the torch module, against what the framework that wrote the file answered."""
    with np.load(answer) as stored:
        images, expected = stored["x"], stored["y"]
    network = to_module(model)
    with torch.inference_mode():
        scores = network(torch.from_numpy(images).permute(0, 3, 1, 2))
    got = scores.softmax(1) if network.final_activation == "softmax" else torch.sigmoid(scores)
    got = got.permute(0, 2, 3, 1) if got.ndim == 4 else got
    np.testing.assert_allclose(keras.ops.convert_to_numpy(model(images, training=False)), expected, atol=TOLERANCE)
    np.testing.assert_allclose(got.numpy(), expected, atol=TOLERANCE)
    assert expected.std() > 10 * TOLERANCE


@pytest.mark.parametrize("network", ["rust-cls", "uncommon"])
@pytest.mark.parametrize("form", [".h5", ".keras", ""])
def test_a_whole_model_answers_as_tf_keras_did(keras, files, network, form):
    assert_answers(keras, read_keras(files / f"{network}{form}").content.model, files / f"{network}.npz")


@pytest.mark.parametrize("weights", ["severstal-unet.hdf5", "severstal-unet-3.weights.h5"])
def test_a_model_json_takes_weights_of_either_layout(keras, files, weights):
    model = read_keras(files / "severstal-unet.json", files / weights).content.model
    assert_answers(keras, model, files / "severstal-unet.npz")


def test_a_model_json_of_the_gate_takes_the_hdf5_beside_it(keras, files):
    assert_answers(keras, read_keras(files / "severstal-gate.json").content.model, files / "severstal-gate.npz")


def test_a_whole_unet_with_transposed_convolutions_answers_as_tf_keras_did(keras, files):
    assert_answers(keras, read_keras(files / "coating-unet.h5").content.model, files / "coating-unet.npz")


@pytest.mark.parametrize(
    ("weights", "build", "answer"),
    [
        ("severstal-unet.hdf5", severstal_unet, "severstal-unet"),
        ("severstal-unet-3.weights.h5", severstal_unet, "severstal-unet"),
        ("severstal-gate.hdf5", severstal_gate, "severstal-gate"),
        ("rust-cls.h5", rust_cls, "rust-cls"),
    ],
)
def test_weights_of_tf_keras_go_into_the_architecture_as_keras_3_builds_it(keras, files, weights, build, answer):
    model = load_weights(files / weights, lambda outputs: build(keras, outputs), 2)
    assert_answers(keras, model, files / f"{answer}.npz")


def test_what_keras_3_exports_for_serving_gives_its_weights_to_an_architecture(keras, files):
    assert read_keras(files / "exported").content.model is None

    model = load_weights(files / "exported", lambda outputs: made.small_unet(keras, outputs), 5)

    assert_answers(keras, model, files / "exported.npz")
    with pytest.raises(ExportError, match=r"top/kernel \(3, 3, 1, 8\), expected"):
        load_weights(files / "exported", lambda outputs: rust_cls(keras, outputs), 2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own-model", "its model is code .class OwnModel"),
        ("operation.h5", r"'tf.math.truediv' \(TFOpLambda\) is a TensorFlow function outside a layer"),
        ("other-function.h5", r"'gate' \(Conv2D\) has the activation hard_sigmoid, another function in Keras 3"),
    ],
)
def test_what_keras_3_would_read_otherwise_or_not_at_all_is_refused_with_the_layers_name(files, name, message):
    with pytest.raises(ExportError, match=message):
        read_keras(files / name)


def test_a_damaged_saved_model_is_refused(files, tmp_path):
    for name in ("variables/variables.index", "variables/variables.data-00000-of-00001", "keras_metadata.pb"):
        copy = tmp_path / Path(name).name
        shutil.copytree(files / "uncommon", copy)
        content = bytearray((copy / name).read_bytes())
        (copy / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(ExportError, match=copy.name):
            read_keras(copy)
        if name.startswith("variables"):  # these have checksums
            content[len(content) // 2] ^= 0x55
            (copy / name).write_bytes(content)
            with pytest.raises(ExportError, match=copy.name):
                read_keras(copy)


def test_a_tensorflow_checkpoint_is_read_key_by_key(files):
    bundle = TensorBundle(files / "rust-cls" / "variables" / "variables")
    kernels = {key: bundle.tensor(key).shape for key in bundle if key.startswith("layer_with") and "/kernel/" in key}
    assert kernels["layer_with_weights-0/kernel/.ATTRIBUTES/VARIABLE_VALUE"] == (3, 3, 3, 32)
    assert len(kernels) == 8


@pytest.mark.parametrize("length", [0, 1, 9, 4095, 4096, 4097, 70000])
def test_the_checksum_of_a_long_content_is_that_of_its_bytes_one_by_one(length):
    content = np.random.default_rng(length).bytes(length)
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    assert crc32c(content) == crc ^ 0xFFFFFFFF
    assert crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C
