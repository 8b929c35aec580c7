"""What is known of a network that `rust-edge export` can rebuild."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

from torch import nn

from edge.manifest import TileStep
from export.networks.grey_input import Normalisation
from export.networks.state_shapes import StateDict


@dataclass(frozen=True, slots=True)
class Architecture:
    """What a checkpoint's network is, and what it was trained to be fed.

    framework: whose checkpoints it reads; `any` stands for whatever network the file itself holds.
    build(state): torch's network with the widths and the number of classes that the state dict has; it need not fit.
    build_keras(keras, outputs): the same in Keras, where `keras` is Keras 3 or TF-Keras 2, the module itself.
    classes: names in index order, the background or clean steel first; empty: the checkpoint or `--classes` has to say.
    stride: multiple that the input's height and width must be; 0: measured.
    tile: height and width of the engine's input; of one that streams or runs in slabs, of a core without its halo.
    reduce: strip pixels per input pixel, averaged.
    cell: of a classifier that scores a map, input pixels per row and column of it; None: one answer a tile, or scores per pixel.
    normalisation: None: part of the network itself.
    preparation, strip_tile, pixel_threshold: as in the manifest.
    gate_threshold: of a classifier whose system fixes it; None: chosen by recall.
    """

    name: str
    kind: Literal["segmenter", "classifier"]
    summary: str
    classes: tuple[str, ...]
    activation: Literal["softmax", "sigmoid"]
    tile: tuple[int, int]
    framework: Literal["torch", "keras", "any"] = "torch"
    build: Callable[[StateDict], nn.Module] | None = None
    build_keras: Callable[[ModuleType, int], Any] | None = None
    stride: int = 0
    reduce: int = 1
    cell: int | None = None
    normalisation: Normalisation | None = None
    preparation: tuple[TileStep, ...] = ()
    strip_tile: tuple[int, int] | None = None
    pixel_threshold: float = 0.5
    gate_threshold: float | None = None
