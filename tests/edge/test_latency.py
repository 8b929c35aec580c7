from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.latency import LatencyHistogram


@given(st.lists(st.floats(0.02, 1e5), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_a_percentile_is_within_four_percent_of_the_exact_one(latencies, share):
    histogram = LatencyHistogram()
    for latency in latencies:
        histogram.add(latency)
    exact = np.quantile(latencies, share, method="inverted_cdf")
    assert histogram.percentile(share) == pytest.approx(exact, rel=0.04)


def test_without_latencies_there_is_no_percentile():
    assert LatencyHistogram().percentile(0.5) is None


def test_a_clock_that_was_set_back_counts_as_the_smallest_latency_and_a_huge_one_as_the_largest():
    histogram = LatencyHistogram()
    histogram.add(-5.0)
    histogram.add(1e12)
    assert histogram.percentile(0.5) < 0.011
    assert histogram.percentile(1.0) > 9e5


def test_counts_of_a_checkpoint_make_the_same_histogram():
    histogram = LatencyHistogram()
    for latency in (1.0, 2.0, 300.0):
        histogram.add(latency)
    again = LatencyHistogram(histogram.counts)
    again.add(1.0)
    assert len(again) == 4
    assert again.percentile(0.25) == histogram.percentile(0.25)
