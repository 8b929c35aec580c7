"""A small U-Net that has learned to find blobs and lines, the same made fragile to INT8, and the images it was taught with."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from export.networks.unet import ConvBlock

SIDE = 32


class BlobNet(nn.Module):
    """A U-Net of one level, functions among its modules; background, blobs, lines."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvBlock(1, 8)
        self.down = ConvBlock(8, 16)
        self.deep = ConvBlock(16, 16)
        self.lateral = ConvBlock(16, 8, kernel=1, padding=0)
        self.up = ConvBlock(16, 8)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, image: Tensor) -> Tensor:
        top = self.stem((image.float() - 128) * (1 / 64))
        bottom = self.lateral(self.deep(self.down(functional.max_pool2d(top, 2))))
        merged = torch.cat([functional.interpolate(bottom, scale_factor=2, mode="nearest"), top], dim=1)
        return self.head(self.up(merged))


def blobs_and_lines(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (count, 1, SIDE, SIDE) and masks (count, SIDE, SIDE), uint8: dark blobs (1) under bright lines (2) on noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    images, masks = np.empty((count, 1, SIDE, SIDE), np.uint8), np.zeros((count, SIDE, SIDE), np.uint8)
    for image, mask in zip(images, masks, strict=True):
        grey = rng.normal(128, 8, (SIDE, SIDE)) + rng.uniform(-20, 20)
        for _ in range(2):
            row, column = rng.uniform(4, SIDE - 4, 2)
            blob = (rows - row) ** 2 + (columns - column) ** 2 < rng.uniform(2.5, 5) ** 2
            grey[blob] -= 35
            mask[blob] = 1
        angle, (row, column) = rng.uniform(0, np.pi), rng.uniform(8, SIDE - 8, 2)
        line = np.abs((rows - row) * np.cos(angle) - (columns - column) * np.sin(angle)) < 1.2
        grey[line] += 30
        mask[line] = 2
        image[0] = np.clip(grey, 0, 255)
    return images, masks


def taught(steps: int = 160) -> BlobNet:
    """The network after some seconds of training."""
    torch.manual_seed(0)
    network = BlobNet()
    images, masks = (torch.from_numpy(values) for values in blobs_and_lines(160, seed=0))
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    for _ in range(steps):
        chosen = torch.randint(0, len(images), (16,))
        loss = functional.cross_entropy(network(images[chosen]), masks[chosen].long(), torch.tensor([1.0, 3.0, 3.0]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def made_fragile(network: BlobNet, factor: float = 64.0) -> BlobNet:
    """The same function, computed with some channels `factor` times as large and their readers' weights so much smaller.

    INT8 has one scale for a tensor: the large channels take it, and the others have a handful of steps left.
    """
    fragile = copy.deepcopy(network)
    readers = {
        "stem": ([1, 5], [(fragile.down[0], 0), (fragile.up[0], 8)]),
        "down": ([0, 3], [(fragile.deep[0], 0)]),
        "deep": ([2], [(fragile.lateral[0], 0)]),
        "up": ([4], [(fragile.head, 0)]),
    }
    with torch.no_grad():
        for block, (channels, convolutions) in readers.items():
            normalisation = getattr(fragile, block)[1]
            normalisation.weight[channels] *= factor
            normalisation.bias[channels] *= factor
            for convolution, first in convolutions:
                convolution.weight[:, [first + channel for channel in channels]] /= factor
    return fragile
