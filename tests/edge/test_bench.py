"""A bench run, real and small: what its figures must have in common whatever the box; no time is judged."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from stations import station, write_strip
from toy_engines import write_gate, write_range_classifier, write_segmenter

from edge.bench.engines import BATCHES, CHUNKS, thread_counts, variants_of
from edge.bench.overload import adds_up
from edge.bench.plan import Budget, Plan, make_plan, plan_modes, strip_width
from edge.bench.progress import Progress
from edge.bench.results import PARTS, Part, Results, json_of, read_results
from edge.bench.run import measure
from edge.box import VARIABLE, read_box
from edge.bundle import open_bundle
from edge.cli import INTERRUPTED, main
from edge.config import AUTO, parse_config
from edge.ledger import Coverage

TINY = Budget(dict.fromkeys(PARTS, 0.2) | {"latency": 5.0, "overload": 1.0, "memory": 1.0}, 0.05, "typical")
LINES = 20 * 256
"""So that one tile is 5 % of the strip: with fewer none of the one with 95 % clean tiles would hold a defect."""


def plan_of(document: dict[str, Any], folder: Path, **changes: Any) -> Plan:
    plan = make_plan(parse_config(document, "test"), "test", TINY, 1e6, (), folder / "box.yaml")
    return replace(plan, strip_lines=LINES, **changes)


def measured(plan: Plan, *parts: Part) -> Results:
    with Progress(1.0) as progress:
        return measure(plan, parts, "rust-edge bench", progress)


@pytest.fixture(scope="module")
def cascade(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Engines that are arithmetic, as a cascade over 256 columns, all parts."""
    pytest.importorskip("iotcore", reason="the embedded broker is not installed: pip install 'rust-edge[demo]'")
    folder = tmp_path_factory.mktemp("bench")
    document = {
        "source": {"kind": "simulated", "width": 256, "frame_lines": 64},
        "bundle": str(write_segmenter(folder / "segmenter")),
        "gate": str(write_gate(folder / "gate")),
        "mode": "cascade",
        "dense": "slabs",
        "session": {"threads": 1, "backend": "ort"},
        "filters": {"strip_edges": {"background_below": 40}},
        "outbox": {"path": str(folder / "outbox.db")},
    }
    return measured(plan_of(document, folder), *PARTS)


