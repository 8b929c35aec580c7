"""The data path of one strip, top to bottom: camera lines in, defect events out.

    Frame (h, w) uint8, at its place on the strip
      -> gap            lines that did not come are counted, and end a run of lines
      -> strip window   the last lines, for crops and strip edges
      -> segmenter      finished rows: class and confidence per pixel, (h, w) uint8 each, `lag_lines` behind
      -> ledger         every row counted as inspected or gated
      -> tracker        regions joined over rows, filtered, merged: defects opened, updated, closed
      -> events         CloudEvents in mm, with a crop

Nothing here knows of backends, cameras or brokers, and nothing depends on how the lines were cut into frames. Threads
meet in `edge.daemon`.
"""

from __future__ import annotations

import json
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import cv2
import numpy as np

from edge.defects import Change, Defect, DefectChange, Ending, LensAlert
from edge.errors import SourceError
from edge.events import StripEvent
from edge.frame import Frame, Lines
from edge.latency import LatencyHistogram
from edge.ledger import Coverage, CoverageLedger
from edge.reporting import StripContext, defect_event, lens_event, strip_finished, strip_started
from edge.segmenters import MaskRows, Segmenter
from edge.tracking.blocks import BLOCK_LINES
from edge.tracking.tracker import DefectTracker
from edge.window import StripWindow

PORTION_LINES = 1024
"""Lines that go through at once: bounds the window's memory however tall a frame is."""
CROP_MARGIN_PX = 16


