"""Latency from a line's capture to the alert at a subscriber: the daemon, a broker and a paced camera, at shares of capacity."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from edge.bench.plan import LATENCY_SHARE, Plan, scratch_folder, station_in
from edge.bench.results import Figure, LatencyFigures, LoadFigures, figure_of
from edge.bench.strip_source import StripSource
from edge.bench.subscriber import SubscriberProcess
from edge.broker import EmbeddedBroker
from edge.config import Mqtt
from edge.daemon import Daemon
from edge.errors import StageError
from edge.events import HealthData
from edge.frame import Lines

LOADS = (0.5, 0.8, 0.95)
OPENED = "io.rust-edge.defect.opened.v1"
_CAPACITY_TIME = 0.15
"""Share of the part's time that goes into the capacity."""
_RUN_S = 6.0
"""A round is about so long, and there are at least one, at most so many as fit."""
_OPENING_S = 1.5
_WARM_LINES = 1024
"""Lines before the first alert that counts: the first inferences set their memory up."""


@dataclass(slots=True)
class Load:
    """What was seen at one share of capacity. rounds: latencies in ms, ascending, of each run."""

    line_rate_hz: float
    seconds: float = 0.0
    rounds: list[list[float]] = field(default_factory=list)
    shed_lines: int = 0
    missing: int = 0


def measure_latency(plan: Plan) -> Iterator[LatencyFigures]:
    """Figures so far, after the capacity and after each run; loads take turns within each round. Raises RustEdgeError."""
    strip = plan.strip(LATENCY_SHARE)
    total_s = plan.seconds("latency")
    with EmbeddedBroker() as broker:
        mqtt = broker_settings(plan, broker)
        capacity = measure_capacity(plan, strip.lines, mqtt, max(1.0, _CAPACITY_TIME * total_s))
        figures = LatencyFigures(
            clean_share=strip.truth.clean_share,
            capacity_lines_per_s=capacity,
            capacity_megapixels_per_s=scaled(capacity, plan.station.width_px / 1e6),
        )
        yield figures
        loads = {share: Load(share * capacity.value) for share in LOADS}
        left_s = total_s * (1 - _CAPACITY_TIME)
        rounds = max(1, round(left_s / len(LOADS) / (_RUN_S + _OPENING_S)))
        run_s = max(1.0, left_s / len(LOADS) / rounds - _OPENING_S)
        for _ in range(rounds):
            for load in loads.values():
                _run(plan, strip.lines, mqtt, load, run_s)
                told = tuple(load_figures(share, seen, plan.lag_lines) for share, seen in loads.items() if seen.rounds)
                yield figures.model_copy(update={"loads": told})


def broker_settings(plan: Plan, broker: EmbeddedBroker) -> Mqtt:
    """How the station talks to its broker, with the embedded one in its place."""
    configured = plan.config.sinks.mqtt or Mqtt()
    port = broker.port if configured.version == "5" else broker.port_311
    return configured.model_copy(update={"host": broker.host, "port": port, "username": None, "password": None, "tls": None})


def measure_capacity(plan: Plan, lines: Lines, mqtt: Mqtt, seconds: float) -> Figure:
    """Lines a second that the daemon takes from a source that waits for it; a round is an interval between two counts."""
    counts: list[tuple[float, int]] = []

    def observe(health: HealthData) -> None:
        if health.coverage:
            counts.append((health.uptime_s, health.coverage.total))

    source = StripSource(lines, plan.station.frame_lines, None, seconds=seconds)
    with scratch_folder(plan.config) as folder:
        config = station_in(folder, plan.config, mqtt)
        with Daemon(config, plan.origin, "bench", observe, observe_every_s=seconds / 12, source=source) as daemon:
            daemon.run()
    # the last count is the one after the strip's end, the first ones those of a ring that fills
    return figure_of(rates_between(counts[2:-1] if len(counts) > 6 else counts))


def rates_between(counts: Sequence[tuple[float, int]], rounds: int = 3) -> list[float]:
    """Lines a second in so many intervals of a series of (seconds, lines), each as long as can be.

    >>> rates_between([(0.0, 0), (1.0, 10), (2.0, 20), (3.0, 50)], rounds=3)
    [10.0, 10.0, 30.0]
    """
    rounds = min(rounds, len(counts) - 1)
    if rounds < 1:
        raise StageError(f"the daemon told {len(counts)} counts, expected two or more: measure for longer")
    marks = [counts[index * (len(counts) - 1) // rounds] for index in range(rounds + 1)]
    return [(stop - start) / (late - soon) for (soon, start), (late, stop) in pairwise(marks)]


def _run(plan: Plan, lines: Lines, mqtt: Mqtt, load: Load, seconds: float) -> None:
    # at least the whole strip once, so that there are alerts on a slow box too
    count = max(math.ceil(seconds * load.line_rate_hz), len(lines) + _WARM_LINES)
    source = StripSource(lines, plan.station.frame_lines, load.line_rate_hz, lines=count)
    with scratch_folder(plan.config) as folder, SubscriberProcess(mqtt) as subscriber:
        config = station_in(folder, plan.config, mqtt)
        with Daemon(config, plan.origin, "bench", source=source) as daemon:
            coverage = daemon.run().coverage
        arrivals = [arrival for arrival in subscriber.arrivals() if arrival.type == OPENED]
        written = [event["id"] for event in map(json.loads, (folder / "events.jsonl").open()) if event["type"] == OPENED]
    waits = [
        (arrival.received_ns - source.captured_ns(arrival.line_stop)) / 1e6
        for arrival in arrivals
        if arrival.line_stop > _WARM_LINES
    ]
    load.rounds.append(sorted(waits))
    load.seconds += count / load.line_rate_hz
    load.shed_lines += coverage.shed
    load.missing += len(set(written) - {arrival.event_id for arrival in arrivals})


def load_figures(share: float, load: Load, lag_lines: int) -> LoadFigures:
    """What the runs at one share of capacity say. lag_lines: after a line at which its mask is out."""
    rounds = [waits for waits in load.rounds if waits]
    pooled = sorted(wait for waits in rounds for wait in waits)
    floor_ms = lag_lines / load.line_rate_hz * 1e3

    def figure(part: float) -> Figure | None:
        return figure_of([percentile(waits, part) for waits in rounds], percentile(pooled, part)) if pooled else None

    p99_ms = figure(0.99)
    return LoadFigures(
        load_share=share,
        line_rate_hz=load.line_rate_hz,
        seconds=load.seconds,
        alerts=len(pooled),
        p50_ms=figure(0.5),
        p90_ms=figure(0.9),
        p99_ms=p99_ms,
        p99_9_ms=figure(0.999),
        longest_ms=pooled[-1] if pooled else None,
        floor_ms=floor_ms,
        p99_to_floor=scaled(p99_ms, 1 / floor_ms) if p99_ms else None,
        shed_lines=load.shed_lines,
        alerts_missing=load.missing,
    )


def percentile(ascending: Sequence[float], share: float) -> float:
    """The smallest of some values that `share` (0 to 1) of them do not exceed: the nearest rank.

    >>> percentile([1.0, 2.0, 3.0, 4.0], 0.5), percentile([1.0, 2.0, 3.0, 4.0], 0.99)
    (2.0, 4.0)
    """
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)]


def scaled(figure: Figure, factor: float) -> Figure:
    """A figure in another unit."""
    return Figure(
        value=figure.value * factor, lowest=figure.lowest * factor, highest=figure.highest * factor, rounds=figure.rounds
    )
