"""Noise of a line camera by the definitions of EMVA 1288, from frames in the dark and at rising light.

A line camera's pixels are its columns, and its lines are the repeated images of them. Everything is in digital numbers (DN) as
the camera delivered them, or in electrons (e-). Without a calibrated light quantum efficiency and responsivity stay unknown, and
nothing here needs them.

    sigma_y^2 = K^2 sigma_d^2 + sigma_q^2 + K (mu_y - mu_y.dark)        sigma_q^2 = 1/12 DN^2, rounding to whole DN

Source: EMVA Standard 1288, Release 4.0 Linear: section 2, sensitivity, linearity, noise (signal and noise model, SNR, saturation
and absolute sensitivity threshold); section 4, spatial nonuniformity (DSNU1288, PRNU1288); section 6, methods for sensitivity,
linearity and noise (photon transfer method, linearity error); section 8, methods for spatial nonuniformity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from calibration.recordings import Flags, Floats, Levels, Recording, RecordingError, require_width

FEWEST_LINES = 64
FIT_RANGE = 0.7
"""Photon transfer: levels up to this share of saturation. Source: section 6, photon transfer method."""
LINEARITY_RANGE = (0.05, 0.95)
"""Linearity: levels between these shares of saturation. Source: section 6, evaluation of linearity."""
QUANTIZATION_DN2 = 1 / 12
"""sigma_q^2 of rounding to whole numbers. Source: section 2, noise model."""
LEAST_DARK_DN2 = 0.24
"""Below it sigma_y.dark^2 is mostly rounding, and the dark noise is known as an upper limit alone. Source: section 6."""
UNDERFLOW_SHARE = 0.005
"""Of the dark samples that may be 0. Source: section 6, settings of the camera: offset."""
SMOOTH_DEGREE = 6
"""Of the polynomial across that lens and lamp are taken for; what is left of the response is the sensor's own."""


@dataclass(frozen=True, slots=True, eq=False)
class LightLevel:
    """One step of light. mean, temporal_variance: mu_y (DN) and sigma_y^2 (DN^2) over columns and lines.

    spatial_variance: s_y^2 (DN^2), of the columns' means, less what temporal noise leaves in them. column_means: (columns,) DN.
    saturated: share of samples at the highest number.
    """

    mean: float
    temporal_variance: float
    spatial_variance: float
    column_means: Floats
    lines: int
    saturated: float

    @property
    def temporal_variance_error(self) -> float:
        """Standard error of sigma_y^2: of successive differences of normal noise, sigma^2 sqrt(3 / n)."""
        return self.temporal_variance * math.sqrt(3 / ((self.lines - 1) * len(self.column_means)))


@dataclass(frozen=True, slots=True)
class NoiseFigures:
    """What a sensor's data sheet has. DN of the recordings: of 8 bits grey levels, of 16 bits 257 times as many.

    system_gain: K, DN per e-, with its standard error. dark_noise_dn: sigma_y.dark. dark_noise_e: sigma_d; dark_noise_is_limit:
    rounding hides it, it is at most that. dsnu_e, dsnu_dn: DSNU1288. prnu: PRNU1288, a share, of the level at prnu_at_dn; None
    without one near half of saturation. prnu_of_sensor: of what no smooth curve across explains, so without lens and lamp.
    saturation_dn, saturation_e: capacity; None where no level reached it. sensitivity_e: signal of SNR 1. dynamic_range:
    saturation over it. linearity_error: LE, a share; None without exposures. means, variances, snr: of each level in turn, the
    photon transfer curve with the dark subtracted.
    """

    system_gain: float
    system_gain_error: float
    dark_mean_dn: float
    dark_noise_dn: float
    dark_noise_e: float
    dark_noise_is_limit: bool
    dsnu_dn: float
    dsnu_e: float
    prnu: float | None
    prnu_of_sensor: float | None
    prnu_at_dn: float | None
    saturation_dn: float | None
    saturation_e: float | None
    sensitivity_e: float
    dynamic_range: float | None
    linearity_error: float | None
    means: tuple[float, ...]
    variances: tuple[float, ...]
    snr: tuple[float, ...]


