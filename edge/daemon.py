"""Where threads meet: capture -> bounded ring -> inference -> short handover -> judgement -> publisher.

    capture thread     takes frames from the source; one that can wait waits for room, a camera's excess is shed
    inference thread   the pipeline's segmentation: frames in, finished rows out
    judgement          the thread that calls `run`: the pipeline's other half, then events and progress into the outbox in
                       one transaction, while inference is at the next lines
    publisher thread   from the outbox to the broker; never waited for

A stage that dies ends the daemon with its error: capture's and inference's when what came before is committed, the
publisher's at the next rows. What was committed is taken up by the next start.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from types import TracebackType

from edge.config import StationConfig
from edge.engines import Engines
from edge.errors import RustEdgeError, StageError
from edge.events import HealthData, OutboxHealth, StripEvent, outgoing, payload_of
from edge.fallback import NO_FALLBACK, Fallback
from edge.frame import FrameSource
from edge.handover import Handover
from edge.ledger import Coverage
from edge.pipeline import Checkpoint, Pipeline, Segmented
from edge.reporting import coverage_data, fallback_stretches, health_event
from edge.ring import FrameRing, RingItem
from edge.sinks import EventSink
from edge.sinks.csv import CsvSink
from edge.sinks.jsonl import JsonlSink
from edge.sinks.mqtt import MqttPublisher
from edge.sinks.outbox import Outbox, Progress
from edge.sources import open_source
from edge.throughput import Throughput
from edge.topics import topics_of
from edge.tracking.tracker import STATE_VERSION

_log = logging.getLogger(__name__)

COMMIT_LINES = 4096
"""Progress is committed at least this often, events or not: what a restart has to look at again."""
HEALTH_EVERY_S = 5.0
PORTIONS_AHEAD = 4
"""How far inference runs ahead of judgement: enough for it to go on while a commit waits for the disk, some ms."""
_IDLE_S = 0.5


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run of the daemon did. interrupted: it was stopped before the source's end."""

    strip_id: str
    coverage: Coverage
    interrupted: bool
    fallback: Fallback = NO_FALLBACK


