"""Size and wholeness of PNG, JPEG, TIFF and BMP files, read from their own structure without decoding a pixel.

Decoders fill up what is missing from a truncated file with grey and say so at most on stderr: what a format's structure
says must be there is looked for here, before a decoder sees the file.
"""

from __future__ import annotations

import mmap
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from edge.errors import ImageError

Buffer = bytes | mmap.mmap


@dataclass(frozen=True, slots=True)
class ImageSize:
    """Lines and columns of an image, both at least 1."""

    lines: int
    columns: int


@dataclass(frozen=True, slots=True)
class ImageFormat:
    """A file format. size: read from the header. check_whole: raises ImageError where something is missing behind it."""

    name: str
    magic: tuple[bytes, ...]
    size: Callable[[Buffer], tuple[int, int]]
    check_whole: Callable[[Buffer], None]


def format_of(data: Buffer) -> ImageFormat:
    """The format that a file's first bytes name. Raises ImageError."""
    start = bytes(data[:8])
    for candidate in FORMATS:
        if start.startswith(candidate.magic):
            return candidate
    raise ImageError(f"got a file that begins with {start!r}; expected a PNG, JPEG, TIFF or BMP image")


def size_of(data: Buffer) -> ImageSize:
    """Lines and columns of an image file, from its header. Raises ImageError."""
    kind = format_of(data)
    try:
        lines, columns = kind.size(data)
    except (struct.error, IndexError) as error:
        raise ImageError(f"truncated: the {kind.name} header is cut off after {len(data)} bytes") from error
    if lines < 1 or columns < 1:
        raise ImageError(f"got {columns} columns and {lines} lines; expected at least one of each")
    return ImageSize(lines, columns)


def check_whole(data: Buffer) -> None:
    """Raises ImageError where the file lacks a part of what its own structure announces, or holds more than one page."""
    kind = format_of(data)
    try:
        kind.check_whole(data)
    except (struct.error, IndexError) as error:
        raise ImageError(f"truncated: the {kind.name} structure is cut off after {len(data)} bytes") from error


def _png_size(data: Buffer) -> tuple[int, int]:
    columns, lines = struct.unpack_from(">II", data, 16)
    return lines, columns


def _check_png(data: Buffer) -> None:
    """Every chunk with its checksum, IEND at the end. Source: PNG specification, third edition, 5.3 and 5.6."""
    position = 8
    while True:
        if position + 12 > len(data):
            raise ImageError(f"truncated: the PNG ends after {len(data)} bytes without an IEND chunk")
        (length,) = struct.unpack_from(">I", data, position)
        kind, stop = bytes(data[position + 4 : position + 8]), position + 12 + length
        if stop > len(data):
            raise ImageError(f"truncated: PNG chunk {kind!r} at byte {position} needs {stop} bytes, the file has {len(data)}")
        with memoryview(data) as view, view[position + 4 : stop - 4] as covered:
            checksum = zlib.crc32(covered)
        if checksum != struct.unpack_from(">I", data, stop - 4)[0]:
            raise ImageError(f"damaged: the checksum of PNG chunk {kind!r} at byte {position} is wrong")
        if kind == b"IEND":
            return
        position = stop


_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_END, _JPEG_SCAN = 0xD9, 0xDA
_JPEG_ALONE = frozenset(range(0xD0, 0xD9)) | {0x01}
"""Markers without a length: RST0 to RST7, SOI, TEM."""
_JPEG_AFTER_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)
"""What ends entropy-coded data: a marker that is neither a stuffed zero nor a restart.

Source: ITU-T T.81, B.1.1 (markers, fill bytes, stuffing) and table B.1.
"""


def _jpeg_marker(data: Buffer, position: int) -> tuple[int, int]:
    """(marker, position behind it) of the marker at `position`, fill bytes before it skipped."""
    if data[position] != 0xFF:
        raise ImageError(f"damaged: expected a JPEG marker at byte {position}, got 0x{data[position]:02x}")
    while data[position] == 0xFF:
        position += 1
    return int(data[position]), position + 1


