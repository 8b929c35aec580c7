"""One image file as grey lines: what is read, how it becomes grey, and what is refused."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import ImageError
from edge.sources.images import grey_lines, read_image, read_image_size

SUFFIXES = ["png", "tif", "bmp", "jpg"]
LOSSLESS = ["png", "tif", "bmp"]
GREY = np.add.outer(np.arange(40) * 3, np.arange(56)).astype(np.uint8)


def _saved(path: Path, pixels: np.ndarray, *parameters: int) -> Path:
    assert cv2.imwrite(str(path), pixels, list(parameters))
    return path


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(path: Path, columns: int, lines: int, colour: int, rows: bytes) -> Path:
    header = struct.pack(">IIBBBBB", columns, lines, 8, colour, 0, 0, 0)
    parts = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    return path


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_grey_images_come_back_bit_for_bit(tmp_path: Path, suffix: str) -> None:
    lines = read_image(_saved(tmp_path / f"a.{suffix}", GREY))
    assert lines.dtype == np.uint8
    assert np.array_equal(lines, GREY)


def test_a_jpeg_comes_back_as_its_coding_allows(tmp_path: Path) -> None:
    lines = read_image(_saved(tmp_path / "a.jpg", GREY, cv2.IMWRITE_JPEG_QUALITY, 100))
    assert np.abs(lines.astype(int) - GREY).max() <= 2


@pytest.mark.parametrize("progressive", [0, 1])
def test_jpegs_with_restart_markers_and_several_scans_are_whole(tmp_path: Path, progressive: int) -> None:
    options = [cv2.IMWRITE_JPEG_PROGRESSIVE, progressive, cv2.IMWRITE_JPEG_RST_INTERVAL, 2]
    colour = np.random.default_rng(0).integers(0, 256, (80, 100, 3), np.uint8)
    assert read_image(_saved(tmp_path / "a.jpg", colour, *options)).shape == (80, 100)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_become_eight_by_dividing_by_257_and_rounding(tmp_path: Path, suffix: str) -> None:
    deep = np.array([[0, 128, 129, 257, 65406, 65407, 65535]], np.uint16)
    assert read_image(_saved(tmp_path / f"a.{suffix}", deep)).tolist() == [[0, 0, 1, 1, 254, 255, 255]]


@settings(deadline=None)
@given(st.integers(0, 65535))
def test_every_sixteen_bit_level_becomes_the_nearest_of_256(level: int) -> None:
    assert grey_lines(np.array([[level]], np.uint16))[0, 0] == round(level / 257)


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_colour_becomes_grey_by_the_weights_of_the_eye(tmp_path: Path, suffix: str) -> None:
    red, green, blue = [0, 0, 200], [0, 200, 0], [200, 0, 0]
    lines = read_image(_saved(tmp_path / f"a.{suffix}", np.array([[red, green, blue]], np.uint8)))
    assert lines.tolist() == [[round(200 * 0.299), round(200 * 0.587), round(200 * 0.114)]]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_stored_as_colour_is_the_same_grey(tmp_path: Path, dtype: type) -> None:
    grey = (GREY.astype(np.uint16) * (257 if dtype == np.uint16 else 1)).astype(dtype)
    assert np.array_equal(read_image(_saved(tmp_path / "a.png", np.dstack([grey] * 3))), GREY)


def test_alpha_is_dropped_and_does_not_darken(tmp_path: Path) -> None:
    alpha = np.arange(GREY.size, dtype=np.uint8).reshape(GREY.shape)
    assert np.array_equal(read_image(_saved(tmp_path / "colour.png", np.dstack([GREY, GREY, GREY, alpha]))), GREY)
    rows = b"".join(b"\0" + np.dstack([row, shade]).tobytes() for row, shade in zip(GREY, alpha, strict=True))
    assert np.array_equal(read_image(_png(tmp_path / "grey.png", 56, 40, 4, rows)), GREY)


def test_an_exif_orientation_does_not_turn_the_lines(tmp_path: Path) -> None:
    path = _saved(tmp_path / "a.jpg", GREY)
    plain = read_image(path)
    tag = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + tag + struct.pack("<I", 0)
    data = path.read_bytes()
    path.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:])
    assert np.array_equal(read_image(path), plain)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_size_is_read_from_the_header_alone(tmp_path: Path, suffix: str) -> None:
    path = _saved(tmp_path / f"a.{suffix}", GREY)
    # these TIFFs keep their directory behind the pixels
    if suffix != "tif":
        path.write_bytes(path.read_bytes()[: 54 if suffix == "bmp" else 200])
    size = read_image_size(path)
    assert (size.lines, size.columns) == GREY.shape


def test_a_tall_and_a_wide_image_are_read(tmp_path: Path) -> None:
    for shape in [(100_000, 16), (3, 16384)]:
        pixels = np.zeros(shape, np.uint8)
        pixels[-1, -1] = 7
        assert np.array_equal(read_image(_saved(tmp_path / "a.png", pixels)), pixels)


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(deadline=None)
@given(share=st.floats(0.0, 1.0, exclude_max=True))
def test_a_file_cut_off_anywhere_is_an_error_and_never_half_grey(
    suffix: str, share: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / f"cut.{suffix}"
    noise = np.random.default_rng(1).integers(0, 256, (30, 40), np.uint8)
    data = _saved(path, noise).read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ImageError, match=r"cut\.\w+: (truncated: |is empty|got a file that begins with)"):
        read_image(path)


@pytest.mark.parametrize("compression", [1, 5, 8])
def test_a_tiff_whose_pixels_are_missing_is_truncated_though_its_directory_is_whole(tmp_path: Path, compression: int) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (300, 200), np.uint8)
    path = _saved(tmp_path / "a.tif", noise, cv2.IMWRITE_TIFF_COMPRESSION, compression)
    data = path.read_bytes()
    directory = struct.unpack_from("<I", data, 4)[0]
    entries = data[directory:]
    # the same file with its directory in front and the last half of its pixels gone: offsets moved by its length
    strips = struct.unpack_from("<H", entries)[0]
    assert strips > 0
    moved = bytearray(b"II*\0" + struct.pack("<I", 8) + entries + data[8:directory])
    shift = len(entries)
    for index in range(strips):
        tag, kind, count, value = struct.unpack_from("<HHII", moved, 10 + 12 * index)
        wide = count * {3: 2, 4: 4}.get(kind, 1) > 4
        if tag == 273 and not wide:
            struct.pack_into("<I", moved, 18 + 12 * index, value + shift)
        elif wide:
            where = value - directory + 8 if value >= directory else value + shift
            struct.pack_into("<I", moved, 18 + 12 * index, where)
            if tag == 273:
                offsets = struct.unpack_from(f"<{count}I", moved, where)
                struct.pack_into(f"<{count}I", moved, where, *(offset + shift for offset in offsets))
    path.write_bytes(moved)
    assert np.array_equal(read_image(path), noise)
    path.write_bytes(moved[: len(moved) // 2])
    with pytest.raises(ImageError, match=r"a\.tif: truncated"):
        read_image(path)


def test_a_png_with_a_flipped_bit_is_damaged(tmp_path: Path) -> None:
    path = _saved(tmp_path / "a.png", GREY)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(ImageError, match=r"a\.png: damaged: the checksum of PNG chunk b'IDAT'"):
        read_image(path)


def test_a_png_whose_data_end_early_behind_right_checksums_is_an_error(tmp_path: Path) -> None:
    path = _png(tmp_path / "a.png", 56, 40, 0, b"".join(b"\0" + row.tobytes() for row in GREY[:20]))
    with pytest.raises(ImageError, match=r"a\.png: PNG of 56 x 40 pixels cannot be decoded"):
        read_image(path)


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.touch()
    for read in (read_image, read_image_size):
        with pytest.raises(ImageError, match=r"a\.png: is empty \(0 bytes\)"):
            read(path)


@pytest.mark.parametrize(("columns", "lines"), [(0, 40), (56, 0)])
def test_an_image_without_columns_or_lines_is_an_error(tmp_path: Path, columns: int, lines: int) -> None:
    path = _png(tmp_path / "a.png", columns, lines, 0, b"")
    with pytest.raises(ImageError, match=f"got {columns} columns and {lines} lines; expected at least one of each"):
        read_image(path)


@pytest.mark.parametrize("content", [b"not an image at all", b"GIF89a\1\0\1\0", b"\x89PNX\r\n\x1a\n", b"P5 2 2 255 abcd"])
def test_what_is_no_image_of_the_four_formats_is_refused_whatever_its_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"a\.png: got a file that begins with .* expected a PNG, JPEG, TIFF or BMP image"):
        read_image(path)


def test_a_format_is_known_by_its_content_not_by_its_name(tmp_path: Path) -> None:
    path = _saved(tmp_path / "a.bmp", GREY).rename(tmp_path / "a.png")
    assert np.array_equal(read_image(path), GREY)


def test_a_tiff_of_several_pages_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    assert cv2.imwritemulti(str(path), [GREY, GREY])
    with pytest.raises(ImageError, match=r"a\.tif: got a TIFF of several pages; expected one"):
        read_image(path)


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"a\.tif: got float32 pixels; expected 8 or 16 bits"):
        read_image(_saved(tmp_path / "a.tif", GREY.astype(np.float32)))


def test_an_image_taller_than_the_decoder_takes_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = _png(tmp_path / "a.png", 1, 1_000_001, 0, bytes(2 * 1_000_001))
    with pytest.raises(ImageError, match=r"a\.png: PNG of 1 x 1000001 pixels .* more than 1000000 lines .* split it"):
        read_image(path)


def test_an_image_of_more_pixels_than_the_decoder_takes_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = _png(tmp_path / "a.png", 16384, 65537, 0, b"")
    with pytest.raises(ImageError, match=r"a\.png: PNG of 16384 x 65537 pixels .* OPENCV_IO_MAX_IMAGE_PIXELS"):
        read_image(path)


def test_a_missing_file_and_a_folder_are_errors_with_their_names(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"missing\.png: cannot be read: No such file"):
        read_image(tmp_path / "missing.png")
    with pytest.raises(ImageError, match="cannot be read: Is a directory"):
        read_image(tmp_path)


@pytest.mark.data
def test_real_images_of_steel_are_read(shared_data: Path) -> None:
    images = sorted((shared_data / "neu_seg" / "train" / "images").iterdir())[:20]
    assert {read_image(image).shape for image in images} == {(200, 200)}


def test_a_file_whose_name_is_not_utf_8_is_read_like_any_other(tmp_path):
    path = tmp_path / "plain.png"
    cv2.imwrite(str(path), np.arange(12, dtype=np.uint8).reshape(3, 4))
    other = path.rename(os.fsdecode(os.fsencode(tmp_path) + b"/coil \xff\xe9.png"))
    assert np.array_equal(read_image(Path(other)), np.arange(12, dtype=np.uint8).reshape(3, 4))
