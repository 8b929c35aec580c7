"""The cascade: a cheap gate looks at every tile of the grid, the segmentation network only at those that it lets through."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from edge.errors import ConfigError
from edge.frame import Lines
from edge.manifest import EngineInput
from edge.scores import Activation, Head, Reading, gate_scores
from edge.segmenters import MaskRows
from edge.segmenters.spans import SpanFeed, check_geometry
from edge.sessions import Session
from edge.tiling import TileGrid


class CascadeSegmenter:
    """Masks of the tiles that the gate lets through, zero elsewhere, one tile row at a time.

    gate: infers (tiles across, 1, tile_height, tile_width); a tile row goes in whole, so that its shape never changes.
    gate_input: of the gate's manifest; a core is its tile, `reduce` times as large, averaged with cv2.INTER_AREA.
    threshold: tiles whose probability of a defect is at or above it go on.
    session: infers crops (n, 1, core + 2 * halo, core + 2 * halo), n at most `batch`; reading: what its answers mean.
    halo: margin of a crop, a multiple of the stride; with the engine's receptive radius the masks equal the dense ones.
    Raises ConfigError.
    """

    def __init__(
        self,
        gate: Session,
        session: Session,
        *,
        width: int,
        gate_input: EngineInput,
        gate_activation: Activation,
        threshold: float,
        halo: int,
        stride: int,
        reading: Reading,
        batch: int,
        gate_head: Head = "logits",
    ) -> None:
        reduce = gate_input.reduce
        grid = TileGrid(gate_input.tile_height * reduce, gate_input.tile_width * reduce, width)
        check_geometry(halo=halo, stride=stride, tile_height=grid.core_lines, tile_width=grid.core_columns)
        if batch < 1:
            raise ConfigError(f"tiling.batch: got {batch}; expected at least 1")
        self._gate = gate
        self._gate_activation: Activation = gate_activation
        self._gate_head: Head = gate_head
        self._threshold = np.float32(threshold)
        self._session = session
        self._reading = reading
        self._grid = grid
        self._halo = halo
        # the gate looks at the whole of a tile, hence at all that is reflected into it at a run's end
        self._feed = SpanFeed(
            width, step=grid.core_lines, before=halo, after=grid.core_lines + halo, delay=0, mirrored=grid.core_lines - 1
        )
        self._cores = np.empty((grid.core_lines, grid.covered_columns), np.uint8)
        self._reduced = np.empty((gate_input.tile_height, grid.tiles_across * gate_input.tile_width), np.uint8)
        self._gate_batch = np.empty((grid.tiles_across, 1, gate_input.tile_height, gate_input.tile_width), np.uint8)
        self._crops = np.empty((batch, 1, grid.core_lines + 2 * halo, grid.core_columns + 2 * halo), np.uint8)
        self._clean = np.zeros((grid.core_lines, width), np.uint8)
        self._clean.flags.writeable = False

    @property
    def lag_lines(self) -> int:
        """Lines after a row at which its mask is out: one tile and the halo."""
        return self._feed.lag_lines

    def context_lines(self, first_line: int) -> int:
        """Lines before `first_line` that its tile row and the crops' halo look at."""
        return self._feed.context_lines(first_line)

    def start(self, first_line: int, context: Lines | None = None) -> None:
        """Begin a run."""
        self._feed.start(first_line, context)

    def push(self, lines: Lines) -> list[MaskRows]:
        """Take the next lines, (h, width) uint8; finished rows come out tile row by tile row."""
        return [self._inspect(tile_row) for tile_row in self._feed.push(lines)]

    def flush(self) -> list[MaskRows]:
        """End the run: its last tile row is filled up with reflected lines, and cut to the run."""
        return [self._inspect(tile_row) for tile_row in self._feed.finish()]

    def _inspect(self, tile_row: int) -> MaskRows:
        start, stop = self._feed.rows(tile_row)
        scores = self._gate_scores(tile_row)
        alarmed = np.flatnonzero(scores >= self._threshold)
        if not alarmed.size:
            clean = self._clean[: stop - start]
            return MaskRows(start, clean, clean, segmented=False, gate_scores=scores, tile_columns=self._grid.core_columns)
        mask = np.zeros((stop - start, self._grid.width), np.uint8)
        confidence = np.zeros_like(mask)
        for first in range(0, alarmed.size, len(self._crops)):
            self._segment(tile_row, alarmed[first : first + len(self._crops)].tolist(), mask, confidence)
        return MaskRows(start, mask, confidence, gate_scores=scores, tile_columns=self._grid.core_columns)

    def _gate_scores(self, tile_row: int) -> npt.NDArray[np.float32]:
        """Probability of a defect for each tile of a row."""
        tiles, _, height, width = self._gate_batch.shape
        line = tile_row * self._grid.core_lines
        self._feed.window.cut(line, line + self._grid.core_lines, 0, self._grid.covered_columns, out=self._cores)
        reduced = self._cores
        if reduced.shape != self._reduced.shape:
            reduced = self._reduced
            cv2.resize(self._cores, reduced.shape[::-1], dst=reduced, interpolation=cv2.INTER_AREA)
        self._gate_batch[:, 0] = reduced.reshape(height, tiles, width).swapaxes(0, 1)
        return gate_scores(self._gate.infer(self._gate_batch), self._gate_activation, self._gate_head)

    def _segment(self, tile_row: int, tiles: list[int], mask: npt.NDArray[np.uint8], confidence: npt.NDArray[np.uint8]) -> None:
        """Write the cores of the tiles of one batch into the rows of the mask."""
        halo = self._halo
        top = tile_row * self._grid.core_lines - halo
        _, _, height, width = self._crops.shape
        for crop, tile in zip(self._crops, tiles, strict=False):
            left = tile * self._grid.core_columns - halo
            self._feed.window.cut(top, top + height, left, left + width, out=crop[0])
        scores = self._session.infer(self._crops[: len(tiles)])
        start, stop = self._feed.rows(tile_row)
        for index, tile in enumerate(tiles):
            first, last = self._grid.column_span(tile)
            core = scores[index, :, start - top : stop - top, halo : halo + last - first]
            mask[:, first:last], confidence[:, first:last] = self._reading.classes(core)
