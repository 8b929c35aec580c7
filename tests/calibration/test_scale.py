"""mm per pixel and the lens's cubic are those that were planted, within what noise leaves of edges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sensors import SCALE, sensor, sigmas, temporal_sigma

from calibration.recordings import RecordingError
from calibration.scale import SLABS, Edges, encoder_scale, find_edges, fit_scale

WIDTH, LINES, PRNU = 1024, 400, 0.01
BRIGHT = 180.0
CONTRAST = 0.9 * BRIGHT
SENSOR: dict[str, Any] = {"prnu_percent": 100 * PRNU, "dsnu_grey": 0.3, "read_noise_e": 15, "fall_off_deg": 15}


def edge_error(spread_px: float = 1.0) -> float:
    """How far noise moves an edge's centre of mass, in px.

    c = sum(x d) / C over the steps d of n = spread + 3 neighbours; summed by parts that is the noise of n - 1 pixels once, and of
    the outermost two n / 2 times each: sqrt(n - 1 + n^2 / 2) sigma / C. sigma: temporal noise over a slab's lines, and PRNU and
    DSNU, which no number of lines takes away.
    """
    seen = sensor(WIDTH, **SENSOR)
    temporal = float(temporal_sigma(seen, BRIGHT, 15)) / np.sqrt(LINES / SLABS)
    sigma = np.sqrt(temporal**2 + (PRNU * BRIGHT) ** 2 + 0.3**2)
    n = spread_px + 3
    # lens fall-off takes up to 13 % of the contrast
    return float(np.sqrt(n - 1 + n**2 / 2) * sigma / (0.87 * CONTRAST))


def term_errors(edges: Edges, degree: int, error_px: float, mm_per_pixel: float) -> np.ndarray:
    """Standard errors of a0, a1, the bars' width, a2 and a3 of a least-squares fit through edges known to error_px."""
    half = edges.extent / 2
    u = (edges.position - half) / half
    design = np.stack([np.ones_like(u), u, edges.polarity, u**2, u**3][: 5 if degree == 3 else 3], axis=1)
    return error_px * mm_per_pixel * np.sqrt(np.diag(np.linalg.inv(design.T @ design)))


def target(**options: Any) -> np.ndarray:
    return sensor(WIDTH, scene="target", pitch_mm=3.0, **SENSOR | options).lines(0, LINES)


def ladder(**options: Any) -> np.ndarray:
    return sensor(WIDTH, scene="ladder", pitch_mm=6.0, **SENSOR | options).lines(0, 1200)


@pytest.mark.parametrize("distortion", [0.0, 0.03, -0.05])
def test_mm_per_column_and_the_cubic_are_those_that_were_planted(distortion: float) -> None:
    edges = find_edges(target(distortion=distortion), "--across")
    fit = fit_scale(edges, 3.0, "--across", 3, None)
    errors = term_errors(edges, 3, edge_error(), SCALE.mm_per_column)
    middle = SCALE.mm_per_column * WIDTH / 2
    assert abs(fit.middle_mm_per_pixel - SCALE.mm_per_column) < sigmas(3) * errors[1] / (WIDTH / 2)
    assert abs(fit.cubic - distortion) < sigmas(3) * (errors[4] + abs(distortion) * errors[1]) / middle
    assert abs(fit.askew) < sigmas(3) * errors[3] / middle
    assert fit.residual_px < 3 * edge_error()
    assert fit.rejected == 0
    # a straight line through u + k u^3 has slope 1 + 3/5 k, and leaves at most 2/5 k at the ends
    straight_errors = term_errors(edges, 1, edge_error(), SCALE.mm_per_column)
    assert abs(fit.mm_per_pixel / (SCALE.mm_per_column * (1 + 0.6 * distortion)) - 1) < (
        sigmas(3) * straight_errors[1] / middle + abs(distortion) / len(edges.position)
    )
    assert fit.worst_mm == pytest.approx(0.4 * abs(distortion) * middle, rel=0.1, abs=sigmas(3) * errors.max())


def test_mm_per_line_is_the_one_that_was_planted() -> None:
    edges = find_edges(ladder().T, "--along")
    fit = fit_scale(edges, 6.0, "--along", 1, None)
    # a slab is here columns: 128 of them average PRNU too
    error = term_errors(edges, 1, edge_error(), SCALE.mm_per_line)[1] / 600
    assert abs(fit.mm_per_pixel - SCALE.mm_per_line) < sigmas(1) * error


