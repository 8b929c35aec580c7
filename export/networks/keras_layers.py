"""What each Keras layer is in torch, channels first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from export.errors import ExportError
from export.networks.keras_steps import (
    NO_PADS,
    Affine,
    Concatenate,
    Crop,
    Elementwise,
    Floats,
    GlobalPool,
    GraphWriter,
    Merge,
    Shape,
    Signal,
    Unflatten,
    features,
)
from export.networks.padded_windows import (
    PaddedAveragePool2d,
    PaddedMaxPool2d,
    Pads,
    Pair,
    conv2d,
    conv_transpose2d,
    same_pads,
    symmetric,
)

Inputs = list[Signal]

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "sigmoid": nn.Sigmoid,
    "hard_sigmoid": nn.Hardsigmoid,
    "softmax": lambda: nn.Softmax(dim=1),
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "hard_silu": nn.Hardswish,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "mish": nn.Mish,
    "softsign": nn.Softsign,
    "exponential": lambda: Elementwise(torch.exp),
}
"""By the name of Keras's function. Source: Keras 3, `keras.activations`."""

_NONNEGATIVE = frozenset({"relu", "relu6", "sigmoid", "hard_sigmoid", "softmax", "softplus", "exponential"})

_IDLE = frozenset({
    "Activation", "ActivityRegularization", "AlphaDropout", "Dropout", "GaussianDropout", "GaussianNoise", "Identity",
    "RandomBrightness", "RandomContrast", "RandomFlip", "RandomRotation", "RandomTranslation", "RandomZoom", "SpatialDropout2D",
})  # fmt: skip
"""Layers that do nothing once training is over."""


def translate(layer: Any, inputs: Inputs, writer: GraphWriter) -> Signal:
    """Write what a layer does with its inputs. Raises ExportError naming a layer that cannot be written."""
    kind = type(layer).__name__
    own = type(layer).__module__.startswith(("keras.src.layers", "keras.layers"))
    if not own or kind not in _LAYERS:
        raise refuse(layer, f"no rule says what {kind} is in ONNX; expected layers among {', '.join(sorted(_LAYERS))}")
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        raise refuse(layer, f"it is {layer.data_format}; expected channels_last, Keras's own order")
    return _LAYERS[kind](layer, inputs, writer)


def apply_operation(operation: Any, arguments: Sequence[Any], writer: GraphWriter) -> Signal:
    """Write an operation that is no layer, such as `x / 255.0`; arguments are signals and numbers in their order."""
    kind = type(operation).__name__
    signals = [argument for argument in arguments if isinstance(argument, Signal)]
    if kind in ("Add", "Subtract", "Multiply", "Divide", "TrueDivide") and len(signals) == len(arguments) == 2:
        if kind.endswith("Divide"):
            return _merge(operation, signals, writer, Merge(torch.div))
        return _MERGES[kind](operation, signals, writer)
    if kind in ("Add", "Subtract", "Multiply", "Divide", "TrueDivide") and len(signals) == 1 and len(arguments) == 2:
        return _with_constant(operation, kind, arguments, writer)
    activation = kind.lower()
    if activation in _ACTIVATIONS and len(signals) == 1:
        return _activate(operation, activation, signals[0], writer)
    raise refuse(operation, f"no rule says what the operation {kind} is in ONNX; expected layers")


def refuse(layer: Any, why: str) -> ExportError:
    """The error that names a layer and says why."""
    return ExportError(f"layer '{layer.name}' ({type(layer).__name__}) cannot be exported: {why}")


def _conv(layer: Any, inputs: Inputs, writer: GraphWriter) -> Signal:
    x = _image(layer, inputs, writer)
    pads = _window_pads(layer, x, layer.kernel_size, layer.strides, layer.dilation_rate)

    def build() -> nn.Module:
        weight = _array(layer.kernel).transpose(3, 2, 0, 1)
        return conv2d(_tensor(weight), _bias(layer), layer.strides, layer.dilation_rate, layer.groups, pads)

    return _weighted(layer, build, replace(x, pads=NO_PADS), _shape(layer, _padded(x)), writer)


