"""What a bench writes, reads, compares and says; on figures that are known."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path

import pytest

from edge.bench.chunks import choose_height
from edge.bench.comparison import compare, text_of_comparison
from edge.bench.latency import Load, load_figures, percentile, rates_between
from edge.bench.memory import figures_of
from edge.bench.results import (
    ChunkFigures,
    Figure,
    LatencyFigures,
    Machine,
    MemorySample,
    PipelineFigures,
    Results,
    Station,
    figure_of,
    json_of,
    read_results,
)
from edge.bench.table import COLUMNS, text_of
from edge.bench.verdict import judge
from edge.errors import ConfigError

STATION = Station(
    origin="station.yaml",
    bundle="unet",
    bundle_sha256="a" * 64,
    precision="int8",
    mode="cascade",
    dense="streaming",
    backend="ort",
    threads=2,
    chunk_lines=64,
    width_px=4096,
    frame_lines=128,
    mm_per_line=0.25,
    mm_per_column=0.25,
    line_rate_hz=20_000,
    config_hash="c" * 64,
)


def pipeline_row(rates: list[float], mode: str = "cascade", **changes: object) -> PipelineFigures:
    scaled = [rate * 4096e-6 for rate in rates]
    known = {"planted": 10, "found": 9, "false_alarms": 1, "dense_defects": 11, "dense_defects_found": 10}
    return PipelineFigures(
        mode=mode,
        wanted_clean_share=0.95,
        clean_share=0.949,
        alarmed_share=0.05,
        lines_per_s=figure_of(rates),
        megapixels_per_s=figure_of(scaled),
        megapixels_per_cpu_s=figure_of(scaled),
        **{**known, **changes},
    )


def run(rates: list[float], **changes: object) -> Results:
    return Results(
        began_at=datetime(2026, 1, 2, tzinfo=timezone.utc),
        seconds=1.0,
        command="rust-edge bench",
        versions={"rust-edge": "1"},
        machine=Machine(processor="P", architecture="x86_64", system="Linux", cores=2),
        pipeline=(pipeline_row(rates),),
        **{"station": STATION, **changes},
    )


def verdicts(before: list[float], after: list[float]) -> dict[str, tuple[float, str]]:
    return {change.name: (change.ratio, change.verdict) for change in compare(run(before), run(after)).changes}


def test_results_come_back_from_json_as_they_were(tmp_path: Path) -> None:
    results = run([100.0, 110.0, 90.0])
    path = tmp_path / "run.json"
    path.write_bytes(json_of(results))
    assert read_results(path) == results


def test_what_a_later_version_adds_is_no_fault(tmp_path: Path) -> None:
    document = json.loads(json_of(run([100.0])))
    document["machine"]["temperature_c"] = 61.0
    path = tmp_path / "run.json"
    path.write_text(json.dumps(document))
    assert read_results(path) == run([100.0])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "not JSON"),
        ("[]", "got format None"),
        ('{"format": "other"}', "got format 'other'; expected 'rust-edge-bench'"),
        ('{"format": "rust-edge-bench", "format_version": 2}', "got format version 2; expected 1"),
        ('{"format": "rust-edge-bench", "format_version": 1}', "began_at"),
    ],
)
def test_another_file_is_refused_by_what_it_is(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=told) as caught:
        read_results(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there_is_said_to_be_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_results(tmp_path / "none.json")


def test_a_figure_is_the_median_of_its_rounds_with_their_range() -> None:
    figure = figure_of([4.0, 1.0, 2.0, 3.0])
    assert (figure.value, figure.lowest, figure.highest, figure.rounds) == (2.5, 1.0, 4.0, 4)
    assert figure.spread == 1.5 / 2.5


def test_rounds_that_do_not_meet_are_a_difference_and_its_ratio_is_after_over_before() -> None:
    name = "pipeline cascade 95% clean, clock"
    assert verdicts([100, 101, 102], [200, 202, 204])[name] == (2.0, "faster")
    assert verdicts([200, 202, 204], [100, 101, 102])[name] == (0.5, "slower")


def test_rounds_that_meet_are_noise_however_far_the_medians_lie_apart() -> None:
    assert verdicts([100, 100, 160], [150, 150, 150])["pipeline cascade 95% clean, clock"] == (1.5, "same")


@pytest.mark.parametrize(("after", "verdict"), [(115.0, "same"), (125.0, "faster"), (80.0, "slower")])
def test_single_rounds_are_taken_for_ten_percent_uncertain(after: float, verdict: str) -> None:
    assert verdicts([100.0], [after])["pipeline cascade 95% clean, clock"][1] == verdict


def test_less_latency_is_faster() -> None:
    def with_capacity(p99: float) -> Results:
        load = {"load_share": 0.8, "line_rate_hz": 1.0, "seconds": 1.0, "alerts": 9, "floor_ms": 1.0, "shed_lines": 0}
        figure = figure_of([p99, p99])
        latency = LatencyFigures(
            clean_share=0.95,
            capacity_lines_per_s=figure_of([1.0]),
            capacity_megapixels_per_s=figure_of([1.0]),
            loads=({**load, "alerts_missing": 0, "p50_ms": figure, "p99_ms": figure},),
        )
        return run([100.0], latency=latency)

    changes = {change.name: change for change in compare(with_capacity(50.0), with_capacity(40.0)).changes}
    assert changes["latency p99 at 80% load"].verdict == "faster"
    assert changes["latency p99 at 80% load"].ratio == 0.8


def test_another_machine_bundle_or_width_is_warned_of_and_figures_of_one_run_alone_are_counted() -> None:
    other = run([100.0], station=STATION.model_copy(update={"bundle_sha256": "b" * 64, "width_px": 2048}))
    other = other.model_copy(update={"machine": Machine(processor="Q", architecture="x86_64", system="L", cores=4)})
    comparison = compare(run([100.0]), other.model_copy(update={"pipeline": None}))
    assert [warning.split(":")[0] for warning in comparison.warnings] == ["another machine", "another bundle", "another width"]
    assert len(comparison.missing) == 2
    assert "no figure is in both" in text_of_comparison(comparison, "old.json")
    assert compare(run([100.0]), run([100.0])).warnings == ()


def test_an_interrupted_run_is_warned_of() -> None:
    part = run([100.0]).model_copy(update={"complete": False, "interrupted_in": "latency"})
    assert compare(part, run([100.0])).warnings == ("the run before was interrupted in latency",)


def test_the_verdict_says_metres_a_minute_and_whether_the_configured_rate_fits() -> None:
    fits = " ".join(judge(run([26_000.0])))
    assert "4096 px at 26.0 kHz = 390 m/min at 0.25 mm with 5% alarmed tiles" in fits
    assert "The configured 20.0 kHz fit: they take 77% of it, 1.3 times is there." in fits
    assert "reports 10 of the 11 defects that the dense path reports" in fits
    assert "fit barely: they take 95% of it" in " ".join(judge(run([21_000.0])))
    assert "do not fit: the box carries 50% of them" in " ".join(judge(run([10_000.0])))


def test_the_verdict_says_nothing_of_what_was_not_measured() -> None:
    assert list(judge(run([1.0]).model_copy(update={"pipeline": None}))) == []


def test_tables_fit_a_terminal() -> None:
    text = text_of(run([1234.5, 1300.0, 1200.0]).model_copy(update={"not_measured": {"latency": "no broker " * 30}}))
    assert max(map(len, text.splitlines())) <= COLUMNS
    assert "10/11" in text
    assert "9/10" in text


@pytest.mark.parametrize("count", [1, 2, 3, 99, 100, 1000])
def test_percentiles_are_values_that_occurred_in_order(count: int) -> None:
    values = [float(value) for value in range(count)]
    found = [percentile(values, share) for share in (0.0, 0.5, 0.9, 0.99, 0.999, 1.0)]
    assert found == sorted(found)
    assert set(found) <= set(values)
    assert found[-1] == values[-1]
    assert sum(value <= percentile(values, 0.9) for value in values) >= 0.9 * count


def test_rates_are_lines_over_time_between_the_counts() -> None:
    assert rates_between([(0.0, 0), (2.0, 400)]) == [200.0]
    assert rates_between([(0.0, 0), (1.0, 10), (2.0, 20), (3.0, 60), (4.0, 100), (5.0, 100), (6.0, 106)]) == [10.0, 40.0, 3.0]


def test_percentiles_are_of_all_rounds_together_and_their_range_of_single_ones() -> None:
    load = Load(line_rate_hz=1000.0, rounds=[[10.0, 20.0, 30.0], [], [40.0]])
    figures = load_figures(0.8, load, lag_lines=20)
    assert figures.alerts == 4
    assert figures.p50_ms == Figure(value=20.0, lowest=20.0, highest=40.0, rounds=2)
    assert figures.longest_ms == 40.0
    assert figures.floor_ms == 20.0
    assert figures.p99_to_floor is not None
    assert figures.p99_to_floor.value == 2.0


def test_a_load_without_alerts_has_no_percentiles() -> None:
    figures = load_figures(0.8, Load(line_rate_hz=1000.0, rounds=[[]]), lag_lines=20)
    assert figures.alerts == 0
    assert figures.p50_ms is figures.p99_to_floor is figures.longest_ms is None


def sample(metres: float, mib: float) -> MemorySample:
    return MemorySample(seconds=metres, metres=metres, rss_mib=mib)


def test_memory_growth_is_the_slope_behind_the_warming_and_none_on_a_short_strip() -> None:
    warming = [sample(0, 10), sample(100, 60), sample(200, 90)]
    rising = [sample(metres, 100 + metres / 500) for metres in range(300, 3000, 100)]
    figures = figures_of([*warming, *rising], mm_per_line=0.5)
    assert figures.growth_mib_per_km == pytest.approx(2.0)
    assert figures.settled_mib == 100.6
    assert figures.peak_mib == figures.last_mib == rising[-1].rss_mib
    assert figures.lines == 2900 * 1000 / 0.5
    assert figures_of([sample(metres, 100 + metres) for metres in range(20)], 0.25).growth_mib_per_km is None


def height(chunk_lines: int, us_per_line: float, within: bool) -> ChunkFigures:
    figure = Figure(value=2 * us_per_line, lowest=us_per_line, highest=3 * us_per_line, rounds=3)
    return ChunkFigures(
        chunk_lines=chunk_lines,
        lag_lines=chunk_lines + 112,
        us_per_line=figure,
        cpu_us_per_line=figure,
        latency_ms=1.0,
        within_budget=within,
    )


def test_the_chosen_chunk_is_the_lowest_of_the_cheapest_within_the_budget() -> None:
    heights = [height(16, 130, True), height(64, 102, True), height(128, 100, True), height(512, 80, False)]
    assert choose_height(heights) == 64
    assert choose_height([height(16, 130, False)]) is None
