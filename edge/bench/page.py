"""A bench run as one page for a browser: what it means on top, plots, tables of every figure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from edge.bench.results import (
    ChunkChoice,
    EngineFigures,
    Figure,
    LatencyFigures,
    MemoryFigures,
    OverloadFigures,
    PipelineFigures,
    Results,
    StripTruth,
)
from edge.pages.page import Fact, Section, Value, render_page
from edge.pages.plots import Bars, Curves, Plot, Series

NAN = float("nan")


def page_of(results: Results) -> str:
    """The page as HTML."""
    station, machine = results.station, results.machine
    engine = f"{station.bundle}{f' behind {station.gate}' if station.gate else ''}, {station.backend}"
    began = f"{results.began_at:%Y-%m-%d %H:%M}"
    about = (
        f"{station.width_px} px with {engine} on {machine.cores} x {machine.processor}, {began}, {results.seconds:.0f} s: "
        f"{results.command}"
    )
    if not results.complete:
        about = f"Interrupted{f' in {results.interrupted_in}' if results.interrupted_in else ''}: not everything is here. {about}"
    return render_page("What this box carries", about, tuple(_facts(results)), tuple(_plots(results)), tuple(_sections(results)))


def _facts(results: Results) -> Iterator[Fact]:
    for figures in results.pipeline or ():
        if figures.mode != "cascade" or figures.wanted_clean_share == 0.95:
            name = f"{figures.mode}, {figures.clean_share:.0%} clean"
            yield Fact(name, f"{figures.lines_per_s.value:,.0f} lines/s".replace(",", " "), _speed_remark(results, figures))
    if results.latency:
        for load in results.latency.loads:
            if load.load_share == 0.8 and load.p99_ms:
                verdict = "bad" if load.alerts_missing or load.shed_lines else "good"
                remark = f"from capture to subscriber at 80 % load; p50 {_value(load.p50_ms):.0f} ms"
                yield Fact("p99 latency", f"{_value(load.p99_ms):.0f} ms", remark, verdict)  # type: ignore[arg-type]
    if results.overload:
        exact = results.overload.ledger_exact
        told = f"at {results.overload.load_share:.0%} of capacity; ledger {'exact' if exact else 'NOT exact'}"
        yield Fact("shed", f"{results.overload.shed_share:.1%}", told, "good" if exact else "bad")
    if results.memory:
        longest = max(results.memory, key=lambda run: run.metres)
        yield Fact("memory", f"{longest.peak_mib:.0f} MiB", f"peak over {longest.metres:.0f} m")
    if results.chunks and results.chunks.chosen_lines:
        yield Fact("chunk height", f"{results.chunks.chosen_lines} lines", f"within {results.chunks.latency_budget_ms:g} ms")


def _speed_remark(results: Results, figures: PipelineFigures) -> str:
    metres_per_minute = figures.lines_per_s.value * results.station.mm_per_line * 60 / 1000
    found = f"; {figures.dense_defects_found} of {figures.dense_defects} dense defects" if figures.dense_defects else ""
    return f"{metres_per_minute:.0f} m/min at {results.station.mm_per_line:g} mm a line{found}"


def _plots(results: Results) -> Iterator[Plot]:
    yield from _pipeline_plots(results.pipeline or ())
    yield from _engine_plots(results.engines or ())
    if results.latency and results.latency.loads:
        yield _latency_plot(results.latency)
    if results.chunks and results.chunks.heights:
        yield from _chunk_plots(results.chunks)
    for run in results.memory or ():
        if len({sample.metres for sample in run.samples}) > 1:
            yield _memory_plot(run)


def _pipeline_plots(pipeline: Sequence[PipelineFigures]) -> Iterator[Plot]:
    if not pipeline:
        return
    labels = tuple(f"{figures.mode}, {figures.clean_share:.0%} clean" for figures in pipeline)
    speeds = tuple(figures.megapixels_per_cpu_s.value for figures in pipeline)
    note = "The whole pipeline, lines in, events out, outbox on disk, by processor time."
    yield Bars("Pipeline", note, "MPix per CPU-second", labels, (Series("", speeds),))
    shares = tuple(100 * _value(figures.cpu_share_outside_inference) for figures in pipeline)
    if any(map(math.isfinite, shares)):
        note = "Share of processor time that is not the engines': windows, masks, tracker, events, outbox."
        yield Bars("Outside inference", note, "% of processor time", labels, (Series("", shares),))


def _engine_plots(engines: Sequence[EngineFigures]) -> Iterator[Plot]:
    streams = [figures for figures in engines if figures.engine == "stream" and figures.chunk_lines]
    heights = tuple(sorted({float(figures.chunk_lines or 0) for figures in streams}))
    named: dict[str, dict[float, float]] = {}
    for figures in streams:
        named.setdefault(_engine_name(figures), {})[float(figures.chunk_lines or 0)] = figures.megapixels_per_cpu_s.value
    curves = {name: by for name, by in named.items() if len(by) > 1}
    if curves:
        series = tuple(Series(name, tuple(by.get(height, NAN) for height in heights)) for name, by in curves.items())
        note = "The line-streaming engine alone, each line computed once; x2: two threads."
        yield Curves("Stream by chunk height", note, "lines a chunk", "MPix per CPU-second", heights, series, scale="logarithmic")
    for kind, title in (("tiles", "Tiles"), ("gate", "Gate")):
        some = [figures for figures in engines if figures.engine == kind]
        if some:
            labels = tuple(f"{_engine_name(figures)}{f', batch {figures.batch}' if figures.batch else ''}" for figures in some)
            speeds = tuple(figures.megapixels_per_cpu_s.value for figures in some)
            yield Bars(
                title,
                "The engine alone, pixels of the strip; x2: two threads.",
                "MPix per CPU-second",
                labels,
                (Series("", speeds),),
            )


def _engine_name(figures: EngineFigures) -> str:
    return f"{figures.backend} {figures.precision}{f' x{figures.threads}' if figures.threads > 1 else ''}"


def _latency_plot(latency: LatencyFigures) -> Plot:
    loads = sorted(latency.loads, key=lambda load: load.load_share)
    series = (
        Series("floor", tuple(load.floor_ms for load in loads)),
        Series("p50", tuple(_value(load.p50_ms) for load in loads)),
        Series("p99", tuple(_value(load.p99_ms) for load in loads)),
        Series("p99.9", tuple(_value(load.p99_9_ms) for load in loads)),
    )
    note = "From a defect's last line to the alert at a subscriber; the floor is one chunk's lines and the network's lag."
    return Curves("Latency by load", note, "load, % of capacity", "ms", tuple(100 * load.load_share for load in loads), series)


def _chunk_plots(chunks: ChunkChoice) -> Iterator[Plot]:
    heights = sorted(chunks.heights, key=lambda figures: figures.chunk_lines)
    places = tuple(float(figures.chunk_lines) for figures in heights)
    cost = Series("", tuple(figures.cpu_us_per_line.value for figures in heights))
    note = "Processor time of the dense path."
    yield Curves("Cost by chunk height", note, "lines a chunk", "µs per line", places, (cost,), scale="logarithmic")
    latency = Series("", tuple(figures.latency_ms for figures in heights))
    note = f"To capture a chunk and the lag at {chunks.line_rate_hz:,.0f} lines/s, and to compute it.".replace(",", " ", 1)
    budget = chunks.latency_budget_ms
    yield Curves("Latency by chunk height", note, "lines a chunk", "ms", places, (latency,), scale="logarithmic", limit=budget)


def _memory_plot(run: MemoryFigures) -> Plot:
    by_place = {sample.metres: sample.rss_mib for sample in run.samples}
    places = tuple(sorted(by_place))
    note = "Resident memory of the daemon in a process of its own."
    return Curves(
        f"Memory over {run.metres:.0f} m", note, "metres", "MiB", places, (Series("", tuple(by_place[m] for m in places)),)
    )


def _sections(results: Results) -> Iterator[Section]:
    if results.verdict:
        yield Section("What it means", "", ("",), tuple((sentence,) for sentence in results.verdict))
    if results.pipeline:
        yield _pipeline_section(results.pipeline)
    if results.engines:
        yield _engine_section(results.engines)
    if results.latency:
        yield _latency_section(results.latency)
    if results.overload:
        yield _overload_section(results.overload)
    if results.chunks:
        yield _chunk_section(results.chunks)
    if results.memory:
        yield _memory_section(results.memory)
    if results.strips:
        yield _strip_section(results.strips)
    if results.not_measured:
        yield Section("Not measured", "", ("part", "why"), tuple(results.not_measured.items()))
    yield Section("Station", "", ("key", "value"), tuple(_rows_of(results.station.model_dump())))
    yield Section("Machine", "", ("key", "value"), tuple(_rows_of({**results.machine.model_dump(), **results.versions})))


def _pipeline_section(pipeline: Sequence[PipelineFigures]) -> Section:
    note = (
        "Medians of rounds in turn. Ratio: throughput against the same engines on the same inputs with nothing around them. "
        "Alarmed: 256 px tiles in which the gate let something through."
    )
    head = (
        "mode",
        "clean tiles",
        "alarmed tiles",
        "lines/s",
        "MPix/s",
        "MPix per CPU-s",
        "+-",
        "outside inference",
        "ratio to engines",
        "found of planted",
        "false alarms",
        "of the dense path's",
    )
    rows = [
        (
            figures.mode,
            _percent(figures.clean_share),
            _percent(figures.alarmed_share),
            figures.lines_per_s.value,
            figures.megapixels_per_s.value,
            figures.megapixels_per_cpu_s.value,
            _percent(figures.megapixels_per_cpu_s.spread),
            _percent(_value(figures.cpu_share_outside_inference)),
            _value(figures.ratio_to_bare_engine),
            f"{figures.found} of {figures.planted}",
            figures.false_alarms,
            "–" if figures.dense_defects is None else f"{figures.dense_defects_found} of {figures.dense_defects}",
        )
        for figures in pipeline
    ]
    return Section("Pipeline", note, head, tuple(rows))


def _engine_section(engines: Sequence[EngineFigures]) -> Section:
    head = ("engine", "bundle", "backend", "precision", "threads", "batch", "chunk", "MPix/s", "MPix per CPU-s", "+-")
    rows = [
        (
            figures.engine,
            figures.bundle,
            figures.backend,
            figures.precision,
            figures.threads,
            NAN if figures.batch is None else figures.batch,
            NAN if figures.chunk_lines is None else figures.chunk_lines,
            figures.megapixels_per_s.value,
            figures.megapixels_per_cpu_s.value,
            _percent(figures.megapixels_per_cpu_s.spread),
        )
        for figures in engines
    ]
    return Section("Engines alone", "Prepared pixels, nothing around the engine; medians of rounds in turn.", head, tuple(rows))


def _latency_section(latency: LatencyFigures) -> Section:
    note = (
        f"A daemon, a broker and a subscriber of their own; capacity {latency.capacity_lines_per_s.value:.0f} lines/s with a "
        f"strip of {latency.clean_share:.0%} clean tiles. Fewer than 1000 alerts: the 99.9th percentile is the longest."
    )
    head = ("load", "lines/s", "alerts", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "floor ms", "p99 / floor", "shed", "missing")
    rows = [
        (
            f"{load.load_share:.0%}",
            load.line_rate_hz,
            load.alerts,
            _value(load.p50_ms),
            _value(load.p90_ms),
            _value(load.p99_ms),
            _value(load.p99_9_ms),
            load.floor_ms,
            _value(load.p99_to_floor),
            load.shed_lines,
            load.alerts_missing,
        )
        for load in latency.loads
    ]
    return Section("Latency", note, head, tuple(rows))


def _overload_section(overload: OverloadFigures) -> Section:
    exact = "adds up" if overload.ledger_exact else "does NOT add up"
    note = f"A camera at {overload.load_share:.0%} of capacity for {overload.seconds:.0f} s: the ledger {exact}."
    head = ("lines/s", "captured", "inspected", "gated", "lost", "shed", "shed share")
    row = (
        overload.line_rate_hz,
        overload.captured_lines,
        overload.inspected_lines,
        overload.gated_lines,
        overload.lost_lines,
        overload.shed_lines,
        _percent(overload.shed_share),
    )
    return Section("Overload", note, head, (row,))


def _chunk_section(chunks: ChunkChoice) -> Section:
    chosen = "no height is within the budget" if chunks.chosen_lines is None else f"{chunks.chosen_lines} lines chosen"
    kept = f", kept in {chunks.box_file}" if chunks.box_file else ""
    note = f"Budget {chunks.latency_budget_ms:g} ms at {chunks.line_rate_hz:.0f} lines/s: {chosen}{kept}."
    head = ("lines a chunk", "µs per line", "CPU µs per line", "+-", "latency ms", "within budget")
    rows = [
        (
            figures.chunk_lines,
            figures.us_per_line.value,
            figures.cpu_us_per_line.value,
            _percent(figures.cpu_us_per_line.spread),
            figures.latency_ms,
            "yes" if figures.within_budget else "no",
        )
        for figures in chunks.heights
    ]
    return Section("Chunk height", note, head, tuple(rows))


def _memory_section(memory: Sequence[MemoryFigures]) -> Section:
    head = ("metres", "lines", "seconds", "settled MiB", "last MiB", "peak MiB", "growth MiB/km")
    rows = [
        (
            run.metres,
            run.lines,
            run.seconds,
            run.settled_mib,
            run.last_mib,
            run.peak_mib,
            NAN if run.growth_mib_per_km is None else run.growth_mib_per_km,
        )
        for run in memory
    ]
    return Section("Memory", "Resident memory of the daemon, the first tenth of the samples left out.", head, tuple(rows))


def _strip_section(strips: Sequence[StripTruth]) -> Section:
    head = ("clean tiles", "wanted", "tiles", "px", "lines", "seed", "defects planted", "smaller ones")
    rows = [
        (
            _percent(strip.clean_share),
            _percent(strip.wanted_clean_share),
            strip.tiles,
            strip.width_px,
            strip.lines,
            strip.seed,
            strip.planted,
            strip.smaller,
        )
        for strip in strips
    ]
    return Section("Strips", "Simulated steel, made beforehand; clean: 256 px tiles without a planted pixel.", head, tuple(rows))


def _rows_of(values: dict[str, object]) -> Iterator[tuple[Value, ...]]:
    for key, value in values.items():
        yield key, "–" if value is None else str(value)


def _value(figure: Figure | None) -> float:
    return NAN if figure is None else figure.value


def _percent(share: float | None) -> str:
    return "–" if share is None or not math.isfinite(share) else f"{100 * share:.3g} %"
