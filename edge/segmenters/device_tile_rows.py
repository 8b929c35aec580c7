"""Tiles of a gate reduced on the GPU: only their scores come back."""

from __future__ import annotations

from edge.cuda.strip import DeviceStrip
from edge.segmenters.device_path import AskDevice, DevicePath, engine_of
from edge.segmenters.returned import ReturnedScores
from edge.segmenters.tile_rows import HostTileRows, TileRow
from edge.sessions import Scores, Session
from edge.window import StripWindow


class DeviceTileRows:
    """Averages and infers on a GPU, tile after tile into one batch; implements `edge.segmenters.tile_rows.TileRowReader`.

    ask: as of `DeviceCrops`. Raises SessionError.
    """

    def __init__(self, strip: DeviceStrip, ask: AskDevice, session: Session, row: TileRow) -> None:
        self._host = HostTileRows(session, row)
        self._strip, self._row = strip, row
        self._path = DevicePath(strip, "gate")
        self._ask, self._engine = ask, engine_of(ask)
        with strip.device.active():
            self._lane, _ = self._engine.lanes(row.shape)
        strip.uses(self._lane.stream)
        self._scores = ReturnedScores(strip, self._lane)

    def read(self, window: StripWindow, line: int) -> Scores:
        """Average, infer, copy back."""
        there = self._ask() is self._engine
        scores = self._path.attempt(lambda: self._infer(line)) if there else None
        return self._host.read(window, line) if scores is None else scores

    def _infer(self, line: int) -> Scores:
        lane, row = self._lane, self._row
        with self._strip.read_by(lane.stream, line, line + row.lines * row.factor) as ring:
            for tile in range(row.count):
                column, out = tile * row.columns * row.factor, lane.input.address + tile * row.lines * row.columns
                self._strip.kernels.reduce(ring, line, column, row.factor, row.lines, row.columns, out, lane.stream)
        lane.run()
        self._scores.fetch(lane)
        return self._scores.wait(lane)
