from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from small_networks import gate, images

from calibration.activations import (
    BINS,
    ActivationRange,
    CalibrationError,
    RangeMethod,
    activation_range,
    activation_ranges,
    collect,
    merge,
    observe,
)

finite = arrays(np.float32, st.integers(1, 40), elements=st.floats(-1e6, 1e6, width=32))


@settings(deadline=None)
@given(st.lists(finite, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_statistics_do_not_depend_on_how_values_were_cut_into_batches(parts, random):
    whole = observe(np.concatenate(parts))
    random.shuffle(parts)
    merged = observe(parts[0])
    for part in parts[1:]:
        merged = merge(merged, observe(part))
    assert (merged.abs_max, merged.non_negative, merged.bin_exponent) == (whole.abs_max, whole.non_negative, whole.bin_exponent)
    np.testing.assert_array_equal(merged.counts, whole.counts)
    assert merged.counts.sum() == sum(part.size for part in parts)


@settings(deadline=None)
@given(finite, finite, st.sampled_from([RangeMethod.PERCENTILE_99_99, RangeMethod.PERCENTILE_99_9]))
def test_a_percentile_covers_its_share_and_no_bin_more(common, rare, method):
    values = np.concatenate([common.repeat(10_000 // common.size), rare])
    magnitudes = np.sort(np.abs(values.astype(np.float64)))
    exact = magnitudes[math.ceil(magnitudes.size * method.value / 100.0) - 1]
    limit = activation_range(observe(values), method).limit
    assert exact <= limit <= exact + max(magnitudes[-1], 2.0**-50) / (BINS / 2)


@settings(deadline=None)
@given(finite)
def test_min_max_covers_every_value_and_tells_the_sign(values):
    found = activation_range(observe(values), RangeMethod.MIN_MAX)
    assert found == ActivationRange(float(np.abs(values).max()), bool((values >= 0).all()))


def test_a_rare_outlier_is_outside_the_percentile_and_inside_min_max():
    values = np.append(np.linspace(0, 1, 100_000, dtype=np.float32), np.float32(50))
    statistics = observe(values)
    assert activation_range(statistics, RangeMethod.MIN_MAX).limit == 50.0
    assert activation_range(statistics, RangeMethod.PERCENTILE_99_99).limit == pytest.approx(1.0, rel=0.05)


def test_a_tensor_of_zeros_has_the_range_zero():
    statistics = observe(np.zeros(7, np.float32))
    assert [activation_range(statistics, method).limit for method in RangeMethod] == [0.0, 0.0, 0.0]


def test_zeros_do_not_coarsen_what_they_are_merged_with():
    small = observe(np.array([1e-6], np.float32))
    assert merge(observe(np.zeros(3, np.float32)), small).bin_exponent == small.bin_exponent


def test_ranges_of_an_engine_do_not_depend_on_the_batches():
    model, tiles = gate(), images(6, 32, 32)
    names = ["first_relu_out", "head_out"]
    at_once = collect(model, names, [tiles])
    one_by_one = collect(model, names, (tile[None] for tile in tiles))
    assert activation_ranges(at_once) == activation_ranges(one_by_one)
    assert activation_ranges(at_once)["first_relu_out"].non_negative
    assert not activation_ranges(at_once)["head_out"].non_negative


def test_no_tiles_are_refused():
    with pytest.raises(CalibrationError, match="no calibration tiles"):
        collect(gate(), ["head_out"], [])


def test_unknown_tensors_are_named():
    with pytest.raises(CalibrationError, match="does not have: nowhere"):
        collect(gate(), ["head_out", "nowhere"], [images(1, 32, 32)])


def test_values_that_are_not_finite_are_refused_with_the_tensor():
    model = gate()
    bias = next(i for i in model.graph.initializer if i.name == "second.bias")
    bias.raw_data = np.full(16, np.nan, np.float32).tobytes()
    with pytest.raises(CalibrationError, match=r"tensor head_out: values are not finite"):
        collect(model, ["head_out"], [images(1, 32, 32)])
