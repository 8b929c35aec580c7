"""What a checkpoint file holds, whatever framework wrote it."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from export.errors import ExportError
from export.networks.grey_input import Normalisation
from export.networks.state_shapes import StateDict

PREFERRED_ANSWERS = ("out", "logits", "scores", "masks")
"""Entries of a dict answer that are the scores. Source: torchvision (`out`), transformers (`logits`)."""


@dataclass(frozen=True, slots=True)
class Hints:
    """What the file itself says of its network; None: it does not say.

    classes: names in index order. tile: height and width of the input.
    normalisation: in grey levels, 0 to 255, as many channels as the network takes.
    """

    classes: tuple[str, ...] | None = None
    tile: tuple[int, int] | None = None
    normalisation: Normalisation | None = None


@dataclass(frozen=True, slots=True)
class StateContent:
    """Weights by name, floating-point ones as float32; found_at: the key that they stood under, empty: the file itself."""

    state: StateDict
    found_at: str = ""


@dataclass(frozen=True, slots=True)
class ModuleContent:
    """A network of torch in evaluation mode: float32 (n, c, h, w) -> one tensor of scores."""

    module: nn.Module

    @property
    def state(self) -> StateDict:
        """Its weights by name."""
        network = self.module.network if isinstance(self.module, OneAnswer) else self.module
        return dict(network.state_dict())


@dataclass(frozen=True, slots=True)
class KerasContent:
    """A network of Keras; None: the file holds weights alone, for an architecture to load."""

    model: Any | None


@dataclass(frozen=True, slots=True)
class OnnxContent:
    """A graph as its file holds it, weights loaded."""

    model: onnx.ModelProto


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A file's content and where it came from."""

    origin: str
    sha256: str
    content: StateContent | ModuleContent | KerasContent | OnnxContent
    hints: Hints = Hints()

    @property
    def state(self) -> StateDict:
        """The weights by name, of a state dict or a module. Raises ExportError."""
        if isinstance(self.content, StateContent | ModuleContent):
            return self.content.state
        held = "a Keras network" if isinstance(self.content, KerasContent) else "an ONNX graph"
        raise ExportError(f"{self.origin}: holds {held}, expected weights of PyTorch; take another --arch")


class OneAnswer(nn.Module):
    """A network that answers one tensor: of a dict `out`, `logits` or the only entry, of a tuple the only one."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Scores of float images."""
        answer = self.network(image)
        if isinstance(answer, Tensor):
            return answer
        entries = {str(key): value for key, value in answer.items()} if isinstance(answer, Mapping) else {}
        for key in PREFERRED_ANSWERS:
            if isinstance(named := entries.get(key), Tensor):
                return named
        tensors = [value for value in entries.values() or _sequence(answer) if isinstance(value, Tensor)]
        if len(tensors) != 1:
            held = f"a dict with {', '.join(entries) or 'nothing'}" if isinstance(answer, Mapping) else f"{len(tensors)} tensors"
            raise ExportError(f"the network answers {held}; expected one tensor of scores, or a dict with 'out'")
        return tensors[0]


def checkpoint_of(network: nn.Module, origin: str) -> Checkpoint:
    """A checkpoint of a network in memory; its hash is that of the state dict as torch saves it."""
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    return Checkpoint(origin, hashlib.sha256(buffer.getvalue()).hexdigest(), StateContent(network.state_dict()))


def _sequence(answer: object) -> list[object]:
    return list(answer) if isinstance(answer, list | tuple) else []
