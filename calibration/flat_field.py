"""Dark signal and gain per column from frames in the dark and frames of an evenly lit target that moves.

    dark[c]     robust mean of column c with the lens covered
    response[c] robust mean of column c before the target, less dark[c]
    gain[c]     level / response[c], so that the target becomes `level` in every column

The target has to move, or its own dirt would become gain. Whatever the frames cannot tell is refused, with what to do.

Source: EMVA Standard 1288, Release 4.0 Linear, section 4 (dark signal and photo response nonuniformity, defect pixels).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from calibration.columns import ColumnSignal, column_signal, local_median, runs_of
from calibration.recordings import Flags, Floats, Recording, RecordingError, require_width
from edge.radiometry import (
    DARK_MAX,
    DARK_UNIT,
    GAIN_MAX,
    GAIN_UNIT,
    OFFSET_LIMIT,
    FlatField,
    Provenance,
    Validity,
    words_of,
)

FEWEST_LINES = 64
LARGEST_ERROR_GREY = 0.25
"""Standard error of a column's mean: the step that stays between two columns then is a third of a grey level, below rounding."""
BRIGHTEST_DARK_GREY = 64.0
"""A camera whose dark signal takes a quarter of its range has its black level set wrong, or its lens is not covered."""
LEAST_LIGHT_GREY = 32.0
"""Above dark. Below it rounding to whole levels alone is a percent of the gain."""
SATURATED_GREY = 254.7
"""65472 of 16 bits, white of a camera of 10 bits, is 254.75; of 8 bits it is 255 alone."""
BRIGHTEST_UNSATURATED_GREY = 200.0
"""Mean of a recording whose bright columns are likely to be below white as well."""
MOST_SATURATED = 0.005
"""Share of a column's samples: what is cut off of them moves its mean by less than a hundredth of its noise."""
MOST_DISTURBED = 0.1
"""Share of a column's lines that may be outliers; `column_signal` stands a sixth."""
LARGEST_DRIFT = 0.02
"""Of the light, from one sixteenth of the lines to another; all columns alike lose it, but such a lamp still warms up, or the
exposure follows a speed that changes."""
LARGEST_FLICKER = 0.02
"""Standard deviation of the light from line to line."""

DEAD_BELOW, BRIGHT_ABOVE = 0.5, 1.5
"""A column's response over that of the columns around it. Real PRNU is a few percent; dirt on a lens shades softly."""
HOT_ABOVE_GREY, HOT_SIGMAS = 8.0, 8.0
UNSTEADY_TIMES = 4.0
"""Noise over that of the columns around it, half a grey level added: pixels that blink."""
NEIGHBOURHOOD = 32
MOST_BAD, FEW_BAD = 0.01, 8
LONGEST_RUN = 8
"""Bad columns in a row: beyond it what is made of their neighbours hides defects, and the cause is no sensor's."""

_PORTIONS = 16
Reason = Literal["dead", "hot", "over-sensitive", "unsteady"]


@dataclass(frozen=True, slots=True)
class BadColumn:
    """A column that is interpolated, and why."""

    column: int
    reason: Reason


@dataclass(frozen=True, slots=True, eq=False)
class FlatFieldMeasurement:
    """What the frames tell, in grey levels of 8 bits.

    dark, response: (width,) float64; dark_error, response_error: their standard errors. good: (width,) bool. level: the grey
    level of the target once it is corrected. light: (n,) of each bright line over their mean. drift, flicker: of it.
    disturbed: columns, dark or bright, of which samples were left out as outliers.
    """

    dark: Floats
    response: Floats
    dark_error: Floats
    response_error: Floats
    good: Flags
    bad: tuple[BadColumn, ...]
    level: float
    light: Floats
    drift: float
    flicker: float
    disturbed: int
    dark_lines: int
    bright_lines: int

    @property
    def gain(self) -> Floats:
        """(width,) of each column; 1 of bad ones."""
        return np.where(self.good, self.level / np.where(self.good, self.response, 1.0), 1.0)

    @property
    def noise_grey(self) -> float:
        """Largest standard error of a good column's mean before the target."""
        return float(self.response_error[self.good].max())


