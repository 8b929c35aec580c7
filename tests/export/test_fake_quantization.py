from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import numpy_helper
from small_networks import images
from torch import Tensor, nn
from torch.nn import functional

from calibration.activations import ActivationRange, RangeMethod, activation_ranges, collect
from export.errors import ExportError
from export.fake_quantization import SimulatedInt8, read_places, round_activation, round_weight
from export.networks.gate import SteelGate
from export.networks.grey_input import IMAGENET, UNIT, GreyInput
from export.networks.pits_unet import PitsUNet
from export.networks.unet import ConvBlock, SteelUNet
from export.quantize import quantize, quantize_weight, tensors_to_observe
from export.to_onnx import to_onnx

SIDE = 32


class Residual(nn.Module):
    """Functions instead of modules, sums in place, squeeze and excitation, depthwise, a convolution that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.first = nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.twice = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.squeeze = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, image: Tensor) -> Tensor:
        x = functional.silu(self.stem(image))
        y = functional.relu(self.norm(self.first(x)))
        y = torch.relu_(self.twice(functional.dropout(y, 0.5, self.training)))
        x = x + y
        z = functional.relu(x)
        z = z * torch.sigmoid(self.squeeze(functional.adaptive_avg_pool2d(z, 1)))
        z += functional.relu(self.twice(z))
        return self.head(functional.adaptive_avg_pool2d(z, 1).flatten(1))


class Program(nn.Module):
    """A network as `torch.export` keeps it: operators on tensors, no modules; it has no mode to switch."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        example = torch.zeros((2, 1, SIDE, SIDE), dtype=torch.uint8)
        batch = {"image": {0: torch.export.Dim("n")}}
        self.program = torch.export.export(network, (example,), dynamic_shapes=batch).module()

    def train(self, mode: bool = True) -> Program:
        return self

    def forward(self, image: Tensor) -> Tensor:
        return self.program(image)


def made(name: str) -> nn.Module:
    torch.manual_seed(1)
    return unlike_new(NETWORKS[name]())


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "steel-unet": lambda: SteelUNet(widths=(8, 8, 16, 16)),
    "steel-gate": lambda: SteelGate(widths=(8, 16, 16)),
    "pits-unet": lambda: GreyInput(PitsUNet(width=4, levels=2), UNIT),
    "functions": lambda: GreyInput(Residual(), IMAGENET),
}


def unlike_new(network: nn.Module) -> nn.Module:
    """A network whose batch normalisation does something."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0.0, 0.3)
            module.running_var.uniform_(0.3, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.3, 0.3)
    return network.eval()


def ranges_of(model: onnx.ModelProto) -> dict[str, ActivationRange]:
    tiles = images(8, SIDE, SIDE)
    return activation_ranges(collect(model, tensors_to_observe(model), [tiles], threads=1), RangeMethod.PERCENTILE_99_9)


def simulated(network: nn.Module) -> tuple[SimulatedInt8, onnx.ModelProto]:
    model = to_onnx(network, SIDE, SIDE)
    quantized = quantize(model, ranges_of(model))
    return SimulatedInt8(network, model, quantized, images(1, SIDE, SIDE, seed=5), tensors_to_observe(model)), quantized


def with_exact_biases(quantized: onnx.ModelProto, network: nn.Module) -> onnx.ModelProto:
    """The file without what training leaves out: biases are rounded to the accumulator's unit, a thousandth of a step."""
    biases = {node.name: node.input[2] for node in to_onnx(network, SIDE, SIDE).graph.node if len(node.input) > 2}
    floating = {i.name: i for i in to_onnx(network, SIDE, SIDE).graph.initializer}
    for initializer in quantized.graph.initializer:
        layer = initializer.name.removesuffix("/bias")
        if layer in biases and layer != initializer.name:
            values = numpy_helper.to_array(floating[biases[layer]])
            initializer.CopyFrom(numpy_helper.from_array(values, initializer.name))
    return quantized


