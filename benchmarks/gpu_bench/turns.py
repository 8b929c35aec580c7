"""Trials that take turns in every round, so that whatever else the box does hits all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from edge.bench.results import Figure, figure_of
from edge.cuda.device import CudaDevice, Stream

_MOST_TIMES = 2000
"""Pieces of work that wait on a stream at once: a driver makes the host wait where there are more than some thousand."""
_SHORTEST_MS = 5e-4
"""An event's clock ticks in half microseconds. Source: CUDA driver API, cuEventElapsedTime."""


@dataclass(slots=True)
class Trial:
    """measure: one round's figure."""

    measure: Callable[[], float]
    rounds: list[float] = field(default_factory=list)

    @property
    def figure(self) -> Figure:
        """Of all rounds so far."""
        return figure_of(self.rounds)


def take_turns(trials: Sequence[Trial], rounds: int) -> None:
    """Measure all of them, again and again; a first time, that sets memory up and wakes the clocks, does not count."""
    for trial in trials:
        trial.measure()
    for _ in range(rounds):
        for trial in trials:
            trial.rounds.append(trial.measure())


def clock_s(work: Callable[[], object], least_s: float) -> float:
    """Seconds on the clock that `work` takes, repeated for at least so long. It returns when it is done."""
    done, begun_s = 0, time.perf_counter()
    while (elapsed_s := time.perf_counter() - begun_s) < least_s or not done:
        work()
        done += 1
    return elapsed_s / done


def device_ms(device: CudaDevice, stream: Stream, enqueue: Callable[[], object], least_s: float) -> float:
    """Milliseconds on the GPU, by events, that what `enqueue` puts on the stream takes; repeated for about so long."""
    once_ms = _between_events(device, stream, enqueue, 1)
    times = max(1, min(_MOST_TIMES, round(least_s * 1e3 / once_ms)))
    return _between_events(device, stream, enqueue, times) / times


def _between_events(device: CudaDevice, stream: Stream, enqueue: Callable[[], object], times: int) -> float:
    begin, end = device.event(), device.event()
    begin.record(stream)
    for _ in range(times):
        enqueue()
    end.record(stream)
    end.synchronize()
    return max(end.elapsed_ms(begin), _SHORTEST_MS)
