from __future__ import annotations

import numpy as np
import onnx
import pytest
from small_checkpoints import steel_image, trained_unet

from calibration.activations import RangeMethod
from export.quantize import quantizable_layers
from export.sensitivity import QuantizationLossError, layer_groups, quantize_within
from export.to_onnx import to_onnx


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return to_onnx(trained_unet(), 96, 96)


@pytest.fixture(scope="module")
def batches() -> list[np.ndarray]:
    return [steel_image(seed)[0][None, None] for seed in range(2)]


def quantized_groups(model: onnx.ModelProto) -> set[str]:
    weights = [i.name for i in model.graph.initializer if i.data_type == onnx.TensorProto.INT8 and len(i.dims) == 4]
    return {name.partition("/")[0].partition(".")[0] for name in weights}


def test_within_the_budget_nothing_goes_back_to_float(model: onnx.ModelProto, batches: list[np.ndarray]) -> None:
    found = quantize_within(model, batches, lambda _: 0.8, 0.803, max_drop=0.5, threads=1)
    assert found.float_layers == ()
    assert found.loss == pytest.approx(0.3)
    assert set(found.methods) == {"min_max", "percentile_99_99", "percentile_99_9", "entropy"}
    assert found.sensitivity == {}


def test_the_range_method_that_loses_least_is_kept(model: onnx.ModelProto, batches: list[np.ndarray]) -> None:
    values = iter([0.5, 0.7, 0.6, 0.65])
    found = quantize_within(model, batches, lambda _: next(values), 0.7, max_drop=0.5, threads=1)
    assert found.method == RangeMethod.PERCENTILE_99_99.value
    assert list(found.methods.values()) == pytest.approx([20.0, 0.0, 10.0, 5.0])


def test_the_groups_that_cost_most_go_back_to_float_and_no_others(model: onnx.ModelProto, batches: list[np.ndarray]) -> None:
    cost = {"stem": 0.05, "decoder_2": 0.04}

    def judge(candidate: onnx.ModelProto) -> float:
        return 0.9 - sum(cost.get(group, 0.0001) for group in quantized_groups(candidate))

    found = quantize_within(model, batches, judge, 0.9, max_drop=0.5, threads=1)
    assert {layer.partition(".")[0] for layer in found.float_layers} == {"stem", "decoder_2"}
    assert found.loss <= 0.5
    assert not {"stem", "decoder_2"} & quantized_groups(found.model)
    assert min(found.sensitivity, key=lambda name: found.sensitivity[name]) == "stem"


def test_a_loss_that_nothing_mends_is_refused_with_what_was_tried(model: onnx.ModelProto, batches: list[np.ndarray]) -> None:
    with pytest.raises(QuantizationLossError) as caught:
        quantize_within(model, batches, lambda _: 0.5, 0.9, max_drop=0.5, threads=1)
    message = str(caught.value)
    assert "INT8 loses 40.00 points, expected at most 0.50 (--max-drop)" in message
    assert "min_max loses 40.00" in message
    assert "decoder_4 loses 40.00" in message
    assert caught.value.tried.loss == pytest.approx(40.0)


def test_groups_hold_every_layer_that_can_be_quantized_once(model: onnx.ModelProto) -> None:
    layers = quantizable_layers(model)
    groups = layer_groups(layers)
    assert sorted(layer for group in groups.values() for layer in group) == sorted(layers)
    assert groups["encoder_8"] == ["encoder_8.0.0/Conv", "encoder_8.1.0/Conv"]
