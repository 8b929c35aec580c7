"""Shapes of a state dict's weights, from which a network's widths and numbers of classes follow."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from export.errors import ExportError

StateDict = Mapping[str, Tensor]

_KINDS = {2: "a dense layer", 4: "a convolution"}


def shape_at(state: StateDict, name: str, *axes: int) -> tuple[int, ...]:
    """Shape of the weights of a convolution (4 axes: out, in, h, w) or a dense layer (2: out, in). Raises ExportError."""
    weight = state.get(name)
    if weight is None or weight.ndim not in axes:
        got = "nothing" if weight is None else f"shape {tuple(weight.shape)}"
        expected = " or ".join(_KINDS[count] for count in axes)
        raise ExportError(f"checkpoint holds {got} at {name}, expected the weights of {expected}")
    return tuple(weight.shape)