def _jpeg_size(data: Buffer) -> tuple[int, int]:
    position = 2
    while True:
        marker, position = _jpeg_marker(data, position)
        if marker in _JPEG_FRAMES:
            lines, columns = struct.unpack_from(">HH", data, position + 3)
            return lines, columns
        if marker in (_JPEG_END, _JPEG_SCAN):
            raise ImageError("damaged: the JPEG has no frame header before its data")
        if marker not in _JPEG_ALONE:
            position += struct.unpack_from(">H", data, position)[0]


def _check_jpeg(data: Buffer) -> None:
    """Every segment in its place and the end-of-image marker behind the last scan: a JPEG has no other sign of its end."""
    position = 2
    while True:
        marker, position = _jpeg_marker(data, position)
        if marker == _JPEG_END:
            return
        if marker not in _JPEG_ALONE:
            position += struct.unpack_from(">H", data, position)[0]
        if marker == _JPEG_SCAN:
            found = _JPEG_AFTER_SCAN.search(data, position)
            if found is None:
                raise ImageError(f"truncated: the JPEG ends after {len(data)} bytes without an end-of-image marker")
            position = found.start()


_TIFF_TYPES = {1: ("B", 1), 3: ("H", 2), 4: ("I", 4), 16: ("Q", 8)}
"""BYTE, SHORT, LONG; LONG8 of BigTIFF."""
_TIFF_COLUMNS, _TIFF_LINES, _TIFF_BITS, _TIFF_COMPRESSION = 256, 257, 258, 259
_TIFF_SAMPLES, _TIFF_STRIP_LINES, _TIFF_PLANAR = 277, 278, 284
_TIFF_STRIPS = (273, 279)
_TIFF_TILES = (324, 325)
_TIFF_TILE_COLUMNS, _TIFF_TILE_LINES = 322, 323


