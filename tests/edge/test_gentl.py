"""Cameras through a GenTL producer, against the one that comes with the genicam package: three simulated cameras."""

from __future__ import annotations

import itertools
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.config import GentlSource
from edge.errors import ConfigError, SourceError
from edge.frame import Frame
from edge.sources import open_source
from edge.sources.gentl import GenapiFeatures, GentlLink, discover, features_of

genicam = pytest.importorskip("genicam", reason="genicam is not installed")
pytest.importorskip("harvesters.core", reason="harvesters is not installed")

PRODUCER = Path(genicam.__file__).parent / "viky.cti"
HEIGHT, WIDTH = 100, 120


def _options(**changes: Any) -> GentlSource:
    told = {
        "producer": PRODUCER,
        "device": "VikyTL_DEV_red",
        "width": WIDTH,
        "frame_lines": HEIGHT,
        "line_rate_hz": 200.0 * HEIGHT,
    }
    return GentlSource(**{**told, **changes})


def _take(source: GentlSource, frames: int) -> list[Frame]:
    with open_source(source) as opened:
        return list(itertools.islice(opened.frames(), frames))


def test_frames_of_a_camera_follow_each_other() -> None:
    frames = _take(_options(), 12)
    assert {frame.lines.shape for frame in frames} == {(HEIGHT, WIDTH)}
    assert [frame.first_line for frame in frames] == [HEIGHT * index for index in range(12)]


def test_frames_show_what_moves_and_stay_as_they_were() -> None:
    link = GentlLink(_options(buffers=4), "camera")
    try:
        first = link.grab(1.0)
        assert first is not None
        kept = np.copy(first.lines)
        later = [link.grab(1.0) for _ in range(12)]
    finally:
        link.close()
    assert np.array_equal(first.lines, kept)
    assert any(grab is not None and not np.array_equal(grab.lines, kept) for grab in later)
    assert len(np.unique(kept)) > 1


def test_frames_that_found_no_buffer_are_lost_lines() -> None:
    with open_source(_options(buffers=4)) as source:
        frames = source.frames()
        taken = [next(frames)]
        time.sleep(0.3)
        taken += itertools.islice(frames, 8)
        time.sleep(1.0)
        taken += itertools.islice(frames, 2)
        health = source.health()
    gaps = sum(after.first_line - before.line_stop for before, after in itertools.pairwise(taken))
    assert gaps > 0
    assert gaps % HEIGHT == 0
    assert health.lost_lines == gaps
    assert health.counters["camera_missing_frames"] * HEIGHT == gaps
    assert health.counters["camera_delivered"] > 0


@pytest.mark.parametrize("device", ["VikyTL_DEV_blue", "2", 2])
def test_a_camera_is_found_by_id_serial_number_or_place(device: str | int) -> None:
    link = GentlLink(_options(device=device), "camera")
    serial = link._acquirer.device.module.id_
    link.close()
    assert serial == "VikyTL_DEV_blue"


def test_two_cameras_of_one_producer_work_at_once_and_one_may_go() -> None:
    with open_source(_options(device="VikyTL_DEV_green")) as green:
        of_green = green.frames()
        next(of_green)
        for _ in range(2):
            assert len(_take(_options(device="VikyTL_DEV_red"), 3)) == 3
        assert next(of_green).lines.shape == (HEIGHT, WIDTH)


def test_a_camera_in_use_is_no_camera_for_a_second_one() -> None:
    with open_source(_options()), pytest.raises(SourceError, match=r"gentl VikyTL_DEV_red: .*in use"):
        open_source(_options()).__enter__()


def test_waiting_for_a_frame_leaves_other_threads_their_time() -> None:
    link = GentlLink(_options(line_rate_hz=2.0 * HEIGHT, frozen_s=10), "camera")
    turns, over = 0, threading.Event()

    def turn() -> None:
        nonlocal turns
        while not over.wait(0.005):
            turns += 1

    other = threading.Thread(target=turn)
    try:
        link.grab(2.0)
        other.start()
        link.grab(0.5)
    finally:
        over.set()
        other.join()
        link.close()
    assert turns > 30  # of 100; a driver that waits with the interpreter's lock leaves 5


def test_ctrl_c_stays_with_whoever_had_it() -> None:
    before = signal.getsignal(signal.SIGINT)
    GentlLink(_options(), "camera").close()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_camera_answers_and_tells_its_rate() -> None:
    link = GentlLink(_options(line_rate_hz=50.0 * HEIGHT), "camera")
    try:
        link.ask()
        told = link.width, link.height, link.last_frame_id, link.line_rate_hz
    finally:
        link.close()
    assert told == (WIDTH, HEIGHT, None, 50.0 * HEIGHT)


def test_settings_are_in_the_camera_afterwards() -> None:
    link = GentlLink(
        _options(features={"BouncingBallSize": 30, "ComponentSelector": "Range", "ComponentEnable": False}), "camera"
    )
    features = GenapiFeatures(link._acquirer.remote_device.node_map)
    told = {name: getattr(features.feature(name), "value", None) for name in ("BouncingBallSize", "ComponentSelector", "Width")}
    link.close()
    assert told == {"BouncingBallSize": 30, "ComponentSelector": "Range", "Width": WIDTH}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 900}, ["source.width: Width: got 900", "from 100 to 800"]),
        ({"pixel_format": "Mono12"}, ["source.pixel_format: PixelFormat: got 'Mono12'", "RGBa8, Mono8"]),
        ({"exposure_us": 10.0}, ["source.exposure_us: ExposureTime: the camera has no such feature"]),
        ({"line_rate_hz": 1e6}, ["source.line_rate_hz: AcquisitionFrameRate: got 10000.0", "to 200"]),
        ({"features": {"BouncingBalSize": 1}}, ["source.features: BouncingBalSize", "BouncingBallSize"]),
        ({"trigger": "software", "line_rate_hz": None}, ["source.trigger: got software", "expected free"]),
        ({"producer": Path("none.cti")}, ["source.producer: none.cti does not exist"]),
        ({"producer": Path(__file__)}, ["source.producer:", "is no GenTL producer for this machine"]),
    ],
)
def test_a_setting_that_cannot_be_is_told_in_the_cameras_own_terms(changes: dict, words: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        open_source(_options(**changes)).__enter__()
    assert [word for word in words if word not in str(raised.value)] == []


def test_cameras_that_are_not_there_or_several_are_told_with_those_that_are() -> None:
    with pytest.raises(SourceError, match=r"gentl 77: not there; .*VikyTL_DEV_red.*VikyTL_DEV_blue"):
        open_source(_options(device="77")).__enter__()
    with pytest.raises(SourceError, match=r"gentl: source.device: got 3 cameras, .*expected id, serial number or place of one"):
        open_source(_options(device=None)).__enter__()


def test_cameras_of_installed_producers_are_found_with_what_they_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.cti").write_text("no library")
    shutil.copy(PRODUCER, tmp_path / "viky.cti")
    for library in PRODUCER.parent.glob("*.so"):
        (tmp_path / library.name).symlink_to(library)
    monkeypatch.setenv("GENICAM_GENTL64_PATH", str(tmp_path))
    broken, *found = discover()
    assert "is no GenTL producer" in broken.problem
    assert [each.serial for each in found] == ["0", "1", "2"]
    assert {(each.transport, each.model, each.width, each.height) for each in found} == {("gentl", "Viky", 800, 800)}
    assert found[0].pixel_formats == ("RGBa8", "Mono8")
    assert "BouncingBallSize" in [feature.name for feature in features_of("VikyTL_DEV_green")]
    with pytest.raises(SourceError, match="no camera answers"):
        features_of("77")
