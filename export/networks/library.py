"""Networks of segmentation_models_pytorch and timm, built by the libraries themselves (`rust-edge[library]`)."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import importlib
import warnings
from collections.abc import Iterator
from typing import Any, Final

from torch import nn

from export.errors import ExportError
from export.networks.architecture import Architecture
from export.networks.grey_input import IMAGENET, UNIT, Normalisation
from export.networks.state_shapes import StateDict, shape_at

GENERIC_NAMES: Final = ("smp-unet:ENCODER", "smp-unetpp:ENCODER", "timm:MODEL")
"""What `--arch` takes besides the names of the registry; ENCODER and MODEL are the libraries' own names."""

_TITLES: Final = {
    "smp-unet": "segmentation_models_pytorch's U-Net",
    "smp-unetpp": "segmentation_models_pytorch's U-Net++",
    "timm": "timm's classifier",
}


def library_architecture(name: str) -> Architecture | None:
    """The architecture of a generic name, without a look at the library; None: no such name.

    Its classes are for the user to name: `settle` fills in what follows from them and from the checkpoint.
    """
    family, _, network = name.partition(":")
    if family not in _TITLES or not network:
        return None
    classifies = family == "timm"
    return Architecture(
        name=name,
        kind="classifier" if classifies else "segmenter",
        summary=f"{_TITLES[family]} {network}, state dict; its classes have to be named",
        build=functools.partial(_build_timm if classifies else _BUILDERS[family], network),
        classes=(),
        activation="softmax",
        tile=(224, 224) if classifies else (256, 256),
        normalisation=IMAGENET,
    )


def settle(architecture: Architecture, state: StateDict, classes: tuple[str, ...]) -> Architecture:
    """A generic architecture with its class names and what follows from them and the state dict; any other as it is.

    activation: softmax where every channel has a name; sigmoid where one name more is given, that of the background.
    normalisation, tile: what timm states for the model; else pixels / 255 for one input channel, ImageNet's for three.
    Raises ExportError where names or channels do not fit.
    """
    family, _, network = architecture.name.partition(":")
    if library_architecture(architecture.name) is None:
        return architecture
    inputs, outputs = _timm_ends(network, state) if family == "timm" else _segmenter_ends(state)
    if len(classes) not in (outputs, outputs + 1) or len(classes) < 2:
        expected = f"{outputs} (softmax) or {outputs + 1} (sigmoid)" if outputs > 1 else "2"
        raise ExportError(
            f"{architecture.name}: the checkpoint has {outputs} output channels, got {len(classes)} class names; "
            f"expected {expected}, the background or clean steel first (--classes)"
        )
    if inputs not in (1, 3):
        raise ExportError(f"{architecture.name}: the checkpoint's network takes {inputs} channels; expected 1 or 3")
    normalisation, tile = UNIT if inputs == 1 else IMAGENET, architecture.tile
    if family == "timm":
        stated = _timm_settings(network)
        tile = (stated.input_size[1], stated.input_size[2])
        normalisation = _from_unit(stated.mean, stated.std) if inputs == 3 else UNIT
    return dataclasses.replace(
        architecture,
        classes=classes,
        activation="softmax" if len(classes) == outputs else "sigmoid",
        normalisation=normalisation,
        tile=tile,
    )


def _build_unet(encoder: str, state: StateDict) -> nn.Module:
    levels = [name for name in state if name.startswith("decoder.blocks.") and name.endswith(".conv2.0.weight")]
    return _build_segmenter("Unet", encoder, state, [f"decoder.blocks.{level}" for level in range(len(levels))])


def _build_unetpp(encoder: str, state: StateDict) -> nn.Module:
    levels = [name for name in state if name.startswith("decoder.blocks.x_0_") and name.endswith(".conv2.0.weight")]
    return _build_segmenter("UnetPlusPlus", encoder, state, [f"decoder.blocks.x_0_{level}" for level in range(len(levels))])


