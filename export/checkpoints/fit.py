"""A state dict against architectures: loaded where it fits; where not, what differs and which ones would fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from torch import nn

from export.checkpoints.checkpoint import Checkpoint
from export.checkpoints.weights import check_finite
from export.errors import ExportError
from export.networks import ARCHITECTURES, Architecture, StateDict

SHOWN: Final = 3
"""Layers that an error names."""

_NESTS: Final = 6
"""Submodules of a training class that are looked at for the network, most weights first."""

_COUNTER: Final = "num_batches_tracked"
"""Of batch normalisation, unused in inference; state dicts of older torch have none."""


def load_network(checkpoint: Checkpoint, architecture: Architecture) -> nn.Module:
    """The network with the checkpoint's weights, in evaluation mode. Raises ExportError naming the first layers that differ."""
    state = checkpoint.state
    if architecture.build is None:
        raise ExportError(
            f"{checkpoint.origin}: holds weights of PyTorch alone, and --arch {architecture.name} builds no network from them"
            f"; {_suggestion(state)}"
        )
    faults: list[str] | None = None
    unbuilt: ExportError | None = None
    for variant in _variants(state):
        try:
            network = architecture.build(variant)
        except ExportError as error:
            unbuilt = unbuilt or error
            continue
        found = differences(network, variant)
        if not found:
            check_finite(variant, checkpoint.origin)
            network.load_state_dict(_complete(network, variant))
            return network.float().eval()
        faults = found if faults is None or len(found) < len(faults) else faults
    reason = _shown(faults) if faults is not None else str(unbuilt)
    raise ExportError(f"{checkpoint.origin}: does not fit {architecture.name}: {reason}; {_suggestion(state)}") from unbuilt


def differences(network: nn.Module, state: StateDict) -> list[str]:
    """How a state dict differs from a network's own, in the network's order."""
    expected = network.state_dict()
    faults = []
    for name, value in expected.items():
        if name not in state:
            if not name.endswith(_COUNTER):
                faults.append(f"{name} is missing, expected {tuple(value.shape)}")
        elif state[name].shape != value.shape:
            faults.append(f"{name} is {tuple(state[name].shape)}, expected {tuple(value.shape)}")
    return faults + [f"{name} {tuple(state[name].shape)} is not of this network" for name in state if name not in expected]


def fitting_architectures(state: StateDict) -> list[str]:
    """Names of the architectures that the state dict fits."""
    return [name for name, architecture in ARCHITECTURES.items() if any(_fits(architecture, v) for v in _variants(state))]


def _fits(architecture: Architecture, state: StateDict) -> bool:
    if architecture.build is None:
        return False
    try:
        return not differences(architecture.build(state), state)
    except ExportError:
        return False


def _variants(state: StateDict) -> Iterator[StateDict]:
    """The weights as they are, then those of one submodule: training classes keep the network as `model`, beside losses."""
    yield state
    nests = Counter(name.partition(".")[0] for name in state if "." in name)
    for nest, _ in nests.most_common(_NESTS):
        yield {name.partition(".")[2]: value for name, value in state.items() if name.startswith(f"{nest}.")}


def _complete(network: nn.Module, state: StateDict) -> dict[str, object]:
    counters = {name: value for name, value in network.state_dict().items() if name.endswith(_COUNTER)}
    return {**counters, **state}


def _shown(faults: list[str]) -> str:
    return "; ".join(faults[:SHOWN]) + (f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else "")


def _suggestion(state: StateDict) -> str:
    fitting = fitting_architectures(state)
    return (
        f"it would fit --arch {' or '.join(fitting)}"
        if fitting
        else f"it fits none of {', '.join(name for name, known in ARCHITECTURES.items() if known.build)}"
    )
