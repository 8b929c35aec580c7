from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from calibration.gate_recall import ScoredMap, clean_scores, pixels_around, recall_at, region_peaks, threshold_for
from edge.errors import RustEdgeError

CELL = 8


@st.composite
def scored_maps(draw: st.DrawFn) -> ScoredMap:
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    scores = draw(hnp.arrays(np.float32, (rows, columns), elements=st.floats(0, 1, width=32)))
    # rarely a pixel, grown to squares: masks with defects of several sizes
    seeds = draw(hnp.arrays(np.uint8, (rows * 2, columns * 2), elements=st.sampled_from([0, 0, 0, 1, 2])))
    return ScoredMap(scores, np.kron(seeds, np.ones((CELL // 2, CELL // 2), np.uint8)), CELL)


def with_defect(scores: np.ndarray, line: slice, column: slice) -> ScoredMap:
    mask = np.zeros((scores.shape[0] * CELL, scores.shape[1] * CELL), np.uint8)
    mask[line, column] = 1
    return ScoredMap(scores, mask, CELL)


@given(st.lists(scored_maps(), min_size=1, max_size=4), st.floats(0.01, 1.0))
@settings(max_examples=200, deadline=None)
def test_the_threshold_keeps_the_stated_share_of_the_defects_and_no_higher_one_would(maps, recall):
    if not any(region_peaks(scored).size for scored in maps):
        with pytest.raises(RustEdgeError, match="holds no defect of at least 8 px"):
            threshold_for(maps, recall)
        return
    threshold = threshold_for(maps, recall)
    assert recall_at(maps, threshold).recall >= recall - 1e-9
    assert recall_at(maps, np.nextafter(threshold, 2)).recall < recall + 1e-9


@given(scored_maps(), st.integers(0, 12))
@settings(max_examples=100, deadline=None)
def test_defect_pixels_are_counted_in_every_cell_and_around_it(scored, rim):
    padded = np.pad(scored.mask > 0, rim)
    side = CELL + 2 * rim
    expected = [
        [np.count_nonzero(padded[row : row + side, column : column + side]) for column in range(0, scored.mask.shape[1], CELL)]
        for row in range(0, scored.mask.shape[0], CELL)
    ]
    assert pixels_around(scored.mask, CELL, rim).tolist() == expected


def test_a_defect_is_found_by_its_best_cell():
    scored = with_defect(np.array([[0.1, 0.7, 0.9, 0.6]]), slice(2, 4), slice(2, 14))
    assert region_peaks(scored).tolist() == [0.7]
    found = recall_at([scored], 0.5)
    assert (found.recall, found.covered, found.clean_cells, found.alarmed_clean) == (1.0, 0.5, 1, 1.0)


def test_two_defects_that_touch_by_a_corner_are_one():
    mask = np.zeros((8, 16), np.uint8)
    mask[0:4, 4:8] = mask[4:8, 8:12] = 1
    assert region_peaks(ScoredMap(np.array([[0.2, 0.6]]), mask, CELL)).tolist() == [0.6]


@pytest.mark.parametrize(("columns", "defects"), [(7, 0), (8, 1)])
def test_a_speck_below_the_smallest_reported_defect_is_none(columns, defects):
    scored = with_defect(np.array([[0.4]]), slice(3, 4), slice(0, columns))
    assert region_peaks(scored).size == defects


def test_a_cell_beside_a_defect_is_not_counted_as_clean():
    scores = np.array([[0.9, 0.8, 0.3]])
    beside = with_defect(scores, slice(0, 8), slice(0, 8))
    assert clean_scores(beside, rim=0).tolist() == [0.8, 0.3]
    assert clean_scores(beside, rim=1).tolist() == [0.3]


def test_clean_steel_alone_has_no_recall_to_lose():
    found = recall_at([ScoredMap(np.array([[0.2, 0.6]]), np.zeros((8, 16), np.uint8), CELL)], 0.5)
    assert (found.regions, found.recall, found.covered, found.alarmed_clean) == (0, 1.0, 1.0, 0.5)


def test_a_mask_of_another_size_than_its_cells_is_refused():
    with pytest.raises(RustEdgeError, match=r"mask is \(8, 24\), its scores \(1, 2\) by 8 px; expected \(8, 16\)"):
        ScoredMap(np.zeros((1, 2)), np.zeros((8, 24), np.uint8), CELL)
