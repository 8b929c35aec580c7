"""The strip as a person wants to see it: grey, defects tinted by class, boxes and labels on top."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
import numpy.typing as npt

from edge.events import DefectData, PixelBox
from edge.frame import Lines
from edge.outputs.png import PngWriter

Colour = tuple[int, int, int]
COLOURS: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (240, 228, 66),
    (0, 114, 178),
)
"""RGB of the defect classes in index order, told apart with any colour vision.

Source: Okabe and Ito, Color Universal Design (2008), the palette without black.
"""
TINT = 0.4  # share of the class colour in a defective pixel: the steel below stays readable
_BLOCK_LINES = 256


class Overlay:
    """Collects rows and closed defects of a strip; `finish` draws them and writes the PNG.

    A defect's box is known only when it is closed, up to the whole strip after its first row, so the tinted rows wait in
    an unnamed file beside the output: 3 bytes a pixel of disk, constant memory.
    """

    def __init__(self, file: BinaryIO, folder: Path, classes: Sequence[str], width: int) -> None:
        self._file = file
        self._width = width
        self._lines = 0
        self._classes = tuple(classes)
        self._tints = _tints(len(classes))
        self._boxes: list[tuple[PixelBox, str, Colour]] = []
        self._rows = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - lives until `close`

    def rows(self, mask: npt.NDArray[np.uint8], lines: Lines) -> None:
        """Append rows of the class mask and the grey lines they belong to, both (h, width) uint8."""
        self._rows.write(self._tints[mask, lines].tobytes())
        self._lines += mask.shape[0]

    def add(self, defect: DefectData) -> None:
        """A closed defect, to be framed and labelled."""
        colour = _colour(self._classes.index(defect.class_name))
        self._boxes.append((defect.box_px, f"{defect.class_name} {defect.confidence_peak:.2f}", colour))

    def finish(self) -> None:
        """Draw boxes and labels, write the PNG."""
        self._rows.flush()
        image = np.memmap(self._rows, np.uint8, "r+", shape=(self._lines, self._width, 3))
        for box, label, colour in self._boxes:
            _draw(image, box, label, colour)
        png = PngWriter(self._file, self._width, 3)
        for start in range(0, self._lines, _BLOCK_LINES):
            png.write(image[start : start + _BLOCK_LINES])
        png.finish()

    def close(self) -> None:
        """Give the waiting rows' disk back."""
        self._rows.close()


def _colour(class_index: int) -> Colour:
    return COLOURS[(class_index - 1) % len(COLOURS)]


def _tints(classes: int) -> npt.NDArray[np.uint8]:
    """(classes, 256, 3) uint8: the colour of a pixel by its class and its grey level."""
    grey = np.repeat(np.arange(256, dtype=np.float64)[:, None], 3, axis=1)
    tinted = [(1 - TINT) * grey + TINT * np.array(_colour(index)) for index in range(1, classes)]
    colours: npt.NDArray[np.uint8] = np.stack([grey, *tinted]).round().astype(np.uint8)
    return colours


def _draw(image: npt.NDArray[np.uint8], box: PixelBox, label: str, colour: Colour) -> None:
    """A frame of one pixel around the box and its label above it, below it where the strip begins."""
    height, width = image.shape[:2]
    top, bottom = max(box.line_start - 1, 0), min(box.line_stop, height - 1)
    left, right = max(box.column_start - 1, 0), min(box.column_stop, width - 1)
    image[top, left : right + 1] = image[bottom, left : right + 1] = colour
    image[top : bottom + 1, left] = image[top : bottom + 1, right] = colour
    scale = max(0.4, width / 4096)
    (text_width, text_height), below = cv2.getTextSize(label, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    rows = text_height + below + 2
    first = top - rows if top >= rows else min(bottom + 1, max(height - rows, 0))
    left = max(min(left, width - text_width - 2), 0)
    patch = np.ascontiguousarray(image[first : first + rows, left : left + text_width + 2])
    if patch.size:
        patch //= 3  # dark ground, so that the label is readable on bright steel
        cv2.putText(patch, label, (1, text_height + 1), cv2.FONT_HERSHEY_SIMPLEX, scale, colour, 1, cv2.LINE_AA)
        image[first : first + rows, left : left + text_width + 2] = patch
