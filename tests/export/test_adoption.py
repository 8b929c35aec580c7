from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from export.errors import ExportError
from export.networks.grey_input import IMAGENET, UNIT, UNIT_RGB, GreyInput, Normalisation
from export.passes.adoption import adopt, final_activation, without_activation
from export.passes.streaming import stream
from export.to_onnx import check_versions, to_onnx, with_input_size

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")  # torch's, of an exporter that it means to give up: users have files of it

TILE = (16, 16)


class Segmenter(nn.Module):
    """What published networks are made of: batch normalisation before and behind, resizing to a size, padding, attention."""

    def __init__(self, end: nn.Module | None = None, channels: int = 3) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.deep = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.first = nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, 3, 1)
        self.end = end or nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        top = nn.functional.gelu(self.norm(self.down(image)))
        low = nn.functional.hardswish(self.deep(top))
        low = low * torch.sigmoid(low.mean((2, 3), keepdim=True))
        wide = nn.functional.interpolate(low, size=top.shape[2:], mode="bilinear")
        wide = nn.functional.pad(wide, (0, top.shape[3] - wide.shape[3], 0, top.shape[2] - wide.shape[2]))
        left, right = torch.cat([top, wide], 1).chunk(2, 1)
        return self.end(self.head(self.first(torch.cat([right, left], 1))))


class Classifier(nn.Module):
    def __init__(self, reshape: str = "flatten") -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(4))
        self.head, self.reshape = nn.Linear(64, 2), reshape

    def forward(self, image: Tensor) -> Tensor:
        features = self.features(image)
        sizes = {"flatten": (features.size(0), -1), "one": (1, -1)}[self.reshape]
        return self.head(features.reshape(sizes))


class ChannelsLast(nn.Module):
    """As TensorFlow's exporters write it: (n, h, w, c) everywhere but within convolutions."""

    def __init__(self, end: nn.Module | None = None) -> None:
        super().__init__()
        self.down, self.deep, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(8, 3, 1)
        self.gain, self.end = nn.Parameter(torch.tensor([0.5, 1.0, 1.5, 2.0])), end or nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        top = torch.relu(self.turned(self.down, image) * self.gain + 0.25)
        low = self.turned(lambda x: nn.functional.max_pool2d(x, 2), top)
        low = nn.functional.pad(self.turned(self.deep, low), (0, 0, 1, 0, 0, 1))[:, :8, 1:]
        wide = self.turned(lambda x: nn.functional.interpolate(x, scale_factor=2.0), low)
        wide = wide * torch.sigmoid(wide.mean((1, 2), keepdim=True))
        return self.end(self.turned(self.head, torch.cat([top, wide], 3)))

    def turned(self, layer: object, image: Tensor) -> Tensor:
        return layer(image.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # type: ignore[operator]


def made(build: Callable[[], nn.Module]) -> nn.Module:
    """The same weights every time, in evaluation mode, with statistics that a wrong fold would show."""
    torch.manual_seed(0)
    network = build()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for values in (layer.running_var, layer.weight):
                nn.init.uniform_(values, 0.5, 2.0)
            nn.init.uniform_(layer.running_mean, -1.0, 1.0)
    return network.eval()


def exported(
    network: nn.Module,
    folder: Path,
    shape: tuple[int, ...] = (1, 3, *TILE),
    opset: int = 17,
    dtype: torch.dtype = torch.float32,
    **options: object,
) -> onnx.ModelProto:
    path = folder / "foreign.onnx"
    torch.onnx.export(network, (torch.zeros(shape, dtype=dtype),), str(path), dynamo=False, opset_version=opset, **options)
    return onnx.load(path)


def answer(model: onnx.ModelProto, image: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: image})[0]


def tiles(count: int = 3, tile: tuple[int, int] = TILE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 1, *tile), dtype=np.uint8)


def logits(network: nn.Module, normalisation: Normalisation, tile: tuple[int, int] = TILE) -> np.ndarray:
    with torch.inference_mode():
        return GreyInput(network, normalisation)(torch.from_numpy(tiles(tile=tile))).numpy()


