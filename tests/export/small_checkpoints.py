"""Networks of our architectures, narrow and trained for a second, and images that they can tell apart."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import torch
from torch import Tensor, nn

from export.networks import Architecture, StateDict, find_architecture
from export.networks.gate import SteelGate
from export.networks.unet import SteelUNet
from export.samples import ExportData, Labelled

CLASSES = ("background", "dark", "bright")


def steel_image(seed: int, height: int = 96, width: int = 96, blobs: int = 3) -> Labelled:
    """Noisy grey steel with dark (class 1) and bright (class 2) rectangles, and its mask."""
    rng = np.random.default_rng(seed)
    image, mask = rng.normal(128, 8, (height, width)), np.zeros((height, width), np.uint8)
    for _ in range(blobs):
        row, column = rng.integers(0, height - 16), rng.integers(0, width - 16)
        window = (slice(row, row + rng.integers(6, 24)), slice(column, column + rng.integers(6, 24)))
        mask[window] = rng.integers(1, 3)
        image[window] = np.where(mask[window] == 1, 50, 210) + rng.normal(0, 8, image[window].shape)
    return np.clip(image, 0, 255).astype(np.uint8), mask


def segmenter_data(count: int = 6) -> ExportData:
    """As many images to calibrate with as labelled ones to measure with."""
    return ExportData([steel_image(seed)[0] for seed in range(count)], [steel_image(seed) for seed in range(100, 100 + count)])


def gate_data(count: int = 8) -> ExportData:
    """Tiles of 256 px, every second one without a defect."""
    labelled = [steel_image(seed, 256, 256, blobs=(seed % 2) * 8) for seed in range(count)]
    return ExportData([image for image, _ in labelled], labelled)


@functools.cache
def trained_unet() -> nn.Module:
    """A narrow U-Net of three classes that segments `steel_image` well enough for its masks to mean something."""
    torch.set_num_threads(1)  # so small a network gains nothing from a second one, which waits for a processor of its own
    torch.manual_seed(0)
    network = SteelUNet(classes=3, widths=(8, 8, 16, 16)).train()
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for step in range(30):
        images, masks = zip(*(steel_image(1000 + step * 4 + index, 64, 64) for index in range(4)), strict=True)
        scores = network(torch.from_numpy(np.stack(images))[:, None])
        loss = nn.functional.cross_entropy(scores, torch.from_numpy(np.stack(masks)).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


@functools.cache
def random_gate() -> SteelGate:
    """A narrow gate of cells as it is made: its scores differ over an image, but mean nothing."""
    torch.manual_seed(0)
    network = SteelGate(widths=(8, 8, 16)).eval()
    with torch.no_grad():
        network.head.weight *= 30.0
    return network


class TileGate(nn.Module):
    """One logit per tile, (n, 1, 128, 128) uint8 -> (n, 1): the best of its cells."""

    def __init__(self, cells: SteelGate) -> None:
        super().__init__()
        self.cells = cells

    def forward(self, image: Tensor) -> Tensor:
        return torch.amax(self.cells(image), dim=(2, 3))


def _build_tile_gate(state: StateDict) -> nn.Module:
    return TileGate(SteelGate(widths=(8, 8, 16)))


TILE_GATE: Architecture = dataclasses.replace(
    find_architecture("steel-gate"), name="tile-gate", cell=None, build=_build_tile_gate
)
"""A gate that looks at tiles whole, as classifiers of other systems do."""


def random_tile_gate() -> nn.Module:
    """The narrow gate as one of tiles."""
    return TileGate(random_gate()).eval()
