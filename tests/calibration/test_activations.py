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
    LEVELS,
    PERCENTILES,
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
@given(finite, finite, st.sampled_from(list(PERCENTILES)))
def test_a_percentile_covers_its_share_and_no_bin_more(common, rare, method):
    values = np.concatenate([common.repeat(10_000 // common.size), rare])
    magnitudes = np.sort(np.abs(values.astype(np.float64)))
    exact = magnitudes[math.ceil(magnitudes.size * PERCENTILES[method] / 100.0) - 1]
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


def entropy_limit(values):
    return activation_range(observe(np.asarray(values, np.float32)), RangeMethod.ENTROPY).limit


def divergence_as_published(counts, stop):
    """KL(P || Q) for the first `stop` bins, term by term as the slides have it."""
    reference = counts[:stop].astype(np.float64)
    reference[-1] += counts[stop:].sum()
    candidate = np.zeros(stop)
    for level in range(LEVELS):
        inside = np.arange(math.ceil(level * stop / LEVELS), math.ceil((level + 1) * stop / LEVELS))
        occupied = inside[counts[inside] > 0]
        if occupied.size:
            candidate[occupied] = counts[inside].sum() / occupied.size
    if not candidate.any():
        return math.inf
    p, q = reference / reference.sum(), candidate / candidate.sum()
    if (q[p > 0] == 0).any():
        return math.inf
    return float((p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum())


@pytest.mark.parametrize("outliers", [0, 20])
@pytest.mark.parametrize("relu", [False, True])
def test_the_entropy_range_is_the_one_of_least_divergence(outliers, relu):
    rng = np.random.default_rng(outliers)
    values = np.append(rng.normal(size=20_000), rng.uniform(5, 12, outliers)).astype(np.float32)
    statistics = observe(np.maximum(values, 0) if relu else values)
    counts = statistics.counts.copy()
    counts[0] = min(counts[0], counts[1])
    stops = np.arange(LEVELS, np.flatnonzero(counts)[-1] + 2)
    divergences = np.array([divergence_as_published(counts, stop) for stop in stops])
    found = math.ceil(activation_range(statistics, RangeMethod.ENTROPY).limit / 2.0**statistics.bin_exponent)
    assert divergences[found - LEVELS] == pytest.approx(divergences.min(), abs=1e-12)


def test_entropy_clips_the_outliers_of_a_gaussian_and_spares_its_tail():
    values = np.random.default_rng(1).normal(size=200_000)
    with_outliers = np.append(values, [25.0, -30.0, 40.0])
    assert 3.5 < entropy_limit(with_outliers) < 6.0
    assert 3.5 < entropy_limit(values) <= np.abs(values).max().astype(np.float32)


def test_entropy_hardly_clips_values_that_are_spread_evenly():
    values = np.random.default_rng(2).uniform(-1, 1, 200_000)
    assert entropy_limit(values) > 0.98 * np.abs(values).max()


def test_zeros_of_a_relu_do_not_narrow_the_entropy_range():
    positive = np.abs(np.random.default_rng(3).normal(size=50_000))
    assert entropy_limit(np.append(positive, np.zeros(500_000))) == pytest.approx(entropy_limit(positive), rel=0.15)


@settings(deadline=None)
@given(st.lists(finite, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_ranges_of_every_method_do_not_depend_on_how_values_were_cut_into_batches(parts, random):
    whole = observe(np.concatenate(parts))
    random.shuffle(parts)
    merged = observe(parts[0])
    for part in parts[1:]:
        merged = merge(merged, observe(part))
    assert [activation_range(merged, method) for method in RangeMethod] == [
        activation_range(whole, method) for method in RangeMethod
    ]


@settings(deadline=None)
@given(finite, st.sampled_from(RangeMethod))
def test_no_range_reaches_beyond_the_largest_value(values, method):
    limit = activation_range(observe(values), method).limit
    assert 0.0 <= limit <= np.abs(values).max()
    assert (limit > 0.0) == bool(values.any())


def test_a_tensor_of_zeros_has_the_range_zero():
    statistics = observe(np.zeros(7, np.float32))
    assert [activation_range(statistics, method).limit for method in RangeMethod] == [0.0, 0.0, 0.0, 0.0]


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