def _depthwise(layer: Any, inputs: Inputs, writer: GraphWriter) -> Signal:
    x = _image(layer, inputs, writer)
    pads = _window_pads(layer, x, layer.kernel_size, layer.strides, layer.dilation_rate)

    def build() -> nn.Module:
        weight = _depthwise_weight(_array(layer.kernel))
        return conv2d(_tensor(weight), _bias(layer), layer.strides, layer.dilation_rate, x.shape[2], pads)

    return _weighted(layer, build, replace(x, pads=NO_PADS), _shape(layer, _padded(x)), writer)


def _separable(layer: Any, inputs: Inputs, writer: GraphWriter) -> Signal:
    x = _image(layer, inputs, writer)
    pads = _window_pads(layer, x, layer.kernel_size, layer.strides, layer.dilation_rate)
    shape = _shape(layer, _padded(x))

    def build() -> nn.Module:
        weight = _depthwise_weight(_array(layer.depthwise_kernel))
        by_channel = conv2d(_tensor(weight), None, layer.strides, layer.dilation_rate, x.shape[2], pads)
        across = conv2d(_tensor(_array(layer.pointwise_kernel).transpose(3, 2, 0, 1)), _bias(layer), (1, 1), (1, 1), 1, NO_PADS)
        return nn.Sequential(by_channel, across)

    return _weighted(layer, build, replace(x, pads=NO_PADS), shape, writer)


def _conv_transpose(layer: Any, inputs: Inputs, writer: GraphWriter) -> Signal:
    x = writer.plain(_image(layer, inputs, writer))
    stride, dilation = _pair(layer.strides), _pair(layer.dilation_rate)
    window = tuple((size - 1) * step + 1 for size, step in zip(layer.kernel_size, dilation, strict=True))
    shape = _shape(layer, x.shape)
    # what all windows cover, (n - 1) * stride + window, is brought to the size that Keras states. An uncommon one (`same`
    # with output_padding) is cropped as much before as after, the odd pixel after: the gradient of a convolution with `same`.
    # Source: TensorFlow, `conv2d_transpose`; Keras 3, `compute_conv_transpose_output_crops_for_torch`
    totals = [(x.shape[axis] - 1) * stride[axis] + window[axis] - shape[axis] for axis in (0, 1)]
    before = [max(total // 2, 0) if layer.padding == "same" else 0 for total in totals]
    crops = (before[0], before[1], totals[0] - before[0], totals[1] - before[1])

    def build() -> nn.Module:
        weight = _array(layer.kernel).transpose(3, 2, 0, 1)
        return conv_transpose2d(_tensor(weight), _bias(layer), stride, dilation, crops)

    return _weighted(layer, build, x, shape, writer)


def _dense(layer: Any, inputs: Inputs, writer: GraphWriter) -> Signal:
    x = replace(inputs[0], flattened=None) if inputs[0].flattened else writer.plain(inputs[0])
    kernel = _array(layer.kernel)
    if kernel.shape[0] != x.shape[-1]:
        raise refuse(layer, f"it takes {kernel.shape[0]} features, a tile of this size gives {x.shape[-1]}: another tile size")
    if len(x.shape) == 3:
        return _weighted(
            layer,
            lambda: conv2d(_tensor(kernel.T[:, :, None, None]), _bias(layer), (1, 1), (1, 1), 1, NO_PADS),
            x,
            (*x.shape[:2], kernel.shape[1]),
            writer,
        )
    if inputs[0].flattened:
        kernel = kernel.reshape(*inputs[0].flattened, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)

    def build() -> nn.Module:
        linear = nn.Linear(kernel.shape[0], kernel.shape[1], bias=layer.bias is not None)
        with torch.no_grad():
            linear.weight.copy_(_tensor(kernel.T))
            if layer.bias is not None:
                linear.bias.copy_(_tensor(_array(layer.bias)))
        return linear

    return _weighted(layer, build, x, (kernel.shape[1],), writer)


def _batch_normalization(layer: Any, inputs: Inputs, writer: GraphWriter) -> Signal:
    x = inputs[0]
    axis = layer.axis[0] if isinstance(layer.axis, (list, tuple)) else layer.axis
    if axis not in (-1, len(x.shape)):
        raise refuse(layer, f"it normalises axis {axis}; expected the channels, axis {len(x.shape)}")
    scale = 1.0 / np.sqrt(_array(layer.moving_variance).astype(np.float64) + layer.epsilon)
    scale = scale * _array(layer.gamma) if layer.scale else scale
    shift = -_array(layer.moving_mean).astype(np.float64) * scale
    shift = shift + _array(layer.beta) if layer.center else shift
    return _per_channel(layer, x, scale, shift, writer)


def _per_channel(layer: Any, x: Signal, scale: Any, shift: Any, writer: GraphWriter) -> Signal:
    """values * scale + shift: into the weights of what came before where that is a convolution, else a 1x1 convolution of
    each channel by itself, which quantizes like any other.
    """
    if x.weighted and not any(x.pads):
        _fold(writer.module(x.weighted), scale, shift)
        return x
    if len(x.shape) == 3:
        weight = _tensor(scale.reshape(-1, 1, 1, 1))
        x = writer.plain(x)
        return writer.add(layer.name, conv2d(weight, _tensor(shift), (1, 1), (1, 1), len(scale), NO_PADS), [x], x.shape)
    if x.flattened:
        height, width, _ = x.flattened
        scale, shift = (v.reshape(height, width, -1).transpose(2, 0, 1).reshape(-1) for v in (scale, shift))
    affine = Affine(scale.astype(np.float32), shift.astype(np.float32), rank=1)
    return replace(writer.add(layer.name, affine, [x], x.shape), flattened=x.flattened)


def _fold(module: nn.Module, scale: Any, shift: Any) -> None:
    if isinstance(module, nn.Sequential):
        module = module[-1]
    assert isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))
    outputs = (1, -1, 1, 1) if isinstance(module, nn.ConvTranspose2d) else (-1, *(1,) * (module.weight.ndim - 1))
    bias = 0.0 if module.bias is None else module.bias.detach().numpy().astype(np.float64)
    weight = module.weight.detach().numpy().astype(np.float64) * scale.reshape(outputs)
    module.weight = nn.Parameter(_tensor(weight))
    module.bias = nn.Parameter(_tensor(bias * scale + shift))


