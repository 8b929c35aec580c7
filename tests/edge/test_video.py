"""Video: files as one strip, streams of network cameras from a real RTSP server."""

from __future__ import annotations

import itertools
import logging
import os
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from rtsp_server import PASSWORD, USER, require_rtsp_server, serving
from stations import events_in, station, told, write_strip

from edge.config import VideoSource, parse_config
from edge.daemon import Daemon
from edge.errors import ConfigError, SourceError
from edge.frame import Frame
from edge.ledger import Coverage
from edge.sources import open_source

HEIGHT, WIDTH, IMAGES = 32, 128, 16
RATE_HZ = 50


def _write(path: Path, images: np.ndarray, codec: str = "FFV1") -> Path:
    """A video of (n, h, w) or (n, h, w, 3) uint8; FFV1 keeps every bit."""
    size = images.shape[2], images.shape[1]
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 25, size, isColor=images.ndim == 4)
    assert video.isOpened()
    for image in images:
        video.write(image)
    video.release()
    return path


def _noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, shape, np.uint8)


def _strip(source: VideoSource, first_line: int = 0) -> np.ndarray:
    with open_source(source) as opened:
        return np.concatenate([frame.lines for frame in opened.frames(first_line)])


def test_the_images_of_a_file_are_one_strip_in_order_each_once(tmp_path: Path) -> None:
    images = _noise(10, 30, 96)
    path = _write(tmp_path / "a.avi", images)
    assert np.array_equal(_strip(VideoSource(path=path, frame_lines=7)), images.reshape(300, 96))


@pytest.mark.parametrize("codec", ["mp4v", "MJPG"])
@pytest.mark.parametrize("first_line", [0, 31, 100, 299])
def test_a_file_is_taken_up_at_any_line_whatever_its_codec_keeps(tmp_path: Path, codec: str, first_line: int) -> None:
    path = _write(tmp_path / ("a.mp4" if codec == "mp4v" else "a.avi"), _noise(10, 30, 96), codec)
    assert np.array_equal(_strip(VideoSource(path=path), first_line), _strip(VideoSource(path=path))[first_line:])


def test_colour_becomes_the_grey_of_images(tmp_path: Path) -> None:
    colours = np.zeros((2, 30, 96, 3), np.uint8)
    colours[..., 2] = 200  # red, in OpenCV's order
    path = _write(tmp_path / "a.avi", colours)
    assert np.unique(_strip(VideoSource(path=path))).tolist() == [round(0.299 * 200)]


def test_a_file_waits_for_its_consumer(tmp_path: Path) -> None:
    source = open_source(VideoSource(path=_write(tmp_path / "a.avi", _noise(2, 30, 96))))
    assert source.waits
    assert source.width == 96


def test_a_file_that_is_cut_off_is_said_to_be(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = _write(tmp_path / "a.mkv", _noise(10, 30, 96))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with caplog.at_level(logging.WARNING):
        strip = _strip(VideoSource(path=path))
    assert 0 < len(strip) < 300
    assert f"a.mkv: ends after {len(strip) // 30} images, and its header announces 10" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "error", "words"),
    [
        ("none.avi", None, ConfigError, "does not exist; expected a video file"),
        ("text.avi", b"no video at all", SourceError, "cannot be read; expected a video that FFmpeg reads"),
        ("empty.mp4", b"", SourceError, "cannot be read; expected a video that FFmpeg reads"),
    ],
)
def test_a_file_that_is_no_video_is_told(
    tmp_path: Path, name: str, content: bytes | None, error: type[Exception], words: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=f"{name}: {words}"):
        open_source(VideoSource(path=tmp_path / name)).__enter__()


