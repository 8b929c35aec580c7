from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_checkpoints import steel_image

from edge.sources.images import read_image
from export.errors import ExportError
from export.networks import find_architecture
from export.samples import ENOUGH, LARGEST_IMAGE, ExportData, defective_tiles, mosaic, read_classified, read_folder, reflect
from export.tile_form import cells, form_of

GATE = find_architecture("steel-gate")


def write_images(folder: Path, count: int) -> tuple[Path, Path]:
    images, masks = folder / "images", folder / "masks"
    for number in range(count):
        image, mask = steel_image(number, 40, 50 + number)
        for path, content in ((images / f"part/{number}.jpg", image), (masks / f"part/{number}.png", mask)):
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), content)
    return images, masks


def test_images_and_masks_of_the_same_names_are_paired(tmp_path: Path) -> None:
    images, masks = write_images(tmp_path, 3)
    data = read_folder(images, masks, classes=3)
    assert [image.shape for image, _ in data.validation] == [(40, 50), (40, 51), (40, 52)]
    for number, (_, mask) in enumerate(data.validation):
        np.testing.assert_array_equal(mask, steel_image(number, 40, 50 + number)[1])


def test_with_enough_images_quality_is_measured_on_others_than_ranges_come_from(tmp_path: Path) -> None:
    images, masks = write_images(tmp_path, ENOUGH)
    data = read_folder(images, masks, classes=3)
    calibrating = {image.shape for image in data.calibration}
    measuring = {image.shape for image, _ in data.validation}
    assert len(calibrating) == ENOUGH // 4
    assert len(measuring) == ENOUGH - ENOUGH // 4
    assert not calibrating & measuring
    again = read_folder(images, masks, classes=3)
    assert [image.shape for image in again.calibration] == [image.shape for image in data.calibration]


def test_without_masks_all_images_calibrate(tmp_path: Path) -> None:
    images, _ = write_images(tmp_path, 3)
    data = read_folder(images, None, classes=3)
    assert (len(data.calibration), len(data.validation)) == (3, 0)


def test_every_fault_of_the_folders_names_the_file(tmp_path: Path) -> None:
    images, masks = write_images(tmp_path, 2)
    for folder in (tmp_path / "absent", masks / "part" / ".."):
        folder.mkdir(exist_ok=True)
    with pytest.raises(ExportError, match="absent: no images in it"):
        read_folder(tmp_path / "absent", None, 3)
    with pytest.raises(ExportError, match="nowhere: no such folder"):
        read_folder(images, tmp_path / "nowhere", 3)
    with pytest.raises(ExportError, match=r"0\.png: got mask value 2; expected 0 to 1"):
        read_folder(images, masks, 2)
    cv2.imwrite(str(masks / "part/1.png"), np.zeros((40, 40), np.uint8))
    with pytest.raises(ExportError, match=r"1\.png: got a mask of 40 x 40 px; expected 51 x 40"):
        read_folder(images, masks, 3)
    (masks / "part/1.png").unlink()
    with pytest.raises(ExportError, match=r"1\.jpg: no mask, or several; expected one of that name in .*masks"):
        read_folder(images, masks, 3)
    (images / "part/0.jpg").write_bytes((images / "part/0.jpg").read_bytes()[:30])
    with pytest.raises(ExportError, match=r"0\.jpg: truncated: "):
        read_folder(images, None, 3)


def test_images_are_read_as_a_station_reads_them(tmp_path: Path) -> None:
    deep = np.linspace(0, 65535, 100, dtype=np.uint16).reshape(10, 10)
    colour = np.random.default_rng(0).integers(0, 256, (10, 10, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    cv2.imwrite(str(tmp_path / "colour.png"), colour)
    (tmp_path / "._deep.png").write_bytes(b"what a Mac leaves on other disks")
    found = read_folder(tmp_path, None, 2).calibration
    for image, path in zip(found, ("colour.png", "deep.png"), strict=True):
        np.testing.assert_array_equal(image, read_image(tmp_path / path))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("cut.jpg", b"half", "truncated: the JPEG ends"),
        ("empty.png", b"", "is empty"),
        ("text.png", b"garbage", "got a file that begins with"),
        ("dot.png", b"dot", "is 1 x 1 px; expected at least 2 x 2"),
        ("folder.png", None, "cannot be read: Is a directory"),
        (os.fsdecode(b"\xff.png"), b"dot", "got a name that is not UTF-8"),
    ],
)
def test_an_image_that_cannot_be_used_is_named(name: str, content: bytes | None, told: str, tmp_path: Path) -> None:
    made = {
        b"half": lambda: cv2.imencode(".jpg", steel_image(0)[0])[1].tobytes()[:1000],
        b"dot": lambda: cv2.imencode(".png", np.zeros((1, 1), np.uint8))[1].tobytes(),
    }
    if content is None:
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_bytes(made.get(content, lambda: content)())
    with pytest.raises(ExportError, match=told):
        read_folder(tmp_path, None, 2)


def test_a_class_of_one_image_calibrates_and_is_measured(tmp_path: Path) -> None:
    images, masks = write_images(tmp_path, ENOUGH)
    for number in range(ENOUGH):
        cv2.imwrite(str(masks / f"part/{number}.png"), np.full((40, 50 + number), number == 7, np.uint8))
    data = read_folder(images, masks, classes=2)
    assert any(mask.any() for _, mask in data.validation)
    assert 7 in [image.shape[1] - 50 for image in data.calibration]


def test_images_of_one_class_alone_say_nothing_of_a_classifier(tmp_path: Path) -> None:
    (tmp_path / "rust").mkdir()
    cv2.imwrite(str(tmp_path / "rust" / "0.png"), np.zeros((8, 8), np.uint8))
    with pytest.raises(ExportError, match="all 1 images are rust; expected some of every class: clean, rust"):
        read_classified(tmp_path, None, ("clean", "rust"))