def run_as_written(model: onnx.ModelProto, tiles: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": tiles})[0]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_simulation_answers_as_the_exported_file_does(name: str):
    """But for values at the border of two steps; a place left out would be a fifteenth of the rounding or more."""
    network = made(name)
    simulation, quantized = simulated(network)
    tiles = images(6, SIDE, SIDE, seed=2)
    with torch.no_grad():
        got, floating = simulation(torch.from_numpy(tiles)).numpy(), network(torch.from_numpy(tiles)).numpy()
    wanted = run_as_written(with_exact_biases(quantized, network), tiles)
    error, rounding = (np.sqrt(np.mean((values - wanted) ** 2)) for values in (got, floating))
    assert rounding > 0.0
    assert error < 0.06 * rounding


@pytest.mark.parametrize("name", NETWORKS)
def test_every_place_of_the_file_is_found_in_the_network(name: str):
    simulation, quantized = simulated(made(name))
    places = read_places(quantized)
    assert len(places.weightings) > 2
    assert set(simulation.limits()) == set(places.groups)


def test_weights_behind_a_signed_input_keep_to_their_smaller_integers():
    _, quantized = simulated(made("steel-gate"))
    largest = [weighting.largest for weighting in read_places(quantized).weightings]
    assert largest == [64, *[127] * 6]


@settings(deadline=None)
@given(
    arrays(np.float32, (3, 2, 3, 3), elements=st.floats(-10, 10, width=32)),
    st.sampled_from([64, 127]),
)
def test_weights_are_rounded_to_the_numbers_that_the_file_holds(weight: np.ndarray, largest: int):
    integers, scale = quantize_weight(weight, largest, input_scale=0.1)
    wanted = integers.astype(np.float32) * scale[:, None, None, None]
    got = round_weight(torch.from_numpy(weight), largest).numpy()
    # the last digit of a quotient decides at the border of two steps
    assert (
        np.abs(got - wanted) <= 1.0001 * scale[:, None, None, None] * near_border(weight, scale) + 1e-6 * np.abs(wanted)
    ).all()


def near_border(weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    steps = np.abs(weight / scale[:, None, None, None]) % 1.0
    return np.abs(steps - 0.5) < 1e-4


@settings(deadline=None)
@given(arrays(np.float32, 64, elements=st.floats(-20, 20, width=32)), st.floats(0.1, 15.0))
def test_activations_are_rounded_as_quantizelinear_and_back(values: np.ndarray, limit: float):
    scale = np.float32(limit / 127)
    rounded = round_activation(torch.from_numpy(values), torch.tensor(limit)).numpy()
    wanted = np.clip(np.rint(values / scale), -128, 127) * scale
    assert (np.abs(rounded - wanted) <= 1.0001 * scale * near_border(values[:, None], scale[None])[:, 0] + 1e-5 * limit).all()


def test_gradients_pass_through_rounding_and_stop_at_the_limit():
    values = torch.tensor([-3.0, -0.4, 0.3, 0.9, 2.5], requires_grad=True)
    limit = torch.tensor(1.0, requires_grad=True)
    round_activation(values, limit).sum().backward()
    assert values.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]
    # at the limits the output is -128/127 and 1 limits; between them the limit only moves the rounding error
    assert limit.grad.item() == pytest.approx(-128 / 127 + 1, abs=3 * 0.5 / 127)
    weight = torch.tensor([[0.5, -1.0], [0.0, 0.01]], requires_grad=True)
    (round_weight(weight, 127) * torch.tensor([[1.0, 2.0], [3.0, 4.0]])).sum().backward()
    assert weight.grad.tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_nothing_changes_until_the_parameters_are_written_back():
    network = made("steel-gate")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    simulation, _ = simulated(network)
    with torch.no_grad():
        for share in simulation.shares:
            share *= 1.5
    simulation(torch.from_numpy(images(1, SIDE, SIDE)))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    written = simulation.write_back().state_dict()
    assert list(written) == list(before)
    changed = {name for name, value in written.items() if not torch.equal(value, before[name])}
    # weights of convolutions and what shifts their channels; what normalisation knows of the training data stays
    assert changed == {name for name in before if name.endswith((".0.weight", ".1.bias")) or name.startswith("head")}
    torch.testing.assert_close(written["features.0.0.weight"], 1.5 * before["features.0.0.weight"])


def test_a_network_exported_by_torch_is_simulated_as_the_one_it_came_from():
    torch.manual_seed(1)
    layers = nn.Sequential(ConvBlock(1, 8), nn.MaxPool2d(2), ConvBlock(8, 8), nn.Conv2d(8, 2, 1))
    program = Program(unlike_new(GreyInput(layers, UNIT)))
    simulation, quantized = simulated(program)
    tiles = images(2, SIDE, SIDE, seed=3)
    with torch.no_grad():
        error = simulation(torch.from_numpy(tiles)).numpy() - run_as_written(quantized, tiles)
    assert np.abs(error).mean() < 1e-3 * np.abs(run_as_written(quantized, tiles)).mean()


class Fourier(nn.Module):
    """Convolves by multiplying spectra: no convolution of torch's anywhere."""

    def forward(self, image: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(image.float()))


def test_a_place_that_the_network_does_not_show_is_named():
    network = made("steel-gate")
    model = to_onnx(network, SIDE, SIDE)
    quantized = quantize(model, ranges_of(model))
    with pytest.raises(ExportError, match=r"computes no .*features.*by itself.*export without --qat"):
        SimulatedInt8(Fourier(), model, quantized, images(1, SIDE, SIDE), ())


class OwnConvolution(nn.Module):
    """A 1x1 convolution written as a matrix product."""

    def __init__(self, network: nn.Sequential) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        x = (image.float() - 128) * (1 / 64)
        weight = self.network[0].weight
        mixed = torch.einsum("oi,nihw->nohw", weight[:, :, 0, 0], x)
        return self.network[2](self.network[1](mixed))


def test_a_convolution_that_is_none_of_torchs_is_named():
    torch.manual_seed(1)
    layers = nn.Sequential(nn.Conv2d(1, 8, 1, bias=False), nn.ReLU(), nn.Conv2d(8, 2, 1))

    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, image: Tensor) -> Tensor:
            return self.layers((image.float() - 128) * (1 / 64))

    model = to_onnx(Normalised(), SIDE, SIDE)
    quantized = quantize(model, ranges_of(model))
    with pytest.raises(ExportError, match="otherwise than by one of torch's functions for layers"):
        SimulatedInt8(OwnConvolution(layers).eval(), model, quantized, images(1, SIDE, SIDE), ())