class Daemon:
    """A station at work on one strip, from its source to its sinks. A context manager around `run`.

    origin: names the station file in errors. strip_id: None resumes an unfinished strip of this station, or makes an id
    from camera and time. observe: called from the thread of `run` with the counters, every `observe_every_s`.
    source, engines: taken in place of those that the file describes, a source of as many lines a frame; opened and closed here.
    Raises the errors of the parts it opens.
    """

    def __init__(
        self,
        config: StationConfig,
        origin: str,
        strip_id: str | None = None,
        observe: Callable[[HealthData], None] | None = None,
        observe_every_s: float = HEALTH_EVERY_S,
        source: FrameSource | None = None,
        engines: Engines | None = None,
    ) -> None:
        self._config, self._origin, self._asked_id = config, origin, strip_id
        self._observe, self._observe_every_s = observe, observe_every_s
        self._given_source, self._given_engines = source, engines
        self._strip_id = ""
        self._hash = ""
        self._stop = threading.Event()
        self._stop_reason = "finished"
        self._failures: dict[str, BaseException] = {}
        self._opened = ExitStack()

    def __enter__(self) -> Daemon:
        config = self._config
        with ExitStack() as opening:
            self._engines = opening.enter_context(self._given_engines or Engines(config, self._origin))
            self._hash = _resume_hash(self._engines.config_hash, config)
            self._outbox = opening.enter_context(Outbox(config.outbox.path, config.outbox.max_mb, config.outbox.max_age_h))
            self._files: list[EventSink] = []
            if config.sinks.jsonl:
                self._files.append(opening.enter_context(JsonlSink(config.sinks.jsonl)))
            if config.sinks.csv:
                self._files.append(opening.enter_context(CsvSink(config.sinks.csv)))
            self._source_opened = opening.enter_context(ExitStack())
            source = self._given_source or open_source(config.source, config.scale)
            self._source = self._source_opened.enter_context(source)
            self._publisher: MqttPublisher | None = None
            if config.sinks.mqtt:
                self._publisher = publisher = MqttPublisher(config.sinks.mqtt, topics_of(config), self._outbox)
                publisher.start()
                opening.callback(lambda: publisher.stop(self._stop_reason))
            self._opened = opening.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            self._stop_reason = f"failed: {error}"
        self._opened.close()

    def stop(self, reason: str) -> None:
        """Ask `run` to close the strip and return; safe from a signal handler, harmless a second time."""
        if not self._stop.is_set():
            self._stop_reason = reason
            self._stop.set()

    @property
    def strip_id(self) -> str | None:
        """The strip at work; None as long as its pipeline could not be made."""
        return self._strip_id or None

    def run(self) -> Summary:
        """Inspect until the source ends or `stop` is called. Raises the error of the stage that died."""
        strip_id, checkpoint = self._take_up()
        pipeline = self._engines.pipeline(self._source.width, strip_id)
        first_line = self._resume(pipeline, checkpoint) if checkpoint else 0
        # frames stay in the ring until they are judged: those on their way leave its `queue_frames` to capture
        frames = self._config.queue_frames + PORTIONS_AHEAD
        ring = FrameRing(frames, self._config.source.frame_lines, self._source.width)
        handover: Handover[tuple[Segmented, RingItem]] = Handover(PORTIONS_AHEAD)
        capture = threading.Thread(target=self._capture, args=(ring, first_line), name="capture", daemon=True)
        inference = threading.Thread(target=self._infer, args=(ring, pipeline, handover), name="inference", daemon=True)
        self._begin(strip_id, pipeline, ring)
        capture.start()
        inference.start()
        try:
            self._judge(handover)
        finally:
            ring.close()
            handover.close()
            inference.join()
            self._source_opened.close()
            capture.join(timeout=5.0)
        for stage, error in self._failures.items():
            raise stage_error(stage, error) from error
        interrupted = self._stop.is_set()
        self._keep(pipeline.finish(ring.shed_at_end(), interrupted).events, finished=True)
        self._report_health(force=True)
        return Summary(strip_id, pipeline.coverage, interrupted, pipeline.fallback)

    def _begin(self, strip_id: str, pipeline: Pipeline, ring: FrameRing) -> None:
        self._strip_id, self._pipeline, self._ring = strip_id, pipeline, ring
        self._committed_line = pipeline.judgement.line_stop
        self._throughput = Throughput()
        self._began_s = self._health_s = time.monotonic()

    def _take_up(self) -> tuple[str, Checkpoint | None]:
        """The strip to work on: an unfinished one that this station can go on with, else a new one."""
        left = self._outbox.unfinished_strip()
        fresh = self._asked_id or f"{self._config.camera}-{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}"
        if left is None:
            return fresh, None
        same = left.config_hash == self._hash and left.bundle_hash == self._engines.sha256
        if same and self._asked_id in (None, left.strip_id):
            _log.info("strip %s: going on from line %d", left.strip_id, left.resume_line)
            return left.strip_id, Checkpoint(left.resume_line, left.state)
        why = f"strip {self._asked_id} is wanted" if same else "its station file, its bundle or rust-edge has changed"
        _log.warning("strip %s was left unfinished at line %d and is given up: %s", left.strip_id, left.resume_line, why)
        given_up = Progress(left.strip_id, left.resume_line, left.state, left.config_hash, left.bundle_hash, finished=True)
        self._outbox.commit([], given_up)
        return fresh, None

    def _resume(self, pipeline: Pipeline, checkpoint: Checkpoint) -> int:
        """The line to take frames from; a camera's lines since the last commit have passed and are lost."""
        first_line = pipeline.resume(checkpoint)
        if self._source.waits:
            return first_line
        passed_s = max(0.0, (time.time_ns() - checkpoint.captured_ns) / 1e9)
        return checkpoint.line + round(passed_s * (self._config.source.line_rate_hz or 0.0))

    def _capture(self, ring: FrameRing, first_line: int) -> None:
        take = ring.put if self._source.waits else ring.offer
        try:
            for frame in self._source.frames(first_line):
                if self._stop.is_set() or not take(frame):
                    break
        except BaseException as error:
            self._failures["capture"] = error
        finally:
            ring.close()

    def _infer(self, ring: FrameRing, pipeline: Pipeline, handover: Handover[tuple[Segmented, RingItem]]) -> None:
        try:
            while not ring.drained:
                if (item := ring.take(_IDLE_S)) is None:
                    if self._stop.is_set():
                        # of a camera that is silent no frame comes that would end capture
                        ring.close()
                    continue
                for segmented in pipeline.segmentation.push(item.frame, item.shed_lines):
                    if not handover.put((segmented, item)):
                        return
        except BaseException as error:
            self._failures["inference"] = error
        finally:
            handover.close()
            ring.close()

    def _judge(self, handover: Handover[tuple[Segmented, RingItem]]) -> None:
        while not handover.drained:
            events: list[StripEvent] = []
            for segmented, item in handover.take_all(_IDLE_S):
                events += self._pipeline.judgement.judge(segmented).events
                if segmented.line_stop == item.frame.line_stop:
                    self._throughput.add(len(item.frame.lines))
                    self._ring.release(item)
            self._keep(events)
            self._report_health()
            if self._publisher and self._publisher.failure:
                raise stage_error("publisher", self._publisher.failure) from self._publisher.failure

    def _keep(self, found: Sequence[StripEvent], finished: bool = False) -> None:
        """Events and progress, on disk in one transaction, then to the files and the publisher."""
        line = self._pipeline.judgement.line_stop
        if not (found or finished or line - self._committed_line >= COMMIT_LINES):
            return
        events = [outgoing(event) for event in found]
        checkpoint = self._pipeline.checkpoint()
        progress = Progress(self._strip_id, checkpoint.line, checkpoint.state, self._hash, self._engines.sha256, finished)
        # the files first: killed in between, they hold some events twice, and none is missing
        for sink in self._files:
            sink.emit(events)
            if finished:
                sink.flush()
        # without a broker nobody would ever fetch events from the outbox: then it holds progress alone
        self._outbox.commit(events if self._publisher else [], progress)
        self._committed_line = line
        if self._publisher and events:
            self._publisher.wake()

    def _report_health(self, force: bool = False) -> None:
        now_s = time.monotonic()
        if not force and now_s - self._health_s < self._observe_every_s:
            return
        self._health_s = now_s
        coverage, fallback, width = self._pipeline.judgement.coverage, self._pipeline.judgement.fallback, self._source.width
        health = HealthData(
            uptime_s=now_s - self._began_s,
            strip_id=self._strip_id,
            metres=coverage.total * self._config.scale.mm_per_line / 1000,
            lines_per_s=self._throughput.lines_per_s(),
            megapixels_per_s=self._throughput.lines_per_s() * width / 1e6,
            engines=tuple(map(str, self._engines.choices)),
            queue_frames=len(self._ring),
            queue_capacity_frames=self._config.queue_frames,
            open_defects=self._pipeline.judgement.open_defects,
            coverage=coverage_data(coverage),
            fallback_lines=fallback.lines,
            fallback=fallback_stretches(fallback),
            fallback_unlisted=fallback.unlisted,
            outbox=OutboxHealth(waiting=self._outbox.depth(), megabytes=self._outbox.megabytes(), dropped=self._outbox.dropped()),
            publisher=self._publisher.counters() if self._publisher else None,
            counters=_source_counters(self._source),
        )
        if self._publisher:
            self._publisher.publish_health(payload_of(health_event(topics_of(self._config).source, health, time.time_ns())))
        if self._observe:
            self._observe(health)


def _resume_hash(config_hash: str, config: StationConfig) -> str:
    """A strip is taken up again only with the same rules, from the same source, by a version that keeps the same state."""
    return hashlib.sha256((config_hash + config.source.model_dump_json() + str(STATE_VERSION)).encode()).hexdigest()


def _source_counters(source: FrameSource) -> dict[str, float]:
    health = source.health()
    counts = {"source_frames": health.frames, "source_lines": health.lines, "source_lost_lines": health.lost_lines}
    return {**counts, **health.counters}


def stage_error(stage: str, error: BaseException) -> RustEdgeError:
    """The stage's own error where it says what to do, else one that names the stage."""
    if isinstance(error, RustEdgeError):
        return error
    return StageError(f"{stage} died: {type(error).__name__}: {error}; restart to go on from the last committed line")
