"""Rules that a region must pass to become a defect, resolved once from the station file and the bundle's manifest.

What does not pass is counted under the first rule that it still failed when it ended, in the order of `Reason`.
"""

from __future__ import annotations

import enum
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edge.config import ClassRule, Filters, Scale
from edge.errors import ConfigError
from edge.manifest import Threshold
from edge.tracking.geometry import Ellipse

DEFAULT_THRESHOLD = Threshold(low=0.5, high=0.5)
"""Of a class that neither the station file nor the manifest gives one: more likely than everything else together."""

MAX_CLASSES = 128
"""Classes of one mask, background included: the highest bit of its bytes is the tracker's own."""

FLOAT_SLACK = 1e-9
"""Rounding of a product such as 0.6 * 255 or 5.0 / 0.1, far below a 255th and a pixel."""


class Reason(enum.Enum):
    """Why a region is no defect; the value is its key in `Tally.rejected`."""

    IGNORED = "ignored"
    FIXED_COLUMNS = "fixed_columns"
    CONFIDENCE = "confidence"
    STRIP_EDGE = "strip_edge"
    MIN_AREA = "min_area"
    MIN_LENGTH = "min_length"
    ASPECT = "aspect"


@dataclass(frozen=True, slots=True)
class ClassLimits:
    """What a region of one class must be. low, high: confidence in steps of 1/255, at or above."""

    low: int = 0
    high: int = 0
    min_area_mm2: float = 0.0
    min_length_mm: float = 0.0
    min_aspect_ratio: float | None = None
    max_aspect_ratio: float | None = None
    ignore: bool = False


@dataclass(frozen=True, slots=True)
class EdgeLimits:
    """Pixels are judged from `margin_columns` inwards of edges where the grey falls below `background_below`."""

    background_below: int
    margin_columns: int


@dataclass(frozen=True, slots=True)
class MergeLimits:
    """Fragments of one class with at most so many empty lines and columns between their boxes are one defect."""

    along_lines: int
    across_columns: int


@dataclass(frozen=True, slots=True)
class FixedColumnLimits:
    """Columns alarmed on at least `share` of `over_lines` are dirt."""

    over_lines: int
    share: float


@dataclass(frozen=True, slots=True)
class Rules:
    """All filters in pixels. classes: by class index, background (never asked) included. None: that filter is off."""

    classes: tuple[ClassLimits, ...]
    strip_edges: EdgeLimits | None = None
    merge: MergeLimits | None = None
    fixed_columns: FixedColumnLimits | None = None

    def fingerprint(self) -> str:
        """Equal for equal rules, in every process."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]


def resolve_rules(filters: Filters, classes: Sequence[str], thresholds: Mapping[str, Threshold], scale: Scale) -> Rules:
    """The station's filters for these classes (index order, 0 the background), with the bundle's thresholds where it sets none.

    Lengths become whole pixels: a margin is rounded up, a merge distance down. Raises ConfigError naming every fault.
    """
    faults = [
        f"filters.classes.{name}: the bundle has no such class; expected one of {', '.join(classes[1:])}"
        for name in filters.classes
        if name not in classes[1:]
    ]
    if len(classes) > MAX_CLASSES:
        faults.append(f"bundle: got {len(classes)} classes, expected at most {MAX_CLASSES}")
    limits = [ClassLimits()]
    for name in classes[1:]:
        key = f"filters.classes.{name}" if name in filters.classes else "filters.default"
        rule = filters.classes.get(name, filters.default)
        threshold = thresholds.get(name, DEFAULT_THRESHOLD)
        low = threshold.low if rule.low is None else rule.low
        high = threshold.high if rule.high is None else rule.high
        if low > high:
            faults.append(
                f"{key}: low {low} is above high {high} for class {name}; the one not set here is the bundle's: set both"
            )
        limits.append(_limits_of(rule, low, high))
    if faults:
        raise ConfigError("\n".join(faults))
    edges, merge, fixed = filters.strip_edges, filters.merge, filters.fixed_columns
    return Rules(
        tuple(limits),
        None
        if edges.background_below is None
        else EdgeLimits(edges.background_below, math.ceil(edges.margin_mm / scale.mm_per_column - FLOAT_SLACK)),
        None
        if merge.along_mm == merge.across_mm == 0
        else MergeLimits(
            math.floor(merge.along_mm / scale.mm_per_line + FLOAT_SLACK),
            math.floor(merge.across_mm / scale.mm_per_column + FLOAT_SLACK),
        ),
        None
        if fixed.over_mm is None
        else FixedColumnLimits(math.ceil(fixed.over_mm / scale.mm_per_line - FLOAT_SLACK), fixed.share),
    )


def _limits_of(rule: ClassRule, low: float, high: float) -> ClassLimits:
    return ClassLimits(
        math.ceil(low * 255 - FLOAT_SLACK),
        math.ceil(high * 255 - FLOAT_SLACK),
        rule.min_area_mm2,
        rule.min_length_mm,
        rule.min_aspect_ratio,
        rule.max_aspect_ratio,
        rule.ignore,
    )


def region_fault(limits: ClassLimits, area: int, confidence_peak: int, inside: int) -> Reason | None:
    """The first rule for connected pixels that a region fails. inside: pixels on judged steel, at least half must be."""
    if limits.ignore:
        return Reason.IGNORED
    if confidence_peak < limits.high:
        return Reason.CONFIDENCE
    return Reason.STRIP_EDGE if 2 * inside < area else None


def defect_fault(limits: ClassLimits, area_mm2: float, ellipse: Ellipse) -> Reason | None:
    """The first rule for a defect, its fragments together, that it fails.

    >>> defect_fault(ClassLimits(min_area_mm2=0.5), 0.4, Ellipse(1.0, 0.5, 0.0))
    <Reason.MIN_AREA: 'min_area'>
    """
    if area_mm2 < limits.min_area_mm2 - FLOAT_SLACK:
        return Reason.MIN_AREA
    if ellipse.length_mm < limits.min_length_mm:
        return Reason.MIN_LENGTH
    too_round = limits.min_aspect_ratio is not None and ellipse.aspect_ratio < limits.min_aspect_ratio
    too_long = limits.max_aspect_ratio is not None and ellipse.aspect_ratio > limits.max_aspect_ratio
    return Reason.ASPECT if too_round or too_long else None
