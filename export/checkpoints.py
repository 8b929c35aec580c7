"""Checkpoint files: read without running anything they hold, and loaded into a network that fits."""

from __future__ import annotations

import hashlib
import io
import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from export.errors import ExportError
from export.networks import ARCHITECTURES, Architecture, StateDict

NESTED = ("model_state_dict", "state_dict", "model")
"""Keys under which training scripts keep the state dict, in the order they are looked for."""

WRAPPER = "module."
"""What DataParallel and averaged models put before every name."""

SHOWN = 3
"""Layers that an error names."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A state dict and the file it came from."""

    origin: str
    sha256: str
    state: StateDict


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a `.pt` or `.pth`: a state dict, or a dict that holds one. Only tensors and plain values are unpickled.

    Raises ExportError.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ExportError(f"{path}: cannot be read ({error.strerror}); expected a PyTorch checkpoint") from error
    try:
        document = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ExportError(
            f"{path}: is no state dict: it asks for code to be run when it is loaded, or is no checkpoint at all; "
            f"expected a file of torch.save(model.state_dict(), ...) ({_first_line(error)})"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError, OSError) as error:
        raise ExportError(f"{path}: damaged or no PyTorch checkpoint ({_first_line(error)}); copy it again") from error
    return Checkpoint(str(path), hashlib.sha256(content).hexdigest(), _unwrap(_find_state(document, path)))


def checkpoint_of(network: nn.Module, origin: str) -> Checkpoint:
    """A checkpoint of a network in memory; its hash is that of the state dict as torch saves it."""
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    return Checkpoint(origin, hashlib.sha256(buffer.getvalue()).hexdigest(), network.state_dict())


def load_network(checkpoint: Checkpoint, architecture: Architecture) -> nn.Module:
    """The network with the checkpoint's weights, in evaluation mode. Raises ExportError naming the first layers that differ."""
    network = _try_build(checkpoint, architecture)
    faults = _differences(network, checkpoint.state)
    if faults:
        shown = "; ".join(faults[:SHOWN]) + (f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else "")
        raise ExportError(f"{checkpoint.origin}: does not fit {architecture.name}: {shown}; {_suggest(checkpoint)}")
    network.load_state_dict(dict(checkpoint.state))
    broken = [name for name, value in checkpoint.state.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if broken:
        raise ExportError(f"{checkpoint.origin}: {broken[0]} holds values that are no finite numbers; expected trained weights")
    return network.float().eval()


def _find_state(document: object, path: Path) -> dict[str, Tensor]:
    candidates = [document]
    if isinstance(document, dict):
        candidates = [document[key] for key in NESTED if isinstance(document.get(key), dict)] + candidates
    for candidate in candidates:
        if isinstance(candidate, dict) and candidate and all(isinstance(value, Tensor) for value in candidate.values()):
            return {str(name): value for name, value in candidate.items()}
    got = f"a dict with {', '.join(map(str, list(document)[:6]))}" if isinstance(document, dict) else type(document).__name__
    raise ExportError(f"{path}: holds {got or 'nothing'}; expected a state dict, or one under {', '.join(NESTED)}")


def _unwrap(state: dict[str, Tensor]) -> dict[str, Tensor]:
    if not any(name.startswith(WRAPPER) for name in state):
        return state
    # AveragedModel counts its updates beside the wrapped network: not one of its weights
    return {name.removeprefix(WRAPPER): value for name, value in state.items() if name != "n_averaged"}


def _try_build(checkpoint: Checkpoint, architecture: Architecture) -> nn.Module:
    try:
        return architecture.build(checkpoint.state)
    except ExportError as error:
        raise ExportError(f"{checkpoint.origin}: does not fit {architecture.name}: {error}; {_suggest(checkpoint)}") from error


def _differences(network: nn.Module, state: StateDict) -> list[str]:
    expected = network.state_dict()
    faults = []
    for name, value in expected.items():
        if name not in state:
            faults.append(f"{name} is missing, expected {tuple(value.shape)}")
        elif state[name].shape != value.shape:
            faults.append(f"{name} is {tuple(state[name].shape)}, expected {tuple(value.shape)}")
    return faults + [f"{name} {tuple(state[name].shape)} is not of this network" for name in state if name not in expected]


def _suggest(checkpoint: Checkpoint) -> str:
    fitting = []
    for name, architecture in ARCHITECTURES.items():
        try:
            if not _differences(architecture.build(checkpoint.state), checkpoint.state):
                fitting.append(name)
        except ExportError:
            continue
    return f"it would fit --arch {' or '.join(fitting)}" if fitting else f"it fits none of {', '.join(ARCHITECTURES)}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
