"""PNG of any height, written row by row in constant memory: a strip's length is known only at its end."""

from __future__ import annotations

import struct
import zlib
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPE = {1: 0, 3: 2}  # channels -> greyscale, truecolour
_UP = 2
_IHDR_BYTES = 4 + 4 + 13 + 4
MAX_SIDE = 2**31 - 1
OPENCV_MAX_LINES = 2**20
OPENCV_MAX_PIXELS = 2**30
"""What OpenCV reads unless OPENCV_IO_MAX_IMAGE_HEIGHT and OPENCV_IO_MAX_IMAGE_PIXELS say otherwise.

Source: OpenCV, modules/imgcodecs/src/loadsave.cpp, CV_IO_MAX_IMAGE_*.
"""


class PngWriter:
    """8-bit PNG, grey or RGB. The height goes into the header when `finish` is called, so `file` must be seekable.

    Rows are filtered by the difference from the row above (type Up), which is what masks and steel compress well with.
    Source: PNG specification, third edition, sections 5.3 (chunks), 9.2 (filters), 11.2 (IHDR, IDAT, IEND).
    """

    def __init__(self, file: BinaryIO, width: int, channels: int) -> None:
        if channels not in _COLOUR_TYPE or not 1 <= width <= MAX_SIDE:
            raise ValueError(f"a PNG is 1 or 3 channels and 1 to {MAX_SIDE} columns wide, got {channels} and {width}")
        self.width, self.channels, self.lines = width, channels, 0
        self._file = file
        self._deflate = zlib.compressobj(level=3)
        self._above = np.zeros((1, width * channels), np.uint8)
        file.write(_SIGNATURE + bytes(_IHDR_BYTES))

    def write(self, rows: npt.NDArray[np.uint8]) -> None:
        """Append rows: (h, width) uint8, or (h, width, 3) uint8 in the order red, green, blue."""
        if rows.dtype != np.uint8 or rows.shape[1:] != ((self.width,) if self.channels == 1 else (self.width, self.channels)):
            raise ValueError(f"expected rows of {self.width} x {self.channels} uint8, got {rows.dtype} {rows.shape}")
        if not len(rows):
            return
        flat = np.ascontiguousarray(rows).reshape(len(rows), self.width * self.channels)
        filtered = np.empty((flat.shape[0], flat.shape[1] + 1), np.uint8)
        filtered[:, 0] = _UP
        np.subtract(flat, np.concatenate([self._above, flat[:-1]]), out=filtered[:, 1:])  # wraps around, as the filter does
        self._above = flat[-1:].copy()
        self.lines += flat.shape[0]
        self._chunk(b"IDAT", self._deflate.compress(filtered.tobytes()))

    def finish(self) -> None:
        """End the image and put its height into the header. An image without rows is no PNG: ValueError."""
        if not 1 <= self.lines <= MAX_SIDE:
            raise ValueError(f"a PNG has 1 to {MAX_SIDE} lines, got {self.lines}")
        self._chunk(b"IDAT", self._deflate.flush())
        self._chunk(b"IEND", b"", even_empty=True)
        self._file.seek(len(_SIGNATURE))
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", self.width, self.lines, 8, _COLOUR_TYPE[self.channels], 0, 0, 0))
        self._file.seek(0, 2)

    def _chunk(self, kind: bytes, data: bytes, even_empty: bool = False) -> None:
        if data or even_empty:
            self._file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))


def beyond_opencv(lines: int, columns: int) -> bool:
    """Whether OpenCV, with its own limits, would refuse to read an image of this size."""
    return lines > OPENCV_MAX_LINES or lines * columns > OPENCV_MAX_PIXELS