def test_all_parts_are_measured_and_nothing_is_left_behind(cascade: Results, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert cascade.complete
    assert not cascade.failed
    assert not cascade.not_measured
    for part in PARTS:
        assert getattr(cascade, part) is not None
    assert not list(tmp_path_factory.getbasetemp().rglob(".rust-edge-bench-*"))


def test_every_figure_s_value_lies_within_its_rounds(cascade: Results) -> None:
    def figures(node: Any) -> list[dict[str, Any]]:
        if isinstance(node, dict):
            own = [node] if "rounds" in node else []
            return own + [figure for value in node.values() for figure in figures(value)]
        return [figure for value in node for figure in figures(value)] if isinstance(node, list) else []

    found = figures(json.loads(json_of(cascade)))
    assert len(found) > 20
    assert all(figure["lowest"] <= figure["value"] <= figure["highest"] for figure in found)


def test_engines_are_tried_at_one_thread_and_at_all_cores(tmp_path: Path) -> None:
    source = {"kind": "simulated", "width": 128}
    document = {"source": source, "gate": "steel-gate-int8", "session": {"threads": 1, "backend": "ort"}}
    results = measured(plan_of(document, tmp_path), "engines")
    assert results.engines is not None
    assert {row.engine for row in results.engines} == {"tiles", "stream", "gate"}
    assert {(row.bundle, row.precision) for row in results.engines} == {("steel-unet-int8", "int8"), ("steel-gate-int8", "int8")}
    assert {row.backend for row in results.engines} == {"ort"}
    assert {row.threads for row in results.engines if row.engine == "stream"} == set(thread_counts(results.machine.cores))
    assert all(row.megapixels_per_cpu_s.lowest > 0 and row.megapixels_per_s.lowest > 0 for row in results.engines)


def test_the_whole_sweep_tries_every_backend_and_the_float_sibling(tmp_path: Path) -> None:
    source = {"kind": "simulated", "width": 128}
    plan = plan_of({"source": source, "session": {"threads": 1, "backend": "ort"}}, tmp_path)
    plan = replace(plan, budget=replace(TINY, sweep="whole"))
    unet, sibling = open_bundle("steel-unet-int8"), open_bundle("steel-unet-fp32")
    variants = list(variants_of(plan, unet, sibling, None, cores=4))
    assert len(set(map(str, variants))) == len(variants)
    for backend in AUTO:
        own = [variant for variant in variants if variant.backend == backend]
        assert {variant.bundle.manifest.precision for variant in own} == {"int8", "fp32"}
        assert {variant.threads for variant in own} == {1, 2, 4}
        assert {variant.batch for variant in own if variant.engine == "tiles"} == set(BATCHES)
        assert {variant.chunk_lines for variant in own if variant.engine == "stream"} == set(CHUNKS)


def test_the_cascade_is_held_against_the_dense_path_on_strips_of_every_share(cascade: Results) -> None:
    assert cascade.pipeline is not None
    rows = {(row.mode, row.wanted_clean_share): row for row in cascade.pipeline}
    assert set(rows) == {("dense", 0.95), ("cascade", 0.90), ("cascade", 0.95), ("cascade", 0.99)}
    strips = {strip.wanted_clean_share: strip for strip in cascade.strips}
    for (mode, share), row in rows.items():
        assert row.clean_share == strips[share].clean_share
        assert row.planted == strips[share].planted
        assert row.found <= row.planted
        if mode == "cascade":
            assert row.dense_defects_found is not None
            assert row.dense_defects is not None
            assert row.dense_defects_found <= row.dense_defects
            assert row.alarmed_share is not None
            assert 0 <= row.alarmed_share <= 1
        else:
            assert row.dense_defects is row.alarmed_share is None


def test_latency_is_that_of_alerts_that_arrived_and_its_percentiles_are_ordered(cascade: Results) -> None:
    assert cascade.latency is not None
    assert [load.load_share for load in cascade.latency.loads] == [0.5, 0.8, 0.95]
    for load in cascade.latency.loads:
        assert load.alerts_missing == 0
        assert load.line_rate_hz == pytest.approx(load.load_share * cascade.latency.capacity_lines_per_s.value)
        assert load.alerts > 0
        assert load.p50_ms is not None
        assert load.p90_ms is not None
        assert load.p99_ms is not None
        assert load.p99_9_ms is not None
        assert 0 < load.p50_ms.value <= load.p90_ms.value <= load.p99_ms.value <= load.p99_9_ms.value == load.longest_ms


def test_every_line_of_an_overload_is_in_the_ledger(cascade: Results) -> None:
    overload = cascade.overload
    assert overload is not None
    assert overload.ledger_exact
    counted = overload.inspected_lines + overload.gated_lines + overload.lost_lines + overload.shed_lines
    assert counted == overload.captured_lines > 0


def test_a_ledger_adds_up_only_where_every_line_is_in_it_and_the_event_says_the_same() -> None:
    coverage = Coverage(inspected=2, gated=1, shed=1)
    event = {"inspected": 2, "gated": 1, "lost": 0, "shed": 1, "total": 4}
    assert adds_up(coverage, event, 4)
    assert not adds_up(coverage, event | {"total": 5}, 5)  # a captured line that nobody counted
    assert not adds_up(coverage, event | {"shed": 2}, 4)
    assert not adds_up(coverage, event | {"total": 3}, 4)


def test_memory_is_sampled_along_the_strip(cascade: Results) -> None:
    assert cascade.memory is not None
    (run,) = cascade.memory
    metres = [sample.metres for sample in run.samples]
    assert metres == sorted(metres)
    assert len(metres) > 3
    assert 0 < run.settled_mib <= run.peak_mib
    assert run.metres == metres[-1] == pytest.approx(run.lines * 0.25 / 1000)


def test_the_chosen_chunk_height_is_kept_for_this_box(cascade: Results) -> None:
    chunks = cascade.chunks
    assert chunks is not None
    assert chunks.box_file is not None
    (kept,) = read_box(Path(chunks.box_file)).chunk_heights
    assert kept.chunk_lines == chunks.chosen_lines
    assert (kept.bundle_sha256, kept.backend, kept.width_px, kept.threads) == (cascade.station.bundle_sha256, "ort", 256, 1)
    assert [height.chunk_lines for height in chunks.heights] == [32, 64, 128, 256]
    assert all(height.lag_lines >= height.chunk_lines and height.latency_ms > 0 for height in chunks.heights)


def test_the_verdict_begins_with_what_the_box_carries(cascade: Results) -> None:
    assert cascade.verdict[0].startswith("This box carries 256 px at ")


def test_memory_over_given_lengths_has_a_run_of_each(tmp_path: Path) -> None:
    document = station(tmp_path, source={"kind": "simulated", "width": 128}, sinks={})
    results = measured(plan_of(document, tmp_path, metres=(0.5, 2.0)), "memory")
    assert results.memory is not None
    assert [run.lines for run in results.memory] == [2000, 8000]


def test_a_classifier_is_measured_where_that_means_something_and_the_rest_is_said(tmp_path: Path) -> None:
    bundle = write_range_classifier(tmp_path / "classifier")
    document = station(tmp_path, bundle=str(bundle), mode="tiles", source={"kind": "simulated", "width": 128}, sinks={})
    results = measured(plan_of({**document, "dense": "streaming"}, tmp_path), "engines", "pipeline", "chunks")
    assert results.engines is not None
    assert {row.engine for row in results.engines} == {"tiles"}
    assert results.pipeline is not None
    assert [row.mode for row in results.pipeline] == ["tiles"]
    assert results.not_measured == {"chunks": "mode tiles has no chunks; expected mode dense or cascade"}
    assert not results.failed


def test_the_width_of_a_folder_is_that_of_its_images(tmp_path: Path) -> None:
    strip = write_strip(tmp_path / "strip", lines=250)
    assert strip_width(parse_config(station(tmp_path), "test")) == strip.shape[1]


def test_a_part_that_fails_is_told_and_the_next_one_begins(tmp_path: Path) -> None:
    document = station(tmp_path, source={"kind": "simulated", "width": 128}, sinks={})
    plan = plan_of(document, tmp_path)
    write_range_classifier(tmp_path / "toy")  # another engine in the bundle's place
    results = measured(plan, "pipeline", "memory")
    assert set(results.failed) == {"pipeline", "memory"}
    assert results.complete
    assert results.pipeline is None


class InterruptedAt(Progress):
    """Somebody presses Ctrl-C when the part has told its first figures."""

    def __init__(self, part: Part) -> None:
        super().__init__(1.0)
        self._part, self._shown = part, 0

    def show(self, part: Part) -> None:
        self._shown += part == self._part
        if self._shown == 2:
            raise KeyboardInterrupt


def test_an_interrupt_keeps_what_was_measured_and_says_where_it_came(tmp_path: Path) -> None:
    document = station(tmp_path, source={"kind": "simulated", "width": 128}, sinks={})
    plan = plan_of(document, tmp_path)
    with InterruptedAt("pipeline") as progress:
        results = measure(plan, ("engines", "pipeline", "memory"), "rust-edge bench", progress)
    assert (results.complete, results.interrupted_in) == (False, "pipeline")
    assert results.engines is not None
    assert results.pipeline is not None
    assert results.memory is None
    assert results.verdict[-1] == "Interrupted in pipeline: what is missing was not measured."


def wait_until(there: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    until_s = time.monotonic() + 120
    while not there():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until_s
        time.sleep(0.02)


def test_a_signal_ends_the_command_with_what_there_is_and_its_exit_code(tmp_path: Path) -> None:
    document = station(tmp_path, source={"kind": "simulated", "width": 128}, sinks={})
    (tmp_path / "station.yaml").write_text(yaml.safe_dump(document))
    words = ["bench", "-c", "station.yaml", "--quick", "--only", "memory", "--metres", "1000000", "--json", "run.json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", VARIABLE: str(tmp_path / "box.yaml")}
    process = subprocess.Popen(
        [sys.executable, "-m", "edge.cli", *words],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: bool(list(tmp_path.glob(".rust-edge-bench-*/events.jsonl"))), process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == INTERRUPTED, err
    assert "Traceback" not in err
    assert "Interrupted in memory" in out
    results = read_results(tmp_path / "run.json")
    assert (results.complete, results.interrupted_in) == (False, "memory")


def test_a_run_is_written_and_held_against_an_earlier_one(
    cascade: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = station(tmp_path, source={"kind": "simulated", "width": 128}, sinks={})
    (tmp_path / "station.yaml").write_text(yaml.safe_dump(document))
    earlier, now = tmp_path / "earlier.json", tmp_path / "now.json"
    earlier.write_bytes(json_of(cascade))
    words = ["bench", "-c", str(tmp_path / "station.yaml"), "--only", "memory", "--metres", "0.5"]
    page = tmp_path / "now.html"
    assert main([*words, "--json", str(now), "--html", str(page), "--compare", str(earlier)]) == 0
    assert "<h2>Memory</h2>" in page.read_text()
    out = capsys.readouterr().out
    assert f"Against {earlier}" in out
    assert "warning: another width: 256 px before, 128 px now" in out
    assert re.search(r"^memory +MiB +[0-9.]+ +[0-9.]+ ", out, re.MULTILINE)
    results = read_results(now)
    assert results.memory is not None
    assert results.engines is None


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--only", "engines,speed"], 2, "--only: got speed; expected some of engines, pipeline, latency, overload, memory"),
        (["--only", ","], 2, "--only: got nothing"),
        (["--latency-ms", "0"], 2, "expected more than 0"),
        (["--metres", "-1"], 2, "expected more than 0"),
        (["--compare", "no.json"], 2, "no.json: cannot be read"),
        (["--json", "."], 2, "--json: got ., which is no file"),
        (["--html", "."], 2, "--html: got ., which is no file"),
        (["--set", "source.width=1"], 2, "source.width: got 1; expected at least 64"),
        (["--set", "bundle=no-such"], 3, "no-such: no such bundle"),
        (["--box", "README.md", "--only", "chunks"], 2, "README.md"),
        (["-c", "no-such.yaml"], 2, "no-such.yaml: cannot be read"),
        (["-c", "two.yaml"], 2, "two.yaml: cameras: got 2; expected --camera with one of top, bottom"),
        (["-c", "two.yaml", "--camera", "left"], 2, "two.yaml: --camera: got left; expected one of top, bottom"),
        (["-c", "two.yaml", "--camera", "top", "--set", "bundle=no-such"], 3, "no-such: no such bundle"),
        (["--camera", "top"], 2, "--camera: got top, and no station file"),
    ],
)
def test_bad_input_is_one_clear_error_before_anything_is_measured(
    words: list[str], code: int, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("# no box\n- a: [")
    cameras = ", ".join(f"{{camera: {name}, source: {{kind: simulated}}}}" for name in ("top", "bottom"))
    (tmp_path / "two.yaml").write_text(f"cameras: [{cameras}]")
    assert main(["bench", *words]) == code
    err = capsys.readouterr().err
    assert told in err
    assert err.startswith("rust-edge: ")


def test_a_cascade_with_bands_of_its_own_is_measured_dense_as_well(tmp_path: Path) -> None:
    config = parse_config(station(tmp_path, mode="cascade", gate="gate", tiling={"band_lines": 512}), "station.yaml")
    dense, cascade = plan_modes(config)
    assert (dense.mode, dense.tiling.band_lines) == ("dense", None)
    assert (cascade.mode, cascade.tiling.band_lines) == ("cascade", 512)
