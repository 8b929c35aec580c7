"""Tiles of the strip, which may overlap, on a grid that is anchored at the strip's first pixel."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TileAxis:
    """Tiles of `tile` pixels along the strip, or across it, that start at 0, step, 2 * step, ... of the strip's coordinates.

    The last one is the first that reaches the end; it may reach beyond.

    >>> TileAxis(224, 100).count(448), TileAxis(224, 100).count(449)
    (4, 5)
    """

    tile: int
    step: int

    def __post_init__(self) -> None:
        if not 1 <= self.step <= self.tile:
            raise ValueError(f"a step of {self.step} px leaves pixels out of tiles of {self.tile} px, expected 1 to {self.tile}")

    @property
    def margin(self) -> int:
        """What a tile's core leaves out at either end; only where it is a whole number there are cores."""
        return (self.tile - self.step) // 2

    def count(self, length: int) -> int:
        """Tiles that cover [0, length)."""
        return max(1, -(-(length - self.tile) // self.step) + 1)

    def covered(self, length: int) -> int:
        """Where the last tile of [0, length) ends."""
        return (self.count(length) - 1) * self.step + self.tile

    def core(self, tile: int, length: int) -> tuple[int, int]:
        """What is a tile's own, half-open: its middle `step` pixels; of the first and the last tile all up to their outer end.

        The cores of all tiles cover [0, covered(length)) once.
        """
        last = self.count(length) - 1
        start = tile * self.step + (self.margin if tile else 0)
        return start, (tile + 1) * self.step + self.margin if tile < last else self.covered(length)

    def touching(self, position: int, length: int) -> range:
        """Tiles that a pixel lies in."""
        first = (position - self.tile) // self.step + 1
        return range(max(0, first), min(position // self.step, self.count(length) - 1) + 1)
