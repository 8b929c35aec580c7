"""How the simulated strip's defects look: relative contrast and truth mask of a patch, drawn from the defect's key.

Contrast is relative to the clean steel's grey level: -0.4 is 40 % darker. The mask is one 8-connected region.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from edge.config import Scale
from edge.sources.noise import GAUSSIAN_SIGMA, Floats, gaussian_like, uniform
from edge.sources.planting import STEEPEST, DefectKind, Scratch, Spot

Contrast = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

_LEAST_CONTRAST = 0.26
_SIGMAS = 5.0
"""Contrast of a defect over the standard deviation of clean steel, at least."""
_BRIGHTEST = 245.0
_SCRATCH_KNOT_MM = 12.0
"""Distance over which a scratch's contrast changes."""


@dataclass(frozen=True, slots=True)
class Patch:
    """A spot as drawn: line and column of its corner on the strip, contrast (h, w) float32, mask (h, w) bool."""

    line: int
    column: int
    contrast: Contrast
    mask: Mask


def needed_contrast(chance: random.Random, texture: float, spread: float = 0.2) -> float:
    """A contrast that stands clear of a texture of that relative standard deviation."""
    return max(_LEAST_CONTRAST, _SIGMAS * texture) + chance.random() * spread


def draw_spot(spot: Spot, scale: Scale, texture: float, grey: float) -> Patch:
    """Draw a spot on steel of that relative texture and grey level."""
    height = max(1, math.floor(spot.length_mm / scale.mm_per_line))
    width = max(1, math.floor(spot.width_mm / scale.mm_per_column))
    line = round(spot.along_mm / scale.mm_per_line - height / 2)
    column = round(spot.across_mm / scale.mm_per_column - width / 2)
    # centres of pixels, -1 to 1 over the spot's extent
    y = ((np.arange(height) + 0.5) / height * 2.0 - 1.0)[:, None]
    x = ((np.arange(width) + 0.5) / width * 2.0 - 1.0)[None]
    chance = random.Random(spot.key)
    draw = {DefectKind.RUST: _rust, DefectKind.PIT: _pit, DefectKind.INCLUSION: _inclusion}[spot.kind]
    cover, contrast = draw(spot, chance, y, x, texture, grey)
    mask = _connected(cover >= 0.5)
    if not mask.any():
        # smaller than a pixel: the one in its middle
        mask[height // 2, width // 2], contrast[height // 2, width // 2] = True, -0.6
    # what hangs on no part of the region is not drawn: one planted defect is one region
    near = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    return Patch(line, column, np.asarray(np.where(near, contrast, 0.0), np.float32), mask)


def _rust(spot: Spot, chance: random.Random, y: Floats, x: Floats, texture: float, grey: float) -> tuple[Floats, Floats]:
    """One to three overlapping star-shaped blobs with frayed, soft rims, mottled inside; dark, or light where grey allows."""
    size_px = max(y.size, x.size)
    inside = np.full((y.size, x.size), -np.inf)
    for lobe in range(chance.randint(1, 3)):
        radius = 0.72 if lobe == 0 else chance.uniform(0.3, 0.5)
        centre_y, centre_x = (0.0, 0.0) if lobe == 0 else (chance.uniform(-0.5, 0.5), chance.uniform(-0.5, 0.5))
        angle = np.arctan2(y - centre_y, x - centre_x)
        rim = np.full(angle.shape, radius)
        for wave in range(2, 8):
            rim += radius * 0.32 / wave * chance.uniform(-1.0, 1.0) * np.cos(wave * angle + chance.uniform(0.0, math.tau))
        inside = np.maximum(inside, rim - np.hypot(y - centre_y, x - centre_x))
    # rounded off before the patch ends, then frayed
    inside = np.minimum(inside, 0.86 - np.hypot(y, x))
    inside = inside + 0.06 * _smooth_noise(inside.shape, max(1.0, size_px / 24), spot.key, 1)
    # rims 1 to 3 px soft; nothing beyond the patch
    softness = chance.uniform(2.0, 6.0) / size_px
    cover = np.clip(0.5 + inside / (2 * softness), 0.0, 1.0) * (np.maximum(np.abs(y), np.abs(x)) < 1.0)
    wanted = needed_contrast(chance, texture)
    headroom = (_BRIGHTEST - grey) / grey
    light = chance.random() < 0.3 and headroom > wanted
    mottle = (
        1.0
        + 0.16 * _smooth_noise(cover.shape, 2.0, spot.key, 2)
        + 0.12 * _smooth_noise(cover.shape, max(2.0, size_px / 10), spot.key, 3)
    )
    return cover, cover * np.clip(mottle, 0.6, 1.5) * (min(wanted, headroom) if light else -min(wanted, 0.7))


def _pit(spot: Spot, chance: random.Random, y: Floats, x: Floats, texture: float, grey: float) -> tuple[Floats, Floats]:
    """A dark hole, a little off the middle of its bright rim."""
    size_px = max(y.size, x.size)
    angle = np.arctan2(y, x)
    uneven = 1.0 - 0.08 * (1.0 + np.cos(2 * angle + chance.uniform(0.0, math.tau)))
    distance = np.hypot(y, x) / uneven
    pixel = 2.0 / size_px
    hole = np.hypot(y - chance.uniform(-0.08, 0.08), x - chance.uniform(-0.08, 0.08)) / uneven
    rim_width = max(chance.uniform(0.2, 0.32), 1.2 * pixel)
    cover = np.clip(0.5 + (1.0 - distance) / pixel, 0.0, 1.0)
    dark = np.clip(0.5 + (1.0 - rim_width - hole) / pixel, 0.0, 1.0)
    depth = min(needed_contrast(chance, texture) + 0.2, 0.8)
    rim = min(needed_contrast(chance, texture, 0.1), (_BRIGHTEST - grey) / grey)
    return cover, (cover - dark) * rim - dark * depth * (1.0 - 0.25 * np.clip(hole, 0.0, 1.0))


def _inclusion(spot: Spot, chance: random.Random, y: Floats, x: Floats, texture: float, grey: float) -> tuple[Floats, Floats]:
    """A wavy dark spindle along the rolling direction with shorter ones at its sides."""
    cover = np.zeros((y.size, x.size))
    pixel = 2.0 / x.size
    wave = np.interp(np.linspace(0.0, 8.0, y.size), np.arange(10), uniform(10, spot.key, 1) - 0.5)[:, None]
    thick = np.interp(np.linspace(0.0, 14.0, y.size), np.arange(16), 0.65 + 0.6 * uniform(16, spot.key, 2))[:, None]
    spindles = [(0.0, 0.0, 0.98, chance.uniform(0.28, 0.42))]
    for _ in range(chance.randint(1, 5)):
        length = chance.uniform(0.15, 0.45)
        half = chance.uniform(0.12, 0.22)
        spindles.append(
            (chance.uniform(-0.9 + length, 0.9 - length), chance.choice((-1.0, 1.0)) * chance.uniform(0.2, 0.5), length, half)
        )
    for centre_y, centre_x, length, half in spindles:
        along = np.clip(1.0 - np.abs((y - centre_y) / length) ** 2.5, 0.0, 1.0) ** 0.5
        # never thinner than a pixel where it is there at all, else it would fall apart
        width = np.maximum(half * thick * along, 0.75 * pixel) * (along > 0)
        cover = np.maximum(cover, np.clip(0.5 + (width - np.abs(x - centre_x - 0.35 * wave)) / pixel, 0.0, 1.0) * (along > 0))
    darkness = 1.0 + 0.2 * _smooth_noise(cover.shape, 1.5, spot.key, 3)
    return cover, -cover * min(needed_contrast(chance, texture), 0.7) * np.clip(darkness, 0.7, 1.4)


@dataclass(frozen=True, slots=True)
class ScratchLook:
    """A scratch's contrast along its length: knots every `knot_mm`, signed; it fades over `fade_mm` at both ends."""

    knots: Floats
    knot_mm: float
    fade_mm: float


def scratch_look(scratch: Scratch, texture: float, grey: float) -> ScratchLook:
    """Draw a scratch's contrast on steel of that relative texture and grey level."""
    chance = random.Random(scratch.key)
    wanted = needed_contrast(chance, texture, 0.3) + 0.05
    headroom = (_BRIGHTEST - grey) / grey
    light = chance.random() < 0.65 and headroom > wanted
    peak = min(wanted, headroom) if light else -min(wanted, 0.75)
    count = max(2, math.ceil(scratch.length_mm / _SCRATCH_KNOT_MM) + 1)
    knots = peak * (0.85 + 0.35 * uniform(count, scratch.key, 1))
    return ScratchLook(knots, scratch.length_mm / (count - 1), min(0.12 * scratch.length_mm, 15.0))


def draw_scratch(
    scratch: Scratch, look: ScratchLook, scale: Scale, first_line: int, count: int
) -> tuple[int, Contrast, Mask] | None:
    """The part of a scratch that crosses some lines: first column, contrast and mask (count, columns); None where none does.

    Every line is drawn from its own number alone.
    """
    along: Floats = (np.arange(first_line, first_line + count, dtype=np.float64) + 0.5) * scale.mm_per_line - scratch.start_mm
    present = (along >= 0.0) & (along < scratch.length_mm)
    if not present.any():
        return None
    middle = scratch.across_mm(along + scratch.start_mm) / scale.mm_per_column
    # two pixels, and what it wanders from one line to the next, at least: a thinner line is not one region of pixels any more
    half = max(scratch.width_mm, STEEPEST * scale.mm_per_line, 2.0 * scale.mm_per_column) / scale.mm_per_column / 2
    column = math.floor(float(middle[present].min()) - half) - 1
    stop = math.ceil(float(middle[present].max()) + half) + 2
    centres = np.arange(column, stop) + 0.5
    cover = np.clip(0.5 + half - np.abs(centres[None] - middle[:, None]), 0.0, 1.0) * present[:, None]
    position = np.clip(along / look.knot_mm, 0.0, look.knots.size - 1)
    low = np.minimum(position.astype(np.int64), look.knots.size - 2)
    strength = look.knots[low] + (look.knots[low + 1] - look.knots[low]) * (position - low)
    # the truth begins where it is half as strong as in the middle
    strength = strength * np.clip(0.5 + np.minimum(along, scratch.length_mm - along) / (2 * look.fade_mm), 0.5, 1.0)
    return column, np.asarray(cover * strength[:, None], np.float32), cover >= 0.5


def _connected(mask: Mask) -> Mask:
    """The largest 8-connected region."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count <= 2:
        return mask
    return np.asarray(labels == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA])))


def _smooth_noise(shape: tuple[int, ...], sigma_px: float, *key: int) -> Floats:
    """Noise of that grain and unit variance."""
    white = gaussian_like(shape[0] * shape[1], *key).reshape(shape).astype(np.float32) / np.float32(GAUSSIAN_SIGMA)
    # blurred white noise keeps 1 / (2 sigma sqrt(pi)) of its deviation
    return np.asarray(cv2.GaussianBlur(white, (0, 0), sigma_px) * (2.0 * sigma_px * math.sqrt(math.pi)), np.float64)
