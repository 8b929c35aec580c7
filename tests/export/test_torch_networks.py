from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from strip_runs import run
from tensorrt_builder import build
from torch import nn

from calibration.activations import activation_ranges, collect
from export.errors import ExportError
from export.networks import ARCHITECTURES, find_architecture
from export.networks.grey_input import GreyInput
from export.networks.pits_unet import PitsUNet
from export.networks.rust_cnn import RustCnn
from export.passes.half_precision import to_half
from export.passes.lint import lint
from export.passes.streaming import stream
from export.quantize import quantize, tensors_to_observe
from export.to_onnx import to_onnx

torch.set_num_threads(1)


def trained(network: nn.Module) -> nn.Module:
    """With weights and statistics as after training: batch normalisation that does something."""
    generator = torch.Generator().manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for values, low, high in ((layer.running_mean, -0.2, 0.2), (layer.running_var, 0.5, 2.0), (layer.weight, 0.5, 1.5)):
                values.data.uniform_(low, high, generator=generator)
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, generator=generator)
    return network.eval()


NETWORKS = {"rust-cnn": trained(RustCnn()), "pits-unet": trained(PitsUNet(width=8))}
TILES = {"rust-cnn": (32, 32), "pits-unet": (64, 48)}


def grey_network(name: str) -> GreyInput:
    architecture = find_architecture(name)
    network = architecture.build(NETWORKS[name].state_dict())
    network.load_state_dict(NETWORKS[name].state_dict())
    return GreyInput(network.eval(), architecture.normalisation).eval()


@pytest.fixture(scope="module", params=NETWORKS)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def engine(name) -> onnx.ModelProto:
    return to_onnx(grey_network(name), *TILES[name])


def tiles(name: str, count: int = 3) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, 1, *TILES[name]), dtype=np.uint8)


def answer(model: onnx.ModelProto, batch: np.ndarray) -> np.ndarray:
    return run(model, {"image": batch})[0]


def test_rust_cnn_has_the_names_and_shapes_of_its_checkpoint():
    shapes = {name: tuple(value.shape) for name, value in RustCnn().state_dict().items()}
    assert shapes == {
        "conv_layers.0.weight": (32, 3, 3, 3), "conv_layers.0.bias": (32,),
        "conv_layers.3.weight": (64, 32, 3, 3), "conv_layers.3.bias": (64,),
        "conv_layers.6.weight": (128, 64, 3, 3), "conv_layers.6.bias": (128,),
        "fc_layers.1.weight": (512, 2048), "fc_layers.1.bias": (512,),
        "fc_layers.4.weight": (2, 512), "fc_layers.4.bias": (2,),
    }  # fmt: skip


def test_pits_unet_has_four_levels_and_a_bottleneck_of_1024():
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in PitsUNet().state_dict().items() if value.ndim == 4}
    assert [shapes[f"downs.{level}.conv.0.weight"] for level in range(4)] == [
        (64, 1, 3, 3), (128, 64, 3, 3), (256, 128, 3, 3), (512, 256, 3, 3),
    ]  # fmt: skip
    assert shapes["bottleneck.conv.3.weight"] == (1024, 1024, 3, 3)
    assert [shapes[f"ups.{index}.weight"] for index in (0, 2, 4, 6)] == [
        (1024, 512, 2, 2), (512, 256, 2, 2), (256, 128, 2, 2), (128, 64, 2, 2),
    ]  # fmt: skip
    assert shapes["ups.1.conv.0.weight"] == (512, 1024, 3, 3)
    assert shapes["final_conv.weight"] == (1, 64, 1, 1)


def test_the_seed_networks_expect_what_their_systems_feed_them():
    cnn, unet = ARCHITECTURES["rust-cnn"], ARCHITECTURES["pits-unet"]
    assert (cnn.tile, cnn.classes, cnn.activation) == ((32, 32), ("clean", "rust"), "softmax")
    assert [step.kind for step in cnn.preparation] == ["resize"]
    assert (unet.tile, unet.activation, unet.pixel_threshold) == ((224, 224), "sigmoid", 0.5)
    grey = torch.full((1, 1, 2, 2), 100, dtype=torch.uint8)
    stacked = GreyInput(nn.Identity(), cnn.normalisation)(grey)[0, :, 0, 0].numpy()
    expected = (100 / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(stacked, expected, rtol=1e-5)
    assert GreyInput(nn.Identity(), unet.normalisation)(grey).shape == (1, 1, 2, 2)


@pytest.mark.parametrize(
    ("arch", "network"),
    [
        ("rust-cnn", RustCnn(classes=5, widths=(8, 12, 16), features=16 * 4 * 4, hidden=24)),
        ("rust-cnn", RustCnn(channels=1, widths=(4, 4, 4), features=64, hidden=8)),
        ("pits-unet", PitsUNet(classes=3, channels=3, width=4, levels=2)),
        ("pits-unet", PitsUNet(width=2, levels=5)),
    ],
)
def test_widths_and_classes_come_from_the_state_dict(arch: str, network: nn.Module):
    rebuilt = find_architecture(arch).build(network.state_dict())
    assert {name: value.shape for name, value in rebuilt.state_dict().items()} == {
        name: value.shape for name, value in network.state_dict().items()
    }


@pytest.mark.parametrize("arch", NETWORKS)
def test_a_state_dict_of_another_network_is_refused_with_the_first_layer_that_it_lacks(arch: str):
    with pytest.raises(ExportError, match=r"checkpoint holds nothing at (conv_layers\.0|downs\.0\.conv\.0)\.weight"):
        find_architecture(arch).build(nn.Conv2d(1, 1, 1).state_dict())


def test_the_engine_answers_as_torch_does(name, engine):
    batch = tiles(name)
    with torch.inference_mode():
        expected = grey_network(name)(torch.from_numpy(batch)).numpy()
    np.testing.assert_allclose(answer(engine, batch), expected, atol=1e-4)


def test_batch_normalisation_is_folded_and_the_file_is_clean(engine):
    assert "BatchNormalization" not in {node.op_type for node in engine.graph.node}
    assert lint(engine) == ()


def test_the_plain_unet_streams():
    streamed = stream(to_onnx(grey_network("pits-unet"), *TILES["pits-unet"]))
    assert streamed.stride == 16
    assert lint(streamed.model) == ()


def quantized(model: onnx.ModelProto, batch: np.ndarray) -> onnx.ModelProto:
    return quantize(model, activation_ranges(collect(model, tensors_to_observe(model), [batch])))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_tensorrt_parses_and_builds_the_engine(name, engine, precision: str):
    smaller = {"fp32": lambda: engine, "fp16": lambda: to_half(engine), "int8": lambda: quantized(engine, tiles(name))}
    model = smaller[precision]()
    assert lint(model) == ()
    build(model)
