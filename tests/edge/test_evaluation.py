from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import RustEdgeError
from edge.evaluation import Confusion, classifier_figures

CLASSES = ("background", "pit", "scratch")


def confusion(truth: list[int], predicted: list[int], classes: tuple[str, ...] = CLASSES) -> Confusion:
    found = Confusion(classes)
    found.add(np.array(truth, np.uint8), np.array(predicted, np.uint8))
    return found


def test_iou_is_intersection_over_union_of_each_class() -> None:
    found = confusion([0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 2, 0])
    assert found.iou() == {"background": 1 / 3, "pit": 2 / 3, "scratch": 1 / 2}
    assert found.dice() == {"background": 1 / 2, "pit": 4 / 5, "scratch": 2 / 3}
    assert found.mean_iou() == pytest.approx((1 / 3 + 2 / 3 + 1 / 2) / 3)
    assert found.mean_iou_defects() == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_a_class_that_nothing_holds_takes_no_part_in_the_mean() -> None:
    found = confusion([0, 0, 1, 1], [0, 0, 1, 0])
    assert found.iou() == {"background": 2 / 3, "pit": 1 / 2}
    assert found.mean_iou_defects() == 1 / 2


def test_a_class_that_is_only_predicted_counts_as_zero() -> None:
    assert confusion([0, 0], [0, 2]).iou()["scratch"] == 0.0


def test_nothing_counted_is_no_number() -> None:
    assert math.isnan(Confusion(CLASSES).mean_iou())
    assert math.isnan(confusion([0], [0]).mean_iou_defects())


@given(st.integers(0, 2**32 - 1))
def test_one_matrix_summed_over_images_is_that_of_all_pixels_at_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = [(rng.integers(0, 3, (5, n), np.uint8), rng.integers(0, 3, (5, n), np.uint8)) for n in rng.integers(1, 9, 4)]
    summed, whole = Confusion(CLASSES), Confusion(CLASSES)
    for truth, predicted in images:
        summed.add(truth, predicted)
    whole.add(np.hstack([truth for truth, _ in images]), np.hstack([predicted for _, predicted in images]))
    np.testing.assert_array_equal(summed.counts, whole.counts)
    assert (summed.added, summed.total) == (4, whole.total)
    for name, dice in summed.dice().items():
        assert dice == pytest.approx(2 * summed.iou()[name] / (1 + summed.iou()[name]))


def test_indices_that_are_no_class_are_refused_with_what_was_got() -> None:
    with pytest.raises(RustEdgeError, match=r"truth holds class indices 0 to 255; expected 0\.\.2: background, pit, scratch"):
        confusion([0, 255], [0, 1])
    with pytest.raises(RustEdgeError, match="prediction holds class indices 0 to 3"):
        confusion([0, 1], [0, 3])


def test_arrays_of_different_shapes_are_refused() -> None:
    with pytest.raises(RustEdgeError, match=r"truth is \(3,\), prediction \(2,\)"):
        confusion([0, 0, 0], [0, 0])


def test_a_classifier_is_judged_by_its_defective_tiles() -> None:
    figures = classifier_figures(confusion([0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0], ("clean", "defect")))
    assert figures.accuracy == 4 / 6
    assert (figures.recall, figures.precision, figures.passed_clean) == (1 / 2, 1 / 2, 1 / 4)
    assert figures.confusion == ((3, 1), (1, 1))


def test_a_classifier_without_defective_tiles_has_no_recall() -> None:
    figures = classifier_figures(confusion([0, 0], [0, 0], ("clean", "defect")))
    assert (figures.accuracy, figures.passed_clean) == (1.0, 0.0)
    assert math.isnan(figures.recall)
    assert math.isnan(figures.precision)
