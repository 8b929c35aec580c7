"""Millimetres per pixel from a target of bars, to a fraction of a pixel, with the lens's distortion along the line.

Bars along the motion tell mm per column, bars across it mm per line; `pitch_mm` is from one edge to the next. Where an edge lies
is the centre of mass of the brightness step, which needs no threshold: for light gathered evenly over a pixel it is exact, and
blur that is the same on both sides does not move it. Positions are of pixels' outer edges: pixel i spans [i, i + 1).

    X = a0 + a1 u + a2 u^2 + a3 u^3      mm on the target at u = (x - half) / half of a line of 2 half columns
                                         a3 / a1 is the lens's cubic, a2 / a1 a target or sensor that stands askew
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from calibration.columns import runs_of
from calibration.recordings import Flags, Floats, Levels, RecordingError

SLABS = 8
"""Stretches of lines that edges are found in by themselves: what moves from one to the next is tilt."""
STEP_SHARE = 0.25
"""Of the strongest step: weaker ones are no edges of bars."""
LEAST_CONTRAST_GREY = 16.0
FEWEST_EDGES = 8
LEAST_PITCH_PX = 5.0
LARGEST_TILT_DEG = 10.0
UNKNOWN_TILT = 0.01
"""Slope of the bars that may stay unexplained: it makes scales too large by half its square, 5e-5."""
OUTLIER_SIGMAS, LEAST_OUTLIER_PX = 5.0, 0.1
MOST_OUTLIERS = 0.2

Degree = Literal[1, 3]


@dataclass(frozen=True, slots=True, eq=False)
class Edges:
    """Edges of bars that were seen on all lines.

    position: (n,) px at the middle line, rising. polarity: (n,) 1 from dark to light, -1 from light to dark. slope: px that they
    move from line to line. extent: px of the line that they were found on.
    """

    position: Floats
    polarity: Floats
    slope: float
    extent: int


@dataclass(frozen=True, slots=True)
class ScaleFit:
    """What the edges tell. mm_per_pixel: the one number that fits the line best, with its standard error.

    middle_mm_per_pixel: of the curve, in the middle of the line.

    cubic: a3 / a1. askew: a2 / a1. residual_px: root mean square of what the curve leaves. worst_mm: largest error of a place
    where mm_per_pixel alone is used. tilt_deg: of the bars. edges, rejected: that count and that do not.
    """

    mm_per_pixel: float
    mm_per_pixel_error: float
    middle_mm_per_pixel: float
    cubic: float
    cubic_error: float
    askew: float
    residual_px: float
    worst_mm: float
    tilt_deg: float
    edges: int
    rejected: int
    places_px: tuple[float, ...]
    residuals_px: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class EncoderScale:
    """What an encoder tells. mm_per_line: mean over all lines. jitter_mm: standard deviation of single lines' lengths."""

    mm_per_line: float
    jitter_mm: float
    lines: int


def find_edges(levels: Levels, origin: str) -> Edges:
    """Edges across the columns of (n, width) levels, followed through the lines. Raises RecordingError."""
    if len(levels) < SLABS:
        raise RecordingError(f"{origin}: got {len(levels)} lines; expected at least {SLABS}")
    slabs = np.array_split(levels, SLABS)
    found = [_edges_of(slab.mean(axis=0, dtype=np.float64), levels.dtype, origin) for slab in slabs]
    middles = np.cumsum([len(slab) for slab in slabs]) - np.array([len(slab) for slab in slabs]) / 2
    tracks, polarity = _follow(found)
    if len(tracks) < FEWEST_EDGES:
        raise RecordingError(
            f"{origin}: found {len(tracks)} edges that all lines have; expected at least {FEWEST_EDGES}: more bars in the view, "
            "more contrast, bars along the motion (--across) or across it (--along)"
        )
    lines = middles - middles.mean()
    slope = float((tracks * lines).sum() / ((lines**2).sum() * len(tracks)))
    position = tracks.mean(axis=1)
    order = np.argsort(position)
    # the middle line is that of the slabs, which is half the height but for a line
    return Edges(position[order], polarity[order], slope, int(levels.shape[1]))


