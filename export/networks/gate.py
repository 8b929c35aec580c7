"""The reference gate: where on the strip is there anything? Cheap enough to look at all of it."""

from __future__ import annotations

from torch import Tensor, nn

from export.networks.unet import ConvBlock

WIDTHS = (32, 48, 96)
"""Channels at strides 4, 8 and 16; the stem has half of the first. Most of the work is at strides 4 and 8, so there is one
layer at the former, two at the latter, and context comes from three at stride 16, where a layer costs next to nothing."""


class SteelGate(nn.Module):
    """One logit per cell of 16x16 pixels, (n, 1, h, w) uint8 -> (n, 1, h / 16, w / 16) float32; h, w multiples of 16.

    Above 0: rather a defect than clean steel. Convolutions alone, strided instead of pooled: a pixel of the map depends on
    the image within some 60 pixels, on nothing else, so the network quantizes whole and runs as the strip runs.
    """

    stride = 16

    def __init__(self, widths: tuple[int, int, int] = WIDTHS) -> None:
        super().__init__()
        fine, middle, coarse = widths
        self.features = nn.Sequential(
            ConvBlock(1, fine // 2, kernel=4, stride=2),
            ConvBlock(fine // 2, fine, stride=2),
            ConvBlock(fine, middle, stride=2),
            ConvBlock(middle, middle),
            ConvBlock(middle, coarse, stride=2),
            ConvBlock(coarse, coarse),
            ConvBlock(coarse, coarse),
        )
        self.head = nn.Conv2d(coarse, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of uint8 images; normalisation to (x - 128) / 64 is part of the network."""
        scores: Tensor = self.head(self.features((image.float() - 128.0) * (1.0 / 64.0)))
        return scores