def _max_pool(layer: Any, inputs: Inputs, writer: GraphWriter) -> Signal:
    x = _image(layer, inputs, writer)
    window, stride = _pair(layer.pool_size), _pair(layer.strides)
    # zeros around values that are not negative are never the highest alone: they can be the operator's own padding
    waits = x.nonnegative and layer.padding == "valid" and all(pad < size for pad, size in zip(x.pads, window * 2, strict=True))
    x = x if waits else writer.plain(x)
    pads = x.pads if waits else _window_pads(layer, x, window, stride, (1, 1))
    plain = symmetric(pads) and all(2 * pads[axis] <= window[axis] for axis in (0, 1))
    module = nn.MaxPool2d(window, stride, pads[:2]) if plain else PaddedMaxPool2d(window, stride, pads)
    shape = _shape(layer, _padded(x))
    return writer.add(layer.name, module, [x], shape, x.nonnegative)


def _average_pool(layer: Any, inputs: Inputs, writer: GraphWriter) -> Signal:
    x = writer.plain(_image(layer, inputs, writer))
    window, stride = _pair(layer.pool_size), _pair(layer.strides)
    pads = _window_pads(layer, x, window, stride, (1, 1))
    if not symmetric(pads) and max(window) > 2:
        # Keras on torch repeats the border there, TensorFlow leaves it out: the file cannot be held against its framework
        raise refuse(layer, f"it pads windows of {window} on one side, where TensorFlow and Keras differ; expected 2x2 or valid")
    module = PaddedAveragePool2d(window, stride, pads) if any(pads) else nn.AvgPool2d(window, stride)
    return writer.add(layer.name, module, [x], _shape(layer, x.shape), x.nonnegative)


def _global_pool(layer: Any, inputs: Inputs, writer: GraphWriter) -> Signal:
    x = writer.plain(_image(layer, inputs, writer))
    module = GlobalPool("Max" in type(layer).__name__, layer.keepdims)
    return writer.add(layer.name, module, [x], (1, 1, x.shape[2]) if layer.keepdims else (x.shape[2],), x.nonnegative)


def _zero_padding(layer: Any, inputs: Inputs, writer: GraphWriter) -> Signal:
    x = _image(layer, inputs, writer)
    (top, bottom), (left, right) = layer.padding
    added = tuple(a + b for a, b in zip(x.pads, (top, left, bottom, right), strict=True))
    return replace(x, pads=added, weighted=None)


