"""Checkpoints and images as a user has them in folders, made once for all tests of the exporter."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest
import torch
from small_checkpoints import random_gate, steel_image, trained_unet


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints, and images with masks: every second one without a defect."""
    folder = tmp_path_factory.mktemp("export")
    torch.save({"model_state_dict": trained_unet().state_dict()}, folder / "unet.pt")
    torch.save(random_gate().state_dict(), folder / "gate.pt")
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for number in range(6):
        image, mask = steel_image(number, 96, 96, blobs=3 * (number % 2))
        cv2.imwrite(str(folder / "images" / f"{number}.png"), image)
        cv2.imwrite(str(folder / "masks" / f"{number}.png"), mask)
    return folder
