"""Stages of the data path, one by one: `pytest benchmarks/test_stages.py --benchmark-json=stages.json`, compared by
`pytest-benchmark compare`.

Each figure is the time for one frame of 256 lines of 4096 px, where nothing else is said; `megapixels` in extra_info makes
rates of it. The whole pipeline is beside its bare engine: `outside_inference` is the share of its processor time that is not the
same inferences by themselves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count

import cv2
import numpy as np
import pytest

from edge.bench.replay import Calls, HeardEngines, Stopwatch
from edge.broker import EmbeddedBroker
from edge.config import Mqtt, Scale, SimulatedDefects, StationConfig, parse_config
from edge.defects import DefectChange
from edge.engines import Engines
from edge.events import StripEvent, outgoing
from edge.frame import Frame, Lines
from edge.pipeline import Pipeline
from edge.reporting import StripContext, defect_event
from edge.ring import FrameRing
from edge.scores import classify
from edge.segmenters import MaskRows
from edge.segmenters.spans import SpanFeed
from edge.sinks.mqtt import MqttPublisher
from edge.sinks.outbox import Outbox, Progress
from edge.sources.steel_strip import SteelStrip
from edge.topics import topics_of
from edge.tracking.filters import resolve_rules
from edge.tracking.tracker import DefectTracker
from edge.window import StripWindow

WIDTH, LINES, STRIP_LINES = 4096, 256, 2048
MEGAPIXELS = WIDTH * LINES / 1e6
CLASSES = ("background", "inclusion", "patches", "scratches")
STATION = {
    "source": {"kind": "simulated", "width": WIDTH},
    "filters": {"strip_edges": {"background_below": 40}},
    "session": {"threads": 1},
}
MASKS = {"clean": 0, "5 % alarmed": 3, "dense": 60}
"""Defects of 30 x 50 px in a frame; three of them alarm 5 % of tiles of 64 x 64 px."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    cv2.setNumThreads(1)


@pytest.fixture(scope="module")
def strip() -> Lines:
    return SteelStrip(WIDTH, 20, SimulatedDefects(), Scale()).lines(0, STRIP_LINES)


@pytest.fixture(scope="module")
def config() -> StationConfig:
    return parse_config(STATION, "benchmark")