def _cropping(layer: Any, inputs: Inputs, writer: GraphWriter) -> Signal:
    x = writer.plain(_image(layer, inputs, writer))
    (top, bottom), (left, right) = layer.cropping
    return writer.add(layer.name, Crop((top, left, bottom, right)), [x], _shape(layer, x.shape), x.nonnegative)


def _up_sampling(layer: Any, inputs: Inputs, writer: GraphWriter) -> Signal:
    x = writer.plain(_image(layer, inputs, writer))
    if layer.interpolation not in ("nearest", "bilinear"):
        raise refuse(layer, f"its interpolation is {layer.interpolation}; expected nearest or bilinear")
    factors = tuple(float(size) for size in layer.size)
    aligned = {} if layer.interpolation == "nearest" else {"align_corners": False}
    module = nn.Upsample(scale_factor=factors, mode=layer.interpolation, **aligned)
    return writer.add(layer.name, module, [x], _shape(layer, x.shape), x.nonnegative)


def _resizing(layer: Any, inputs: Inputs, writer: GraphWriter) -> Signal:
    x = writer.plain(_image(layer, inputs, writer))
    size = (layer.height, layer.width)
    if size == x.shape[:2]:
        return x
    cut = getattr(layer, "crop_to_aspect_ratio", False) or getattr(layer, "pad_to_aspect_ratio", False)
    if layer.interpolation != "bilinear" or cut or getattr(layer, "antialias", False):
        raise refuse(
            layer,
            f"it brings {x.shape[0]}x{x.shape[1]} to {size[0]}x{size[1]} by {layer.interpolation}; "
            f"expected tiles of {size[0]}x{size[1]} (--tile), or bilinear interpolation without cropping or padding",
        )
    module = nn.Upsample(size=size, mode="bilinear", align_corners=False)
    return writer.add(layer.name, module, [x], (*size, x.shape[2]), x.nonnegative)


def _rescaling(layer: Any, inputs: Inputs, writer: GraphWriter) -> Signal:
    return _scaled(layer, inputs[0], np.asarray(layer.scale, np.float32), np.asarray(layer.offset, np.float32), writer)


def _normalization(layer: Any, inputs: Inputs, writer: GraphWriter) -> Signal:
    x = inputs[0]
    if layer.invert:
        raise refuse(layer, "it undoes a normalisation; expected one that normalises")
    mean, variance = (np.asarray(_array(v), np.float64) for v in (layer.mean, layer.variance))
    if mean.size not in (1, x.shape[-1]):
        raise refuse(layer, f"it has {mean.size} means; expected one, or one for each of the {x.shape[-1]} channels")
    # Keras's epsilon, below which a deviation counts as that. Source: Keras 3, `Normalization.call`
    scale = 1.0 / np.maximum(np.sqrt(variance), 1e-7)
    return _scaled(layer, x, scale.astype(np.float32), (-mean * scale).astype(np.float32), writer)


def _scaled(layer: Any, x: Signal, scale: Floats, shift: Floats, writer: GraphWriter) -> Signal:
    flattened = x.flattened if scale.size == shift.size == 1 else None
    x = x if flattened else writer.plain(x)
    module = Affine(scale, shift, rank=len(x.shape))
    return replace(writer.add(layer.name, module, [x], x.shape), flattened=flattened)


def _flatten(layer: Any, inputs: Inputs, writer: GraphWriter) -> Signal:
    x = inputs[0]
    if len(x.shape) == 1:
        return x
    x = writer.plain(_image(layer, inputs, writer))
    height, width, channels = x.shape
    flat = writer.add(layer.name, nn.Flatten(), [x], (features(x.shape),), x.nonnegative)
    return replace(flat, flattened=(height, width, channels) if height * width > 1 and channels > 1 else None)


def _reshape(layer: Any, inputs: Inputs, writer: GraphWriter) -> Signal:
    x = inputs[0]
    shape = _shape(layer, _padded(x))
    if shape == _padded(x):
        return x
    if len(x.shape) == 3 and len(shape) == 1:
        return _flatten(layer, inputs, writer)
    if len(x.shape) == 1 and len(shape) == 3:
        size = (shape[0], shape[1], shape[2])
        if x.flattened and x.flattened != size:
            x = writer.plain(x)
        moves = not x.flattened and shape[0] * shape[1] > 1 and shape[2] > 1
        return writer.add(layer.name, Unflatten(size, channels_last=moves), [x], shape, x.nonnegative)
    raise refuse(layer, f"it brings {x.shape} to {shape}; expected images to features, or features to images")


