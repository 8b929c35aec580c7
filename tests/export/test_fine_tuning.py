from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from fragile_networks import SIDE, BlobNet, blobs_and_lines, made_fragile, taught
from torch import nn

from calibration.activations import RangeMethod, activation_ranges, collect
from edge.errors import ConfigError
from edge.evaluation import Confusion
from edge.sessions.ort import OrtSession
from export.errors import ExportError
from export.fine_tuning import FineTuned, FineTuning, fine_tune, load_fine_tuning
from export.networks.gate import SteelGate
from export.quantize import quantize, tensors_to_observe
from export.to_onnx import to_onnx

EXAMPLE = Path(__file__).parents[2] / "configs/export/qat.yaml"
CALIBRATION, _ = blobs_and_lines(64, seed=0)
IMAGES, MASKS = blobs_and_lines(64, seed=1)
SHORT = FineTuning(epochs=1, batch=16)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def sound() -> BlobNet:
    return taught()


@pytest.fixture(scope="module")
def fragile(sound) -> BlobNet:
    return made_fragile(sound)


@pytest.fixture(scope="module")
def tuned(fragile) -> FineTuned:
    return fine_tune(fragile, [CALIBRATION], FineTuning(), "softmax", threads=1)


def mean_iou(model: onnx.ModelProto) -> float:
    confusion = Confusion(("background", "blob", "line"))
    with OrtSession(model.SerializeToString(), threads=1) as session:
        confusion.add(MASKS, session.infer(IMAGES).argmax(axis=1).astype(np.uint8))
    return confusion.mean_iou()


def points_lost(reference: onnx.ModelProto, candidate: onnx.ModelProto) -> float:
    return 100.0 * (mean_iou(reference) - mean_iou(candidate))


def calibrated(model: onnx.ModelProto, method: RangeMethod) -> onnx.ModelProto:
    statistics = collect(model, tensors_to_observe(model), [CALIBRATION], threads=1)
    return quantize(model, activation_ranges(statistics, method))


def test_a_network_that_int8_breaks_is_mended(fragile, tuned):
    """Judged on the exported files, on images that neither training has seen."""
    floating = to_onnx(fragile, SIDE, SIDE)
    plain = min(points_lost(floating, calibrated(floating, method)) for method in RangeMethod)
    mended = points_lost(floating, quantize(to_onnx(tuned.network, SIDE, SIDE), tuned.ranges))
    assert plain > 3.0
    assert mended < plain / 2


def test_calibrating_anew_as_for_any_network_still_gains(fragile, tuned):
    floating, after = to_onnx(fragile, SIDE, SIDE), to_onnx(tuned.network, SIDE, SIDE)
    method = RangeMethod.MIN_MAX
    assert points_lost(floating, calibrated(after, method)) < points_lost(floating, calibrated(floating, method))


def test_the_loss_falls(tuned):
    assert len(tuned.losses) == FineTuning().epochs
    assert tuned.losses[-1] < tuned.losses[0] / 3


def test_a_network_that_int8_does_not_hurt_is_not_hurt_by_training(sound):
    floating = to_onnx(sound, SIDE, SIDE)
    result = fine_tune(sound, [CALIBRATION], FineTuning(epochs=3), "softmax", threads=1)
    assert points_lost(floating, quantize(to_onnx(result.network, SIDE, SIDE), result.ranges)) < 0.5


def test_the_result_is_the_network_it_was_with_other_weights(fragile, tuned):
    assert type(tuned.network) is BlobNet
    before, after = fragile.state_dict(), tuned.network.state_dict()
    assert list(after) == list(before)
    assert all(after[name].shape == before[name].shape for name in before)
    assert not torch.equal(after["stem.0.weight"], before["stem.0.weight"])
    BlobNet().load_state_dict(after)


def test_ranges_are_for_what_quantize_observes(tuned):
    model = to_onnx(tuned.network, SIDE, SIDE)
    assert set(tuned.ranges) == set(tensors_to_observe(model))
    assert all(found.limit > 0 for found in tuned.ranges.values())


