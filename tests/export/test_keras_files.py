"""Files of Keras 3: read without running code of theirs, refused by name where they are damaged or something else."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import keras_checkpoints as made
import numpy as np
import pytest
import torch

from export.checkpoints.checkpoint import Checkpoint
from export.checkpoints.keras_files import import_keras, load_weights, read_keras
from export.errors import ExportError

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="Keras is absent (pip install 'rust-edge[keras]')"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # Keras's own
]


@pytest.fixture(scope="session")
def keras():
    torch.set_num_threads(1)
    return import_keras()


@pytest.fixture(scope="module")
def unet(keras):
    return made.settle(made.small_unet(keras))


@pytest.fixture
def files(unet, tmp_path):
    """A folder with one model in every form that Keras 3 writes."""
    unet.save(tmp_path / "unet.keras")
    unet.save(tmp_path / "unet.h5")
    unet.save_weights(tmp_path / "unet.weights.h5")
    (tmp_path / "unet.json").write_text(unet.to_json())
    return tmp_path


def answer(keras, model, images):
    return keras.ops.convert_to_numpy(model(images, training=False))


def assert_like(keras, model, expected):
    images = made.pixels(expected, scale=1.0)
    np.testing.assert_allclose(answer(keras, model, images), answer(keras, expected, images), atol=1e-6)


@pytest.mark.parametrize("name", ["unet.keras", "unet.h5", "unet.json"])
def test_a_model_of_keras_3_is_read_as_it_was_saved(keras, unet, files, name):
    checkpoint = read_keras(files / name)

    assert_like(keras, checkpoint.content.model, unet)
    assert checkpoint.hints.tile == (32, 32)
    assert len(checkpoint.sha256) == 64


def test_files_are_told_by_what_they_hold_not_by_their_names(keras, unet, files):
    for name, other in (("unet.keras", "model.h5"), ("unet.h5", "weights.keras"), ("unet.json", "config.txt")):
        (files / name).rename(files / other)
    assert_like(keras, read_keras(files / "model.h5").content.model, unet)
    assert_like(keras, read_keras(files / "weights.keras").content.model, unet)
    assert_like(keras, read_keras(files / "config.txt", files / "unet.weights.h5").content.model, unet)


def test_how_a_model_was_trained_is_not_loaded(keras, unet, tmp_path):
    def a_loss_of_the_users_own(true, predicted):
        return keras.ops.mean(true - predicted)

    model = keras.models.clone_model(unet)
    model.compile(keras.optimizers.Adam(), a_loss_of_the_users_own, metrics=[a_loss_of_the_users_own])
    for name in ("own.keras", "own.h5"):
        model.save(tmp_path / name)
        assert_like(keras, read_keras(tmp_path / name).content.model, model)


def test_a_model_trained_in_half_precision_is_read_in_float32(keras, unet, tmp_path):
    half = keras.models.clone_model(unet, clone_function=lambda layer: _in_half(layer))
    half.set_weights(unet.get_weights())
    half.save(tmp_path / "half.keras")

    model = read_keras(tmp_path / "half.keras").content.model

    assert {layer.compute_dtype for layer in half.layers if layer.weights} == {"float16"}
    assert {layer.compute_dtype for layer in model.layers} == {"float32"}
    assert_like(keras, model, unet)


def _in_half(layer):
    config = layer.get_config()
    return type(layer).from_config({**config, "dtype": "mixed_float16"} if layer.weights else config)


@pytest.mark.parametrize("name", ["unet.weights.h5", "unet.h5"])
def test_weights_alone_go_into_an_architecture_whatever_its_number_of_classes(keras, unet, files, name):
    model = load_weights(files / name, lambda outputs: made.small_unet(keras, outputs), 4)

    assert model.output_shape[-1] == 2
    assert_like(keras, model, unet)


def test_a_file_of_weights_alone_is_told_apart(files):
    checkpoint = read_keras(files / "unet.weights.h5")
    assert isinstance(checkpoint, Checkpoint)
    assert checkpoint.content.model is None


@pytest.mark.parametrize(
    ("name", "first"), [("unet.weights.h5", r"conv2d_\d/0 is \(.*\), expected"), ("unet.h5", "layer 1 .*top")]
)
def test_weights_of_another_network_are_refused_with_the_first_layers_that_differ(keras, files, name, first):
    def other(outputs):
        return keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Conv2D(outputs, 5), keras.layers.Conv2D(outputs, 5)])

    with pytest.raises(ExportError, match=first):
        load_weights(files / name, other, 2)


def test_the_weights_of_a_model_json_stand_beside_it_or_are_named(keras, unet, files):
    (files / "unet.weights.h5").rename(files / "best.weights.h5")
    (files / "unet.h5").unlink()

    with pytest.raises(ExportError, match=r"unet\.weights\.h5 or unet\.hdf5 or unet\.h5, or --weights"):
        read_keras(files / "unet.json")
    assert_like(keras, read_keras(files / "unet.json", files / "best.weights.h5").content.model, unet)
    with pytest.raises(ExportError, match=r"not found.*--weights"):
        read_keras(files / "unet.json", files / "none.h5")
    with pytest.raises(ExportError, match=r"--weights goes with a model\.json"):
        read_keras(files / "unet.keras", files / "best.weights.h5")


def test_weights_of_another_model_beside_a_model_json_are_refused(keras, files):
    made.small_unet(keras, 3).save_weights(files / "unet.weights.h5")
    with pytest.raises(ExportError, match=r"do not fit its layers.*\(1, 1, 8, 3\), expected \(1, 1, 8, 2\)"):
        read_keras(files / "unet.json")


def payload(keras, path):
    """A model whose Lambda layer creates a file whenever it is built or run."""
    code = eval(f"lambda x: (__import__('pathlib').Path({str(path)!r}).write_text('ran'), x)[1]")
    layers = keras.layers
    return keras.Sequential([keras.Input((8, 8, 1)), layers.Lambda(code, name="innocent"), layers.Conv2D(1, 3, padding="same")])


@pytest.mark.parametrize("name", ["evil.keras", "evil.h5", "evil.json"])
def test_code_inside_a_model_does_not_run_unless_it_is_trusted(keras, tmp_path, name):
    proof = tmp_path / "proof"
    model = payload(keras, proof)
    if name.endswith(".json"):
        (tmp_path / name).write_text(model.to_json())
        model.save_weights(tmp_path / "evil.weights.h5")
    else:
        model.save(tmp_path / name)
    proof.unlink()

    with pytest.raises(ExportError, match=r"'innocent' \(Lambda\) holds Python code.*--trust-checkpoint"):
        read_keras(tmp_path / name)
    assert not proof.exists()

    read_keras(tmp_path / name, trust=True)
    assert proof.exists()


def layer_of(place, kind, **config):
    return {"module": place, "class_name": kind, "config": {"name": "x", **config}, "registered_name": None}


FETCH = {"module": "keras.utils", "class_name": "function", "config": "get_file", "registered_name": "get_file"}


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (layer_of("subprocess", "Popen", args=["touch", "proof"]), "module subprocess"),
        (layer_of("keras.utils", "get_file", origin="file:///proof"), r"module keras\.utils"),
        (layer_of("keras.layers", "TFSMLayer", filepath="/"), "another file"),
        (layer_of("keras.layers", "TorchModuleWrapper", module={}), "pickled"),
        (layer_of("mine.layers", "Attention") | {"registered_name": "mine>Attention"}, r"module mine\.layers"),
        (layer_of("keras.layers", "Activation", activation=FETCH), "get_file"),
    ],
)
def test_classes_and_functions_that_are_not_layers_of_keras_are_refused_by_the_layers_name(files, layer, message):
    with zipfile.ZipFile(files / "unet.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    config["config"]["layers"][1] |= layer
    with zipfile.ZipFile(files / "evil.keras", "w") as archive:
        for name, content in (members | {"config.json": json.dumps(config)}).items():
            archive.writestr(name, content)

    with pytest.raises(ExportError, match=message) as raised:
        read_keras(files / "evil.keras")
    assert "--trust-checkpoint" in str(raised.value)
    assert not Path("proof").exists()


def test_a_trusted_lambda_that_changes_values_one_by_one_is_exported(keras, tmp_path):
    from export.networks.keras_channels import to_module

    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), layers.Lambda(lambda x: x / 127.5 - 1.0), layers.Conv2D(1, 3, padding="same", name="conv")]
    )
    made.settle(model).save(tmp_path / "scaled.keras")

    network = to_module(read_keras(tmp_path / "scaled.keras", trust=True).content.model)

    images = made.pixels(model)
    with torch.inference_mode():
        scores = network(torch.from_numpy(images).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(scores, answer(keras, model, images), atol=1e-5)

    flip = layers.Lambda(lambda x: keras.ops.flip(x, 1), output_shape=(8, 8, 1), name="flip")
    turned = keras.Sequential([keras.Input((8, 8, 1)), flip, layers.Conv2D(1, 1)])
    with pytest.raises(ExportError, match=r"'flip'.*Python code does more"):
        to_module(turned)


def test_values_of_another_file_are_not_read(files):
    h5py = pytest.importorskip("h5py")
    with h5py.File(files / "secret.h5", "w") as secret:
        secret["values"] = np.zeros((3, 3, 1, 8), np.float32)
    with h5py.File(files / "unet.h5", "a") as file:
        kernel = next(name for name in _datasets(file["model_weights/top"]) if "kernel" in name)
        del file[f"model_weights/top/{kernel}"]
        file[f"model_weights/top/{kernel}"] = h5py.ExternalLink(str(files / "secret.h5"), "/values")

    with pytest.raises(ExportError, match="takes its values from another file"):
        read_keras(files / "unet.h5")


def _datasets(group):
    found = []
    group.visititems(lambda name, item: found.append(name) if hasattr(item, "shape") else None)
    return found


@pytest.mark.parametrize("name", ["unet.keras", "unet.h5", "unet.weights.h5", "unet.json"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused_by_name(keras, files, name, share):
    content = (files / name).read_bytes()
    (files / name).write_bytes(content[: int(len(content) * share)])

    with pytest.raises(ExportError, match=name):
        read_keras(files / name)
    with pytest.raises(ExportError, match=name):
        load_weights(files / name, lambda outputs: made.small_unet(keras, outputs), 2)


@pytest.mark.parametrize("name", ["unet.keras", "unet.h5", "unet.json"])
def test_a_damaged_file_is_read_or_refused_never_worse(files, name):
    content, rng = (files / name).read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(12):
        damaged = bytearray(content)
        for position in rng.integers(0, len(content), 8):
            damaged[position] ^= int(rng.integers(1, 256))
        (files / name).write_bytes(damaged)
        try:
            read_keras(files / name)
        except ExportError:
            refused += 1
    assert refused > 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(64), "begins with .*PNG.*no Keras file"),
        (b"", "is empty"),
        (b'{"a": 1}', "no class_name"),
        (b'{"class_name": "Sequential", "config": {}}', "damaged, or no Keras file"),
    ],
)
def test_something_else_is_refused_and_told(tmp_path, content, message):
    (tmp_path / "thing").write_bytes(content)
    (tmp_path / "thing.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(ExportError, match=message):
        read_keras(tmp_path / "thing")


def test_a_checkpoint_of_pytorch_is_no_keras_archive(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "best.keras")
    with pytest.raises(ExportError, match="PyTorch"):
        read_keras(tmp_path / "best.keras")


def test_folders_and_files_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(ExportError, match=r"a folder without saved_model\.pb"):
        read_keras(tmp_path)
    with pytest.raises(ExportError, match="cannot be read"):
        read_keras(tmp_path / "none.keras")


def test_weights_that_are_no_numbers_are_refused(keras, unet, tmp_path):
    broken = keras.models.clone_model(unet)
    broken.get_layer("up").kernel.assign(np.full(broken.get_layer("up").kernel.shape, np.nan, np.float32))
    broken.save(tmp_path / "broken.keras")
    with pytest.raises(ExportError, match="up/kernel holds values that are no finite numbers"):
        read_keras(tmp_path / "broken.keras")


@pytest.mark.parametrize(
    ("package", "running"),
    [
        ("__version__ = '2.15.0'", "Keras 2.15.0 is already running on none"),
        ("__version__ = '3.9.0'\nclass config:\n    backend = lambda: 'jax'", "Keras 3.9.0 is already running on jax"),
    ],
)
def test_another_keras_that_already_runs_is_refused_with_what_to_set(tmp_path, package, running):
    (tmp_path / "keras.py").write_text(package)
    code = "import keras; from export.checkpoints.keras_files import import_keras; import_keras()"
    path = os.pathsep.join([str(tmp_path), *sys.path])
    ran = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert f"ExportError: {running}; expected Keras 3 on torch: set KERAS_BACKEND=torch" in ran.stderr


def test_keras_runs_on_torch_whatever_the_environment_says_and_leaves_it_as_it_was():
    code = (
        "import os; from export.checkpoints.keras_files import import_keras; "
        "print(import_keras().config.backend(), os.environ['KERAS_BACKEND'])"
    )
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow"}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["torch", "tensorflow"]