@pytest.mark.parametrize("tilt_deg", [-6.0, 1.0, 6.0])
def test_a_target_that_is_askew_is_told_and_does_not_stretch_the_scale(tilt_deg: float) -> None:
    across = find_edges(target(tilt_deg=tilt_deg), "--across")
    fit = fit_scale(across, 3.0, "--across", 3, SCALE.mm_per_line)
    # in a slab of 50 lines the edge moves by 50 * 0.3 / 0.2 * sin(6 degrees) = 7.8 px
    errors = term_errors(across, 3, edge_error(8.0), SCALE.mm_per_column)
    assert abs(fit.middle_mm_per_pixel - SCALE.mm_per_column) < sigmas(3) * errors[1] / (WIDTH / 2)
    assert fit.tilt_deg == pytest.approx(-tilt_deg, abs=0.02)
    along = fit_scale(find_edges(ladder(tilt_deg=tilt_deg).T, "--along"), 6.0, "--along", 1, SCALE.mm_per_column)
    assert along.mm_per_pixel == pytest.approx(SCALE.mm_per_line, rel=1e-4)
    # uncorrected it would be wrong by 1 / cos(6 degrees) - 1 = 0.55 %
    if abs(tilt_deg) > 1:
        with pytest.raises(RecordingError, match=r"so the target is askew; .*--mm-per-line"):
            fit_scale(across, 3.0, "--across", 3, None)


def test_dead_and_hot_columns_are_no_edges() -> None:
    bad = {"dead_columns": (100, 600), "hot_columns": (333, 334, 800)}
    clean, fit = (fit_scale(find_edges(target(**options), "--across"), 3.0, "--across", 3, None) for options in ({}, bad))
    assert abs(fit.edges - clean.edges) <= 2
    assert fit.middle_mm_per_pixel == pytest.approx(clean.middle_mm_per_pixel, rel=2e-4)


def test_bars_that_are_printed_wider_than_their_gaps_have_the_same_pitch() -> None:
    column = np.arange(WIDTH * 8) / 8  # eighths of a pixel, averaged
    bars = np.where((column % 30) < 18.5, 190.0, 20.0).reshape(WIDTH, 8).mean(axis=1)
    lines = np.repeat(bars[None].round().astype(np.uint8), 16, axis=0)
    fit = fit_scale(find_edges(lines, "--across"), 3.0, "--across", 3, None)
    # levels are whole: an edge is known to half a level of 170
    assert fit.middle_mm_per_pixel == pytest.approx(0.2, rel=1e-4)
    assert fit.residual_px < 0.5 / 170 * 3


def test_a_smudge_on_the_target_is_left_out() -> None:
    lines = target()
    edges = find_edges(lines, "--across")
    at = int(edges.position[20])
    lines[:, at - 3 : at + 4] = np.clip(lines[:, at - 3 : at + 4].astype(int) // 2 + 60, 0, 255)
    fit = fit_scale(find_edges(lines, "--across"), 3.0, "--across", 3, None)
    errors = term_errors(edges, 3, edge_error(), SCALE.mm_per_column)
    assert abs(fit.middle_mm_per_pixel - SCALE.mm_per_column) < sigmas(3) * errors[1] / (WIDTH / 2)


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        (np.full((50, 400), 128, np.uint8), "bars differ by 0 levels; expected at least 16"),
        (np.full((7, 400), 128, np.uint8), "got 7 lines; expected at least 8"),
        (np.repeat(np.repeat([[20, 200]], 200, axis=1), 20, axis=0).astype(np.uint8), "found 0 edges that all lines have"),
        (np.tile(np.repeat([20, 200], 4), (20, 50)).astype(np.uint8), r"bars are 4.0 px wide; expected at least 5"),
        (
            np.tile(np.random.default_rng(0).choice([20, 200], 80).repeat(6), (20, 1)).astype(np.uint8),
            "edges are not where|alternate",
        ),
    ],
)
def test_what_is_no_target_is_refused(lines: np.ndarray, fault: str) -> None:
    with pytest.raises(RecordingError, match=fault):
        fit_scale(find_edges(lines, "--across"), 3.0, "--across", 3, None)


def test_a_target_that_is_far_askew_is_refused() -> None:
    with pytest.raises(RecordingError, match=r"the target is askew by -?1[0-9.]+ deg; expected at most 10"):
        fit_scale(find_edges(target(tilt_deg=14.0)[:100], "--across"), 3.0, "--across", 3, SCALE.mm_per_line)


def test_an_encoder_tells_mm_per_line() -> None:
    # 12.5 counts a line, of 0.02 mm
    counts = np.floor(np.arange(1000) * 12.5).astype(np.int64) + 77
    found = encoder_scale(counts, 0.02, "--encoder")
    assert found.mm_per_line == pytest.approx(0.25, abs=0.02 / 999)  # the first and the last count are known to one count
    assert found.jitter_mm == pytest.approx(0.01, rel=0.01)  # 12 and 13 in turn


@pytest.mark.parametrize(
    ("counts", "fault"),
    [
        ([0, 5, 10, 9, 15], "the count falls at line 3"),
        ([7, 7, 7, 7], "stood still"),
        ([1, 2], "got 2 counts"),
    ],
)
def test_an_encoder_that_does_not_tell_is_refused(counts: list[int], fault: str) -> None:
    with pytest.raises(RecordingError, match=fault):
        encoder_scale(np.array(counts, np.int64), 0.02, "--encoder")
