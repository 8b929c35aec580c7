"""What is planted in a simulated sensor is what its flat field says, as well as counting photons allows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sensors import recording, sensor, sigmas, temporal_sigma

from calibration.flat_field import BadColumn, FlatFieldMeasurement, flat_field_of, measure_flat_field
from calibration.recordings import Recording, RecordingError
from edge.config import parse_config
from edge.engines import Engines
from edge.events import DefectClosed
from edge.pipeline import frames_from
from edge.radiometry import Provenance, Validity, correct, write_flat_field
from edge.reporting import instant
from edge.sources import open_source

WIDTH, LINES, READ_NOISE_E = 512, 600, 40.0
FAULTS: dict[str, Any] = {
    "dark_grey": 8.0,
    "dsnu_grey": 1.0,
    "prnu_percent": 3.0,
    "full_well_e": 12000.0,
    "read_noise_e": READ_NOISE_E,
    "fall_off_deg": 22.0,
    "dead_columns": (100, 511),
    "hot_columns": (0, 333, 334),
}
BAD = (
    BadColumn(0, "hot"),
    BadColumn(100, "dead"),
    BadColumn(333, "hot"),
    BadColumn(334, "hot"),
    BadColumn(511, "dead"),
)
PROVENANCE = Provenance(
    camera="simulated", made_at=instant(0), version="0", dark_lines=LINES, bright_lines=LINES, level=150.0, noise_grey=0.1
)


def frames(**changes: Any) -> tuple[Recording, Recording]:
    """Dark and bright ones; of other lines, so that their noise is not the same."""
    options = FAULTS | changes
    return (
        recording(sensor(WIDTH, scene="dark", **options), LINES, 0, "--dark"),
        recording(sensor(WIDTH, scene="bright", **options), LINES, 50_000, "--bright"),
    )


@pytest.fixture(scope="module")
def planted() -> tuple[Recording, Recording]:
    return frames()


def assert_recovered(measured: FlatFieldMeasurement, lines: int) -> None:
    """Each mean within the error that so many lines leave, each by itself."""
    truth, good = sensor(WIDTH, scene="bright", **FAULTS), measured.good
    above = truth.response * 180.0
    dark_error = temporal_sigma(truth, 0.0, READ_NOISE_E) / np.sqrt(lines)
    error = np.hypot(temporal_sigma(truth, above, READ_NOISE_E) / np.sqrt(lines), dark_error)
    off = sigmas(WIDTH)
    assert (np.abs(measured.dark - truth.dark)[good] < off * dark_error).all()
    assert (np.abs(measured.response - above)[good] < off * error[good]).all()
    gain = measured.level / above[good]
    assert (np.abs(measured.gain[good] / gain - 1) < 1.1 * off * error[good] / above[good]).all()


def test_dark_signal_and_gain_are_those_that_were_planted(planted: tuple[Recording, Recording]) -> None:
    measured = measure_flat_field(*planted)
    assert_recovered(measured, LINES)
    assert measured.bad == BAD
    assert measured.drift < 0.002
    assert measured.flicker < 0.005


def test_16_bit_frames_tell_the_same(planted: tuple[Recording, Recording]) -> None:
    measured = measure_flat_field(*planted)
    wide = [replace(one, levels=one.levels.astype(np.uint16) * 257) for one in planted]
    same = measure_flat_field(*wide)
    assert np.allclose(same.gain, measured.gain, rtol=1e-12)
    assert np.allclose(same.dark, measured.dark, rtol=1e-12)
    assert same.bad == measured.bad


@pytest.mark.parametrize("level", [None, 128.0])
def test_corrected_the_target_is_even(planted: tuple[Recording, Recording], level: float | None) -> None:
    measured = measure_flat_field(*planted, level)
    flat = flat_field_of(measured, PROVENANCE, Validity())
    # frames that the flat field was not made from
    means = correct(flat, sensor(WIDTH, scene="bright", **FAULTS).lines(90_000, LINES)).mean(axis=0)
    truth = sensor(WIDTH, scene="bright", **FAULTS)
    noise = temporal_sigma(truth, truth.response * 180.0, READ_NOISE_E) * measured.gain
    # of both recordings, and of steps of 1/4096 gain and 1/256 level; rounding corrected levels moves a mean by 0.02 at most,
    # since noise of more than half a level dithers it
    bound = sigmas(WIDTH) * noise * np.sqrt(2.2 / LINES) + 255 / 8192 + 1 / 512 + 0.02
    assert (np.abs(means - measured.level) < bound)[measured.good].all()
    assert (np.abs(means - measured.level) < bound[measured.good].max()).all()  # interpolated ones too
    assert measured.level == pytest.approx(level or float(np.median(measured.response[measured.good])))


def test_dust_that_passes_and_a_defect_of_the_target_do_not_become_gain() -> None:
    dark, bright = frames()
    levels = bright.levels.copy()
    rng = np.random.default_rng(0)
    for _ in range(200):
        line, column = int(rng.integers(0, LINES - 8)), int(rng.integers(0, WIDTH - 3))
        levels[line : line + 8, column : column + 3] //= 3
    levels[200:224, 150:170] = 250  # a bright scale on the target, 4 % of the lines
    measured = measure_flat_field(dark, replace(bright, levels=levels))
    assert_recovered(measured, round(0.85 * LINES))
    assert measured.disturbed > 200
    assert measured.bad == BAD


def drifting(bright: Recording) -> Recording:
    ramp = np.linspace(0.97, 1.0, LINES)[:, None]
    return replace(bright, levels=(bright.levels * ramp).astype(np.uint8))


def flickering(bright: Recording) -> Recording:
    lamp = np.where(np.arange(LINES) % 2, 0.96, 1.0)[:, None]
    return replace(bright, levels=(bright.levels * lamp).astype(np.uint8))


@pytest.mark.parametrize(
    ("options", "change", "fault"),
    [
        ({}, lambda dark, bright: (bright, bright), "--bright: the dark frames have grey level .* cover the lens"),
        ({}, lambda dark, bright: (dark, dark), "--dark: the target is 0 grey levels above dark; .* more light"),
        ({"light": 0.1}, None, "the target is 1[0-9] grey levels above dark"),
        ({"light": 1.6}, None, "columns are saturated, the first is .* less light, or a shorter exposure"),
        (
            {},
            lambda dark, bright: (dark, drifting(bright)),
            "the light changes by 2.8% .*: let the lamp warm",
        ),
        ({}, lambda dark, bright: (dark, flickering(bright)), "from line to line; expected"),
        ({}, lambda dark, bright: (dark, replace(bright, levels=bright.levels[:63])), "got 63 lines; expected at least 64"),
        ({"full_well_e": 700}, lambda dark, bright: (dark, replace(bright, levels=bright.levels[:64])), "at least [0-9]+ lines"),
        ({}, lambda dark, bright: (dark, replace(bright, levels=bright.levels[:, 1:])), "got 511 columns, --dark has 512"),
        ({}, lambda dark, bright: (dark, replace(bright, levels=bright.levels.astype(np.uint16))), "got uint16 levels"),
        ({"dead_columns": tuple(range(40, 49))}, None, "columns 40 to 48 are dead.* look for something before the lens"),
        ({"dead_columns": tuple(range(40, 80, 4))}, None, "13 of 512 columns are dead.*; expected at most 8"),
        ({"fall_off_deg": 60.0}, None, "would need a gain of 1[0-9].*less fall-off"),
    ],
)
def test_frames_that_do_not_tell_are_refused_with_what_to_do(options: dict[str, Any], change: Any, fault: str) -> None:
    taken = frames(**options)
    with pytest.raises(RecordingError, match=fault):
        measure_flat_field(*(change(*taken) if change else taken), 200.0 if "fall_off_deg" in options else None)


def test_a_long_defect_of_the_target_is_refused() -> None:
    dark, bright = frames()
    levels = bright.levels.copy()
    levels[100:190, 200:204] = 20
    with pytest.raises(RecordingError, match="column 200 and 3 more are disturbed on over 10% of the lines"):
        measure_flat_field(dark, replace(bright, levels=levels))


def test_a_blinking_column_is_interpolated() -> None:
    dark, bright = frames()
    levels = bright.levels.copy()
    levels[:, 60] = np.where(np.random.default_rng(0).random(LINES) < 0.4, levels[:, 60] - 40, levels[:, 60])
    assert BadColumn(60, "unsteady") in measure_flat_field(dark, replace(bright, levels=levels)).bad


def test_with_its_flat_field_a_faulty_sensor_raises_no_false_alarm_on_clean_steel(tmp_path: Any) -> None:
    clean = {"rust_every_mm": None, "pit_every_mm": None, "inclusion_every_mm": None, "scratch_every_mm": None}
    faults = FAULTS | {"dsnu_grey": 2.0, "prnu_percent": 4.0}
    dark, bright = frames(dsnu_grey=2.0, prnu_percent=4.0)
    path = tmp_path / "flat-field.json"
    write_flat_field(path, flat_field_of(measure_flat_field(dark, bright), PROVENANCE, Validity()), "test")
    document = {
        "source": {"kind": "simulated", "width": WIDTH, "lines": 1200, "seed": 3, "defects": clean, "sensor": faults},
        "bundle": "steel-unet-int8",
        "session": {"threads": 1, "backend": "ort"},
        "filters": {"strip_edges": {"background_below": 40}},
    }

    def alarms(document: dict[str, Any]) -> int:
        config = parse_config(document, "test")
        with Engines(config, "test") as engines, open_source(config.source, config.scale) as source:
            found = frames_from(source.frames(), engines.pipeline(source.width, "clean"))
            return sum(isinstance(event, DefectClosed) for findings in found for event in findings.events)

    assert alarms(document) > 3
    assert alarms(document | {"flat_field": str(path)}) == 0
