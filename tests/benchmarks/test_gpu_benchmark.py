"""That the GPU's tests and benchmark run at all, shown without a GPU: on the strict fake device and TensorRT's API."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from toy_engines import write_cell_gate, write_streaming_segmenter

from benchmarks.gpu_bench.results import Results
from benchmarks.gpu_bench.state import parse_smi, read_state
from edge.cuda.kernels import NAMES
from edge.sessions.gpu import find_gpu

ROOT = Path(__file__).resolve().parents[2]
SLOW = "not two_stations and not their_own"
"""Tests whose threads make the strict device slow; the product's own tests have such."""


def run(*arguments: str, stand: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "RUST_EDGE_GPU_TESTS": stand}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)


def test_the_gpu_s_tests_pass_on_the_strict_device():
    done = run("-m", "pytest", "tests/gpu", "-k", SLOW, "-p", "no:cacheprovider", stand="strict")
    assert done.returncode == 0, done.stdout[-4000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 80


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> tuple[Results, str]:
    """Results of the whole benchmark on the strict device, and what it prints."""
    folder = tmp_path_factory.mktemp("gpu")
    unet, gate = write_streaming_segmenter(folder / "segmenter"), write_cell_gate(folder / "gate")
    sizes = ("--width", "256", "--lines", "512", "--json", str(folder / "figures.json"))
    bundles = ("--bundles", str(unet), str(gate), "--unet", str(unet), "--gate", str(gate))
    done = run("benchmarks/gpu.py", "--quick", *sizes, *bundles, stand="strict")
    assert done.returncode == 0, done.stdout + done.stderr
    return Results.model_validate_json((folder / "figures.json").read_bytes()), done.stdout


def test_figures_of_a_stand_in_say_that_they_are_no_gpu_s(measured):
    results, printed = measured
    assert not results.measured_on_gpu
    assert "NOT measured on a GPU" in results.note
    assert results.note in printed
    assert results.gpu.seam == "strict"


def test_every_part_of_the_benchmark_is_measured_and_what_is_not_has_its_reason(measured):
    results, _ = measured
    assert results.failed == {}
    assert set(results.not_measured) == {"ceilings: copy", "ceilings: matrix product"}
    assert {(row.bundle, row.batch) for row in results.engines} == {
        (bundle, batch) for bundle in ("segmenter", "gate") for batch in (1, 2)
    }
    assert [(row.mode, row.gate) for row in results.strips] == [("dense", None), ("cascade", "gate")]
    assert {row.bundle for row in results.overlap} == {"segmenter", "gate"}
    assert [row.mode for row in results.latency] == ["dense", "cascade"]
    assert {row.kernel for row in results.kernels} == set(NAMES) - {"classes_of_masks"}
    assert results.after is not None
    assert results.before.at <= results.after.at


def test_the_gpu_stands_beside_the_cpu_of_the_same_run(measured):
    results, _ = measured
    beside = [row for row in results.engines if row.cpu_tiles_per_s]
    assert {row.bundle for row in beside} == {"segmenter", "gate"}
    for row in beside:
        assert row.cpu_ratio == pytest.approx(row.tiles_per_s.value / row.cpu_tiles_per_s.value)
    for row in results.strips:
        assert row.cpu_ratio == pytest.approx(row.lines_per_s.value / row.cpu_lines_per_s.value)


def test_rows_trail_the_newest_line_by_what_the_network_wants(measured):
    results, _ = measured
    for row in results.latency:
        assert row.behind_lines > 0
        assert row.row_p50_ms.value >= row.floor_ms
        assert row.longest_ms >= row.p99_ms.value >= row.p50_ms.value


def test_without_a_gpu_the_benchmark_says_so_and_measures_nothing():
    if not isinstance(reason := find_gpu(), str):
        pytest.skip("there is a GPU")
    done = run("benchmarks/gpu.py", stand="")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"no GPU to measure: {reason}; expected a CUDA device")


def test_a_stand_in_that_nobody_knows_is_refused():
    done = run("benchmarks/gpu.py", stand="fake")
    assert done.returncode == 2
    assert done.stderr.startswith("RUST_EDGE_GPU_TESTS: got 'fake'; expected strict, emulated, or nothing")


def test_what_the_gpu_does_not_tell_of_itself_is_left_out():
    jetson = "540.4.0, [N/A], 1020, [Not Supported], 3199, [N/A], 48.5, [Unknown Error], , 0x0000000000000004"
    assert parse_smi(jetson) == {
        "driver": "540.4.0",
        "sm_clock_mhz": 1020.0,
        "memory_clock_mhz": 3199.0,
        "temperature_c": 48.5,
        "throttled": "0x0000000000000004",
    }
    assert parse_smi("") == {}


def test_temperatures_and_clocks_are_the_kernel_s_where_no_tool_tells_them(tmp_path):
    files = {
        "thermal/thermal_zone0/type": "gpu-thermal\n",
        "thermal/thermal_zone0/temp": "51250\n",
        "thermal/thermal_zone1/type": "tj-thermal\n",
        "thermal/thermal_zone1/temp": "not now\n",
        "devfreq/17000000.gpu/cur_freq": "918000000\n",
        "devfreq/17000000.gpu/max_freq": "1300500000\n",
    }
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    state = read_state(tmp_path)
    assert state.zones_c == {"0 gpu-thermal": 51.25}
    assert state.frequencies_mhz == {"17000000.gpu cur_freq": 918.0, "17000000.gpu max_freq": 1300.5}
