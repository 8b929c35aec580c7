"""A Keras graph as torch runs it: one step after the other, channels first."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from export.networks.padded_windows import Pads

Shape = tuple[int, ...]
Floats = npt.NDArray[np.float32]

NO_PADS: Pads = (0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Signal:
    """A tensor of the graph while it is translated.

    shape: without the batch, as Keras has it: (h, w, c) for what torch holds as (n, c, h, w), or (features,).
    flattened: the (h, w, c) that features came from; torch holds them channels first, Keras channels last.
    pads: zeros that belong around it, not put there yet: a convolution that follows pads by itself.
    nonnegative: no value is below zero.
    weighted: the module that computed it, where what follows may be folded into its weights.
    """

    slot: int
    shape: Shape
    flattened: tuple[int, int, int] | None = None
    pads: Pads = NO_PADS
    nonnegative: bool = False
    weighted: str | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """A call of a module: slots of what it reads, slot of what it gives."""

    module: str
    inputs: tuple[int, ...]
    output: int


class KerasNetwork(nn.Module):
    """A translated Keras model: float32 (n, c, h, w) -> logits, (n, k, h, w) or (n, k).

    final_activation: what the Keras model applies to the logits, `softmax`, `sigmoid` or nothing. Modules are named after
    Keras's layers.
    """

    def __init__(self, modules: dict[str, nn.Module], steps: Sequence[Step], final_activation: str | None) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self._steps = tuple(steps)
        self._last_use = {slot: index for index, step in enumerate(steps) for slot in step.inputs}
        self.final_activation = final_activation

    def forward(self, image: Tensor) -> Tensor:
        """Logits of images."""
        values, slot = {0: image}, 0
        for index, step in enumerate(self._steps):
            slot = step.output
            values[slot] = self._modules[step.module](*[values[source] for source in step.inputs])  # type: ignore[misc]
            for source in step.inputs:
                if self._last_use[source] == index:
                    values.pop(source, None)
        return values[slot]


class GraphWriter:
    """The steps written so far, and the modules that they call."""

    def __init__(self, image: Shape) -> None:
        self.image = Signal(0, image)
        self._slots = 1
        self._modules: dict[str, nn.Module] = {}
        self._steps: list[Step] = []
        self._shared: dict[int, str] = {}

    def add(self, name: str, module: nn.Module, inputs: Sequence[Signal], shape: Shape, nonnegative: bool = False) -> Signal:
        """One more step behind `inputs`, which must not have pads waiting; what it gives has the shape."""
        chosen, number = _module_name(name), 1
        while chosen in self._modules:
            number += 1
            chosen = f"{_module_name(name)}_{number}"
        self._modules[chosen] = module
        return self._call(chosen, inputs, shape, nonnegative)

    def add_layer(
        self, layer: Any, build: Callable[[], nn.Module], inputs: Sequence[Signal], shape: Shape, weighted: bool = False
    ) -> Signal:
        """As `add`, for a layer with weights: called several times, it has one module."""
        if id(layer) in self._shared:
            return self._call(self._shared[id(layer)], inputs, shape, False)
        signal = self.add(layer.name, build(), inputs, shape)
        name = self._steps[-1].module
        self._shared[id(layer)] = name
        return replace(signal, weighted=name if weighted else None)

    def module(self, name: str) -> nn.Module:
        """A module by the name that a signal has."""
        return self._modules[name]

    def plain(self, x: Signal) -> Signal:
        """The signal with its values in Keras's order and its padding put around it."""
        if x.flattened:
            return self.add("channels_last", FlattenChannelsLast(x.flattened), [x], x.shape, x.nonnegative)
        if any(x.pads):
            top, left, bottom, right = x.pads
            height, width, channels = x.shape
            shape = (height + top + bottom, width + left + right, channels)
            return self.add("pad", nn.ZeroPad2d((left, right, top, bottom)), [x], shape, x.nonnegative)
        return x

    def finish(self, output: Signal) -> KerasNetwork:
        """The network that ends at `output`: without its last activation, which is told apart, and without what nothing reads."""
        slot, activation = output.slot, None
        producers = {step.output: step for step in self._steps}
        if slot in producers:
            last = self._modules[producers[slot].module]
            activation = {nn.Sigmoid: "sigmoid", nn.Softmax: "softmax"}.get(type(last))
            slot = producers[slot].inputs[0] if activation else slot
        steps = _needed(self._steps, slot)
        called = {step.module for step in steps}
        return KerasNetwork({n: m for n, m in self._modules.items() if n in called}, steps, activation).eval()

    def _call(self, name: str, inputs: Sequence[Signal], shape: Shape, nonnegative: bool) -> Signal:
        self._steps.append(Step(name, tuple(signal.slot for signal in inputs), self._slots))
        self._slots += 1
        return Signal(self._slots - 1, shape, nonnegative=nonnegative)


