"""What all cameras share: where frames lie on a strip, and when a camera is opened again. The link here is a script."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stations import station

from edge.config import parse_config
from edge.daemon import Daemon
from edge.errors import ConfigError, SourceError
from edge.frame import FrameSource
from edge.sources.camera import CameraOptions, CameraSource, FrameCount, Grab, StripPlace
from edge.sources.pixel_formats import PIXEL_FORMATS

HEIGHT, WIDTH = 10, 8
Step = Grab | Exception | Callable[[], object]


def complete(frame_id: int | None, grey: int = 0, good_lines: int = HEIGHT) -> Grab:
    return Grab(np.full((HEIGHT, WIDTH), grey, np.uint8), frame_id, good_lines, time.time_ns())


def nothing_of(frame_id: int | None) -> Grab:
    return Grab(None, frame_id, 0, time.time_ns())


class Script:
    """A link that delivers what it is told to, then nothing."""

    def __init__(self, steps: Iterable[Step] = (), width: int = WIDTH, answers: bool = True) -> None:
        self.width, self.height, self.last_frame_id, self.line_rate_hz = width, HEIGHT, 65535, None
        self._steps, self._answers = deque(steps), answers
        self.asked = self.closed = 0

    def grab(self, timeout_s: float) -> Grab | None:
        if not self._steps or not timeout_s:
            time.sleep(min(timeout_s, 0.005))
            return None
        step = self._steps.popleft()
        if isinstance(step, Exception):
            raise step
        return step if isinstance(step, Grab) else step()

    def ask(self) -> None:
        self.asked += 1
        if not self._answers:
            raise SourceError("does not answer")

    def counters(self) -> dict[str, int]:
        return {"resent_packets": 3}

    def close(self) -> None:
        self.closed += 1


def source_of(*links: Script | Exception, **options: object) -> CameraSource:
    left = list(links)

    def open_link() -> Script:
        link = left.pop(0)
        if isinstance(link, Exception):
            raise link
        return link

    return CameraSource(open_link, CameraOptions("script", **options))


def placed(steps: Iterable[tuple[float, Grab]], place: StripPlace) -> list[tuple[int, int]]:
    frames = [place.take(grab, now_s) for now_s, grab in steps]
    return [(frame.first_line, frame.line_stop) for frame in frames if frame is not None]


def new_place(first_line: int = 0, rate_hz: float | None = None) -> StripPlace:
    place = StripPlace(first_line, rate_hz, 0.0)
    place.begin_link(HEIGHT, 65535, None)
    return place


@given(
    first_id=st.integers(1, 65535),
    broken_id=st.integers(0, 65535),
    fates=st.lists(st.sampled_from(["whole", "whole", "incomplete", "missing", "half", "twice"]), min_size=1, max_size=40),
)
def test_every_frame_lies_where_its_id_says_whatever_became_of_the_others(
    first_id: int, broken_id: int, fates: list[str]
) -> None:
    place, delivered, expected, begun = new_place(), [], [], None
    for index, fate in enumerate(fates):
        frame_id = (first_id - 1 + index) % 65535 + 1
        if fate == "missing":
            continue
        if fate != "incomplete":
            begun = index if begun is None else begun
        grabs = {
            "whole": [complete(frame_id)],
            "twice": [complete(frame_id), complete(frame_id)],
            "half": [complete(frame_id, good_lines=4)],
            # its first packet is lost, and with it its id
            "incomplete": [nothing_of(broken_id)],
        }[fate]
        delivered += placed([(0.0, grab) for grab in grabs], place)
        if fate != "incomplete":
            first_line = (index - begun) * HEIGHT
            expected.append((first_line, first_line + (4 if fate == "half" else HEIGHT)))
    assert delivered == expected
    assert place.lines_lost == place.line - sum(stop - start for start, stop in expected)
    assert place.stale_frames == fates.count("twice")
    assert place.incomplete_frames == fates.count("incomplete") + fates.count("half")


def test_ids_of_64_bits_do_not_begin_again() -> None:
    count = FrameCount(None)
    assert [count.step(frame_id) for frame_id in (65534, 65535, 65536, 70000)] == [1, 1, 1, 4464]


def test_ids_of_16_bits_begin_again_at_1() -> None:
    count = FrameCount(65535)
    assert [count.step(frame_id) for frame_id in (65534, 65535, 1, 3, 2, 65535)] == [1, 1, 1, 2, -1, -3]


def test_without_ids_each_grab_is_the_next_frame() -> None:
    assert placed([(0.0, complete(None)), (0.0, nothing_of(None)), (0.0, complete(None))], new_place()) == [(0, 10), (20, 30)]


def test_lines_between_two_connections_are_counted_by_the_clock_and_the_rate_that_was_measured() -> None:
    place = new_place(rate_hz=90.0)
    # 100 lines/s, not 90 as the station file has it
    placed([(index / 10, complete(index + 1)) for index in range(40)], place)
    place.begin_link(HEIGHT, 65535, None)
    assert placed([(3.9 + 1.2, complete(1))], place) == [(400 + 120 - HEIGHT, 400 + 120)]
    assert place.lines_lost == place.lines_lost_by_clock == 110


def test_the_rate_of_the_station_file_counts_until_one_is_measured() -> None:
    place = new_place(rate_hz=100.0)
    placed([(0.0, complete(1)), (0.05, complete(2))], place)
    place.begin_link(HEIGHT, 65535, None)
    assert placed([(1.05, complete(77))], place) == [(110, 120)]


def test_a_gap_whose_length_cannot_be_known_is_told() -> None:
    place = new_place()
    placed([(0.0, complete(1))], place)
    place.begin_link(HEIGHT, 65535, None)
    assert placed([(9.0, complete(1))], place) == [(10, 20)]
    assert place.gaps_unknown == 1


def test_a_strip_begins_with_the_first_frame_that_came_however_late() -> None:
    place = new_place(rate_hz=100.0)
    assert placed([(99.0, complete(4711))], place) == [(0, 10)]


def test_a_resumed_strip_counts_what_passed_until_its_first_frame() -> None:
    place = new_place(first_line=500, rate_hz=100.0)
    assert placed([(1.0, complete(4711))], place) == [(590, 600)]


def test_good_lines_beyond_those_received_are_refused() -> None:
    with pytest.raises(ValueError, match="good_lines: got 3 of 0 lines"):
        Grab(None, 1, 3, 0)


def test_is_a_frame_source_that_waits_for_nobody() -> None:
    with source_of(Script()) as source:
        assert isinstance(source, FrameSource)
        assert not source.waits


def test_a_lost_camera_is_opened_again_until_it_is_back() -> None:
    first, second = Script([complete(1, 11), SourceError("gone")]), Script([complete(1, 22)])
    with source_of(first, SourceError("no answer"), ConfigError("half booted"), second) as source:
        frames = source.frames()
        assert [int(next(frames).lines[0, 0]) for _ in range(2)] == [11, 22]
    assert (first.closed, second.closed) == (1, 1)
    health = source.health()
    assert (health.frames, health.lines) == (2, 2 * HEIGHT)
    assert health.counters["camera_reconnects"] == 1
    assert health.counters["camera_resent_packets"] == 6


def test_a_camera_that_is_not_there_at_first_is_told_at_once() -> None:
    with pytest.raises(SourceError, match="no answer"), source_of(SourceError("no answer")):
        pass


def test_a_camera_that_comes_back_with_another_width_is_not_taken() -> None:
    other, same = Script([complete(1)], width=WIDTH + 1), Script([complete(1, 33)])
    with source_of(Script([SourceError("gone")]), other, same) as source:
        assert next(source.frames()).lines[0, 0] == 33
    assert other.closed == 1


def test_a_frozen_camera_is_opened_again() -> None:
    frozen, other = Script([complete(1)]), Script([complete(1, 44)])
    with source_of(frozen, other, frozen_s=0.1) as source:
        frames = source.frames()
        assert [int(next(frames).lines[0, 0]) for _ in range(2)] == [0, 44]
    assert source.health().counters["camera_frozen"] == 1
    assert frozen.closed == 1


def test_a_camera_that_sends_the_same_frame_for_ever_is_frozen() -> None:
    def again() -> Grab:
        time.sleep(0.005)
        return complete(7)

    stuck, other = Script([again] * 1000), Script([complete(1, 55)])
    with source_of(stuck, other, frozen_s=0.1, trigger="encoder") as source:
        frames = source.frames()
        assert [int(next(frames).lines[0, 0]) for _ in range(2)] == [0, 55]
    assert source.health().counters["camera_stale_frames"] > 0


def test_a_camera_of_which_only_parts_come_is_opened_again() -> None:
    def part() -> Grab:
        time.sleep(0.005)
        return nothing_of(0)

    bad, other = Script([complete(1), *[part] * 1000]), Script([complete(1, 88)])
    with source_of(bad, other, frozen_s=0.1) as source:
        frames = source.frames()
        assert [int(next(frames).lines[0, 0]) for _ in range(2)] == [0, 88]
    assert source.health().counters["camera_incomplete_frames"] > 0


def test_a_stopped_line_is_no_fault_while_the_camera_answers() -> None:
    silent = Script([complete(1), *[lambda: time.sleep(0.01)] * 40, nothing_of(2), complete(3, 66)])
    with source_of(silent, frozen_s=0.1, trigger="encoder") as source:
        assert [frame for _, frame in zip(range(2), source.frames(), strict=False)][1].first_line == 2 * HEIGHT
    assert silent.asked > 0
    assert source.health().counters["camera_reconnects"] == 0


def test_a_stopped_line_hides_no_camera_that_is_gone() -> None:
    gone, other = Script([complete(1)], answers=False), Script([complete(1, 77)])
    with source_of(gone, other, frozen_s=0.1, trigger="encoder") as source:
        frames = source.frames()
        assert [int(next(frames).lines[0, 0]) for _ in range(2)] == [0, 77]
    assert gone.asked == 1


def test_a_source_that_is_closed_while_its_camera_is_silent_ends_its_frames() -> None:
    link = Script([complete(1), *[lambda: time.sleep(0.01)] * 1000])
    with source_of(link) as source:
        frames = source.frames()
        next(frames)
        closing = threading.Timer(0.05, source.__exit__, (None, None, None))
        closing.start()
        assert list(frames) == []
        closing.join()
    assert link.closed == 1


def test_a_daemon_whose_camera_is_silent_ends_when_it_is_stopped(tmp_path) -> None:
    silent = Script([lambda: time.sleep(0.01)] * 1000, width=64)
    source = source_of(silent, trigger="encoder")
    with Daemon(
        parse_config(station(tmp_path, source={"kind": "simulated", "width": 64}), "test"), "test", source=source
    ) as daemon:
        threading.Timer(0.2, daemon.stop, ("enough",)).start()
        summary = daemon.run()
        assert not any(thread.name == "capture" for thread in threading.enumerate())
    assert summary.interrupted
    assert silent.closed == 1


@pytest.mark.parametrize(
    ("name", "data", "grey"),
    [
        ("Mono8", [1, 2, 250, 4], [1, 2, 250, 4]),
        ("Mono10", [0xFF, 0x03, 0x04, 0x00], [255, 1]),
        ("Mono12", [0xFF, 0x0F, 0x10, 0x00], [255, 1]),
        ("Mono16", [0x99, 0xFF, 0x99, 0x01], [255, 1]),
        ("Mono10Packed", [0xAB, 0x33, 0xCD], [0xAB, 0xCD]),
        ("Mono12Packed", [0xAB, 0xFF, 0xCD], [0xAB, 0xCD]),
    ],
)
def test_the_eight_highest_bits_of_each_pixel_are_kept(name: str, data: list[int], grey: list[int]) -> None:
    lines = PIXEL_FORMATS[name].lines(np.array(data, np.uint8), 1, len(grey))
    assert lines.tolist() == [grey]


@pytest.mark.parametrize(("name", "bits"), [("Mono10p", 10), ("Mono12p", 12)])
@given(seed=st.integers(0, 2**32 - 1))
def test_pixels_packed_bit_by_bit_are_found_again(name: str, bits: int, seed: int) -> None:
    lines, width = 3, 7
    pixels = np.random.default_rng(seed).integers(0, 1 << bits, lines * width)
    stream = sum(int(pixel) << (bits * index) for index, pixel in enumerate(pixels))
    data = np.frombuffer(stream.to_bytes(PIXEL_FORMATS[name].bytes_of(lines, width), "little"), np.uint8)
    assert np.array_equal(PIXEL_FORMATS[name].lines(data, lines, width).reshape(-1), pixels >> (bits - 8))
