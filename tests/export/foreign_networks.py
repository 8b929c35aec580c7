"""A network that is none of ours, in the formats in which people keep theirs."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from edge.sessions import Batch, Scores

Ending = Literal["logits", "softmax", "sigmoid"]
TILE = 64


class Foreign(nn.Module):
    """A segmenter of two levels. size: of what its upsampling resizes to; None: twice what it gets."""

    def __init__(self, channels: int, classes: int, ending: Ending, size: int | None) -> None:
        super().__init__()
        self.top = nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU())
        self.low = nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, padding=1), nn.ReLU())
        self.head = nn.Conv2d(12, classes, 1)
        self._ending, self._size = ending, size

    def forward(self, image: Tensor) -> Tensor:
        top = self.top(image)
        low = self.low(top)
        up = (
            nn.functional.interpolate(low, scale_factor=2.0) if self._size is None else nn.functional.interpolate(low, self._size)
        )
        scores = self.head(torch.cat([top, up], dim=1))
        if self._ending == "softmax":
            return scores.softmax(1)
        return scores.sigmoid() if self._ending == "sigmoid" else scores


class ForeignClassifier(nn.Sequential):
    """Scores of a whole image."""

    def __init__(self, classes: int) -> None:
        super().__init__(nn.Conv2d(1, 8, 5, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))


@functools.cache
def segmenter(channels: int = 1, classes: int = 3, ending: Ending = "logits", size: int | None = None) -> nn.Module:
    torch.manual_seed(0)
    return Foreign(channels, classes, ending, size).eval()


@functools.cache
def classifier(classes: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return ForeignClassifier(classes).eval()


def answer(network: nn.Module, batch: Batch) -> Scores:
    """Of a network that was trained on pixels / 255, to grey images."""
    grey = torch.from_numpy(batch).float() / 255.0
    channels = next(network.parameters()).shape[1]
    with torch.inference_mode():
        return np.asarray(network(grey.expand(-1, channels, -1, -1)))


def save_onnx(network: nn.Module, path: Path, free: tuple[int, ...] = (0,), metadata: Mapping[str, str] | None = None) -> Path:
    """free: axes of the image that may have any size."""
    names = {axis: "nchw"[axis] for axis in free}
    torch.onnx.export(
        network, (_example(network),), str(path), dynamo=False, opset_version=17, input_names=["image"], output_names=["out"],
        dynamic_axes={"image": names, "out": names},
    )  # fmt: skip
    model = onnx.load(path)
    onnx.helper.set_model_props(model, dict(metadata or {}))
    onnx.save(model, path)
    return path


def save_torchscript(network: nn.Module, path: Path, extra: str = "{}") -> Path:
    traced = torch.jit.trace(network, _example(network))
    torch.jit.save(traced, str(path), _extra_files={"config.json": extra})
    return path


def save_exported(network: nn.Module, path: Path) -> Path:
    torch.export.save(torch.export.export(network, (_example(network),)), path)
    return path


def _example(network: nn.Module) -> Tensor:
    return torch.zeros(1, next(network.parameters()).shape[1], TILE, TILE)