def assert_contract(model: onnx.ModelProto, shape: tuple[int, ...], tile: tuple[int, int] = TILE) -> None:
    (image,), (scores,) = model.graph.input, model.graph.output
    assert (image.name, image.type.tensor_type.elem_type) == ("image", TensorProto.UINT8)
    assert [d.dim_value or d.dim_param for d in image.type.tensor_type.shape.dim] == ["n", 1, *tile]
    assert (scores.name, scores.type.tensor_type.elem_type) == ("scores", TensorProto.FLOAT)
    assert [d.dim_value or d.dim_param for d in scores.type.tensor_type.shape.dim] == ["n", *shape]
    check_versions(model)
    onnx.checker.check_model(model, full_check=True)
    names = [node.name for node in model.graph.node]
    assert all(names)
    assert len(names) == len(set(names))
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"BatchNormalization", "Softmax", "Identity", "Dropout", "Shape"}


def assert_same(model: onnx.ModelProto, expected: np.ndarray) -> None:
    np.testing.assert_allclose(answer(model, tiles()), expected, atol=1e-4 * np.ptp(expected))


@pytest.mark.parametrize("opset", [11, 13, 17, 18])
def test_a_segmenter_of_any_opset_and_one_batch_comes_into_the_contract(opset: int, tmp_path: Path) -> None:
    source = exported(made(lambda: Segmenter(nn.Softmax(1))), tmp_path, opset=opset)
    before = source.SerializeToString()
    model = adopt(source, IMAGENET, "softmax", TILE)
    assert_contract(model, (3, *TILE))
    assert_same(model, logits(made(Segmenter), IMAGENET))
    assert source.SerializeToString() == before


def test_a_graph_of_torchs_new_exporter_comes_into_the_contract() -> None:
    pytest.importorskip("onnxscript")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    shapes = ({0: torch.export.Dim("n")},)
    source = torch.onnx.export(
        made(lambda: Segmenter(nn.Softmax(1))), (torch.zeros(2, 3, *TILE),), dynamo=True, dynamic_shapes=shapes, verbose=False
    ).model_proto
    kinds = {node.op_type for node in source.graph.node}
    assert {opset.version for opset in source.opset_import if not opset.domain} != {17}
    assert {"Gelu", "Split"} <= kinds
    model = adopt(source, IMAGENET, "softmax", TILE)
    assert_contract(model, (3, *TILE))
    assert_same(model, logits(made(Segmenter), IMAGENET))


def test_what_normalises_behind_a_convolution_is_part_of_it(tmp_path: Path) -> None:
    source = exported(made(Segmenter), tmp_path, training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False)
    kinds = Counter(node.op_type for node in adopt(source, UNIT_RGB, "softmax", TILE).graph.node)
    assert kinds["Conv"] == 3
    assert kinds["BatchNormalization"] == 0


@pytest.mark.parametrize("reshape", ["flatten", "one"])
def test_a_classifier_whose_batch_was_baked_in_takes_any(reshape: str, tmp_path: Path) -> None:
    model = adopt(exported(made(lambda: Classifier(reshape)), tmp_path, opset=9), UNIT_RGB, "softmax", TILE)
    assert_contract(model, (2,))
    assert_same(model, logits(made(Classifier), UNIT_RGB))


@pytest.mark.parametrize("end", [None, nn.Softmax(3), nn.Sigmoid()])
def test_a_graph_with_channels_last_keeps_no_transposes(end: nn.Module | None, tmp_path: Path) -> None:
    source = exported(made(lambda: ChannelsLast(end)), tmp_path, (1, *TILE, 3))
    assert sum(node.op_type == "Transpose" for node in source.graph.node) > 8
    assert final_activation(source) == {nn.Softmax: "softmax", nn.Sigmoid: "sigmoid"}.get(type(end))
    model = adopt(source, IMAGENET, "sigmoid" if isinstance(end, nn.Sigmoid) else "softmax", TILE)
    assert_contract(model, (3, *TILE))
    assert not any(node.op_type == "Transpose" for node in model.graph.node)
    image = torch.from_numpy(
        (tiles() - np.array(IMAGENET.mean).reshape(1, 3, 1, 1)) / np.array(IMAGENET.deviation).reshape(1, 3, 1, 1)
    )
    with torch.inference_mode():
        expected = made(ChannelsLast)(image.float().permute(0, 2, 3, 1)).permute(0, 3, 1, 2).numpy()
    assert_same(model, expected)


