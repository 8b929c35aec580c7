"""The contours of an image's classes and the share of each class: what a microscopist puts into a spreadsheet.

The table of contours keeps its five columns pure, one row a contour, so that it can be sorted, summed and plotted; the
shares, which are of the image and not of a contour, stand in a table of their own: a second sheet of a workbook, or a second
CSV file beside the first.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from edge.errors import ConfigError

Mask = npt.NDArray[np.uint8]
Cell = str | int | float

COLUMNS = ("Contour", "Width", "Height", "Aspect Ratio", "Area")


@dataclass(frozen=True, slots=True)
class Contour:
    """An outer contour. width, height: of its upright bounding box, px.

    area: px, of the polygon through the centres of its pixels; holes do not count off. So a single pixel, or a line of one
    pixel, has the area 0.
    """

    width: int
    height: int
    area: float

    @property
    def aspect_ratio(self) -> float:
        """Width over height of the bounding box: above 1 it lies across the strip."""
        return self.width / self.height


def contours_of(region: npt.NDArray[np.bool_]) -> list[Contour]:
    """Outer contours of a mask (h, w), in OpenCV's order: what lies lowest in the image first.

    Source: OpenCV, "Structural Analysis and Shape Descriptors": findContours (Suzuki and Abe 1985; RETR_EXTERNAL: holes, and
    what lies in them, are left out; CHAIN_APPROX_SIMPLE drops points on straight runs, which neither the box nor the area
    sees), boundingRect, contourArea (Green's formula).

    >>> region = np.zeros((6, 9), bool)
    >>> region[1:4, 2:8] = True
    >>> contours_of(region)
    [Contour(width=6, height=3, area=10.0)]
    """
    found, _ = cv2.findContours(region.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    boxes = [cv2.boundingRect(contour) for contour in found]
    return [Contour(box[2], box[3], cv2.contourArea(contour)) for box, contour in zip(boxes, found, strict=True)]


def fractions_of(mask: Mask, class_count: int) -> list[float]:
    """Percent of an image that each class has, by index; of all classes together 100.

    >>> fractions_of(np.array([[0, 1], [0, 2]], np.uint8), 3)
    [50.0, 25.0, 25.0]
    """
    return [100.0 * np.count_nonzero(mask == index) / mask.size for index in range(class_count)]


def fraction_column(class_name: str) -> str:
    """Heading of a class's share.

    >>> fraction_column("unmelted"), fraction_column("rolled-in_scale")
    ('Fraction Unmelted (%)', 'Fraction Rolled-in Scale (%)')
    """
    return f"Fraction {string.capwords(class_name.replace('_', ' '))} (%)"


class Tables(Protocol):
    """Two tables that grow row by row: one of the contours, one of the fractions; the first row of each is its heading."""

    def contour(self, row: Sequence[Cell]) -> None:
        """Append to the table of contours."""
        ...

    def fraction(self, row: Sequence[Cell]) -> None:
        """Append to the table of fractions."""
        ...

    def finish(self) -> None:
        """Write what is not yet written; the files stay open."""
        ...

    def close(self) -> None:
        """Leave no trace but what `finish` has written."""
        ...


class CsvTables:
    """Two CSV files (RFC 4180, UTF-8)."""

    def __init__(self, contours: BinaryIO, fractions: BinaryIO) -> None:
        self._texts = [io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True) for file in (contours, fractions)]
        self._contours, self._fractions = (csv.writer(text) for text in self._texts)

    def contour(self, row: Sequence[Cell]) -> None:
        """Append to the table of contours."""
        self._contours.writerow(row)

    def fraction(self, row: Sequence[Cell]) -> None:
        """Append to the table of fractions."""
        self._fractions.writerow(row)

    def finish(self) -> None:
        """Hand the bytes on."""
        for text in self._texts:
            text.detach()

    def close(self) -> None:
        """Nothing is left behind."""


class ContourTable:
    """Contours and fractions of images, in strip order.

    Contours are numbered from 1 in each image, class by class. A column `Image` comes first where there are several images,
    and before the contours a column `Class` where there are several classes but for the background (index 0), whose own
    contours are not listed. classes: by index.
    """

    def __init__(self, tables: Tables, classes: Sequence[str], image_count: int) -> None:
        self._tables = tables
        self._classes = tuple(classes)
        self._names_images = image_count > 1
        self._names_classes = len(classes) > 2
        heading = ["Image"] * self._names_images
        tables.contour([*heading, *["Class"] * self._names_classes, *COLUMNS])
        tables.fraction([*heading, *(fraction_column(name) for name in classes)])

    def add(self, name: str, mask: Mask) -> None:
        """Write the rows of one image, whose class mask is (h, w) uint8."""
        image: list[Cell] = [name] if self._names_images else []
        for number, (class_name, contour) in enumerate(self._contours(mask), start=1):
            shown: list[Cell] = [class_name] if self._names_classes else []
            measures = (contour.width, contour.height, contour.aspect_ratio, contour.area)
            self._tables.contour([*image, *shown, number, *measures])
        self._tables.fraction([*image, *fractions_of(mask, len(self._classes))])

    def finish(self) -> None:
        """Write what is not yet written; the files stay open."""
        self._tables.finish()

    def _contours(self, mask: Mask) -> Iterator[tuple[str, Contour]]:
        for index, class_name in enumerate(self._classes[1:], start=1):
            for contour in contours_of(mask == index):
                yield class_name, contour


def fractions_path(contours: Path) -> Path | None:
    """The file of the fractions beside a CSV file of contours; None for a workbook, which holds both.

    Raises ConfigError where the name says neither CSV nor workbook, or XlsxWriter is not installed for one.
    """
    suffix = contours.suffix.lower()
    if suffix not in (".csv", ".xlsx"):
        raise ConfigError(f"--contours: got {contours}; expected a name that ends in .csv or .xlsx")
    if suffix == ".csv":
        return contours.with_name(f"{contours.stem}.fractions{contours.suffix}")
    if importlib.util.find_spec("xlsxwriter") is None:
        raise ConfigError(
            f"--contours: got {contours}, but XlsxWriter is not installed; "
            "expected the extra: pip install 'rust-edge[xlsx]', or a name that ends in .csv"
        )
    return None
