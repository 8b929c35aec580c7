"""Which lines of a strip were finished while an engine other than the station's first choice answered."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

MAX_STRETCHES: Final = 64
"""Of a strip, that are listed; a server that comes and goes all day must not make its summary, or a checkpoint, large."""
_SHOWN: Final = 3

StandIn = Callable[[], str | None]
"""Which backend stood in for the first choice since it was last asked; None: none did."""


def nobody() -> str | None:
    """The answer where there is one engine and no other."""
    return None


@dataclass(frozen=True, slots=True)
class Stretch:
    """Lines [line_start, line_stop) that a backend finished in place of the first choice."""

    line_start: int
    line_stop: int
    backend: str


@dataclass(frozen=True, slots=True)
class Fallback:
    """Lines that another engine than the first choice finished.

    stretches: the first MAX_STRETCHES of them, in strip order. unlisted: how many more there were. newest: the last of all.
    """

    lines: int = 0
    stretches: tuple[Stretch, ...] = ()
    unlisted: int = 0
    newest: Stretch | None = None

    def plus(self, stretch: Stretch) -> Fallback:
        """The same with one more, which goes on from the newest one where it touches it."""
        lines, newest = self.lines + stretch.line_stop - stretch.line_start, self.newest
        if newest is not None and (newest.line_stop, newest.backend) == (stretch.line_start, stretch.backend):
            longer = replace(newest, line_stop=stretch.line_stop)
            listed = self.stretches if self.unlisted else (*self.stretches[:-1], longer)
            return Fallback(lines, listed, self.unlisted, longer)
        if len(self.stretches) < MAX_STRETCHES:
            return Fallback(lines, (*self.stretches, stretch), 0, stretch)
        return Fallback(lines, self.stretches, self.unlisted + 1, stretch)

    def __str__(self) -> str:
        shown = [f"{s.line_start} to {s.line_stop - 1} by {s.backend}" for s in self.stretches[:_SHOWN]]
        more = len(self.stretches) + self.unlisted - len(shown)
        told = "; ".join(shown + ([f"and {more} more stretches"] if more else []))
        return f"{self.lines} of them not by the first choice of session.backend: {told}"

    def as_json(self) -> dict[str, Any]:
        """What `parse` reads."""
        return asdict(self)

    @staticmethod
    def parse(document: dict[str, Any]) -> Fallback:
        """Of what `as_json` gave."""
        stretches = tuple(Stretch(**stretch) for stretch in document["stretches"])
        newest = Stretch(**document["newest"]) if document["newest"] else None
        return Fallback(document["lines"], stretches, document["unlisted"], newest)


NO_FALLBACK: Final = Fallback()


class FallbackLedger:
    """Adds stretches in strip order; can still tell what they were below any line since the last one it was settled at."""

    def __init__(self, settled: Fallback = NO_FALLBACK) -> None:
        self._settled = settled
        self._later: deque[Stretch] = deque()

    def add(self, line_start: int, line_stop: int, backend: str | None) -> None:
        """Lines that were finished together. backend: None: by the first choice, and nothing is noted."""
        if backend is None or line_stop <= line_start:
            return
        if self._later and (self._later[-1].line_stop, self._later[-1].backend) == (line_start, backend):
            line_start = self._later.pop().line_start
        self._later.append(Stretch(line_start, line_stop, backend))

    def settle(self, line: int) -> Fallback:
        """What there was below `line`; less cannot be asked for any more."""
        while self._later and self._later[0].line_start < line:
            stretch = self._later.popleft()
            if stretch.line_stop > line:
                self._later.appendleft(replace(stretch, line_start=line))
                stretch = replace(stretch, line_stop=line)
            self._settled = self._settled.plus(stretch)
        return self._settled

    def all(self) -> Fallback:
        """What there was so far."""
        result = self._settled
        for stretch in self._later:
            result = result.plus(stretch)
        return result
