"""The results of a bench run as text for a terminal of 100 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from edge.bench.results import EngineFigures, Figure, PipelineFigures, Results

COLUMNS = 100
_NONE = "-"


def text_of(results: Results) -> str:
    """Machine, station, a table for each part that was measured, and the verdict."""
    blocks = [_head(results)]
    if results.engines is not None:
        blocks.append(_engines(results.engines))
    if results.pipeline is not None:
        blocks.append(_pipeline(results.pipeline))
    blocks += [block for block in (_latency(results), _overload(results), _memory(results), _chunks(results)) if block]
    blocks += [_wrapped(f"not measured: {part}: {reason}") for part, reason in results.not_measured.items()]
    blocks += [_wrapped(f"FAILED: {part}: {reason}") for part, reason in results.failed.items()]
    blocks.append("\n".join(_wrapped(sentence) for sentence in results.verdict))
    return "\n\n".join(block for block in blocks if block)


def aligned(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table: the first column to the left, the others to the right.

    >>> print(aligned(["engine", "MPix/s"], [["tiles", "9.7"], ["stream", "12.1"]]))
    engine  MPix/s
    tiles      9.7
    stream    12.1
    """
    table = [heads, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in table)


def number(value: float) -> str:
    """Three digits that count, and no exponent.

    >>> number(0.01234), number(4.567), number(45.67), number(4567.8)
    ('0.012', '4.57', '45.7', '4568')
    """
    if abs(value) < 1:
        return f"{value:.3f}"
    return f"{value:.{2 if abs(value) < 10 else 1 if abs(value) < 100 else 0}f}"


def measured(figure: Figure | None) -> str:
    """A figure with half the range of its rounds.

    >>> measured(Figure(value=10.0, lowest=9.5, highest=10.5, rounds=3)), measured(None)
    ('10.0 ±5%', '-')
    """
    if figure is None:
        return _NONE
    return f"{number(figure.value)} ±{figure.spread:.0%}" if figure.rounds > 1 else number(figure.value)


def _head(results: Results) -> str:
    machine, station = results.machine, results.station
    memory = f", {machine.memory_mib} MiB" if machine.memory_mib else ""
    busy = f"; load average {machine.load:.1f} when it began" if machine.load is not None else ""
    gate = f", gate {station.gate}" if station.gate else ""
    threads = f"{station.threads} thread{'s' if station.threads > 1 else ''}"
    return "\n".join(
        _wrapped(line)
        for line in (
            f"{machine.cores} x {machine.processor} ({machine.architecture}){memory}{busy}",
            f"{station.origin}: {station.mode}, {station.bundle}{gate} on {station.backend} {station.backend_version or ''}, "
            f"{threads}; {station.width_px} px of {station.mm_per_column:g} mm, frames of {station.frame_lines} lines",
        )
    )


def _engines(rows: Sequence[EngineFigures]) -> str:
    heads = ["engine", "bundle", "backend", "batch", "chunk", "threads", "MPix/CPU-s", "MPix/s"]
    cells = [
        [
            row.engine,
            row.bundle,
            row.backend,
            str(row.batch or _NONE),
            str(row.chunk_lines or _NONE),
            str(row.threads),
            measured(row.megapixels_per_cpu_s),
            measured(row.megapixels_per_s),
        ]
        for row in rows
    ]
    return "Engines alone\n" + aligned(heads, cells)


def _pipeline(rows: Sequence[PipelineFigures]) -> str:
    heads = ["pipeline", "clean", "alarmed", "lines/s", "MPix/s", "MPix/CPU-s", "of engine", "outside", "of dense", "planted"]
    cells = [
        [
            row.mode,
            f"{row.clean_share:.1%}",
            _percent(row.alarmed_share),
            measured(row.lines_per_s),
            number(row.megapixels_per_s.value),
            number(row.megapixels_per_cpu_s.value),
            _percent(row.ratio_to_bare_engine.value if row.ratio_to_bare_engine else None),
            _percent(row.cpu_share_outside_inference.value if row.cpu_share_outside_inference else None),
            _NONE if row.dense_defects is None else f"{row.dense_defects_found}/{row.dense_defects}",
            f"{row.found}/{row.planted}",
        ]
        for row in rows
    ]
    return "Whole pipeline, lines in, events out\n" + aligned(heads, cells)


def _latency(results: Results) -> str:
    latency = results.latency
    if latency is None:
        return ""
    heads = ["load", "lines/s", "alerts", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "floor ms", "p99/floor", "shed"]
    cells = [
        [
            f"{load.load_share:.0%}",
            f"{load.line_rate_hz:.0f}",
            str(load.alerts),
            *(number(figure.value) if figure else _NONE for figure in (load.p50_ms, load.p90_ms, load.p99_ms, load.p99_9_ms)),
            number(load.floor_ms),
            measured(load.p99_to_floor),
            str(load.shed_lines),
        ]
        for load in latency.loads
    ]
    head = (
        f"From a line's capture to the alert at a subscriber; the daemon carries {measured(latency.capacity_lines_per_s)} lines/s"
    )
    return f"{head}\n{aligned(heads, cells)}" if cells else head


def _overload(results: Results) -> str:
    overload = results.overload
    if overload is None:
        return ""
    heads = ["overload", "captured", "inspected", "gated", "lost", "shed", "ledger"]
    row = [
        f"{overload.load_share:.0%}",
        str(overload.captured_lines),
        str(overload.inspected_lines),
        str(overload.gated_lines),
        str(overload.lost_lines),
        f"{overload.shed_lines} ({overload.shed_share:.1%})",
        "exact" if overload.ledger_exact else "WRONG",
    ]
    return aligned(heads, [row])


def _memory(results: Results) -> str:
    if results.memory is None:
        return ""
    heads = ["memory", "lines", "settled MiB", "last MiB", "peak MiB", "MiB/km"]
    cells = [
        [
            f"{run.metres:.0f} m",
            str(run.lines),
            f"{run.settled_mib:.1f}",
            f"{run.last_mib:.1f}",
            f"{run.peak_mib:.1f}",
            _NONE if run.growth_mib_per_km is None else f"{run.growth_mib_per_km:+.2f}",
        ]
        for run in results.memory
    ]
    return aligned(heads, cells)


def _chunks(results: Results) -> str:
    chunks = results.chunks
    if chunks is None:
        return ""
    heads = ["chunk lines", "us/line", "CPU us/line", "latency ms", ""]
    cells = [
        [
            str(height.chunk_lines),
            measured(height.us_per_line),
            measured(height.cpu_us_per_line),
            number(height.latency_ms),
            "chosen" if height.chunk_lines == chunks.chosen_lines else "" if height.within_budget else "too late",
        ]
        for height in chunks.heights
    ]
    return f"Dense path by chunk height, at {chunks.line_rate_hz:.0f} lines/s\n{aligned(heads, cells)}"


def _percent(share: float | None) -> str:
    return _NONE if share is None else f"{share:.1%}"


def _wrapped(text: str) -> str:
    return "\n".join(_lines(text))


def _lines(text: str) -> Iterator[str]:
    yield from textwrap.wrap(text, COLUMNS, subsequent_indent="  ", break_long_words=False)
