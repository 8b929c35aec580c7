"""How fast engines are against each other, in one run: alternating, by processor time, so that a busy machine matters little."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

from edge.sessions import Batch, Session

FEWEST_ROUNDS = 5


def tiles_per_cpu_second(sessions: Mapping[str, Session], tiles: Batch, seconds: float) -> dict[str, float]:
    """Tiles per second of processor time of each session, the median of alternating rounds of one batch.

    sessions: by name; each with one thread, or time waiting for the others counts. tiles: (n, 1, h, w) uint8.
    seconds: processor time to spend in all, at least FEWEST_ROUNDS rounds are run.
    """
    for session in sessions.values():
        session.infer(tiles)  # the first one allocates, and compiles
    spent: dict[str, list[float]] = {name: [] for name in sessions}
    begun = time.process_time()
    rounds = 0
    while rounds < FEWEST_ROUNDS or time.process_time() - begun < seconds:
        for name, session in sessions.items():
            before = time.process_time()
            session.infer(tiles)
            spent[name].append(time.process_time() - before)
        rounds += 1
    return {name: len(tiles) / statistics.median(times) for name, times in spent.items()}
