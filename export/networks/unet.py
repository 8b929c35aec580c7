"""The reference U-Net: built so that it quantizes, streams by lines, and runs on a CPU at line speed."""

from __future__ import annotations

from torch import Tensor, nn

WIDTHS = (24, 48, 96, 160)
"""Channels at strides 2, 4, 8 and 16: multiples of 8, as integer kernels want them."""


class ConvBlock(nn.Sequential):
    """Convolution, batch normalisation, ReLU: one quantized operator once the normalisation is folded."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int = 3, stride: int = 1, padding: int = 1) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels_out, kernel, stride, padding, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
        )


class SteelUNet(nn.Module):
    """Class scores per pixel of a grey image, (n, 1, h, w) uint8 -> (n, classes, h, w) float32 logits; h, w multiples of 16.

    A 4x4 stride-2 stem and a head of four sub-pixels (depth to space; Shi et al., arXiv:1609.05158) keep the dear full
    resolution out of the network. Nearest upsampling after a 1x1 convolution, and skips that are added rather than
    concatenated (Lin et al., arXiv:1612.03144), halve the decoder's work. Every operator is local in the lines, so the
    exported graph can be streamed.
    """

    stride = 16

    def __init__(self, classes: int = 4, widths: tuple[int, int, int, int] = WIDTHS) -> None:
        super().__init__()
        top, middle, low, deep = widths
        self.stem = ConvBlock(1, top, kernel=4, stride=2)
        self.encoder_2 = ConvBlock(top, top)
        self.encoder_4 = nn.Sequential(ConvBlock(top, middle), ConvBlock(middle, middle))
        self.encoder_8 = nn.Sequential(ConvBlock(middle, low), ConvBlock(low, low))
        self.encoder_16 = nn.Sequential(ConvBlock(low, deep), ConvBlock(deep, deep))
        self.pool = nn.MaxPool2d(2)
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.lateral_8 = ConvBlock(deep, low, kernel=1, padding=0)
        self.lateral_4 = ConvBlock(low, middle, kernel=1, padding=0)
        self.lateral_2 = ConvBlock(middle, top, kernel=1, padding=0)
        self.decoder_8 = nn.Sequential(ConvBlock(low, low), ConvBlock(low, low))
        self.decoder_4 = nn.Sequential(ConvBlock(middle, middle), ConvBlock(middle, middle))
        self.decoder_2 = ConvBlock(top, top)
        self.head = nn.Conv2d(top, classes * 4, 1)
        self.spread = nn.PixelShuffle(2)

    def forward(self, image: Tensor) -> Tensor:
        """Scores of uint8 images; normalisation to (x - 128) / 64 is part of the network."""
        at_2 = self.encoder_2(self.stem((image.float() - 128.0) * (1.0 / 64.0)))
        at_4 = self.encoder_4(self.pool(at_2))
        at_8 = self.encoder_8(self.pool(at_4))
        at_16 = self.encoder_16(self.pool(at_8))
        up_8 = self.decoder_8(self.up(self.lateral_8(at_16)) + at_8)
        up_4 = self.decoder_4(self.up(self.lateral_4(up_8)) + at_4)
        up_2 = self.decoder_2(self.up(self.lateral_2(up_4)) + at_2)
        scores: Tensor = self.spread(self.head(up_2))
        return scores
