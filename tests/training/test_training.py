"""The trainer end to end, on a recipe small enough for a test: real images on disk, simulated strips, torch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from calibration.gate_recall import clean_scores, region_peaks
from edge.cli import main
from edge.errors import ConfigError
from export.networks.gate import SteelGate
from export.networks.unet import SteelUNet
from training.data import load_split
from training.gate_task import gate_task, scored_maps
from training.recipe import load_recipe
from training.segmenter_task import segmenter_task
from training.trainer import TrainingError, train


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    """Sixteen images with a bright square of class 1, which a network learns in a few steps."""
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for index in range(16):
        mask = np.zeros((72, 72), np.uint8)
        row, column = rng.integers(0, 40, 2)
        mask[row : row + 24, column : column + 24] = 1
        image = np.clip(np.where(mask, 200, 90) + rng.normal(0, 4, mask.shape), 0, 255).astype(np.uint8)
        assert cv2.imwrite(str(tmp_path / "images" / f"{index}.png"), image)
        assert cv2.imwrite(str(tmp_path / "masks" / f"{index}.png"), mask)
    document = {
        "arch": "steel-unet",
        "classes": ["background", "patches"],
        "crop": 64,
        "threads": 1,
        "images": {"images": str(tmp_path / "images"), "masks": str(tmp_path / "masks"), "validation": 3, "held_out": 3},
        "simulated": {
            "strips": 1,
            "width": 256,
            "lines": 128,
            "validation_strips": 1,
            "classes": {"rust": "patches", "pit": "patches", "inclusion": "patches", "scratch": "patches"},
        },
        "schedule": {"epochs": 3, "batch": 4, "rate": 0.01, "average": 0.5, "bfloat16": False},
        "out": str(tmp_path / "run"),
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_the_command_trains_writes_checkpoint_figures_and_curves_and_learns(recipe_file, capsys):
    assert main(["train", str(recipe_file), "--set", "schedule.epochs=8", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    out = recipe_file.parent / "run"
    assert figures == json.loads((out / "figures.json").read_text())
    assert figures["mean_iou"] > 0.6
    assert figures["held_out_mean_iou"] > 0.6
    SteelUNet(2).load_state_dict(torch.load(out / "best.pt", weights_only=True))
    history = json.loads((out / "history.json").read_text())
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    assert cv2.imread(str(out / "curves.png")) is not None


def test_an_interrupted_run_that_goes_on_ends_as_an_uninterrupted_one(recipe_file):
    class StoppedError(Exception):
        pass

    recipe = load_recipe(recipe_file)
    whole = train(recipe, segmenter_task(recipe))
    again = load_recipe(recipe_file, [f"out={recipe_file.parent / 'again'}"])
    task = segmenter_task(again)

    def until_the_second_epoch(epoch: int, index: int):
        if epoch == 2:
            raise StoppedError
        return task.batch(epoch, index)

    with pytest.raises(StoppedError):
        train(again, replace(task, batch=until_the_second_epoch))
    assert train(again, segmenter_task(again)) == whole
    one, other = (torch.load(folder / "best.pt", weights_only=True) for folder in (recipe.out, again.out))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_folder_that_holds_another_recipes_run_is_left_alone(recipe_file):
    recipe = load_recipe(recipe_file, ["schedule.epochs=1"])
    train(recipe, segmenter_task(recipe))
    other = load_recipe(recipe_file, ["schedule.epochs=2"])
    with pytest.raises(TrainingError, match="belongs to another recipe"):
        train(other, segmenter_task(other))


def test_a_gate_learns_to_tell_defects_from_clean_steel(recipe_file):
    strip = ["simulated.width=512", "simulated.lines=512", "simulated.defects.pit_every_mm=20"]
    changes = ["arch=steel-gate", "schedule.epochs=8", "schedule.rate=0.004", "simulated.share=0.25", *strip]
    recipe = load_recipe(recipe_file, changes)
    task = gate_task(recipe)
    images, truth = task.batch(0, 0)
    assert (images.shape, truth.shape) == ((4, 32, 32), (4, 2, 2, 2))
    history = train(recipe, task)
    assert history[-1].loss < 0.7 * history[0].loss
    assert all(0 <= value <= 1 for value in history[-1].figures.values())
    SteelGate().load_state_dict(torch.load(recipe.out / "best.pt", weights_only=True))
    split = load_split(recipe.images, 2, recipe.seed)
    maps = scored_maps(task.network.eval(), split.validation + split.held_out)
    defects, clean = (np.concatenate([of(scored) for scored in maps]) for of in (region_peaks, clean_scores))
    assert defects.mean() > 1.2 * clean.mean()


def test_a_gate_without_a_defect_to_be_judged_by_is_refused_before_it_trains(recipe_file):
    nothing = [f"simulated.defects.{kind}_every_mm=null" for kind in ("rust", "pit", "inclusion", "scratch")]
    recipe = load_recipe(recipe_file, ["arch=steel-gate", *nothing])
    with pytest.raises(ConfigError, match="simulated: got 1 for validation without a defect; expected some"):
        gate_task(recipe)


def test_a_validation_image_is_scored_cell_by_cell_whatever_its_size():
    network = SteelGate(widths=(8, 8, 16)).eval()
    image = np.random.default_rng(0).integers(0, 256, (72, 100), np.uint8)
    (scored,) = scored_maps(network, ((image, np.ones_like(image)),))
    assert (scored.scores.shape, scored.mask.shape, scored.cell) == ((3, 4), (96, 128), 32)
    assert np.all((scored.scores > 0) & (scored.scores < 1))


def test_splits_are_disjoint_and_the_same_for_the_same_seed(recipe_file):
    recipe = load_recipe(recipe_file)
    one, other = (load_split(recipe.images, 2, seed=5) for _ in range(2))
    parts = [one.train, one.validation, one.held_out]
    assert [len(part) for part in parts] == [10, 3, 3]
    content = [{image.tobytes() for image, _ in part} for part in parts]
    assert len(set.union(*content)) == 16
    assert all(a[0].tobytes() == b[0].tobytes() for a, b in zip(one.train, other.train, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("images.validation=20", "got 16 images, expected more than the 23"),
        ("simulated.classes.rust=oxide", "simulated.classes.rust: got 'oxide', expected one of background, patches"),
        ("classes=[a, b, c]", "simulated.classes.rust"),
    ],
)
def test_a_recipe_that_does_not_fit_its_data_is_refused_and_says_why(recipe_file, change, message):
    recipe = load_recipe(recipe_file, [change])
    with pytest.raises(ConfigError, match=message):
        segmenter_task(recipe)


def test_a_recipe_names_all_its_faults_at_once(recipe_file):
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe_file, ["schedule.batch=0", "crop=3", "colour=red"])
    assert all(key in str(caught.value) for key in ("schedule.batch", "crop", "colour"))


def test_a_mask_with_a_class_that_the_recipe_does_not_have_names_the_file(recipe_file):
    bad = recipe_file.parent / "masks" / "7.png"
    assert cv2.imwrite(str(bad), np.full((72, 72), 9, np.uint8))
    recipe = load_recipe(recipe_file)
    with pytest.raises(ConfigError, match=r"7\.png: mask holds class 9, expected below 2"):
        segmenter_task(recipe)