def test_the_clean_class_is_no_defect_whichever_it_is(tmp_path: Path) -> None:
    for name in ("corrosion", "none"):
        (tmp_path / name).mkdir()
        for number in range(3):
            cv2.imwrite(str(tmp_path / name / f"{number}.png"), np.full((8, 8), 10 * number, np.uint8))
    data = read_classified(tmp_path, None, ("corrosion", "none"), clean="none")
    assert [label for _, label in data.classified] == [0, 0, 0, 1, 1, 1]
    shown = {tile.origin.partition("/")[0]: tile.defects for tile in data.selection.chosen}
    assert shown == {"corrosion": frozenset({1}), "none": frozenset()}


@pytest.mark.parametrize(
    ("calibration", "validation", "message"),
    [
        ([], [], "no calibration images"),
        ([np.zeros((4, 4, 3), np.uint8)], [], "an image is uint8 \\(4, 4, 3\\)"),
        ([np.zeros((4, 4), np.float32)], [], "an image is float32"),
        ([np.zeros((4, 1), np.uint8)], [], "at least 2x2"),
        ([np.zeros((4, 4), np.uint8)], [(np.zeros((4, 4), np.uint8), np.zeros((4, 5), np.uint8))], "a mask is uint8 \\(4, 5\\)"),
    ],
)
def test_arrays_that_are_no_images_are_refused(calibration: list, validation: list, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        ExportData(calibration, validation)


@given(st.integers(2, 40), st.integers(2, 40), st.integers(0, 50), st.sampled_from([1, 4, 16]))
def test_a_reflected_image_is_a_multiple_of_the_stride_with_the_image_at_its_margin(
    height: int, width: int, margin: int, stride: int
) -> None:
    image = np.random.default_rng(height * width).integers(0, 256, (height, width), np.uint8)
    padded = reflect(image, margin, stride)
    np.testing.assert_array_equal(padded[margin : margin + height, margin : margin + width], image)
    assert all(side % stride == 0 for side in padded.shape)
    assert all(0 <= big - small - 2 * margin < stride for big, small in zip(padded.shape, image.shape, strict=True))


@given(st.integers(2, 70), st.integers(2, 70), st.integers(2, 30))
def test_cells_cover_every_pixel_of_an_image(height: int, width: int, side: int) -> None:
    image = np.arange(height * width).reshape(height, width)
    found = list(cells(image, side, side))
    assert all(cell.shape == (side, side) for cell in found)
    assert set(np.concatenate(found, axis=None).tolist()) == set(range(height * width))


def test_a_mosaic_is_made_of_whole_cells() -> None:
    images = [np.full((20, 20), grey, np.uint8) for grey in range(7)]
    strip = mosaic(images, 10, 12)
    assert strip.shape == (40, 30)
    assert set(strip.ravel().tolist()) == {0, 1, 2}


def test_gate_tiles_are_averaged_and_labelled_by_their_defect_pixels() -> None:
    image, mask = np.zeros((256, 512), np.uint8), np.zeros((256, 512), np.uint8)
    image[:2, :2] = [[100, 110], [130, 140]]
    mask[0, :15] = 1
    mask[100, 256 : 256 + 16] = 3
    tiles = form_of(GATE).tiles([image])
    assert (tiles.shape, tiles.dtype) == ((2, 1, 128, 128), np.uint8)
    assert tiles[0, 0, 0, 0] == 120
    assert defective_tiles([mask], form_of(GATE), 16).tolist() == [False, True]


def test_a_strip_is_many_images_unless_the_network_takes_it_whole(tmp_path: Path) -> None:
    strip = np.random.default_rng(0).integers(0, 256, (LARGEST_IMAGE * 2 + 100, 300), np.uint8)
    cv2.imwrite(str(tmp_path / "strip.png"), strip)
    cut = read_folder(tmp_path, None, classes=2)
    assert [image.shape for image in cut.calibration] == [(LARGEST_IMAGE, 300)] * 3
    assert {tile.row for tile in cut.selection.chosen} == {0, LARGEST_IMAGE, LARGEST_IMAGE + 100}
    whole = read_folder(tmp_path, None, classes=2, whole=True)
    np.testing.assert_array_equal(whole.calibration[0], strip)


def test_every_class_is_among_the_calibration_images_however_rare(tmp_path: Path) -> None:
    images, masks = write_images(tmp_path, 40)
    for number in range(40):
        cv2.imwrite(str(masks / f"part/{number}.png"), np.full((40, 50 + number), number == 17, np.uint8))
    data = read_folder(images, masks, classes=2)
    assert any(tile.origin == "part/17.jpg" for tile in data.selection.chosen)


def test_images_are_labelled_by_their_folders_or_by_a_table(tmp_path: Path) -> None:
    for name in ("clean", "rust"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(2):
            cv2.imwrite(str(tmp_path / "images" / name / f"{number}.png"), np.full((8, 8), 10 * number, np.uint8))
    by_folder = read_classified(tmp_path / "images", None, ("clean", "rust"))
    assert [label for _, label in by_folder.classified] == [0, 0, 1, 1]
    table = tmp_path / "labels.csv"
    table.write_text("image,class\nclean/0.png,rust\nclean/1.png,clean\nrust/0.png,rust\nrust/1.png,clean\n")
    by_table = read_classified(tmp_path / "images", table, ("clean", "rust"))
    assert [label for _, label in by_table.classified] == [1, 0, 1, 0]
    with pytest.raises(ExportError, match="lies in a folder named rust"):
        read_classified(tmp_path / "images", None, ("clean", "corroded"))
