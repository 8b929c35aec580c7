"""Run-length masks per image of a strip that was put together from images: the table of the Severstal competition."""

from __future__ import annotations

import csv
import io
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from edge.tracking.rle import severstal_rows


class ImageRuns:
    """CSV `ImageId,EncodedPixels,ClassId`: a row for each image and each class that occurs in it, in strip and class order.

    Pixels as 1-based column-major `start length` pairs within the image; ClassId is the index of the class, from 1.
    """

    def __init__(self, file: BinaryIO, class_count: int) -> None:
        self._text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        self._table = csv.writer(self._text)
        self._table.writerow(("ImageId", "EncodedPixels", "ClassId"))
        self._class_count = class_count

    def add(self, name: str, mask: npt.NDArray[np.uint8]) -> None:
        """Write the rows of one image, whose class mask is (h, w) uint8."""
        self._table.writerows(severstal_rows(name, mask, self._class_count))

    def finish(self) -> None:
        """Hand the bytes on; the file stays open."""
        self._text.detach()
