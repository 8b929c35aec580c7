"""Basler cameras, against pylon's own emulator."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from emulated_basler import HEIGHT, SERIALS, WIDTH, options, serve
from stations import station

from edge.config import BaslerSource, parse_config
from edge.daemon import Daemon
from edge.errors import ConfigError, SourceError
from edge.frame import Frame
from edge.sources import open_source
from edge.sources.basler import BaslerLink, PylonFeatures, discover, features_of
from edge.sources.camera import CameraSource

pytest.importorskip("pypylon.pylon", reason="pypylon is not installed")


@pytest.fixture
def link(tmp_path: Path) -> Iterator[BaslerLink]:
    serve(tmp_path)
    link = BaslerLink(options(tmp_path), "camera")
    yield link
    link.close()


def _take(source: BaslerSource, frames: int, first_line: int = 0) -> list[Frame]:
    with open_source(source) as opened:
        return list(itertools.islice(opened.frames(first_line), frames))


def _number(images: np.ndarray, frame: Frame) -> int:
    return next(index for index, image in enumerate(images) if np.array_equal(frame.lines, image))


def test_the_images_of_the_folder_are_the_strip_each_once_and_in_order(tmp_path: Path) -> None:
    images = serve(tmp_path)
    with open_source(options(tmp_path)) as source:
        frames = list(itertools.islice(source.frames(), 20))
        lost = source.health().lost_lines
    assert [frame.first_line for frame in frames] == [HEIGHT * index for index in range(20)]
    first = _number(images, frames[0])
    assert [_number(images, frame) for frame in frames] == [(first + index) % len(images) for index in range(20)]
    assert lost == 0


def test_a_strip_taken_up_begins_at_its_line_or_behind_what_passed_by(tmp_path: Path) -> None:
    serve(tmp_path)
    first = _take(options(tmp_path), 2, 1000)[0]
    assert first.first_line >= 1000


def test_every_line_of_an_incomplete_frame_is_lost(tmp_path: Path) -> None:
    images, failed = serve(tmp_path), 3
    with open_source(options(tmp_path)) as source:
        frames = source.frames()
        taken = list(itertools.islice(frames, 4))
        camera = source._link._camera
        camera.ForceFailedBufferCount.Value = failed
        camera.ForceFailedBuffer.Execute()
        taken += itertools.islice(frames, 40)
        time.sleep(1.1)  # counters are renewed every second
        taken += itertools.islice(frames, 2)
        health = source.health()
    places = [frame.first_line // HEIGHT for frame in taken]
    missing = sorted(set(range(places[-1])) - set(places))
    assert missing == list(range(missing[0], missing[0] + failed))
    first = _number(images, taken[0])
    assert [_number(images, frame) for frame in taken] == [(first + place) % len(images) for place in places]
    assert health.lost_lines == failed * HEIGHT
    assert health.counters["camera_incomplete_frames"] == failed
    assert health.counters["camera_failed_buffer"] == failed
    assert health.counters["camera_missing_frames"] == 0


def test_the_ledger_of_a_strip_has_every_line_of_every_incomplete_frame(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "plain.png"), np.full((HEIGHT, WIDTH), 120, np.uint8))
    section = options(tmp_path / "images", line_rate_hz=50.0 * HEIGHT)
    source = open_source(section)
    document = station(tmp_path, source=section.model_dump(mode="json"))
    with Daemon(parse_config(document, "test"), "test", "s1", source=source) as daemon:
        work = threading.Thread(target=_fail_then_stop, args=(source, daemon, 5))
        work.start()
        coverage = daemon.run().coverage
        work.join()
    assert coverage.lost == 5 * HEIGHT
    assert coverage.total == coverage.inspected + coverage.lost + coverage.shed
    assert coverage.inspected > 0


def _fail_then_stop(source: CameraSource, daemon: Daemon, failed: int) -> None:
    while not source.health().frames:
        time.sleep(0.02)
    camera = source._link._camera
    camera.ForceFailedBufferCount.Value = failed
    camera.ForceFailedBuffer.Execute()
    while camera.ForcedFailedBuffersRemaining.Value:
        time.sleep(0.02)
    time.sleep(0.5)
    daemon.stop("enough")


def test_frames_have_consecutive_ids_and_pylons_statistics_are_the_links_counters(link: BaslerLink) -> None:
    grabs = [link.grab(1.0) for _ in range(5)]
    assert all(grab is not None and grab.good_lines == HEIGHT for grab in grabs)
    ids = [grab.frame_id for grab in grabs if grab is not None and grab.frame_id is not None]
    assert ids == list(range(ids[0], ids[0] + 5))
    counters = link.counters()
    assert counters["total_buffer"] >= 5
    assert (counters["failed_buffer"], counters["buffer_underrun"]) == (0, 0)


def test_a_frame_outlives_its_buffer(tmp_path: Path) -> None:
    images = serve(tmp_path)
    link = BaslerLink(options(tmp_path, buffers=4), "camera")
    try:
        first = link.grab(1.0)
        for _ in range(10):
            link.grab(1.0)
    finally:
        link.close()
    assert first is not None
    assert np.array_equal(first.lines, images[0])


def test_a_camera_answers_and_tells_its_rate(link: BaslerLink) -> None:
    link.ask()
    assert (link.width, link.height, link.last_frame_id) == (WIDTH, HEIGHT, None)
    assert link.line_rate_hz == pytest.approx(200.0 * HEIGHT)


def test_levels_of_more_bits_are_cut_to_the_8_highest() -> None:
    import pypylon.pylon as pylon

    device = pylon.DeviceInfo()
    device.SetSerialNumber(SERIALS[0])
    camera = pylon.InstantCamera(pylon.TlFactory.GetInstance().CreateDevice(device))
    camera.Open()
    camera.PixelFormat.Value, camera.Width.Value, camera.Height.Value = "Mono12", WIDTH, HEIGHT
    camera.TestImageSelector.Value = "Testimage1"
    with camera.GrabOne(1000) as result:
        levels = result.Array
    camera.Close()
    lines = _take(options(pixel_format="Mono12", features={"TestImageSelector": "Testimage1"}), 1)[0].lines
    assert levels.dtype == np.uint16
    # a ramp that moves on with every frame
    assert np.array_equal(np.unique(levels >> 4), np.unique(lines))
    assert lines.max() > 200


def test_a_software_trigger_gives_one_frame_a_grab(tmp_path: Path) -> None:
    images = serve(tmp_path)
    link = BaslerLink(options(tmp_path, trigger="software", line_rate_hz=None), "camera")
    try:
        grabs = [link.grab(1.0)]
        time.sleep(0.2)  # a free-running camera would be many frames on
        grabs += [link.grab(1.0) for _ in range(3)]
    finally:
        link.close()
    assert [grab is not None and np.array_equal(grab.lines, images[index]) for index, grab in enumerate(grabs)] == [True] * 4


def test_a_camera_behind_a_standing_encoder_is_silent_and_not_opened_again(tmp_path: Path) -> None:
    standing = options(tmp_path, trigger="encoder", trigger_source="Line1", line_rate_hz=None, frozen_s=0.2)
    link = BaslerLink(standing, "camera")
    try:
        assert link.grab(0.3) is None
        link.ask()
        features = PylonFeatures(link._camera.GetNodeMap())
        told = {name: getattr(features.feature(name), "value", None) for name in ("TriggerMode", "TriggerSource")}
    finally:
        link.close()
    assert told == {"TriggerMode": "On", "TriggerSource": "Line1"}


def test_a_free_camera_forgets_the_trigger_of_the_station_before(tmp_path: Path) -> None:
    serve(tmp_path)
    BaslerLink(options(tmp_path, trigger="encoder", trigger_source="Line1", line_rate_hz=None), "camera").close()
    assert len(_take(options(tmp_path), 3)) == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 5000}, ["source.width: Width: got 5000", "from 1 to 4096"]),
        ({"frame_lines": 5000, "line_rate_hz": None}, ["source.frame_lines: Height: got 5000"]),
        ({"exposure_us": 1e9}, ["source.exposure_us: ExposureTime: got 1000000000.0"]),
        ({"pixel_format": "Mono12p"}, ["source.pixel_format: PixelFormat: got 'Mono12p'", "Mono8, Mono10, Mono12"]),
        ({"features": {"GainRow": 1}}, ["source.features: GainRow", "GainRaw"]),
        ({"features": {"GainRaw": "much"}}, ["source.features: GainRaw: got 'much'", "whole numbers"]),
        ({"features": {"GainRaw": 100_000}}, ["source.features: GainRaw: got 100000"]),
        (
            {"trigger": "encoder", "trigger_source": "Encoder0", "line_rate_hz": None},
            ["source.trigger_source", "Encoder0", "Line1"],
        ),
        (
            {"trigger": "encoder", "trigger_source": "Line1", "trigger_selector": "LineEnd", "line_rate_hz": None},
            ["source.trigger_selector", "LineEnd", "FrameStart"],
        ),
    ],
)
def test_a_setting_that_the_camera_does_not_take_is_told_in_its_own_terms(changes: dict, words: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        BaslerLink(options(**changes), "camera")
    assert [word for word in words if word not in str(raised.value)] == []


def test_settings_are_in_the_camera_afterwards() -> None:
    link = BaslerLink(options(exposure_us=500, features={"GainRaw": 200, "Gamma": 0.5, "ReverseX": True}), "camera")
    features = PylonFeatures(link._camera.GetNodeMap())
    told = {
        name: getattr(features.feature(name), "value", None) for name in ("ExposureTime", "GainRaw", "Gamma", "ReverseX", "Width")
    }
    link.close()
    assert told == {
        "ExposureTime": 500.0,
        "GainRaw": 200,
        "Gamma": pytest.approx(0.5, abs=1e-3),
        "ReverseX": True,
        "Width": WIDTH,
    }


def test_a_camera_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(SourceError, match=r"basler 77: not there; pylon finds Emulation 0815-0000, Emulation 0815-0001"):
        open_source(BaslerSource(serial="77")).__enter__()


def test_one_of_several_cameras_has_to_be_named() -> None:
    with pytest.raises(SourceError, match=r"got 2 cameras.*expected serial or name of one"):
        open_source(BaslerSource()).__enter__()


def test_cameras_that_answer_are_found_with_what_they_can() -> None:
    found = discover()
    assert tuple(each.serial for each in found) == SERIALS
    assert {(each.transport, each.vendor, each.model, each.width, each.height, each.problem) for each in found} == {
        ("basler", "Basler", "Emulation", 4096, 4096, "")
    }
    assert {"Mono8", "Mono12"} <= set(found[0].pixel_formats)


def test_features_are_listed_with_what_they_take() -> None:
    features = {feature.name: feature for feature in features_of(SERIALS[1])}
    assert (features["Width"].kind, features["Width"].most) == ("integer", 4096)
    assert "Software" in features["TriggerSource"].choices
    with pytest.raises(SourceError, match="no camera answers"):
        features_of("77")
