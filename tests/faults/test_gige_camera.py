"""A real GigE Vision camera, by both clients: what it serves is what is inspected, and what is lost is counted exactly."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from gige_camera import CameraProcess, load
from mqtt_inbox import until
from stations import events_in, start_daemon, station, write_strip

from edge.config import GigeSource, parse_config
from edge.daemon import Daemon
from edge.errors import ConfigError, SourceError
from edge.frame import Frame, FrameSource, SourceHealth
from edge.sources import open_source
from edge.sources.gige import transports

HEIGHT, WIDTH = 50, 128
FRAMES_PER_S = 100.0
SERIAL = "RUST-EDGE-1"


@pytest.fixture
def start_camera(tmp_path: Path) -> Iterator[Callable[..., CameraProcess]]:
    """Starts the camera at 127.0.0.1, one at a time on this box, and ends it after the test."""
    if load() is None:
        pytest.skip("Aravis is not installed: apt-get install libaravis-0.8-0")
    with ExitStack() as cameras:

        def start(strip: np.ndarray, *options: object) -> CameraProcess:
            return cameras.enter_context(CameraProcess(tmp_path / "camera", strip, *options))

        yield start


@pytest.fixture(params=["aravis", "telegenicam"])
def transport(request: pytest.FixtureRequest) -> str:
    if request.param not in transports():
        pytest.skip(f"{request.param} is not installed here: docs/sources.md says how")
    return str(request.param)


def camera_keys(transport: str, **changes: Any) -> dict[str, Any]:
    keys = {
        "kind": "gige",
        "address": "127.0.0.1",
        "transport": transport,
        "frame_lines": HEIGHT,
        "width": WIDTH,
        "line_rate_hz": HEIGHT * FRAMES_PER_S,
        "packet_size": 1500,
    }
    return keys | changes


def open_camera(transport: str, **changes: Any) -> FrameSource:
    return open_source(GigeSource(**camera_keys(transport, **changes)))


def numbered_strip(frames: int) -> np.ndarray:
    """Every frame of one grey that says which one it is; none of them is a defect."""
    return np.repeat(70 + np.arange(frames, dtype=np.int64) % 100, HEIGHT).astype(np.uint8)[:, None] * np.ones(
        (1, WIDTH), np.uint8
    )


def number_in(frame: Frame) -> int:
    assert frame.lines.shape == (HEIGHT, WIDTH)
    assert (frame.lines == frame.lines[0, 0]).all()
    return int(frame.lines[0, 0]) - 70


class Watched:
    """A camera whose strip ends with the first complete frame that ends at or behind `frames` of them.

    delivered: (line on the strip, number of the frame, when it came).
    """

    def __init__(self, source: FrameSource, frames: int) -> None:
        self._source, self._frames = source, frames
        self.delivered: list[tuple[int, int, float]] = []

    @property
    def width(self) -> int:
        return self._source.width

    @property
    def waits(self) -> bool:
        return False

    def __enter__(self) -> Watched:
        self._source.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._source.__exit__(None, None, None)

    def frames(self, first_line: int = 0) -> Iterator[Frame]:
        for frame in self._source.frames(first_line):
            self.delivered.append((frame.first_line, int(frame.lines[0, 0]) - 70, time.monotonic()))
            yield frame
            if frame.line_stop >= self._frames * HEIGHT:
                return

    def health(self) -> SourceHealth:
        return self._source.health()


def closed_defects(path: Path) -> list[tuple[Any, ...]]:
    """What was closed, to the last pixel of its mask; lines are counted from the first defect's."""
    data = [event["data"] for event in events_in(path) if ".defect.closed." in event["type"]]
    first = min(each["box_px"]["line_start"] for each in data)
    columns = ("column_start", "column_stop")
    return sorted(
        (
            each["box_px"]["line_start"] - first,
            each["box_px"]["line_stop"] - first,
            *(each["box_px"][key] for key in columns),
            *(each[key] for key in ("class_name", "ending", "area_px", "fragments", "confidence_peak", "length_mm", "rle")),
        )
        for each in data
    )


def test_the_served_strip_has_the_defects_that_inspect_finds_in_the_files(tmp_path, start_camera, transport):
    strip = write_strip(tmp_path / "strip", lines=2000)
    document = station(tmp_path)
    (tmp_path / "reference.yaml").write_text(yaml.safe_dump(document))
    command = [sys.executable, "-m", "edge.cli", "inspect", str(tmp_path / "strip"), "-c", str(tmp_path / "reference.yaml")]
    subprocess.run([*command, "--events", str(tmp_path / "inspected.jsonl")], check=True, capture_output=True)
    camera = start_camera(strip, "--first-line", -30 * HEIGHT)
    daemon = start_daemon(tmp_path, document | {"source": camera_keys(transport)})
    until(lambda: camera.frames_made() > 100 or daemon.poll() is not None, "the strip has passed")
    daemon.send_signal(signal.SIGTERM)
    out, err = daemon.communicate(timeout=30)
    assert daemon.returncode == 0, err
    assert ", 0 lost, 0 shed" in out
    assert closed_defects(tmp_path / "events.jsonl") == closed_defects(tmp_path / "inspected.jsonl")


