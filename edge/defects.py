"""What is found on a strip: values that the tracker reports and the events carry. All of them are plain and frozen."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

Run = tuple[int, int]
"""`start, length` of foreground pixels in a box, row-major: start = row * box width + column."""


class Change(enum.Enum):
    """What happened to a defect."""

    OPENED = "opened"
    UPDATED = "updated"
    CLOSED = "closed"


class Ending(enum.Enum):
    """Why a closed defect is closed."""

    COMPLETE = "complete"
    STRIP_END = "strip_end"
    LINES_LOST = "lines_lost"
    MERGED = "merged"
    LENS = "lens"


@dataclass(frozen=True, slots=True)
class BoxPx:
    """Pixels on the strip, half-open, lines counted from the strip's start."""

    line_start: int
    line_stop: int
    column_start: int
    column_stop: int


@dataclass(frozen=True, slots=True)
class Defect:
    """One defect as it is known at some line of the strip.

    id: deterministic, from the strip, the class and the defect's first pixel.
    revision: 0 when opened, then counted up with every report.
    centroid_line, centroid_column: of its pixels' centres, px.
    length_mm, width_mm: axes of the ellipse with the same second moments (major, minor). orientation_deg: of the major
        axis against the direction along the strip, in (-90, 90]; positive towards higher columns.
    confidence_mean, confidence_peak: of its pixels, 0 to 1. gate_score: highest of its tiles; None in dense mode.
    fragments: connected regions that make it up.
    runs: run-length mask in `box`, at most as many as configured; runs_truncated tells that there were more.
    """

    id: str
    revision: int
    class_name: str
    box: BoxPx
    area_px: int
    area_mm2: float
    centroid_line: float
    centroid_column: float
    length_mm: float
    width_mm: float
    orientation_deg: float
    confidence_mean: float
    confidence_peak: float
    gate_score: float | None
    fragments: int
    runs: tuple[Run, ...] = ()
    runs_truncated: bool = False

    @property
    def aspect_ratio(self) -> float:
        """Length over width, at least 1."""
        return max(1.0, self.length_mm / self.width_mm) if self.width_mm > 0 else 1.0


@dataclass(frozen=True, slots=True)
class DefectChange:
    """A defect was opened, updated or closed. decided_at_line: rows below it were known when this was decided."""

    change: Change
    defect: Defect
    decided_at_line: int
    ending: Ending | None = None
    merged_into: str | None = None


@dataclass(frozen=True, slots=True)
class LensAlert:
    """The same columns were alarmed over `over_mm` of strip: dirt on the lens or the window, not on the steel."""

    id: str
    column_start: int
    column_stop: int
    over_mm: float
    decided_at_line: int


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts of one strip so far: defects closed by class, their area, regions rejected by reason, lens alerts."""

    defects: dict[str, int] = field(default_factory=dict)
    area_px: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)
    lens_alerts: int = 0
