"""What this box carries: throughput dense and as a cascade, and latency at four fifths of it.

    python benchmarks/station.py [--width 4096] [--lines 8192] [--json FILE]

The simulated strip is made beforehand, so that the figures are the pipeline's alone: lines in, events out, outbox on
disk, no broker. Variants take turns within each round; medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edge.config import Scale, SimulatedDefects, StationConfig, parse_config
from edge.engines import Engines
from edge.frame import Frame, Lines
from edge.latency import LatencyHistogram
from edge.pipeline import Findings
from edge.sources.steel_strip import SteelStrip

VARIANTS: dict[str, dict[str, Any]] = {
    "dense INT8": {"bundle": "steel-unet-int8"},
    "dense FP32": {"bundle": "steel-unet-fp32"},
    "cascade INT8": {"bundle": "steel-unet-int8", "gate": "steel-gate-int8", "mode": "cascade"},
    "cascade FP32": {"bundle": "steel-unet-fp32", "gate": "steel-gate-fp32", "mode": "cascade"},
}
FRAME_LINES = 128
LOAD = 0.8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--lines", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="of one inference; default: one per core")
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    strip = SteelStrip(arguments.width, arguments.seed, SimulatedDefects(), Scale()).lines(0, arguments.lines)
    configs = {name: _config(arguments, changes) for name, changes in VARIANTS.items()}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in configs}
    for _ in range(arguments.rounds):
        for name, config in configs.items():
            runs[name].append(_throughput(config, strip))
    figures = {name: {key: statistics.median(run[key] for run in found) for key in found[0]} for name, found in runs.items()}
    for name, config in configs.items():
        figures[name] |= _latency(config, strip, LOAD * figures[name]["lines_per_s"])
    print(f"{arguments.width} px, {arguments.lines} lines, {os.cpu_count()} cores, {platform.processor() or platform.machine()}")
    heads = f"{'':14s}{'MPix/CPU-s':>12s}{'lines/s':>10s}{'MPix/s':>9s}{'alarmed':>9s}{'p50 ms':>9s}{'p99 ms':>9s}"
    print(f"{heads}  at {LOAD:.0%} load")
    for name, row in figures.items():
        print(
            f"{name:14s}{row['megapixels_per_cpu_s']:12.1f}{row['lines_per_s']:10.0f}{row['megapixels_per_s']:9.1f}"
            f"{row['alarmed_tiles']:9.1%}{row['latency_ms_p50']:9.1f}{row['latency_ms_p99']:9.1f}"
        )
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory {peak_mib:.0f} MiB, the strip itself {strip.nbytes / 2**20:.0f} MiB of it")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")


def _config(arguments: argparse.Namespace, changes: dict[str, Any]) -> StationConfig:
    document = {
        "source": {"kind": "simulated", "width": arguments.width},
        "filters": {"strip_edges": {"background_below": 40}},
        "session": {"threads": arguments.threads},
        **changes,
    }
    return parse_config(document, "benchmark")


def _frames(strip: Lines, line_rate_hz: float | None) -> Iterator[Frame]:
    began_s = time.monotonic()
    for first in range(0, len(strip), FRAME_LINES):
        lines = strip[first : first + FRAME_LINES]
        if line_rate_hz:
            time.sleep(max(0.0, began_s + (first + len(lines)) / line_rate_hz - time.monotonic()))
            due_ns = round((began_s + (first + len(lines)) / line_rate_hz - time.monotonic()) * 1e9)
            # captured when it was due, whether or not anybody was there to take it: waiting counts as latency
            yield Frame(lines, first, time.time_ns() + due_ns)
        else:
            yield Frame(lines, first, time.time_ns())


def _run(config: StationConfig, strip: Lines, line_rate_hz: float | None) -> Iterator[Findings]:
    from edge.events import outgoing
    from edge.sinks.outbox import Outbox, Progress

    with (
        Engines(config, "benchmark") as engines,
        tempfile.TemporaryDirectory() as folder,
        Outbox(Path(folder) / "o.db") as outbox,
    ):
        pipeline = engines.pipeline(strip.shape[1], "bench")
        pipeline.push(Frame(strip[:FRAME_LINES], 0, 0))  # the first inference plans and allocates
        pipeline = engines.pipeline(strip.shape[1], "bench")
        for frame in _frames(strip, line_rate_hz):
            findings = pipeline.push(frame)
            if findings.events:
                checkpoint = pipeline.checkpoint()
                outbox.commit(
                    [outgoing(event) for event in findings.events], Progress("bench", checkpoint.line, checkpoint.state, "", "")
                )
            yield findings
        yield pipeline.finish()


def _throughput(config: StationConfig, strip: Lines) -> dict[str, float]:
    found = _run(config, strip, None)
    scores = [_gate_scores(next(found))]
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    scores += [_gate_scores(findings) for findings in found]
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    lines = len(strip) - FRAME_LINES
    megapixels = lines * strip.shape[1] / 1e6
    alarmed = np.concatenate(scores)
    return {
        "megapixels_per_cpu_s": megapixels / cpu_s,
        "lines_per_s": lines / wall_s,
        "megapixels_per_s": megapixels / wall_s,
        "alarmed_tiles": float((alarmed >= _threshold(config)).mean()) if alarmed.size else 1.0,
    }


def _gate_scores(findings: Findings) -> np.ndarray:
    rows = [rows.gate_scores for rows, _ in findings.rows if rows.gate_scores is not None]
    return np.concatenate(rows) if rows else np.empty(0, np.float32)


def _threshold(config: StationConfig) -> float:
    from edge.bundle import open_bundle

    gate = open_bundle(config.gate).manifest.gate if config.gate else None
    return gate.score if gate else 0.0


def _latency(config: StationConfig, strip: Lines, line_rate_hz: float) -> dict[str, float]:
    histogram = LatencyHistogram()
    for findings in _run(config, strip, line_rate_hz):
        for event in findings.events:
            if event.type == "io.rust-edge.defect.opened.v1":
                histogram.add(event.data.latency_ms)
    return {
        "latency_ms_p50": histogram.percentile(0.5) or float("nan"),
        "latency_ms_p99": histogram.percentile(0.99) or float("nan"),
        "latency_line_rate_hz": line_rate_hz,
    }


if __name__ == "__main__":
    main()
