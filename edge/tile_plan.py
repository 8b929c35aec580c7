"""The tiles that a station cuts and the bands of a cascade, from its file and its bundles' manifests, and what may be wrong."""

from __future__ import annotations

from edge.config import Tiling
from edge.manifest import Manifest, Resize
from edge.preparation import Size, prepared_size
from edge.tiling import TileAxis

BAND_LINES = 256
"""Of a cascade's band, unless the station says otherwise: a row waits for its whole band. With a halo of 80 px bands of 128 lines
cost 1.3 times the pixels, bands of 512 save 8 %."""


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
    if gate.cell is not None:
        return [f"gate: got {named}, which scores cells and not tiles; expected a gate for tiles, or mode: cascade"]
    tile, _ = tile_and_step(tiling, manifest)
    if prepared_size(gate.preparation, gate.input, tile) == (gate.input.tile_height, gate.input.tile_width):
        return []
    lines, columns = gate.input.tile_height * gate.input.reduce, gate.input.tile_width * gate.input.reduce
    return [
        f"gate: got {named}, whose tiles are {lines} x {columns} px, without a resize step; "
        f"expected one for tiles of {tile[0]} x {tile[1]} px"
    ]


def cell_size(gate: Manifest) -> Size:
    """Lines and columns of the strip for which a gate has one answer: a tile, or a cell of its map."""
    if gate.cell is None:
        return grid_tile(gate)
    return gate.cell * gate.input.reduce, gate.cell * gate.input.reduce


def band_lines(tiling: Tiling, gate: Manifest) -> int:
    """Lines of a band of a cascade."""
    look = _look_lines(gate)
    return tiling.band_lines or -(-BAND_LINES // look) * look


def gate_chunk_lines(chunk_lines: int, band: int, gate: Manifest) -> int:
    """Lines of its input that a streaming gate gets at once: at most a chunk of the station's, so that bands hold whole ones."""
    most = max(chunk_lines // gate.input.reduce, gate.stride)
    lines = band // gate.input.reduce
    return max(chunk for chunk in range(gate.stride, most + 1, gate.stride) if lines % chunk == 0)


def cascade_faults(tiling: Tiling, manifest: Manifest, gate: Manifest, bundle: str, named: str) -> list[str]:
    """Gates and bands that a cascade cannot have. bundle, named: what the station calls segmenter and gate."""
    faults = []
    lines, columns = cell_size(gate)
    kind = "tiles" if gate.cell is None else "cells"
    if lines % manifest.stride or columns % manifest.stride:
        faults.append(
            f"gate: got {named} with {kind} of {lines} x {columns} px; "
            f"expected multiples of {manifest.stride}, the stride of {bundle}"
        )
    if gate.cell is not None and gate.streaming is None:
        faults.append(f"gate: got {named}, which scores cells and holds no stream: expected it to be exported again, or tiles")
    look = _look_lines(gate)
    if tiling.band_lines is not None and tiling.band_lines % look:
        faults.append(
            f"tiling.band_lines: got {tiling.band_lines}; expected a multiple of {look}, the fewest lines that {named} looks at"
        )
    return faults


def _look_lines(gate: Manifest) -> int:
    """Lines of the strip that a gate looks at in one go at least."""
    return cell_size(gate)[0] if gate.cell is None else gate.stride * gate.input.reduce
