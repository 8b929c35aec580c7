"""Reports of a calibration, as pages with plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from calibration.flat_field import LARGEST_DRIFT, LARGEST_ERROR_GREY, FlatFieldMeasurement
from calibration.noise import NoiseFigures
from calibration.recordings import Floats
from calibration.scale import EncoderScale, ScaleFit
from edge.pages.page import Fact, Section, Value, render_page
from edge.pages.plots import Curves, Plot, Series
from edge.radiometry import Provenance

PLACES = 128
"""Points of a plot: of more columns each point is the mean of some."""


@dataclass(frozen=True, slots=True)
class Report:
    """A page before it is written."""

    title: str
    about: str
    facts: tuple[Fact, ...]
    plots: tuple[Plot, ...]
    sections: tuple[Section, ...]


def page_of(report: Report) -> str:
    """The page as HTML."""
    return render_page(report.title, report.about, report.facts, report.plots, report.sections)


def flat_field_report(measured: FlatFieldMeasurement, figures: dict[str, Any], provenance: Provenance) -> Report:
    """Dark signal, response and gain across; the light along."""
    good = measured.good
    columns = np.flatnonzero(good).astype(np.float64)
    facts = (
        Fact("columns", str(len(good)), f"{len(measured.bad)} interpolated"),
        Fact("dark signal", f"{figures['dark_mean_grey']:.2f}", f"± {figures['dark_spread_grey']:.2f} grey levels"),
        Fact("gain", f"{figures['gain_lowest']:.3f} – {figures['gain_highest']:.3f}", f"to grey level {measured.level:.1f}"),
        Fact("known to", f"{measured.noise_grey:.2f} grey levels", f"at most {LARGEST_ERROR_GREY}", "good"),
        Fact("light drifts", f"{measured.drift:.2%}", f"at most {LARGEST_DRIFT:.0%}", "good"),
    )
    plots: tuple[Plot, ...] = (
        _curve("Dark signal", "Of each column, the lens covered.", "column", "grey levels", columns, measured.dark[good]),
        _curve(
            "Response", "Of each column to the target, above dark.", "column", "grey levels", columns, measured.response[good]
        ),
        _curve("Gain", "That makes them even.", "column", "", columns, measured.gain[good]),
        _curve(
            "Light",
            "Of each line of the bright frames over their mean.",
            "line",
            "",
            np.arange(float(len(measured.light))),
            measured.light,
        ),
    )
    told: list[tuple[Value, ...]] = [
        (key, f"{value:.4g}" if isinstance(value, float) else str(value))
        for key, value in provenance.model_dump(mode="json", exclude={"images"}).items()
        if value is not None
    ]
    bad: list[tuple[Value, ...]] = [(one.column, one.reason) for one in measured.bad]
    sections = (
        Section("Interpolated columns", "" if bad else "None.", ("column", "reason"), tuple(bad)),
        Section("Provenance", "", ("what", "value"), tuple(told)),
    )
    about = "Radiometric calibration of a line camera: dark signal and gain of each column."
    return Report(f"Flat field of {provenance.camera}", about, facts, plots, sections)


def noise_report(found: NoiseFigures, figures: dict[str, Any]) -> Report:
    """Photon transfer, SNR."""
    means = np.array(found.means)
    expected = np.array([found.system_gain * mean for mean in found.means])
    ideal = np.sqrt(np.maximum(means, 0) / found.system_gain)
    shot = "Variance over mean, dark subtracted; the straight line is K. Beyond saturation noise falls."
    facts = [
        Fact("system gain K", f"{found.system_gain:.4g} DN/e-", f"± {found.system_gain_error / found.system_gain:.1%}"),
        Fact(
            "dark noise",
            f"{found.dark_noise_dn:.3g} DN",
            f"{'at most ' if found.dark_noise_is_limit else ''}{found.dark_noise_e:.3g} e-",
        ),
        Fact("DSNU1288", f"{found.dsnu_dn:.3g} DN", f"{found.dsnu_e:.3g} e-"),
    ]
    if found.prnu is not None and found.prnu_of_sensor is not None:
        facts.append(Fact("PRNU1288", f"{found.prnu:.2%}", f"{found.prnu_of_sensor:.2%} without lens and lamp"))
    if found.dynamic_range is not None:
        facts.append(
            Fact("dynamic range", f"{20 * np.log10(found.dynamic_range):.1f} dB", f"saturation {found.saturation_dn:.4g} DN")
        )
    if found.linearity_error is not None:
        facts.append(Fact("linearity error", f"{found.linearity_error:.2%}"))
    plots: tuple[Plot, ...] = ()
    if len(means) > 1:
        plots = (
            _curves("Photon transfer", shot, "signal, DN", "DN²", means, {"K": expected, "measured": np.array(found.variances)}),
            _curves(
                "SNR",
                "Of each level; photons alone would give the other curve.",
                "signal, DN",
                "",
                means,
                {"photons": ideal, "measured": np.array(found.snr)},
            ),
        )
    rows: tuple[tuple[Value, ...], ...] = tuple(zip(found.means, found.variances, found.snr, strict=True))
    left_out: tuple[tuple[Value, ...], ...] = tuple((one["column"], one["reason"]) for one in figures["left_out"])
    sections = (
        Section("Levels of light", "Above dark.", ("signal, DN", "variance, DN²", "SNR"), rows),
        Section("Columns left out", "" if left_out else "None.", ("column", "reason"), left_out),
    )
    about = (
        "By the definitions of EMVA 1288, Release 4.0 Linear; a line camera's pixels are its columns, its lines the repetitions."
    )
    return Report("Noise", about, tuple(facts), plots, sections)


def scale_report(columns: ScaleFit | None, lines: ScaleFit | None, encoder: EncoderScale | None) -> Report:
    """Scales and what the fits leave."""
    facts: list[Fact] = []
    plots: list[Plot] = []
    for fit, name, what, places in (
        (columns, "mm per column", "Edges across: what the cubic leaves.", "column"),
        (lines, "mm per line", "Edges along: what an even motion leaves.", "line"),
    ):
        if fit is None:
            continue
        facts.append(Fact(name, f"{fit.mm_per_pixel:.6g}", f"± {fit.mm_per_pixel_error:.1g}"))
        facts.append(Fact(f"{name}: residual", f"{fit.residual_px:.3f} px", f"{fit.edges} edges, {fit.rejected} left out"))
        plots.append(_curve(f"Residuals, {name}", what, places, "px", np.array(fit.places_px), np.array(fit.residuals_px)))
    if columns:
        facts.append(Fact("distortion", f"{columns.cubic:+.5f}", f"one number is wrong by up to {columns.worst_mm:.3f} mm"))
    if encoder:
        facts.append(Fact("mm per line, encoder", f"{encoder.mm_per_line:.6g}", f"jitter {encoder.jitter_mm:.2g} mm"))
    return Report("Scale", "Millimetres per pixel from a target of known pitch.", tuple(facts), tuple(plots), ())


def _curve(title: str, note: str, quantity: str, unit: str, places: Floats, values: Floats) -> Plot:
    return _curves(title, note, quantity, unit, places, {"": values})


def _curves(title: str, note: str, quantity: str, unit: str, places: Sequence[float] | Floats, series: dict[str, Floats]) -> Plot:
    """Rising places; of many each point is the mean of some."""
    order = np.argsort(places, kind="stable")
    parts = np.array_split(order, min(PLACES, len(order)))
    middles = tuple(float(np.asarray(places)[part].mean()) for part in parts)
    values = tuple(Series(name, tuple(float(of[part].mean()) for part in parts)) for name, of in series.items())
    return Curves(title, note, quantity, unit, middles, values)
