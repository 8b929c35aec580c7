"""Images for the seed systems, the checkpoints that their frameworks make, and the bundles of those: each once for all tests."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import frameworks
import numpy as np
import plain
import pytest
import torch
from torchvision_operators import library
from workbench import export, write_images

from edge.bundle import Bundle
from edge.config import Scale, SimulatedDefects
from edge.sources.steel_strip import SteelStrip

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
DEFECTS = SimulatedDefects(rust_every_mm=40, pit_every_mm=40, inclusion_every_mm=60, scratch_every_mm=60, scratch_max_mm=60)
SIZES = {"rust-cls": (256, 768), "rust-cnn": (128, 320), "severstal": (256, 1600), "coating": (320, 448), "pits": (330, 430)}
"""Lines and columns of the images of each system; those of pits leave a rest that no slice of its own covers."""
COUNTS = {"severstal": 3}


@dataclass(frozen=True)
class Seed:
    """A network that was trained elsewhere.

    tiles: grey, as they are cut from the images. answers: of the framework that wrote the checkpoint to what its system makes
    of them, probabilities. bundle: what `rust-edge export` made of the checkpoint. network: of torch, to ask it more.
    """

    tiles: list[np.ndarray]
    answers: np.ndarray
    bundle: Bundle
    network: torch.nn.Module | None = None


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)  # a second one waits for a processor of its own


@pytest.fixture(scope="session")
def shots():
    """By system and name: simulated images, and a real one where there are any beside the project."""
    real = cv2.imread(str(DATA / "strips" / "neu_dense.png"), cv2.IMREAD_GRAYSCALE)
    images = {}
    for number, (system, (lines, columns)) in enumerate(SIZES.items()):
        first, count = 200 + 1000 * number, COUNTS.get(system, 1)
        strip = SteelStrip(columns, 11 + number, DEFECTS, Scale())
        images[system] = {f"made-{shot}": strip.lines(first + shot * lines, lines) for shot in range(count)}
        if real is not None:
            images[system]["real"] = real[first : first + lines, 200 : 200 + columns]
    particles = sorted((DATA / "pits" / "train" / "images").glob("*.png"))[:9]
    if particles:
        rows = [np.hstack([cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in particles[row::3]]) for row in range(3)]
        images["pits"]["real"] = np.vstack(rows)[: SIZES["pits"][0], : SIZES["pits"][1]]
    return images


@pytest.fixture(scope="session")
def workplace(tmp_path_factory):
    """A folder whose content does not outlast the tests: half a gigabyte."""
    folder = tmp_path_factory.mktemp("seeds")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def keras_checkpoints(shots, workplace):
    """By network: grey tiles, checkpoint, answers. TF-Keras 2 writes and answers where RUST_EDGE_TENSORFLOW_PYTHON names a Python
    that has it, else Keras 3."""
    python, module, model = os.environ.get("RUST_EDGE_TENSORFLOW_PYTHON", ""), "tf_keras", ".h5"
    if not python:
        if importlib.util.find_spec("keras") is None:
            pytest.skip("Keras is absent (pip install 'rust-edge[keras]')")
        python, module, model = sys.executable, "keras", ".keras"
    makers = {
        "rust-cls": ("rust-cls", (256, 256), plain.rust_cls_input, model),
        "severstal-gate": ("severstal", (256, 1600), plain.severstal_gate_input, ".json"),
        "severstal-unet": ("severstal", (256, 1600), plain.severstal_unet_input, ".json"),
        "coating-unet": ("coating", (160, 224), plain.coating_input, model),
    }
    folder = workplace / "keras"
    folder.mkdir()
    tiles = {name: _tiles(shots[system], size) for name, (system, size, *_) in makers.items()}
    for name, (*_, prepare, _) in makers.items():
        np.save(folder / f"{name}.tiles.npy", np.stack([prepare(tile) for tile in tiles[name]]).astype(np.float32))
    ran = subprocess.run([python, frameworks.__file__, module, str(folder)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    answers = {name: np.load(folder / f"{name}.answers.npy") for name in makers}
    return {name: (tiles[name], folder / f"{name}{suffix}", answers[name]) for name, (*_, suffix) in makers.items()}


@pytest.fixture(scope="session")
def rust_cls(keras_checkpoints, workplace):
    """Its three classes are named so that clean steel is the last one."""
    tiles, checkpoint, answers = keras_checkpoints["rust-cls"]
    folder = workplace / "rust_cls"
    images = _sorted(folder / "tiles", tiles, answers, ("heavy-rust", "light-rust", "no-rust"))
    return Seed(tiles, answers, export("rust-cls", checkpoint=checkpoint, calibration=images, out=folder / "bundle"))


@pytest.fixture(scope="session")
def severstal_gate(keras_checkpoints, workplace):
    tiles, checkpoint, answers = keras_checkpoints["severstal-gate"]
    folder = workplace / "severstal_gate"
    masks = [np.full(tile.shape, answer >= 0.01, np.uint8) for tile, answer in zip(tiles, answers[:, 0], strict=True)]
    data = _masked(folder, tiles, masks)
    return Seed(tiles, answers, export("severstal-gate", checkpoint=checkpoint, **data, out=folder / "bundle"))


@pytest.fixture(scope="session")
def severstal_unet(keras_checkpoints, workplace):
    tiles, checkpoint, answers = keras_checkpoints["severstal-unet"]
    folder = workplace / "severstal_unet"
    masks = [plain.severstal_mask(1.0, answer, tile.shape)[0] for tile, answer in zip(tiles, answers, strict=True)]
    data = _masked(folder, tiles, masks)
    return Seed(tiles, answers, export("severstal-unet", checkpoint=checkpoint, **data, out=folder / "bundle"))


@pytest.fixture(scope="session")
def coating_unet(keras_checkpoints, workplace):
    tiles, checkpoint, answers = keras_checkpoints["coating-unet"]
    folder = workplace / "coating_unet"
    masks = [plain.coating_mask(answer[..., 0], tile.shape)[0] for tile, answer in zip(tiles, answers, strict=True)]
    data = _masked(folder, [np.hstack(tiles[:2])], [np.hstack(masks[:2])])  # cut again; two of them, for it is slow
    bundle = export("coating-unet", checkpoint=checkpoint, strip_tile=(160, 224), **data, out=folder / "bundle")
    return Seed(tiles, answers, bundle)


@pytest.fixture(scope="session")
def rust_cnn(shots, workplace):
    tiles = _tiles(shots["rust-cnn"], (64, 64))
    network, answers = frameworks.rust_cnn(np.stack([plain.rust_cnn_input(tile) for tile in tiles]))
    folder = workplace / "rust_cnn"
    optimizer = torch.optim.Adam(network.parameters()).state_dict()
    state = {"model_state_dict": network.state_dict(), "optimizer_state_dict": optimizer}
    state |= {"epoch": 9, "loss": 0.1, "accuracy": 97.5}
    images = _sorted(folder / "tiles", tiles, answers, ("clean", "rust"))
    torch.save(state, folder / "best_model.pth")
    bundle = export("rust-cnn", checkpoint=folder / "best_model.pth", calibration=images, out=folder / "bundle")
    return Seed(tiles, answers, bundle)


@pytest.fixture(scope="session")
def pits_unetpp(shots, workplace):
    """Saved whole, pickled."""
    smp = library("segmentation_models_pytorch")
    folder, tiles = workplace / "pits_unetpp", _slices(shots["pits"])
    folder.mkdir()
    network = frameworks.pits_unetpp(smp, plain.slice_inputs(tiles))
    torch.save(network, folder / "model.pth")
    return _pits_seed("pits-unetpp", folder, "model.pth", tiles, network, trust=True)


@pytest.fixture(scope="session")
def pits_unet(shots, workplace):
    """The plain U-Net as a state dict, narrower than the system's for speed."""
    folder, tiles = workplace / "pits_unet", _slices(shots["pits"])
    folder.mkdir()
    network = frameworks.pits_unet(plain.slice_inputs(tiles))
    torch.save(network.state_dict(), folder / "unet.pth")
    return _pits_seed("pits-unet", folder, "unet.pth", tiles, network)


def _pits_seed(recipe, folder, checkpoint, tiles, network, **more):
    answers = frameworks.sigmoids(network, plain.slice_inputs(tiles))
    data = _masked(folder, tiles, [(answer[0] > 0.5) * np.uint8(255) for answer in answers])
    return Seed(tiles, answers, export(recipe, checkpoint=folder / checkpoint, **data, **more, out=folder / "bundle"), network)


def _tiles(images, size):
    return [tile for image in images.values() for tile in plain.cut(image, *size)]


def _slices(images):
    """One slice of each image."""
    return [image[100:324, 200:424] for image in images.values()]


def _sorted(folder, tiles, answers, names):
    """Tiles in folders named as the classes that the network gives them."""
    labels = answers.argmax(axis=1)
    shown = zip(tiles, labels, strict=True)
    return write_images(folder, {f"{names[label]}/{number}": tile for number, (tile, label) in enumerate(shown)})


def _masked(folder, images, masks):
    """A recipe's calibration images and masks, in two folders."""
    for kind, shown in (("images", images), ("masks", masks)):
        write_images(folder / kind, {str(number): values for number, values in enumerate(shown)})
    return {"calibration": folder / "images", "masks": folder / "masks"}
