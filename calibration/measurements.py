"""What each verb of `rust-edge calibrate` measures, as a file, figures, words and a report."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from calibration.flat_field import find_bad_columns, flat_field_of, measure_flat_field
from calibration.noise import measure_noise
from calibration.page import Report, flat_field_report, noise_report, scale_report
from calibration.recordings import Recording
from calibration.scale import EncoderScale, ScaleFit, encoder_scale, find_edges, fit_scale
from calibration.scenes import Scenes, read
from edge import __version__
from edge.config import GenicamCamera, StationConfig, load_config
from edge.errors import ConfigError
from edge.radiometry import Interval, Provenance, Validity, flat_field_bytes


@dataclass(frozen=True, slots=True)
class Measured:
    """content: of the file. figures: for machines. words: for people, a line each."""

    content: bytes
    figures: dict[str, Any]
    words: tuple[str, ...]
    report: Report


def flat_field(args: argparse.Namespace) -> Measured:
    """Of dark and bright frames. Raises ConfigError, SourceError."""
    station, scenes = _station(args, "dark", "bright")
    if args.level is not None and not 0 < args.level <= 255:
        raise ConfigError(f"--level: got {args.level:g}; expected a grey level above 0, up to 255")
    dark = scenes.take("dark") if scenes else read(args.dark, "--dark")
    bright = scenes.take("bright") if scenes else read(args.bright, "--bright")
    measured = measure_flat_field(dark, bright, args.level)
    provenance = Provenance(
        camera=args.camera_name or (station.camera if station else "camera"),
        made_at=datetime.now(timezone.utc),
        version=__version__,
        dark_lines=dark.lines,
        bright_lines=bright.lines,
        level=measured.level,
        noise_grey=measured.noise_grey,
        line_rate_hz=args.line_rate_hz or (station.source.line_rate_hz if station else None),
        analogue_gain=args.analogue_gain,
        images=(*dark.files, *bright.files),
    )
    validity = Validity(
        exposure_us=_interval(args.exposure_us, "--exposure-us") or _exposure_of(station),
        temperature_c=_interval(args.temperature_c, "--temperature-c"),
    )
    field = flat_field_of(measured, provenance, validity)
    good = measured.good
    figures = {
        "width_px": field.width,
        "sha256": field.sha256,
        "level": measured.level,
        "dark_mean_grey": float(measured.dark[good].mean()),
        "dark_spread_grey": float(measured.dark[good].std()),
        "gain_lowest": float(measured.gain[good].min()),
        "gain_highest": float(measured.gain[good].max()),
        "noise_grey": measured.noise_grey,
        "light_drift": measured.drift,
        "light_flicker": measured.flicker,
        "disturbed_columns": measured.disturbed,
        "bad_columns": [{"column": one.column, "reason": one.reason} for one in measured.bad],
    }
    listed = ", ".join(f"{one.column} ({one.reason})" for one in measured.bad[:8])
    more = f" and {len(measured.bad) - 8} more" if len(measured.bad) > 8 else ""
    words = (
        f"{field.width} columns from {dark.lines} dark and {bright.lines} bright lines",
        f"dark signal {figures['dark_mean_grey']:.2f} grey levels, {figures['dark_spread_grey']:.2f} from column to column",
        f"gain {figures['gain_lowest']:.3f} to {figures['gain_highest']:.3f}, target level {measured.level:.1f}, "
        f"known to {measured.noise_grey:.2f} grey levels",
        f"interpolated columns: {listed}{more}" if measured.bad else "interpolated columns: none",
        f"light: drift {measured.drift:.2%}, flicker {measured.flicker:.2%}",
    )
    return Measured(flat_field_bytes(field), figures, words, flat_field_report(measured, figures, provenance))


def noise(args: argparse.Namespace) -> Measured:
    """Of dark frames and frames at several levels of light. Raises ConfigError, SourceError."""
    _, scenes = _station(args, "dark", "bright", "exposures")
    exposures = args.exposures
    if scenes:
        dark = scenes.take("dark")
        bright, exposures = scenes.take_levels(args.levels)
    else:
        dark = read(args.dark, "--dark")
        if not args.bright:
            raise ConfigError("--bright: got none; expected an image or a folder for each level of light, or -c STATION.yaml")
        bright = [read([path], f"--bright {path}") for path in args.bright]
    bad = find_bad_columns(dark, bright)
    columns = np.ones(dark.width, np.bool_)
    columns[[one.column for one in bad]] = False
    found = measure_noise(dark, bright, exposures, columns)
    figures = asdict(found) | {
        "columns": int(columns.sum()),
        "left_out": [{"column": one.column, "reason": one.reason} for one in bad],
        "bits": 16 if dark.levels_per_grey > 1 else 8,
    }
    at_most = "at most " if found.dark_noise_is_limit else ""
    words = [
        f"system gain K {found.system_gain:.5g} DN/e-, known to {found.system_gain_error / found.system_gain:.1%}",
        f"dark noise {found.dark_noise_dn:.3g} DN, {at_most}{found.dark_noise_e:.3g} e-",
        f"DSNU1288 {found.dsnu_dn:.3g} DN, {found.dsnu_e:.3g} e-",
        "PRNU1288 unknown: no level of light near half of saturation"
        if found.prnu is None or found.prnu_of_sensor is None
        else f"PRNU1288 {found.prnu:.2%}, without lens and lamp {found.prnu_of_sensor:.2%}",
        "saturation not reached"
        if found.saturation_dn is None or found.saturation_e is None or found.dynamic_range is None
        else f"saturation {found.saturation_dn:.4g} DN, {found.saturation_e:.4g} e-; dynamic range {found.dynamic_range:.3g}, "
        f"{20 * np.log10(found.dynamic_range):.1f} dB",
        f"largest SNR {max(found.snr):.3g}, {20 * np.log10(max(found.snr)):.1f} dB",
        "linearity error unknown: no exposures"
        if found.linearity_error is None
        else f"linearity error {found.linearity_error:.2%}",
    ]
    if bad:
        words.append(f"left out: {len(bad)} columns that are dead, hot or unsteady")
    return Measured(_document("rust-edge-noise", figures), figures, tuple(words), noise_report(found, figures))


def scale(args: argparse.Namespace) -> Measured:
    """Of bars across, bars along, encoder counts. Raises ConfigError, SourceError."""
    station, scenes = _station(args, "across", "along")
    encoder = _encoder(args)
    across, along, pitch_mm, pitch_along_mm = _targets(args, station, scenes)
    mm_per_line = encoder.mm_per_line if encoder else args.mm_per_line
    columns, lines = _fits(across, along, pitch_mm, pitch_along_mm, args.mm_per_column, mm_per_line)
    figures: dict[str, Any] = {
        "mm_per_column": columns.mm_per_pixel if columns else None,
        "mm_per_line": lines.mm_per_pixel if lines else mm_per_line,
        "across": asdict(columns) if columns else None,
        "along": asdict(lines) if lines else None,
        "encoder": asdict(encoder) if encoder else None,
    }
    words = []
    if columns:
        words += [
            f"mm_per_column: {columns.mm_per_pixel:.6g} (known to {columns.mm_per_pixel_error:.2g}), {columns.edges} edges, "
            f"residual {columns.residual_px:.3f} px, {columns.rejected} left out",
            f"distortion: cubic {columns.cubic:+.5f} (known to {columns.cubic_error:.1g}), askew {columns.askew:+.5f}; "
            f"with one number a place is wrong by up to {columns.worst_mm:.3f} mm",
        ]
    if lines:
        words.append(
            f"mm_per_line: {lines.mm_per_pixel:.6g} (known to {lines.mm_per_pixel_error:.2g}), {lines.edges} edges, residual "
            f"{lines.residual_px:.3f} lines, {lines.rejected} left out"
        )
    if encoder:
        words.append(f"mm_per_line of the encoder: {encoder.mm_per_line:.6g}, jitter {encoder.jitter_mm:.2g} mm")
    words += [f"target askew by {fit.tilt_deg:+.2f} degrees" for fit in (columns, lines) if fit and abs(fit.tilt_deg) > 0.05]
    return Measured(_document("rust-edge-scale", figures), figures, tuple(words), scale_report(columns, lines, encoder))


def _fits(
    across: Recording | None,
    along: Recording | None,
    pitch_mm: float,
    pitch_along_mm: float,
    mm_per_column: float | None,
    mm_per_line: float | None,
) -> tuple[ScaleFit | None, ScaleFit | None]:
    """Each direction needs the other one's scale for its tilt: where both were recorded, from straight bars on."""
    edges_across = find_edges(across.levels, across.origin) if across else None
    edges_along = find_edges(along.levels.T, along.origin) if along else None
    columns = lines = None
    if edges_across and edges_along:
        mm_per_column = mm_per_column or pitch_mm / float(np.diff(edges_across.position).mean())
        mm_per_line = mm_per_line or pitch_along_mm / float(np.diff(edges_along.position).mean())
    for _ in range(4):  # each round leaves a hundredth of what was wrong, at ten degrees
        if across and edges_across:
            columns = fit_scale(edges_across, pitch_mm, across.origin, 3, mm_per_line)
        if along and edges_along:
            lines = fit_scale(edges_along, pitch_along_mm, along.origin, 1, columns.mm_per_pixel if columns else mm_per_column)
            mm_per_line = lines.mm_per_pixel
    return columns, lines