@dataclass(frozen=True, slots=True)
class _Directory:
    """First page of a TIFF: position and size of every tag's values, and where the next page is, 0 for none."""

    data: Buffer
    order: str
    entries: dict[int, tuple[int, int, int]]
    next_page: int

    def values(self, tag: int, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """The integers of a tag. Raises ImageError, and struct.error where they lie beyond the file."""
        if tag not in self.entries:
            return default
        kind, count, position = self.entries[tag]
        if kind not in _TIFF_TYPES:
            raise ImageError(f"damaged: TIFF tag {tag} has type {kind}, expected an integer type")
        return struct.unpack_from(f"{self.order}{count}{_TIFF_TYPES[kind][0]}", self.data, position)

    def value(self, tag: int, default: int | None = None) -> int:
        """The first integer of a tag. Raises ImageError."""
        values = self.values(tag, () if default is None else (default,))
        if not values:
            raise ImageError(f"damaged: the TIFF lacks tag {tag}")
        return values[0]


def _tiff_directory(data: Buffer) -> _Directory:
    """Source: TIFF revision 6.0, section 2; BigTIFF as libtiff documents it."""
    order = "<" if data[0] == ord("I") else ">"
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    (first,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, first)
    position, size, inline = first + (8 if big else 2), 20 if big else 12, 8 if big else 4
    if position + count * size > len(data):
        raise ImageError(f"truncated: the TIFF's {count} tags at byte {first} reach beyond its {len(data)} bytes")
    entries = {}
    for entry in range(position, position + count * size, size):
        tag, kind, values = struct.unpack_from(order + ("HHQ" if big else "HHI"), data, entry)
        where = entry + size - inline
        if values * _TIFF_TYPES.get(kind, ("", 1))[1] > inline:
            (where,) = struct.unpack_from(order + ("Q" if big else "I"), data, where)
        entries[tag] = (kind, values, where)
    (next_page,) = struct.unpack_from(order + ("Q" if big else "I"), data, position + count * size)
    return _Directory(data, order, entries, next_page)


def _tiff_size(data: Buffer) -> tuple[int, int]:
    directory = _tiff_directory(data)
    return directory.value(_TIFF_LINES), directory.value(_TIFF_COLUMNS)


def _check_tiff(data: Buffer) -> None:
    """One page; as many strips or tiles as its size needs, all within the file, and full ones where uncompressed."""
    page = _tiff_directory(data)
    if page.next_page:
        raise ImageError("got a TIFF of several pages; expected one: split it into one file a page")
    lines, columns = _tiff_size(data)
    tiled = _TIFF_TILES[0] in page.entries
    offsets, sizes = (page.values(tag) for tag in (_TIFF_TILES if tiled else _TIFF_STRIPS))
    part_lines = page.value(_TIFF_TILE_LINES) if tiled else min(lines, page.value(_TIFF_STRIP_LINES, lines))
    part_columns = page.value(_TIFF_TILE_COLUMNS) if tiled else columns
    if part_lines < 1 or part_columns < 1:
        raise ImageError("damaged: the TIFF has strips or tiles of no size")
    samples = page.value(_TIFF_SAMPLES, 1)
    planes = samples if page.value(_TIFF_PLANAR, 1) == 2 else 1
    needed = -(-lines // part_lines) * -(-columns // part_columns) * planes
    if len(offsets) < needed or len(sizes) < needed:
        raise ImageError(f"truncated: the TIFF lists {min(len(offsets), len(sizes))} strips or tiles, its size needs {needed}")
    for offset, size in zip(offsets, sizes, strict=False):
        if offset + size > len(data):
            raise ImageError(f"truncated: the TIFF's pixels at byte {offset} need {size} bytes, the file has {len(data)}")
    if page.value(_TIFF_COMPRESSION, 1) == 1 and not tiled:
        row_bytes = -(-columns * (samples // planes) * page.value(_TIFF_BITS, 1) // 8)
        if sum(sizes) < row_bytes * lines * planes:
            raise ImageError(
                f"truncated: the TIFF holds {sum(sizes)} bytes of pixels, its size needs {row_bytes * lines * planes}"
            )


_BMP_UNCOMPRESSED = (0, 3, 6)
"""BI_RGB, BI_BITFIELDS, BI_ALPHABITFIELDS. Source: Microsoft, BITMAPINFOHEADER, biCompression."""


def _bmp_size(data: Buffer) -> tuple[int, int]:
    if struct.unpack_from("<I", data, 14)[0] == 12:
        columns, lines = struct.unpack_from("<HH", data, 18)
    else:
        columns, lines = struct.unpack_from("<ii", data, 18)
    # negative: stored from the top down
    return abs(lines), columns


def _check_bmp(data: Buffer) -> None:
    """As many bytes as its lines need, each padded to four; compressed ones are refused."""
    lines, columns = _bmp_size(data)
    (pixels,) = struct.unpack_from("<I", data, 10)
    old = struct.unpack_from("<I", data, 14)[0] == 12
    (bits,) = struct.unpack_from("<H", data, 24 if old else 28)
    compression = 0 if old else struct.unpack_from("<I", data, 30)[0]
    if compression not in _BMP_UNCOMPRESSED:
        raise ImageError(f"got a compressed BMP (compression {compression}); expected an uncompressed one")
    needed = pixels + (columns * bits + 31) // 32 * 4 * lines
    if needed > len(data):
        raise ImageError(f"truncated: the BMP needs {needed} bytes, the file has {len(data)}")


FORMATS = (
    ImageFormat("PNG", (b"\x89PNG\r\n\x1a\n",), _png_size, _check_png),
    ImageFormat("JPEG", (b"\xff\xd8\xff",), _jpeg_size, _check_jpeg),
    ImageFormat("TIFF", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), _tiff_size, _check_tiff),
    ImageFormat("BMP", (b"BM",), _bmp_size, _check_bmp),
)
