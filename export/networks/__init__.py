"""Architectures that `rust-edge export` knows by name, and how a checkpoint becomes one of them."""

from __future__ import annotations

from typing import Final, Literal

from torch import nn

from edge.manifest import Resize
from export.errors import ExportError
from export.networks.architecture import Architecture
from export.networks.gate import SteelGate
from export.networks.grey_input import IMAGENET, UNIT
from export.networks.keras_networks import KERAS_ARCHITECTURES
from export.networks.library import GENERIC_NAMES, PITS_UNETPP, library_architecture, settle
from export.networks.pits_unet import build_pits_unet
from export.networks.rust_cnn import build_rust_cnn
from export.networks.state_shapes import StateDict, shape_at
from export.networks.unet import SteelUNet

__all__ = ["ARCHITECTURES", "GENERIC_NAMES", "Architecture", "StateDict", "find_architecture", "settle"]


def _build_unet(state: StateDict) -> nn.Module:
    names = ("stem.0.weight", "encoder_4.0.0.weight", "encoder_8.0.0.weight", "encoder_16.0.0.weight")
    top, middle, low, deep = (shape_at(state, name, 4)[0] for name in names)
    return SteelUNet(classes=max(2, shape_at(state, "head.weight", 4)[0] // 4), widths=(top, middle, low, deep))


def _build_gate(state: StateDict) -> nn.Module:
    fine, middle, coarse = (shape_at(state, f"features.{index}.0.weight", 4)[0] for index in (1, 2, 4))
    return SteelGate(widths=(fine, middle, coarse))


_ANY: Final[tuple[tuple[Literal["segmenter", "classifier"], str], ...]] = (
    ("segmenter", "scores per pixel"),
    ("classifier", "scores per tile"),
)
"""Kinds of networks that need no code of ours; size, class names and normalisation come with the file or from flags."""

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
            tile=(256, 256),
            stride=SteelUNet.stride,
        ),
        Architecture(
            name="steel-gate",
            kind="classifier",
            summary="SteelGate, state dict; grey strip averaged over 2x2 pixels, a defect score per cell of 32x32",
            build=_build_gate,
            classes=("clean", "defect"),
            activation="sigmoid",
            tile=(128, 128),
            stride=SteelGate.stride,
            reduce=2,
            cell=SteelGate.stride,
        ),
        Architecture(
            name="rust-cnn",
            kind="classifier",
            summary="rust or no rust, state dict; tiles resized to 32x32, ImageNet's normalisation",
            build=build_rust_cnn,
            classes=("clean", "rust"),
            activation="softmax",
            tile=(32, 32),
            normalisation=IMAGENET,
            preparation=(Resize(method="linear"),),
            gate_threshold=0.5,  # the more probable of its two classes
        ),
        Architecture(
            name="pits-unet",
            kind="segmenter",
            summary="plain U-Net of corrosion particles, state dict; one grey channel / 255",
            build=build_pits_unet,
            classes=("background", "particle"),
            activation="sigmoid",
            tile=(224, 224),
            normalisation=UNIT,
            pixel_threshold=0.5,
        ),
        PITS_UNETPP,
        *KERAS_ARCHITECTURES,
        *(
            Architecture(
                name=f"any-{kind}",
                kind=kind,
                summary=f"the network that a file itself holds, {answer}: ONNX, TorchScript, torch.export, a whole Keras model",
                framework="any",
                classes=(),
                activation="softmax",  # until the network is loaded, which tells
                tile=(0, 0),
            )
            for kind, answer in _ANY
        ),
    )
}


def find_architecture(name: str) -> Architecture:
    """The architecture of that name; `smp-unet:ENCODER`, `smp-unetpp:ENCODER` and `timm:MODEL` name any network of a library.

    Raises ExportError.
    """
    architecture = ARCHITECTURES.get(name) or library_architecture(name)
    if architecture is None:
        known = ", ".join((*ARCHITECTURES, *GENERIC_NAMES))
        raise ExportError(f"no architecture {name!r}; expected one of {known} (`rust-edge export --list`)")
    return architecture
