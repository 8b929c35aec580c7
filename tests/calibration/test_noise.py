"""Figures of EMVA 1288 are those that were planted in a simulated sensor, within what counting photons allows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sensors import recording, sensor, sigmas, temporal_sigma, variance_error

from calibration.noise import SMOOTH_DEGREE, light_level, linearity_error, measure_noise
from calibration.recordings import Recording, RecordingError

WIDTH, LINES, READ_NOISE_E, FULL_WELL_E = 512, 300, 45.0, 12000.0
SENSOR: dict[str, Any] = {
    "dark_grey": 9.0,
    "dsnu_grey": 0.9,
    "prnu_percent": 2.0,
    "full_well_e": FULL_WELL_E,
    "read_noise_e": READ_NOISE_E,
}
K = 255 / FULL_WELL_E
LIGHTS = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 1.0, 1.15, 1.3, 1.45, 1.6)
SAMPLES = WIDTH * LINES


def dark(**changes: Any) -> Recording:
    return recording(sensor(WIDTH, scene="dark", **SENSOR | changes), LINES, 0, "--dark")


def lit(lights: tuple[float, ...], **changes: Any) -> list[Recording]:
    """Each of other lines, so that no two have the same noise."""
    return [
        recording(sensor(WIDTH, scene="bright", light=light, **SENSOR | changes), LINES, 1000 * (index + 1))
        for index, light in enumerate(lights)
    ]


@pytest.fixture(scope="module")
def series() -> tuple[Recording, list[Recording]]:
    return dark(), lit(LIGHTS)


def test_system_gain_is_the_one_that_was_planted(series: tuple[Recording, list[Recording]]) -> None:
    found = measure_noise(*series)
    # the fit's weights, with each variance known to sqrt(3 / n) of itself, and that of the dark shared by all
    used = [light for light in LIGHTS if light * 180 <= 0.7 * 236]
    signal = np.array(used) * 180.0
    weights = signal / (signal**2).sum()
    sigma = [variance_error(float(temporal_sigma(sensor(WIDTH, **SENSOR), s, READ_NOISE_E)) ** 2, SAMPLES) for s in signal]
    shared = weights.sum() * variance_error(float(temporal_sigma(sensor(WIDTH, **SENSOR), 0, READ_NOISE_E)) ** 2, SAMPLES)
    error = float(np.hypot(np.sqrt(((weights * sigma) ** 2).sum()), shared))
    assert abs(found.system_gain - K) < sigmas(1) * error
    assert found.system_gain_error == pytest.approx(error, rel=0.1)


def test_dark_noise_is_read_noise_and_rounding(series: tuple[Recording, list[Recording]]) -> None:
    found = measure_noise(*series)
    variance = (K * READ_NOISE_E) ** 2 + 1 / 12
    assert abs(found.dark_noise_dn**2 - variance) < sigmas(1) * variance_error(variance, SAMPLES)
    # of sigma_d = sqrt(variance - 1/12) / K: half the relative error of the variance, and that of K
    relative = variance_error(variance, SAMPLES) / (variance - 1 / 12) / 2 + found.system_gain_error / K
    assert abs(found.dark_noise_e / READ_NOISE_E - 1) < sigmas(1) * relative
    assert not found.dark_noise_is_limit


def test_dark_noise_that_rounding_hides_is_a_limit() -> None:
    found = measure_noise(dark(read_noise_e=8), lit((0.5,), read_noise_e=8))
    assert found.dark_noise_is_limit
    assert found.dark_noise_e == pytest.approx(np.sqrt(0.24 - 1 / 12) / found.system_gain)
    assert found.dark_noise_e > 8


def spatial_error(spread: float, temporal_variance: float) -> float:
    """Of a variance of columns' means that temporal noise of so many lines blurs, less that noise."""
    left = temporal_variance / LINES
    return float(np.sqrt(4 * spread**2 * left / WIDTH + 2 * left**2 / WIDTH))


def test_dsnu_is_the_spread_of_the_planted_dark_signals(series: tuple[Recording, list[Recording]]) -> None:
    found = measure_noise(*series)
    planted = float(sensor(WIDTH, **SENSOR).dark.std(ddof=1))
    assert abs(found.dsnu_dn**2 - planted**2) < sigmas(1) * spatial_error(planted, found.dark_noise_dn**2)
    assert found.dsnu_e == pytest.approx(found.dsnu_dn / found.system_gain)


def test_prnu_is_the_spread_of_the_planted_gains(series: tuple[Recording, list[Recording]]) -> None:
    found = measure_noise(*series)
    assert found.prnu is not None
    planted = sensor(WIDTH, scene="bright", light=0.7, **SENSOR)
    assert found.prnu_at_dn == pytest.approx(9 + 126, abs=2)  # the level nearest to half of saturation
    grey = 126 * planted.response / 0.7
    # s_y^2 is the spread of dark signal and gain together: what of the two goes the same way is in the difference too
    expected = float((planted.dark + grey).var(ddof=1) - planted.dark.var(ddof=1))
    error = spatial_error(float((planted.dark + grey).std()), float(temporal_sigma(planted, grey.mean(), READ_NOISE_E)) ** 2)
    assert abs((found.prnu * grey.mean()) ** 2 - expected) < sigmas(1) * 1.1 * error + 1e-3 * expected