def light_level(recording: Recording, columns: Flags | None = None) -> LightLevel:
    """The statistics of one recording. columns: (width,) that count; None: all. Raises RecordingError.

    sigma_y^2 comes from successive lines, as the standard's from two images, so that slow drift of the lamp is no noise:
    mean((y[l + 1] - y[l])^2) / 2.
    """
    if recording.lines < FEWEST_LINES:
        raise RecordingError(f"{recording.origin}: got {recording.lines} lines; expected at least {FEWEST_LINES}")
    levels = recording.levels if columns is None else recording.levels[:, columns]
    top = np.iinfo(levels.dtype).max
    means = levels.mean(axis=0, dtype=np.float64)
    squares = sum(_squared_steps(part) for part in _parts(levels))
    variance = squares / 2 / ((len(levels) - 1) * levels.shape[1])
    spatial = float(means.var(ddof=1)) - variance / len(levels)
    return LightLevel(float(means.mean()), variance, spatial, means, len(levels), float((levels == top).mean()))


def measure_noise(
    dark: Recording, bright: Sequence[Recording], exposures: Sequence[float] | None = None, columns: Flags | None = None
) -> NoiseFigures:
    """Figures from a recording in the dark and one for each level of light, in any order.

    exposures: of the bright ones, in any unit, for linearity. columns: (width,) that count; None: all. Raises RecordingError
    where they do not tell.
    """
    require_width([dark, *bright])
    if exposures is not None and (len(exposures) != len(bright) or min(exposures) <= 0):
        raise RecordingError(f"got exposures {list(exposures)}; expected one above 0 for each of {len(bright)} levels of light")
    black = light_level(dark, columns)
    _require_offset(dark)
    order = sorted(range(len(bright)), key=lambda index: float(bright[index].levels.mean(dtype=np.float64)))
    steps = [light_level(bright[index], columns) for index in order]
    saturation = _saturation(steps)
    ceiling = steps[-1].mean if saturation is None else saturation
    gain, error = _system_gain(black, steps, ceiling, bright[order[0]].origin)
    dark_noise = math.sqrt(black.temporal_variance)
    hidden = black.temporal_variance < LEAST_DARK_DN2
    # at the limit sigma_y.dark is 0.49 DN, of which 0.40 are not rounding
    dark_e = math.sqrt(max(black.temporal_variance, LEAST_DARK_DN2) - QUANTIZATION_DN2) / gain
    dsnu = math.sqrt(max(black.spatial_variance, 0.0))
    half = _half_of(steps, black.mean, ceiling)
    sensitivity = math.sqrt(max(black.temporal_variance, LEAST_DARK_DN2)) / gain + 0.5
    capacity = None if saturation is None else (saturation - black.mean) / gain
    rising = None if exposures is None else [exposures[index] for index in order]
    return NoiseFigures(
        gain,
        error,
        black.mean,
        dark_noise,
        dark_e,
        hidden,
        dsnu,
        dsnu / gain,
        None if half is None else _prnu(half.spatial_variance, black.spatial_variance, half.mean - black.mean),
        None if half is None else _prnu_of_sensor(half, black),
        None if half is None else half.mean,
        saturation,
        capacity,
        sensitivity,
        None if capacity is None else capacity / sensitivity,
        None if rising is None else linearity_error(rising, [step.mean - black.mean for step in steps], ceiling - black.mean),
        tuple(step.mean - black.mean for step in steps),
        tuple(step.temporal_variance - black.temporal_variance for step in steps),
        tuple((step.mean - black.mean) / math.sqrt(step.temporal_variance) if step.temporal_variance else 0.0 for step in steps),
    )


def linearity_error(exposures: Sequence[float], signals: Sequence[float], saturation: float) -> float:
    """LE, a share: the mean of what signals (DN above dark) deviate from the best line, as shares of the line.

    The line a0 + a1 H has the least squares of relative deviations, over 5 to 95 % of saturation. Raises RecordingError.
    Source: section 6, evaluation of linearity.
    """
    low, high = (share * saturation for share in LINEARITY_RANGE)
    inside = [(exposure, signal) for exposure, signal in zip(exposures, signals, strict=True) if low <= signal <= high]
    if len(inside) < 3 or len({exposure for exposure, _ in inside}) < 3:
        raise RecordingError(
            f"linearity: {len(inside)} levels of light lie between {LINEARITY_RANGE[0]:.0%} and {LINEARITY_RANGE[1]:.0%} of "
            f"{saturation:.0f} DN; expected at least 3 of different exposures, better 9"
        )
    exposure, signal = (np.array(values) for values in zip(*inside, strict=True))
    design = np.stack([np.ones_like(exposure), exposure], axis=1) / signal[:, None]
    line = np.linalg.lstsq(design, np.ones_like(signal), rcond=None)[0]
    fitted = line[0] + line[1] * exposure
    return float(np.abs((signal - fitted) / fitted).mean())