def _targets(
    args: argparse.Namespace, station: StationConfig | None, scenes: Scenes | None
) -> tuple[Recording | None, Recording | None, float, float]:
    from edge.config import SimulatedSource

    pitch_mm = args.pitch_mm
    if pitch_mm is None and station and isinstance(station.source, SimulatedSource) and station.source.sensor:
        pitch_mm = station.source.sensor.pitch_mm
    wants_bars = bool(scenes or args.across or args.along)
    if wants_bars and (pitch_mm is None or pitch_mm <= 0 or (args.pitch_along_mm or 1.0) <= 0):
        raise ConfigError("--pitch-mm: expected the millimetres from one edge of a bar to the next, above 0")
    if not wants_bars and not args.encoder:
        raise ConfigError("got no frames; expected --across, --along, --encoder, or -c STATION.yaml")
    for name in ("mm_per_line", "mm_per_column"):
        if getattr(args, name) is not None and getattr(args, name) <= 0:
            raise ConfigError(f"--{name.replace('_', '-')}: got {getattr(args, name):g}; expected more than 0")
    if scenes:
        return scenes.take("target"), scenes.take("ladder"), pitch_mm, args.pitch_along_mm or pitch_mm
    across = read(args.across, "--across") if args.across else None
    along = read(args.along, "--along") if args.along else None
    return across, along, pitch_mm or 1.0, args.pitch_along_mm or pitch_mm or 1.0