def test_an_image_of_bytes_is_normalised_by_the_graph_itself(tmp_path: Path) -> None:
    class Bytes(Classifier):
        def forward(self, image: Tensor) -> Tensor:
            return super().forward(image.permute(0, 3, 1, 2).float() / 255)

    source = exported(made(Bytes), tmp_path, (1, *TILE, 3), dtype=torch.uint8)
    model = adopt(source, IMAGENET, "softmax", TILE)
    assert_contract(model, (2,))
    assert_same(model, logits(made(Classifier), UNIT_RGB))


def test_a_graph_in_the_contract_already_stays_as_it_is(tmp_path: Path) -> None:
    first = to_onnx(GreyInput(made(Segmenter), IMAGENET), *TILE)
    model = adopt(first, None, "softmax", TILE)
    assert_contract(model, (3, *TILE))
    assert Counter(n.op_type for n in model.graph.node) == Counter(n.op_type for n in first.graph.node)
    np.testing.assert_array_equal(answer(model, tiles()), answer(first, tiles()))


def test_the_graph_is_normalised_as_greyinput_does_it(tmp_path: Path) -> None:
    for normalisation, channels in ((UNIT, 1), (UNIT_RGB, 3), (IMAGENET, 3), (Normalisation((127.5,), (64.0,)), 1)):
        network = made(functools.partial(Segmenter, channels=channels))
        model = adopt(exported(network, tmp_path, (1, channels, *TILE)), normalisation, "softmax", TILE)
        own = to_onnx(GreyInput(network, normalisation), *TILE)
        first = [node.op_type for node in own.graph.node]
        head = [node.op_type for node in model.graph.node]
        assert sorted(head[: head.index("Conv")]) == sorted(first[: first.index("Conv")])
        assert_same(model, logits(network, normalisation))


def test_half_precision_graphs_become_float32(tmp_path: Path) -> None:
    network = made(Segmenter).half()
    model = adopt(exported(network, tmp_path, dtype=torch.float16), IMAGENET, "softmax", TILE)
    assert_contract(model, (3, *TILE))
    assert {tensor.data_type for tensor in model.graph.initializer} <= {TensorProto.FLOAT, TensorProto.INT64}
    expected = logits(network.float(), IMAGENET)
    # torch folds in half precision, of 11 bits
    np.testing.assert_allclose(answer(model, tiles()), expected, atol=2**-10 * np.ptp(expected))


def test_another_tile_than_the_exported_one_works_where_the_graph_has_no_sizes(tmp_path: Path) -> None:
    source = exported(made(Segmenter), tmp_path)
    model = adopt(source, IMAGENET, "softmax", (32, 24))
    assert_contract(model, (3, 32, 24), (32, 24))
    expected = logits(made(Segmenter), IMAGENET, (32, 24))
    np.testing.assert_allclose(answer(model, tiles(tile=(32, 24))), expected, atol=1e-4 * np.ptp(expected))
    with pytest.raises(ExportError, match=r"does not take 2 tiles of 24x24.*its own size as the tile"):
        adopt(exported(made(Classifier), tmp_path), UNIT_RGB, "softmax", (24, 24))


def test_a_network_that_resizes_to_sizes_streams_all_the_same(tmp_path: Path) -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.top, self.low, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(8, 2, 1)

        def forward(self, image: Tensor) -> Tensor:
            top = torch.relu(self.top(image))
            low = torch.relu(self.low(nn.functional.max_pool2d(top, 2)))
            return self.head(torch.cat([top, nn.functional.interpolate(low, size=top.shape[2:])], 1))

    for model in (
        adopt(exported(made(Plain), tmp_path, (1, 1, *TILE)), UNIT, "softmax", TILE),
        to_onnx(GreyInput(made(Plain), UNIT), *TILE),
    ):
        assert stream(with_input_size(model, "height", "width")).stride == 2


@pytest.mark.parametrize(("shape", "layer"), [
    ((1, 1), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 2, 1))),
    ((), nn.Sequential(nn.Conv2d(3, 1, 1), nn.Flatten(1, 2), nn.Unflatten(1, (16, 1)), nn.Flatten(1, 2))),
])  # fmt: skip
def test_answers_with_an_axis_too_many_or_too_few_are_put_right(shape: tuple[int, ...], layer: nn.Module, tmp_path: Path) -> None:
    network = made(lambda: layer)
    model = adopt(exported(network, tmp_path), UNIT_RGB, "sigmoid", TILE)
    assert_contract(model, (2,) if shape else (1, *TILE))


