from __future__ import annotations

import numpy as np
import pytest

from calibration.gate_recall import RIM_PX
from training.cells import CLEAN, DEFECT, UNTOLD, cell_truth

CELL, DEFECT_PX = 32, 16


def truth_of(*boxes: tuple[int, int, int, int], cells: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Kinds and defect numbers of a mask with boxes of class 2: first line, lines, first column, columns."""
    mask = np.zeros((cells * CELL, cells * CELL), np.uint8)
    for line, lines, column, columns in boxes:
        mask[line : line + lines, column : column + columns] = 2
    kind, number = cell_truth(mask, CELL, DEFECT_PX)
    return kind, number


def test_a_defect_in_the_middle_of_a_cell_is_that_cells_alone():
    kind, number = truth_of((44, 8, 44, 8))
    assert np.argwhere(kind == DEFECT).tolist() == [[1, 1]]
    assert np.argwhere(number).tolist() == [[1, 1]]
    assert np.count_nonzero(kind == CLEAN) == 15


@pytest.mark.parametrize(("gap", "expected"), [(0, DEFECT), (RIM_PX - 2, DEFECT), (RIM_PX - 1, UNTOLD), (RIM_PX, CLEAN)])
def test_a_cell_is_taught_the_rim_of_its_neighbours_defect_and_nothing_where_it_hardly_reaches_it(gap, expected):
    # 8 lines high, so that two columns of it are the 16 px that make a cell defective
    kind, number = truth_of((44, 8, 32 + gap, 10))
    assert kind[1, 0] == expected
    assert number[1, 0] == 0


def test_a_few_pixels_of_a_defect_are_told_neither_way():
    kind, number = truth_of((40, 3, 40, 5))
    assert kind[1, 1] == UNTOLD
    assert not number.any()


def test_each_defect_is_one_number_wherever_it_owns_a_cell():
    kind, number = truth_of((0, 96, 4, 4), (8, 8, 72, 24))
    assert np.unique(number).tolist() == [0, 1, 2]
    first, second = number[0, 0], number[0, 2]
    assert np.argwhere(number == first).tolist() == [[0, 0], [1, 0], [2, 0]]
    assert np.argwhere(number == second).tolist() == [[0, 2]]
    assert (kind[number > 0] == DEFECT).all()


def test_more_defects_than_a_byte_counts_are_numbered_by_the_cells_that_they_own():
    boxes = [(line, 4, column, 4) for line in range(0, 250, 6) for column in range(0, 250, 6)]
    _, number = truth_of(*boxes, cells=8)
    assert np.unique(number).tolist() == list(range(1, 65))
