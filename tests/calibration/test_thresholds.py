from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from calibration.thresholds import UNMEASURED, ThresholdSearch, gate_threshold, iou_by_threshold
from edge.errors import RustEdgeError

CLASSES = ("background", "pit", "scratch")


@st.composite
def scored_tiles(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    count = draw(st.integers(2, 60))
    scores = draw(hnp.arrays(np.float32, count, elements=st.floats(0, 1, width=32)))
    defective = draw(hnp.arrays(np.bool_, count))
    defective[:2] = True, False
    return scores, defective


@given(scored_tiles(), st.floats(0.01, 1.0))
@settings(max_examples=300)
def test_the_gate_keeps_the_stated_recall_and_no_higher_threshold_would(
    tiles: tuple[np.ndarray, np.ndarray], recall: float
) -> None:
    scores, defective = tiles
    found = gate_threshold(scores, defective, recall)
    positives = scores[defective]
    assert found.recall == (positives >= found.score).mean() >= recall - 1e-9
    assert found.passed_clean == (scores[~defective] >= found.score).mean()
    higher = positives[positives > found.score + 2e-6]
    assert (
        higher.size == 0
        or (positives >= higher.min()).mean() < recall
        or higher.min() == positives[positives >= found.score].min()
    )


def test_the_device_compares_in_float32_and_still_lets_the_weakest_kept_tile_through() -> None:
    scores = np.random.default_rng(0).random(2000).astype(np.float32)
    defective = np.arange(2000) % 2 == 0
    for recall in (0.9, 0.99, 0.999, 1.0):
        found = gate_threshold(scores, defective, recall)
        assert (scores[defective] >= np.float32(found.score)).mean() >= recall


def test_one_tile_in_a_thousand_may_be_lost_at_the_default_recall() -> None:
    scores = np.concatenate([np.linspace(0.5, 1.0, 1000), [0.1]])
    defective = np.arange(1001) < 1000
    assert gate_threshold(scores, defective, 0.999).recall == 0.999
    assert gate_threshold(scores, defective, 1.0).recall == 1.0


def test_a_perfect_gate_lets_no_clean_tile_through() -> None:
    found = gate_threshold(np.array([0.9, 0.8, 0.2, 0.1]), np.array([True, True, False, False]), 0.999)
    assert (found.score, found.recall, found.passed_clean) == (0.8, 1.0, 0.0)


@pytest.mark.parametrize(
    ("scores", "defective", "recall", "message"),
    [
        ([0.5, 0.6], [True, True], 0.9, "2 defective and 0 clean tiles"),
        ([0.5, 0.6], [False, False], 0.9, "0 defective and 2 clean tiles"),
        ([0.5, 1.6], [True, False], 0.9, "not probabilities"),
        ([0.5, float("nan")], [True, False], 0.9, "not probabilities"),
        ([], [], 0.9, "not probabilities"),
        ([0.5, 0.6], [True], 0.9, "one of each per tile"),
        ([0.5, 0.6], [True, False], 0.0, "recall is 0"),
        ([0.5, 0.6], [True, False], 1.1, "recall is 1.1"),
    ],
)
def test_data_that_give_no_threshold_are_refused(scores: list[float], defective: list[bool], recall: float, message: str) -> None:
    with pytest.raises(RustEdgeError, match=message):
        gate_threshold(np.array(scores), np.array(defective, bool), recall)


def scene() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two pits: one found surely, one weakly; a false alarm between them in confidence; a scratch that nobody found."""
    truth, mask, confidence = (np.zeros((40, 40), np.uint8) for _ in range(3))
    truth[2:8, 2:8] = mask[2:8, 2:8] = 1
    confidence[2:8, 2:8] = 250
    truth[20:26, 2:8] = mask[20:26, 2:8] = 1
    confidence[20:26, 2:8] = 180
    mask[30:33, 30:33] = 1
    confidence[30:33, 30:33] = 120
    truth[10:12, 20:40] = 2
    return truth, mask, confidence


def test_low_is_where_the_iou_of_the_class_is_highest() -> None:
    search = ThresholdSearch(CLASSES)
    search.add(*scene())
    pit = search.choose()["pit"]
    assert pit.threshold.low == pytest.approx(121 / 255, abs=1e-6)
    assert (pit.iou, pit.iou_at_zero) == (1.0, 72 / 81)


def test_high_keeps_the_defects_that_were_found_and_says_what_false_ones_remain() -> None:
    search = ThresholdSearch(CLASSES)
    search.add(*scene())
    pit = search.choose()["pit"]
    assert pit.threshold.high == pytest.approx(180 / 255, abs=1e-6)
    assert (pit.defects, pit.kept, pit.false_regions, pit.false_kept) == (2, 2, 1, 0)


def test_one_weak_defect_in_a_hundred_is_given_for_fewer_false_alarms() -> None:
    search = ThresholdSearch(CLASSES)
    for number in range(100):
        truth = np.zeros((8, 8), np.uint8)
        truth[2:4, 2:4] = 1
        search.add(truth, truth, truth * (100 if number == 0 else 230))
    pit = search.choose()["pit"]
    assert pit.threshold.high == pytest.approx(230 / 255, abs=1e-6)
    assert (pit.defects, pit.kept) == (100, 99)


def test_a_stored_threshold_keeps_the_pixels_of_its_own_step() -> None:
    search = ThresholdSearch(CLASSES)
    search.add(*scene())
    threshold = search.choose()["pit"].threshold
    assert np.float32(threshold.high) <= np.float32(180 / 255)
    assert np.ceil(threshold.high * 255 - 1e-3) == 180


def test_a_class_that_was_never_found_has_no_measured_threshold() -> None:
    search = ThresholdSearch(CLASSES)
    search.add(*scene())
    scratch = search.choose()["scratch"]
    assert scratch.threshold == UNMEASURED
    assert not scratch.measured


@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_thresholds_do_not_depend_on_the_order_of_images(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    images = [
        (rng.integers(0, 3, (9, 11), np.uint8), rng.integers(0, 3, (9, 11), np.uint8), rng.integers(0, 256, (9, 11), np.uint8))
        for _ in range(count)
    ]
    forwards, backwards = ThresholdSearch(CLASSES), ThresholdSearch(CLASSES)
    for image in images:
        forwards.add(*image)
    for image in reversed(images):
        backwards.add(*image)
    assert forwards.choose() == backwards.choose()
    assert all(found.threshold.low <= found.threshold.high for found in forwards.choose().values())


@given(hnp.arrays(np.int64, 256, elements=st.integers(0, 50)), hnp.arrays(np.int64, 256, elements=st.integers(0, 50)))
def test_iou_by_threshold_equals_counting_again_at_every_threshold(hits: np.ndarray, misses: np.ndarray) -> None:
    truth = int(hits.sum()) + 7
    again = [hits[step:].sum() / (truth + misses[step:].sum()) for step in range(256)]
    np.testing.assert_allclose(iou_by_threshold(hits, misses, truth), again)
