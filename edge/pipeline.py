"""The data path of one strip, top to bottom: camera lines in, defect events out.

    Frame (h, w) uint8, at its place on the strip
      Segmentation
      -> flat field     each column's dark signal off, its gain evened out, (h, w) uint8; nothing further sees lines without it
      -> gap            lines that did not come are counted, and end a run of lines
      -> segmenter      finished rows: class and confidence per pixel, (h, w) uint8 each, `lag_lines` behind
      Judgement
      -> strip window   the last lines, for crops and strip edges
      -> ledger         every row counted as inspected or gated, and noted where another engine stood in
      -> tracker        regions joined over rows, filtered, merged: defects opened, updated, closed
      -> events         CloudEvents in mm, with a crop

The two halves share nothing but what the first hands to the second, so that each may have a thread of its own. Nothing here
knows of backends, cameras or brokers, and nothing depends on how the lines were cut into frames. Threads meet in
`edge.daemon`.
"""

from __future__ import annotations

import json
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import cv2
import numpy as np

from edge.defects import Change, Defect, DefectChange, Ending, LensAlert
from edge.errors import SourceError
from edge.events import StripEvent
from edge.fallback import Fallback, FallbackLedger, StandIn, nobody
from edge.frame import Frame, Lines
from edge.latency import LatencyHistogram
from edge.ledger import Coverage, CoverageLedger
from edge.reporting import StripContext, defect_event, lens_event, strip_finished, strip_started
from edge.segmenters import MaskRows, Segmenter
from edge.tracking.blocks import BLOCK_LINES
from edge.tracking.tracker import DefectTracker
from edge.window import StripWindow

PORTION_LINES = BLOCK_LINES
"""Lines that go through at once: a block can be decided before a tall frame's next lines are inferred, and the window's memory
is bounded. Smaller portions of a frame of 256 cost nothing that could be measured."""
CROP_MARGIN_PX = 16

Corrected = Callable[[Lines], Lines]
"""Lines (h, w) uint8 as the flat field makes them, every line by itself; what it is given stays as it was."""


def as_delivered(lines: Lines) -> Lines:
    """Of a camera without a flat field."""
    return lines


@dataclass(frozen=True, slots=True)
class Gap:
    """Lines up to `line_stop` that never came; the last `shed_lines` of them were received and not looked at."""

    line_stop: int
    shed_lines: int


@dataclass(frozen=True, slots=True)
class Segmented:
    """Lines of one frame, and what the segmenter finished as they came. Its parts follow each other in strip order.

    last_rows: of the run that ended before a gap. gap: before the lines; None if there is none. run_begin: where a new run
    begins, `context` (h, w) included, which are the lines just before; None if the run goes on.
    lines: (h, w) uint8, a view of the frame. rows: finished by them, of earlier lines. line_stop: one past the lines.
    captured_ns: when the frame's last line, the one before `frame_stop`, was read out.
    stand_in: the backend that answered in place of the first choice while these rows were finished, at least once.
    """

    line_stop: int
    last_rows: Sequence[MaskRows] = ()
    gap: Gap | None = None
    run_begin: int | None = None
    context: Lines | None = None
    lines: Lines | None = None
    rows: Sequence[MaskRows] = ()
    frame_stop: int = 0
    captured_ns: int | None = None
    stand_in: str | None = None