def test_the_final_activation_is_told_and_taken_off(tmp_path: Path) -> None:
    bare = to_onnx(GreyInput(made(Segmenter), IMAGENET), *TILE)
    ended = to_onnx(GreyInput(made(lambda: Segmenter(nn.Sigmoid())), IMAGENET), *TILE)
    assert (final_activation(bare), final_activation(ended)) == (None, "sigmoid")
    assert_same(without_activation(ended), answer(bare, tiles()))
    assert without_activation(bare) == bare


class Upscaled(nn.Module):
    def forward(self, scores: Tensor) -> Tensor:
        return nn.functional.interpolate(scores, scale_factor=0.5)


class Largest(nn.Module):
    def forward(self, scores: Tensor) -> Tensor:
        return scores.argmax(1, keepdim=True)


class Certain(nn.Module):
    def forward(self, scores: Tensor) -> Tensor:
        return (torch.sigmoid(scores) > 0.5).float()


class Together(nn.Module):
    """Scores against the batch's mean."""

    def forward(self, scores: Tensor) -> Tensor:
        return scores - scores.mean(0, keepdim=True)


@pytest.mark.parametrize(("end", "expected"), [
    (Largest(), r"ends in node .*ArgMax.*no logits"),
    (Certain(), r"ends in node .*Greater.*no logits"),
    (nn.Sigmoid(), r"ends in node .*Sigmoid.*expected a softmax or nothing.*another --arch"),
    (nn.Softmax(2), r"Softmax\) over axis 2; expected the channels, axis 1"),
    (nn.Tanh(), r"ends in node .*Tanh.*no logits"),
    (Upscaled(), r"answers \[3, 8, 8\] to a tile of 16x16; expected scores per pixel"),
    (Together(), "depend on the others in its batch"),
])  # fmt: skip
def test_what_cannot_be_logits_is_refused_and_the_node_named(end: nn.Module, expected: str, tmp_path: Path) -> None:
    source = exported(made(lambda: Segmenter(end)), tmp_path, dynamic_axes={"image": {0: "n"}}, input_names=["image"])
    with pytest.raises(ExportError, match=expected):
        adopt(source, IMAGENET, "softmax", TILE)


def graph(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[int | str]],
    outputs: dict[str, int],
    opset: int = 17,
    **weights: np.ndarray,
) -> onnx.ModelProto:
    made_graph = helper.make_graph(
        nodes,
        "foreign",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, kind, ["n", 2, 8, 8]) for name, kind in outputs.items()],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    domains = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(made_graph, opset_imports=domains, ir_version=10)


WEIGHT = np.ones((2, 1, 1, 1), np.float32)
CONV = helper.make_node("Conv", ["x", "w"], ["y"], name="head")
IMAGE: dict[str, list[int | str]] = {"x": ["n", 1, 8, 8]}


def test_several_inputs_or_outputs_are_refused_by_name() -> None:
    add = helper.make_node("Add", ["x", "second"], ["y"])
    with pytest.raises(ExportError, match="takes x, second; expected one image"):
        adopt(graph([add], {**IMAGE, "second": ["n", 1, 8, 8]}, {"y": 1}), UNIT, "softmax", (8, 8))
    relu = helper.make_node("Relu", ["y"], ["z"])
    with pytest.raises(ExportError, match=r"answers y, z; expected one.*extract_model"):
        adopt(graph([CONV, relu], IMAGE, {"y": 1, "z": 1}, w=WEIGHT), UNIT, "softmax", (8, 8))


def test_weights_listed_among_the_inputs_are_none(tmp_path: Path) -> None:
    source = graph([CONV], {**IMAGE, "w": [2, 1, 1, 1]}, {"y": 1}, opset=8, w=WEIGHT)
    model = adopt(source, UNIT, "softmax", (8, 8))
    assert [value.name for value in model.graph.input] == ["image"]


def test_a_quantized_graph_is_refused_with_what_to_export_instead() -> None:
    scale, zero = np.array(0.1, np.float32), np.array(0, np.int8)
    nodes = [CONV, helper.make_node("QuantizeLinear", ["y", "s", "z"], ["q"], name="q"),
             helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="d")]  # fmt: skip
    with pytest.raises(ExportError, match=r"node q \(QuantizeLinear\): the graph is already quantized; export from the float"):
        adopt(graph(nodes, IMAGE, {"d": 1}, w=WEIGHT, s=scale, z=zero), UNIT, "softmax", (8, 8))