def test_prnu_without_lens_and_lamp_is_the_sensors_own() -> None:
    shaded = {"fall_off_deg": 25.0}
    found = measure_noise(dark(**shaded), lit((0.7,), **shaded))
    assert found.prnu is not None
    assert found.prnu_of_sensor is not None
    planted = sensor(WIDTH, light=0.7, **SENSOR, **shaded)
    grey = 180 * planted.response
    across = np.linspace(-1, 1, WIDTH)
    smooth = np.polynomial.chebyshev.chebval(across, np.polynomial.chebyshev.chebfit(across, grey, SMOOTH_DEGREE))
    spread = float(np.sqrt(((grey / smooth - 1) ** 2).sum() / (WIDTH - SMOOTH_DEGREE - 1)))
    noise = float(temporal_sigma(planted, grey.min(), READ_NOISE_E)) / grey.min()
    assert abs(found.prnu_of_sensor**2 - spread**2) < sigmas(1) * spatial_error(spread, noise**2)
    assert found.prnu > 3 * found.prnu_of_sensor


def test_saturation_is_where_noise_is_largest(series: tuple[Recording, list[Recording]]) -> None:
    found = measure_noise(*series)
    assert found.saturation_dn is not None
    assert found.saturation_e is not None
    # the last level that is not cut off is 180 * 1.3 + 9 = 243; the columns' spread cuts some of it
    assert 216 < found.saturation_dn < 244
    assert found.saturation_e == pytest.approx((found.saturation_dn - found.dark_mean_dn) / found.system_gain)
    assert found.dynamic_range == pytest.approx(found.saturation_e / (found.dark_noise_dn / found.system_gain + 0.5))


def test_levels_that_do_not_reach_saturation_leave_it_unknown() -> None:
    found = measure_noise(dark(), lit((0.3, 0.6)))
    assert (found.saturation_dn, found.saturation_e, found.dynamic_range) == (None, None, None)


def test_snr_is_that_of_photons_and_read_noise(series: tuple[Recording, list[Recording]]) -> None:
    found = measure_noise(*series)
    for light, snr in zip(LIGHTS[:8], found.snr, strict=False):
        expected = 180 * light / temporal_sigma(sensor(WIDTH, **SENSOR), 180 * light, READ_NOISE_E)
        # gains differ by 2 %, of which 512 columns leave 0.1 % in the mean
        assert abs(snr / expected - 1) < sigmas(1) * np.sqrt(3 / SAMPLES) / 2 + 4 * 0.02 / np.sqrt(WIDTH)


def test_a_linear_sensor_has_no_linearity_error_but_of_its_noise(series: tuple[Recording, list[Recording]]) -> None:
    found = measure_noise(*series, LIGHTS)
    assert found.linearity_error is not None
    # the weakest level is known worst
    sigma = temporal_sigma(sensor(WIDTH, **SENSOR), 18.0, READ_NOISE_E) / np.sqrt(SAMPLES) / 18
    assert found.linearity_error < sigmas(len(LIGHTS)) * sigma
    # in any order
    assert measure_noise(series[0], series[1][::-1], LIGHTS[::-1]) == found


def test_linearity_error_is_the_mean_deviation_from_the_line() -> None:
    exposures = [1.0, 2.0, 3.0, 4.0]
    # relative deviations of +d, -d, -d, +d of a line leave the weighted fit near that line
    signals = [10 * 1.01, 20 * 0.99, 30 * 0.99, 40 * 1.01]
    assert linearity_error(exposures, [10 * exposure for exposure in exposures], 50) < 1e-12
    assert linearity_error(exposures, signals, 50) == pytest.approx(0.01, rel=0.35)
    # levels outside 5 to 95 % do not count
    assert linearity_error([0.1, *exposures, 9.0], [0.5, 10.0, 20.0, 30.0, 40.0, 49.0], 50) < 1e-12


def test_bad_columns_are_left_out_of_every_figure() -> None:
    bad = {"dead_columns": (5,), "hot_columns": (9,)}
    columns = np.ones(WIDTH, np.bool_)
    columns[[5, 9]] = False
    whole = measure_noise(dark(), lit((0.3, 0.7)), columns=columns)
    assert measure_noise(dark(**bad), lit((0.3, 0.7), **bad), columns=columns) == whole


def test_slow_drift_of_the_lamp_is_no_noise() -> None:
    steady = light_level(lit((0.7,))[0])
    one = lit((0.7,))[0]
    ramp = np.linspace(0, 20, LINES).round().astype(np.uint8)[:, None]
    assert light_level(replace(one, levels=one.levels + ramp)).temporal_variance == pytest.approx(
        steady.temporal_variance, abs=21 / LINES
    )


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda: measure_noise(dark(dark_grey=1.0), lit((0.5,))), "of the dark samples are 0.*raise the black level"),
        (lambda: measure_noise(dark(), [dark()]), "no level of light lies above dark"),
        (lambda: measure_noise(dark(), lit((0.5,)), [1.0, 2.0]), "expected one above 0 for each of 1 levels"),
        (lambda: measure_noise(dark(), lit((0.3, 0.5)), [1.0, 2.0]), "1 levels of light lie between .*expected at least 3"),
        (lambda: light_level(replace(dark(), levels=dark().levels[:63])), "got 63 lines; expected at least 64"),
        (lambda: measure_noise(dark(), [replace(dark(), levels=np.full_like(dark().levels, 99))]), "noise does not rise"),
    ],
)
def test_frames_that_do_not_tell_are_refused(make: Any, fault: str) -> None:
    with pytest.raises(RecordingError, match=fault):
        make()
