"""The tile grid of the cascade, anchored at the strip's first line and column wherever a run of lines begins."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TileGrid:
    """Cores of `core_lines` x `core_columns` pixels that cover a strip of `width` columns, without overlap.

    Tile row k holds the lines [k * core_lines, (k + 1) * core_lines) of the strip, tile j of a row the columns
    [j * core_columns, (j + 1) * core_columns); the last tile of a row may reach beyond the strip.
    """

    core_lines: int
    core_columns: int
    width: int

    def __post_init__(self) -> None:
        if min(self.core_lines, self.core_columns, self.width) < 1:
            raise ValueError(f"a tile grid has at least one line and column, got {self}")

    @property
    def tiles_across(self) -> int:
        """Tiles in a row."""
        return -(-self.width // self.core_columns)

    @property
    def covered_columns(self) -> int:
        """Columns of a row of whole tiles: the strip's width, rounded up."""
        return self.tiles_across * self.core_columns

    def column_span(self, tile: int) -> tuple[int, int]:
        """Columns of a tile that lie on the strip, half-open."""
        if not 0 <= tile < self.tiles_across:
            raise ValueError(f"a tile row has tiles 0 to {self.tiles_across - 1}, got {tile}")
        start = tile * self.core_columns
        return start, min(start + self.core_columns, self.width)
