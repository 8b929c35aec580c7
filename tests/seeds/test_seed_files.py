"""The recipes and stations of the seed systems as files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from workbench import CONFIGS

from edge.cli import main
from edge.config import load_config
from export.networks import ARCHITECTURES
from export.recipe import load_recipe
from export.samples import read_folder

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's own
RECIPES = sorted(path for path in (CONFIGS / "export").glob("*.yaml") if "arch" in yaml.safe_load(path.read_text()))
STATIONS = sorted((CONFIGS / "seeds").glob("*.yaml"))


def test_every_network_has_a_recipe_and_every_system_a_station() -> None:
    assert {path.stem for path in RECIPES} == {
        "rust-cls", "rust-cnn", "severstal-gate", "severstal-unet", "coating-unet", "pits-unet", "pits-unetpp", "steel-unet",
        "steel-gate",
    }  # fmt: skip
    assert {path.stem for path in STATIONS} == {"rust-cls", "rust-cnn", "severstal", "coating", "pits"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_names_its_architecture_and_says_how_it_is_called(path: Path) -> None:
    recipe = load_recipe(path)
    architecture = ARCHITECTURES[recipe.arch]
    assert recipe.arch == path.stem
    assert f"rust-edge export configs/export/{path.name} --set" in path.read_text()
    assert (recipe.labels or recipe.masks) is not None
    assert not recipe.trust_checkpoint  # that is for the user to say
    assert recipe.checkpoint.parts[0] in ("models", "runs")
    assert recipe.precision == "int8"
    if architecture.kind == "classifier" and recipe.labels:
        assert recipe.clean in recipe.classes


@pytest.mark.parametrize("path", STATIONS, ids=lambda path: path.stem)
def test_a_station_runs_the_bundles_that_the_recipes_make(path: Path) -> None:
    config = load_config(path)
    made = {str(load_recipe(recipe).out) for recipe in RECIPES}
    assert config.mode == "tiles"
    assert {config.bundle, config.gate} - {None} <= made


@pytest.mark.parametrize(
    ("station", "bundles"),
    [
        ("rust-cls", {"bundle": "rust_cls"}),
        ("rust-cnn", {"bundle": "rust_cnn"}),
        ("severstal", {"bundle": "severstal_unet", "gate": "severstal_gate"}),
        ("coating", {"bundle": "coating_unet"}),
        ("pits", {"bundle": "pits_unetpp"}),
    ],
)
def test_a_station_is_sound_once_its_bundles_exist(station, bundles, request, tmp_path, capsys) -> None:
    found = {key: request.getfixturevalue(name).bundle.path for key, name in bundles.items()}
    overrides = [word for key, path in found.items() for word in ("--set", f"{key}={path}")]
    check = ["config", "check", str(CONFIGS / "seeds" / f"{station}.yaml"), "--set", f"source.path={tmp_path}"]
    capsys.readouterr()
    assert main([*check, *overrides]) == 0
    assert capsys.readouterr().out.endswith(f"{station}.yaml: sound\n")
    # and says what is missing as long as there are none
    assert main([*check, "--set", f"bundle={tmp_path / 'none'}"]) == 2
    assert "bundle: " in capsys.readouterr().err


def test_large_images_are_cut_along_a_networks_tiles(tmp_path: Path) -> None:
    """A strip of 256 x 1600 px is one tile of severstal, and the quarters of a coating are four."""
    values = np.random.default_rng(0).integers(0, 256, (960, 1600), np.uint8)
    for name, image in (("severstal", values[:256]), ("coating", values[:, :1280])):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "image.png"), image)
    (steel,) = read_folder(tmp_path / "severstal", None, classes=2, cell=(256, 1600)).calibration
    np.testing.assert_array_equal(steel, values[:256])
    left, right = read_folder(tmp_path / "coating", None, classes=2, cell=(480, 640)).calibration
    np.testing.assert_array_equal(np.hstack([left, right]), values[:, :1280])