def rows_with(defects: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    mask = np.zeros((LINES, WIDTH), np.uint8)
    for _ in range(defects):
        row, column = rng.integers(0, LINES - 30), rng.integers(200, WIDTH - 250)
        mask[row : row + 30, column : column + 50] = rng.integers(1, len(CLASSES))
    return mask, np.where(mask > 0, 240, 0).astype(np.uint8)


class Tracked:
    """A tracker that gets the same frame of rows again and again, at the next place of the strip."""

    def __init__(self, config: StationConfig, strip: Lines, defects: int) -> None:
        rules = resolve_rules(config.filters, CLASSES, {}, config.scale)
        self.tracker = DefectTracker(rules, config.scale, CLASSES, "bench")
        self._image, self._planes = strip[:LINES], rows_with(defects)

    def push(self) -> list[DefectChange]:
        first = self.tracker.line
        rows = MaskRows(first, *self._planes)
        found = self.tracker.push(rows, lambda start, stop: self._image[start - first : stop - first])
        return [change for change in found if isinstance(change, DefectChange)]

    def context(self, config: StationConfig) -> StripContext:
        hashes = {"engine_hash": "e" * 64, "gate": None, "gate_hash": None, "config_hash": "c" * 64}
        return StripContext("/site/line/camera", "bench", WIDTH, config.scale, "dense", "bundle", **hashes)


@pytest.fixture
def events(config, strip) -> list[StripEvent]:
    """Of two frames with three defects each."""
    tracked = Tracked(config, strip, MASKS["5 % alarmed"])
    changes = tracked.push() + tracked.push()
    return [defect_event(tracked.context(config), change, 1, 2, b"\xff" * 3000) for change in changes]


@pytest.mark.benchmark(group="source")
def test_simulated_lines(benchmark):
    source = SteelStrip(WIDTH, 20, SimulatedDefects(), Scale())
    benchmark.extra_info["megapixels"] = MEGAPIXELS
    benchmark(source.lines, 4096, LINES)


@pytest.mark.benchmark(group="copies")
def test_frame_into_and_out_of_the_ring(benchmark, strip):
    ring = FrameRing(8, LINES, WIDTH)
    frame = Frame(strip[:LINES], 0, 0)
    benchmark.extra_info["megapixels"] = MEGAPIXELS

    def pass_through() -> None:
        ring.put(frame)
        item = ring.take()
        assert item is not None
        ring.release(item)

    benchmark(pass_through)


@pytest.mark.benchmark(group="copies")
def test_window_append(benchmark, strip):
    window = StripWindow(WIDTH, 1024)
    window.start(0)
    benchmark.extra_info["megapixels"] = MEGAPIXELS
    benchmark(window.append, strip[:LINES])


@pytest.mark.parametrize("halo", [0, 96], ids=["inside", "reflected at the sides"])
@pytest.mark.benchmark(group="copies")
def test_window_cut(benchmark, strip, halo):
    window = StripWindow(WIDTH, 1000)
    window.start(0)
    for first in range(0, 1024, LINES):
        window.append(strip[first : first + LINES])
    out = np.empty((LINES, WIDTH + 2 * halo), np.uint8)
    benchmark.extra_info["megapixels"] = MEGAPIXELS
    benchmark(window.cut, 600, 600 + LINES, -halo, WIDTH + halo, out)


@pytest.mark.benchmark(group="reduce")
def test_reduce_for_the_gate(benchmark, strip):
    out = np.empty((LINES // 2, WIDTH // 2), np.uint8)
    benchmark.extra_info["megapixels"] = MEGAPIXELS
    benchmark(cv2.resize, strip[:LINES], out.shape[::-1], out, interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize("share", [0.0, 0.02], ids=["clean", "defects"])
@pytest.mark.benchmark(group="scores")
def test_scores_to_mask(benchmark, share):
    scores = np.random.default_rng(0).normal(0, 1, (len(CLASSES), LINES, WIDTH)).astype(np.float32)
    scores[0] += np.where(np.random.default_rng(1).random((LINES, WIDTH)) < share, -9, 9)
    benchmark.extra_info["megapixels"] = MEGAPIXELS
    benchmark(classify, scores, "softmax")


@pytest.mark.parametrize("defects", MASKS.values(), ids=MASKS)
@pytest.mark.benchmark(group="tracker")
def test_tracker(benchmark, config, strip, defects):
    tracked = Tracked(config, strip, defects)
    benchmark.extra_info["megapixels"] = MEGAPIXELS
    benchmark(tracked.push)


@pytest.mark.parametrize("defects", MASKS.values(), ids=MASKS)
@pytest.mark.benchmark(group="checkpoint")
def test_tracker_checkpoint(benchmark, config, strip, defects):
    tracked = Tracked(config, strip, defects)
    tracked.push()
    benchmark.extra_info["bytes"] = len(tracked.tracker.checkpoint()[1])
    benchmark(tracked.tracker.checkpoint)


@pytest.mark.benchmark(group="events")
def test_event_of_a_defect(benchmark, config, strip):
    """One event, from the tracker's report to bytes."""
    tracked = Tracked(config, strip, MASKS["5 % alarmed"])
    change, context = tracked.push()[0], tracked.context(config)
    benchmark(lambda: outgoing(defect_event(context, change, 1, 2, b"\xff" * 3000)))


@pytest.mark.benchmark(group="events")
def test_crop_of_a_defect(benchmark, strip):
    """One crop of 192 x 192 px as JPEG."""
    benchmark(cv2.imencode, ".jpg", strip[:192, 1000:1192], [cv2.IMWRITE_JPEG_QUALITY, 85])


@pytest.mark.benchmark(group="outbox")
def test_outbox_commit(benchmark, events, tmp_path):
    """Events and progress of a frame with three defects, synced to the disk."""
    number = count()
    with Outbox(tmp_path / "outbox.db") as outbox:

        def commit() -> None:
            turn = next(number)
            fresh = [outgoing(event.model_copy(update={"id": f"{event.id}-{turn}"})) for event in events]
            outbox.commit(fresh, Progress("bench", turn, b"x" * 2000, "c", "b"))

        benchmark.extra_info["events"] = len(events)
        benchmark(commit)


@pytest.mark.benchmark(group="publish")
def test_publish_until_acknowledged(benchmark, config, events, tmp_path):
    """From the commit of a frame's events to the broker's acknowledgement of the last one."""
    number = count()
    with (
        EmbeddedBroker() as broker,
        Outbox(tmp_path / "outbox.db") as outbox,
        MqttPublisher(Mqtt(host="127.0.0.1", port=broker.port), topics_of(config), outbox) as publisher,
    ):

        def publish() -> None:
            turn, before = next(number), publisher.counters().acknowledged
            outbox.commit([outgoing(event.model_copy(update={"id": f"{event.id}-{turn}"})) for event in events])
            publisher.wake()
            while publisher.counters().acknowledged < before + len(events):
                time.sleep(0.0002)

        benchmark.extra_info["events"] = len(events)
        benchmark.pedantic(publish, rounds=20, warmup_rounds=2)


class FreeSegmenter:
    """A dense segmenter whose engine costs nothing and finds nothing: what is left is the pipeline's own."""

    def __init__(self, chunk_lines: int = 64, halo: int = 96, lag_lines: int = 96) -> None:
        self._feed = SpanFeed(WIDTH, step=chunk_lines, before=halo, after=chunk_lines - halo, delay=halo + lag_lines)
        self._halo, self._chunk = halo, np.empty((chunk_lines, WIDTH + 2 * halo), np.uint8)
        self._clean = np.zeros((chunk_lines, WIDTH), np.uint8)
        self.lag_lines = self._feed.lag_lines

    def context_lines(self, first_line: int) -> int:
        return self._feed.context_lines(first_line)

    def start(self, first_line: int, context: Lines | None = None) -> None:
        self._feed.start(first_line, context)

    def push(self, lines: Lines) -> list[MaskRows]:
        return [rows for span in self._feed.push(lines) for rows in self._rows(span)]

    def flush(self) -> list[MaskRows]:
        return [rows for span in self._feed.finish() for rows in self._rows(span)]

    def _rows(self, span: int) -> Iterator[MaskRows]:
        first, (start, stop) = span * self._feed.step - self._halo, self._feed.rows(span)
        self._feed.window.cut(first, first + len(self._chunk), -self._halo, WIDTH + self._halo, out=self._chunk)
        if stop > start:
            yield MaskRows(start, self._clean[: stop - start], self._clean[: stop - start])


def feeding(pipeline: Pipeline, strip: Lines, frame_lines: int) -> Callable[[], None]:
    """Pushes the strip's lines once through, behind those of the last time."""
    place = count(0, len(strip))

    def push() -> None:
        first_line = next(place)
        for first in range(0, len(strip), frame_lines):
            pipeline.push(Frame(strip[first : first + frame_lines], first_line + first, 1))

    return push


@pytest.mark.parametrize("frame_lines", [16, 64, 256])
@pytest.mark.benchmark(group="pipeline without an engine")
def test_pipeline_around_a_free_engine(benchmark, config, strip, frame_lines):
    """A clean strip of 2048 lines."""
    rules = resolve_rules(config.filters, CLASSES, {}, config.scale)
    tracker = DefectTracker(rules, config.scale, CLASSES, "bench")
    context = StripContext("/site/line/camera", "bench", WIDTH, config.scale, "dense", "bundle", "e", None, None, "c")
    benchmark.extra_info["megapixels"] = strip.size / 1e6
    benchmark(feeding(Pipeline(FreeSegmenter(), tracker, context, 192), strip, frame_lines))


@pytest.mark.parametrize("backend", ["ort", "openvino"])
@pytest.mark.parametrize("changes", [{}, {"mode": "cascade", "gate": "steel-gate-int8"}], ids=["dense", "cascade"])
@pytest.mark.benchmark(group="pipeline", min_rounds=3, warmup=False)
def test_whole_pipeline(benchmark, strip, changes, backend):
    """The simulated strip of 2048 lines, half a metre, through real engines: frames in, events out."""
    calls, shares = Calls(), []
    session = {"threads": 1, "backend": backend}
    config = parse_config({**STATION, "session": session, "chunk_lines": 64, **changes}, "benchmark")
    with Engines(config, "benchmark", partial(HeardEngines, calls=calls)) as engines:
        push = feeding(engines.pipeline(WIDTH, "bench"), strip, 128)
        push()

        def lap() -> None:
            calls.clear()
            watch = Stopwatch()
            push()
            whole = watch.read()
            shares.append(1 - calls.replay().cpu_s / whole.cpu_s)

        benchmark.extra_info["megapixels"] = strip.size / 1e6
        benchmark.pedantic(push, rounds=2)
        lap()
        lap()
        benchmark.extra_info["outside_inference"] = float(np.median(shares))
