"""Run-length masks per image of a strip that was put together from images: the table of the Severstal competition."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from edge.tracking.rle import severstal_rows


@dataclass(frozen=True, slots=True)
class StripImage:
    """An image's part of the strip: its name and its lines."""

    name: str
    lines: int


class ImageRuns:
    """CSV `ImageId,EncodedPixels,ClassId`: a row for each image and each class that occurs in it.

    Pixels as 1-based column-major `start length` pairs within the image; ClassId is the index of the class, from 1.
    Rows of the mask are kept until their image is complete.
    """

    def __init__(self, file: BinaryIO, images: Sequence[StripImage], class_count: int) -> None:
        self._text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        self._table = csv.writer(self._text)
        self._table.writerow(("ImageId", "EncodedPixels", "ClassId"))
        self._images = list(images)
        self._class_count = class_count
        self._kept: list[npt.NDArray[np.uint8]] = []
        self._kept_lines = 0

    def rows(self, mask: npt.NDArray[np.uint8]) -> None:
        """Append rows of the strip's class mask, (h, width) uint8."""
        while self._images and self._kept_lines + len(mask) >= self._images[0].lines:
            image = self._images.pop(0)
            missing = image.lines - self._kept_lines
            whole = np.concatenate([*self._kept, mask[:missing]])
            self._table.writerows(severstal_rows(image.name, whole, self._class_count))
            self._kept, self._kept_lines, mask = [], 0, mask[missing:]
        if len(mask):
            self._kept.append(mask.copy())
            self._kept_lines += len(mask)

    def finish(self) -> None:
        """Hand the bytes on; the file stays open. ValueError where rows and images do not come out even."""
        if self._images or self._kept_lines:
            raise ValueError(f"{len(self._images)} images without all their rows, {self._kept_lines} rows without an image")
        self._text.detach()