def measure_flat_field(dark: Recording, bright: Recording, level: float | None = None) -> FlatFieldMeasurement:
    """Dark signal, response and bad columns. level: wanted of the corrected target; None: the median response, its mean stays.

    Raises RecordingError where the frames do not tell, with what to do.
    """
    require_width([dark, bright])
    for recording in (dark, bright):
        if recording.lines < FEWEST_LINES:
            raise RecordingError(f"{recording.origin}: got {recording.lines} lines; expected at least {FEWEST_LINES}")
    unit = dark.levels_per_grey
    in_dark, in_light = column_signal(dark.levels, unit), column_signal(bright.levels, unit)
    response = (in_light.mean - in_dark.mean) / unit
    _require_light(dark, bright, in_dark.mean / unit, response)
    bad = _bad_columns(in_dark, in_light, response, unit)
    good = np.ones(dark.width, np.bool_)
    good[[one.column for one in bad]] = False
    # first, since columns that are saturated on some lines make the others look unsteady
    _require_unsaturated(bright, good | np.isin(np.arange(len(good)), [one.column for one in bad if one.reason == "unsteady"]))
    _require_few(bad, good, bright.origin)
    _require_undisturbed(dark, in_dark, good)
    _require_undisturbed(bright, in_light, good)
    wanted = float(np.median(response[good])) if level is None else level
    dark_grey = in_dark.mean / unit
    _require_representable(dark_grey, response, good, wanted, bright.origin)
    response_error = np.hypot(in_light.error, in_dark.error) / unit
    _require_lines(dark, in_dark, good)
    _require_lines(bright, in_light, good)
    light = _light_of(bright, in_dark.mean, in_light.mean, good)
    drift, flicker = _steadiness(light)
    if drift > LARGEST_DRIFT or flicker > LARGEST_FLICKER:
        raise RecordingError(
            f"{bright.origin}: the light changes by {drift:.1%} along the lines and by {flicker:.1%} from line to line; expected "
            f"at most {LARGEST_DRIFT:.0%} and {LARGEST_FLICKER:.0%}: let the lamp warm up, move the target evenly, fix exposure"
        )
    disturbed = int(((in_dark.disturbed > 0) | (in_light.disturbed > 0))[good].sum())
    return FlatFieldMeasurement(
        dark_grey,
        response,
        in_dark.error / unit,
        response_error,
        good,
        bad,
        wanted,
        light,
        drift,
        flicker,
        disturbed,
        dark.lines,
        bright.lines,
    )


def find_bad_columns(dark: Recording, bright: Sequence[Recording]) -> tuple[BadColumn, ...]:
    """Columns that are dead, hot or unsteady, by the brightest recording that is not saturated. None of them is refused."""
    unit = dark.levels_per_grey
    dark_signal = column_signal(dark.levels, unit)
    means = [float(recording.levels.mean(dtype=np.float64)) / unit for recording in bright]
    lit = [index for index, mean in enumerate(means) if mean < BRIGHTEST_UNSATURATED_GREY] or [int(np.argmin(means))]
    signal = column_signal(bright[max(lit, key=lambda index: means[index])].levels, unit)
    return _bad_columns(dark_signal, signal, (signal.mean - dark_signal.mean) / unit, unit)


def flat_field_of(measured: FlatFieldMeasurement, provenance: Provenance, validity: Validity) -> FlatField:
    """The measurement as the device applies it. Bad columns get no dark signal and a gain of 1: they are interpolated."""
    dark = np.where(measured.good, measured.dark, 0.0)
    return FlatField(
        words_of(dark, DARK_UNIT),
        words_of(measured.gain, GAIN_UNIT),
        tuple(one.column for one in measured.bad),
        provenance,
        validity,
    )


def _require_light(dark: Recording, bright: Recording, dark_grey: Floats, response: Floats) -> None:
    black, light = float(np.median(dark_grey)), float(np.median(response))
    if black > BRIGHTEST_DARK_GREY:
        raise RecordingError(
            f"{dark.origin}: the dark frames have grey level {black:.0f}; expected at most {BRIGHTEST_DARK_GREY:.0f}: "
            "cover the lens, switch the lamp off, lower the camera's black level"
        )
    if light < LEAST_LIGHT_GREY:
        raise RecordingError(
            f"{bright.origin}: the target is {light:.0f} grey levels above dark; expected at least {LEAST_LIGHT_GREY:.0f}, "
            "better 150: more light, a longer exposure, or uncover the lens"
        )


