"""Resident memory of a daemon over a strip, in a process of its own, `python -m edge.bench.memory`: nothing else counts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from edge.bench.plan import LATENCY_SHARE, Plan, scratch_folder, station_in
from edge.bench.results import MemoryFigures, MemorySample
from edge.bench.strip_source import StripSource
from edge.bench.strips import TILE_PX, make_strip
from edge.config import StationConfig
from edge.daemon import Daemon
from edge.errors import StageError

_STATM = Path("/proc/self/statm")
_STRIP_LINES = 8 * TILE_PX
_SAMPLES = 60
"""Of a run that ends by its time; one that ends by its length keeps every other one of twice as many."""
_WARMING = 0.1
_SHORTEST_FOR_SLOPE_M = 100.0
"""On less a slope is that of the first buffers' filling: it would read as gigabytes a kilometre."""


def can_measure_memory() -> bool:
    """Whether this system tells a process its resident memory."""
    return _STATM.exists()


def measure_memory(plan: Plan) -> Iterator[tuple[MemoryFigures, ...]]:
    """Figures as the runs go on, one for each length of strip; without lengths one run for the part's time."""
    done: list[MemoryFigures] = []
    for metres in plan.metres or (None,):
        with _Run(plan, metres) as run:
            samples: list[MemorySample] = []
            for sample in run.samples():
                samples.append(sample)
                if len(samples) > 2 * _SAMPLES:
                    del samples[1::2]
                yield (*done, figures_of(samples, plan.config.scale.mm_per_line))
        if not samples:
            raise StageError("the daemon whose memory is measured told nothing: what it said stands above")
        done.append(figures_of(samples, plan.config.scale.mm_per_line))
        yield tuple(done)


def figures_of(samples: Sequence[MemorySample], mm_per_line: float) -> MemoryFigures:
    """What samples of one run, in the order of time, say."""
    settled = samples[int(len(samples) * _WARMING) :]
    metres = [sample.metres for sample in settled]
    growth = None
    if len(settled) > 2 and metres[-1] - metres[0] >= _SHORTEST_FOR_SLOPE_M:
        growth = float(np.polyfit(np.asarray(metres) / 1000, [sample.rss_mib for sample in settled], 1)[0])
    return MemoryFigures(
        metres=samples[-1].metres,
        lines=round(samples[-1].metres * 1000 / mm_per_line),
        seconds=samples[-1].seconds,
        settled_mib=settled[0].rss_mib,
        last_mib=settled[-1].rss_mib,
        peak_mib=max(sample.rss_mib for sample in settled),
        growth_mib_per_km=growth,
        samples=tuple(samples),
    )


class _Run:
    """The process, from its start to its end. A context manager. metres: length of its strip; None: for the part's time."""

    def __init__(self, plan: Plan, metres: float | None) -> None:
        self._order = {
            "config": plan.config.model_dump(mode="json", exclude_unset=True),
            "origin": plan.origin,
            "width": plan.station.width_px,
            "frame_lines": plan.station.frame_lines,
            "lines": None if metres is None else max(1, round(metres * 1000 / plan.config.scale.mm_per_line)),
            "seconds": plan.seconds("memory") if metres is None else None,
            "every_s": plan.seconds("memory") / _SAMPLES,
        }

    def __enter__(self) -> _Run:
        # of a session of its own: an interrupt on the terminal is for the bench, which then ends it
        self._process = subprocess.Popen(
            [sys.executable, "-m", "edge.bench.memory"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(self._order) + "\n")
        self._process.stdin.flush()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()

    def samples(self) -> Iterator[MemorySample]:
        """Samples as they come, until the strip has ended."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            yield MemorySample.model_validate_json(line)


def main() -> None:
    """Inspect the strip that stdin orders, and print samples as lines of JSON; ends early where stdin ends."""
    order = json.loads(sys.stdin.readline())
    config = StationConfig.model_validate(order["config"])
    strip = make_strip(order["width"], _STRIP_LINES, config.scale, LATENCY_SHARE)
    source = StripSource(strip.lines, order["frame_lines"], None, lines=order["lines"], seconds=order["seconds"])
    with scratch_folder(config) as folder:
        station = station_in(folder, config, None)
        with Daemon(station, order["origin"], "bench-memory", source=source) as daemon:
            ended = threading.Event()
            threading.Thread(target=_stop_with_stdin, args=(daemon,), daemon=True).start()
            sampler = threading.Thread(
                target=_sample, args=(source, config.scale.mm_per_line, order["every_s"], ended), name="sampler"
            )
            sampler.start()
            try:
                daemon.run()
            finally:
                ended.set()
                sampler.join()


def _stop_with_stdin(daemon: Daemon) -> None:
    sys.stdin.read()
    daemon.stop("the bench has gone")


def _sample(source: StripSource, mm_per_line: float, every_s: float, ended: threading.Event) -> None:
    """Print a sample now and then, and one at the end."""
    began_s = time.monotonic()
    while True:
        last = ended.wait(every_s)
        metres = source.health().lines * mm_per_line / 1000
        sample = MemorySample(seconds=time.monotonic() - began_s, metres=metres, rss_mib=resident_mib())
        try:
            print(sample.model_dump_json(), flush=True)
        except BrokenPipeError:  # the bench has gone: the end of stdin stops the daemon
            return
        if last:
            return


def resident_mib() -> float:
    """Resident memory of this process. Source: proc(5), /proc/pid/statm."""
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
