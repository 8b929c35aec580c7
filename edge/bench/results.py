"""What a bench run found: typed, versioned, written as JSON; every figure has its unit in its name."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from edge.errors import ConfigError

FORMAT: Literal["rust-edge-bench"] = "rust-edge-bench"
FORMAT_VERSION = 1
"""Within a version fields are only added, and only optional ones."""

Part = Literal["engines", "pipeline", "latency", "overload", "memory", "chunks"]
PARTS: tuple[Part, ...] = ("engines", "pipeline", "latency", "overload", "memory", "chunks")


class Section(BaseModel):
    """A part of the results: frozen, finite numbers only; unknown fields of a later minor addition are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class Figure(Section):
    """A figure that was measured in rounds; its unit is in the name of the field that holds it.

    value: the median of the rounds; of a percentile, that of all rounds' samples together. lowest, highest: of one round.
    """

    value: float
    lowest: float
    highest: float
    rounds: int = Field(ge=1)

    @property
    def spread(self) -> float:
        """Half of the range of the rounds as a share of the value: 0.02 reads as +- 2 %."""
        return (self.highest - self.lowest) / 2 / abs(self.value) if self.value else 0.0


def figure_of(rounds: Iterable[float], value: float | None = None) -> Figure:
    """The figure of some rounds; value: None takes their median.

    >>> figure_of([3.0, 1.0, 2.0])
    Figure(value=2.0, lowest=1.0, highest=3.0, rounds=3)
    """
    values = sorted(rounds)
    return Figure(
        value=statistics.median(values) if value is None else value, lowest=values[0], highest=values[-1], rounds=len(values)
    )


class Machine(Section):
    """The box. cores: that this process may use. load: 1-minute load average when the run began."""

    processor: str
    architecture: str
    system: str
    cores: int = Field(ge=1)
    memory_mib: int | None = None
    load: float | None = None


class Station(Section):
    """What was measured with: the station file resolved.

    backend: of the segmenter's sessions; float_arithmetic: what it computes floats in. threads: inside one inference, resolved.
    line_rate_hz: of the configured source.
    config_hash: sha256 of what decides over findings.
    """

    origin: str
    bundle: str
    bundle_sha256: str
    precision: str
    gate: str | None = None
    gate_sha256: str | None = None
    mode: Literal["dense", "cascade", "tiles"]
    dense: Literal["streaming", "slabs"]
    backend: str
    backend_version: str | None = None
    float_arithmetic: str | None = None
    threads: int
    chunk_lines: int
    width_px: int
    frame_lines: int
    mm_per_line: float
    mm_per_column: float
    line_rate_hz: float | None = None
    config_hash: str


class StripTruth(Section):
    """A strip that was made beforehand.

    wanted_clean_share, clean_share: of its 256 px tiles, without a planted pixel. planted: defects of at least the score
    card's smallest area, whole on the strip; smaller: the others on it.
    """

    wanted_clean_share: float
    clean_share: float
    tiles: int
    width_px: int
    lines: int
    seed: int
    planted: int
    smaller: int


class EngineFigures(Section):
    """One engine alone, fed with prepared pixels.

    engine: tiles, the segmenter (or classifier) on batches; stream, its line-streaming form; gate, on batches of tiles, or
    on slabs of the strip where it has an answer for every cell. pixels are those of the strip, before `reduce` and
    without halo.
    """

    engine: Literal["tiles", "stream", "gate"]
    bundle: str
    precision: str
    backend: str
    threads: int
    batch: int | None = None
    chunk_lines: int | None = None
    megapixels_per_s: Figure
    megapixels_per_cpu_s: Figure


class PipelineFigures(Section):
    """The whole pipeline on one strip: lines in, events out, outbox on disk.

    alarmed_share: of 256 px tiles in which the gate let something through; None without a gate.
    cpu_share_outside_inference, ratio_to_bare_engine: against the same engines replaying the same inputs, nothing around
        them; the ratio is of throughputs.
    planted, found: defects of at least the score card's smallest area. false_alarms: reports that touch nothing planted.
    dense_defects: that the dense path reports on the same strip; dense_defects_found: those that this mode reports too.
        None where the dense path was not run.
    """

    mode: Literal["dense", "cascade", "tiles"]
    wanted_clean_share: float
    clean_share: float
    alarmed_share: float | None = None
    lines_per_s: Figure
    megapixels_per_s: Figure
    megapixels_per_cpu_s: Figure
    cpu_share_outside_inference: Figure | None = None
    ratio_to_bare_engine: Figure | None = None
    planted: int
    found: int
    false_alarms: int
    dense_defects: int | None = None
    dense_defects_found: int | None = None


