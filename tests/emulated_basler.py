"""Pylon's own camera emulator, which serves a folder of images as a camera's frames."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edge.config import BaslerSource

# read once, when pylon is loaded
os.environ.setdefault("PYLON_CAMEMU", "2")

SERIALS = ("0815-0000", "0815-0001")
HEIGHT, WIDTH = 64, 256


def serve(folder: Path, images: int = 7) -> np.ndarray:
    """Images of grey noise that the emulator serves one after the other, (images, HEIGHT, WIDTH) uint8."""
    strip = np.random.default_rng(0).integers(0, 256, (images, HEIGHT, WIDTH), np.uint8)
    for index, image in enumerate(strip):
        cv2.imwrite(str(folder / f"{index:03d}.png"), image)
    return strip


def options(folder: Path | None = None, **changes: Any) -> BaslerSource:
    """An emulated camera that serves a folder, else pylon's test image."""
    served = {"TestImageSelector": "Off", "ImageFileMode": "On", "ImageFilename": str(folder)}
    features = {**({} if folder is None else served), **changes.pop("features", {})}
    told = {"serial": SERIALS[0], "width": WIDTH, "frame_lines": HEIGHT, "line_rate_hz": 200.0 * HEIGHT, **changes}
    return BaslerSource(features=features, **told)
