from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from small_checkpoints import TILE_GATE

from edge.errors import ConfigError
from edge.manifest import Resize
from export.checkpoints import Checkpoint, Hints, OnnxContent, StateContent
from export.errors import ExportError
from export.networks import Architecture, find_architecture
from export.networks.grey_input import IMAGENET, Normalisation
from export.recipe import ExportRecipe, parse_recipe
from export.run import check_kind, complete, read_data, run_recipe

OWN = Normalisation((10.0,), (20.0,))


def recipe(**said: Any) -> ExportRecipe:
    return parse_recipe({"checkpoint": "net", "arch": "x", "calibration": "images", "out": "out"} | said, "r.yaml")


NOTHING = Hints()


def completed(arch: str, hints: Hints = NOTHING, content: Any = None, **said: Any) -> Architecture:
    checkpoint = Checkpoint("net", "", content or StateContent({}), hints)
    return complete(find_architecture(arch), checkpoint, recipe(**said))


def graph_of(kind: int) -> OnnxContent:
    """A graph that takes an image of this element type."""
    image = onnx.helper.make_tensor_value_info("image", kind, ["n", 1, 64, 64])
    out = onnx.helper.make_tensor_value_info("out", kind, ["n", 1, 64, 64])
    node = onnx.helper.make_node("Identity", ["image"], ["out"])
    return OnnxContent(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [image], [out])))


def test_what_the_recipe_says_stands_above_the_checkpoint_and_that_above_the_architecture() -> None:
    hints = Hints(classes=("a", "b"), tile=(48, 64), normalisation=OWN)
    said = {"classes": "c,d", "tile": "32x32", "mean": 1, "deviation": 2}
    found = completed("any-segmenter", hints)
    assert (found.classes, found.tile, found.normalisation) == (("a", "b"), (48, 64), OWN)
    told = completed("any-segmenter", hints, **said)
    assert (told.classes, told.tile, told.normalisation) == (("c", "d"), (32, 32), Normalisation((1.0,), (2.0,)))
    known = completed("rust-cnn")
    assert (known.classes, known.tile, known.normalisation) == (("clean", "rust"), (32, 32), IMAGENET)
    assert completed("rust-cnn", hints).normalisation == OWN
    assert completed("rust-cnn", hints).tile == (32, 32)


