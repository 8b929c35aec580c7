"""The scenes of a calibration, from recorded files or from a station's source: one asks for each in turn."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from calibration.recordings import Recording, read_recording, record
from edge.config import SimulatedSource, StationConfig
from edge.errors import ConfigError
from edge.sources import open_source

Scene = Literal["dark", "bright", "target", "ladder"]
_WANTED: dict[Scene, str] = {
    "dark": "cover the lens",
    "bright": "uncover the lens, put the evenly lit target before it, and move it",
    "target": "put the target before the camera, bars along the motion",
    "ladder": "turn the target, bars across the motion, and move it at the speed of production",
}
_BRIGHTEST = 260.0
"""Grey level that the strongest of several lights would have without clipping: saturation is reached by the last one alone."""


class Scenes:
    """Takes recordings from one station's source. A simulated camera sets its scenes by itself, any other one is asked for.

    Recordings of a simulated camera follow each other on its strip, so that no two have the same noise.
    """

    def __init__(self, station: StationConfig, lines: int) -> None:
        if lines < 1:
            raise ConfigError(f"--lines: got {lines}; expected at least 1")
        if isinstance(station.source, SimulatedSource) and station.source.sensor is None:
            raise ConfigError("source.sensor: got none, and the simulated camera is then without fault; expected a section")
        self._station, self._lines = station, lines
        self._taken = 0

    def take(self, scene: Scene, what: str = "") -> Recording:
        """So many lines of a scene. what: said on top, such as how much light. Raises SourceError, ConfigError."""
        source = self._station.source
        if isinstance(source, SimulatedSource):
            return self.take_simulated(scene)
        _ask(_WANTED[scene] + what)
        with open_source(source, self._station.scale) as opened:
            return record(opened, self._lines, scene)

    def take_simulated(self, scene: Scene, light: float | None = None) -> Recording:
        """The same of a simulated camera. light: in place of its own."""
        source = self._station.source
        assert isinstance(source, SimulatedSource)
        assert source.sensor is not None
        posed = source.sensor.model_copy(update={"scene": scene, **({} if light is None else {"light": light})})
        changed = source.model_copy(update={"sensor": posed, "lines": None, "line_rate_hz": None})
        with open_source(changed, self._station.scale) as opened:
            recording = record(opened, self._lines, scene, self._taken)
        self._taken += self._lines
        return recording

    def take_levels(self, levels: int) -> tuple[list[Recording], list[float] | None]:
        """The even target at rising light, and exposures where they are known: those of a simulated camera are."""
        if levels < 1:
            raise ConfigError(f"--levels: got {levels}; expected at least 1")
        source = self._station.source
        if isinstance(source, SimulatedSource) and source.sensor is not None:
            lights = [(index + 1) / levels * _BRIGHTEST / source.sensor.bright_grey for index in range(levels)]
            return [self.take_simulated("bright", light) for light in lights], lights
        return [
            self.take("bright", f", at about {(index + 1) / levels:.0%} of saturation ({index + 1} of {levels})")
            for index in range(levels)
        ], None


def read(paths: Sequence[Path] | None, argument: str) -> Recording:
    """A recording from files. Raises ConfigError where none are named, SourceError."""
    if not paths:
        raise ConfigError(f"{argument}: got none; expected images or folders, or -c STATION.yaml")
    return read_recording(paths, argument)


def _ask(wanted: str) -> None:
    print(f"{wanted}; then press Enter ", end="", file=sys.stderr, flush=True)
    if not sys.stdin.readline():
        raise ConfigError(f"to {wanted} nobody answered; expected Enter on the terminal, or recorded frames (--dark, --bright)")
