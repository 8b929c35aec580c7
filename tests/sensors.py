"""Simulated sensors of tests, and how far photon statistics let a measurement be off."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np

from calibration.recordings import Recording
from edge.config import Scale, SimulatedDefects, SimulatedSensor
from edge.sources.sensor import Sensor
from edge.sources.steel_strip import SteelStrip

SCALE = Scale(mm_per_line=0.3, mm_per_column=0.2)


def sensor(width: int = 512, seed: int = 3, **options: Any) -> Sensor:
    return Sensor(SteelStrip(width, seed, SimulatedDefects(), SCALE), SimulatedSensor(**options))


def recording(of: Sensor, lines: int, first_line: int = 0, origin: str = "--bright") -> Recording:
    return Recording(of.lines(first_line, lines), origin)


def sigmas(values: int) -> float:
    """So many standard deviations that none of so many normal values lies beyond them, but for one test in a million."""
    return NormalDist().inv_cdf(1 - 1e-6 / (2 * values))


def temporal_sigma(of: Sensor, grey_above_dark: Any, read_noise_e: float) -> Any:
    """Of one sample, in grey levels: photons, read noise, rounding to whole levels (1/12)."""
    return np.sqrt(of.grey_per_e * np.asarray(grey_above_dark) + (of.grey_per_e * read_noise_e) ** 2 + 1 / 12)


def variance_error(variance: float, samples: int) -> float:
    """Of a variance from successive differences of normal samples: (3 n - 4) / (n - 1)^2 of its square, below 3 / (n - 1)."""
    return variance * math.sqrt(3 / (samples - 1))
