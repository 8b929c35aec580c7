"""How far TensorRT's builder is: bars on a terminal, a line now and then in a log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NoReturn, TextIO

from tqdm import tqdm

_log = logging.getLogger(__name__)
_LOG_EVERY_S: Final = 10.0

Progress = Callable[[str, int, int], None]
"""Told the name of the builder's phase, its steps done, and how many it has."""


@contextmanager
def build_progress(name: str, terminal: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> Iterator[Progress]:
    """What shows the progress of an engine called `name`. terminal: None: the error output."""
    terminal = terminal or sys.stderr
    begun = clock()
    if terminal.isatty():
        with _bars(name, terminal) as progress:
            yield progress
    else:
        yield _lines(name, clock)
    _log.info("%s: built in %.0f s", name, clock() - begun)


@contextmanager
def _bars(name: str, terminal: TextIO) -> Iterator[Progress]:
    """A bar for each phase, those within others below them."""
    bars: dict[str, tqdm[NoReturn]] = {}

    def show(phase: str, done: int, steps: int) -> None:
        if phase not in bars:
            bars[phase] = tqdm(total=steps, desc=f"{name}: {phase}", position=len(bars), leave=False, file=terminal)
        bars[phase].update(done - bars[phase].n)

    try:
        yield show
    finally:
        for bar in bars.values():
            bar.close()


def _lines(name: str, clock: Callable[[], float]) -> Progress:
    last = clock()

    def log(phase: str, done: int, steps: int) -> None:
        nonlocal last
        if clock() - last >= _LOG_EVERY_S:
            last = clock()
            _log.info("%s: %s, %d of %d", name, phase, done, steps)

    return log