class LoadFigures(Section):
    """Latency from a line's capture (the defect's last line) to the alert at a subscriber, at one share of capacity.

    floor_ms: time to capture the lines that the network wants before a row is finished: one chunk and its lag.
    p99_to_floor: ratio. alerts: defects opened that arrived; with fewer than 1,000 the 99.9th percentile is the longest, and
        without any there are none. alerts_missing: written by the daemon and not arrived.
    """

    load_share: float
    line_rate_hz: float
    seconds: float
    alerts: int
    p50_ms: Figure | None = None
    p90_ms: Figure | None = None
    p99_ms: Figure | None = None
    p99_9_ms: Figure | None = None
    longest_ms: float | None = None
    floor_ms: float
    p99_to_floor: Figure | None = None
    shed_lines: int
    alerts_missing: int


class LatencyFigures(Section):
    """The daemon, a broker and a subscriber of their own. capacity_*: the daemon's, its source waiting for it."""

    clean_share: float
    capacity_lines_per_s: Figure
    capacity_megapixels_per_s: Figure
    loads: tuple[LoadFigures, ...] = ()


class OverloadFigures(Section):
    """The daemon with a camera too fast for it.

    ledger_exact: captured = inspected + gated + lost + shed, in the daemon's summary and in its last event alike.
    """

    load_share: float
    line_rate_hz: float
    seconds: float
    queue_frames: int
    captured_lines: int
    inspected_lines: int
    gated_lines: int
    lost_lines: int
    shed_lines: int
    shed_share: float
    ledger_exact: bool


class MemorySample(Section):
    """Resident memory of the daemon's process at one time."""

    seconds: float
    metres: float
    rss_mib: float


class MemoryFigures(Section):
    """A daemon in a process of its own over one length of strip.

    settled_mib: once warmed up (the first tenth of the samples is left out); peak_mib: from then on.
    growth_mib_per_km: slope of the straight line through the samples after that; None below 100 m, where it would mean nothing.
    """

    metres: float
    lines: int
    seconds: float
    settled_mib: float
    last_mib: float
    peak_mib: float
    growth_mib_per_km: float | None = None
    samples: tuple[MemorySample, ...] = ()


class ChunkFigures(Section):
    """The dense path at one chunk height.

    latency_ms: to capture one chunk and the network's lag at the line rate, and to compute the chunk.
    """

    chunk_lines: int
    lag_lines: int
    us_per_line: Figure
    cpu_us_per_line: Figure
    latency_ms: float
    within_budget: bool


class ChunkChoice(Section):
    """The chunk height for this box. line_rate_hz: for the latency; the station's, at most 80 % of what the dense path carries.

    chosen_lines: the cheapest height within the budget, of nearly as cheap ones the lowest; None: no height is within it.
    box_file: where it is kept; None: nowhere, box_fault says why.
    """

    latency_budget_ms: float
    line_rate_hz: float
    heights: tuple[ChunkFigures, ...]
    chosen_lines: int | None = None
    box_file: str | None = None
    box_fault: str | None = None


class Results(Section):
    """One run. complete: False where it was interrupted; `interrupted_in` says in which part.

    not_measured: part -> why, where it does not apply; failed: part -> why, where it should have worked.
    verdict: what the figures mean, in sentences.
    """

    format: Literal["rust-edge-bench"] = FORMAT
    format_version: int = FORMAT_VERSION
    complete: bool = True
    interrupted_in: Part | None = None
    began_at: AwareDatetime
    seconds: float
    command: str
    versions: dict[str, str]
    machine: Machine
    station: Station
    strips: tuple[StripTruth, ...] = ()
    engines: tuple[EngineFigures, ...] | None = None
    pipeline: tuple[PipelineFigures, ...] | None = None
    latency: LatencyFigures | None = None
    overload: OverloadFigures | None = None
    memory: tuple[MemoryFigures, ...] | None = None
    chunks: ChunkChoice | None = None
    not_measured: dict[str, str] = {}
    failed: dict[str, str] = {}
    verdict: tuple[str, ...] = ()


def json_of(results: Results) -> bytes:
    """The results as JSON, UTF-8."""
    return (results.model_dump_json(indent=1) + "\n").encode()


def read_results(path: Path) -> Results:
    """Results of an earlier run. Raises ConfigError where the file holds none that can be read."""
    try:
        document: Any = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); expected a file of `rust-edge bench --json`") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON ({error}); expected a file of `rust-edge bench --json`") from error
    named = document.get("format") if isinstance(document, dict) else None
    if named != FORMAT:
        raise ConfigError(f"{path}: got format {named!r}; expected {FORMAT!r}: a file of `rust-edge bench --json`")
    version = document.get("format_version")
    if version != FORMAT_VERSION:
        raise ConfigError(
            f"{path}: got format version {version!r}; expected {FORMAT_VERSION}: measure again with this version of rust-edge"
        )
    try:
        return Results.model_validate(document)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise ConfigError(f"{path}: {where}: {fault['msg']}; expected a file as `rust-edge bench --json` writes it") from error


def now_utc() -> datetime:
    """The time, with its zone."""
    return datetime.now().astimezone()
