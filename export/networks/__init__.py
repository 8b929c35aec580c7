"""Architectures that `rust-edge export` knows by name, and how a checkpoint becomes one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from export.errors import ExportError
from export.networks.gate import SteelGate
from export.networks.unet import SteelUNet

StateDict = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Architecture:
    """A network that can be built from a state dict alone.

    build(state) makes the network with the widths and the number of classes that the state dict has; it need not fit.
    classes: of the shipped training; a checkpoint with another number of them needs `--classes`.
    stride: multiple that the input's height and width must be. reduce: strip pixels per input pixel.
    tile: height and width of a classifier's tile after `reduce`, or of a segmenter's core without its halo.
    """

    name: str
    kind: Literal["segmenter", "classifier"]
    summary: str
    build: Callable[[StateDict], nn.Module]
    classes: tuple[str, ...]
    activation: Literal["softmax", "sigmoid"]
    tile: int
    stride: int
    reduce: int = 1


def _build_unet(state: StateDict) -> nn.Module:
    names = ("stem.0.weight", "encoder_4.0.0.weight", "encoder_8.0.0.weight", "encoder_16.0.0.weight")
    top, middle, low, deep = (_channels(state, name) for name in names)
    return SteelUNet(classes=max(2, _channels(state, "head.weight") // 4), widths=(top, middle, low, deep))


def _build_gate(state: StateDict) -> nn.Module:
    first, second, third = (_channels(state, f"features.{index}.0.weight") for index in (0, 3, 5))
    return SteelGate(widths=(first, second, third))


def _channels(state: StateDict, name: str) -> int:
    weight = state.get(name)
    if weight is None or weight.ndim != 4:
        got = "nothing" if weight is None else f"shape {tuple(weight.shape)}"
        raise ExportError(f"checkpoint holds {got} at {name}, expected the weights of a convolution")
    return int(weight.shape[0])


ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        Architecture(
            name="steel-unet",
            kind="segmenter",
            summary="SteelUNet, state dict; grey input, class scores per pixel",
            build=_build_unet,
            classes=("background", "inclusion", "patches", "scratches"),
            activation="softmax",
            tile=256,
            stride=SteelUNet.stride,
        ),
        Architecture(
            name="steel-gate",
            kind="classifier",
            summary="SteelGate, state dict; grey tiles averaged over 2x2 pixels, one defect score",
            build=_build_gate,
            classes=("clean", "defect"),
            activation="sigmoid",
            tile=128,
            stride=SteelGate.stride,
            reduce=2,
        ),
    )
}


def find_architecture(name: str) -> Architecture:
    """The architecture of that name. Raises ExportError."""
    if name not in ARCHITECTURES:
        raise ExportError(f"no architecture {name!r}; expected one of {', '.join(ARCHITECTURES)} (`rust-edge export --list`)")
    return ARCHITECTURES[name]
