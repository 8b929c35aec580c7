"""A camera that is too fast: what is shed, and that the ledger says so to the line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edge.bench.latency import broker_settings, measure_capacity
from edge.bench.plan import LATENCY_SHARE, Plan, scratch_folder, station_in
from edge.bench.results import OverloadFigures
from edge.bench.strip_source import StripSource
from edge.broker import EmbeddedBroker
from edge.daemon import Daemon
from edge.errors import StageError
from edge.ledger import Coverage

LOAD = 1.2
_FILLED_AFTER = 0.2
"""Share of the run after which the ring is to be full: the station's own would swallow all of a short one's excess."""
_CAPACITY_TIME = 0.3


def measure_overload(plan: Plan, capacity_lines_per_s: float | None) -> Iterator[OverloadFigures]:
    """One run. capacity_lines_per_s: as the latency part has found it; None: found here. Raises RustEdgeError."""
    strip, seconds = plan.strip(LATENCY_SHARE), plan.seconds("overload")
    with EmbeddedBroker() as broker, scratch_folder(plan.config) as folder:
        mqtt = broker_settings(plan, broker)
        if capacity_lines_per_s is None:
            capacity_lines_per_s = measure_capacity(plan, strip.lines, mqtt, max(1.0, _CAPACITY_TIME * seconds)).value
        line_rate_hz = LOAD * capacity_lines_per_s
        lines = math.ceil(seconds * line_rate_hz)
        excess = (LOAD - 1) * capacity_lines_per_s * seconds * _FILLED_AFTER
        queue_frames = min(plan.config.queue_frames, max(2, round(excess / plan.station.frame_lines)))
        config = station_in(folder, plan.config, mqtt).model_copy(update={"queue_frames": queue_frames})
        source = StripSource(strip.lines, plan.station.frame_lines, line_rate_hz, lines=lines)
        with Daemon(config, plan.origin, "bench-overload", source=source) as daemon:
            coverage = daemon.run().coverage
        told = _told_at_the_end(folder / "events.jsonl")
    captured = source.health().lines
    yield OverloadFigures(
        load_share=LOAD,
        line_rate_hz=line_rate_hz,
        seconds=seconds,
        queue_frames=queue_frames,
        captured_lines=captured,
        inspected_lines=coverage.inspected,
        gated_lines=coverage.gated,
        lost_lines=coverage.lost,
        shed_lines=coverage.shed,
        shed_share=coverage.shed / captured,
        ledger_exact=adds_up(coverage, told, captured),
    )


def adds_up(coverage: Coverage, told: dict[str, Any], captured: int) -> bool:
    """Whether the daemon's counts, and those in its last event, are the captured lines, every one of them once.

    >>> adds_up(Coverage(inspected=3, shed=1), {"inspected": 3, "gated": 0, "lost": 0, "shed": 1, "total": 4}, 4)
    True
    """
    return coverage.total == captured and told == {**asdict(coverage), "total": captured}


def _told_at_the_end(events: Path) -> dict[str, Any]:
    """The coverage of the strip's last event."""
    for line in reversed(events.read_text(encoding="utf-8").splitlines()):
        event = json.loads(line)
        if event["type"] == "io.rust-edge.strip.finished.v1":
            coverage: dict[str, Any] = event["data"]["coverage"]
            return coverage
    raise StageError(f"{events}: holds no end of the strip, which the daemon should have written")