class FlattenChannelsLast(nn.Module):
    """(n, c, h, w), flattened or not, as features in Keras's order, (h, w, c)."""

    def __init__(self, size: tuple[int, int, int]) -> None:
        super().__init__()
        self._size = size

    def forward(self, values: Tensor) -> Tensor:
        """(n, features)."""
        height, width, channels = self._size
        return values.reshape(-1, channels, height, width).permute(0, 2, 3, 1).flatten(1)


class Unflatten(nn.Module):
    """Features as images (n, c, h, w). channels_last: the features are in Keras's order, (h, w, c)."""

    def __init__(self, size: tuple[int, int, int], channels_last: bool) -> None:
        super().__init__()
        self._size, self._channels_last = size, channels_last

    def forward(self, values: Tensor) -> Tensor:
        """(n, c, h, w)."""
        height, width, channels = self._size
        if self._channels_last:
            return values.reshape(-1, height, width, channels).permute(0, 3, 1, 2)
        return values.reshape(-1, channels, height, width)


class Affine(nn.Module):
    """values * scale + shift; arrays are one value per channel or feature."""

    def __init__(self, scale: Floats, shift: Floats, rank: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.from_numpy(_per_channel(scale, rank)))
        self.register_buffer("shift", torch.from_numpy(_per_channel(shift, rank)))
        self._scales, self._shifts = bool(np.any(scale != 1)), bool(np.any(shift != 0))

    def forward(self, values: Tensor) -> Tensor:
        """Of the same shape."""
        scaled = values * self.get_buffer("scale") if self._scales else values
        return scaled + self.get_buffer("shift") if self._shifts else scaled


class Merge(nn.Module):
    """Several tensors as one, left to right."""

    def __init__(self, operation: Callable[[Tensor, Tensor], Tensor], divisor: int = 1) -> None:
        super().__init__()
        self._operation, self._divisor = operation, divisor

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        """Of the shape that they broadcast to."""
        for other in others:
            first = self._operation(first, other)
        return first if self._divisor == 1 else first * (1.0 / self._divisor)


class Concatenate(nn.Module):
    """Several tensors beside each other along an axis."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self._axis = axis

    def forward(self, *values: Tensor) -> Tensor:
        """Joined."""
        return torch.cat(values, dim=self._axis)


class GlobalPool(nn.Module):
    """The mean or the highest value of each channel. keep: as (n, c, 1, 1) rather than (n, c)."""

    def __init__(self, highest: bool, keep: bool) -> None:
        super().__init__()
        self._highest, self._keep = highest, keep

    def forward(self, image: Tensor) -> Tensor:
        """Of images (n, c, h, w)."""
        pool = functional.adaptive_max_pool2d if self._highest else functional.adaptive_avg_pool2d
        pooled: Tensor = pool(image, 1)
        return pooled if self._keep else pooled.flatten(1)


class Crop(nn.Module):
    """Images less rows and columns at their ends: top, left, bottom, right."""

    def __init__(self, crops: Pads) -> None:
        super().__init__()
        self._crops = crops

    def forward(self, image: Tensor) -> Tensor:
        """Smaller images."""
        top, left, bottom, right = self._crops
        return image[:, :, top : -bottom or None, left : -right or None]


class Elementwise(nn.Module):
    """A function of each value by itself."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._function = function

    def forward(self, values: Tensor) -> Tensor:
        """Of the same shape."""
        return self._function(values)


def features(shape: Shape) -> int:
    """Values of one image."""
    return math.prod(shape)


def _per_channel(values: Floats, rank: int) -> Floats:
    flat = np.asarray(values, np.float32).reshape(-1)
    return flat.reshape(-1, 1, 1) if rank == 3 else flat


def _needed(steps: Sequence[Step], output: int) -> list[Step]:
    wanted, needed = {output}, []
    for step in reversed(steps):
        if step.output in wanted:
            needed.append(step)
            wanted.update(step.inputs)
    return needed[::-1]


def _module_name(layer: str) -> str:
    """A layer's name as torch allows it for a module; names that every torch module has of its own get a mark."""
    name = re.sub(r"\W", "_", layer)
    return (
        f"{name}_layer"
        if hasattr(KerasNetwork, name) or name in ("_steps", "_last_use", "final_activation", "training")
        else name
    )
