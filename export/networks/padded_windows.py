"""Convolutions and pooling whose window is padded more on one side than on the other, as TensorFlow's `same` does.

torch pads both sides alike, ONNX does not have to: while a graph is exported these modules write one operator with its own
`pads` instead of an operator for the padding and another one behind it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Pads = tuple[int, int, int, int]
"""Pixels at the top, the left, the bottom and the right, in ONNX's order."""

Pair = tuple[int, int]


def same_pads(size: Pair, window: Pair, stride: Pair) -> Pads:
    """Padding with which an input of `size` gives ceil(size / stride) outputs; the odd pixel goes to the bottom and the right.

    window: height and width with dilation counted in. Source: TensorFlow, `tf.nn.convolution`, padding SAME.
    """
    totals = [max((-(-size[a] // stride[a]) - 1) * stride[a] + window[a] - size[a], 0) for a in (0, 1)]
    before = [total // 2 for total in totals]
    return before[0], before[1], totals[0] - before[0], totals[1] - before[1]


def symmetric(pads: Pads) -> bool:
    """Whether torch's own modules can pad so."""
    return pads[:2] == pads[2:]


def conv2d(weight: Tensor, bias: Tensor | None, stride: Pair, dilation: Pair, groups: int, pads: Pads) -> nn.Conv2d:
    """A convolution with these weights, (out, in / groups, h, w)."""
    kind, padding = (nn.Conv2d, pads[:2]) if symmetric(pads) else (PaddedConv2d, (0, 0))
    conv = kind(
        weight.shape[1] * groups,
        weight.shape[0],
        (weight.shape[2], weight.shape[3]),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=bias is not None,
    )
    if isinstance(conv, PaddedConv2d):
        conv.pads = pads
    _set_weights(conv, weight, bias)
    return conv


def conv_transpose2d(weight: Tensor, bias: Tensor | None, stride: Pair, dilation: Pair, crops: Pads) -> nn.ConvTranspose2d:
    """A transposed convolution, (in, out, h, w); `crops` are taken off what all its windows cover, negative ones added."""
    kind, padding = (nn.ConvTranspose2d, crops[:2]) if symmetric(crops) else (CroppedConvTranspose2d, (0, 0))
    conv = kind(
        weight.shape[0],
        weight.shape[1],
        (weight.shape[2], weight.shape[3]),
        stride=stride,
        padding=padding,
        dilation=dilation,
        bias=bias is not None,
    )
    if isinstance(conv, CroppedConvTranspose2d):
        conv.crops = crops
    _set_weights(conv, weight, bias)
    return conv


class PaddedConv2d(nn.Conv2d):
    """A convolution over zeros around the image. pads: as in ONNX."""

    pads: Pads = (0, 0, 0, 0)

    def forward(self, input: Tensor) -> Tensor:
        """Convolved images."""
        return (
            _as_one_operator(_ConvNode, input, self.weight, self.bias, self)
            if torch.onnx.is_in_onnx_export()
            else self.convolve(input)
        )

    def convolve(self, image: Tensor) -> Tensor:
        """Convolved images, by torch's own functions."""
        return super().forward(_pad(image, self.pads))


class CroppedConvTranspose2d(nn.ConvTranspose2d):
    """A transposed convolution less some rows and columns at its ends; negative crops, at the bottom and the right, add some."""

    crops: Pads = (0, 0, 0, 0)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Images of `stride` times the size."""
        return (
            _as_one_operator(_ConvTransposeNode, input, self.weight, self.bias, self)
            if torch.onnx.is_in_onnx_export()
            else self.convolve(input)
        )

    def convolve(self, image: Tensor) -> Tensor:
        """Images of `stride` times the size, by torch's own functions."""
        whole = functional.conv_transpose2d(image, self.weight, None, self.stride, dilation=self.dilation)
        cropped = _pad(whole, (-self.crops[0], -self.crops[1], -self.crops[2], -self.crops[3]))
        # rows and columns that no window covers hold the bias alone
        return cropped if self.bias is None else cropped + self.bias[:, None, None]


class PaddedMaxPool2d(nn.Module):
    """The highest value of each window; padding never is."""

    def __init__(self, window: Pair, stride: Pair, pads: Pads) -> None:
        super().__init__()
        self.window, self.stride, self.pads = window, stride, pads

    def forward(self, image: Tensor) -> Tensor:
        """Pooled images."""
        return _as_one_operator(_MaxPoolNode, image, self) if _exporting() else self.pool(image)

    def pool(self, image: Tensor) -> Tensor:
        """Pooled images, by torch's own functions."""
        return functional.max_pool2d(_pad(image, self.pads, float("-inf")), self.window, self.stride)


class PaddedAveragePool2d(nn.Module):
    """The mean of each window's pixels of the image; padding is not counted."""

    def __init__(self, window: Pair, stride: Pair, pads: Pads) -> None:
        super().__init__()
        self.window, self.stride, self.pads = window, stride, pads

    def forward(self, image: Tensor) -> Tensor:
        """Pooled images."""
        return _as_one_operator(_AveragePoolNode, image, self) if _exporting() else self.pool(image)

    def pool(self, image: Tensor) -> Tensor:
        """Pooled images, by torch's own functions."""
        inside = _pad(torch.ones_like(image[:1, :1]), self.pads)
        means = functional.avg_pool2d(_pad(image, self.pads), self.window, self.stride)
        return means / functional.avg_pool2d(inside, self.window, self.stride)


class _ConvNode(torch.autograd.Function):
    """PaddedConv2d as one ONNX Conv."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor, bias: Tensor | None, conv: PaddedConv2d) -> Tensor:
        return conv.convolve(image)

    @staticmethod
    def symbolic(g: Any, image: Any, weight: Any, bias: Any, conv: PaddedConv2d) -> Any:
        inputs = [image, weight] if conv.bias is None else [image, weight, bias]
        return g.op(
            "Conv",
            *inputs,
            kernel_shape_i=list(conv.kernel_size),
            strides_i=list(conv.stride),
            pads_i=list(conv.pads),
            dilations_i=list(conv.dilation),
            group_i=conv.groups,
        )


class _ConvTransposeNode(torch.autograd.Function):
    """CroppedConvTranspose2d as one ONNX ConvTranspose."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor, bias: Tensor | None, conv: CroppedConvTranspose2d) -> Tensor:
        return conv.convolve(image)

    @staticmethod
    def symbolic(g: Any, image: Any, weight: Any, bias: Any, conv: CroppedConvTranspose2d) -> Any:
        inputs = [image, weight] if conv.bias is None else [image, weight, bias]
        return g.op(
            "ConvTranspose",
            *inputs,
            kernel_shape_i=list(conv.kernel_size),
            strides_i=list(conv.stride),
            pads_i=[max(crop, 0) for crop in conv.crops],
            output_padding_i=[max(-crop, 0) for crop in conv.crops[2:]],
            dilations_i=list(conv.dilation),
            group_i=1,
        )


class _MaxPoolNode(torch.autograd.Function):
    """PaddedMaxPool2d as one ONNX MaxPool."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, pool: PaddedMaxPool2d) -> Tensor:
        return pool.pool(image)

    @staticmethod
    def symbolic(g: Any, image: Any, pool: PaddedMaxPool2d) -> Any:
        return g.op("MaxPool", image, kernel_shape_i=list(pool.window), strides_i=list(pool.stride), pads_i=list(pool.pads))


class _AveragePoolNode(torch.autograd.Function):
    """PaddedAveragePool2d as one ONNX AveragePool."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, pool: PaddedAveragePool2d) -> Tensor:
        return pool.pool(image)

    @staticmethod
    def symbolic(g: Any, image: Any, pool: PaddedAveragePool2d) -> Any:
        return g.op(
            "AveragePool",
            image,
            kernel_shape_i=list(pool.window),
            strides_i=list(pool.stride),
            pads_i=list(pool.pads),
            count_include_pad_i=0,
        )


def _exporting() -> bool:
    return torch.onnx.is_in_onnx_export()


def _as_one_operator(node: Any, *arguments: Any) -> Tensor:
    result: Tensor = node.apply(*arguments)
    return result


def _pad(image: Tensor, pads: Pads, value: float = 0.0) -> Tensor:
    top, left, bottom, right = pads
    return functional.pad(image, (left, right, top, bottom), value=value)


def _set_weights(module: nn.Conv2d | nn.ConvTranspose2d, weight: Tensor, bias: Tensor | None) -> None:
    with torch.no_grad():
        module.weight.copy_(weight)
        if bias is not None and module.bias is not None:
            module.bias.copy_(bias)