def _parts(levels: Levels) -> list[Levels]:
    """Column by column in groups, so that differences of a tall recording do not need eight times its memory."""
    return np.array_split(levels, max(1, levels.size >> 22), axis=1)


def _squared_steps(levels: Levels) -> int:
    numbers = levels.astype(np.int64)
    return int(((numbers[1:] - numbers[:-1]) ** 2).sum())


def _require_offset(dark: Recording) -> None:
    low = float((dark.levels == 0).mean())
    if low > UNDERFLOW_SHARE:
        raise RecordingError(
            f"{dark.origin}: {low:.1%} of the dark samples are 0; expected at most {UNDERFLOW_SHARE:.1%}: raise the black level, "
            "or noise is cut off"
        )


def _saturation(steps: Sequence[LightLevel]) -> float | None:
    """mu_y.sat: where temporal noise is largest, if it falls beyond. Source: section 6, saturation."""
    variances = [step.temporal_variance for step in steps]
    highest = int(np.argmax(variances))
    return None if highest == len(steps) - 1 else steps[highest].mean


def _system_gain(black: LightLevel, steps: Sequence[LightLevel], ceiling: float, origin: str) -> tuple[float, float]:
    """K and its standard error: the slope of variance over mean, both less dark, through the origin.

    The error is that of the variances alone, the one in the dark shared by all levels; means are known far better.
    """
    top = black.mean + FIT_RANGE * (ceiling - black.mean)
    used = [step for step in steps if step.mean <= top or len(steps) == 1]
    signal = np.array([step.mean - black.mean for step in used])
    if not used or signal.min() <= 0:
        raise RecordingError(
            f"{origin}: no level of light lies above dark and below {FIT_RANGE:.0%} of {ceiling:.0f} DN; expected some, better 9 "
            "evenly spaced"
        )
    variance = np.array([step.temporal_variance - black.temporal_variance for step in used])
    gain = float((signal * variance).sum() / (signal**2).sum())
    if gain <= 0:
        raise RecordingError(f"{origin}: noise does not rise with light; expected unprocessed frames: no averaging, no clipping")
    weights = signal / (signal**2).sum()
    own = (weights**2 * np.array([step.temporal_variance_error**2 for step in used])).sum()
    shared = (float(weights.sum()) * black.temporal_variance_error) ** 2
    return gain, math.sqrt(float(own) + shared)


def _half_of(steps: Sequence[LightLevel], dark: float, ceiling: float) -> LightLevel | None:
    """The level nearest to half of saturation, where it is within 30 to 70 % of it."""
    nearest = min(steps, key=lambda step: abs(step.mean - dark - (ceiling - dark) / 2))
    return nearest if 0.3 <= (nearest.mean - dark) / (ceiling - dark) <= 0.7 or len(steps) == 1 else None


def _prnu(bright: float, dark: float, signal: float) -> float:
    return math.sqrt(max(bright - dark, 0.0)) / signal


def _prnu_of_sensor(half: LightLevel, black: LightLevel) -> float:
    """PRNU1288 of the response over a smooth curve: relative, so that columns in the shade count as those in the light."""
    response = half.column_means - black.column_means
    across = np.linspace(-1, 1, len(response))
    smooth = np.polynomial.chebyshev.chebval(across, np.polynomial.chebyshev.chebfit(across, response, SMOOTH_DEGREE))
    # what temporal noise leaves in the means of both, relative as they are
    noise = half.temporal_variance / half.lines + black.temporal_variance / black.lines
    relative = response / smooth - 1
    variance = float((relative**2).sum()) / (len(response) - SMOOTH_DEGREE - 1) - noise * float((1 / smooth**2).mean())
    return math.sqrt(max(variance, 0.0))