@pytest.mark.parametrize(
    ("hints", "told"),
    [
        (Hints(), "--classes: got none, and net names none"),
        (Hints(("a", "b"), (64, 64)), "--mean, --deviation: got none, and net does not say how its images were normalised"),
        (Hints(("a", "b"), None, OWN), "--tile: got none, and net takes any size"),
    ],
)
def test_what_nobody_says_is_asked_for_by_its_flag(hints: Hints, told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        completed("any-classifier", hints)
    assert str(refused.value).startswith(told)


def test_a_graph_that_takes_bytes_normalises_by_itself() -> None:
    said = {"classes": "a,b", "tile": "64x64"}
    assert completed("any-segmenter", NOTHING, graph_of(onnx.TensorProto.UINT8), **said).normalisation is None
    with pytest.raises(ConfigError, match="--mean, --deviation: got some, but net takes bytes and normalises by itself"):
        completed("any-segmenter", NOTHING, graph_of(onnx.TensorProto.UINT8), **said, mean=0, deviation=1)
    with pytest.raises(ConfigError, match="--mean, --deviation: got none"):
        completed("any-segmenter", NOTHING, graph_of(onnx.TensorProto.FLOAT), **said)


def test_a_network_with_its_own_normalisation_gets_no_second_one() -> None:
    with pytest.raises(ConfigError, match="--mean, --deviation: got some, but steel-unet normalises by itself; leave them out"):
        completed("steel-unet", mean=0, deviation=255)


def test_tiles_of_the_strip_are_resized_where_they_are_not_the_engines() -> None:
    assert completed("steel-unet", strip_tile="64x128").preparation == (Resize(method="linear"),)
    assert completed("steel-unet", strip_tile="256x256").preparation == ()
    assert completed("steel-gate", strip_tile="256x256").preparation == ()  # which averages over 2x2
    assert completed("rust-cnn", strip_tile="64x64").preparation == find_architecture("rust-cnn").preparation


@pytest.mark.parametrize(
    ("arch", "said", "told"),
    [
        ("steel-unet", {"tile": "100x256"}, "--tile: got 100x256; expected multiples of 16, the stride of steel-unet"),
        ("steel-gate", {"strip_tile": "64x63"}, "--strip-tile: got 64x63; expected multiples of 2"),
        ("steel-unet", {"strip_tile": "64x64", "preparation": []}, "strip_tile: got another size than the tile's"),
        ("rust-cnn", {"clean": "shiny"}, "--clean: got shiny; expected one of the classes, clean, rust"),
        (
            "rust-cls",
            {"classes": "a,b,c", "gate_threshold": 0.5},
            "--gate-threshold: got 0.5, but of 3 classes the likeliest counts",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(arch: str, said: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        completed(arch, **said)
    assert str(refused.value).startswith(told)


@pytest.mark.parametrize(
    ("arch", "said", "told"),
    [
        ("steel-unet", {"labels": "folders"}, "--labels: got folders, but steel-unet is a segmenter; expected --masks DIR"),
        ("steel-unet", {"clean": "background"}, "--clean: got background, but steel-unet is a segmenter; leave it out"),
        ("steel-unet", {"gate_threshold": 0.5}, "--gate-threshold: got 0.5, but steel-unet is a segmenter; leave it out"),
        ("steel-unet", {"recall": 0.9}, "--recall: got 0.9, but steel-unet is a segmenter"),
        ("rust-cnn", {"masks": "m", "pixel_threshold": 0.5}, "--pixel-threshold: got 0.5, but rust-cnn is a classifier"),
        ("rust-cnn", {"masks": "m", "simulated": 3}, "--simulated: got strips=3"),
        ("steel-gate", {"masks": "m", "pixel_threshold": 0.5}, "--pixel-threshold: got 0.5, but steel-gate is a gate of cells"),
        ("steel-gate", {"masks": "m", "strip_tile": "64x64"}, "--strip-tile: got (64, 64), but steel-gate is a gate of cells"),
        ("steel-gate", {"labels": "folders"}, "--labels: got folders, but steel-gate is a gate of cells; expected --masks DIR"),
        (
            "steel-gate",
            {"masks": "m", "head": "mask"},
            "--head: got mask, but steel-gate is a classifier; expected logits or prob",
        ),
        ("rust-cnn", {}, "--labels, --masks: got neither, but rust-cnn is a classifier"),
        ("steel-gate", {}, "--masks: got none, but steel-gate is a gate of cells; expected masks of its images"),
    ],
)
def test_what_means_nothing_to_a_kind_of_network_is_refused_rather_than_ignored(
    arch: str, said: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        check_kind(recipe(**said), find_architecture(arch))
    assert str(refused.value).startswith(told)
    check_kind(recipe(masks="masks"), find_architecture(arch))


def write(folder: Path, images: dict[str, np.ndarray]) -> Path:
    for name, image in images.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), image)
    return folder


def test_a_gate_needs_masks_with_defects_and_without(tmp_path: Path) -> None:
    images = write(tmp_path / "images", {f"{n}.png": np.full((256, 256), 40 * n, np.uint8) for n in range(3)})
    said = {"calibration": str(images), "masks": str(tmp_path / "masks")}
    gate = TILE_GATE
    for number in range(3):
        write(tmp_path / "masks", {f"{number}.png": np.zeros((256, 256), np.uint8)})
    with pytest.raises(
        ConfigError, match=r"--masks: got none of 3 tiles with 16 defect pixels or more in .*masks; expected some"
    ):
        read_data(recipe(**said), gate)
    write(tmp_path / "masks", {"1.png": np.pad(np.full((4, 4), 255, np.uint8), 126)})
    assert len(read_data(recipe(**said), gate).validation) == 3
    with pytest.raises(ConfigError, match="got none of 3 tiles with 17 defect pixels"):
        read_data(recipe(**said, defect_px=17), gate)
    for number in (0, 2):
        write(tmp_path / "masks", {f"{number}.png": np.ones((256, 256), np.uint8)})
    with pytest.raises(ConfigError, match="got all of 3 tiles with 16 defect pixels"):
        read_data(recipe(**said), gate)


def test_a_gate_of_cells_needs_regions_and_clean_cells_wherever_they_are(tmp_path: Path) -> None:
    images = write(tmp_path / "images", {f"{n}.png": np.full((96, 96), 40 * n, np.uint8) for n in range(3)})
    said = {"calibration": str(images), "masks": str(tmp_path / "masks")}
    gate = find_architecture("steel-gate")
    mask = np.zeros((96, 96), np.uint8)
    for number in range(3):
        write(tmp_path / "masks", {f"{number}.png": mask})
    with pytest.raises(ConfigError, match=r"--masks: got 0 regions of 8 defect pixels or more and 27 clean cells in .*masks"):
        read_data(recipe(**said), gate)
    mask[8:16, 8:9] = 255
    write(tmp_path / "masks", {"1.png": mask})
    # one region of 8 px, in one cell of 27, and at a rim's distance from its neighbours
    assert len(read_data(recipe(**said), gate).validation) == 3
    with pytest.raises(ConfigError, match="got 0 regions of 9 defect pixels or more"):
        read_data(recipe(**said, defect_px=9), gate)
    for number in range(3):
        write(tmp_path / "masks", {f"{number}.png": np.ones((96, 96), np.uint8)})
    with pytest.raises(ConfigError, match="got 3 regions of 8 defect pixels or more and 0 clean cells"):
        read_data(recipe(**said), gate)


def test_simulated_strips_stand_beside_the_images_and_are_measured_apart(tmp_path: Path) -> None:
    images = write(tmp_path / "images", {f"{n}.png": np.full((96, 96), 40 * n, np.uint8) for n in range(4)})
    write(tmp_path / "masks", {f"{n}.png": np.pad(np.ones((4, 4), np.uint8), 46) for n in range(4)})
    dense = {"strips": 20, "width": 128, "lines": 128, "defects": {"pit_every_mm": 4}}
    said = {"calibration": str(images), "masks": str(tmp_path / "masks"), "simulated": dense}
    data = read_data(recipe(**said), find_architecture("steel-gate"))
    assert {image.shape for image, _ in data.validation} == {(96, 96)}
    assert {image.shape for image, _ in data.simulated} == {(128, 128)}
    # with so many images a quarter calibrates and is measured no more
    assert len(data.validation) + len(data.simulated) == 18
    assert {image.shape for image in data.calibration} == {(96, 96), (128, 128)}
    assert any(mask.any() for _, mask in data.simulated)


def test_a_simulated_strip_is_never_cut_for_slivers_of_defects_would_count_as_defects(tmp_path: Path) -> None:
    images = write(tmp_path / "images", {f"{n}.png": np.full((96, 96), 40 * n, np.uint8) for n in range(2)})
    write(tmp_path / "masks", {f"{n}.png": np.pad(np.ones((4, 4), np.uint8), 46) for n in range(2)})
    strips = {"strips": 1, "width": 1280, "lines": 1100}
    said = {"calibration": str(images), "masks": str(tmp_path / "masks"), "simulated": strips}
    data = read_data(recipe(**said), find_architecture("steel-gate"))
    assert [image.shape for image, _ in data.simulated] == [(1100, 1280)]


def test_masks_cannot_tell_more_than_two_classes_of_tiles(tmp_path: Path) -> None:
    three = completed("rust-cls", classes="a,b,c")
    with pytest.raises(ConfigError, match=r"--masks: got .*, but rust-cls tells 3 classes apart, .* expected --labels"):
        read_data(recipe(masks=str(tmp_path)), three)


def test_a_library_network_that_does_not_fit_is_told_with_the_file(folder: Path, tmp_path: Path) -> None:
    said = {"checkpoint": str(folder / "unet.pt"), "arch": "smp-unet:resnet18", "out": str(tmp_path / "out")}
    with pytest.raises(ExportError, match=r"unet\.pt: does not fit smp-unet:resnet18: checkpoint holds nothing at segmentation"):
        run_recipe(recipe(**said))
    assert list(tmp_path.iterdir()) == []