def test_a_folder_and_a_name_that_is_no_utf8_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder; expected a video file"):
        open_source(VideoSource(path=tmp_path))
    unnamed = Path(os.fsdecode(bytes(tmp_path) + b"/\xff.avi"))
    unnamed.write_bytes(b"")
    with pytest.raises(ConfigError, match="is no UTF-8"):
        open_source(VideoSource(path=unnamed))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Sixteen images that say their number: four bars, each white or black."""
    require_rtsp_server()
    for number in range(IMAGES):
        bars = np.repeat([255 * (number >> bit & 1) for bit in range(4)], WIDTH // 4)
        cv2.imwrite(str(tmp_path / f"{number:03d}.png"), np.tile(bars, (HEIGHT, 1)).astype(np.uint8))
    return tmp_path


def _number(frame: Frame) -> int:
    bars = frame.lines.reshape(HEIGHT, 4, WIDTH // 4).mean(axis=(0, 2))
    return sum(int(bar > 127) << bit for bit, bar in enumerate(bars))


def _stream(port: int, **changes: object) -> VideoSource:
    return VideoSource.model_validate(
        {"kind": "video", "url": f"rtsp://127.0.0.1:{port}/strip", "frame_lines": HEIGHT, **changes}
    )


def test_images_of_a_stream_follow_each_other(images: Path) -> None:
    with serving(images, RATE_HZ) as (port, _), open_source(_stream(port)) as source:
        frames = list(itertools.islice(source.frames(), 20))
        assert not source.waits
        assert source.width == WIDTH
    assert [frame.first_line for frame in frames] == [HEIGHT * index for index in range(20)]
    first = _number(frames[0])
    assert [_number(frame) for frame in frames] == [(first + index) % IMAGES for index in range(20)]


def test_images_that_the_server_left_out_are_lost_lines_where_the_rate_is_known(images: Path) -> None:
    with serving(images, RATE_HZ, dropped=0.2) as (port, _), open_source(_stream(port, frame_rate_hz=RATE_HZ)) as source:
        frames = list(itertools.islice(source.frames(), 40))
    places = [frame.first_line // HEIGHT for frame in frames]
    assert places[-1] > 39
    steps = {(_number(frame) - place) % IMAGES for frame, place in zip(frames, places, strict=True)}
    assert len(steps) == 1


def test_a_stream_is_opened_again_when_its_server_is_back(images: Path) -> None:
    with serving(images, RATE_HZ) as (port, server), open_source(_stream(port, frozen_s=1.0)) as source:
        frames = source.frames()
        before = list(itertools.islice(frames, 30))
        server.kill()
        server.wait()
        # what is on its way still comes, then the server that is back
        with serving(images, RATE_HZ, port):
            while not source.health().counters.get("camera_reconnects"):
                back = next(frames)
            time.sleep(1.1)  # counters are renewed every second
            after = list(itertools.islice(frames, 2))
            health = source.health()
    assert back.first_line > before[-1].line_stop
    assert after[0].first_line >= back.line_stop
    assert health.counters["camera_reconnects"] == 1
    left_out = health.counters["camera_left_out"] * HEIGHT
    assert health.lost_lines - left_out == health.counters["camera_lines_lost_by_clock"] > 0


def test_images_that_nobody_takes_in_time_are_lost_lines(images: Path) -> None:
    with serving(images, 200) as (port, _), open_source(_stream(port)) as source:
        frames = source.frames()
        next(frames)
        time.sleep(1.2)
        taken = list(itertools.islice(frames, 40))
        health = source.health()
    assert taken[0].first_line > HEIGHT
    assert health.lost_lines == health.counters["camera_left_out"] * HEIGHT > 0
    first = _number(taken[0]) - taken[0].first_line // HEIGHT
    assert {(_number(frame) - frame.first_line // HEIGHT - first) % IMAGES for frame in taken} == {0}


def test_a_stream_of_other_images_than_the_station_says_is_told(images: Path) -> None:
    with (
        serving(images, RATE_HZ) as (port, _),
        pytest.raises(ConfigError, match=r"source.frame_lines: got 128, and the images of rtsp.* have 32 lines; expected 32"),
    ):
        open_source(_stream(port, frame_lines=128)).__enter__()


def test_a_stream_behind_a_password_needs_it_and_nobody_reads_it(images: Path) -> None:
    with serving(images, RATE_HZ, access="password") as (port, _):
        secret = _stream(port, username=USER, password=PASSWORD)
        with open_source(secret) as source:
            assert next(source.frames()).lines.shape == (HEIGHT, WIDTH)
        assert PASSWORD not in repr(secret)
        with pytest.raises(SourceError, match="no image comes") as raised:
            open_source(_stream(port, username=USER, password="wrong")).__enter__()
        assert "wrong" not in str(raised.value)


def test_a_stream_that_is_not_there_is_told() -> None:
    with pytest.raises(SourceError, match=r"rtsp://127.0.0.1:1/strip: no image comes; .* is its server there"):
        open_source(_stream(1)).__enter__()


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({}, "got neither path nor url; expected one of path, url"),
        ({"path": "a.avi", "url": "rtsp://host/a"}, "got path and url; expected one of path, url"),
        ({"path": "a.avi", "frame_rate_hz": 25}, "frame_rate_hz: got one, and it is of a stream only"),
        ({"url": "rtsp://host/a", "line_rate_hz": 25}, "line_rate_hz: got one, and it is of a file only"),
        ({"url": "ftp://host/a"}, "expected an address such as rtsp://host/stream"),
        ({"url": "rtsp://me:secret@host/a"}, "username and password have keys of their own"),
    ],
)
def test_a_section_that_cannot_be_is_told(section: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        VideoSource.model_validate({"kind": "video", **section})


def test_a_daemon_finds_in_a_video_what_it_finds_in_its_images(tmp_path: Path) -> None:
    strip = write_strip(tmp_path / "strip", lines=1500)
    path = _write(tmp_path / "strip.avi", strip.reshape(6, 250, -1))
    told_by = {}
    for name, source in {
        "images": {"kind": "folder", "path": str(tmp_path / "strip"), "frame_lines": 50},
        "video": {"kind": "video", "path": str(path), "frame_lines": 37},
    }.items():
        files = {"outbox": {"path": str(tmp_path / f"{name}.db")}, "sinks": {"jsonl": str(tmp_path / f"{name}.jsonl")}}
        with Daemon(parse_config(station(tmp_path, source=source, **files), "test"), "test", "s1") as daemon:
            assert daemon.run().coverage == Coverage(inspected=1500)
        told_by[name] = told(events_in(tmp_path / f"{name}.jsonl"))
    assert told_by["video"] == told_by["images"]
    assert len(told_by["video"]) > 10
