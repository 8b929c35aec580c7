"""State dicts: found in what training scripts save, freed of the wrappers' prefixes, in float32, and checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import torch
from torch import Tensor, nn

from export.checkpoints.kinds import LARGEST_BYTES
from export.errors import ExportError
from export.networks.state_shapes import StateDict

AVERAGED: Final = ("state_dict_ema", "model_ema", "ema_state_dict", "params_ema", "ema_model", "ema")
"""Keys of weights averaged over the training. They come first: they are what the scripts that keep them judge by.

Source: timm (`state_dict_ema`, taken by default), BasicSR (`params_ema`), Ultralytics (`ema`)."""

PLAIN: Final = ("model_state_dict", "state_dict", "model", "model_state", "net", "network", "weights", "params", "module")
"""Keys under which training scripts keep the state dict, in the order they are looked for."""

_INNER: Final = ("state_dict", "model_state_dict", "shadow", "module", "model")
_COUNTERS: Final = frozenset(("n_averaged", "initted", "step", "num_updates"))
"""What wrappers keep beside the network's own weights: updates counted by torch's AveragedModel and ema-pytorch."""

_COMPILED: Final = "_orig_mod."
"""What torch.compile puts into the names of what it compiled, anywhere."""

_WRAPPER: Final = "module."
"""What DataParallel and averaged models put before every name."""

_QUANTIZED: Final = (torch.qint8, torch.quint8, torch.qint32)


def find_modules(document: object) -> Iterator[nn.Module]:
    """Networks in a loaded file, itself or under the keys of scripts."""
    if isinstance(document, nn.Module):
        yield document
    elif isinstance(document, Mapping):
        yield from (document[key] for key in (*AVERAGED, *PLAIN) if isinstance(document.get(key), nn.Module))


def find_state(document: object, origin: str) -> tuple[StateDict, str]:
    """The state dict in a loaded file and the key it stood under, empty where it is the file itself. Raises ExportError."""
    if not isinstance(document, Mapping):
        raise ExportError(f"{origin}: holds {type(document).__name__}; {_expected()}")
    for key in AVERAGED:
        averaged = _at(document, key)
        if averaged is not None:
            # averages are often kept of the parameters alone: the statistics of batch normalisation are the network's own
            own = next((found for name in PLAIN if (found := _at(document, name)) is not None), {})
            whole = own | averaged if averaged.keys() < own.keys() else averaged
            return sound_state(whole, origin), key
    for key in PLAIN:
        state = _at(document, key)
        if state is not None:
            return sound_state(state, origin), key
    state = _as_state(document)
    if state is None:
        got = f"a dict with {', '.join(map(str, list(document)[:6]))}" if document else "a dict with nothing in it"
        raise ExportError(f"{origin}: holds {got}; {_expected()}")
    return sound_state(_unwrapped(state), origin), ""


def sound_state(state: Mapping[str, Tensor], origin: str) -> StateDict:
    """Dense weights on the processor, floating-point ones as float32. Raises ExportError where one is no finite number."""
    claimed = sum(value.numel() * max(4, value.element_size()) for value in state.values())
    if claimed > LARGEST_BYTES:
        raise ExportError(f"{origin}: its weights claim {claimed >> 30} GiB; expected at most {LARGEST_BYTES >> 30}")
    sound = {name: _plain(name, value, origin) for name, value in state.items()}
    check_finite(sound, origin)
    return sound


def check_finite(state: StateDict, origin: str) -> None:
    """Raise ExportError naming the first weights that hold NaN or infinity."""
    for name, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ExportError(f"{origin}: {name} holds values that are no finite numbers; expected trained weights")


def _plain(name: str, value: Tensor, origin: str) -> Tensor:
    if value.is_quantized or value.dtype in _QUANTIZED:
        raise ExportError(f"{origin}: {name} is quantized ({value.dtype}); export from the float network it was made of")
    if value.is_complex() or value.is_meta:
        raise ExportError(f"{origin}: {name} is {'complex' if value.is_complex() else 'without values'}; expected weights")
    value = value.detach()
    dense = value if value.layout is torch.strided else value.to_dense()
    return dense.float() if dense.is_floating_point() else dense


def _at(document: Mapping[object, object], key: str) -> dict[str, Tensor] | None:
    inner = document.get(key)
    state = _as_state(inner)
    if state is None and isinstance(inner, Mapping):
        state = next((found for name in _INNER if (found := _as_state(inner.get(name))) is not None), None)
    return None if state is None else _unwrapped(state)


def _as_state(document: object) -> dict[str, Tensor] | None:
    """A dict of tensors alone; modules may have put a state of their own beside them (`..._extra_state`)."""
    if not isinstance(document, Mapping):
        return None
    named = {str(name): value for name, value in document.items() if not str(name).endswith("_extra_state")}
    tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    return tensors if tensors and len(tensors) == len(named) else None


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    state = {name.replace(_COMPILED, ""): value for name, value in state.items()}
    weights = {name: value for name, value in state.items() if name not in _COUNTERS}
    if weights and all(name.startswith(_WRAPPER) for name in weights):
        return _unwrapped({name.removeprefix(_WRAPPER): value for name, value in weights.items()})
    return state


def _expected() -> str:
    return f"expected a state dict, or one under {', '.join(PLAIN)} or {', '.join(AVERAGED[:3])}"