@dataclass(slots=True)
class Findings:
    """What some lines brought: finished mask rows and events, in strip order."""

    rows: list[MaskRows] = field(default_factory=list)
    events: list[StripEvent] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Enough to go on from `line` as if nothing had happened: rows below it are done, their events are written."""

    line: int
    state: bytes

    @property
    def captured_ns(self) -> int:
        """When that line was read out."""
        return int(_unpack(self.state)[0]["captured_ns"])


class Segmentation:
    """The half that takes frames and runs the engine. For one thread.

    stand_in: asked after rows were finished. corrected: applied to every line first. line_stop: strip coordinate one past the
    newest line.
    """

    def __init__(self, segmenter: Segmenter, stand_in: StandIn = nobody, corrected: Corrected = as_delivered) -> None:
        self._segmenter, self._stand_in, self._corrected = segmenter, stand_in, corrected
        self._stood_in: str | None = None
        self.line_stop = 0
        self._resume_line = 0
        self._before_resume: list[Lines] = []
        self._running = False

    def resume(self, line: int, crop_reach: int) -> int:
        """Rows from `line` on are wanted. The line to take frames from: a little earlier, for the context."""
        wanted = max(self._segmenter.context_lines(line), crop_reach)
        self._resume_line, self.line_stop = line, max(0, line - wanted)
        return self.line_stop

    def push(self, frame: Frame, shed_lines: int = 0) -> Iterator[Segmented]:
        """Take the next frame, in portions. Lines missing before it are lost, except `shed_lines` of them, which were shed.

        Raises SourceError where a frame goes back on the strip.
        """
        if frame.first_line < self.line_stop:
            raise SourceError(f"a frame starts at line {frame.first_line}, expected {self.line_stop} or later: lines came twice")
        gap = Gap(frame.first_line, shed_lines) if frame.first_line > self.line_stop else None
        last_rows = self._break_off(gap) if gap else []
        for first in range(0, len(frame.lines), PORTION_LINES):
            lines = self._behind_resume(self._corrected(frame.lines[first : first + PORTION_LINES]))
            run_begin, context = None, None
            if len(lines) and not self._running:
                run_begin, context = self._begin_run()
            self.line_stop += len(lines)
            rows = self._segmenter.push(lines) if len(lines) else []
            yield Segmented(
                self.line_stop,
                last_rows,
                gap,
                run_begin,
                context,
                lines,
                rows,
                frame.line_stop,
                frame.captured_ns,
                self._who_stood_in(last_rows, rows),
            )
            last_rows, gap = [], None

    def finish(self, shed_lines: int = 0) -> Segmented:
        """The strip has ended, after `shed_lines` more that were shed: the last rows."""
        gap = Gap(self.line_stop + shed_lines, shed_lines) if shed_lines else None
        last_rows = self._break_off(gap)
        return Segmented(self.line_stop, last_rows, gap, stand_in=self._who_stood_in(last_rows))

    def _who_stood_in(self, *finished: Sequence[MaskRows]) -> str | None:
        """Of rows that are finished, by an answer since those before them; kept for the next ones where none are."""
        self._stood_in = self._stand_in() or self._stood_in
        if not any(finished):
            return None
        stood_in, self._stood_in = self._stood_in, None
        return stood_in

    def _break_off(self, gap: Gap | None) -> list[MaskRows]:
        """The run ends here: its last rows."""
        last_rows = self._segmenter.flush() if self._running else []
        self._running = False
        if gap:
            # after a restart the lines before the gap are done: what comes now has nothing to do with them
            self.line_stop = self._resume_line = gap.line_stop
            self._before_resume.clear()
        return last_rows

    def _behind_resume(self, lines: Lines) -> Lines:
        """The lines whose rows are wanted; those before are kept as context."""
        known = lines[: max(0, self._resume_line - self.line_stop)]
        if len(known):
            self._before_resume.append(known.copy())
            self.line_stop += len(known)
        return lines[len(known) :]

    def _begin_run(self) -> tuple[int, Lines | None]:
        context = np.concatenate(self._before_resume) if self._before_resume else None
        self._before_resume.clear()
        self._segmenter.start(self.line_stop, context)
        self._running = True
        return self.line_stop - (0 if context is None else len(context)), context


class Judgement:
    """The half that takes finished rows and makes events of them. For one thread.

    lag_lines: of the segmenter. crop_max_px: longest side of the JPEG of an opened defect; None for no crops.
    """

    def __init__(self, tracker: DefectTracker, context: StripContext, lag_lines: int, crop_max_px: int | None) -> None:
        self._tracker, self._strip = tracker, context
        self._crop_max_px = crop_max_px
        self._ledger = CoverageLedger()
        self._fallback = FallbackLedger()
        self._latency = LatencyHistogram()
        self.crop_reach = 2 * (crop_max_px or 0)
        self._window = StripWindow(context.width, lag_lines + PORTION_LINES + 2 * BLOCK_LINES + self.crop_reach)
        self._captured: deque[tuple[int, int]] = deque()
        self._announced = False

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint."""
        state, tracker = _unpack(checkpoint.state)
        self._tracker.restore(tracker)
        self._ledger = CoverageLedger(Coverage(**state["coverage"]))
        # a strip that an older version has left unfinished noted none
        self._fallback = FallbackLedger(Fallback.parse(state["fallback"]) if "fallback" in state else Fallback())
        self._latency = LatencyHistogram({int(bucket): count for bucket, count in state["latency"].items()})
        self._announced = True

    def judge(self, segmented: Segmented) -> Findings:
        """What these lines and rows bring; they must follow the last ones."""
        findings = Findings()
        if segmented.captured_ns is not None:
            self._note_capture(segmented.frame_stop, segmented.captured_ns)
            if not self._announced:
                findings.events.append(strip_started(self._strip, segmented.captured_ns))
                self._announced = True
        self._take(segmented.last_rows, segmented.stand_in, findings)
        if segmented.gap:
            self._report(self._tracker.skip(segmented.gap.line_stop, Ending.LINES_LOST), findings)
            received = segmented.gap.line_stop - segmented.gap.shed_lines
            self._ledger.add(max(self._ledger.line_stop, received), "lost")
            self._ledger.add(segmented.gap.line_stop, "shed")
        if segmented.run_begin is not None:
            self._window.start(segmented.run_begin)
            self._see(segmented.context)
        self._see(segmented.lines)
        self._take(segmented.rows, segmented.stand_in, findings)
        return findings

    def finish(self, interrupted: bool = False) -> Findings:
        """The strip has ended: what is still under way, and the summary."""
        findings = Findings()
        self._report(self._tracker.finish(), findings)
        percentiles = (self._latency.percentile(0.5), self._latency.percentile(0.9), self._latency.percentile(0.99))
        latency_ms = (percentiles[0], percentiles[1], percentiles[2]) if None not in percentiles else None
        captured_ns = self._captured_ns(self.line_stop)
        if not self._announced:
            findings.events.append(strip_started(self._strip, captured_ns))
        findings.events.append(
            strip_finished(
                self._strip,
                self._tracker.tally(),
                self.coverage,
                latency_ms,  # type: ignore[arg-type]
                captured_ns,
                interrupted,
                self.fallback,
            )
        )
        return findings

    def checkpoint(self) -> Checkpoint:
        """Where a restart can go on, given that all events so far are kept in the same transaction."""
        line, tracker = self._tracker.checkpoint()
        state = {
            "coverage": asdict(self._ledger.settle(line)),
            "fallback": self._fallback.settle(line).as_json(),
            "latency": self._latency.counts,
            "captured_ns": self._captured_ns(line),
        }
        return Checkpoint(line, _pack(state, tracker))

    def lines_of(self, rows: MaskRows) -> Lines:
        """The strip at the place of rows that `judge` gave last, (h, w) uint8."""
        return self._image(rows.first_line, rows.line_stop)

    @property
    def coverage(self) -> Coverage:
        """The ledger of all rows that are finished."""
        return self._ledger.coverage()

    @property
    def fallback(self) -> Fallback:
        """Rows that another engine than the first choice finished."""
        return self._fallback.all()

    @property
    def line_stop(self) -> int:
        """Strip coordinate one past the newest row."""
        return self._ledger.line_stop

    @property
    def open_defects(self) -> int:
        """Defects that are reported and not closed yet."""
        return self._tracker.open_defects

    def _see(self, lines: Lines | None) -> None:
        for first in range(0, 0 if lines is None else len(lines), PORTION_LINES):
            self._window.append(lines[first : first + PORTION_LINES])  # type: ignore[index]

    def _take(self, finished: Sequence[MaskRows], stand_in: str | None, findings: Findings) -> None:
        for rows in finished:
            self._fallback.add(rows.first_line, rows.line_stop, stand_in)
            self._ledger.add(rows.line_stop, "inspected" if rows.segmented else "gated")
            self._report(self._tracker.push(rows, self._image), findings)
            findings.rows.append(rows)

    def _image(self, line_start: int, line_stop: int) -> Lines:
        return self._window.cut(line_start, line_stop, 0, self._window.width)

    def _report(self, changes: list[DefectChange | LensAlert], findings: Findings) -> None:
        for change in changes:
            if isinstance(change, LensAlert):
                findings.events.append(lens_event(self._strip, change, self._captured_ns(change.decided_at_line - 1)))
                continue
            captured_ns, written_ns = self._captured_ns(change.defect.box.line_stop - 1), time.time_ns()
            self._latency.add((written_ns - captured_ns) / 1e6)
            crop = self._crop(change.defect, change.decided_at_line) if change.change is Change.OPENED else None
            findings.events.append(defect_event(self._strip, change, captured_ns, written_ns, crop))

    def _crop(self, defect: Defect, decided_at_line: int) -> bytes | None:
        """JPEG of the defect's newest part; None where its lines are gone, which depends on the strip alone."""
        if self._crop_max_px is None:
            return None
        line_stop = min(defect.box.line_stop + CROP_MARGIN_PX, decided_at_line)
        line_start = max(defect.box.line_start - CROP_MARGIN_PX, line_stop - self._crop_max_px, self._window.begin)
        middle = round(defect.centroid_column)
        column_start = max(defect.box.column_start - CROP_MARGIN_PX, middle - self._crop_max_px // 2, 0)
        column_stop = min(defect.box.column_stop + CROP_MARGIN_PX, column_start + self._crop_max_px, self._window.width)
        if line_start >= line_stop or decided_at_line - line_start > self.crop_reach:
            return None
        pixels = self._window.cut(line_start, line_stop, column_start, column_stop)
        return bytes(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 85])[1])

    def _note_capture(self, frame_stop: int, captured_ns: int) -> None:
        if not self._captured or self._captured[-1][0] < frame_stop:
            self._captured.append((frame_stop, captured_ns))
        oldest = self._window.line_stop - self._window.capacity
        while len(self._captured) > 1 and self._captured[0][0] <= oldest:
            self._captured.popleft()

    def _captured_ns(self, line: int) -> int:
        """When the frame with that line was read out; of lines long gone, when the oldest one still known was."""
        if not self._captured:
            return time.time_ns()
        index = bisect_right(self._captured, line, key=lambda entry: entry[0])
        return self._captured[min(index, len(self._captured) - 1)][1]


