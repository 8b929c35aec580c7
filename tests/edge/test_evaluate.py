"""`rust-edge evaluate`: figures that can be counted by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from toy_engines import (
    CELL,
    TILE,
    range_logits,
    relative_logits,
    steel,
    write_cell_gate,
    write_gate,
    write_range_classifier,
    write_relative_segmenter,
    write_segmenter,
)

from edge.bundle import open_bundle
from edge.cli import main
from edge.quality import inspect_whole
from edge.sessions.ort import OrtSession

DARK, BRIGHT = 20, 240


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_segmenter(tmp_path_factory.mktemp("bundles") / "unet"))


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_gate(tmp_path_factory.mktemp("bundles") / "gate"))


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image)


def evaluate(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["evaluate", *arguments, "--json"]) == 0
    figures: dict[str, Any] = json.loads(capsys.readouterr().out)
    return figures


def fault(capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> str:
    assert main(["evaluate", *arguments]) == code
    return capsys.readouterr().err.removeprefix("rust-edge: ").rstrip()


@pytest.fixture
def labelled(tmp_path: Path) -> tuple[str, str]:
    """Two images of different sizes, in different folders, whose masks are not quite what the segmenter says."""
    first = steel(50, 40, (0, 0, 10, 10, DARK), (30, 20, 10, 10, BRIGHT))
    second = steel(33, 21, (5, 5, 4, 5, DARK))
    first_mask = (first == DARK) * np.uint8(1) + (first == BRIGHT) * np.uint8(2)
    first_mask[20:25, 0:10] = 1  # 50 px of dark that nobody sees
    second_mask = np.zeros_like(second)  # 20 px of dark that is none
    write(tmp_path / "images" / "day1" / "a.png", first)
    write(tmp_path / "images" / "day2" / "b.bmp", second)
    write(tmp_path / "masks" / "a.png", first_mask)
    write(tmp_path / "masks" / "b.png", second_mask)
    return str(tmp_path / "images"), str(tmp_path / "masks")


def test_iou_comes_from_one_confusion_matrix_over_all_images(
    capsys: pytest.CaptureFixture[str], segmenter: str, labelled: tuple[str, str]
) -> None:
    figures = evaluate(capsys, "--bundle", segmenter, "--images", labelled[0], "--masks", labelled[1])
    pixels = 50 * 40 + 33 * 21
    background = pixels - 100 - 100 - 50 - 20  # right in both
    assert figures["pixels"] == pixels
    assert figures["images"] == 2
    assert figures["iou"] == pytest.approx({"background": background / (background + 70), "dark": 100 / 170, "bright": 1.0})
    assert figures["dice"] == pytest.approx(
        {"background": 2 * background / (2 * background + 70), "dark": 200 / 270, "bright": 1.0}
    )
    assert figures["mean_iou"] == pytest.approx((background / (background + 70) + 100 / 170 + 1) / 3)
    assert figures["mean_iou_defects"] == pytest.approx((100 / 170 + 1) / 2)


def test_defects_are_counted_found_missed_and_false(
    capsys: pytest.CaptureFixture[str], segmenter: str, labelled: tuple[str, str]
) -> None:
    figures = evaluate(capsys, "--bundle", segmenter, "--images", labelled[0], "--masks", labelled[1])
    assert figures["defects"] == {
        "dark": {"found": 1, "missed": 1, "false_alarms": 1},
        "bright": {"found": 1, "missed": 0, "false_alarms": 0},
    }


def test_figures_go_to_a_file_where_one_is_named(
    capsys: pytest.CaptureFixture[str], segmenter: str, labelled: tuple[str, str], tmp_path: Path
) -> None:
    arguments = ["evaluate", "--bundle", segmenter, "--images", labelled[0], "--masks", labelled[1]]
    assert main([*arguments, "--json", str(tmp_path / "figures.json")]) == 0
    assert "mean IoU" in capsys.readouterr().out
    assert json.loads((tmp_path / "figures.json").read_text())["images"] == 2


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (1500, 9)])
def test_an_image_of_any_size_is_inspected_whole(segmenter: str, shape: tuple[int, int]) -> None:
    image = np.random.default_rng(shape).integers(0, 256, shape, dtype=np.uint8)
    bundle = open_bundle(segmenter)
    with OrtSession(bundle.model_path, threads=1) as session:
        mask = inspect_whole(session, bundle, image)
    assert np.array_equal(mask, (image < 64) * np.uint8(1) + (image > 192) * np.uint8(2))


def test_a_gate_is_judged_by_tile_from_masks(capsys: pytest.CaptureFixture[str], gate: str, tmp_path: Path) -> None:
    # two rows of three tiles of 32 px, the last column and row filled up by reflection
    image = steel(40, 70, (0, 0, 5, 5, DARK), (35, 66, 2, 2, BRIGHT))
    mask = np.zeros_like(image)
    mask[0:5, 0:5] = 255
    mask[10, 40] = 255  # a defect that the gate does not see
    write(tmp_path / "images" / "a.png", image)
    write(tmp_path / "masks" / "a.png", mask)
    figures = evaluate(capsys, "--bundle", gate, "--images", str(tmp_path / "images"), "--masks", str(tmp_path / "masks"))
    assert figures["confusion"] == [[3, 1], [1, 1]]
    assert (figures["accuracy"], figures["recall"], figures["precision"]) == pytest.approx((4 / 6, 1 / 2, 1 / 2))
    assert (figures["tiles"], figures["images"]) == (6, 1)


def test_a_gate_of_cells_is_judged_by_cell_from_masks(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    side, cell = 2 * TILE, 2 * CELL  # px of the strip, which goes in averaged 2x2
    bundle = write_cell_gate(tmp_path / "gate")
    # one tile, and another one of which the image has a row of cells
    image = steel(side + cell, side, (2 * cell, 3 * cell, cell, cell, DARK))
    mask = np.where(image == DARK, np.uint8(255), np.uint8(0))
    write(tmp_path / "images" / "a.png", image)
    write(tmp_path / "masks" / "a.png", mask)
    arguments = ("--bundle", str(bundle), "--images", str(tmp_path / "images"), "--masks", str(tmp_path / "masks"))
    figures = evaluate(capsys, *arguments)
    cells = (side // cell) * (side // cell + 1)
    # this gate alarms the eight cells around a defect too
    assert figures["confusion"] == [[cells - 9, 8], [0, 1]]
    assert figures["cells"] == cells
    assert main(["evaluate", *arguments]) == 0
    assert f"{cells} cells" in capsys.readouterr().out


def test_a_gate_of_cells_without_masks_is_judged_by_its_worst_cell(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    bundle = write_cell_gate(tmp_path / "gate")
    write(tmp_path / "images" / "clean" / "a.png", steel(2 * TILE, 2 * TILE))
    write(tmp_path / "images" / "defect" / "b.png", steel(2 * TILE, 2 * TILE, (9, 9, 2 * CELL, 2 * CELL, DARK)))
    figures = evaluate(capsys, "--bundle", str(bundle), "--images", str(tmp_path / "images"))
    assert figures["confusion"] == [[1, 0], [0, 1]]


def test_a_gate_is_judged_by_folders_named_as_its_classes(capsys: pytest.CaptureFixture[str], gate: str, tmp_path: Path) -> None:
    write(tmp_path / "clean" / "a.png", steel(32, 32))
    write(tmp_path / "clean" / "b.png", steel(32, 32, (1, 1, 1, 1, BRIGHT)))
    write(tmp_path / "defect" / "c.png", steel(32, 32, (9, 9, 2, 2, DARK)))
    figures = evaluate(capsys, "--bundle", gate, "--images", str(tmp_path))
    assert figures["confusion"] == [[1, 1], [0, 1]]
    assert figures["recall"] == 1.0


def test_an_image_is_one_tile_where_tiles_of_no_stated_size_are_resized(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    classifier = str(write_range_classifier(tmp_path / "classifier", preparation=[{"kind": "resize"}]))
    half_light = steel(90, 70)
    half_light[:, 35:] = 250
    write(tmp_path / "images" / "light" / "a.png", half_light)
    write(tmp_path / "images" / "clean" / "b.png", steel(33, 210))
    write(tmp_path / "images" / "gloomy" / "c.png", half_light)
    figures = evaluate(capsys, "--bundle", classifier, "--images", str(tmp_path / "images"))
    assert range_logits(cv2.resize(half_light, (32, 32))).argmax() == 1
    assert figures["tiles"] == 3
    assert figures["confusion"] == [[1, 0, 0], [0, 1, 0], [0, 1, 0]]


def test_an_image_is_cut_into_the_tiles_that_the_bundle_states_each_prepared_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    steps = [{"kind": "clahe", "clip_limit": 8.0}, {"kind": "resize"}]
    classifier = str(write_range_classifier(tmp_path / "classifier", preparation=steps, strip_tile=[40, 50]))
    image = np.random.default_rng(8).integers(90, 170, (100, 130), dtype=np.uint8)
    image[:, 100:] //= 4
    answers = []
    padded = np.pad(image, ((0, 20), (0, 20)), mode="reflect")
    for line in range(0, 120, 40):
        for column in range(0, 150, 50):
            tile = np.ascontiguousarray(padded[line : line + 40, column : column + 50])
            equalized = cv2.createCLAHE(clipLimit=8.0, tileGridSize=(8, 8)).apply(tile)
            answers.append(int(range_logits(cv2.resize(equalized, (32, 32))).argmax()))
    assert len(set(answers)) > 1
    write(tmp_path / "images" / "clean" / "a.png", image)
    figures = evaluate(capsys, "--bundle", classifier, "--images", str(tmp_path / "images"))
    assert figures["confusion"][0] == [answers.count(index) for index in range(3)]


def test_a_stated_score_decides_before_the_most_probable_class(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    stated = {"score": 0.05, "recall": 1.0, "passed_clean": 0.1}
    write(tmp_path / "images" / "light" / "a.png", steel(32, 32, (0, 0, 32, 32, 144)))
    for name, gate, called in (("shy", None, 0), ("strict", stated, 1)):
        classifier = str(write_range_classifier(tmp_path / name, gate=gate))
        figures = evaluate(capsys, "--bundle", classifier, "--images", str(tmp_path / "images"))
        assert figures["confusion"][1] == [1 - called, called, 0]


@pytest.mark.parametrize("strip_tile", [None, [60, 45]])
def test_a_segmenter_of_whole_tiles_sees_them_as_a_station_does(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, strip_tile: list[int] | None
) -> None:
    steps = [{"kind": "resize"}]
    segmenter = str(write_relative_segmenter(tmp_path / "unet", preparation=steps, strip_tile=strip_tile, pixel_threshold=0.6))
    image = np.random.default_rng(8).integers(60, 200, (110, 90), dtype=np.uint8)
    lines, columns = strip_tile or image.shape
    padded = np.pad(image, ((0, -110 % lines), (0, 0)), mode="reflect")
    expected = np.zeros_like(padded)
    for line in range(0, len(padded), lines):
        for column in range(0, 90, columns):
            tile = np.ascontiguousarray(padded[line : line + lines, column : column + columns])
            logits = relative_logits(cv2.resize(tile, (32, 32)))[0]
            mask = (1 / (1 + np.exp(-logits.astype(np.float64))) >= 0.6).astype(np.uint8)
            here = slice(line, line + lines), slice(column, column + columns)
            expected[here] = cv2.resize(mask, (columns, lines), interpolation=cv2.INTER_NEAREST)
    assert expected.any()
    write(tmp_path / "images" / "a.png", image)
    write(tmp_path / "masks" / "a.png", expected[:110])
    figures = evaluate(capsys, "--bundle", segmenter, "--images", str(tmp_path / "images"), "--masks", str(tmp_path / "masks"))
    assert figures["mean_iou"] == 1.0
    assert figures["pixels"] == image.size


def write_table(path: Path, *rows: str) -> str:
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return str(path)


def test_classes_come_from_a_table_by_path_or_by_name(capsys: pytest.CaptureFixture[str], gate: str, tmp_path: Path) -> None:
    for name in ("a/1.png", "b/1.png", "b/2.png"):
        write(tmp_path / "images" / name, steel(32, 32, (9, 9, 2, 2, DARK)))
    labels = write_table(tmp_path / "labels.csv", "class,note,image", "defect,,a/1.png", "clean,x,b/1.png", "defect,,2.png")
    figures = evaluate(capsys, "--bundle", gate, "--images", str(tmp_path / "images"), "--labels", labels)
    assert figures["confusion"] == [[0, 1], [0, 2]]


def test_folders_can_be_asked_for_by_name(capsys: pytest.CaptureFixture[str], gate: str, tmp_path: Path) -> None:
    write(tmp_path / "clean" / "a.png", steel(32, 32))
    assert evaluate(capsys, "--bundle", gate, "--images", str(tmp_path), "--labels", "folders")["accuracy"] == 1.0


def test_faults_of_a_table_name_its_row(capsys: pytest.CaptureFixture[str], gate: str, tmp_path: Path) -> None:
    images, table = tmp_path / "images", tmp_path / "labels.csv"
    for name in ("a/1.png", "b/1.png"):
        write(images / name, steel(32, 32))

    def told(*rows: str) -> str:
        labels = write_table(table, *rows)
        return fault(capsys, 2, "--bundle", gate, "--images", str(images), "--labels", labels)

    both = "a/1.png,clean", "b/1.png,defect"
    assert told("image,label", *both) == f"{table}: got the columns image, label; expected image and class"
    assert told("image,class", *both, "c.png,clean") == (
        f"{table}:4: image: got 'c.png'; expected the path of one image below {images}"
    )
    assert told("image,class", "1.png,clean") == f"{table}:2: image: got '1.png'; expected the path of one image below {images}"
    assert told("image,class", "a/1.png,rusty") == f"{table}:2: class: got 'rusty'; expected clean or defect"
    assert told("image,class", both[0], both[0]) == (
        f"{table}:3: image: got 'a/1.png' a second time; expected one row for each image"
    )
    assert told("image,class", both[0]) == f"{images}/b/1.png: no row in {table}; expected one for each image below {images}"
    table.unlink()
    arguments = ("--bundle", gate, "--images", str(images), "--labels", str(table))
    assert fault(capsys, 2, *arguments).startswith(f"{table}: cannot be read (")


def test_an_undefined_figure_is_null(capsys: pytest.CaptureFixture[str], gate: str, tmp_path: Path) -> None:
    write(tmp_path / "clean" / "a.png", steel(32, 32))
    assert evaluate(capsys, "--bundle", gate, "--images", str(tmp_path))["recall"] is None


def test_a_folder_that_is_no_class_is_a_fault(capsys: pytest.CaptureFixture[str], gate: str, tmp_path: Path) -> None:
    write(tmp_path / "rusty" / "a.png", steel(32, 32))
    assert fault(capsys, 2, "--bundle", gate, "--images", str(tmp_path)) == (
        f"{tmp_path}/rusty/a.png: lies in a folder named rusty; expected clean or defect, "
        "a table: --labels FILE.csv, or masks: --masks DIR"
    )


def test_faults_of_images_and_masks_are_told(
    capsys: pytest.CaptureFixture[str], segmenter: str, labelled: tuple[str, str], tmp_path: Path
) -> None:
    images, masks = labelled
    arguments = ("--bundle", segmenter, "--images", images, "--masks", masks)
    assert fault(capsys, 2, *arguments[:4]) == "--masks: got none; unet is a segmenter: expected a folder of masks"
    nowhere = f"{tmp_path}/nowhere"
    assert fault(capsys, 2, *arguments[:3], nowhere, "--masks", masks) == f"{nowhere}: no such folder; expected one with images"
    (tmp_path / "empty").mkdir()
    told = fault(capsys, 2, *arguments[:3], f"{tmp_path}/empty", "--masks", masks)
    assert told.startswith(f"{tmp_path}/empty: no images in it; expected files ending in .bmp")

    write(Path(masks) / "a.png", np.full((50, 40), 3, np.uint8))
    assert fault(capsys, 4, *arguments) == f"{masks}/a.png: got mask value 3; expected 0 to 2, the bundle's classes"
    write(Path(masks) / "a.png", np.zeros((40, 50), np.uint8))
    assert fault(capsys, 4, *arguments) == f"{masks}/a.png: got a mask of 50 x 40 px; expected 40 x 50 as its image"
    (Path(masks) / "a.png").unlink()
    assert fault(capsys, 2, *arguments) == f"{images}/day1/a.png: no mask, or several; expected one of that name in {masks}"
