"""A small simulated strip as a PNG, the same on every machine: `strip.py FILE.png`."""

from __future__ import annotations

import sys

import cv2

from edge.config import Scale, SimulatedDefects
from edge.sources.steel_strip import SteelStrip

WIDTH, LINES, SEED = 512, 256, 3
DEFECTS = SimulatedDefects(rust_every_mm=20, pit_every_mm=25, inclusion_every_mm=25, scratch_every_mm=30, scratch_max_mm=60)

if __name__ == "__main__":
    assert cv2.imwrite(sys.argv[1], SteelStrip(WIDTH, SEED, DEFECTS, Scale()).lines(0, LINES))
