"""What the figures of a bench run mean, in sentences."""

from __future__ import annotations

from collections.abc import Iterator

from edge.bench.results import Figure, LoadFigures, PipelineFigures, Results, Station

GENEROUS = 1.25
"""Capacity over line rate from which on a line is said to fit without more words: latency rises steeply above 80 % load."""
_JUDGED_LOAD = 0.8


def judge(results: Results) -> Iterator[str]:
    """Sentences, the most important first; nothing is said about what was not measured."""
    capacity = capacity_of(results)
    if capacity is not None:
        yield from _capacity(results, capacity)
    yield from _cascade(results)
    yield from _latency(results)
    yield from _overload(results)
    yield from _memory(results)
    yield from _chunks(results)
    if not results.complete:
        yield f"Interrupted in {results.interrupted_in}: what is missing was not measured."


def capacity_of(results: Results) -> Figure | None:
    """Lines a second that the station carries on the strip with 95 % clean tiles: the daemon's, else its pipeline's."""
    if results.latency is not None:
        return results.latency.capacity_lines_per_s
    row = _own_row(results)
    return row.lines_per_s if row else None


def carried(station: Station, lines_per_s: float) -> str:
    """What a line rate means: `4096 px at 21.0 kHz = 315 m/min at 0.25 mm`."""
    metres_per_min = lines_per_s * station.mm_per_line * 60 / 1000
    return f"{station.width_px} px at {_rate(lines_per_s)} = {metres_per_min:.0f} m/min at {station.mm_per_line:g} mm"


def _rate(lines_per_s: float) -> str:
    return f"{lines_per_s / 1000:.1f} kHz" if lines_per_s >= 1000 else f"{lines_per_s:.0f} Hz"


def _own_row(results: Results) -> PipelineFigures | None:
    rows = [row for row in results.pipeline or () if row.mode == results.station.mode]
    return min(rows, key=lambda row: abs(row.wanted_clean_share - 0.95), default=None)


def _capacity(results: Results, capacity: Figure) -> Iterator[str]:
    station, row = results.station, _own_row(results)
    if row is not None and row.alarmed_share is not None:
        on = f"with {row.alarmed_share:.0%} alarmed tiles"
    elif station.mode == "dense":
        on = "dense, every line through the segmenter"
    else:
        on = "on a strip with 95 % clean tiles"
    yield f"This box carries {carried(station, capacity.value)} {on} ({station.bundle} on {station.backend})."
    wanted = station.line_rate_hz
    if wanted is None:
        return
    headroom = capacity.value / wanted
    if headroom >= GENEROUS:
        yield f"The configured {_rate(wanted)} fit: they take {1 / headroom:.0%} of it, {headroom:.1f} times is there."
    elif headroom >= 1.0:
        yield (
            f"The configured {_rate(wanted)} fit barely: they take {1 / headroom:.0%} of it; "
            f"expected {1 / GENEROUS:.0%} at most, so that a busy moment does not shed lines."
        )
    else:
        yield f"The configured {_rate(wanted)} do not fit: the box carries {headroom:.0%} of them, the rest is shed."


def _cascade(results: Results) -> Iterator[str]:
    for row in results.pipeline or ():
        if row.mode == "cascade" and row.dense_defects is not None and row.dense_defects_found is not None:
            yield (
                f"At {row.clean_share:.1%} clean tiles the cascade carries {_rate(row.lines_per_s.value)} and reports "
                f"{row.dense_defects_found} of the {row.dense_defects} defects that the dense path reports; "
                f"of {row.planted} planted ones it finds {row.found}."
            )


def _latency(results: Results) -> Iterator[str]:
    loads = results.latency.loads if results.latency else ()
    judged: LoadFigures | None = min(loads, key=lambda load: abs(load.load_share - _JUDGED_LOAD), default=None)
    if judged is not None and judged.p99_ms is not None and judged.p99_to_floor is not None:
        yield (
            f"At {judged.load_share:.0%} load 99 of 100 alerts are at a subscriber within {judged.p99_ms.value:.0f} ms of their "
            f"last line, {judged.p99_to_floor.value:.1f} times what the lines of one chunk and the network's lag take to pass."
        )
    for load in loads:
        if load.shed_lines or load.alerts_missing:
            yield (
                f"At {load.load_share:.0%} load {load.shed_lines} lines were shed and {load.alerts_missing} alerts did not "
                "arrive: another process took the processor, or the capacity was measured too high."
            )


def _overload(results: Results) -> Iterator[str]:
    overload = results.overload
    if overload is None:
        return
    if overload.ledger_exact:
        yield (
            f"At {overload.load_share:.0%} load {overload.shed_share:.1%} of the lines were shed, "
            "and the ledger accounts for every line."
        )
    else:
        yield f"At {overload.load_share:.0%} load the ledger does not add up: this is a fault of rust-edge, please report it."


def _memory(results: Results) -> Iterator[str]:
    runs = results.memory or ()
    if len(runs) > 1:
        longest, shortest = max(runs, key=lambda run: run.metres), min(runs, key=lambda run: run.metres)
        yield (
            f"Peak memory is {longest.peak_mib:.0f} MiB over {longest.metres:.0f} m, "
            f"{longest.peak_mib / shortest.peak_mib:.2f} times that over {shortest.metres:.0f} m."
        )
    elif runs:
        yield f"The daemon takes {runs[0].peak_mib:.0f} MiB of memory at most over {runs[0].metres:.0f} m."


def _chunks(results: Results) -> Iterator[str]:
    chunks = results.chunks
    if chunks is None:
        return
    if chunks.chosen_lines is None:
        yield (
            f"No chunk height keeps the dense path within {chunks.latency_budget_ms:g} ms at {_rate(chunks.line_rate_hz)}; "
            "expected a larger --latency-ms, or fewer lines a second."
        )
        return
    if chunks.box_fault is not None:
        yield f"The chunk height could not be kept: {chunks.box_fault}."
    kept = f", kept in {chunks.box_file} for chunk_lines: auto" if chunks.box_file else ""
    yield f"The cheapest chunk height within {chunks.latency_budget_ms:g} ms is {chunks.chosen_lines} lines{kept}."
