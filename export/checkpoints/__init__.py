"""Checkpoint files of every framework: recognised by what they hold, read without running code of theirs."""

from __future__ import annotations

from export.checkpoints.checkpoint import (
    Checkpoint,
    Hints,
    KerasContent,
    ModuleContent,
    OnnxContent,
    StateContent,
    checkpoint_of,
)
from export.checkpoints.fit import load_network
from export.checkpoints.reading import read_checkpoint

__all__ = [
    "Checkpoint",
    "Hints",
    "KerasContent",
    "ModuleContent",
    "OnnxContent",
    "StateContent",
    "checkpoint_of",
    "load_network",
    "read_checkpoint",
]