def _build_segmenter(kind: str, encoder: str, state: StateDict, blocks: list[str]) -> nn.Module:
    """The library's network; depth, decoder widths and attention as in the state dict, whose last blocks are `blocks`."""
    inputs, outputs = _segmenter_ends(state)
    widths = [shape_at(state, f"{block}.conv2.0.weight", 4)[0] for block in blocks]
    if not widths:
        raise ExportError(f"checkpoint holds nothing at decoder.blocks of a {kind}, expected its convolutions")
    attention = "scse" if any(".attention1." in name for name in state) else None
    library = _import("segmentation_models_pytorch")
    with _own_warnings():
        try:
            network: nn.Module = getattr(library, kind)(
                encoder_name=encoder,
                encoder_depth=len(widths),
                encoder_weights=None,
                decoder_channels=widths,
                decoder_attention_type=attention,
                in_channels=inputs,
                classes=outputs,
            )
        except (KeyError, ValueError, RuntimeError, TypeError) as error:
            raise ExportError(
                f"segmentation_models_pytorch builds no {kind} with encoder {encoder!r}: {_short(error)}"
            ) from error
    return network


def _build_timm(model: str, state: StateDict) -> nn.Module:
    inputs, outputs = _timm_ends(model, state)
    with _own_warnings():
        try:
            network: nn.Module = _import("timm").create_model(model, pretrained=False, in_chans=inputs, num_classes=outputs)
        except (KeyError, ValueError, RuntimeError, TypeError) as error:
            raise ExportError(f"timm builds no {model!r} of {inputs} channels, {outputs} classes: {_short(error)}") from error
    return network


def _segmenter_ends(state: StateDict) -> tuple[int, int]:
    """Input and output channels of a segmentation_models_pytorch network."""
    outputs = shape_at(state, "segmentation_head.0.weight", 4)[0]
    # the encoder's stem is registered first, whatever its name
    stem = next((weight for name, weight in state.items() if name.startswith("encoder.") and weight.ndim == 4), None)
    if stem is None:
        raise ExportError("checkpoint holds nothing under encoder., expected the weights of an encoder's convolutions")
    return int(stem.shape[1]), outputs


def _timm_ends(model: str, state: StateDict) -> tuple[int, int]:
    """Input and output channels of a timm classifier."""
    settings = _timm_settings(model)
    stem, head = (value if isinstance(value, str) else value[0] for value in (settings.first_conv, settings.classifier))
    return shape_at(state, f"{stem}.weight", 4)[1], shape_at(state, f"{head}.weight", 2, 4)[0]


def _timm_settings(model: str) -> Any:
    """What timm states of a model: `first_conv` and `classifier` by name, `input_size` (c, h, w), `mean` and `std` of 0..1."""
    timm = _import("timm")
    settings = timm.get_pretrained_cfg(model)
    if settings is None or not settings.first_conv or not settings.classifier:
        near = difflib.get_close_matches(model, timm.list_models())
        raise ExportError(f"timm has no classifier {model!r}; expected {' or '.join(near) or 'one of timm.list_models()'}")
    return settings


def _from_unit(mean: tuple[float, ...], deviation: tuple[float, ...]) -> Normalisation:
    """A normalisation of pixels / 255 as one of grey levels."""
    means, deviations = (tuple(round(255.0 * value, 6) for value in values) for values in (mean, deviation))
    return Normalisation(means, deviations)


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that does not fit torch
        raise ExportError(
            f"library networks need {name}, which cannot be imported ({_short(error)}); pip install 'rust-edge[library]'"
        ) from error


@contextlib.contextmanager
def _own_warnings() -> Iterator[None]:
    """The libraries announce which names they will drop; here the checkpoint decides on the name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _short(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


_BUILDERS: Final = {"smp-unet": _build_unet, "smp-unetpp": _build_unetpp}

PITS_UNETPP: Final = Architecture(
    name="pits-unetpp",
    kind="segmenter",
    summary="U-Net++ of corrosion particles on EfficientNet-B0, state dict; one grey channel / 255 (rust-edge[library])",
    build=functools.partial(_build_unetpp, "timm-efficientnet-b0"),
    classes=("background", "particle"),
    activation="sigmoid",
    tile=(224, 224),
    normalisation=UNIT,
    pixel_threshold=0.5,
)
