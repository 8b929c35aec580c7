"""Files of safetensors: names, shapes and bytes, and nothing that could run."""

from __future__ import annotations

from pathlib import Path

from export.checkpoints.checkpoint import Hints, StateContent
from export.checkpoints.hints import hints_of
from export.checkpoints.weights import find_state
from export.errors import ExportError


def read_safetensors(path: Path) -> tuple[StateContent, Hints]:
    """Read a state dict. Raises ExportError."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ExportError(f"{path}: is a safetensors file, which safetensors reads: pip install 'rust-edge[export]'") from error
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError, RuntimeError, MemoryError) as error:
        raise ExportError(f"{path}: damaged safetensors file ({error}); copy it again") from error
    if not state:
        raise ExportError(f"{path}: holds no weights; expected a state dict")
    found, key = find_state(state, str(path))
    return StateContent(found, key), hints_of(metadata)
