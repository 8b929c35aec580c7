"""The `pits` system's own plain U-Net: double convolutions, max pooling, transposed convolutions on the way up."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from export.networks.state_shapes import StateDict, shape_at


class DoubleConv(nn.Module):
    """Twice a 3x3 convolution, batch normalisation, ReLU."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Same height and width."""
        values: Tensor = self.conv(image)
        return values


class PitsUNet(nn.Module):
    """One logit per class and pixel, (n, channels, h, w) float32 -> (n, classes, h, w); parameters are named as the system's own.

    width: channels of the first of `levels` levels, doubled with each and once more at the bottom; h and w are multiples of
    2 ** levels.
    Skips are concatenated in front of what comes up. Source: Ronneberger et al., arXiv:1505.04597, with padding.
    """

    def __init__(self, classes: int = 1, channels: int = 1, width: int = 64, levels: int = 4) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(levels)]
        self.downs = nn.ModuleList(DoubleConv(*ends) for ends in zip([channels, *widths[:-1]], widths, strict=True))
        self.ups = nn.ModuleList(
            layer
            for outputs in reversed(widths)
            for layer in (nn.ConvTranspose2d(2 * outputs, outputs, kernel_size=2, stride=2), DoubleConv(2 * outputs, outputs))
        )
        self.pool = nn.MaxPool2d(2)
        self.bottleneck = DoubleConv(widths[-1], 2 * widths[-1])
        self.final_conv = nn.Conv2d(widths[0], classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of normalised images."""
        skips = []
        for down in self.downs:
            skips.append(down(image))
            image = self.pool(skips[-1])
        image = self.bottleneck(image)
        for index, skip in enumerate(reversed(skips)):
            image = self.ups[2 * index + 1](torch.cat((skip, self.ups[2 * index](image)), dim=1))
        scores: Tensor = self.final_conv(image)
        return scores


def build_pits_unet(state: StateDict) -> PitsUNet:
    """The network with a state dict's levels, widths and classes. Raises ExportError where it has no such layers."""
    levels = 0
    while f"downs.{levels}.conv.0.weight" in state:
        levels += 1
    width, channels = shape_at(state, "downs.0.conv.0.weight", 4)[:2]
    return PitsUNet(shape_at(state, "final_conv.weight", 4)[0], channels, width, levels)
