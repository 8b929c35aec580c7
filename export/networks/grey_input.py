"""From what a camera delivers to what a network was trained on: channel stacking and normalisation, inside the graph."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from export.errors import ExportError


@dataclass(frozen=True, slots=True)
class Normalisation:
    """A network's float input from a grey one: as many copies as `mean` has values, copy c being (x - mean[c]) / deviation[c].

    In grey levels, 0 to 255: what a recipe states for pixels / 255 is to be multiplied by 255.
    """

    mean: tuple[float, ...] = (0.0,)
    deviation: tuple[float, ...] = (255.0,)

    def __post_init__(self) -> None:
        if not self.mean or len(self.mean) != len(self.deviation):
            raise ExportError(
                f"normalisation has {len(self.mean)} means and {len(self.deviation)} deviations; expected one each a channel"
            )
        if any(not value > 0.0 for value in self.deviation):
            raise ExportError(f"normalisation has deviations {self.deviation}; expected values above 0")

    @property
    def channels(self) -> int:
        """Copies of the grey image that the network wants."""
        return len(self.mean)


UNIT = Normalisation()
"""One channel, pixels / 255."""

UNIT_RGB = Normalisation((0.0,) * 3, (255.0,) * 3)
"""A grey image as red, green and blue, pixels / 255."""

IMAGENET = Normalisation((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
"""Means and deviations of ImageNet's colours, times 255. Source: torchvision, `transforms.Normalize` of its trained models."""


class GreyInput(nn.Module):
    """A network behind its normalisation: uint8 (n, 1, h, w) -> what the network answers to (n, channels, h, w) float32."""

    def __init__(self, network: nn.Module, normalisation: Normalisation) -> None:
        super().__init__()
        self.network = network
        self._normalisation = normalisation

    def forward(self, image: Tensor) -> Tensor:
        """Scores of grey images."""
        grey = image.float()
        pairs = list(zip(self._normalisation.mean, self._normalisation.deviation, strict=True))
        if len(set(pairs)) == 1:  # one affine map, then copies: cheaper, and one scale for all of them
            grey = _affine(grey, *pairs[0])
            stacked = torch.cat([grey] * len(pairs), dim=1) if len(pairs) > 1 else grey
        else:
            stacked = torch.cat([_affine(grey, mean, deviation) for mean, deviation in pairs], dim=1)
        scores: Tensor = self.network(stacked)
        return scores


def _affine(grey: Tensor, mean: float, deviation: float) -> Tensor:
    return (grey - mean) * (1.0 / deviation) if mean else grey * (1.0 / deviation)