def fit_scale(edges: Edges, pitch_mm: float, origin: str, degree: Degree, mm_per_pixel_other: float | None) -> ScaleFit:
    """mm per pixel in the direction that edges were found in. degree: 3 across the lens, 1 along the motion.

    mm_per_pixel_other: in the other direction, which tells the tilt: bars that stand askew by t are pitch / cos t apart; None:
    not known, bars must then be straight. Raises RecordingError.
    """
    width_px = float(np.median(np.diff(edges.position)))
    if width_px < LEAST_PITCH_PX:
        raise RecordingError(f"{origin}: bars are {width_px:.1f} px wide; expected at least {LEAST_PITCH_PX:.0f}: wider ones")
    found = len(edges.position)
    edges, index = _without_doubles(edges, _numbered(edges))
    if len(index) < max(FEWEST_EDGES, (1 - MOST_OUTLIERS) * found):
        raise RecordingError(f"{origin}: light and dark bars do not alternate; expected a clean target, and sharp bars")
    pixels = float(index[-1]) / float(edges.position[-1] - edges.position[0])
    tilt = _tilt(edges.slope, pitch_mm * pixels, mm_per_pixel_other, origin)
    wanted = index * pitch_mm / math.cos(tilt)
    half = edges.extent / 2
    across = (edges.position - half) / half
    design = _design(across, edges.polarity, degree)
    fit, kept = _fit_without_outliers(design, wanted, half, origin)
    noise = float(np.sqrt((fit.residual[kept] ** 2).sum() / max(int(kept.sum()) - design.shape[1], 1)))
    line = _solve(_design(across[kept], edges.polarity[kept], 1), wanted[kept])
    everywhere = np.linspace(-1, 1, 201)
    curve = _design(everywhere, np.zeros(201), degree) @ fit.terms
    straight = _design(everywhere, np.zeros(201), 1) @ line.terms
    cubic = degree == 3
    return ScaleFit(
        mm_per_pixel=float(line.terms[_LINEAR]) / half,
        mm_per_pixel_error=noise * math.sqrt(float(line.covariance[_LINEAR, _LINEAR])) / half,
        middle_mm_per_pixel=float(fit.terms[_LINEAR]) / half,
        cubic=float(fit.terms[_CUBIC] / fit.terms[_LINEAR]) if cubic else 0.0,
        cubic_error=noise * math.sqrt(float(fit.covariance[_CUBIC, _CUBIC])) / float(fit.terms[_LINEAR]) if cubic else 0.0,
        askew=float(fit.terms[_SQUARE] / fit.terms[_LINEAR]) if cubic else 0.0,
        residual_px=float(np.sqrt((fit.residual[kept] ** 2).mean())) * half / float(fit.terms[_LINEAR]),
        worst_mm=float(np.abs(curve - straight).max()),
        tilt_deg=math.degrees(tilt),
        edges=int(kept.sum()),
        rejected=found - int(kept.sum()),
        places_px=tuple(edges.position[kept].tolist()),
        residuals_px=tuple((fit.residual[kept] * half / float(fit.terms[_LINEAR])).tolist()),
    )


def encoder_scale(counts: npt.NDArray[np.int64], mm_per_count: float, origin: str) -> EncoderScale:
    """mm per line from the encoder's count at each line, (n,) int64. Raises RecordingError where it stands or turns back."""
    steps = np.diff(counts)
    if len(steps) < 2:
        raise RecordingError(f"{origin}: got {len(counts)} counts; expected one for each of at least 3 lines")
    if (steps < 0).any():
        raise RecordingError(
            f"{origin}: the count falls at line {int((steps < 0).argmax()) + 1}; expected one direction: record again"
        )
    if counts[-1] == counts[0]:
        raise RecordingError(f"{origin}: the encoder stood still; expected it to turn")
    return EncoderScale(
        float(counts[-1] - counts[0]) * mm_per_count / len(steps), float(steps.std(ddof=1)) * mm_per_count, len(counts)
    )


_OFFSET, _LINEAR, _BAR, _SQUARE, _CUBIC = range(5)
"""Columns of a design matrix. _BAR: half of what light bars are wider than dark ones, printed or seen so."""


@dataclass(frozen=True, slots=True, eq=False)
class _Solution:
    """Least squares. covariance: of the terms for residuals of variance 1."""

    terms: Floats
    covariance: Floats
    residual: Floats


def _design(across: Floats, polarity: Floats, degree: Degree) -> Floats:
    terms = [np.ones_like(across), across, polarity]
    return np.stack(terms + ([across**2, across**3] if degree == 3 else []), axis=1)


def _solve(design: Floats, wanted: Floats) -> _Solution:
    terms: Floats = np.linalg.lstsq(design, wanted, rcond=None)[0].astype(np.float64)
    return _Solution(terms, np.asarray(np.linalg.inv(design.T @ design), np.float64), wanted - design @ terms)


def _fit_without_outliers(design: Floats, wanted: Floats, half: float, origin: str) -> tuple[_Solution, Flags]:
    """The fit of the edges that lie where it has them, and which those are; residuals are of all edges."""
    kept = np.ones(len(wanted), np.bool_)
    while True:
        solved = _solve(design[kept], wanted[kept])
        residual = wanted - design @ solved.terms
        off = np.abs(residual) * half / abs(float(solved.terms[_LINEAR]))
        limit = max(OUTLIER_SIGMAS * 1.4826 * float(np.median(off[kept])), LEAST_OUTLIER_PX)
        fitting = kept & (off <= limit)
        if fitting.sum() < max(FEWEST_EDGES, (1 - MOST_OUTLIERS) * len(kept)):
            raise RecordingError(
                f"{origin}: {int((~fitting).sum())} of {len(kept)} edges are not where even bars have them; expected at most "
                f"{MOST_OUTLIERS:.0%}: check the target, the focus, and that it lies flat"
            )
        if (fitting == kept).all():
            return _Solution(solved.terms, solved.covariance, residual), kept
        kept = fitting


