from __future__ import annotations

import pytest
import torch

from training.cells import CLEAN, DEFECT, UNTOLD
from training.losses import gate_loss, segmentation_loss, soft_jaccard


def sure_of(truth: torch.Tensor, classes: int) -> torch.Tensor:
    return 50.0 * torch.nn.functional.one_hot(truth, classes).permute(0, 3, 1, 2).float()


def test_a_sure_and_right_answer_costs_nothing_and_a_sure_and_wrong_one_everything():
    truth = torch.tensor([[[0, 1], [2, 1]]]).repeat(1, 200, 200)
    assert soft_jaccard(sure_of(truth, 3), truth).item() == pytest.approx(0, abs=1e-4)
    assert soft_jaccard(sure_of((truth + 1) % 3, 3), truth).item() == pytest.approx(1, abs=1e-3)


def test_soft_jaccard_of_sure_answers_is_one_minus_the_mean_iou_over_the_batch():
    truth = torch.zeros(2, 100, 100, dtype=torch.long)
    truth[0, :50] = 1
    answer = truth.clone()
    answer[0, 50:75] = 1
    expected = 1 - ((50 / 75) + (125 / 150)) / 2
    assert soft_jaccard(sure_of(answer, 2), truth).item() == pytest.approx(expected, abs=1e-3)


def test_a_heavier_class_costs_more_when_it_is_missed():
    truth = torch.zeros(1, 8, 8, dtype=torch.long)
    truth[0, 0, 0] = 1
    wrong = sure_of(torch.zeros_like(truth), 2) / 10
    light, heavy = (segmentation_loss(wrong, truth, torch.tensor([1.0, weight])) for weight in (1.0, 5.0))
    assert heavy > light


def cells(*kinds_and_numbers: tuple[int, int]) -> torch.Tensor:
    """Truth of one row of cells, (1, 2, 1, n)."""
    return torch.tensor(kinds_and_numbers).T[None, :, None]


def logits(*values: float) -> torch.Tensor:
    return torch.tensor(values)[None, None, None]


def test_a_gate_that_misses_a_defective_cell_pays_more_than_for_a_false_alarm():
    missed = gate_loss(logits(-3.0), cells((DEFECT, 0)), defect_weight=3.0)
    alarmed = gate_loss(logits(3.0), cells((CLEAN, 0)), defect_weight=3.0)
    assert missed.item() == pytest.approx(3 * alarmed.item())


def test_a_cell_that_is_told_neither_way_costs_nothing_whatever_the_gate_says():
    truth = cells((CLEAN, 0), (UNTOLD, 0))
    low, high = (gate_loss(logits(-1.0, value), truth, defect_weight=3.0) for value in (-9.0, 9.0))
    assert low == high


def test_a_defect_costs_by_its_best_cell_and_a_small_one_as_much_as_a_large_one():
    best = torch.tensor(2.0)
    one = gate_loss(logits(-1.0, 2.0, -4.0), cells((UNTOLD, 1), (UNTOLD, 1), (CLEAN, 0)), defect_weight=3.0)
    two = gate_loss(logits(-1.0, 2.0, 2.0, -4.0), cells((UNTOLD, 1), (UNTOLD, 1), (UNTOLD, 2), (CLEAN, 0)), defect_weight=3.0)
    clean = torch.nn.functional.softplus(torch.tensor(-4.0))
    assert one.item() == pytest.approx((clean + torch.nn.functional.softplus(-best)).item())
    assert two.item() == pytest.approx(one.item())


def test_defects_of_the_same_number_in_two_crops_are_two():
    truth = torch.cat([cells((DEFECT, 1)), cells((DEFECT, 1))])
    found_once = gate_loss(torch.cat([logits(9.0), logits(-5.0)]), truth, defect_weight=1.0)
    found_twice = gate_loss(torch.cat([logits(9.0), logits(9.0)]), truth, defect_weight=1.0)
    assert found_once.item() == pytest.approx(5.0, abs=0.05)
    assert found_twice.item() == pytest.approx(0.0, abs=0.01)
