"""What INT8 does to a torch network, simulated while it is trained: rounding wherever the exported file has a Q.

The places are read off the Q/DQ file itself and found again in the network by value: the call of a torch function that computes
the same numbers as a tensor of the graph is that tensor. So a network needs no form of its own: what its `forward` does with
functions is found as what it does with modules, and its parameters keep their names.

Batch normalisation stays where it is, its statistics frozen, and still the weights become the integers that the exporter makes
of the folded ones: those have a scale per output channel, and it takes up whatever factor a channel is multiplied by.

Source: Jacob et al., arXiv:1712.05877 (rounding simulated in training); Bengio et al., arXiv:1308.3432 (straight-through
gradients); Esser et al., arXiv:1902.08153 (limits trained with the weights).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from edge.sessions import Batch
from export.errors import ExportError
from export.quantize import float_name

_INT8_MAX = 127
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
_SAMPLES = 1024
"""Values by which a tensor is recognised, spread evenly over it."""
_ALIKE = 1e-3
"""Share of its largest sample by which a tensor may differ between ONNX Runtime and torch: another order of summation gives some
1e-6, to which every layer adds its own."""
_TENSORS_AT_ONCE = 32
"""Tensors of the graph that are kept in memory together; the graph is run anew for the next ones."""

_Place = tuple[int, int]
"""A call of a torch function, counted from the beginning of `forward`, and which of the tensors that it returns."""

_aten = torch.ops.aten
_WEIGHTED: dict[Any, int] = {
    functional.conv2d: 0,
    functional.conv_transpose2d: 1,
    functional.linear: 0,
    _aten.conv2d.default: 0,
    _aten.conv_transpose2d.input: 1,
    _aten.linear.default: 0,
}
"""Functions that have weights, and the axis on which the weight has its output channels."""
_NORMALISING: dict[Any, tuple[str, ...]] = {
    functional.batch_norm: ("input", "running_mean", "running_var", "weight", "bias"),
    _aten.batch_norm.default: ("input", "weight", "bias", "running_mean", "running_var"),
}
"""Functions that the exporter folds into the convolution before them, and their first arguments."""
_PARAMETERS: dict[Any, tuple[str, ...]] = {**dict.fromkeys(_WEIGHTED, ("input", "weight", "bias")), **_NORMALISING}


@dataclass(frozen=True, slots=True)
class Weighting:
    """A convolution with int8 weights: the name of its output, and the largest of its integers."""

    output: str
    largest: int


@dataclass(frozen=True, slots=True)
class Places:
    """Where a Q/DQ file rounds.

    groups: name of the scale by tensor that has a Q; tensors may share one. limits: what int8 ends at by that name, 127 scales.
    """

    groups: dict[str, str]
    limits: dict[str, float]
    weightings: tuple[Weighting, ...]


def read_places(quantized: onnx.ModelProto) -> Places:
    """The places of a file written by `export.quantize.quantize`."""
    constants = {i.name: i for i in quantized.graph.initializer}
    producers = {output: node for node in quantized.graph.node for output in node.output}
    groups: dict[str, str] = {}
    limits: dict[str, float] = {}
    weightings = []
    for node in quantized.graph.node:
        if node.op_type == "QuantizeLinear":
            maker = producers.get(node.input[0])
            if maker is not None and maker.op_type == "DequantizeLinear":
                continue  # an input of a Concat brought to its scale: that is what the Q behind the Concat does
            groups[float_name(node.input[0])] = node.input[1]
            limits[node.input[1]] = float(numpy_helper.to_array(constants[node.input[1]])) * _INT8_MAX
            continue
        source = producers.get(node.input[1]) if len(node.input) > 1 else None
        if source is not None and source.op_type == "DequantizeLinear" and source.input[0] in constants:
            integers = numpy_helper.to_array(constants[source.input[0]]).astype(np.int64)
            # the largest weight of every channel becomes the largest integer
            weightings.append(Weighting(float_name(node.output[0]), int(np.abs(integers).max())))
    return Places(groups, limits, tuple(weightings))


def round_activation(values: Tensor, limit: Tensor) -> Tensor:
    """Values as int8 with the scale limit / 127 holds them, beyond the limit the last one.

    Gradients pass through the rounding, and none beyond the limit; the limit has one itself.
    """
    scale = limit / _INT8_MAX
    steps = (values / scale).clamp(-_INT8_MAX - 1, _INT8_MAX)
    rounded: Tensor = (steps + (steps.round() - steps).detach()) * scale
    return rounded


def round_weight(weight: Tensor, largest: int, axis: int = 0) -> Tensor:
    """Weights as integers within +-largest, one scale per output channel, hold them; gradients pass through.

    The integers are those of `export.quantize.quantize_weight`. axis: of the output channels.
    """
    others = [index for index in range(weight.ndim) if index != axis]
    scale = weight.detach().abs().amax(dim=others, keepdim=True) / largest
    scale = torch.where(scale >= _SMALLEST_SCALE, scale, torch.ones_like(scale))
    rounded: Tensor = weight + ((weight / scale).round().clamp(-largest, largest) * scale - weight).detach()
    return rounded


class SimulatedInt8(nn.Module):
    """A network that answers as its INT8 engine would; its weights, biases and limits can be trained.

    What is trained are shares: of a channel's largest weight, of the spread of a channel's values. One rate then fits channels
    of all sizes, the ones that make a network fragile among them. The network itself stays as it is until `write_back`.

    network: uint8 (n, 1, h, w) -> logits, in evaluation mode.
    float_model, quantized: its graph, and the Q/DQ file made of that; tiles: uint8 of their size, by which places are found.
    trainable: tensors whose limits are trained; the other limits stay, such as an image's.
    Raises ExportError where the network does not show where the file rounds.
    """

    def __init__(
        self,
        network: nn.Module,
        float_model: onnx.ModelProto,
        quantized: onnx.ModelProto,
        tiles: Batch,
        trainable: Collection[str],
    ) -> None:
        super().__init__()
        self.network = network
        places = read_places(quantized)
        recording = _record(network, tiles)
        wanted = {*places.groups, *(weighting.output for weighting in places.weightings)}
        found = recording.locate(_graph_samples(float_model, sorted(wanted), tiles))
        names = list(places.limits)
        self._limit_of = {tensor: names.index(group) for tensor, group in places.groups.items()}
        self._rounded_at = {found[tensor]: index for tensor, index in self._limit_of.items()}
        self._largest = {recording.convolution(found[w.output], w.output): w.largest for w in places.weightings}
        moving = {self._limit_of[tensor] for tensor in trainable if tensor in self._limit_of}
        # logarithms: a step of training changes a limit by a share of itself
        self.log_limits = nn.ParameterList(
            nn.Parameter(torch.tensor(math.log(places.limits[name])), requires_grad=index in moving)
            for index, name in enumerate(names)
        )
        units = recording.units()
        self._trained = [parameter for parameter, _ in units]
        self._share_of = {id(parameter): index for index, parameter in enumerate(self._trained)}
        self._units = nn.ParameterList(nn.Parameter(unit, requires_grad=False) for _, unit in units)
        self.shares = nn.ParameterList(nn.Parameter(parameter.detach() / unit) for parameter, unit in units)

    def forward(self, image: Tensor) -> Tensor:
        """Scores as the INT8 engine gives them."""
        with _Simulation(self.arguments, self.rounded):
            scores: Tensor = self.network(image)
        return scores

    def limits(self) -> dict[str, float]:
        """What int8 ends at, by tensor that has a Q."""
        return {tensor: math.exp(self.log_limits[index].item()) for tensor, index in self._limit_of.items()}

    @torch.no_grad()
    def write_back(self) -> nn.Module:
        """Puts the trained parameters into the network, and gives it."""
        for parameter, share, unit in zip(self._trained, self.shares, self._units, strict=True):
            parameter.copy_(share * unit)
        return self.network

    def arguments(self, call: int, function: Any, given: list[Any]) -> list[Any]:
        """Arguments of a call, the trained parameters in place of the network's own, weights rounded where the file does."""
        trained = [self._share_of.get(id(value)) for value in given]
        taken = [
            value if index is None else self.shares[index] * self._units[index]
            for value, index in zip(given, trained, strict=True)
        ]
        if call in self._largest:
            taken[1] = round_weight(taken[1], self._largest[call], _WEIGHTED[function])
        return taken

    def rounded(self, place: _Place, values: Tensor) -> Tensor:
        """What a call returned, rounded where the file does."""
        index = self._rounded_at.get(place)
        return values if index is None else round_activation(values, self.log_limits[index].exp())


