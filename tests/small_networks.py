"""Float engines as the exporter makes them, small enough to build in a test, and images that look like something."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

MULTIPLE = 4
"""Heights and widths of the segmenters here are multiples of it."""


class EngineBuilder:
    """Writes a graph operator by operator; every method takes tensor names and returns the new one's."""

    def __init__(self, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self._nodes: list[NodeProto] = []
        self._constants: list[TensorProto] = []
        self._channels: dict[str, int] = {}

    def image(self) -> str:
        """The uint8 input, as (x - 128) / 64."""
        grey = self.node("Cast", ["image"], "cast", to=TensorProto.FLOAT)
        off = self.node("Sub", [grey, self.constant("middle", np.float32(128))], "subtract")
        return self.keep(self.node("Mul", [off, self.constant("scale", np.float32(1 / 64))], "normalise"), 1)

    def conv(
        self, x: str, channels: int, name: str, kernel: int = 3, stride: int = 1, relu: bool = True, output: str = ""
    ) -> str:
        inputs = self._channels[x]
        spread = np.sqrt(2.0 / (inputs * kernel**2))
        weight = self._rng.normal(0.0, spread, (channels, inputs, kernel, kernel)).astype(np.float32)
        bias = self._rng.normal(0.0, 0.2, channels).astype(np.float32)
        constants = [self.constant(f"{name}.weight", weight), self.constant(f"{name}.bias", bias)]
        before, after = (kernel - stride + 1) // 2, (kernel - stride) // 2
        pads = [before, before, after, after]
        y = self.node("Conv", [x, *constants], name, output, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads)
        return self.keep(self.node("Relu", [y], f"{name}_relu") if relu else y, channels)

    def pool(self, x: str, name: str) -> str:
        return self.keep(self.node("MaxPool", [x], name, kernel_shape=[2, 2], strides=[2, 2]), self._channels[x])

    def up(self, x: str, name: str) -> str:
        scales = self.constant(f"{name}.scales", np.array([1, 1, 2, 2], np.float32))
        modes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return self.keep(self.node("Resize", [x, "", scales], name, **modes), self._channels[x])

    def add(self, x: str, y: str, name: str) -> str:
        return self.keep(self.node("Add", [x, y], name), self._channels[x])

    def concat(self, x: str, y: str, name: str) -> str:
        return self.keep(self.node("Concat", [x, y], name, axis=1), self._channels[x] + self._channels[y])

    def node(self, kind: str, inputs: list[str], name: str, output: str = "", **attributes: object) -> str:
        self._nodes.append(helper.make_node(kind, inputs, [output or f"{name}_out"], name=name, **attributes))
        return output or f"{name}_out"

    def constant(self, name: str, values: np.ndarray | np.generic) -> str:
        self._constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def keep(self, x: str, channels: int) -> str:
        self._channels[x] = channels
        return x

    def model(self, height: int, width: int, scores: list[str | int]) -> onnx.ModelProto:
        image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 1, height, width])
        output = helper.make_tensor_value_info("scores", TensorProto.FLOAT, scores)
        graph = helper.make_graph(self._nodes, "small", [image], [output], initializer=self._constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model


def adding_unet(height: int = 32, width: int = 48) -> onnx.ModelProto:
    """Stride-2 stem, one level of pooling, a skip that is added, a head of sub-pixels; three classes."""
    b = EngineBuilder(seed=1)
    at_2 = b.conv(b.conv(b.image(), 8, "stem", kernel=4, stride=2), 8, "encoder_2")
    at_4 = b.conv(b.pool(at_2, "pool"), 16, "encoder_4")
    merged = b.add(b.up(b.conv(at_4, 8, "lateral", kernel=1), "up"), at_2, "skip")
    return _with_head(b, b.conv(merged, 8, "decoder_2"), height, width)


def concatenating_unet(height: int = 32, width: int = 48) -> onnx.ModelProto:
    """A strided convolution instead of pooling; a skip that is concatenated, one half of it with negative values, one without."""
    b = EngineBuilder(seed=2)
    at_2 = b.conv(b.image(), 8, "stem", kernel=4, stride=2)
    at_4 = b.conv(at_2, 16, "encoder_4", stride=2)
    signed = b.conv(at_4, 16, "signed", relu=False)
    merged = b.concat(b.up(b.conv(signed, 8, "lateral", relu=False), "up"), at_2, "skip")
    return _with_head(b, b.conv(merged, 8, "decoder_2"), height, width)


def gate(height: int = 32, width: int = 32) -> onnx.ModelProto:
    """Two levels, a 1x1 head, the highest place of the tile: (n, 1)."""
    b = EngineBuilder(seed=3)
    at_2 = b.pool(b.conv(b.image(), 8, "first"), "pool_1")
    places = b.conv(b.conv(at_2, 16, "second"), 1, "head", kernel=1, relu=False)
    b.node("ReduceMax", [places], "highest", "scores", axes=[2, 3], keepdims=0)
    return b.model(height, width, ["n", 1])


def images(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """(count, 1, height, width) uint8: patches of different grey with some noise, so that scores differ over the image."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(30, 226, (count, 1, -(-height // 8), -(-width // 8)))
    large = patches.repeat(8, axis=2).repeat(8, axis=3)[:, :, :height, :width]
    return np.clip(large + rng.integers(-20, 21, large.shape), 0, 255).astype(np.uint8)


def _with_head(b: EngineBuilder, x: str, height: int, width: int) -> onnx.ModelProto:
    quarters = b.conv(x, 12, "head", kernel=1, relu=False)
    b.node("DepthToSpace", [quarters], "spread", "scores", blocksize=2, mode="CRD")
    return b.model(height, width, ["n", 3, height, width])
