"""The networks as torch modules: the shipped one with the engine file's own weights, and the seed systems' for their speed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from edge.sessions.ort import OrtSession
from export.errors import ExportError
from export.networks.pits_unet import PitsUNet
from export.networks.unet import ConvBlock, SteelUNet

AGREE = 1e-4
"""Largest difference of a score, as a share of their spread, that the order of float additions explains."""


def steel_unet(engine: Path) -> SteelUNet:
    """The network of a float engine file, normalisations folded as there. Raises ExportError where it is another one."""
    model = onnx.load(engine)
    weights = {item.name: torch.from_numpy(np.array(onnx.numpy_helper.to_array(item))) for item in model.graph.initializer}
    try:
        widths = [
            int(weights[f"{layer}.weight"].shape[0]) for layer in ("stem.0", "encoder_4.0.0", "encoder_8.0.0", "encoder_16.0.0")
        ]
        network = SteelUNet(int(weights["head.weight"].shape[0]) // 4, (widths[0], widths[1], widths[2], widths[3]))
        for block in [module for module in network.modules() if isinstance(module, ConvBlock)]:
            first = block[0]
            block[0] = nn.Conv2d(first.in_channels, first.out_channels, first.kernel_size, first.stride, first.padding, bias=True)
            block[1] = nn.Identity()
        network.load_state_dict({name: weights[name] for name in network.state_dict()})
    except (KeyError, RuntimeError) as error:
        raise ExportError(
            f"{engine}: its weights are not those of SteelUNet ({error}); name the bundle of a SteelUNet"
        ) from error
    network.eval()
    difference = _difference(network, engine)
    if not difference <= AGREE:
        raise ExportError(
            f"{engine}: torch answers otherwise than the engine file: scores differ by {difference:.2%} of their spread, "
            f"expected at most {AGREE:.2%}: SteelUNet has changed since it was exported; export the bundle again"
        )
    return network


def seed_unet() -> PitsUNet:
    """The seed systems' own U-Net, 64-128-256-512 and 1024 at the bottom. Random weights: its speed is all that is asked."""
    torch.manual_seed(0)
    return PitsUNet(classes=1, channels=1, width=64).eval()


def prototype_unet() -> PitsUNet:
    """A U-Net of base width 16, 16-32-64-128 and 256 at the bottom, 4 classes. Random weights: its speed is all that is asked."""
    torch.manual_seed(0)
    return PitsUNet(classes=4, channels=1, width=16).eval()


def _difference(network: nn.Module, engine: Path) -> float:
    tile = np.random.default_rng(0).integers(0, 256, (1, 1, 64, 96), dtype=np.uint8)
    with OrtSession(engine, 1) as session, torch.inference_mode():
        expected = session.infer(tile)
        got = network(torch.from_numpy(tile)).numpy()
    return float(np.abs(got - expected).max() / np.ptp(expected))