def _bad_columns(in_dark: ColumnSignal, in_light: ColumnSignal, response: Floats, unit: int) -> tuple[BadColumn, ...]:
    dark = in_dark.mean / unit
    around = local_median(response, NEIGHBOURHOOD)
    black = local_median(dark, NEIGHBOURHOOD)
    spread = 1.4826 * float(np.median(np.abs(dark - black)))
    noise, noise_around = in_light.noise / unit, local_median(in_light.noise / unit, NEIGHBOURHOOD)
    checks: tuple[tuple[Reason, Flags], ...] = (
        ("hot", np.asarray(dark > black + max(HOT_ABOVE_GREY, HOT_SIGMAS * spread))),
        ("dead", np.asarray(response < DEAD_BELOW * around)),
        ("over-sensitive", np.asarray(response > BRIGHT_ABOVE * around)),
        ("unsteady", np.asarray(noise > UNSTEADY_TIMES * noise_around + 0.5)),
    )
    first: dict[int, Reason] = {}
    for reason, flags in checks:
        for column in np.flatnonzero(flags).tolist():
            first.setdefault(column, reason)
    return tuple(BadColumn(column, first[column]) for column in sorted(first))


def _require_few(bad: tuple[BadColumn, ...], good: Flags, origin: str) -> None:
    longest = max(runs_of(~good), key=lambda run: run[1] - run[0], default=(0, 0))
    if longest[1] - longest[0] > LONGEST_RUN:
        raise RecordingError(
            f"{origin}: columns {longest[0]} to {longest[1] - 1} are dead, hot or unsteady; expected at most {LONGEST_RUN} in a "
            "row: look for something before the lens, and whether the target fills the view"
        )
    most = max(FEW_BAD, int(MOST_BAD * len(good)))
    if len(bad) > most:
        raise RecordingError(
            f"{origin}: {len(bad)} of {len(good)} columns are dead, hot or unsteady; expected at most {most}: clean the target, "
            "move it while it is recorded; if they stay, the sensor is worn out"
        )


def _require_unsaturated(bright: Recording, good: Flags) -> None:
    white = np.asarray((bright.levels >= SATURATED_GREY * bright.levels_per_grey).mean(axis=0) > MOST_SATURATED) & good
    if white.any():
        raise RecordingError(
            f"{bright.origin}: {int(white.sum())} columns are saturated, the first is {int(white.argmax())}; expected all below "
            "grey level 250: less light, or a shorter exposure"
        )


def _require_undisturbed(recording: Recording, signal: ColumnSignal, good: Flags) -> None:
    disturbed = (signal.disturbed > MOST_DISTURBED) & good
    if disturbed.any():
        raise RecordingError(
            f"{recording.origin}: column {int(disturbed.argmax())} and {int(disturbed.sum()) - 1} more are disturbed on over "
            f"{MOST_DISTURBED:.0%} of the lines; expected a target without long defects: clean it, or take more lines"
        )


def _require_representable(dark: Floats, response: Floats, good: Flags, level: float, origin: str) -> None:
    weakest = float(response[good].min())
    if level / weakest > GAIN_MAX or float(dark[good].max()) > DARK_MAX:
        raise RecordingError(
            f"{origin}: the darkest column is {weakest:.1f} grey levels above dark and would need a gain of "
            f"{level / weakest:.1f}; expected at most {GAIN_MAX:.1f}: an evener lamp, less fall-off, or a lower --level"
        )
    if float((dark[good] * DARK_UNIT * level / response[good] * GAIN_UNIT).max()) >= OFFSET_LIMIT:
        raise RecordingError(f"{origin}: dark signal times gain is over 2048 grey levels; expected a lower black level, or light")


def _require_lines(recording: Recording, signal: ColumnSignal, good: Flags) -> None:
    error = float(signal.error[good].max()) / recording.levels_per_grey
    if error > LARGEST_ERROR_GREY:
        needed = int(np.ceil(recording.lines * (error / LARGEST_ERROR_GREY) ** 2))
        raise RecordingError(
            f"{recording.origin}: {recording.lines} lines leave a column's mean uncertain by {error:.2f} grey levels; expected "
            f"at most {LARGEST_ERROR_GREY}: at least {needed} lines"
        )


def _light_of(bright: Recording, dark: Floats, mean: Floats, good: Flags) -> Floats:
    """(n,) light of each line over that of all: the median over columns, so that what passes by does not count."""
    span = (mean - dark)[good]
    parts = np.array_split(bright.levels, max(1, bright.levels.size >> 22))
    light = np.concatenate([np.median((part[:, good] - dark[good]) / span, axis=1) for part in parts])
    return np.asarray(light / light.mean())


def _steadiness(light: Floats) -> tuple[float, float]:
    portions = [float(part.mean()) for part in np.array_split(light, _PORTIONS)]
    steps = np.diff(light)
    return max(portions) - min(portions), float(np.sqrt((steps**2).mean() / 2))