class _Simulation(TorchFunctionMode):
    """Hands every call of a torch function its arguments, and on what it returns."""

    def __init__(
        self, arguments: Callable[[int, Any, list[Any]], list[Any]], returned: Callable[[_Place, Tensor], Tensor]
    ) -> None:
        super().__init__()
        self._arguments, self._returned = arguments, returned
        self._call = -1

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._call += 1
        named = dict(kwargs or {})
        given = [*args, *(named.pop(name, None) for name in _PARAMETERS.get(func, ())[len(args) :])]
        result = func(*self._arguments(self._call, func, given), **named)
        if isinstance(result, Tensor):
            return self._returned((self._call, 0), result)
        if type(result) in (tuple, list):
            parts = enumerate(result)
            return type(result)(self._returned((self._call, i), p) if isinstance(p, Tensor) else p for i, p in parts)
        return result


@dataclass(frozen=True, slots=True, eq=False)
class _Samples:
    """What a tensor is recognised by."""

    shape: tuple[int, ...]
    values: npt.NDArray[np.float32]

    @staticmethod
    def of(values: npt.NDArray[np.float32]) -> _Samples:
        flat = values.reshape(-1)
        return _Samples(values.shape, flat[np.linspace(0, flat.size - 1, min(flat.size, _SAMPLES)).astype(np.int64)])

    def distance(self, other: _Samples) -> float:
        """Largest difference as a share of the largest value; infinite for another shape."""
        if self.shape != other.shape:
            return math.inf
        return float(np.abs(self.values - other.values).max()) / (float(np.abs(self.values).max()) or 1.0)