def _permute(layer: Any, inputs: Inputs, writer: GraphWriter) -> Signal:
    if tuple(layer.dims) != tuple(range(1, len(inputs[0].shape) + 1)):
        raise refuse(layer, f"it reorders the axes, {tuple(layer.dims)}; expected them to stay")
    return inputs[0]


def _concatenate(layer: Any, inputs: Inputs, writer: GraphWriter) -> Signal:
    parts = [writer.plain(x) for x in inputs]
    shape = _shape(layer, *(x.shape for x in parts))
    axis = layer.axis % (len(shape) + 1)
    if axis == 0:
        raise refuse(layer, "it joins images of a batch; expected another axis than 0")
    axis = {1: 2, 2: 3, 3: 1}[axis] if len(shape) == 3 else axis
    return writer.add(layer.name, Concatenate(axis), parts, shape, all(x.nonnegative for x in parts))


def _merge(layer: Any, inputs: Inputs, writer: GraphWriter, module: Merge) -> Signal:
    if len({len(x.shape) for x in inputs}) != 1:
        raise refuse(layer, f"it joins shapes {', '.join(str(x.shape) for x in inputs)}; expected images, or features, alone")
    alike = len({x.flattened for x in inputs}) == 1
    flattened = inputs[0].flattened if alike else None
    parts = inputs if flattened else [writer.plain(x) for x in inputs]
    try:
        shape = np.broadcast_shapes(*(x.shape for x in parts))
    except ValueError as error:
        raise refuse(layer, f"shapes {', '.join(str(x.shape) for x in parts)} do not fit each other") from error
    return replace(writer.add(layer.name, module, parts, shape), flattened=flattened)


def _merging(operation: Callable[[Tensor, Tensor], Tensor], keeps: bool) -> Callable[[Any, Inputs, GraphWriter], Signal]:
    """keeps: of values that are not negative the result is not either."""

    def write(layer: Any, inputs: Inputs, writer: GraphWriter) -> Signal:
        signal = _merge(layer, inputs, writer, Merge(operation))
        return replace(signal, nonnegative=keeps and all(x.nonnegative for x in inputs))

    return write


def _average(layer: Any, inputs: Inputs, writer: GraphWriter) -> Signal:
    return _merge(layer, inputs, writer, Merge(torch.add, divisor=len(inputs)))


def _activation(layer: Any, inputs: Inputs, writer: GraphWriter) -> Signal:
    return _activated(layer, inputs[0], writer, layer.name)


def _relu(layer: Any, inputs: Inputs, writer: GraphWriter) -> Signal:
    slope, highest, threshold = (float(value or 0.0) for value in (layer.negative_slope, layer.max_value, layer.threshold))
    if threshold or (slope and layer.max_value is not None):
        raise refuse(layer, f"threshold {threshold}, slope {slope}, maximum {layer.max_value}; expected one of the last two")
    if layer.max_value is None:
        return _elementwise(layer, inputs[0], nn.LeakyReLU(slope) if slope else nn.ReLU(), writer, not slope)
    return _elementwise(layer, inputs[0], nn.Hardtanh(0.0, highest), writer, True)


def _leaky_relu(layer: Any, inputs: Inputs, writer: GraphWriter) -> Signal:
    return _elementwise(layer, inputs[0], nn.LeakyReLU(float(layer.negative_slope)), writer, False)


def _elu(layer: Any, inputs: Inputs, writer: GraphWriter) -> Signal:
    return _elementwise(layer, inputs[0], nn.ELU(float(layer.alpha)), writer, False)


def _prelu(layer: Any, inputs: Inputs, writer: GraphWriter) -> Signal:
    x = writer.plain(inputs[0])
    alpha = _array(layer.alpha)
    if alpha.size != x.shape[-1]:
        raise refuse(layer, f"it has slopes {alpha.shape}; expected one per channel (shared_axes=[1, 2])")
    module = nn.PReLU(alpha.size)
    with torch.no_grad():
        module.weight.copy_(_tensor(alpha.reshape(-1)))
    return writer.add(layer.name, module, [x], x.shape)


