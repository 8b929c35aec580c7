"""The tiles that a station in mode tiles cuts, from its file and its bundle's manifest, and what may be wrong with them."""

from __future__ import annotations

from edge.config import Tiling
from edge.manifest import Manifest, Resize
from edge.preparation import Size, prepared_size
from edge.tiling import TileAxis


def grid_tile(manifest: Manifest) -> Size:
    """Lines and columns of the strip that one tile of a bundle covers."""
    size = manifest.input
    return manifest.strip_tile or (size.tile_height * size.reduce, size.tile_width * size.reduce)


def tile_and_step(tiling: Tiling, manifest: Manifest) -> tuple[Size, Size]:
    """Tile and step of a station in mode tiles, each along the strip's lines and across its columns."""
    lines, columns = grid_tile(manifest)
    tile = (tiling.tile_lines or lines, tiling.tile_columns or columns)
    return tile, (tiling.step_lines or tile[0], tiling.step_columns or tile[1])


def tile_axes(tiling: Tiling, manifest: Manifest) -> tuple[TileAxis, TileAxis]:
    """The grid of a station in mode tiles, along the lines and across the columns. Raises ValueError."""
    tile, step = tile_and_step(tiling, manifest)
    return TileAxis(tile[0], step[0]), TileAxis(tile[1], step[1])


def tile_faults(tiling: Tiling, manifest: Manifest, named: str) -> list[str]:
    """Tiles that the bundle's engine cannot be given, and steps that leave pixels out or cores without a middle."""
    size, resized = manifest.input, any(isinstance(step, Resize) for step in manifest.preparation)
    engine = (size.tile_height * size.reduce, size.tile_width * size.reduce)
    faults = []
    for axis, tile, step, wanted in zip(("lines", "columns"), *tile_and_step(tiling, manifest), engine, strict=True):
        if not resized and tile != wanted:
            faults.append(f"tiling.tile_{axis}: got {tile}; {named} has no resize step: expected {wanted}, or none")
        elif tile % size.reduce:
            faults.append(f"tiling.tile_{axis}: got {tile}; expected a multiple of {size.reduce}, over which {named} averages")
        if step > tile:
            faults.append(f"tiling.step_{axis}: got {step}; expected at most {tile}, a tile: what lies between two is not seen")
        elif tiling.merge == "core" and (tile - step) % 2:
            faults.append(
                f"tiling.step_{axis}: got {step}, and tiles of {tile}; merge core has the same margin at both sides: "
                f"expected {step - 1} or {step + 1}, or merge: union"
            )
    return faults


def gate_tile_faults(tiling: Tiling, manifest: Manifest, gate: Manifest, named: str) -> list[str]:
    """Tiles of the station's grid that its gate cannot be given."""
    tile, _ = tile_and_step(tiling, manifest)
    if prepared_size(gate.preparation, gate.input, tile) == (gate.input.tile_height, gate.input.tile_width):
        return []
    lines, columns = gate.input.tile_height * gate.input.reduce, gate.input.tile_width * gate.input.reduce
    return [
        f"gate: got {named}, whose tiles are {lines} x {columns} px, without a resize step; "
        f"expected one for tiles of {tile[0]} x {tile[1]} px"
    ]
