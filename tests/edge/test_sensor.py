"""The simulated sensor: none unless it is asked for, and then what its section says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sensors import recording, sensor, sigmas, temporal_sigma

from calibration.noise import light_level
from edge import config
from edge.config import parse_config
from edge.errors import ConfigError
from edge.sources import open_source
from edge.sources.simulated import SimulatedSource

FAULTS = {"fall_off_deg": 25.0, "distortion": 0.04, "prnu_percent": 3.0, "dead_columns": (7,), "hot_columns": (9, 10)}


def test_without_the_section_the_strip_is_delivered_as_it_is() -> None:
    options = config.SimulatedSource(width=128, lines=100, seed=5)
    with open_source(options) as source:
        assert isinstance(source, SimulatedSource)
        assert np.array_equal(np.concatenate([frame.lines for frame in source.frames()]), source.strip.lines(0, 100))


@given(
    scene=st.sampled_from(["strip", "dark", "bright", "target", "ladder"]),
    first=st.integers(0, 5000),
    count=st.integers(1, 70),
    within=st.integers(0, 69),
)
@settings(max_examples=40, deadline=None)
def test_every_line_is_the_same_whatever_block_it_is_asked_in(scene: str, first: int, count: int, within: int) -> None:
    one, other = (sensor(96, scene=scene, tilt_deg=3.0, **FAULTS) for _ in range(2))
    line = min(within, count - 1)
    assert np.array_equal(one.lines(first, count)[line], other.lines(first + line, 1)[0])


def test_another_seed_is_another_sensor_and_other_noise() -> None:
    assert not np.array_equal(sensor(seed=1).dark, sensor(seed=2).dark)
    assert not np.array_equal(sensor(seed=1, scene="bright").lines(0, 1), sensor(seed=2, scene="bright").lines(0, 1))


@pytest.mark.parametrize("scene", ["dark", "bright"])
def test_noise_is_of_photons_reading_and_rounding(scene: str) -> None:
    # prnu and dsnu 0, so that all columns have the same variance
    seen = sensor(scene=scene, prnu_percent=0, dsnu_grey=0, dark_grey=8.3, full_well_e=9000, read_noise_e=40)
    step = light_level(recording(seen, 400))
    expected = float(temporal_sigma(seen, 180.0 if scene == "bright" else 0.0, 40)) ** 2
    samples = 400 * 512
    assert abs(step.temporal_variance - expected) < sigmas(1) * expected * np.sqrt(3 / samples)
    assert abs(step.mean - 8.3 - (180.0 if scene == "bright" else 0.0)) < sigmas(1) * np.sqrt(expected / samples)


def test_light_falls_off_as_the_fourth_power_of_the_cosine() -> None:
    seen = sensor(fall_off_deg=30, prnu_percent=0)
    across = (np.arange(512) + 0.5) / 256 - 1
    assert np.allclose(seen.response, np.cos(np.arctan(across * np.tan(np.radians(30)))) ** 4)
    assert seen.response[0] == pytest.approx(0.5625, abs=0.004)  # cos(30 degrees)^4, half a pixel inside


def test_dead_columns_see_nothing_and_hot_ones_are_white() -> None:
    lines = sensor(scene="bright", dead_columns=(4,), hot_columns=(8,), dark_grey=2).lines(0, 50)
    assert lines[:, 4].max() < 10
    assert (lines[:, 8] == 255).all()
    assert lines[:, 5].min() > 100


def test_a_distorted_strip_is_seen_where_the_cubic_says() -> None:
    plain, bent = (
        sensor(1024, distortion=k, dsnu_grey=0, prnu_percent=0, dark_grey=0, read_noise_e=0, full_well_e=1e12)
        for k in (0.0, -0.05)
    )
    there = np.rint(bent.seen_columns).astype(int)
    exact = np.abs(bent.seen_columns - there) < 0.02  # elsewhere two columns are mixed
    assert exact.sum() > 10
    assert np.abs(plain.lines(0, 40)[:, there[exact]].astype(int) - bent.lines(0, 40)[:, exact]).max() <= 1
    assert bent.seen_columns[0] == pytest.approx(0.05 * 512, abs=0.2)


def test_columns_that_the_camera_does_not_have_are_refused() -> None:
    document = {"source": {"kind": "simulated", "width": 128, "sensor": {"hot_columns": [5, 128]}}}
    with pytest.raises(ConfigError, match=r"sensor.hot_columns: got 128; expected columns from 0 to 127"):
        parse_config(document, "test")
