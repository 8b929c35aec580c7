"""`--contours`: the table of a microscopist, held against plain OpenCV on the images that were inspected."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openpyxl
import pytest
from toy_engines import write_segmenter

from edge.cli import main
from edge.outputs.contour_table import COLUMNS, ContourTable, CsvTables, contours_of, fraction_column
from edge.outputs.image_masks import ImageMasks, StripImage
from edge.outputs.workbook import WorkbookTables

DARK, BRIGHT = 20, 240


def blotches(lines: int, columns: int, seed: int, *greys: int) -> np.ndarray:
    """Steel with blotches of any shape, holes and single pixels among them."""
    rng = np.random.default_rng(seed)
    field = cv2.GaussianBlur(rng.normal(size=(lines, columns)), (0, 0), 3)
    image = np.full((lines, columns), 128, np.uint8)
    for index, grey in enumerate(greys):
        image[(np.roll(field, 31 * index, axis=1) > 0.12) & (image == 128)] = grey
    image[rng.random(image.shape) < 0.002] = greys[0]
    return image


def plainly(image: np.ndarray, grey: int) -> list[tuple[int, int, int, float, float]]:
    """Contour, Width, Height, Aspect Ratio, Area of everything of one grey level."""
    binary = np.where(image == grey, 255, 0).astype(np.uint8)
    rows = []
    found, _ = cv2.findContours(binary, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    for number, contour in enumerate(found, start=1):
        _, _, width, height = cv2.boundingRect(contour)
        rows.append((number, width, height, width / height, cv2.contourArea(contour)))
    return rows


def csv_rows(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def sheet_rows(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    workbook = openpyxl.load_workbook(path, read_only=True)
    sheets = {sheet.title: list(sheet.iter_rows(values_only=True)) for sheet in workbook.worksheets}
    workbook.close()
    return sheets


@pytest.fixture
def two_classes(tmp_path: Path) -> Path:
    """Two images, not square and of different heights, one with a name that a spreadsheet could take for a formula."""
    write_segmenter(tmp_path / "unet")
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "=1+1.png"), blotches(70, 150, 1, DARK, BRIGHT))
    cv2.imwrite(str(tmp_path / "images" / "b.png"), blotches(131, 150, 2, DARK, BRIGHT))
    return tmp_path


def expected_rows(folder: Path) -> tuple[list[list[Any]], list[list[Any]]]:
    contours, fractions = [], []
    for path in sorted((folder / "images").iterdir()):
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        rows = [(name, row) for name, grey in (("dark", DARK), ("bright", BRIGHT)) for row in plainly(image, grey)]
        contours += [[path.name, name, number, *row[1:]] for number, (name, row) in enumerate(rows, start=1)]
        fractions.append([path.name, *(100 * (image == grey).mean() for grey in (128, DARK, BRIGHT))])
    return contours, fractions


def inspect(*arguments: object, code: int = 0) -> None:
    assert main(["inspect", *map(str, arguments)]) == code


def test_of_several_images_and_classes_every_contour_is_a_row_with_both_names(two_classes: Path) -> None:
    inspect(two_classes / "images", "--bundle", two_classes / "unet", "--contours", two_classes / "out" / "c.csv")
    heading, *rows = csv_rows(two_classes / "out" / "c.csv")
    contours, fractions = expected_rows(two_classes)
    assert heading == ["Image", "Class", "Contour", "Width", "Height", "Aspect Ratio", "Area"]
    assert [[*row[:2], *map(float, row[2:])] for row in rows] == contours
    assert len(contours) > 20
    heading, *rows = csv_rows(two_classes / "out" / "c.fractions.csv")
    assert heading == ["Image", "Fraction Background (%)", "Fraction Dark (%)", "Fraction Bright (%)"]
    assert [row[0] for row in rows] == [row[0] for row in fractions]
    np.testing.assert_allclose(np.array([row[1:] for row in rows], float), [row[1:] for row in fractions])


def test_a_workbook_holds_the_same_as_numbers_on_two_sheets(two_classes: Path) -> None:
    inspect(two_classes / "images", "--bundle", two_classes / "unet", "--contours", two_classes / "out" / "c.xlsx")
    sheets = sheet_rows(two_classes / "out" / "c.xlsx")
    contours, fractions = expected_rows(two_classes)
    assert list(sheets) == ["Contours", "Fractions"]
    assert sheets["Contours"][0] == ("Image", "Class", *COLUMNS)
    assert [row[:5] for row in sheets["Contours"][1:]] == [tuple(row[:5]) for row in contours]
    assert all(isinstance(value, int | float) for row in sheets["Contours"][1:] for value in row[2:])
    # a cell of XLSX holds a number with 16 digits
    np.testing.assert_allclose([row[5:] for row in sheets["Contours"][1:]], [row[5:] for row in contours], rtol=1e-15)
    assert [row[0] for row in sheets["Fractions"][1:]] == ["=1+1.png", "b.png"]
    np.testing.assert_allclose([row[1:] for row in sheets["Fractions"][1:]], [row[1:] for row in fractions], rtol=1e-13)
    assert sorted(path.name for path in (two_classes / "out").iterdir()) == ["c.xlsx"]


def test_of_one_image_the_name_is_left_out(two_classes: Path) -> None:
    image = two_classes / "images" / "b.png"
    inspect(image, "--bundle", two_classes / "unet", "--contours", two_classes / "c.csv")
    (heading, first, *_), fractions = csv_rows(two_classes / "c.csv"), csv_rows(two_classes / "c.fractions.csv")
    assert heading == ["Class", *COLUMNS]
    assert first[:2] == ["dark", "1"]
    assert [len(row) for row in fractions] == [3, 3]


@pytest.mark.parametrize("suffix", ["csv", "xlsx"])
def test_of_one_image_with_one_class_the_five_columns_stand_alone(tmp_path: Path, suffix: str) -> None:
    image = blotches(90, 140, 7, DARK)
    mask = (image == DARK).astype(np.uint8)
    tables = table_of(tmp_path, suffix, ["unmelted", "melted"], [("image.png", mask)])
    assert tables[0][0] == ["Contour", "Width", "Height", "Aspect Ratio", "Area"]
    np.testing.assert_allclose(np.array(tables[0][1:], float), plainly(image, DARK), rtol=1e-15)
    assert tables[1][0] == ["Fraction Unmelted (%)", "Fraction Melted (%)"]
    np.testing.assert_allclose(np.array(tables[1][1:], float), [[100 * (1 - mask.mean()), 100 * mask.mean()]])


def table_of(folder: Path, suffix: str, classes: list[str], images: list[tuple[str, np.ndarray]]) -> list[list[list[Any]]]:
    """Rows of the contours and of the fractions, written and read again."""
    first, second = folder / f"t.{suffix}", folder / "f.csv"
    with first.open("w+b") as file, second.open("w+b") as beside:
        tables = CsvTables(file, beside) if suffix == "csv" else WorkbookTables(file, folder)
        table = ContourTable(tables, classes, len(images))
        for name, mask in images:
            table.add(name, mask)
        table.finish()
        tables.close()
    if suffix == "csv":
        return [csv_rows(first), csv_rows(second)]
    return [[list(row) for row in rows] for rows in sheet_rows(first).values()]


def test_an_image_without_contours_has_its_fractions_all_the_same(tmp_path: Path) -> None:
    images = [("a", np.zeros((4, 6), np.uint8)), ("b", np.ones((4, 6), np.uint8))]
    contours, fractions = table_of(tmp_path, "xlsx", ["clean", "pit"], images)
    assert contours[1:] == [["b", 1, 6, 4, 1.5, 15]]
    assert fractions[1:] == [["a", 100, 0], ["b", 0, 100]]


def test_a_full_sheet_goes_on_in_the_next_one(tmp_path: Path) -> None:
    with (tmp_path / "t.xlsx").open("w+b") as file:
        tables = WorkbookTables(file, tmp_path, max_rows=4)
        tables.fraction(["Fraction Pit (%)"])
        for row in [["Contour"], *([number] for number in range(1, 8))]:
            tables.contour(row)
        tables.finish()
        tables.close()
    sheets = sheet_rows(tmp_path / "t.xlsx")
    assert list(sheets) == ["Contours", "Fractions", "Contours 2", "Contours 3"]
    assert sheets["Contours"] == [("Contour",), (1,), (2,), (3,)]
    assert sheets["Contours 2"] == [("Contour",), (4,), (5,), (6,)]
    assert sheets["Contours 3"] == [("Contour",), (7,)]


def test_a_workbook_that_is_given_up_leaves_no_trace(tmp_path: Path) -> None:
    tables = WorkbookTables(io.BytesIO(), tmp_path)
    for number in range(1000):
        tables.contour([number + 1.5])
    assert list(tmp_path.iterdir())
    tables.close()
    assert not list(tmp_path.iterdir())


# ZipFile, which XlsxWriter leaves to the garbage collector, tries once more to write
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_disk_that_is_full_is_an_error_of_the_disk(tmp_path: Path) -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        tables = WorkbookTables(full, tmp_path)
        tables.contour(["Contour"])
        with pytest.raises(OSError, match=r"the workbook cannot be written: .*No space left"):
            tables.finish()
        tables.close()
    assert not list(tmp_path.iterdir())


def test_holes_and_what_lies_in_them_are_left_out() -> None:
    region = np.zeros((30, 40), bool)
    region[5:25, 5:35] = True
    region[10:20, 10:30] = False
    region[14:16, 14:16] = True
    assert [(found.width, found.height, found.area) for found in contours_of(region)] == [(30, 20, 29.0 * 19.0)]


def test_headings_show_classes_as_words() -> None:
    assert fraction_column("unmelted") == "Fraction Unmelted (%)"
    assert fraction_column("pitted_surface") == "Fraction Pitted Surface (%)"


def test_images_are_given_back_whole_however_the_rows_came() -> None:
    strip = np.random.default_rng(0).integers(0, 3, (57, 9), dtype=np.uint8)
    images = [StripImage("a", 20), StripImage("b", 1), StripImage("c", 36)]
    for height in (1, 7, 20, 57):
        masks = ImageMasks(images)
        found = [image for first in range(0, 57, height) for image in masks.push(strip[first : first + height])]
        masks.finish()
        assert [name for name, _ in found] == ["a", "b", "c"]
        for (_, mask), (start, stop) in zip(found, [(0, 20), (20, 21), (21, 57)], strict=True):
            np.testing.assert_array_equal(mask, strip[start:stop])


def test_rows_that_do_not_come_out_even_are_a_defect_of_ours() -> None:
    masks = ImageMasks([StripImage("a", 20)])
    assert list(masks.push(np.zeros((19, 3), np.uint8))) == []
    with pytest.raises(ValueError, match="1 images without all their rows, 19 rows without an image"):
        masks.finish()


def test_without_xlsxwriter_the_extra_is_named_before_any_work(two_classes: Path) -> None:
    arguments = ["inspect", str(two_classes / "images"), "--bundle", "no-such-bundle"]
    code = "import sys\nsys.modules['xlsxwriter'] = None\nfrom edge.cli import main\nsys.exit(main({}))"
    for suffix, told, left in (
        (
            "xlsx",
            "but XlsxWriter is not installed; expected the extra: pip install 'rust-edge[xlsx]', or a name that ends in .csv",
            2,
        ),
        ("csv", "no-such-bundle: no such bundle", 3),
    ):
        path = two_classes / "out" / f"c.{suffix}"
        done = subprocess.run(
            [sys.executable, "-c", code.format([*arguments, "--contours", str(path)])],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            cwd=Path(__file__).parents[2],
        )
        assert done.returncode == left
        assert told in done.stderr
        assert done.stderr.count("\n") == 1
        assert not path.parent.exists()


def test_the_summary_names_both_files(two_classes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = two_classes / "out" / "c.csv"
    inspect(two_classes / "images", "--bundle", two_classes / "unet", "--contours", path, "--json")
    outputs = json.loads(capsys.readouterr().out)["outputs"]
    assert outputs == {"contours": str(path), "contours (fractions)": str(path.with_name("c.fractions.csv"))}


def test_a_workbook_is_a_whole_zip_file(two_classes: Path) -> None:
    inspect(two_classes / "images", "--bundle", two_classes / "unet", "--contours", two_classes / "c.XLSX")
    with zipfile.ZipFile(two_classes / "c.XLSX") as archive:
        assert archive.testzip() is None
