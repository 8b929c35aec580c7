from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from strip_runs import run
from tensorrt_builder import build
from torch import nn
from torchvision_operators import library

from export.checkpoints import load_network, read_checkpoint
from export.errors import ExportError
from export.networks import ARCHITECTURES, find_architecture
from export.networks.grey_input import IMAGENET, UNIT, GreyInput
from export.networks.library import settle
from export.passes.half_precision import to_half
from export.passes.lint import lint
from export.passes.streaming import stream
from export.to_onnx import to_onnx

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def smp():
    return library("segmentation_models_pytorch")


@pytest.fixture(scope="module")
def timm():
    return library("timm")


@pytest.fixture(scope="module")
def pits(smp) -> nn.Module:
    """What the system trains, with random weights."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library will drop the name one day; the system's checkpoints keep it
        network = smp.UnetPlusPlus(encoder_name="timm-efficientnet-b0", encoder_weights=None, in_channels=1, classes=1)
    return network.eval()


@pytest.fixture(scope="module")
def pits_engine(pits) -> onnx.ModelProto:
    return to_onnx(grey_network("pits-unetpp", pits.state_dict()), 64, 64)


def grey_network(name: str, state: dict[str, torch.Tensor], classes: tuple[str, ...] = ()) -> GreyInput:
    architecture = settle(find_architecture(name), state, classes)
    network = architecture.build(state)
    network.load_state_dict(state)
    return GreyInput(network.eval(), architecture.normalisation).eval()


def difference(model: onnx.ModelProto, network: nn.Module, side: int = 64) -> float:
    """The largest between the engine and torch on the same tiles, of scores spread over about 1."""
    batch = np.random.default_rng(1).integers(0, 256, (2, 1, side, side), dtype=np.uint8)
    scores = run(model, {"image": batch})[0]
    with torch.inference_mode():
        return float(np.abs(scores - network(torch.from_numpy(batch)).numpy()).max())


def test_the_pits_unetpp_answers_as_torch_does(pits, pits_engine):
    assert difference(pits_engine, GreyInput(pits, UNIT)) < 1e-4
    assert lint(pits_engine) == ()


def test_a_pickled_module_and_its_state_dict_are_one_network(pits, tmp_path: Path):
    torch.save(pits, tmp_path / "module.pth")
    torch.save(pits.state_dict(), tmp_path / "state.pth")
    checkpoints = read_checkpoint(tmp_path / "module.pth", trust=True), read_checkpoint(tmp_path / "state.pth")
    image = torch.rand(1, 1, 32, 32)
    with torch.inference_mode():
        for checkpoint in checkpoints:
            network = load_network(checkpoint, find_architecture("pits-unetpp"))
            torch.testing.assert_close(network(image), pits(image), rtol=0, atol=0)


def test_a_pickled_module_is_refused_unless_it_is_trusted(pits, tmp_path: Path):
    torch.save(pits, tmp_path / "module.pth")
    with pytest.raises(ExportError, match="trust-checkpoint"):
        read_checkpoint(tmp_path / "module.pth")


def test_the_pits_unetpp_cannot_stream_and_the_node_that_pools_is_named(pits_engine):
    with pytest.raises(ExportError, match=r"(ReduceMean|GlobalAveragePool) '\S+' cannot run as the strip runs"):
        stream(pits_engine)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_tensorrt_parses_and_builds_the_pits_unetpp(pits_engine, precision: str):
    build(pits_engine if precision == "fp32" else to_half(pits_engine))


def test_depth_widths_channels_and_attention_of_a_unet_come_from_its_state_dict(smp):
    network = smp.Unet("resnet18", 4, None, decoder_channels=(64, 48, 32, 32), decoder_attention_type="scse", classes=3)
    state = network.eval().state_dict()
    rebuilt = grey_network("smp-unet:resnet18", state, ("background", "pit", "rust"))
    assert difference(to_onnx(rebuilt, 32, 32), GreyInput(network, IMAGENET), side=32) < 1e-4


def test_a_unetpp_without_global_pooling_streams(smp):
    torch.manual_seed(0)
    network = smp.UnetPlusPlus("resnet18", 2, None, decoder_channels=(16, 8), in_channels=1, classes=2).eval()
    rebuilt = grey_network("smp-unetpp:resnet18", network.state_dict(), ("background", "pit", "rust"))
    engine = to_onnx(rebuilt, 32, 32)
    assert difference(engine, GreyInput(network, UNIT), side=32) < 1e-4
    assert stream(engine).stride == 4


def test_a_timm_classifier_is_fed_as_timm_says(timm):
    network = timm.create_model("mobilenetv3_small_050", num_classes=3).eval()
    settled = settle(find_architecture("timm:mobilenetv3_small_050"), network.state_dict(), ("clean", "rust", "pit"))
    assert (settled.kind, settled.activation, settled.tile, settled.normalisation) == (
        "classifier", "softmax", (224, 224), IMAGENET,
    )  # fmt: skip
    rebuilt = grey_network("timm:mobilenetv3_small_050", network.state_dict(), settled.classes)
    assert difference(to_onnx(rebuilt, 64, 64), GreyInput(network, IMAGENET)) < 1e-4


def test_one_name_a_channel_is_a_softmax_one_more_a_sigmoid(smp):
    state = smp.Unet("resnet18", 3, None, decoder_channels=(8, 8, 8), in_channels=1, classes=2).state_dict()
    unet = find_architecture("smp-unet:resnet18")
    softmax, sigmoid = settle(unet, state, ("background", "rust")), settle(unet, state, ("background", "rust", "pit"))
    assert (softmax.activation, sigmoid.activation) == ("softmax", "sigmoid")
    assert softmax.normalisation == UNIT
    for classes in ((), ("rust",), ("background", "rust", "pit", "scratch")):
        with pytest.raises(ExportError, match=r"2 output channels, got \d class names; expected 2 \(softmax\) or 3 \(sigmoid\)"):
            settle(unet, state, classes)


def test_unknown_encoders_and_models_are_named(smp, timm, pits):
    state = smp.Unet("resnet18", 3, None, decoder_channels=(8, 8, 8)).state_dict()
    with pytest.raises(ExportError, match="no Unet with encoder 'resnet19'"):
        find_architecture("smp-unet:resnet19").build(state)
    with pytest.raises(ExportError, match="timm has no classifier 'resnet19'; expected resnet"):
        find_architecture("timm:resnet19").build(pits.state_dict())


def test_a_state_dict_of_another_network_is_refused():
    state = nn.Conv2d(1, 1, 1).state_dict()
    for name in ("pits-unetpp", "smp-unet:resnet18"):
        with pytest.raises(ExportError, match=r"checkpoint holds nothing at (segmentation_head\.0\.weight|decoder\.blocks)"):
            find_architecture(name).build(state)


def test_generic_names_need_a_library_and_a_network():
    assert find_architecture("smp-unetpp:resnet34").kind == "segmenter"
    assert find_architecture("timm:resnet18").kind == "classifier"
    for name in ("smp-unet", "smp-unet:", "timm", "keras:resnet", ":resnet18"):
        with pytest.raises(ExportError, match=r"expected one of steel-unet, .*smp-unet:ENCODER, smp-unetpp:ENCODER, timm:MODEL"):
            find_architecture(name)


def test_other_architectures_are_settled_already():
    for architecture in ARCHITECTURES.values():
        assert settle(architecture, {}, ()) is architecture


@pytest.mark.parametrize(("name", "package"), [("pits-unetpp", "segmentation_models_pytorch"), ("timm:resnet18", "timm")])
def test_without_the_library_one_error_names_the_extra(name: str, package: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, package, None)  # what Python itself writes for a package that is not there
    state = {"segmentation_head.0.weight": torch.zeros(1, 16, 3, 3), "encoder.conv.weight": torch.zeros(8, 1, 3, 3)}
    state |= {f"decoder.blocks.x_0_{level}.conv2.0.weight": torch.zeros(16, 16, 3, 3) for level in range(2)}
    with pytest.raises(ExportError, match=rf"need {package}, which cannot be imported .* pip install 'rust-edge\[library\]'"):
        find_architecture(name).build(state)


def test_the_registry_is_read_without_the_libraries():
    script = "import sys, export.networks; print([name for name in ('timm', 'torchvision', 'keras') if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.strip() == "[]"