def _softmax(layer: Any, inputs: Inputs, writer: GraphWriter) -> Signal:
    if layer.axis not in (-1, len(inputs[0].shape)):
        raise refuse(layer, f"it runs along axis {layer.axis}; expected the last one, the channels")
    return _activate(layer, "softmax", inputs[0], writer)


def _idle(layer: Any, inputs: Inputs, writer: GraphWriter) -> Signal:
    return inputs[0]


def _lambda(layer: Any, inputs: Inputs, writer: GraphWriter) -> Signal:
    """A function of the user's, which only a trusted file can hold: for values one by one, or of no use."""
    if len(inputs) != 1 or len(inputs[0].shape) not in (1, 3):
        raise refuse(layer, "it holds Python code; expected layers")
    x = writer.plain(inputs[0])
    example = torch.rand(2, *x.shape, generator=torch.Generator().manual_seed(0)) * 255.0
    try:
        expected = layer.call(example)
        swapped = layer.call(_channels_first(example))
        same = expected.shape == example.shape and torch.equal(_channels_first(expected), swapped)
    except Exception as error:
        # the code is the user's: whatever it raises
        raise refuse(layer, f"its Python code does not run on torch: {type(error).__name__}: {error}") from error
    if not same:
        raise refuse(layer, "its Python code does more than to change each value by itself; expected layers instead of it")
    return writer.add(layer.name, Elementwise(layer.call), [x], x.shape)


def _with_constant(operation: Any, kind: str, arguments: Sequence[Any], writer: GraphWriter) -> Signal:
    first = isinstance(arguments[0], Signal)
    x, other = (arguments[0], arguments[1]) if first else (arguments[1], arguments[0])
    constant = np.asarray(_array(other), np.float32)
    if constant.size not in (1, x.shape[-1]) or (kind.endswith("Divide") and not first):
        raise refuse(operation, f"it joins {x.shape} with a constant {constant.shape}; expected a number, or one per channel")
    one, zero = np.ones_like(constant), np.zeros_like(constant)
    if kind == "Add":
        return _scaled(operation, x, one, constant, writer)
    if kind == "Subtract":
        return _scaled(operation, x, one if first else -one, -constant if first else constant, writer)
    return _scaled(operation, x, constant if kind == "Multiply" else 1.0 / constant, zero, writer)


def _weighted(layer: Any, build: Callable[[], nn.Module], x: Signal, shape: Shape, writer: GraphWriter) -> Signal:
    """A layer with weights and its activation."""
    signal = writer.add_layer(layer, build, [x], shape, weighted=True)
    return _activated(layer, signal, writer, f"{layer.name}_{_activation_name(layer)}")


def _activated(layer: Any, x: Signal, writer: GraphWriter, name: str) -> Signal:
    activation = getattr(layer, "activation", None)
    if activation is not None and hasattr(activation, "get_config"):
        return translate(activation, [x], writer)
    kind = _activation_name(layer)
    return x if kind == "linear" else _activate(layer, kind, x, writer, name)


def _activation_name(layer: Any) -> str:
    activation = getattr(layer, "activation", None)
    if activation is None:
        return "linear"
    return str(getattr(activation, "__name__", type(activation).__name__))


def _activate(layer: Any, kind: str, x: Signal, writer: GraphWriter, name: str = "") -> Signal:
    if kind not in _ACTIVATIONS:
        raise refuse(layer, f"its activation is {kind}; expected one of linear, {', '.join(_ACTIVATIONS)}")
    return _elementwise(layer, x, _ACTIVATIONS[kind](), writer, kind in _NONNEGATIVE, name)


def _elementwise(layer: Any, x: Signal, module: nn.Module, writer: GraphWriter, nonnegative: bool, name: str = "") -> Signal:
    flattened = x.flattened
    x = x if flattened else writer.plain(x)
    return replace(writer.add(name or layer.name, module, [x], x.shape, nonnegative), flattened=flattened)


def _image(layer: Any, inputs: Inputs, writer: GraphWriter) -> Signal:
    if len(inputs) != 1 or len(inputs[0].shape) != 3:
        raise refuse(layer, f"it gets {', '.join(str(x.shape) for x in inputs)}; expected one image (rows, columns, channels)")
    return inputs[0]


