"""The whole pipeline, lines in, events out, outbox on disk: dense, and as a cascade on strips of several clean shares."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge.bench.plan import LATENCY_SHARE, Plan, plan_modes, scratch_folder
from edge.bench.replay import Calls, HeardEngines, Spent, Stopwatch
from edge.bench.results import Figure, PipelineFigures, figure_of
from edge.bench.strip_source import cut_there_and_back
from edge.bench.strips import CLEAN_SHARES, TILE_PX, Strip
from edge.config import StationConfig
from edge.daemon import COMMIT_LINES
from edge.engines import Engines
from edge.events import DefectClosed, outgoing
from edge.frame import Frame
from edge.pipeline import Findings
from edge.scorecard import NEAR_MM, ScoreCard, score
from edge.segmenters import MaskRows
from edge.sinks.outbox import Outbox, Progress

FEWEST_ROUNDS = 2


def measure_pipeline(plan: Plan) -> Iterator[tuple[PipelineFigures, ...]]:
    """Figures after each round. Raises RustEdgeError.

    Each strip goes through once for its defects, then there and back in rounds that are timed, all modes and strips taking
    turns. What a strip costs the dense path does not depend on what is on it, so it is timed on one of them.
    """
    began_s = time.monotonic()
    with ExitStack() as opened:
        folder = opened.enter_context(scratch_folder(plan.config))
        courses = list(_open_courses(plan, folder, opened))
        dense = {course.strip.truth.wanted_clean_share: course for course in courses if course.mode == "dense"}
        timed = [course for course in courses if course.mode == "cascade" or course.clean_share == LATENCY_SHARE]
        for course in courses:
            if course in timed:
                course.find()
            else:
                course.find_all()
        rounds = 0
        while rounds < FEWEST_ROUNDS or time.monotonic() - began_s < plan.seconds("pipeline"):
            for course in timed:
                course.time_lap()
            rounds += 1
            yield tuple(course.figures(dense.get(course.clean_share)) for course in timed)


def _open_courses(plan: Plan, folder: Path, opened: ExitStack) -> Iterator[_Course]:
    modes = plan_modes(plan.config)
    for config in modes:
        calls = Calls()
        engines = opened.enter_context(Engines(config, plan.origin, partial(HeardEngines, calls=calls)))
        # the dense path on every strip only where a cascade is held against it
        for clean_share in CLEAN_SHARES if len(modes) > 1 else (LATENCY_SHARE,):
            path = folder / f"{config.mode}-{clean_share}.db"
            outbox = opened.enter_context(Outbox(path, config.outbox.max_mb, config.outbox.max_age_h))
            yield _Course(config, engines, calls, plan.strip(clean_share), outbox)


@dataclass(frozen=True, slots=True)
class _Lap:
    whole: Spent
    bare: Spent


@dataclass(slots=True)
class _Found:
    """What the first lap brought. alarmed: (rows, columns) of 256 px tiles; None as long as no gate has said anything."""

    closed: list[DefectClosed] = field(default_factory=list)
    alarmed: npt.NDArray[np.bool_] | None = None


class _Course:
    """One mode on one strip, which runs there and back without end."""

    def __init__(self, config: StationConfig, engines: Engines, calls: Calls, strip: Strip, outbox: Outbox) -> None:
        self.mode, self.strip, self.clean_share = config.mode, strip, strip.truth.wanted_clean_share
        self._config, self._calls, self._outbox = config, calls, outbox
        self._pipeline = engines.pipeline(strip.truth.width_px, f"bench-{config.mode}-{strip.truth.wanted_clean_share}")
        manifest = engines.gate.manifest if engines.gate else None
        stated = manifest.gate.score if manifest and manifest.gate else math.inf
        self._threshold = stated if config.tiling.gate_threshold is None else config.tiling.gate_threshold
        self._sha256 = engines.sha256
        self._line = self._committed_line = 0
        self._found = _Found()
        self._laps: list[_Lap] = []

    def find(self) -> None:
        """The first lap: what is found, not how fast; what lies near its end comes out in the next one."""
        self._lap()

    def find_all(self) -> None:
        """The first lap as the only one."""
        self._lap()
        self._look(self._pipeline.finish())

    def time_lap(self) -> None:
        """One more lap, and what its inferences take by themselves."""
        self._calls.clear()
        watch = Stopwatch()
        self._lap()
        whole = watch.read()
        self._laps.append(_Lap(whole, self._calls.replay()))

    def figures(self, dense: _Course | None) -> PipelineFigures:
        """What is known so far. dense: the dense path on the same strip."""
        truth = self.strip.truth
        megapixels = truth.lines * truth.width_px / 1e6
        card, reports = self._card(), self._reports()
        against = dense._reports() if dense is not None and dense is not self else None
        return PipelineFigures(
            mode=self.mode,
            wanted_clean_share=truth.wanted_clean_share,
            clean_share=truth.clean_share,
            alarmed_share=None if self._found.alarmed is None else float(self._found.alarmed.mean()),
            lines_per_s=figure_of(truth.lines / lap.whole.wall_s for lap in self._laps),
            megapixels_per_s=figure_of(megapixels / lap.whole.wall_s for lap in self._laps),
            megapixels_per_cpu_s=figure_of(megapixels / lap.whole.cpu_s for lap in self._laps),
            cpu_share_outside_inference=self._ratio([1 - lap.bare.cpu_s / lap.whole.cpu_s for lap in self._laps]),
            ratio_to_bare_engine=self._ratio([lap.bare.wall_s / lap.whole.wall_s for lap in self._laps]),
            planted=sum(card.planted.values()),
            found=sum(card.found.values()),
            false_alarms=len(card.false_alarms),
            dense_defects=None if against is None else len(against),
            dense_defects_found=None if against is None else count_found(against, reports, self._margin_px()),
        )

    def _lap(self) -> None:
        stop = self._line + len(self.strip.lines)
        while self._line < stop:
            count = min(self._config.source.frame_lines, stop - self._line)
            frame = Frame(cut_there_and_back(self.strip.lines, self._line, count), self._line, time.time_ns())
            findings = self._pipeline.push(frame)
            self._line += count
            self._keep(findings)
            self._look(findings)

    def _keep(self, findings: Findings) -> None:
        """As the daemon does it: events and progress in one transaction."""
        if not findings.events and self._line - self._committed_line < COMMIT_LINES:
            return
        checkpoint = self._pipeline.checkpoint()
        progress = Progress("bench", checkpoint.line, checkpoint.state, "", self._sha256)
        self._outbox.commit([outgoing(event) for event in findings.events], progress)
        self._committed_line = self._line

    def _look(self, findings: Findings) -> None:
        """Keep what the first lap brought; behind it, rows and defects are those of the strip's image in its turn."""
        lines = len(self.strip.lines)
        self._found.closed += [
            event for event in findings.events if isinstance(event, DefectClosed) and event.data.box_px.line_start < lines
        ]
        for rows in findings.rows:
            if rows.first_line < lines and rows.gate_scores is not None:
                self._note_alarms(rows)

    def _note_alarms(self, rows: MaskRows) -> None:
        truth = self.strip.truth
        across = -(-truth.width_px // TILE_PX)
        if self._found.alarmed is None:
            self._found.alarmed = np.zeros((truth.tiles // across, across), np.bool_)
        scores = rows.gate_scores if rows.gate_scores is not None else np.empty(0, np.float32)
        cells = np.flatnonzero(scores >= self._threshold)
        last_line = min(rows.line_stop, truth.lines) - 1
        for line in range(rows.first_line // TILE_PX, last_line // TILE_PX + 1):
            for first in cells * rows.tile_columns:
                last = min(first + rows.tile_columns, truth.width_px) - 1
                self._found.alarmed[line, first // TILE_PX : last // TILE_PX + 1] = True

    def _card(self) -> ScoreCard:
        return score(self.strip.planted, self._found.closed, len(self.strip.lines), self._mm_per_px())

    def _reports(self) -> list[DefectClosed]:
        return [event for event in self._found.closed if event.data.ending != "merged"]

    def _mm_per_px(self) -> tuple[float, float]:
        return self._config.scale.mm_per_line, self._config.scale.mm_per_column

    def _margin_px(self) -> tuple[int, int]:
        along, across = (math.ceil(NEAR_MM / mm) for mm in self._mm_per_px())
        return along, across

    def _ratio(self, rounds: Sequence[float]) -> Figure | None:
        # an engine that was never asked, behind a gate that lets nothing through, has no time of its own
        return figure_of(rounds) if all(lap.bare.wall_s > 0 for lap in self._laps) else None


def count_found(wanted: Sequence[DefectClosed], reported: Sequence[DefectClosed], margin_px: tuple[int, int]) -> int:
    """How many of some defects are touched by one of the reports. margin_px: lines and columns that boxes are grown by."""
    along, across = margin_px
    found = 0
    for defect in wanted:
        box = defect.data.box_px
        found += any(
            box.line_start - along < other.data.box_px.line_stop
            and other.data.box_px.line_start < box.line_stop + along
            and box.column_start - across < other.data.box_px.column_stop
            and other.data.box_px.column_start < box.column_stop + across
            for other in reported
        )
    return found
