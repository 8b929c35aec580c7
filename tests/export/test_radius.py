from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnxruntime as ort
import pytest
import torch
from dense_networks import narrow
from hypothesis import given, settings
from hypothesis import strategies as st
from small_checkpoints import CLASSES, steel_image, trained_unet
from torch import Tensor, nn

from edge.manifest import HaloShare
from edge.sessions.ort import OrtSession
from export.errors import ExportError
from export.halo import FEWEST_PIXELS, choose_halo, measure_halos
from export.passes.streaming import stream
from export.quality import Reading
from export.radius import Reach, WholeTileError, _show_enough, measure_reach
from export.to_onnx import to_onnx, with_input_size


class Convolutions(nn.Module):
    """Kernels one after another; what they reach is known by arithmetic."""

    def __init__(self, *kernels: int, dilation: int = 1) -> None:
        super().__init__()
        layers = [nn.Conv2d(1, 1, k, padding=(k // 2) * dilation, dilation=dilation) for k in kernels]
        self.layers = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> Tensor:
        return self.layers((image.float() - 100.0) / 17.0)


@pytest.mark.parametrize(("kernels", "dilation", "radius"), [((1,), 1, 0), ((3,), 1, 1), ((3, 5, 3), 1, 4), ((3, 3), 3, 6)])
def test_the_radius_of_plain_convolutions_is_the_sum_of_their_margins(
    kernels: tuple[int, ...], dilation: int, radius: int
) -> None:
    assert measure_reach(to_onnx(Convolutions(*kernels, dilation=dilation), 64, 64)) == Reach(1, radius)


def test_weights_that_cancel_or_vanish_do_not_hide_what_a_network_could_see() -> None:
    network = Convolutions(3, 3)
    for layer in network.layers:
        nn.init.zeros_(layer.weight)
        nn.init.constant_(layer.bias, -5.0)
    assert measure_reach(to_onnx(network, 64, 64)).radius == 2


@pytest.fixture(scope="module")
def unet_reach() -> Reach:
    return measure_reach(to_onnx(trained_unet(), 64, 64))


def test_the_unet_reaches_as_far_as_its_geometry_says(unet_reach: Reach) -> None:
    assert unet_reach == Reach(stride=16, radius=100)
    assert unet_reach.halo == 112
    # the streaming pass derives the same from the operators, without running any
    streamed = stream(to_onnx(trained_unet(), 64, 64))
    assert (streamed.stride, streamed.reach_lines) == (unet_reach.stride, unet_reach.radius)


def test_a_crop_with_the_measured_halo_answers_as_the_whole_image(unet_reach: Reach) -> None:
    model = with_input_size(to_onnx(trained_unet(), 64, 64), "height", "width")
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    image = np.random.default_rng(0).integers(0, 256, (1, 1, 512, 512), dtype=np.uint8)
    whole = session.run(None, {"image": image})[0]
    core, halo = slice(224, 288), unet_reach.halo
    crop = np.ascontiguousarray(image[:, :, 224 - halo : 288 + halo, 224 - halo : 288 + halo])
    inside = session.run(None, {"image": crop})[0][:, :, halo:-halo, halo:-halo]
    np.testing.assert_allclose(inside, whole[:, :, core, core], atol=1e-5 * np.ptp(whole))


@pytest.mark.parametrize(
    ("name", "reach"),
    [("residual", Reach(16, 62)), ("bottleneck", Reach(16, 86)), ("plain", Reach(8, 51)), ("nested", Reach(8, 51))],
)
def test_the_radius_of_the_seed_networks_is_what_their_operators_say(name: str, reach: Reach) -> None:
    model = narrow(name)
    assert measure_reach(model) == reach
    streamed = stream(model)
    assert (streamed.stride, streamed.reach_lines) == (reach.stride, reach.radius)


class Whole(nn.Module):
    """A convolution, and behind it something that depends on the whole tile."""

    def __init__(self, behind: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, stride=2, padding=1)
        self.behind = behind

    def forward(self, image: Tensor) -> Tensor:
        return self.behind(torch.relu(self.first(image.float())))


def spread_corners(x: Tensor) -> Tensor:
    return nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)


@pytest.mark.parametrize(
    ("behind", "node"),
    [
        (lambda x: x * nn.functional.adaptive_avg_pool2d(x, 1), "GlobalAveragePool"),
        (lambda x: x * x.mean(dim=(2, 3), keepdim=True), "ReduceMean"),
        (lambda x: torch.softmax(x, dim=2), "Softmax"),
        (spread_corners, "Resize"),
    ],
)
def test_a_network_that_looks_at_the_whole_tile_has_no_radius_and_the_operator_is_named(
    behind: Callable[[Tensor], Tensor], node: str
) -> None:
    with pytest.raises(WholeTileError, match="one that pools over the whole tile has no halo") as caught:
        measure_reach(to_onnx(Whole(behind), 64, 64))
    assert node in caught.value.node
    assert caught.value.node in str(caught.value)


def test_what_upsampling_padding_and_cropping_reach_is_counted() -> None:
    """Bilinear: half a pixel of stride 2 more on both sides than the repeated one; a 4x4 kernel of stride 2: one and a half."""

    def reach(behind: Callable[[Tensor], Tensor]) -> int:
        return measure_reach(to_onnx(Whole(behind), 64, 64)).radius

    repeated = reach(lambda x: nn.functional.interpolate(x, scale_factor=2.0))
    assert repeated == 2  # a pixel reads those of its pair's window: -1 .. +1 around the first, -2 .. 0 around the second
    assert reach(lambda x: nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)) == repeated + 1
    weight = torch.ones(4, 2, 4, 4)
    assert reach(lambda x: nn.functional.conv_transpose2d(x, weight, stride=2, padding=1)) == repeated + 1
    assert reach(lambda x: nn.functional.pixel_shuffle(x, 2)) == repeated

    def padded(x: Tensor) -> Tensor:
        """A window of four, one before and two behind."""
        around = nn.functional.pad(x, (2, 3, 2, 3))[:, :, 1:-1, 1:-1]
        return nn.functional.pixel_shuffle(nn.functional.avg_pool2d(around, 4, 1), 2)

    assert reach(padded) == 5  # pairs j - 1 .. j + 2, of which pair j + 2 reads pixel 2 (j + 2) + 1, seen from pixel 2 j


def test_a_radius_far_too_small_for_the_network_itself_is_found_out() -> None:
    """Random weights hand on hardly anything from the outermost pixels, so only a large error shows."""
    with pytest.raises(ExportError, match=r"when pixels more than 8 px along the strip do; expected no change"):
        _show_enough(narrow("plain"), Reach(8, 8))
    _show_enough(narrow("plain"), Reach(8, 51))


def test_a_stride_that_differs_along_and_across_is_refused() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.Conv2d(1, 2, 3, stride=(2, 1), padding=1)

        def forward(self, image: Tensor) -> Tensor:
            return nn.functional.interpolate(self.down(image.float()), scale_factor=(2.0, 1.0))

    with pytest.raises(ExportError, match="stride is 2 along and 1 across"):
        measure_reach(to_onnx(Flat(), 64, 64))


def test_smaller_halos_change_more_pixels_and_the_full_one_none(unet_reach: Reach) -> None:
    model = with_input_size(to_onnx(trained_unet(), 64, 64), "height", "width")
    reading = Reading(CLASSES, "softmax", 0.5, unet_reach)
    with OrtSession(model.SerializeToString(), threads=1) as session:
        found = measure_halos(session, [steel_image(seed, 200, 200, 12)[0] for seed in range(4)], reading, core=96)
    changed = {share.halo: share.changed for share in found.shares}
    assert list(changed) == list(range(0, 113, 16))
    assert changed[0] > 0
    assert changed[112] == 0
    assert changed[0] >= changed[48] >= changed[96]
    assert found.pixels == 400 * 400


def shares(changed: list[float]) -> list[HaloShare]:
    return [HaloShare(halo=16 * index, changed=value) for index, value in enumerate(changed)]


def test_the_default_halo_is_the_smallest_from_which_on_one_pixel_in_100000_changes_at_most() -> None:
    assert choose_halo(shares([0.01, 2e-5, 1e-5, 0.0]), Reach(16, 48), FEWEST_PIXELS) == 32
    assert choose_halo(shares([0.01, 0.0, 2e-5, 0.0]), Reach(16, 48), FEWEST_PIXELS) == 48


def test_too_few_pixels_prove_no_smaller_halo() -> None:
    assert choose_halo(shares([0.0, 0.0, 0.0, 0.0]), Reach(16, 48), FEWEST_PIXELS - 1) == 48


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
@settings(max_examples=200)
def test_a_chosen_halo_is_a_measured_one_and_all_larger_ones_change_less_than_allowed(changed: list[float]) -> None:
    measured = shares(changed)
    full = measured[-1].halo
    chosen = choose_halo(measured, Reach(16, full), FEWEST_PIXELS)
    assert chosen in {share.halo for share in measured}
    assert all(share.changed <= 1e-5 for share in measured if chosen <= share.halo < full)