def test_the_network_given_stays_as_it_is():
    network = BlobNet().eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    fine_tune(network, [CALIBRATION[:16]], SHORT, "softmax", threads=1)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_one_recipe_gives_one_network():
    torch.manual_seed(3)
    network = BlobNet().eval()
    first, second = (fine_tune(network, [CALIBRATION[:32]], SHORT, "softmax", threads=1) for _ in range(2))
    assert first.losses == second.losses
    assert first.ranges == second.ranges
    other = fine_tune(network, [CALIBRATION[:32]], SHORT.model_copy(update={"seed": 1}), "softmax", threads=1)
    assert other.losses != first.losses


def test_images_of_several_sizes_are_trained_on_and_large_ones_cut():
    wide = np.tile(CALIBRATION[:4], (1, 1, 2, 3))
    sizes = set()

    class Watched(BlobNet):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            if image.dtype == torch.uint8 and torch.is_tensor(image) and not torch.onnx.is_in_onnx_export():
                sizes.add(tuple(image.shape[1:]))
            return super().forward(image)

    network = Watched().eval()
    recipe = FineTuning(epochs=1, batch=2, crop=48)
    fine_tune(network, [CALIBRATION[:4], wide], recipe, "softmax", threads=1)
    assert sizes == {(1, 32, 32), (1, 48, 48)}


def test_a_crop_that_the_network_does_not_take_is_named():
    with pytest.raises(ExportError, match="Expected size 16 but got size 17"):
        fine_tune(BlobNet().eval(), [CALIBRATION[:4]], FineTuning(crop=17), "softmax", threads=1)
    smooth = np.full((1, 1, 64, 64), 128, np.uint8)
    with pytest.raises(ExportError, match=r"does not take images of 33x33.*multiple of the network's stride"):
        fine_tune(BlobNet().eval(), [CALIBRATION[:4], smooth], FineTuning(crop=33), "softmax", threads=1)