def _encoder(args: argparse.Namespace) -> EncoderScale | None:
    if not args.encoder:
        return None
    if args.mm_per_count is None or args.mm_per_count <= 0:
        raise ConfigError("--mm-per-count: expected millimetres of one count of the encoder, above 0")
    try:
        counts = [int(row) for row in args.encoder.read_text(encoding="utf-8").split()]
    except (OSError, ValueError) as error:
        raise ConfigError(f"--encoder: {args.encoder}: cannot be read ({error}); expected a whole number a row") from error
    return encoder_scale(np.array(counts, np.int64), args.mm_per_count, f"--encoder {args.encoder}")


def _station(args: argparse.Namespace, *recorded: str) -> tuple[StationConfig | None, Scenes | None]:
    """The station to take frames from, if one is named. recorded: arguments that stand for frames already taken."""
    if args.config is None:
        if args.camera or args.overrides:
            raise ConfigError("--camera, --set: got some, and no station file; expected -c STATION.yaml")
        return None, None
    if given := [f"--{name}" for name in recorded if getattr(args, name)]:
        raise ConfigError(f"{' '.join(given)}: got both recorded frames and -c; expected one of the two")
    path: Path = args.config
    station = load_config(path, args.overrides, camera=args.camera)
    return station, Scenes(station, args.lines)


def _interval(ends: list[float] | None, argument: str) -> Interval | None:
    if ends is None:
        return None
    low, high = ends
    if low > high:
        raise ConfigError(f"{argument}: got {low:g} {high:g}; expected the lower one first")
    return Interval(low=low, high=high)


def _exposure_of(station: StationConfig | None) -> Interval | None:
    """The one that the station sets, where it sets one."""
    if station is None or not isinstance(station.source, GenicamCamera) or station.source.exposure_us is None:
        return None
    return Interval(low=station.source.exposure_us, high=station.source.exposure_us)


def _document(kind: str, figures: dict[str, Any]) -> bytes:
    return (json.dumps({"format": kind, "format_version": 1, "version": __version__, **figures}, indent=1) + "\n").encode()
