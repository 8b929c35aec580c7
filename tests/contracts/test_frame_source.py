"""What every frame source promises, whatever is behind it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from emulated_basler import SERIALS
from rtsp_server import require_rtsp_server, serving

from edge import config
from edge.bench.strip_source import StripSource
from edge.frame import FrameSource
from edge.sources import open_source

LINES, WIDTH = 150, 96
Opener = Callable[[int], FrameSource]


@pytest.fixture(params=["folder", "simulated", "simulated with a sensor", "bench strip", "video"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    """Opens a source of 150 lines of 96 columns that hands out frames of that many lines."""
    if request.param == "simulated":
        return lambda frame_lines: open_source(config.SimulatedSource(width=WIDTH, lines=LINES, seed=5, frame_lines=frame_lines))
    if request.param == "simulated with a sensor":
        faults = config.SimulatedSensor(distortion=0.05, fall_off_deg=20, dead_columns=(3,), hot_columns=(WIDTH - 1,))
        return lambda frame_lines: open_source(
            config.SimulatedSource(width=WIDTH, lines=LINES, seed=5, frame_lines=frame_lines, sensor=faults)
        )
    grey = np.random.default_rng(0).integers(0, 256, (LINES, WIDTH), np.uint8)
    if request.param == "bench strip":
        return lambda frame_lines: StripSource(grey[:100], frame_lines, None, lines=LINES)
    if request.param == "video":
        _write_video(tmp_path / "strip.avi", grey.reshape(5, LINES // 5, WIDTH))
        return lambda frame_lines: open_source(config.VideoSource(path=tmp_path / "strip.avi", frame_lines=frame_lines))
    for name, (start, stop) in {"a": (0, 37), "b": (37, 38), "c": (38, 150)}.items():
        cv2.imwrite(str(tmp_path / f"{name}.png"), grey[start:stop])
    return lambda frame_lines: open_source(config.FolderSource(path=tmp_path, frame_lines=frame_lines))


def _write_video(path: Path, images: np.ndarray) -> None:
    # FFV1 keeps every bit
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"FFV1"), 25, images.shape[:0:-1], isColor=False)
    for image in images:
        video.write(image)
    video.release()


def _strip(source: FrameSource, first_line: int = 0) -> np.ndarray:
    with source:
        return np.concatenate([frame.lines for frame in source.frames(first_line)])


def test_is_a_frame_source(opened: Opener) -> None:
    assert isinstance(opened(16), FrameSource)


def test_every_frame_is_grey_and_as_wide_as_the_source(opened: Opener) -> None:
    with opened(16) as source:
        for frame in source.frames():
            assert frame.lines.dtype == np.uint8
            assert frame.lines.shape[1] == source.width == WIDTH


@pytest.mark.parametrize("frame_lines", [1, 16, 37, 149, 150, 151, 4096])
def test_frames_of_any_height_are_the_same_strip(opened: Opener, frame_lines: int) -> None:
    strip = _strip(opened(frame_lines))
    assert strip.shape == (LINES, WIDTH)
    assert np.array_equal(strip, _strip(opened(LINES)))


@pytest.mark.parametrize("first_line", [0, 1, 36, 37, 38, 100, 149])
def test_a_strip_entered_anywhere_is_the_rest_of_the_whole_one(opened: Opener, first_line: int) -> None:
    assert np.array_equal(_strip(opened(16), first_line), _strip(opened(16))[first_line:])


@pytest.mark.parametrize("first_line", [0, 5, 16, 38])
def test_frames_follow_each_other_and_end_at_multiples_of_their_height(opened: Opener, first_line: int) -> None:
    with opened(16) as source:
        frames = list(source.frames(first_line))
    assert [frame.first_line for frame in frames] == [first_line, *range((first_line // 16 + 1) * 16, LINES, 16)]
    assert [frame.line_stop for frame in frames[:-1]] == [frame.first_line for frame in frames[1:]]
    assert frames[-1].line_stop == LINES


@pytest.mark.parametrize("first_line", [LINES, 10 * LINES])
def test_beyond_the_strip_there_are_no_frames(opened: Opener, first_line: int) -> None:
    with opened(16) as source:
        assert list(source.frames(first_line)) == []


def test_frames_are_stamped_when_they_are_complete_and_in_order(opened: Opener) -> None:
    before = time.time_ns()
    with opened(16) as source:
        stamps = [before, *(frame.captured_ns for frame in source.frames()), time.time_ns()]
    assert stamps == sorted(stamps)


def test_health_counts_what_was_handed_out_and_nothing_lost(opened: Opener) -> None:
    with opened(16) as source:
        frames = list(source.frames())
        health = source.health()
    assert (health.frames, health.lines, health.lost_lines) == (len(frames), LINES, 0)


def test_a_frame_stays_as_it_was_when_the_next_one_comes(opened: Opener) -> None:
    with opened(16) as source:
        frames = source.frames()
        first = next(frames)
        kept = first.lines.copy()
        list(frames)
    assert np.array_equal(first.lines, kept)


def test_a_source_that_was_closed_ends_its_frames(opened: Opener) -> None:
    with opened(16) as source:
        frames = source.frames()
        next(frames)
    assert list(frames) == []


@pytest.fixture(params=["basler", "gentl", "stream"])
def camera(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FrameSource]:
    """A camera that delivers frames of 104 lines, not opened yet."""
    if request.param == "basler":
        pytest.importorskip("pypylon.pylon", reason="pypylon is not installed")
        features = {"TestImageSelector": "Testimage1"}
        yield open_source(
            config.BaslerSource(serial=SERIALS[0], width=256, frame_lines=104, line_rate_hz=10_000, features=features)
        )
    elif request.param == "gentl":
        genicam = pytest.importorskip("genicam", reason="genicam is not installed")
        pytest.importorskip("harvesters.core", reason="harvesters is not installed")
        producer = Path(genicam.__file__).parent / "viky.cti"
        yield open_source(config.GentlSource(producer=producer, device=0, width=256, frame_lines=104, line_rate_hz=10_000))
    else:
        require_rtsp_server()
        for index in range(4):
            cv2.imwrite(str(tmp_path / f"{index:03d}.png"), np.full((104, 256), 60 * index, np.uint8))
        with serving(tmp_path, 100) as (port, _):
            yield open_source(config.VideoSource(url=f"rtsp://127.0.0.1:{port}/strip", frame_lines=104))


def test_a_camera_is_a_frame_source_that_waits_for_nobody(camera: FrameSource) -> None:
    with camera:
        assert isinstance(camera, FrameSource)
        assert not camera.waits


def test_frames_of_a_camera_are_grey_in_order_stamped_and_stay_as_they_were(camera: FrameSource) -> None:
    before = time.time_ns()
    with camera:
        frames = list(itertools.islice(camera.frames(), 5))
        kept = [frame.lines.copy() for frame in frames]
        width = camera.width
        later = camera.frames(frames[-1].line_stop)
        first = next(later)
    assert list(later) == []
    assert frames[0].first_line == 0
    assert first.first_line >= frames[-1].line_stop
    assert all(frame.lines.dtype == np.uint8 and frame.lines.shape == (104, width) for frame in frames)
    assert all(before.line_stop <= after.first_line for before, after in itertools.pairwise(frames))
    stamps = [before, *(frame.captured_ns for frame in frames), time.time_ns()]
    assert stamps == sorted(stamps)
    assert all(np.array_equal(frame.lines, lines) for frame, lines in zip(frames, kept, strict=True))


def test_a_camera_counts_what_it_handed_out(camera: FrameSource) -> None:
    with camera:
        handed_out = 0
        for _ in camera.frames():
            handed_out += 1
            if camera.health().frames:
                break
            time.sleep(0.01)
        health = camera.health()
    assert 0 < health.frames <= handed_out
    assert health.lines == health.frames * 104
    assert set(health.counters) >= {"camera_reconnects", "camera_missing_frames"}