class Pipeline:
    """One strip's way through a segmenter and a tracker. The halves may be used from two threads; the rest is for one.

    crop_max_px: longest side of the JPEG of an opened defect; None for no crops. stand_in: which engine stood in for another.
    corrected: lines of the camera as its flat field makes them.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        tracker: DefectTracker,
        context: StripContext,
        crop_max_px: int | None,
        stand_in: StandIn = nobody,
        corrected: Corrected = as_delivered,
    ) -> None:
        self.segmentation = Segmentation(segmenter, stand_in, corrected)
        self.judgement = Judgement(tracker, context, segmenter.lag_lines, crop_max_px)

    def resume(self, checkpoint: Checkpoint) -> int:
        """Go on from a checkpoint. The strip line to take the next frames from: a little earlier, for the context."""
        self.judgement.resume(checkpoint)
        return self.segmentation.resume(checkpoint.line, self.judgement.crop_reach)

    def push(self, frame: Frame, shed_lines: int = 0) -> Findings:
        """Take the next frame. Lines missing before it are lost, except `shed_lines` of them, which were shed.

        Raises SourceError where a frame goes back on the strip.
        """
        findings = Findings()
        for segmented in self.segmentation.push(frame, shed_lines):
            found = self.judgement.judge(segmented)
            findings.rows += found.rows
            findings.events += found.events
        return findings

    def finish(self, shed_lines: int = 0, interrupted: bool = False) -> Findings:
        """The strip has ended, after `shed_lines` more that were shed: what is still under way, and the summary."""
        findings = self.judgement.judge(self.segmentation.finish(shed_lines))
        findings.events += self.judgement.finish(interrupted).events
        return findings

    def checkpoint(self) -> Checkpoint:
        """Where a restart can go on, given that all events so far are kept in the same transaction."""
        return self.judgement.checkpoint()

    @property
    def coverage(self) -> Coverage:
        """The ledger of all rows that are finished."""
        return self.judgement.coverage

    @property
    def fallback(self) -> Fallback:
        """Rows that another engine than the first choice finished."""
        return self.judgement.fallback

    @property
    def line_stop(self) -> int:
        """Strip coordinate one past the newest line."""
        return self.segmentation.line_stop

    @property
    def open_defects(self) -> int:
        """Defects that are reported and not closed yet."""
        return self.judgement.open_defects


def frames_from(frames: Iterable[Frame], pipeline: Pipeline) -> Iterator[Findings]:
    """All findings of a strip whose source can wait, its end included; as they come, so that `lines_of` their rows is there."""
    for frame in frames:
        for segmented in pipeline.segmentation.push(frame):
            yield pipeline.judgement.judge(segmented)
    yield pipeline.judgement.judge(pipeline.segmentation.finish())
    yield pipeline.judgement.finish()


def _pack(state: dict[str, Any], tracker: bytes) -> bytes:
    """Two lines of JSON: the tracker's own is taken over as it is."""
    return json.dumps(state, separators=(",", ":")).encode() + b"\n" + tracker


def _unpack(packed: bytes) -> tuple[dict[str, Any], bytes]:
    state, _, tracker = packed.partition(b"\n")
    return json.loads(state), tracker