def _tilt(slope: float, mm_per_pixel: float, mm_per_pixel_other: float | None, origin: str) -> float:
    """Angle of the bars, rad. mm_per_pixel: as if they stood straight: sin t = slope * mm_per_pixel / mm_per_pixel_other."""
    if mm_per_pixel_other is None:
        if abs(slope) > UNKNOWN_TILT:
            raise RecordingError(
                f"{origin}: the bars move by {slope:.4f} px from line to line, so the target is askew; expected at most "
                f"{UNKNOWN_TILT}: align it, or say the other scale (--mm-per-line, --mm-per-column, or both recordings)"
            )
        return 0.0
    sine = slope * mm_per_pixel / mm_per_pixel_other
    if abs(sine) > math.sin(math.radians(LARGEST_TILT_DEG)):
        got = math.degrees(math.asin(max(-1.0, min(1.0, sine))))
        raise RecordingError(f"{origin}: the target is askew by {got:.1f} deg; expected at most {LARGEST_TILT_DEG:.0f}: align it")
    return math.asin(sine)


def _edges_of(profile: Floats, dtype: np.dtype[Any], origin: str) -> tuple[Floats, Floats]:
    """Places (n,) and polarity (n,) of the steps of a profile. Up to two dead or hot pixels side by side are taken out.

    A median over five leaves every rise and fall as it is, and bars of more than two pixels.
    """
    calm = np.median(np.lib.stride_tricks.sliding_window_view(np.pad(profile, 2, mode="edge"), 5), axis=1)
    step = np.diff(calm)
    low, high = np.percentile(calm, [5, 95])
    least = LEAST_CONTRAST_GREY * (257 if dtype == np.uint16 else 1)
    if high - low < least:
        raise RecordingError(
            f"{origin}: bars differ by {high - low:.0f} levels; expected at least {least:.0f}: more light, the target in the view"
        )
    strong = STEP_SHARE * float(np.abs(step).max())
    signs = np.where(np.abs(step) >= strong, np.sign(step), 0)
    runs = sorted((start, stop, sign) for sign in (1.0, -1.0) for start, stop in runs_of(signs == sign))
    places, polarity = [], []
    for start, stop, sign in runs:
        # what lies in the rim of a step counts too; an edge at the rim of the view is cut off, and is none
        first, last = start - 1, stop + 1
        if first < 0 or last > len(step):
            continue
        mass = step[first:last] * sign
        places.append(float((mass * np.arange(first + 1, last + 1)).sum() / mass.sum()))
        polarity.append(sign)
    return np.array(places), np.array(polarity)


def _follow(found: list[tuple[Floats, Floats]]) -> tuple[Floats, Floats]:
    """(n, slabs) places of the edges that all slabs have, and their polarity (n,)."""
    places, polarity = found[0]
    if len(places) < 2:
        return np.empty((0, len(found))), np.empty(0)
    tracks = [places]
    alive = np.ones(len(places), np.bool_)
    # the next edge of the same kind is two bars away
    reach = float(np.median(np.diff(places)))
    for later, later_polarity in found[1:]:
        if not len(later):
            return np.empty((0, len(found))), np.empty(0)
        away = np.abs(later[None, :] - tracks[-1][:, None])
        away[later_polarity[None, :] != polarity[:, None]] = np.inf
        nearest = away.argmin(axis=1)
        alive &= away[np.arange(len(nearest)), nearest] < reach
        tracks.append(later[nearest])
    return np.stack(tracks, axis=1)[alive], polarity[alive]


def _numbered(edges: Edges) -> Floats:
    """(n,) number of each edge, counted in bars: even ones are of the kind of the first, however wide light bars are printed.

    Gaps between edges of a kind are compared with those around them, which change slowly along a lens.
    """
    first_kind = edges.polarity == edges.polarity[0]
    own = edges.position[first_kind]
    period = _median_around(np.diff(own)) if len(own) > 1 else np.array([np.inf])
    numbers = 2 * np.concatenate([[0.0], np.cumsum(np.rint(np.diff(own) / period[: len(own) - 1]))])
    # one of the other kind lies after the last of its own that is before it, or some periods further where that is missing
    before = np.searchsorted(own, edges.position[~first_kind]) - 1
    beyond = (edges.position[~first_kind] - own[before]) / period[np.minimum(before, len(period) - 1)]
    index = np.empty(len(edges.position))
    index[first_kind] = numbers
    index[~first_kind] = numbers[before] + 1 + 2 * np.floor(beyond)
    return index


def _without_doubles(edges: Edges, index: Floats) -> tuple[Edges, Floats]:
    """Without edges that share a number, or that come out of turn: where dirt makes edges of its own, none is to be trusted."""
    single = np.array([int((index == number).sum()) == 1 for number in index])
    single &= (index > np.concatenate([[-np.inf], index[:-1]])) & (index < np.concatenate([index[1:], [np.inf]]))
    return Edges(edges.position[single], edges.polarity[single], edges.slope, edges.extent), index[single]


def _median_around(spacing: Floats) -> Floats:
    """Of each gap the median over itself and the five on either side: gaps change slowly along a lens."""
    return np.array([np.median(spacing[max(0, index - 5) : index + 6]) for index in range(len(spacing))])