def _window_pads(layer: Any, x: Signal, window: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Pads:
    """What a window's operator pads by itself: the zeros that wait, and those of its own `same`."""
    if layer.padding == "valid":
        return x.pads
    if layer.padding != "same":
        raise refuse(layer, f"its padding is {layer.padding}; expected valid or same")
    height, width, _ = _padded(x)
    rows, columns = ((size - 1) * step + 1 for size, step in zip(window, dilation, strict=True))
    own = same_pads((height, width), (rows, columns), _pair(stride))
    return x.pads[0] + own[0], x.pads[1] + own[1], x.pads[2] + own[2], x.pads[3] + own[3]


def _padded(x: Signal) -> Shape:
    """The shape with the padding that waits."""
    if not any(x.pads):
        return x.shape
    top, left, bottom, right = x.pads
    return x.shape[0] + top + bottom, x.shape[1] + left + right, x.shape[2]


def _shape(layer: Any, *shapes: Shape) -> Shape:
    """What the layer makes of these shapes, which Keras knows best."""
    batched = [(1, *shape) for shape in shapes]
    try:
        shape = layer.compute_output_shape(batched if len(batched) > 1 else batched[0])
    except (ValueError, TypeError) as error:
        raise refuse(layer, f"it does not take {', '.join(map(str, shapes))}: {error}") from error
    if any(size is None or size < 1 for size in shape[1:]):
        raise refuse(layer, f"it makes {tuple(shape[1:])} of {', '.join(map(str, shapes))}: the tile is too small")
    return tuple(int(size) for size in shape[1:])


def _channels_first(values: Tensor) -> Tensor:
    return values.permute(0, 3, 1, 2) if values.ndim == 4 else values


def _depthwise_weight(kernel: Floats) -> Floats:
    """(h, w, channels, multiplier) as (channels * multiplier, 1, h, w). Source: TensorFlow, `depthwise_conv2d`."""
    height, width, channels, multiplier = kernel.shape
    weight: Floats = kernel.transpose(2, 3, 0, 1).reshape(channels * multiplier, 1, height, width)
    return weight


def _bias(layer: Any) -> Tensor | None:
    return None if layer.bias is None else _tensor(_array(layer.bias))


def _array(values: Any) -> Floats:
    """A Keras variable's values, or a constant's."""
    found = getattr(values, "value", values)
    array: Floats = np.asarray(found.detach().cpu() if isinstance(found, Tensor) else found, np.float32)
    return array


def _tensor(values: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32).copy())


def _pair(values: Any) -> Pair:
    first, second = values if isinstance(values, (list, tuple)) else (values, values)
    return int(first), int(second)


_MERGES: dict[str, Callable[[Any, Inputs, GraphWriter], Signal]] = {
    "Add": _merging(torch.add, keeps=True),
    "Subtract": _merging(torch.sub, keeps=False),
    "Multiply": _merging(torch.mul, keeps=True),
    "Maximum": _merging(torch.maximum, keeps=True),
    "Minimum": _merging(torch.minimum, keeps=True),
    "Average": _average,
}

_LAYERS: dict[str, Callable[[Any, Inputs, GraphWriter], Signal]] = {
    **dict.fromkeys(_IDLE, _idle),
    **_MERGES,
    "Activation": _activation,
    "AveragePooling2D": _average_pool,
    "BatchNormalization": _batch_normalization,
    "Concatenate": _concatenate,
    "Conv2D": _conv,
    "Conv2DTranspose": _conv_transpose,
    "Cropping2D": _cropping,
    "Dense": _dense,
    "DepthwiseConv2D": _depthwise,
    "ELU": _elu,
    "Flatten": _flatten,
    "GlobalAveragePooling2D": _global_pool,
    "GlobalMaxPooling2D": _global_pool,
    "Lambda": _lambda,
    "LeakyReLU": _leaky_relu,
    "MaxPooling2D": _max_pool,
    "Normalization": _normalization,
    "Permute": _permute,
    "PReLU": _prelu,
    "ReLU": _relu,
    "Rescaling": _rescaling,
    "Reshape": _reshape,
    "Resizing": _resizing,
    "SeparableConv2D": _separable,
    "Softmax": _softmax,
    "UpSampling2D": _up_sampling,
    "ZeroPadding2D": _zero_padding,
}
"""Source: Keras 3, `keras.layers`."""
