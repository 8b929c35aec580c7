from __future__ import annotations

import pytest
import torch

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


def test_a_gate_that_misses_a_defect_pays_more_than_for_a_false_alarm():
    defect, clean = torch.tensor([1]), torch.tensor([0])
    missed = gate_loss(torch.tensor([[-3.0]]), defect, defect_weight=3.0)
    alarmed = gate_loss(torch.tensor([[3.0]]), clean, defect_weight=3.0)
    assert missed.item() == pytest.approx(3 * alarmed.item())
