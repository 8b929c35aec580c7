"""The reference gate: is there anything on this tile? Small enough to look at every tile of a strip."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from export.networks.unet import ConvBlock

WIDTHS = (24, 48, 64)


class SteelGate(nn.Module):
    """One logit per grey tile, (n, 1, 128, 128) uint8 -> (n, 1) float32; above 0: rather a defect than clean steel.

    Scores every place of the tile and keeps the highest: a defect anywhere is a defect of the tile, however small its
    share, and the network stays fully convolutional up to that maximum.
    """

    stride = 16

    def __init__(self, widths: tuple[int, int, int] = WIDTHS) -> None:
        super().__init__()
        first, second, third = widths
        self.features = nn.Sequential(
            ConvBlock(1, first, kernel=4, stride=2),
            ConvBlock(first, first),
            nn.MaxPool2d(2),
            ConvBlock(first, second),
            nn.MaxPool2d(2),
            ConvBlock(second, third),
            nn.MaxPool2d(2),
            ConvBlock(third, third),
        )
        self.head = nn.Conv2d(third, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of uint8 tiles; normalisation to (x - 128) / 64 is part of the network."""
        places = self.head(self.features((image.float() - 128.0) * (1.0 / 64.0)))
        return torch.amax(places, dim=(2, 3))
