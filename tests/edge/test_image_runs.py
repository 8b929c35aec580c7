"""`--rle`: rows as the Severstal competition has them, held against counting pixels one by one."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from toy_engines import write_segmenter

from edge.cli import main
from edge.outputs.image_runs import ImageRuns

masks = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 3))
)


def plainly(mask: np.ndarray, class_id: int) -> str:
    """Column-major 1-based `start length` pairs, pixel by pixel."""
    height, width = mask.shape
    words: list[int] = []
    before = False
    for number in range(height * width):
        column, row = divmod(number, height)
        now = bool(mask[row, column] == class_id)
        if now and not before:
            words += [number + 1, 0]
        if now:
            words[-1] += 1
        before = now
    return " ".join(map(str, words))


def plain_rows(name: str, mask: np.ndarray, class_count: int) -> list[list[str]]:
    rows = [[name, plainly(mask, class_id), str(class_id)] for class_id in range(1, class_count)]
    return [row for row in rows if row[1]]


@settings(deadline=None)
@given(st.lists(masks, min_size=1, max_size=4))
def test_rows_are_those_of_counting_pixels(images: list[np.ndarray]) -> None:
    file = io.BytesIO()
    table = ImageRuns(file, 4)
    for number, mask in enumerate(images):
        table.add(f"{number}.jpg", mask)
    table.finish()
    heading, *rows = csv.reader(io.StringIO(file.getvalue().decode()))
    assert heading == ["ImageId", "EncodedPixels", "ClassId"]
    assert rows == [row for number, mask in enumerate(images) for row in plain_rows(f"{number}.jpg", mask, 4)]


def test_a_known_mask_has_the_runs_of_the_competition() -> None:
    # 2 lines, 3 columns: pixels are numbered 1 3 5 / 2 4 6
    file = io.BytesIO()
    table = ImageRuns(file, 3)
    table.add("a.jpg", np.array([[1, 0, 2], [1, 1, 2]], np.uint8))
    table.finish()
    assert file.getvalue().decode() == "ImageId,EncodedPixels,ClassId\r\na.jpg,1 2 4 1,1\r\na.jpg,5 2,2\r\n"


@pytest.mark.parametrize("frame_lines", [1, 64, 1000])
def test_of_a_strip_of_images_of_any_height_each_has_its_own_rows(tmp_path: Path, frame_lines: int) -> None:
    write_segmenter(tmp_path / "unet")
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(5)
    expected = []
    for name, height in (("b.png", 64), ("a.png", 33), ("c.png", 130)):
        image = rng.choice(np.array([128, 20, 240], np.uint8), (height, 96), p=[0.9, 0.06, 0.04])
        if name == "b.png":
            image[image == 20] = 128
        cv2.imwrite(str(tmp_path / "images" / name), image)
        mask = (image == 20) * np.uint8(1) + (image == 240) * np.uint8(2)
        expected.append(plain_rows(name, mask, 3))
    path = tmp_path / "r.csv"
    arguments = ["--bundle", str(tmp_path / "unet"), "--rle", str(path), "--set", f"source.frame_lines={frame_lines}"]
    assert main(["inspect", str(tmp_path / "images"), *arguments]) == 0
    with path.open(newline="", encoding="utf-8") as file:
        heading, *rows = csv.reader(file)
    assert heading == ["ImageId", "EncodedPixels", "ClassId"]
    assert rows == expected[1] + expected[0] + expected[2]
    assert [row[0::2] for row in rows] == [["a.png", "1"], ["a.png", "2"], ["b.png", "2"], ["c.png", "1"], ["c.png", "2"]]
