"""Segmenters built as those of the seed systems are, of any width: what streaming and INT8 have to cope with."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from export.networks.grey_input import UNIT, UNIT_RGB, GreyInput, Normalisation
from export.to_onnx import to_onnx


def convolution(channels_in: int, channels_out: int, kernel: int = 3, stride: int = 1, relu: bool = True) -> nn.Sequential:
    layers = [nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(channels_out)]
    return nn.Sequential(*layers, *([nn.ReLU()] if relu else []))


class ResidualBlock(nn.Module):
    """(1x1, 3x3) beside a 1x1 shortcut, joined before the ReLU."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.body = nn.Sequential(convolution(channels_in, channels_out, 1), convolution(channels_out, channels_out, relu=False))
        self.shortcut = convolution(channels_in, channels_out, 1, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class ResidualUNet(nn.Module):
    """The strip's: residual blocks, 2x2 pooling, nearest upsampling, concatenated skips."""

    normalisation = UNIT

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64, 128, 256), classes: int = 4) -> None:
        super().__init__()
        first = widths[0]
        self.first = nn.Sequential(convolution(1, first), convolution(first, first))
        self.down = nn.ModuleList(ResidualBlock(a, b) for a, b in itertools.pairwise(widths))
        self.up = nn.ModuleList(ResidualBlock(b + a, a) for a, b in itertools.pairwise(widths))
        self.head = nn.Conv2d(first, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = [self.first(x)]
        for block in self.down:
            skips.append(block(nn.functional.max_pool2d(skips[-1], 2)))
        x = skips.pop()
        for block in reversed(self.up):
            x = block(torch.cat([nn.functional.interpolate(x, scale_factor=2.0), skips.pop()], dim=1))
        return self.head(x)


class Bottleneck(nn.Module):
    """ResNet's: 1x1, 3x3, 1x1 onto four times the width; a strided 1x1 shortcut where sizes change."""

    def __init__(self, channels_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            convolution(channels_in, width, 1, stride), convolution(width, width), convolution(width, 4 * width, 1, relu=False)
        )
        same = stride == 1 and channels_in == 4 * width
        self.shortcut = nn.Identity() if same else convolution(channels_in, 4 * width, 1, stride, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class BottleneckUNet(nn.Module):
    """The microscope's: ResNet50 as the encoder, transposed convolutions; five levels, three copies of a grey image."""

    normalisation = UNIT_RGB

    def __init__(self, width: int = 64, depths: tuple[int, ...] = (3, 4, 6, 3), decoder: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.stem = convolution(3, width, 7, 2)
        self.pool = nn.MaxPool2d(3, 2, 1)
        channels, stages, skips = width, [], [width]
        for level, depth in enumerate(depths):
            inner = width * 2**level
            stride = 1 if level == 0 else 2
            stages.append(
                nn.Sequential(Bottleneck(channels, inner, stride), *(Bottleneck(4 * inner, inner, 1) for _ in range(depth - 1)))
            )
            channels = 4 * inner
            skips.append(channels)
        self.stages = nn.ModuleList(stages)
        decoder = decoder or tuple(width * 2**level // 2 for level in range(len(depths), -1, -1))
        self.up, self.merge = nn.ModuleList(), nn.ModuleList()
        for width_out, skip in zip(decoder, [*skips[-2::-1], 0], strict=True):
            self.up.append(nn.ConvTranspose2d(channels, width_out, 2, 2))
            self.merge.append(nn.Sequential(convolution(width_out + skip, width_out), convolution(width_out, width_out)))
            channels = width_out
        self.head = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        skips, x = [x], self.pool(x)
        for stage in self.stages:
            x = stage(x)
            skips.append(x)
        skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = up(x)
            x = merge(torch.cat([x, skips.pop()], dim=1) if skips else x)
        return self.head(x)


class PlainUNet(nn.Module):
    """Two convolutions a level, 2x2 pooling, 2x2 transposed convolutions, concatenated skips."""

    normalisation = UNIT

    def __init__(self, widths: tuple[int, ...] = (64, 128, 256, 512, 1024), classes: int = 1) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(widths))
        self.down = nn.ModuleList(
            nn.Sequential(convolution(a, b), convolution(b, b)) for a, b in zip((1, *widths), widths, strict=False)
        )
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in pairs)
        self.merge = nn.ModuleList(nn.Sequential(convolution(2 * a, a), convolution(a, a)) for a, _ in pairs)
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level, block in enumerate(self.down):
            x = block(nn.functional.max_pool2d(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for up, merge in zip(reversed(self.up), reversed(self.merge), strict=True):
            x = merge(torch.cat([up(x), skips.pop()], dim=1))
        return self.head(x)


class Squeeze(nn.Module):
    """Squeeze and excitation: every channel weighed by what the whole tile holds."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.excite = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels // 4, 1), nn.SiLU(), nn.Conv2d(channels // 4, channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.excite(x))


class NestedUNet(nn.Module):
    """U-Net++: every decoder node joins all nodes of its level before it; with `squeeze`, as EfficientNet's blocks are."""

    normalisation = UNIT

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128, 256), classes: int = 1, squeeze: bool = False) -> None:
        super().__init__()
        self.depth = len(widths)
        self.down = nn.ModuleList()
        for a, b in zip((1, *widths), widths, strict=False):
            activation = [nn.SiLU(), Squeeze(b)] if squeeze else [nn.ReLU()]
            self.down.append(nn.Sequential(convolution(a, b, relu=False), *activation, convolution(b, b)))
        self.nodes = nn.ModuleDict(
            {
                f"{level}_{column}": nn.Sequential(convolution(widths[level + 1] + column * a, a), convolution(a, a))
                for level, a in enumerate(widths)
                for column in range(1, self.depth - level)
            }
        )
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        columns: list[list[Tensor]] = [[] for _ in range(self.depth)]
        for level, block in enumerate(self.down):
            x = block(nn.functional.max_pool2d(x, 2) if level else x)
            columns[level].append(x)
        for column in range(1, self.depth):
            for level in range(self.depth - column):
                up = nn.functional.interpolate(columns[level + 1][column - 1], scale_factor=2.0)
                columns[level].append(self.nodes[f"{level}_{column}"](torch.cat([up, *columns[level]], dim=1)))
        return self.head(columns[0][-1])


NARROW = {
    "residual": functools.partial(ResidualUNet, (4, 4, 8, 8, 8)),
    "bottleneck": functools.partial(BottleneckUNet, 4, (1, 2, 1)),
    "plain": functools.partial(PlainUNet, (4, 8, 8, 8)),
    "nested": functools.partial(NestedUNet, (4, 8, 8, 8)),
    "squeezed": functools.partial(NestedUNet, (4, 8, 8), squeeze=True),
}


def exported(network: nn.Module, side: int = 64, normalisation: Normalisation | None = None) -> onnx.ModelProto:
    """The float engine of a network, its batch normalisation as if it had been trained a little."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.from_numpy(rng.normal(0, 0.1, module.num_features)))
            module.bias.data.copy_(torch.from_numpy(rng.normal(0.1, 0.1, module.num_features)))
    return to_onnx(GreyInput(network, normalisation or network.normalisation), side, side)


@functools.cache
def narrow(name: str) -> onnx.ModelProto:
    """The float engine of one of `NARROW`, with random weights."""
    torch.manual_seed(0)
    return exported(NARROW[name]())
