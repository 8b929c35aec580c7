"""Systems that segment a strip, one file each, each written as its documentation recommends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from edge.frame import Lines
from edge.scores import Bytes


@dataclass(frozen=True, slots=True)
class Credit:
    """What a system is, and where its documentation says how to use it. version: as installed."""

    name: str
    version: str
    licence: str
    page: str


class Peer(Protocol):
    """A system with its network, ready to segment strips of one width.

    name, engine, precision, how: as tables show them; how: slices, overlap, merging.
    """

    name: str
    engine: str
    precision: str
    how: str

    def prepare(self, strip: Lines) -> None:
        """What comes before the clock runs."""
        ...

    def run(self, strip: Lines) -> Any:
        """Segment a strip, (h, w) uint8; the answer in the system's own form. This is timed."""
        ...

    def mask(self, answer: Any, strip: Lines) -> Bytes:
        """Class of every pixel, (h, w) uint8, of such an answer. This is not timed."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


@dataclass(frozen=True, slots=True)
class Absent:
    """A system that cannot run here, and why."""

    name: str
    engine: str
    reason: str
