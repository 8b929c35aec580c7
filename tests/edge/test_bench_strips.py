"""Strips made for a bench: the share of clean tiles is the one that was wanted, and the truth is what is on them."""

from __future__ import annotations

import time

import numpy as np
import pytest

from edge.bench.strip_source import StripSource, cut_there_and_back
from edge.bench.strips import CLEAN_SHARES, TILE_PX, fewest_lines, make_strip
from edge.config import Scale, SimulatedDefects
from edge.sources.steel_strip import SteelStrip

SCALE = Scale()
RIM_PX = 4


def differing_tiles(lines: np.ndarray, clean: np.ndarray, margin: int) -> int:
    """Tiles that differ from clean steel anywhere but in their outermost `margin` pixels."""
    rows, across = (-(-size // TILE_PX) for size in lines.shape)
    inner = slice(margin, TILE_PX - margin)
    differs = np.zeros((rows * TILE_PX, across * TILE_PX), bool)
    differs[: lines.shape[0], : lines.shape[1]] = lines != clean
    return int(differs.reshape(rows, TILE_PX, across, TILE_PX)[:, inner, :, inner].any(axis=(1, 3)).sum())


@pytest.mark.parametrize("width", [256, 1000, 2048])
@pytest.mark.parametrize("clean_share", CLEAN_SHARES)
def test_the_wanted_share_of_tiles_is_clean_steel(width: int, clean_share: float) -> None:
    strip = make_strip(width, 16 * TILE_PX, SCALE, clean_share)
    truth = strip.truth
    assert abs(truth.clean_share - clean_share) <= 0.5 / truth.tiles + 1e-9
    clean = SteelStrip(width, truth.seed, SimulatedDefects(), SCALE, clean=True).lines(0, truth.lines)
    defective = round((1 - truth.clean_share) * truth.tiles)
    # a defect's shading reaches beyond its mask by a few pixels, so also into the next tile
    assert differing_tiles(strip.lines, clean, RIM_PX) <= defective <= differing_tiles(strip.lines, clean, 0)


def test_every_planted_defect_lies_on_the_strip_as_the_camera_would_see_it() -> None:
    strip = make_strip(1024, 16 * TILE_PX, SCALE, 0.90)
    clean = SteelStrip(1024, strip.truth.seed, SimulatedDefects(), SCALE, clean=True).lines(0, strip.truth.lines)
    assert strip.planted
    assert strip.truth.planted + strip.truth.smaller == len(strip.planted)
    for defect in strip.planted:
        box = defect.box
        assert box.line_stop <= strip.truth.lines
        here = (slice(box.line_start, box.line_stop), slice(box.column_start, box.column_stop))
        assert (strip.lines[here] != clean[here]).sum() > 0.5 * defect.area_px


def test_the_same_arguments_give_the_same_strip_and_another_seed_another() -> None:
    first = make_strip(512, 1024, SCALE, 0.95, seed=3)
    make_strip.cache_clear()
    again, other = make_strip(512, 1024, SCALE, 0.95, seed=3), make_strip(512, 1024, SCALE, 0.95, seed=4)
    assert np.array_equal(first.lines, again.lines)
    assert first.truth == again.truth
    assert not np.array_equal(first.lines, other.lines)


def test_a_strip_too_narrow_for_any_defect_says_that_all_of_it_is_clean() -> None:
    truth = make_strip(64, 1024, SCALE, 0.90).truth
    assert (truth.wanted_clean_share, truth.clean_share, truth.planted) == (0.90, 1.0, 0)


@pytest.mark.parametrize("width", [64, 256, 257, 4096])
def test_on_the_shortest_strip_one_tile_is_at_most_one_percent(width: int) -> None:
    tiles = fewest_lines(width) // TILE_PX * -(-width // TILE_PX)
    assert tiles >= 100


@pytest.mark.parametrize("portion", [1, 3, 10, 25, 64])
def test_there_and_back_is_one_strip_however_it_is_cut(portion: int) -> None:
    strip = np.arange(10, dtype=np.uint8)[:, None] * np.ones(4, np.uint8)
    expected = np.concatenate([strip, strip[::-1], strip, strip[::-1]])[:37]
    parts = [cut_there_and_back(strip, first, min(portion, 37 - first)) for first in range(0, 37, portion)]
    assert np.array_equal(np.concatenate(parts), expected)


def test_a_paced_source_waits_for_nobody_and_stamps_lines_when_they_were_due() -> None:
    with StripSource(np.zeros((16, 8), np.uint8), 10, 2000.0, lines=100) as source:
        assert not source.waits
        frames = []
        for frame in source.frames():
            frames.append(frame)
            time.sleep(0.01)  # slower than the pace: stamps must not slip with whoever takes the frames
    stamps = [frame.captured_ns - source.began_ns for frame in frames]
    assert stamps == [round(line / 2000.0 * 1e9) for line in range(10, 101, 10)]
    assert source.health().lines == 100


def test_a_source_with_a_time_ends_after_it() -> None:
    with StripSource(np.zeros((16, 8), np.uint8), 10, None, seconds=0.05) as source:
        began_s = time.monotonic()
        lines = sum(len(frame.lines) for frame in source.frames())
    assert source.waits
    assert time.monotonic() - began_s >= 0.05
    assert lines == source.health().lines > 0
