from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from small_checkpoints import random_gate, trained_unet
from torch import Tensor, nn

from export.cost import count_flops, count_parameters
from export.errors import ExportError
from export.to_onnx import check_versions, to_onnx, with_input_size


@pytest.fixture(scope="module")
def unet() -> onnx.ModelProto:
    return to_onnx(trained_unet(), 64, 64)


@pytest.fixture(scope="module")
def gate() -> onnx.ModelProto:
    return to_onnx(random_gate(), 64, 64)


def answer(model: onnx.ModelProto, image: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": image})[0]


@pytest.mark.parametrize("name", ["unet", "gate"])
def test_every_device_reads_the_file(name: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(name)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]
    assert model.ir_version == 8
    onnx.checker.check_model(model, full_check=True)


def test_the_file_takes_uint8_tiles_in_any_batch_and_answers_as_torch(unet: onnx.ModelProto) -> None:
    (image,), (scores,) = unet.graph.input, unet.graph.output
    assert (image.name, image.type.tensor_type.elem_type) == ("image", onnx.TensorProto.UINT8)
    assert scores.name == "scores"
    assert [d.dim_value or d.dim_param for d in scores.type.tensor_type.shape.dim] == ["n", 3, 64, 64]
    batch = np.random.default_rng(0).integers(0, 256, (3, 1, 64, 64), dtype=np.uint8)
    with torch.inference_mode():
        expected = trained_unet()(torch.from_numpy(batch)).numpy()
    np.testing.assert_allclose(answer(unet, batch), expected, atol=1e-4 * np.ptp(expected))


def test_a_gate_gives_one_logit_per_cell(gate: onnx.ModelProto) -> None:
    assert answer(gate, np.zeros((5, 1, 64, 64), np.uint8)).shape == (5, 1, 4, 4)


def test_batch_normalisation_is_folded_and_nothing_unused_is_left(unet: onnx.ModelProto) -> None:
    kinds = {node.op_type for node in unet.graph.node}
    assert kinds == {"Cast", "Sub", "Mul", "Conv", "Relu", "MaxPool", "Resize", "Add", "DepthToSpace"}
    used = {name for node in unet.graph.node for name in node.input}
    assert {initializer.name for initializer in unet.graph.initializer} <= used


def test_nodes_and_weights_are_named_after_their_modules(unet: onnx.ModelProto) -> None:
    nodes = [node.name for node in unet.graph.node]
    assert len(nodes) == len(set(nodes))
    assert {"stem.0/Conv", "encoder_8.1.0/Conv", "lateral_4.0/Conv", "head/Conv", "spread/DepthToSpace"} <= set(nodes)
    weights = {initializer.name for initializer in unet.graph.initializer}
    assert {"stem.0.weight", "stem.0.bias", "decoder_8.1.0.weight", "head.bias"} <= weights
    assert not any("::" in name for name in weights)


def test_equal_biases_of_two_layers_stay_two() -> None:
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1)
            for layer in (self.left, self.right):
                nn.init.constant_(layer.bias, 0.5)

        def forward(self, image: Tensor) -> Tensor:
            return self.right(torch.relu(self.left(image.float())))

    names = {initializer.name for initializer in to_onnx(Twins(), 8, 8).graph.initializer}
    assert names == {"left.weight", "left.bias", "right.weight", "right.bias"}


def test_another_tile_size_is_the_same_graph(unet: onnx.ModelProto) -> None:
    batch = np.random.default_rng(1).integers(0, 256, (1, 1, 32, 96), dtype=np.uint8)
    with torch.inference_mode():
        expected = trained_unet()(torch.from_numpy(batch)).numpy()
    fixed, free = with_input_size(unet, 32, 96), with_input_size(unet, "height", "width")
    np.testing.assert_allclose(answer(fixed, batch), expected, atol=1e-4 * np.ptp(expected))
    np.testing.assert_array_equal(answer(free, batch), answer(fixed, batch))
    assert [d.dim_value for d in unet.graph.input[0].type.tensor_type.shape.dim][2:] == [64, 64]


def test_a_graph_with_its_size_baked_in_refuses_another_one() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(64, 2)

        def forward(self, image: Tensor) -> Tensor:
            return self.head(image.float().flatten(1))

    with pytest.raises(ExportError, match="does not take an input of 16x16"):
        with_input_size(to_onnx(Flat(), 8, 8), 16, 16)


def test_a_newer_opset_or_file_version_is_refused(unet: onnx.ModelProto) -> None:
    newer = onnx.ModelProto()
    newer.CopyFrom(unet)
    newer.ir_version = 10
    with pytest.raises(ExportError, match="IR version 10, expected opset 17 and IR 8"):
        check_versions(newer)
    newer.ir_version = 8
    newer.opset_import[0].version = 18
    with pytest.raises(ExportError, match=r"'ai\.onnx': 18"):
        check_versions(newer)


def test_a_network_that_fails_in_its_own_code_is_one_export_error() -> None:
    class Broken(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            raise ZeroDivisionError("inside")

    with pytest.raises(ExportError, match="ZeroDivisionError: inside"):
        to_onnx(Broken(), 8, 8)


def test_parameters_and_arithmetic_are_counted_by_hand() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 2, 2, stride=2)

        def forward(self, image: Tensor) -> Tensor:
            return self.second(self.first(image.float()))

    model = to_onnx(Two(), 8, 8)
    assert count_parameters(model) == (1 * 4 * 9 + 4) + (4 * 2 * 4 + 2)
    assert count_flops(model, 8, 8) == 2 * (36 * 64 + 32 * 16)
    assert count_flops(model, 16, 8) == 2 * count_flops(model, 8, 8)


def test_the_counts_of_a_folded_network_leave_batch_normalisation_out(unet: onnx.ModelProto) -> None:
    state = trained_unet().state_dict()
    weights = sum(value.numel() for name, value in state.items() if value.ndim == 4)
    biases = sum(value.shape[0] for name, value in state.items() if value.ndim == 4)
    assert count_parameters(unet) == weights + biases