class OneSize(nn.Module):
    """A classifier that flattens what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(4 * (SIDE // 4) ** 2, 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(image.float() * (1 / 255)))


def test_a_network_of_one_size_is_trained_on_tiles_of_that_size_alone():
    torch.manual_seed(0)
    network = OneSize().eval()
    labels = (MASKS[:16] == 1).any(axis=(1, 2)).astype(np.uint8)
    result = fine_tune(network, [IMAGES[:16]], SHORT, "softmax", truth=[labels], threads=1)
    assert quantize(to_onnx(result.network, SIDE, SIDE), result.ranges)
    with pytest.raises(ExportError, match=r"images of several sizes .*tiles of one size, and a recipe without crop"):
        fine_tune(network, [IMAGES[:4], np.tile(IMAGES[:2], (1, 1, 2, 2))], SHORT, "softmax", threads=1)


def test_float_layers_keep_their_values(fragile):
    layers = ("down.0/Conv", "deep.0/Conv")
    result = fine_tune(fragile, [CALIBRATION[:16]], SHORT, "softmax", float_layers=layers, threads=1)
    model = to_onnx(result.network, SIDE, SIDE)
    kept = quantize(model, result.ranges, layers)
    quantized = {node.name for node in kept.graph.node if node.op_type == "Conv" and node.input[1].endswith("/weight")}
    assert quantized == {"stem.0/Conv", "lateral.0/Conv", "up.0/Conv", "head/Conv"}


def test_labels_have_the_say_that_the_recipe_gives_them(sound):
    """Masks that call blobs lines and lines blobs, against a teacher that knows better."""
    images, masks = blobs_and_lines(64, seed=0)
    swapped = np.array([0, 2, 1], np.uint8)
    defects = MASKS > 0

    def agreeing_with_masks(label_weight: float) -> float:
        recipe = FineTuning(epochs=6, rate=0.02, label_weight=label_weight)
        result = fine_tune(sound, [images], recipe, "softmax", truth=[swapped[masks]], threads=1)
        with torch.no_grad():
            labels = result.network(torch.from_numpy(IMAGES)).argmax(dim=1).numpy()
        return float((labels == swapped[MASKS])[defects].mean())

    assert agreeing_with_masks(0.0) < 0.1
    assert agreeing_with_masks(10.0) > 0.6


def test_a_gate_with_one_logit_is_trained_with_labels_per_tile():
    torch.manual_seed(0)
    gate = nn.Sequential(SteelGate(widths=(8, 8, 16)), nn.AdaptiveMaxPool2d(1), nn.Flatten()).eval()
    defective = (MASKS[:16] > 0).any(axis=(1, 2)).astype(np.uint8)
    result = fine_tune(gate, [IMAGES[:16]], FineTuning(epochs=2, label_weight=0.5), "sigmoid", truth=[defective], threads=1)
    assert np.isfinite(result.losses).all()
    assert quantize(to_onnx(result.network, SIDE, SIDE), result.ranges)


def test_a_torchscript_network_is_refused_with_the_way_out():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        script = torch.jit.trace(BlobNet().eval(), torch.from_numpy(CALIBRATION[:1]))
    with pytest.raises(ExportError, match=r"TorchScript network cannot be fine-tuned.*state dict"):
        fine_tune(script, [CALIBRATION[:8]], SHORT, "softmax")


class Locked(nn.Module):
    def __deepcopy__(self, memo: object) -> Locked:
        raise RuntimeError("holds a device")


def test_a_network_that_cannot_be_copied_is_refused():
    with pytest.raises(ExportError, match=r"cannot be copied.*holds a device"):
        fine_tune(Locked(), [CALIBRATION[:8]], SHORT, "softmax")


def test_training_that_runs_away_ends_with_what_to_change(fragile):
    broken = made_fragile(fragile, factor=1.0)
    with torch.no_grad():
        broken.head.weight *= 1e30
    with pytest.raises(ExportError, match=r"diverged in epoch 1.*lower the recipe's rate"):
        fine_tune(broken, [CALIBRATION[:16]], SHORT, "softmax", threads=1)


@pytest.mark.parametrize(
    ("tiles", "truth", "recipe", "message"),
    [
        ([], None, SHORT, "calibration tiles none"),
        ([CALIBRATION[0]], None, SHORT, r"calibration tiles uint8 \(1, 32, 32\)"),
        ([CALIBRATION.astype(np.float32)], None, SHORT, "calibration tiles float32"),
        ([CALIBRATION], None, FineTuning(label_weight=1.0), "label_weight is above 0 and there are no masks"),
        ([CALIBRATION], [MASKS[:, :8]], SHORT, r"truth of \(64, 8, 32\) for \(64, 1, 32, 32\)"),
        ([CALIBRATION[:8], CALIBRATION[8:]], [MASKS[:8]], SHORT, "truth of 1 batches, 2 of tiles"),
    ],
)
def test_examples_that_do_not_fit_are_refused(tiles, truth, recipe, message):
    with pytest.raises(ExportError, match=message):
        fine_tune(BlobNet().eval(), tiles, recipe, "softmax", truth=truth)


def test_the_shipped_recipe_states_the_defaults():
    assert load_fine_tuning(EXAMPLE) == FineTuning(crop=256)


def test_a_recipes_faults_are_all_named(tmp_path):
    path = tmp_path / "qat.yaml"
    path.write_text("epochs: 0\nlearning_rate: 1\nrate: fast\n")
    with pytest.raises(ConfigError) as caught:
        load_fine_tuning(path)
    assert [line.split(": ")[1] for line in str(caught.value).splitlines()] == ["epochs", "rate", "learning_rate"]


@pytest.mark.parametrize(
    ("text", "message"), [("- 1\n", "expected keys and values at the top, got list"), ("epochs: [", "not YAML")]
)
def test_a_recipe_that_is_none_is_refused(tmp_path, text, message):
    path = tmp_path / "qat.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_fine_tuning(path)
    with pytest.raises(ConfigError, match=r"cannot be read.*configs/export/qat.yaml"):
        load_fine_tuning(tmp_path / "absent.yaml")
