"""A bench run against an earlier one: every figure that both have, as a ratio, with what the rounds say is noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from edge.bench.results import Figure, Results
from edge.bench.table import aligned, number

SINGLE_ROUND_NOISE = 0.1
"""Of a figure from one round; shared machines of two cores differed by so much from one round to the next."""

Verdict = Literal["faster", "slower", "smaller", "larger", "same"]


@dataclass(frozen=True, slots=True)
class Comparable:
    """A figure with what it is good for. better: whether more of it is."""

    figure: Figure
    unit: str
    better: Literal["higher", "lower"]
    kind: Literal["speed", "size"]


@dataclass(frozen=True, slots=True)
class Change:
    """A figure of both runs. ratio: after over before."""

    name: str
    unit: str
    before: float
    after: float
    ratio: float
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Comparison:
    """warnings: what else differs, so that a ratio may not be the program's. missing: figures that one run alone has."""

    changes: tuple[Change, ...]
    warnings: tuple[str, ...]
    missing: tuple[str, ...]


def compare(before: Results, after: Results) -> Comparison:
    """Two runs. A difference is noise where the ranges of the rounds meet; of one round, +- 10 % is taken for its range."""
    old, new = dict(comparables(before)), dict(comparables(after))
    changes = tuple(_change(name, old[name], figure) for name, figure in new.items() if name in old)
    missing = tuple(name for name in (*old, *new) if (name in old) != (name in new))
    return Comparison(changes, tuple(_warnings(before, after)), missing)


def comparables(results: Results) -> Iterator[tuple[str, Comparable]]:
    """Every figure that a later run may be held against, by a name that says what was measured."""
    for engine in results.engines or ():
        size = f"batch {engine.batch}" if engine.batch else f"{engine.chunk_lines} lines"
        threads = f"{engine.threads} thread{'s' if engine.threads > 1 else ''}"
        name = f"{engine.engine} {engine.bundle} {engine.backend} {size} {threads}"
        yield f"{name}, CPU", Comparable(engine.megapixels_per_cpu_s, "MPix/CPU-s", "higher", "speed")
        yield f"{name}, clock", Comparable(engine.megapixels_per_s, "MPix/s", "higher", "speed")
    for row in results.pipeline or ():
        name = f"pipeline {row.mode} {row.wanted_clean_share:.0%} clean"
        yield f"{name}, CPU", Comparable(row.megapixels_per_cpu_s, "MPix/CPU-s", "higher", "speed")
        yield f"{name}, clock", Comparable(row.lines_per_s, "lines/s", "higher", "speed")
    if results.latency is not None:
        yield "capacity", Comparable(results.latency.capacity_lines_per_s, "lines/s", "higher", "speed")
        for load in results.latency.loads:
            for share, figure in (("p50", load.p50_ms), ("p99", load.p99_ms)):
                if figure is not None:
                    yield f"latency {share} at {load.load_share:.0%} load", Comparable(figure, "ms", "lower", "speed")
    for run in results.memory or ():
        figure = Figure(value=run.peak_mib, lowest=run.peak_mib, highest=run.peak_mib, rounds=1)
        yield (
            f"memory, {run.metres:.0f} m" if len(results.memory or ()) > 1 else "memory",
            Comparable(figure, "MiB", "lower", "size"),
        )
    for height in results.chunks.heights if results.chunks else ():
        yield f"dense path, {height.chunk_lines} lines", Comparable(height.us_per_line, "us/line", "lower", "speed")


def text_of_comparison(comparison: Comparison, named: str) -> str:
    """The comparison for a terminal. named: the earlier run's file."""
    lines = [f"Against {named}"]
    lines += [f"warning: {warning}" for warning in comparison.warnings]
    rows = [
        [f"{change.name}", change.unit, number(change.before), number(change.after), f"{change.ratio:.2f}", _said(change.verdict)]
        for change in comparison.changes
    ]
    if rows:
        lines.append(aligned(["figure", "unit", "before", "now", "ratio", ""], rows))
    else:
        lines.append("no figure is in both")
    if comparison.missing:
        lines.append(f"{len(comparison.missing)} figures are in one of the two alone")
    return "\n".join(lines)


def _said(verdict: Verdict) -> str:
    return "same within noise" if verdict == "same" else verdict


def _change(name: str, before: Comparable, after: Comparable) -> Change:
    old, new = before.figure, after.figure
    ratio = new.value / old.value if old.value else float("inf")
    return Change(name, after.unit, old.value, new.value, ratio, _judge(_range(old), _range(new), after))


def _range(figure: Figure) -> tuple[float, float]:
    if figure.rounds > 1:
        return figure.lowest, figure.highest
    return figure.value * (1 - SINGLE_ROUND_NOISE), figure.value * (1 + SINGLE_ROUND_NOISE)


def _judge(before: tuple[float, float], after: tuple[float, float], figure: Comparable) -> Verdict:
    if after[0] <= before[1] and before[0] <= after[1]:
        return "same"
    more = after[0] > before[1]
    if figure.kind == "size":
        return "larger" if more else "smaller"
    return "faster" if more == (figure.better == "higher") else "slower"


def _warnings(before: Results, after: Results) -> Iterator[str]:
    machines = (f"{run.machine.cores} x {run.machine.processor}" for run in (before, after))
    stations = (before.station, after.station)
    told = {
        "machine": tuple(machines),
        "bundle": tuple(f"{station.bundle} {station.bundle_sha256[:12]}" for station in stations),
        "gate": tuple(f"{station.gate} {(station.gate_sha256 or '')[:12]}".strip() for station in stations),
        "mode": tuple(station.mode for station in stations),
        "width": tuple(f"{station.width_px} px" for station in stations),
        "backend": tuple(f"{station.backend} {station.backend_version}" for station in stations),
        "threads": tuple(str(station.threads) for station in stations),
        "chunk_lines": tuple(str(station.chunk_lines) for station in stations),
        "rules": tuple(station.config_hash[:12] for station in stations),
    }
    for name, (old, new) in told.items():
        if old != new:
            yield f"another {name}: {old} before, {new} now"
    for name, run in (("before", before), ("now", after)):
        if not run.complete:
            yield f"the run {name} was interrupted in {run.interrupted_in}"
