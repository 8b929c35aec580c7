"""Images as one strip: their order, the frames cut from them, what is refused and when."""

from __future__ import annotations

import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge import config
from edge.errors import ConfigError, ImageError, SourceError
from edge.frame import Frame
from edge.sources import folder as folder_module
from edge.sources.folder import FolderSource, images_of


def _write(folder: Path, heights: list[int], width: int = 9) -> np.ndarray:
    strip = np.random.default_rng(len(heights)).integers(0, 256, (sum(heights), width), np.uint8)
    start = 0
    for index, height in enumerate(heights):
        cv2.imwrite(str(folder / f"{index:03}.png"), strip[start : start + height])
        start += height
    return strip


def _frames(options: config.FolderSource, first_line: int = 0) -> list[Frame]:
    with FolderSource(options) as source:
        return list(source.frames(first_line))


@settings(deadline=None)
@given(
    heights=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    frame_lines=st.integers(1, 50),
    start=st.floats(0.0, 1.0, exclude_max=True),
)
def test_frames_do_not_depend_on_where_images_meet(
    heights: list[int], frame_lines: int, start: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("strip")
    strip = _write(folder, heights)
    first_line = int(start * len(strip))
    frames = _frames(config.FolderSource(path=folder, frame_lines=frame_lines), first_line)
    assert np.array_equal(np.concatenate([frame.lines for frame in frames]), strip[first_line:])
    assert all(frame.line_stop % frame_lines == 0 for frame in frames[:-1])


def test_images_follow_in_the_order_of_their_names_wherever_they_were_named(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", "10.tif", "9.bmp", "C.PNG"):
        cv2.imwrite(str(tmp_path / name), np.zeros((2, 2), np.uint8))
    ordered = [tmp_path / name for name in ("10.tif", "9.bmp", "C.PNG", "a.jpg", "b.png")]
    assert images_of(tmp_path) == tuple(ordered)
    assert images_of(ordered[::-1]) == tuple(ordered)


def test_what_is_no_image_by_its_name_and_what_is_hidden_stays_out_of_a_folder(tmp_path: Path) -> None:
    _write(tmp_path, [3])
    for name in ("notes.txt", ".000.png", "strip.json"):
        (tmp_path / name).write_text("no image")
    assert [image.name for image in images_of(tmp_path)] == ["000.png"]


def test_a_single_image_is_a_strip_whatever_it_is_called(tmp_path: Path) -> None:
    strip = _write(tmp_path, [30])
    image = (tmp_path / "000.png").rename(tmp_path / "strip.dat")
    (frame,) = _frames(config.FolderSource(path=image, frame_lines=64))
    assert np.array_equal(frame.lines, strip)


def test_formats_depths_and_colours_mix_within_a_strip(tmp_path: Path) -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(1, 256).repeat(2, axis=0)
    cv2.imwrite(str(tmp_path / "0.png"), grey)
    cv2.imwrite(str(tmp_path / "1.tif"), grey.astype(np.uint16) * 257)
    cv2.imwrite(str(tmp_path / "2.bmp"), np.dstack([grey] * 3))
    (frame,) = _frames(config.FolderSource(path=tmp_path, frame_lines=64))
    assert np.array_equal(frame.lines, np.tile(grey, (3, 1)))


def test_a_loop_begins_again_after_the_last_image_without_a_seam(tmp_path: Path) -> None:
    strip = _write(tmp_path, [7, 5])
    with FolderSource(config.FolderSource(path=tmp_path, frame_lines=8, loop=True)) as source:
        frames = source.frames(first_line=1200 + 3)
        lines = np.concatenate([next(frames).lines for _ in range(5)])
    assert np.array_equal(lines, np.tile(strip, (5, 1))[3 : 3 + len(lines)])
    assert len(lines) == 5 + 4 * 8


def test_lines_before_the_start_are_not_decoded(tmp_path: Path) -> None:
    strip = _write(tmp_path, [10, 10, 10])
    broken = tmp_path / "000.png"
    broken.write_bytes(broken.read_bytes()[:60])
    (frame,) = _frames(config.FolderSource(path=tmp_path, frame_lines=64), first_line=12)
    assert np.array_equal(frame.lines, strip[12:])


def test_one_image_is_decoded_at_a_time_and_none_before_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path, [8, 8, 8])
    decoded: list[str] = []

    def counted(path: Path) -> np.ndarray:
        decoded.append(path.name)
        return read(path)

    read = folder_module.read_image
    monkeypatch.setattr(folder_module, "read_image", counted)
    with FolderSource(config.FolderSource(path=tmp_path, frame_lines=4)) as source:
        seen = [len(decoded) for _ in source.frames()]
    assert seen == [1, 1, 2, 2, 3, 3]


def test_a_pace_delays_a_folder_and_loses_nothing(tmp_path: Path) -> None:
    strip = _write(tmp_path, [30])
    start = time.monotonic()
    frames = _frames(config.FolderSource(path=tmp_path, frame_lines=10, line_rate_hz=200.0))
    assert time.monotonic() - start >= 30 / 200.0
    assert sum(len(frame.lines) for frame in frames) == len(strip)
    assert FolderSource(config.FolderSource(path=tmp_path, line_rate_hz=200.0)).waits


def test_an_image_of_another_width_is_refused_by_name_with_both_widths(tmp_path: Path) -> None:
    _write(tmp_path, [8, 8])
    cv2.imwrite(str(tmp_path / "001.png"), np.zeros((8, 11), np.uint8))
    with FolderSource(config.FolderSource(path=tmp_path, frame_lines=8)) as source:
        frames = source.frames()
        assert next(frames).first_line == 0
        with pytest.raises(ImageError, match=r"001\.png: got 11 columns, expected 9 as in the strip's first image, .*000\.png"):
            next(frames)
        with pytest.raises(ImageError, match=r"001\.png: got 11 columns, expected 9"):
            next(source.frames(first_line=12))


def test_a_truncated_image_ends_the_strip_with_its_name_before_any_of_its_lines(tmp_path: Path) -> None:
    strip = _write(tmp_path, [8, 40])
    broken = tmp_path / "001.png"
    broken.write_bytes(broken.read_bytes()[:-30])
    seen = []
    with (
        FolderSource(config.FolderSource(path=tmp_path, frame_lines=4)) as source,
        pytest.raises(ImageError, match=r"001\.png: truncated"),
    ):
        seen += [frame.lines for frame in source.frames()]
    with FolderSource(config.FolderSource(path=tmp_path, frame_lines=4)) as source:
        frames = source.frames()
        assert np.array_equal(np.concatenate([next(frames).lines, next(frames).lines]), strip[:8])
        with pytest.raises(ImageError, match=r"001\.png: truncated"):
            next(frames)


def test_an_empty_first_image_is_an_error_when_the_source_is_opened(tmp_path: Path) -> None:
    (tmp_path / "000.png").touch()
    with pytest.raises(ImageError, match=r"000\.png: is empty"), FolderSource(config.FolderSource(path=tmp_path)):
        pass


def test_a_folder_without_images_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(SourceError, match=r"a folder without images; expected files ending in \.bmp, \.jpeg"):
        images_of(tmp_path)
    with pytest.raises(SourceError, match="empty list of images"):
        images_of([])


def test_a_path_that_does_not_exist_is_a_fault_of_the_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere: does not exist; expected an image or a folder of images"):
        FolderSource(config.FolderSource(path=tmp_path / "nowhere"))
