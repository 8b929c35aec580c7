"""The chunk height of the dense path: what each costs per line on this box, and the cheapest within the latency budget."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field

from edge.bench.plan import LATENCY_SHARE, Plan, plan_modes
from edge.bench.replay import Spent, Stopwatch
from edge.bench.results import ChunkChoice, ChunkFigures, figure_of, now_utc
from edge.bench.strip_source import cut_there_and_back
from edge.box import ChunkHeight, keep_chunk_height
from edge.engines import Engines
from edge.errors import ConfigError
from edge.frame import Lines
from edge.segmenters import Segmenter

HEIGHTS = {"whole": (16, 32, 64, 128, 256, 512), "typical": (32, 64, 128, 256)}
FEWEST_ROUNDS = 3
AS_CHEAP = 1.03
"""Heights that cost up to so much more than the cheapest count as cheap as it: the lowest of them is taken."""
HIGHEST_LOAD = 0.8
"""Share of what the dense path carries that the line is taken to run at, where it is configured faster or not at all."""


@dataclass(slots=True)
class _Trial:
    chunk_lines: int
    segmenter: Segmenter
    pushed: int = 0
    rounds: list[Spent] = field(default_factory=list)

    def push(self, strip: Lines, lines: int) -> Spent:
        """Take the next lines of the strip."""
        block = cut_there_and_back(strip, self.pushed, lines)
        watch = Stopwatch()
        self.segmenter.push(block)
        self.pushed += lines
        return watch.read()


def measure_chunks(plan: Plan) -> Iterator[ChunkChoice]:
    """Figures after each round; the last one is kept in the box's file. Raises RustEdgeError."""
    began_s = time.monotonic()
    strip = plan.strip(LATENCY_SHARE).lines
    heights = [height for height in HEIGHTS[plan.budget.sweep] if height % plan.stride == 0] or [plan.stride]
    portion = max(heights)
    with ExitStack() as opened:
        trials = [_Trial(height, _open(plan, height, opened)) for height in heights]
        for trial in trials:
            # past the lag, so that each push finishes as many rows as it takes lines
            trial.push(strip, -(-(trial.segmenter.lag_lines + portion) // portion) * portion)
        rounds = 0
        while rounds < FEWEST_ROUNDS or time.monotonic() - began_s < plan.seconds("chunks"):
            for trial in trials:
                trial.rounds.append(trial.push(strip, portion))
            rounds += 1
            choice = _choice(plan, trials, portion)
            yield choice
    if choice.chosen_lines is not None:
        yield _keep(plan, choice, choice.chosen_lines)


def _keep(plan: Plan, choice: ChunkChoice, chunk_lines: int) -> ChunkChoice:
    """The choice, put into the box's file, or with the reason why it could not be."""
    height = ChunkHeight(
        **asdict(plan.box_key),
        chunk_lines=chunk_lines,
        latency_budget_ms=plan.latency_budget_ms,
        measured_at=now_utc(),
    )
    try:
        keep_chunk_height(plan.box_file, height)
    except ConfigError as error:
        return choice.model_copy(update={"box_fault": str(error)})
    return choice.model_copy(update={"box_file": str(plan.box_file)})


def choose_height(heights: Sequence[ChunkFigures]) -> int | None:
    """The cheapest of the heights within the budget, of those nearly as cheap the lowest; None where none is within it.

    Judged by their best rounds: what else ran on the box can only have made a round longer.
    """
    within = [figures for figures in heights if figures.within_budget]
    if not within:
        return None
    cheapest = min(figures.us_per_line.lowest for figures in within)
    return min(figures.chunk_lines for figures in within if figures.us_per_line.lowest <= AS_CHEAP * cheapest)


def _open(plan: Plan, chunk_lines: int, opened: ExitStack) -> Segmenter:
    config = plan_modes(plan.config)[0].model_copy(update={"chunk_lines": chunk_lines})
    segmenter = opened.enter_context(Engines(config, plan.origin)).segmenter(plan.station.width_px)
    segmenter.start(0)
    return segmenter


def _choice(plan: Plan, trials: Sequence[_Trial], portion: int) -> ChunkChoice:
    per_line = {trial.chunk_lines: figure_of(spent.wall_s / portion * 1e6 for spent in trial.rounds) for trial in trials}
    carried_hz = 1e6 / min(figure.value for figure in per_line.values())
    line_rate_hz = min(plan.station.line_rate_hz or carried_hz, HIGHEST_LOAD * carried_hz)
    heights = []
    for trial in trials:
        us_per_line = per_line[trial.chunk_lines]
        latency_ms = trial.segmenter.lag_lines / line_rate_hz * 1e3 + trial.chunk_lines * us_per_line.value / 1e3
        heights.append(
            ChunkFigures(
                chunk_lines=trial.chunk_lines,
                lag_lines=trial.segmenter.lag_lines,
                us_per_line=us_per_line,
                cpu_us_per_line=figure_of(spent.cpu_s / portion * 1e6 for spent in trial.rounds),
                latency_ms=latency_ms,
                within_budget=latency_ms <= plan.latency_budget_ms,
            )
        )
    return ChunkChoice(
        latency_budget_ms=plan.latency_budget_ms,
        line_rate_hz=line_rate_hz,
        heights=tuple(heights),
        chosen_lines=choose_height(heights),
    )
