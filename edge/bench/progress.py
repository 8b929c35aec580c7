"""How far a bench run is, on stderr, where somebody watches."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm

from edge.bench.results import Part


class Progress:
    """A bar of seconds, and the part under way. A context manager. seconds: that the run takes, about."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._began_s = time.monotonic()

    def __enter__(self) -> Progress:
        form = "{desc:10s}|{bar}| {n:.0f} of about {total:.0f} s"
        self._bar = tqdm(
            total=self._seconds, bar_format=form, disable=not sys.stderr.isatty(), file=sys.stderr, leave=False, ncols=80
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()

    def show(self, part: Part) -> None:
        """Say where the run is."""
        self._bar.set_description_str(part, refresh=False)
        self._bar.n = min(time.monotonic() - self._began_s, self._seconds)
        self._bar.refresh()
