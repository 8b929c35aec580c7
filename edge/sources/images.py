"""One image file as grey lines."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from edge.errors import ImageError
from edge.frame import Lines
from edge.sources.image_formats import ImageSize, check_whole, format_of, size_of

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"})
OPENCV_MAX_PIXELS = 2**30
"""What OpenCV decodes unless OPENCV_IO_MAX_IMAGE_PIXELS, set before it is imported, allows more."""
DECODER_MAX_LINES = 1_000_000
"""What libpng decodes, whatever the environment says. Source: libpng, pnglibconf.h, PNG_USER_HEIGHT_MAX."""

Pixels = npt.NDArray[np.integer[Any] | np.floating[Any]]
Levels = npt.NDArray[np.unsignedinteger[Any]]

_GREY_OF_16_BIT = ((np.arange(65536, dtype=np.uint32) + 128) // 257).astype(np.uint8)
"""65535 is 255 and 257 * n is n: the nearest of the 256 grey levels."""


def read_image_size(path: Path) -> ImageSize:
    """Lines and columns of an image file, from its header alone. Raises ImageError naming the file."""
    with _opened(path) as data:
        return size_of(data)


def read_image(path: Path) -> Lines:
    """A PNG, JPEG, TIFF or BMP file as (h, w) uint8 grey lines.

    Colour becomes grey as 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601, as OpenCV's COLOR_BGR2GRAY), 16 bits become 8 by
    dividing by 257 and rounding, alpha is dropped, an EXIF orientation is ignored: lines stay in the order of the file.
    Raises ImageError naming the file where it cannot be read, is truncated, damaged or empty, or holds several pages.
    """
    with _opened(path) as data:
        return grey_lines(_pixels_of(data))


def read_levels(path: Path) -> Levels:
    """The same with the levels that the file has, (h, w) uint8 or uint16: for who measures a camera. Raises ImageError."""
    with _opened(path) as data:
        return _one_channel(_pixels_of(data))


def grey_lines(pixels: Pixels) -> Lines:
    """(h, w) or (h, w, 3 or 4) uint8 or uint16, colours in OpenCV's order BGR(A), as (h, w) uint8. Raises ImageError.

    >>> grey_lines(np.array([[0, 128, 129, 65535]], np.uint16))
    array([[  0,   0,   1, 255]], dtype=uint8)
    """
    levels = _one_channel(pixels)
    if levels.dtype == np.uint16:
        return np.asarray(_GREY_OF_16_BIT[levels])
    return np.asarray(levels, np.uint8)


def _one_channel(pixels: Pixels) -> Levels:
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ImageError(f"got {pixels.dtype} pixels; expected 8 or 16 bits, unsigned")
    if pixels.ndim == 3:
        code = {1: None, 3: cv2.COLOR_BGR2GRAY, 4: cv2.COLOR_BGRA2GRAY}
        channels = pixels.shape[2]
        if channels not in code:
            raise ImageError(f"got {channels} channels; expected grey, colour, or colour with alpha")
        conversion = code[channels]
        pixels = pixels[:, :, 0] if conversion is None else cv2.cvtColor(pixels, conversion)
    return np.asarray(pixels, pixels.dtype)


def _pixels_of(data: mmap.mmap) -> Pixels:
    size = size_of(data)
    check_whole(data)
    pixels = _decoded(data, format_of(data).name, size)
    if pixels.shape[:2] != (size.lines, size.columns):
        got = f"{pixels.shape[1]} x {pixels.shape[0]}"
        raise ImageError(f"damaged: decodes to {got} pixels, its header says {size.columns} x {size.lines}")
    return pixels


def _decoded(data: mmap.mmap, name: str, size: ImageSize) -> Pixels:
    try:
        # from memory: OpenCV cannot take the name of every file, those that are not UTF-8 end the process
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ImageError(
            f"{name} of {size.columns} x {size.lines} pixels cannot be decoded: {_limits(size, str(error))}"
        ) from error
    if pixels is None:
        raise ImageError(
            f"{name} of {size.columns} x {size.lines} pixels cannot be decoded: {_limits(size, 'its data are damaged')}"
        )
    return pixels


def _limits(size: ImageSize, otherwise: str) -> str:
    if size.lines > DECODER_MAX_LINES:
        return f"more than {DECODER_MAX_LINES} lines are beyond the decoder: split it into several files"
    if size.lines * size.columns > OPENCV_MAX_PIXELS:
        return (
            f"more than {OPENCV_MAX_PIXELS} pixels need a larger OPENCV_IO_MAX_IMAGE_PIXELS in the environment, or several files"
        )
    return otherwise


@contextmanager
def _opened(path: Path) -> Iterator[mmap.mmap]:
    """The file's bytes, read where they are looked at; errors within get the file's name."""
    try:
        with path.open("rb") as file:
            if path.stat().st_size == 0:
                raise ImageError("is empty (0 bytes); expected a PNG, JPEG, TIFF or BMP image")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                yield data
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error