@pytest.mark.parametrize(("lost_per_1000", "first_id"), [(5, 1), (50, 65500)])
def test_of_lost_packets_the_ledger_counts_exactly_the_lines_that_did_not_come(
    tmp_path, start_camera, transport, lost_per_1000, first_id
):
    camera = start_camera(numbered_strip(1000), "--lost-per-1000", lost_per_1000, "--first-id", first_id)
    document = station(tmp_path, source=camera_keys(transport))
    source = Watched(open_camera(transport), 100)
    with Daemon(parse_config(document, "test"), "test", source=source) as daemon:
        coverage = daemon.run().coverage
    (first_line, first, _), (last_line, _, _) = source.delivered[0], source.delivered[-1]
    assert first_line == 0
    assert all((first + line // HEIGHT) % 100 == number for line, number, _ in source.delivered)
    assert coverage.total == last_line + HEIGHT <= (camera.frames_made() - first) * HEIGHT
    assert coverage.lost == coverage.total - HEIGHT * len(source.delivered) > 0
    assert coverage.inspected + coverage.shed == HEIGHT * len(source.delivered)
    counters = source.health().counters
    assert counters["camera_stale_frames"] == counters["camera_missing_frames"] == 0
    assert source.health().lost_lines == coverage.lost <= counters["camera_incomplete_frames"] * HEIGHT


def test_a_camera_killed_and_started_again_is_opened_again_and_every_line_is_accounted_for(tmp_path, start_camera, transport):
    camera = start_camera(numbered_strip(100))
    document = station(tmp_path, source=camera_keys(transport))
    source = Watched(open_camera(transport, frozen_s=0.5), 300)
    with (
        Daemon(parse_config(document, "test"), "test", source=source) as daemon,
        camera.killed_and_started_again(after_frames=90, away_s=1.0),
    ):
        coverage = daemon.run().coverage
    places = [(line // HEIGHT, number) for line, number, _ in source.delivered]
    after = next(index for index, (line, number, _) in enumerate(source.delivered) if index and number < places[index - 1][1])
    counters = source.health().counters
    assert counters["camera_reconnects"] == 1
    gap = source.delivered[after][0] - source.delivered[after - 1][0] - HEIGHT
    assert coverage.lost == gap == counters["camera_lines_lost_by_clock"]
    assert coverage.inspected + coverage.shed == HEIGHT * len(source.delivered)
    # the camera's rate on this box, as it was before it was killed
    (first_line, _, first_s), (last_line, _, last_s) = source.delivered[0], source.delivered[after - 1]
    passed = (source.delivered[after][2] - last_s) * (last_line - first_line) / (last_s - first_s)
    assert gap + HEIGHT == pytest.approx(passed, rel=0.25)


def test_a_camera_that_stops_answering_for_a_while_is_opened_again(start_camera, transport):
    start_camera(numbered_strip(1000), "--frozen-after", 20, "--frozen-s", 2.5)
    with open_camera(transport, frozen_s=0.5) as source:
        frames = source.frames()
        while source.health().counters.get("camera_reconnects", 0) == 0:
            assert number_in(next(frames)) >= 0
    assert source.health().counters["camera_frozen"] >= 1


def test_a_camera_that_waits_for_its_encoder_is_left_alone(start_camera, transport):
    start_camera(numbered_strip(1000))
    waiting = {"TriggerSelector": "FrameStart", "TriggerMode": "On", "TriggerSource": "Software"}
    with open_camera(transport, trigger="encoder", features=waiting, frozen_s=0.2) as source:
        _close_after(source, 1.0)
        assert list(source.frames()) == []
    assert source.health().counters["camera_reconnects"] == 0
    assert source.health().counters["camera_frozen"] == 0


def test_a_free_camera_that_sends_nothing_is_opened_again_and_again(start_camera, transport):
    start_camera(numbered_strip(1000))
    waiting = {"TriggerSelector": "FrameStart", "TriggerMode": "On", "TriggerSource": "Software"}
    with open_camera(transport, features=waiting, frozen_s=0.2) as source:
        _close_after(source, 1.5)
        assert list(source.frames()) == []
    assert source.health().counters["camera_reconnects"] >= 1


def test_pixels_of_16_bits_and_ids_that_begin_again_are_the_same_strip(start_camera, transport):
    camera = start_camera(numbered_strip(1000), "--first-id", 65520)
    with open_camera(transport, pixel_format="Mono16") as source:
        seen = [(frame.first_line, number_in(frame)) for _, frame in zip(range(40), source.frames(), strict=False)]
    assert [line for line, _ in seen] == list(range(0, 40 * HEIGHT, HEIGHT))
    assert [number for _, number in seen] == list(range(seen[0][1], seen[0][1] + 40))
    assert camera.frames_made() >= 40


def test_frames_stay_as_they_were_however_many_are_held(start_camera, transport):
    start_camera(numbered_strip(1000))
    with open_camera(transport, buffers=8) as source:
        held = [frame for _, frame in zip(range(40), source.frames(), strict=False)]
    numbers = [number_in(frame) for frame in held]
    assert numbers == [numbers[0] + (frame.first_line - held[0].first_line) // HEIGHT for frame in held]


def test_a_camera_that_another_program_controls_is_told(start_camera, transport):
    start_camera(numbered_strip(10))
    with open_camera(transport) as first:
        with pytest.raises(SourceError, match="control"), open_camera(transport):
            pass
        next(first.frames())
    with open_camera(transport) as second:
        next(second.frames())


NOT_THERE: list[tuple[dict[str, Any], str]] = [
    (
        {"features": {"ExposureTimeAbc": 3}},
        r"source\.features: ExposureTimeAbc: the camera has no such feature; the nearest .*ExposureTimeAbs",
    ),
    (
        {"features": {"GainRaw": 11}},
        r"source\.features: GainRaw: got 11; the camera takes whole numbers from 0 to 10; it has 0",
    ),
    ({"features": {"GainRaw": "high"}}, r"source\.features: GainRaw: got 'high'; the camera takes whole numbers"),
    ({"features": {"SensorWidth": 7}}, r"source\.features: SensorWidth: got 7, and it cannot be written now; .* 2048"),
    ({"features": {"AcquisitionMode": "Often"}}, r"AcquisitionMode: got 'Often'; the camera takes Continuous, SingleFrame"),
    ({"exposure_us": 1.0}, r"source\.exposure_us: ExposureTimeAbs: got 1\.0; the camera takes numbers from 10 to"),
    ({"width": 4096}, r"source\.width: Width: got 4096; the camera takes whole numbers from 1 to 2048"),
    ({"pixel_format": "Mono12"}, r"source\.pixel_format: PixelFormat: got 'Mono12'; the camera takes BayerBG8, .*Mono16"),
    ({"reverse_x": True}, r"source\.reverse_x: ReverseX: the camera has no such feature"),
    ({"address": None, "serial": "other"}, rf"source\.serial: got other, and no camera answers to it; there are: .*{SERIAL}"),
]


def test_what_the_camera_does_not_have_is_told_in_its_own_terms(start_camera, transport):
    start_camera(numbered_strip(10))
    for changes, told in NOT_THERE:
        with pytest.raises((ConfigError, SourceError), match=told), open_camera(transport, **changes):
            pass


def test_a_camera_found_by_its_serial_number_has_the_settings_of_the_station(start_camera, transport):
    start_camera(numbered_strip(1000))
    features = {"GainRaw": 7, "TestBoolean": True, "AcquisitionMode": "Continuous"}
    with open_camera(transport, address=None, serial=SERIAL, exposure_us=2500, features=features) as source:
        assert source.width == WIDTH
        assert number_in(next(source.frames())) >= 0


def test_where_no_camera_answers_the_address_is_told(transport):
    with (
        pytest.raises(SourceError, match=r"no GigE Vision camera answers at 127\.0\.0\.77"),
        open_camera(transport, address="127.0.0.77"),
    ):
        pass


def test_without_a_client_both_ways_to_get_one_are_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "gi", None)
    monkeypatch.setitem(sys.modules, "telegenic", None)
    with pytest.raises(SourceError, match=r"apt-get install gir1\.2-aravis-0\.8.*rust-edge\[gige\]"):
        open_camera("auto")


def test_the_command_lists_cameras_and_their_features(start_camera):
    if not transports():
        pytest.skip("no GigE Vision client is installed here: docs/sources.md says how")
    start_camera(numbered_strip(10))
    found = json.loads(_cameras("--kind", "gige", "--json"))["cameras"]
    (ours,) = [each for each in found if each["serial"] == SERIAL]
    assert (ours["address"], ours["model"], ours["width"], ours["height"]) == ("127.0.0.1", "Fake", 2048, 2048)
    assert "Mono16" in ours["pixel_formats"]
    assert "PixelFormat = Mono8  (enumeration" in _cameras("--features", "127.0.0.1")


def _cameras(*options: str) -> str:
    command = [sys.executable, "-m", "edge.cli", "cameras", *options]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def _close_after(source: FrameSource, seconds: float) -> None:
    threading.Timer(seconds, source.__exit__, (None, None, None)).start()
