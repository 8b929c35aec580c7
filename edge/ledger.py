"""The coverage ledger: every line of a strip is exactly one of inspected, gated, lost, shed."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass
from typing import Literal

Kind = Literal["inspected", "gated", "lost", "shed"]


@dataclass(frozen=True, slots=True)
class Coverage:
    """Lines of a strip by what became of them.

    inspected: seen by the segmentation network, in at least one tile of their tile row.
    gated: looked at by the gate alone. lost: never received (camera, network, a restart). shed: received and not
    looked at, for want of time.
    """

    inspected: int = 0
    gated: int = 0
    lost: int = 0
    shed: int = 0

    @property
    def total(self) -> int:
        """The strip's length in lines."""
        return self.inspected + self.gated + self.lost + self.shed

    def plus(self, kind: Kind, lines: int) -> Coverage:
        """The same with `lines` more of one kind."""
        counts = asdict(self)
        counts[kind] += lines
        return Coverage(**counts)


class CoverageLedger:
    """Counts lines in strip order; can still tell the counts at any line since the last one it was settled at."""

    def __init__(self, settled: Coverage = Coverage()) -> None:
        self._settled = settled
        self._later: deque[tuple[int, Kind]] = deque()
        self._line_stop = settled.total

    def add(self, line_stop: int, kind: Kind) -> None:
        """The lines from the last counted one up to `line_stop` are of one kind. Raises ValueError on a step back."""
        if line_stop < self._line_stop:
            raise ValueError(f"the ledger stands at line {self._line_stop}, got {line_stop}")
        if line_stop > self._line_stop:
            if self._later and self._later[-1][1] == kind:
                self._later.pop()
            self._later.append((line_stop, kind))
            self._line_stop = line_stop

    @property
    def line_stop(self) -> int:
        """Lines counted so far."""
        return self._line_stop

    def settle(self, line: int) -> Coverage:
        """Counts of the lines below `line`; earlier ones cannot be asked for any more."""
        while self._later and self._later[0][0] <= line:
            stop, kind = self._later.popleft()
            self._settled = self._settled.plus(kind, stop - self._settled.total)
        if self._later and line > self._settled.total:
            self._settled = self._settled.plus(self._later[0][1], line - self._settled.total)
        return self._settled

    def coverage(self) -> Coverage:
        """Counts of all lines so far."""
        result = self._settled
        for stop, kind in self._later:
            result = result.plus(kind, stop - result.total)
        return result
