"""What a bench run is to measure, with what, and for how long."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edge import machine
from edge.bench.dense_rate import measure_lines_per_s
from edge.bench.results import Part, Station
from edge.bench.strips import TILE_PX, Strip, fewest_lines, make_strip
from edge.box import BoxKey
from edge.config import FolderSource, Mqtt, SimulatedDefects, Sinks, StationConfig
from edge.engines import Engines
from edge.errors import ConfigError
from edge.sources.steel_strip import SteelStrip

LATENCY_SHARE = 0.95
"""Clean tiles of the strip that engines, latency, overload, memory and chunk heights are measured on."""

_PILOT_LINES = 2 * TILE_PX
_LAPS = 10
"""Laps of the dense path's time that the pipeline part makes: one over each strip, and two rounds at least."""
_LARGEST_STRIP_PX = 1 << 26


@dataclass(frozen=True, slots=True)
class Budget:
    """Seconds for each part, about; opening engines comes on top. pilot_s: for the first look at the box.

    sweep: which engines are tried, every backend at every size, or the station's backend at typical ones.
    """

    parts: Mapping[Part, float]
    pilot_s: float
    sweep: Literal["whole", "typical"]


WHOLE = Budget({"engines": 40, "pipeline": 55, "latency": 50, "overload": 10, "memory": 20, "chunks": 15}, 1.0, "whole")
QUICK = Budget({"engines": 3, "pipeline": 7, "latency": 7, "overload": 2.5, "memory": 3, "chunks": 2}, 0.3, "typical")


@dataclass(frozen=True, slots=True)
class Plan:
    """A run: the station, what is known of it once its engines were opened, and what is wanted.

    strip_lines: of the strips, in whole tiles. lag_lines: after a line at which its mask is out. stride: of the bundle.
    metres: lengths of strip for the memory part; none: as far as its time goes. box_file: where the chunk height is kept, by
    box_key.
    """

    config: StationConfig
    origin: str
    station: Station
    strip_lines: int
    lag_lines: int
    stride: int
    budget: Budget
    latency_budget_ms: float
    metres: tuple[float, ...]
    box_key: BoxKey
    box_file: Path

    def seconds(self, part: Part) -> float:
        """For a part, about."""
        return self.budget.parts[part]

    def strip(self, clean_share: float) -> Strip:
        """A strip of the station's width and scale."""
        return make_strip(self.station.width_px, self.strip_lines, self.config.scale, clean_share)


def make_plan(
    config: StationConfig, origin: str, budget: Budget, latency_budget_ms: float, metres: tuple[float, ...], box_file: Path
) -> Plan:
    """Open the station's engines, look at how fast the dense path is, decide how long the strips are. Raises RustEdgeError."""
    width = strip_width(config)
    with Engines(config, origin) as engines:
        # before a stream is opened, which may fall back on another backend: so does the station that asks for its height
        box_key = engines.box_key(width)
        lag_lines = engines.segmenter(width).lag_lines
        manifest, choice = engines.bundle.manifest, engines.choices[0]
        station = Station(
            origin=origin,
            bundle=manifest.name,
            bundle_sha256=engines.bundle.sha256,
            precision=manifest.precision,
            gate=engines.gate.manifest.name if engines.gate else None,
            gate_sha256=engines.gate.sha256 if engines.gate else None,
            mode=config.mode,
            dense="streaming" if config.dense == "streaming" and manifest.streaming else "slabs",
            backend=choice.backend,
            backend_version=choice.version,
            float_arithmetic=choice.precision,
            threads=config.session.threads or machine.cores(),
            chunk_lines=engines.chunk_lines(width),
            width_px=width,
            frame_lines=config.source.frame_lines,
            mm_per_line=config.scale.mm_per_line,
            mm_per_column=config.scale.mm_per_column,
            line_rate_hz=config.source.line_rate_hz,
            config_hash=engines.config_hash,
        )
    lines_per_s = _first_look(plan_modes(config)[0], origin, width, budget.pilot_s)
    wanted = round(lines_per_s * budget.parts["pipeline"] / _LAPS)
    strip_lines = max(fewest_lines(width), min(wanted, _LARGEST_STRIP_PX // width)) // TILE_PX * TILE_PX
    return Plan(
        config, origin, station, strip_lines, lag_lines, manifest.stride, budget, latency_budget_ms, metres, box_key, box_file
    )


def plan_modes(config: StationConfig) -> tuple[StationConfig, ...]:
    """The modes that a station can be measured in: mode tiles as it is, else dense, and with its gate as a cascade."""
    if config.mode == "tiles":
        return (config,)
    # bands are the cascade's: a dense station that names some would be refused
    dense = config.model_copy(update={"mode": "dense", "tiling": config.tiling.model_copy(update={"band_lines": None})})
    return (dense, config.model_copy(update={"mode": "cascade"})) if config.gate else (dense,)


def strip_width(config: StationConfig) -> int:
    """Columns of the station's strip; of a folder, those of its images. Raises ConfigError, SourceError."""
    if isinstance(config.source, FolderSource):
        from edge.sources.folder import FolderSource as Folder

        return Folder(config.source).width
    width: int | None = getattr(config.source, "width", None)
    if width is None:
        raise ConfigError(
            "source.width: got none, and no camera is opened to measure; expected its columns, such as --set source.width=4096, "
            "of a video a simulated source of as many"
        )
    return width


@contextmanager
def scratch_folder(config: StationConfig) -> Iterator[Path]:
    """A folder on the disk that the station's outbox lies on, gone afterwards: what a commit costs is that disk's to say."""
    wanted = config.outbox.path.absolute().parent
    near = next(folder for folder in (wanted, *wanted.parents) if folder.is_dir())
    with tempfile.TemporaryDirectory(prefix=".rust-edge-bench-", dir=near if os.access(near, os.W_OK) else None) as folder:
        yield Path(folder)


def station_in(folder: Path, config: StationConfig, mqtt: Mqtt | None) -> StationConfig:
    """The station with its outbox and an events file in a folder, and another broker; its own ones see nothing of a bench."""
    outbox = config.outbox.model_copy(update={"path": folder / "outbox.db"})
    return config.model_copy(update={"outbox": outbox, "sinks": Sinks(mqtt=mqtt, jsonl=folder / "events.jsonl")})


def _first_look(config: StationConfig, origin: str, width: int, seconds: float) -> float:
    steel = SteelStrip(width, 1, SimulatedDefects(), config.scale).lines(0, _PILOT_LINES)
    with Engines(config, origin) as engines:
        return measure_lines_per_s(engines.segmenter(width), steel, TILE_PX, seconds)