class _Recording:
    """The calls of one run of a network: what they returned, and which trainable parameters they took."""

    def __init__(self) -> None:
        self._samples: dict[_Place, _Samples] = {}
        self._convolution_of: dict[int, int] = {}
        self._spread: dict[int, Tensor] = {}
        self._weights: list[tuple[Any, int]] = []
        self._biases: list[tuple[Any, int]] = []
        self._made_by: MutableMapping[Tensor, int] = WeakIdKeyDictionary()

    def arguments(self, call: int, function: Any, given: list[Any]) -> list[Any]:
        """Notes what a call takes."""
        if function in _WEIGHTED:
            self._convolution_of[call] = call
            self._weights.append((given[1], _WEIGHTED[function]))
        elif function in _NORMALISING and (source := self._made_by.get(given[0])) in self._convolution_of:
            self._convolution_of[call] = self._convolution_of[source]
        if call in self._convolution_of:
            self._biases.append((given[_PARAMETERS[function].index("bias")], call))
        return given

    def returned(self, place: _Place, values: Tensor) -> Tensor:
        """Notes what a call returns."""
        if values.dtype != torch.float32 or not values.numel():
            return values
        call = place[0]
        self._made_by[values] = call
        self._samples[place] = _Samples.of(values.numpy())
        if call in self._convolution_of:
            channels = values.movedim(1 if values.ndim == 4 else -1, 0).flatten(1)
            self._spread[call] = channels.square().mean(dim=1).sqrt()
        return values

    def locate(self, tensors: Iterable[tuple[str, _Samples]]) -> dict[str, _Place]:
        """The place that returned each tensor, by its name. Raises ExportError naming those that no call returned."""
        found: dict[str, _Place] = {}
        missing = []
        for name, samples in tensors:
            # of several that are alike (a dropout that drops nothing) the first: what it hands on is rounded for all of them
            nearest = min(((samples.distance(other), place) for place, other in self._samples.items()), default=None)
            if nearest is not None and nearest[0] <= _ALIKE:
                found[name] = nearest[1]
            else:
                missing.append(name)
        if missing:
            raise ExportError(
                f"the network computes no {', '.join(missing)} by itself, which its graph quantizes; "
                "it cannot be fine-tuned: export without --qat"
            )
        return found

    def convolution(self, place: _Place, output: str) -> int:
        """The call of the convolution that made a tensor, the normalisation behind it included."""
        if place[0] not in self._convolution_of:
            raise ExportError(
                f"the network computes {output}, a layer of its graph, otherwise than by one of torch's functions for layers; "
                "it cannot be fine-tuned: export without --qat"
            )
        return self._convolution_of[place[0]]

    def units(self) -> list[tuple[nn.Parameter, Tensor]]:
        """Parameters to train and what a share of 1 is, of a shape that multiplies: each parameter once."""
        units: dict[int, tuple[nn.Parameter, Tensor]] = {}
        for weight, axis in self._weights:
            if isinstance(weight, nn.Parameter):
                others = [index for index in range(weight.ndim) if index != axis]
                units.setdefault(id(weight), (weight, weight.detach().abs().amax(dim=others, keepdim=True)))
        for bias, call in self._biases:
            if isinstance(bias, nn.Parameter):
                units.setdefault(id(bias), (bias, self._spread[call]))
        return [(parameter, torch.where(unit > _SMALLEST_SCALE, unit, 1.0)) for parameter, unit in units.values()]


def _record(network: nn.Module, tiles: Batch) -> _Recording:
    recording = _Recording()
    with torch.no_grad(), _Simulation(recording.arguments, recording.returned):
        network(torch.from_numpy(tiles))
    return recording


def _graph_samples(model: onnx.ModelProto, tensors: Sequence[str], tiles: Batch) -> Iterator[tuple[str, _Samples]]:
    """Samples of tensors of a float graph, by name."""
    observing = onnx.ModelProto()
    observing.CopyFrom(model)
    present = {output.name for output in model.graph.output}
    observing.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in tensors if name not in present
    )
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(observing.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for start in range(0, len(tensors), _TENSORS_AT_ONCE):
        names = list(tensors[start : start + _TENSORS_AT_ONCE])
        for name, values in zip(names, session.run(names, {session.get_inputs()[0].name: tiles}), strict=True):
            yield name, _Samples.of(values)
