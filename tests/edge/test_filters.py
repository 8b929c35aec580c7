from __future__ import annotations

import pytest

from edge.config import ClassRule, Filters, FixedColumns, Merge, Scale, StripEdges
from edge.errors import ConfigError
from edge.manifest import Threshold
from edge.tracking.filters import (
    ClassLimits,
    EdgeLimits,
    FixedColumnLimits,
    MergeLimits,
    Reason,
    defect_fault,
    region_fault,
    resolve_rules,
)
from edge.tracking.geometry import Ellipse

CLASSES = ("background", "rust", "pit")
SCALE = Scale(mm_per_line=0.5, mm_per_column=0.25)


def test_thresholds_are_the_bundles_where_the_station_sets_none():
    rules = resolve_rules(Filters(classes={"rust": ClassRule(high=0.9)}), CLASSES, {"rust": Threshold(low=0.4, high=0.6)}, SCALE)
    rust, pit = rules.classes[1:]
    assert (rust.low, rust.high) == (102, 230)
    # Neither has one for pits: one half, rounded up to the next 255th.
    assert (pit.low, pit.high) == (128, 128)


def test_a_threshold_on_a_255th_is_that_step():
    # 0.6 * 255 is 153 but for the rounding of floating point.
    rules = resolve_rules(Filters(), CLASSES, {"rust": Threshold(low=0.6, high=1.0)}, SCALE)
    assert (rules.classes[1].low, rules.classes[1].high) == (153, 255)


def test_a_named_class_has_its_own_rule_and_the_others_the_default():
    filters = Filters(default=ClassRule(min_area_mm2=2.0), classes={"pit": ClassRule(min_area_mm2=0.1, ignore=True)})
    rust, pit = resolve_rules(filters, CLASSES, {}, SCALE).classes[1:]
    assert (rust.min_area_mm2, rust.ignore) == (2.0, False)
    assert (pit.min_area_mm2, pit.ignore) == (0.1, True)


def test_lengths_become_pixels_margins_up_and_merge_distances_down():
    filters = Filters(
        strip_edges=StripEdges(background_below=30, margin_mm=2.1),
        merge=Merge(along_mm=5.2, across_mm=0.6),
        fixed_columns=FixedColumns(over_mm=100.2, share=0.7),
    )
    rules = resolve_rules(filters, CLASSES, {}, SCALE)
    assert rules.strip_edges == EdgeLimits(30, 9)
    assert rules.merge == MergeLimits(10, 2)
    assert rules.fixed_columns == FixedColumnLimits(201, 0.7)


def test_a_length_that_is_a_whole_number_of_pixels_is_that_number():
    # 0.7 / 0.1 is 6.999..., 0.3 / 0.1 is 2.999... in floating point.
    filters = Filters(strip_edges=StripEdges(background_below=30, margin_mm=0.6), merge=Merge(along_mm=0.7, across_mm=0.3))
    rules = resolve_rules(filters, CLASSES, {}, Scale(mm_per_line=0.1, mm_per_column=0.1))
    assert rules.merge == MergeLimits(7, 3)
    assert rules.strip_edges == EdgeLimits(30, 6)


def test_filters_without_a_distance_are_off():
    filters = Filters(merge=Merge(along_mm=0, across_mm=0), fixed_columns=FixedColumns(over_mm=None))
    rules = resolve_rules(filters, CLASSES, {}, SCALE)
    assert (rules.strip_edges, rules.merge, rules.fixed_columns) == (None, None, None)


def test_every_fault_is_named_at_once_with_what_is_expected():
    filters = Filters(default=ClassRule(high=0.3), classes={"dent": ClassRule(), "background": ClassRule()})
    with pytest.raises(ConfigError) as raised:
        resolve_rules(filters, CLASSES, {"rust": Threshold(low=0.4, high=0.6)}, SCALE)
    message = str(raised.value)
    assert "filters.classes.dent: the bundle has no such class; expected one of rust, pit" in message
    assert "filters.classes.background" in message
    assert "filters.default: low 0.4 is above high 0.3 for class rust" in message
    assert "for class pit" in message


def test_more_classes_than_a_mask_can_hold_are_refused():
    with pytest.raises(ConfigError, match="got 129 classes, expected at most 128"):
        resolve_rules(Filters(), tuple(f"c{index}" for index in range(129)), {}, SCALE)


def test_rules_have_one_fingerprint_each():
    rules = resolve_rules(Filters(), CLASSES, {}, SCALE)
    assert rules.fingerprint() == resolve_rules(Filters(), CLASSES, {}, SCALE).fingerprint()
    assert rules.fingerprint() != resolve_rules(Filters(merge=Merge(along_mm=6)), CLASSES, {}, SCALE).fingerprint()


@pytest.mark.parametrize(
    ("limits", "area", "peak", "inside", "expected"),
    [
        (ClassLimits(high=128, ignore=True), 10, 50, 0, Reason.IGNORED),
        (ClassLimits(high=128), 10, 127, 0, Reason.CONFIDENCE),
        (ClassLimits(high=128), 10, 128, 4, Reason.STRIP_EDGE),
        (ClassLimits(high=128), 10, 128, 5, None),
    ],
)
def test_connected_pixels_fail_by_the_first_rule_that_they_break(limits, area, peak, inside, expected):
    assert region_fault(limits, area, peak, inside) is expected


@pytest.mark.parametrize(
    ("area_mm2", "length", "expected"),
    [
        (0.9, 20.0, Reason.MIN_AREA),
        (1.0, 2.9, Reason.MIN_LENGTH),
        (1.0, 3.0, Reason.ASPECT),
        (1.0, 4.0, None),
        (1.0, 9.0, Reason.ASPECT),
    ],
)
def test_a_defect_fails_by_the_first_rule_that_it_breaks(area_mm2, length, expected):
    limits = ClassLimits(min_area_mm2=1.0, min_length_mm=3.0, min_aspect_ratio=2.0, max_aspect_ratio=4.0)
    assert defect_fault(limits, area_mm2, Ellipse(length, 2.0, 0.0)) is expected