def test_operators_of_one_runtime_are_refused_by_name() -> None:
    fused = helper.make_node("FusedConv", ["x", "w"], ["y"], name="head", domain="com.microsoft")
    with pytest.raises(ExportError, match=r"node head \(FusedConv\) is an operator of com\.microsoft"):
        adopt(graph([fused], IMAGE, {"y": 1}, w=WEIGHT), UNIT, "softmax", (8, 8))


def test_an_operator_that_opset_17_lacks_is_named() -> None:
    nodes = [CONV, helper.make_node("GroupNormalization", ["y", "g", "b"], ["z"], name="groups", num_groups=1)]
    ones = np.ones(2, np.float32)
    with pytest.raises(ExportError, match=r"groups.* of opset 21 has no equal in opset 17.*export the network with opset 17"):
        adopt(graph(nodes, IMAGE, {"z": 1}, opset=21, w=WEIGHT, g=ones, b=ones), UNIT, "softmax", (8, 8))


@pytest.mark.parametrize("nodes", [
    [helper.make_node("Gelu", ["c"], ["y"], approximate="tanh")],
    [helper.make_node("Gelu", ["c"], ["y"])],
    [helper.make_node("Mish", ["c"], ["y"])],
    [helper.make_node("Split", ["c"], ["a", "b"], axis=1, num_outputs=2), helper.make_node("Concat", ["b", "a"], ["y"], axis=1)],
    [helper.make_node("Pad", ["c", "pads", "", "axes"], ["p"]), helper.make_node("GlobalMaxPool", ["p"], ["g"]),
     helper.make_node("Add", ["c", "g"], ["y"])],
    [helper.make_node("ReduceMax", ["c", "axes"], ["g"]), helper.make_node("Sub", ["c", "g"], ["y"])],
])  # fmt: skip
def test_operators_of_later_opsets_mean_the_same_in_17(nodes: list[onnx.NodeProto]) -> None:
    conv = helper.make_node("Conv", ["x", "w"], ["c"], name="first")
    weight = np.array([0.5, -2.0], np.float32).reshape(2, 1, 1, 1)
    pads, axes = np.array([1, 0, 0, 1]), np.array([3, -2])
    source = graph([conv, *nodes], IMAGE, {"y": 1}, opset=22, w=weight, pads=pads, axes=axes)
    model = adopt(source, UNIT, "softmax", (8, 8))
    image = tiles(2, (8, 8))
    np.testing.assert_allclose(answer(model, image), answer(source, image.astype(np.float32) / 255), atol=1e-6)


@pytest.mark.parametrize(("inputs", "kind"), [({"x": ["n", 64]}, "float"), ({"x": [1, 3, 8, 8, 8]}, "float")])
def test_a_graph_that_takes_no_image_is_refused(inputs: dict[str, list[int | str]], kind: str) -> None:
    with pytest.raises(ExportError, match=rf"takes x, {kind} .*expected an image"):
        adopt(graph([helper.make_node("Relu", ["x"], ["y"])], inputs, {"y": 1}), UNIT, "softmax", (8, 8))


def test_a_normalisation_of_other_channels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="takes 3 channels, its normalisation has 1"):
        adopt(exported(made(Classifier), tmp_path), UNIT, "softmax", TILE)


def test_arithmetic_with_bytes_is_refused() -> None:
    nodes = [helper.make_node("Add", ["x", "x"], ["a"], name="twice"), helper.make_node("Cast", ["a"], ["b"], to=1),
             helper.make_node("Conv", ["b", "w"], ["y"])]  # fmt: skip
    source = graph(nodes, IMAGE, {"y": 1}, w=WEIGHT)
    source.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    with pytest.raises(ExportError, match=r"node twice \(Add\) calculates with the bytes"):
        adopt(source, UNIT, "softmax", (8, 8))


def test_a_network_in_training_mode_is_refused_by_the_exporter_too() -> None:
    class Baked(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return nn.functional.batch_norm(image.float(), torch.zeros(1), torch.ones(1), training=True)

    with pytest.raises(ExportError, match=r"BatchNormalization.*training mode"):
        to_onnx(Baked(), *TILE)


def test_a_network_that_bakes_its_batch_in_is_refused() -> None:
    class Baked(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image.float().reshape(2, -1)

    with pytest.raises(ExportError, match=r"answers for 2 tiles whatever the batch.*x\.flatten\(1\)"):
        to_onnx(Baked(), *TILE)