@dataclass(slots=True)
class Findings:
    """What some lines brought: finished mask rows with the strip's lines at the same place, and events, in strip order."""

    rows: list[tuple[MaskRows, Lines]] = field(default_factory=list)
    events: list[StripEvent] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Enough to go on from `line` as if nothing had happened: rows below it are done, their events are written."""

    line: int
    state: bytes

    @property
    def captured_ns(self) -> int:
        """When that line was read out."""
        return int(json.loads(self.state)["captured_ns"])


class Pipeline:
    """One strip's way through a segmenter and a tracker. For one thread.

    crop_max_px: longest side of the JPEG of an opened defect; None for no crops.
    """

    def __init__(self, segmenter: Segmenter, tracker: DefectTracker, context: StripContext, crop_max_px: int | None) -> None:
        self._segmenter, self._tracker, self._strip = segmenter, tracker, context
        self._crop_max_px = crop_max_px
        self._ledger = CoverageLedger()
        self._latency = LatencyHistogram()
        self._crop_reach = 2 * (crop_max_px or 0)
        self._window = StripWindow(context.width, segmenter.lag_lines + PORTION_LINES + 2 * BLOCK_LINES + self._crop_reach)
        self._captured: deque[tuple[int, int]] = deque()
        self._announced = False
        self._next = 0
        self._resume_line = 0
        self._before_resume: list[Lines] = []
        self._running = False

    def resume(self, checkpoint: Checkpoint) -> int:
        """Go on from a checkpoint. The strip line to take the next frames from: a little earlier, for the context."""
        state = json.loads(checkpoint.state)
        self._tracker.restore(state["tracker"].encode())
        self._ledger = CoverageLedger(Coverage(**state["coverage"]))
        self._latency = LatencyHistogram({int(bucket): count for bucket, count in state["latency"].items()})
        self._announced = True
        self._resume_line = checkpoint.line
        wanted = max(self._segmenter.context_lines(checkpoint.line), self._crop_reach)
        self._next = max(0, checkpoint.line - wanted)
        return self._next

    def push(self, frame: Frame, shed_lines: int = 0) -> Findings:
        """Take the next frame. Lines missing before it are lost, except `shed_lines` of them, which were shed.

        Raises SourceError where a frame goes back on the strip.
        """
        if frame.first_line < self._next:
            raise SourceError(f"a frame starts at line {frame.first_line}, expected {self._next} or later: lines came twice")
        findings = Findings()
        self._note_capture(frame)
        if not self._announced:
            findings.events.append(strip_started(self._strip, frame.captured_ns))
            self._announced = True
        if frame.first_line > self._next:
            self._gap(frame.first_line, shed_lines, findings)
        for first in range(0, len(frame.lines), PORTION_LINES):
            self._take(frame.lines[first : first + PORTION_LINES], findings)
        return findings

    def finish(self, shed_lines: int = 0, interrupted: bool = False) -> Findings:
        """The strip has ended, after `shed_lines` more that were shed: what is still under way, and the summary."""
        findings = Findings()
        if shed_lines:
            self._gap(self._next + shed_lines, shed_lines, findings)
        self._end_run(findings)
        self._report(self._tracker.finish(), findings)
        percentiles = (self._latency.percentile(0.5), self._latency.percentile(0.9), self._latency.percentile(0.99))
        latency_ms = (percentiles[0], percentiles[1], percentiles[2]) if None not in percentiles else None
        captured_ns = self._captured_ns(self._next)
        if not self._announced:
            findings.events.append(strip_started(self._strip, captured_ns))
        findings.events.append(
            strip_finished(self._strip, self._tracker.tally(), self.coverage, latency_ms, captured_ns, interrupted)  # type: ignore[arg-type]
        )
        return findings

    def checkpoint(self) -> Checkpoint:
        """Where a restart can go on, given that all events so far are kept in the same transaction."""
        line, tracker = self._tracker.checkpoint()
        state = {
            "tracker": tracker.decode(),
            "coverage": asdict(self._ledger.settle(line)),
            "latency": self._latency.counts,
            "captured_ns": self._captured_ns(line),
        }
        return Checkpoint(line, json.dumps(state, separators=(",", ":")).encode())

    @property
    def coverage(self) -> Coverage:
        """The ledger of all rows that are finished."""
        return self._ledger.coverage()

    @property
    def line_stop(self) -> int:
        """Strip coordinate one past the newest line."""
        return self._next

    @property
    def open_defects(self) -> int:
        """Defects that are reported and not closed yet."""
        return self._tracker.open_defects

    def _gap(self, line_stop: int, shed_lines: int, findings: Findings) -> None:
        self._end_run(findings)
        self._report(self._tracker.skip(line_stop, Ending.LINES_LOST), findings)
        self._ledger.add(max(self._ledger.line_stop, line_stop - shed_lines), "lost")
        self._ledger.add(line_stop, "shed")
        # after a restart the lines before the gap are done: what comes now has nothing to do with them
        self._next, self._resume_line = line_stop, line_stop
        self._before_resume.clear()

    def _end_run(self, findings: Findings) -> None:
        if self._running:
            self._judge(self._segmenter.flush(), findings)
        self._running = False

    def _take(self, lines: Lines, findings: Findings) -> None:
        if self._next < self._resume_line:
            known = lines[: self._resume_line - self._next]
            self._before_resume.append(known.copy())
            self._next += len(known)
            lines = lines[len(known) :]
            if not len(lines):
                return
        if not self._running:
            self._begin_run()
        self._window.append(lines)
        self._next += len(lines)
        self._judge(self._segmenter.push(lines), findings)

    def _begin_run(self) -> None:
        context = np.concatenate(self._before_resume) if self._before_resume else None
        self._before_resume.clear()
        self._window.start(self._next - (0 if context is None else len(context)))
        if context is not None:
            for first in range(0, len(context), PORTION_LINES):
                self._window.append(context[first : first + PORTION_LINES])
        self._segmenter.start(self._next, context)
        self._running = True

    def _judge(self, finished: list[MaskRows], findings: Findings) -> None:
        for rows in finished:
            lines = self._window.cut(rows.first_line, rows.line_stop, 0, self._window.width)
            self._ledger.add(rows.line_stop, "inspected" if rows.segmented else "gated")
            self._report(self._tracker.push(rows, lines), findings)
            findings.rows.append((rows, lines))

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
        if line_start >= line_stop or decided_at_line - line_start > self._crop_reach:
            return None
        pixels = self._window.cut(line_start, line_stop, column_start, column_stop)
        return bytes(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 85])[1])

    def _note_capture(self, frame: Frame) -> None:
        self._captured.append((frame.line_stop, frame.captured_ns))
        oldest = self._next - self._window.capacity
        while len(self._captured) > 1 and self._captured[0][0] <= oldest:
            self._captured.popleft()

    def _captured_ns(self, line: int) -> int:
        """When the frame with that line was read out; of lines long gone, when the oldest one still known was."""
        if not self._captured:
            return time.time_ns()
        index = bisect_right(self._captured, line, key=lambda entry: entry[0])
        return self._captured[min(index, len(self._captured) - 1)][1]


def frames_from(frames: Iterator[Frame], pipeline: Pipeline) -> Iterator[Findings]:
    """All findings of a strip whose source can wait, its end included."""
    for frame in frames:
        yield pipeline.push(frame)
    yield pipeline.finish()
