from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper
from small_networks import EngineBuilder, adding_unet, concatenating_unet, gate, images

from calibration.activations import activation_ranges, collect
from export.errors import ExportError
from export.passes.half_precision import to_half
from export.passes.heads import with_head
from export.passes.lint import Finding, lint, require_clean
from export.passes.streaming import stream
from export.quantize import quantize, tensors_to_observe
from export.to_onnx import with_input_size


def quantized(model: onnx.ModelProto) -> onnx.ModelProto:
    height, width = (d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[2:])
    ranges = activation_ranges(collect(model, tensors_to_observe(model), [images(4, height, width)]))
    return quantize(model, ranges)


PRECISIONS: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "fp32": lambda model: model,
    "fp16": to_half,
    "int8": quantized,
}


@pytest.mark.parametrize("network", [adding_unet, concatenating_unet, gate])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_engines_of_every_precision_are_clean(network, precision: str):
    assert lint(PRECISIONS[precision](network())) == ()


@pytest.mark.parametrize("head", ["logits", "probabilities", "mask"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_streaming_engines_with_any_head_are_clean(precision: str, head: str):
    assert lint(with_head(stream(PRECISIONS[precision](adding_unet())).model, head, "softmax")) == ()


def test_shipped_engines_are_clean():
    engines = sorted((Path(__file__).resolve().parents[2] / "edge" / "bundles").glob("*/*.onnx"))
    assert engines
    for engine in engines:
        require_clean(onnx.load(engine), engine.name)


def node(model: onnx.ModelProto, name: str) -> NodeProto:
    return next(n for n in model.graph.node if n.name == name)


def append(model: onnx.ModelProto, kind: str, inputs: list[str], name: str = "added", count: int = 1, **attributes) -> None:
    """A node that nothing needs."""
    outputs = [f"{name}_out_{index}" for index in range(count)]
    model.graph.node.append(helper.make_node(kind, inputs, outputs, name=name, **attributes))


def constant(model: onnx.ModelProto, name: str, values: np.ndarray) -> str:
    model.graph.initializer.append(numpy_helper.from_array(values, name))
    return name


def opset_too_new(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 18


def file_too_new(model: onnx.ModelProto) -> None:
    model.ir_version = 9


def foreign_domain(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def foreign_operator(model: onnx.ModelProto) -> None:
    node(model, "decoder_2").domain = "com.microsoft"


def integer_operator(model: onnx.ModelProto) -> None:
    node(model, "decoder_2").op_type = "ConvInteger"


def function(model: onnx.ModelProto) -> None:
    model.functions.add(name="gelu", domain="local")


def unknown_operator(model: onnx.ModelProto) -> None:
    append(model, "Hardmax", ["skip_out"])


def branching(model: onnx.ModelProto) -> None:
    append(model, "If", [constant(model, "which", np.array(True))])


def nameless(model: onnx.ModelProto) -> None:
    node(model, "skip").name = ""


def same_name(model: onnx.ModelProto) -> None:
    node(model, "skip").name = "up"


def free_height(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"


def free_channels(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[1].Clear()


def maxima_with_indices(model: onnx.ModelProto) -> None:
    append(model, "MaxPool", ["skip_out"], count=2, kernel_shape=[2, 2])


def dilated_pooling(model: onnx.ModelProto) -> None:
    append(model, "MaxPool", ["skip_out"], kernel_shape=[2, 2], dilations=[2, 2])


def cubic(model: onnx.ModelProto) -> None:
    append(model, "Resize", ["skip_out", "", "up.scales"], mode="cubic")


def cropping_resize(model: onnx.ModelProto) -> None:
    append(model, "Resize", ["skip_out", "", "up.scales"], mode="linear", coordinate_transformation_mode="tf_crop_and_resize")


def computed_axes(model: onnx.ModelProto) -> None:
    append(model, "Shape", ["skip_out"], name="sizes")
    append(model, "Unsqueeze", ["skip_out", "sizes_out_0"])


def uint8_arithmetic(model: onnx.ModelProto) -> None:
    append(model, "MaxPool", ["image"], kernel_shape=[2, 2])


def uint8_inside(model: onnx.ModelProto) -> None:
    append(model, "Cast", ["skip_out"], to=TensorProto.UINT8)


def int8_cast(model: onnx.ModelProto) -> None:
    append(model, "Cast", ["skip_out"], to=TensorProto.INT8)


def double(model: onnx.ModelProto) -> None:
    append(model, "Cast", ["skip_out"], to=TensorProto.DOUBLE)


def types_that_do_not_fit(model: onnx.ModelProto) -> None:
    append(model, "Add", ["image", "skip_out"])


def large_integer(model: onnx.ModelProto) -> None:
    append(model, "Gather", ["skip_out", constant(model, "index", np.array([2**31]))])


def uint8_quantizer(model: onnx.ModelProto) -> None:
    scale, zero = constant(model, "step", np.array(0.1, np.float32)), constant(model, "zero", np.array(0, np.uint8))
    append(model, "QuantizeLinear", ["skip_out", scale, zero])


def int32_dequantizer(model: onnx.ModelProto) -> None:
    scale, zero = constant(model, "step", np.ones(8, np.float32)), constant(model, "zero", np.zeros(8, np.int8))
    append(model, "DequantizeLinear", [constant(model, "bias", np.zeros(8, np.int32)), scale, zero], axis=0)


HARMS = [
    (opset_too_new, ("", "", "opset 18, expected 13 to 17")),
    (file_too_new, ("", "", "IR version 9, expected at most 8")),
    (foreign_domain, ("", "", "asks for operators of domain com.microsoft")),
    (foreign_operator, ("decoder_2", "Conv", "domain com.microsoft")),
    (integer_operator, ("decoder_2", "ConvInteger", "is ConvInteger, expected float operators")),
    (function, ("", "", "defines the function gelu")),
    (unknown_operator, ("added", "Hardmax", "is Hardmax, which TensorRT 8.6 does not have")),
    (branching, ("added", "If", "is If, which TensorRT 8.6 does not have or cannot size")),
    (nameless, ("skip_out", "Add", "is made by a node without a name (Add)")),
    (same_name, ("up", "Add", "is the name of several nodes")),
    (free_height, ("image", "", "leaves axis 2 free (height), expected only the batch")),
    (free_channels, ("scores", "", "leaves axis 1 free (?), expected only the batch")),
    (maxima_with_indices, ("added", "MaxPool", "also gives indices")),
    (dilated_pooling, ("added", "MaxPool", "is a pooling with dilations")),
    (cubic, ("added", "Resize", "has mode cubic, expected one of nearest, linear")),
    (cropping_resize, ("added", "Resize", "has coordinate_transformation_mode tf_crop_and_resize")),
    (computed_axes, ("added", "Unsqueeze", "computes its axes (sizes_out_0)")),
    (uint8_arithmetic, ("added", "MaxPool", "works on image, uint8; expected that only of a Cast at either end")),
    (uint8_inside, ("added", "Cast", "works on added_out_0, uint8")),
    (int8_cast, ("added", "Cast", "works on added_out_0, int8; expected QuantizeLinear or DequantizeLinear")),
    (double, ("added", "Cast", "works on added_out_0, double; TensorRT has no such type")),
    (types_that_do_not_fit, ("", "", "types do not fit together")),
    (large_integer, ("added", "Gather", "has index of 2147483648 to 2147483648, expected values that fit int32")),
    (uint8_quantizer, ("added", "QuantizeLinear", "has zero point uint8 0, expected a constant int8 0")),
    (int32_dequantizer, ("added", "DequantizeLinear", "has int32 constants, expected int8 weights and float biases")),
]


@pytest.mark.parametrize(("harm", "expected"), HARMS, ids=[harm.__name__ for harm, _ in HARMS])
def test_what_tensorrt_misreads_or_rejects_is_found(harm: Callable[[onnx.ModelProto], None], expected: tuple[str, str, str]):
    model = adding_unet()
    harm(model)
    assert any((f.node, f.operator) == expected[:2] and expected[2] in f.fault for f in lint(model)), lint(model)


@pytest.mark.parametrize("harm", [maxima_with_indices, cubic, uint8_inside, large_integer, uint8_quantizer])
def test_one_fault_is_one_finding(harm: Callable[[onnx.ModelProto], None]):
    model = adding_unet()
    harm(model)
    assert len(lint(model)) == 1


def test_scales_of_a_weight_lie_on_the_axis_of_its_layer_s_channels():
    b = EngineBuilder(seed=7)
    weight = b.constant("up.weight", np.ones((8, 4, 2, 2), np.float32))
    low = b.conv(b.image(), 8, "stem", kernel=2, stride=2)
    up = b.keep(b.node("ConvTranspose", [low, weight], "up", kernel_shape=[2, 2], strides=[2, 2]), 4)
    b.node("Identity", [b.conv(up, 2, "head", relu=False)], "out", "scores")
    model = quantized(b.model(16, 16, ["n", 2, 16, 16]))
    assert lint(model) == ()
    node(model, "up/weight/dequantize").attribute[0].i = 0
    (finding,) = lint(model)
    assert finding.fault == "has 4 scales on axis 0 for a weight (8, 4, 2, 2), expected one a channel on axis 1"


def test_an_engine_of_any_size_is_no_tile_engine():
    findings = lint(with_input_size(adding_unet(), "height", "width"))
    assert {finding.node for finding in findings} == {"image", "scores"}


def test_a_streaming_engine_has_a_batch_of_one():
    model = stream(adding_unet()).model
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    assert lint(model) == (Finding("image", "", "leaves axis 0 free (n), expected only lines and columns"),)


def test_the_bounds_of_a_slice_may_lie_beyond_any_size():
    model = stream(adding_unet()).model
    bounds = [numpy_helper.to_array(c).max() for c in model.graph.initializer if c.data_type == TensorProto.INT64]
    assert max(bounds) == np.iinfo(np.int64).max
    assert lint(model) == ()


def test_every_finding_is_in_the_error():
    model = adding_unet()
    require_clean(model, "model.onnx")
    for harm in (file_too_new, unknown_operator, nameless):
        harm(model)
    with pytest.raises(ExportError) as error:
        require_clean(model, "model.onnx")
    assert str(error.value).startswith("model.onnx is no engine that TensorRT reads as it is meant: ")
    assert all(str(finding) in str(error.value) for finding in lint(model))
    assert len(lint(model)) == 3
