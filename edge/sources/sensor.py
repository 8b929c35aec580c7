"""A line sensor and its lens, with the faults that real ones have, and the scenes that radiometric calibration wants.

The signal model is EMVA 1288's: photo-electrons, their number's noise, read noise, a system gain K, whole grey levels.

    s = scene * light * cos^4(angle) * (1 + PRNU)                 grey levels; electrons are s / K, K = 255 / full well
    line = round(dark + DSNU + s + N(0, K s + (K read noise)^2))  clipped to 0..255

The number of electrons is taken as normal, which it is to a percent of its deviation from some 100 of them on.
All arithmetic is by pixel, noise is drawn for 16 lines at a time: every line is a pure function of (seed, line).

Source: EMVA Standard 1288, Release 4.0 Linear, section 2 (linear signal model, noise model). cos^4: natural vignetting.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.config import SimulatedSensor
from edge.frame import Lines
from edge.sources.noise import GAUSSIAN_SIGMA, Floats, gaussian_like
from edge.sources.steel_strip import SteelStrip

_STREAM_DARK, _STREAM_GAIN, _STREAM_NOISE = 101, 102, 103
"""Beyond those of the steel, so that the same seed does not draw the same numbers twice."""
_NOISE_LINES = 16
_DARK_BAR = 0.1
"""Of a light bar's brightness: printed black is no hole."""

Float32 = npt.NDArray[np.float32]


class Sensor:
    """The lines of a camera that looks at a strip, or at another scene, through a lens and a sensor with faults.

    dark: (width,) float64, dark signal per column in grey levels. response: (width,) float64, grey levels of signal for one of
    the scene, fall-off and PRNU together; 0 where a column is dead. grey_per_e: system gain K.
    seen_columns: (width,) float64, where on the undistorted line each column looks, in columns.
    """

    def __init__(self, strip: SteelStrip, options: SimulatedSensor) -> None:
        self._strip, self._options = strip, options
        width, seed = strip.width, strip.seed
        self.grey_per_e = 255.0 / options.full_well_e
        self.dark: Floats = options.dark_grey + options.dsnu_grey * _spread(width, seed, _STREAM_DARK)
        half = width / 2
        across = (np.arange(width) + 0.5 - half) / half
        angle = np.arctan(across * math.tan(math.radians(options.fall_off_deg)))
        self.response: Floats = (
            options.light * np.cos(angle) ** 4 * (1.0 + options.prnu_percent / 100 * _spread(width, seed, _STREAM_GAIN))
        )
        self.response = np.maximum(self.response, 0.0)
        self.response[list(options.dead_columns)] = 0.0
        self.seen_columns: Floats = half + half * _distorted(across, options.distortion) - 0.5
        self._edges = half + half * _distorted((np.arange(width + 1) - half) / half, options.distortion)
        self._noise = lru_cache(maxsize=64)(self._make_noise)

    def lines(self, first_line: int, count: int) -> Lines:
        """(count, width) uint8, what the camera delivers from line `first_line` on."""
        options = self._options
        signal = self._scene(first_line, count) * self.response.astype(np.float32)
        variance = np.float32(self.grey_per_e) * signal + np.float32((self.grey_per_e * options.read_noise_e) ** 2)
        grey = signal + self.dark.astype(np.float32) + np.sqrt(variance) * self._noise_of(first_line, count)
        lines: Lines = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
        lines[:, list(options.hot_columns)] = 255
        return lines

    def _scene(self, first_line: int, count: int) -> Float32:
        """(count, width) float32 grey levels in front of the lens."""
        options, shape = self._options, (count, self._strip.width)
        if options.scene == "dark":
            return np.zeros(shape, np.float32)
        if options.scene == "bright":
            return np.full(shape, options.bright_grey, np.float32)
        if options.scene == "strip":
            return self._distorted_strip(first_line, count)
        light = self._target(first_line, count) if options.scene == "target" else self._ladder(first_line, count)
        return (options.bright_grey * (_DARK_BAR + (1 - _DARK_BAR) * light)).astype(np.float32)

    def _distorted_strip(self, first_line: int, count: int) -> Float32:
        lines = self._strip.lines(first_line, count).astype(np.float32)
        if not self._options.distortion:
            return lines
        place = np.clip(self.seen_columns, 0, self._strip.width - 1)
        left = np.minimum(place.astype(np.int64), self._strip.width - 2)
        share = (place - left).astype(np.float32)
        return np.asarray(lines[:, left] * (1 - share) + lines[:, left + 1] * share)

    def _target(self, first_line: int, count: int) -> Floats:
        """Share of each pixel that light bars along the motion cover."""
        options, scale = self._options, self._strip.scale
        tilt = math.radians(options.tilt_deg)
        along = (np.arange(first_line, first_line + count) + 0.5) * scale.mm_per_line * math.sin(tilt)
        return _covered(along[:, None] + self._edges * scale.mm_per_column * math.cos(tilt), options.pitch_mm)

    def _ladder(self, first_line: int, count: int) -> Floats:
        """The same of bars across it: a line gathers light while the target passes."""
        options, scale = self._options, self._strip.scale
        tilt = math.radians(options.tilt_deg)
        edges = np.arange(first_line, first_line + count + 1) * scale.mm_per_line * math.cos(tilt)
        across = (self.seen_columns + 0.5) * scale.mm_per_column * math.sin(tilt)
        return np.asarray(_covered(edges[None, :] + across[:, None], options.pitch_mm).T)

    def _noise_of(self, first_line: int, count: int) -> Float32:
        first, stop = first_line // _NOISE_LINES, -(-(first_line + count) // _NOISE_LINES)
        noise = np.concatenate([self._noise(block) for block in range(first, stop)])
        return noise[first_line - first * _NOISE_LINES :][:count]

    def _make_noise(self, block: int) -> Float32:
        width = self._strip.width
        noise = gaussian_like(_NOISE_LINES * width, self._strip.seed, _STREAM_NOISE, block).reshape(_NOISE_LINES, width)
        return np.asarray(noise.astype(np.float32) / np.float32(GAUSSIAN_SIGMA))


def _spread(width: int, seed: int, stream: int) -> Floats:
    """(width,) of mean 0 and standard deviation 1, as far as a draw has them."""
    return gaussian_like(width, seed, stream).astype(np.float64) / GAUSSIAN_SIGMA


def _distorted(across: npt.NDArray[np.floating[Any]], cubic: float) -> Floats:
    return np.asarray(across + cubic * across**3, np.float64)


def _covered(edges: Floats, pitch_mm: float) -> Floats:
    """(..., n) share of n pixels between n + 1 edges, in mm, that light bars cover: one of two, each pitch_mm wide."""
    period, within = np.divmod(edges, 2 * pitch_mm)
    covered = period * pitch_mm + np.minimum(within, pitch_mm)
    return np.asarray(np.diff(covered) / np.diff(edges))
