"""The training loop: seeded, resumable, best checkpoint by validation."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from edge.errors import RustEdgeError
from training.recipe import Recipe

Batch = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]
Loss = Callable[[Tensor, Tensor], Tensor]


class TrainingError(RustEdgeError):
    """Training cannot go on: another recipe stands in its folder, or the loss is no number."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """One epoch's outcome: mean training loss and what validation measured, the first figure being the one to judge by."""

    epoch: int
    loss: float
    figures: dict[str, float]


@dataclass(frozen=True, slots=True)
class Task:
    """What differs between networks: batches in, loss, validation.

    batches(epoch, index) gives the same batch at any time. validate returns figures; `judged_by` names the one whose
    maximum is the best checkpoint. measure, if there is one, gives figures of a finished checkpoint on images that
    training never saw.
    """

    network: nn.Module
    batches_per_epoch: int
    batch: Callable[[int, int], Batch]
    loss: Loss
    validate: Callable[[nn.Module], dict[str, float]]
    judged_by: str
    measure: Callable[[Path], dict[str, float]] | None = None


def train(recipe: Recipe, task: Task) -> list[Epoch]:
    """Train until the recipe's last epoch, going on from `last.pt` where a run was interrupted.

    Writes into the recipe's `out`: best.pt (averaged weights, state dict), last.pt (everything needed to go on),
    history.json. Raises TrainingError.
    """
    torch.set_num_threads(recipe.threads or os.cpu_count() or 1)
    cv2.setNumThreads(1)  # batches are made in a thread of their own: a second pool would only compete with torch's
    network = task.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    averaging = get_ema_multi_avg_fn(recipe.schedule.average)  # type: ignore[no-untyped-call]
    averaged = AveragedModel(network, multi_avg_fn=averaging, use_buffers=True)
    optimizer = torch.optim.AdamW(network.parameters(), recipe.schedule.rate, weight_decay=recipe.schedule.weight_decay)
    steps = recipe.schedule.epochs * task.batches_per_epoch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.schedule.rate, total_steps=steps + 1, pct_start=0.15)
    recipe.out.mkdir(parents=True, exist_ok=True)
    parts = {"network": network, "averaged": averaged, "optimizer": optimizer, "schedule": schedule}
    history = _resume(recipe, parts)
    for epoch in range(len(history), recipe.schedule.epochs):
        loss = _run_epoch(recipe, task, network, averaged, optimizer, schedule, epoch)
        figures = task.validate(averaged.module.eval())
        history.append(Epoch(epoch, loss, figures))
        judged = [entry.figures[task.judged_by] for entry in history]
        if judged[-1] >= max(judged):
            _save(recipe.out / "best.pt", averaged.module.state_dict())
        state = {name: part.state_dict() for name, part in parts.items()}
        _save(
            recipe.out / "last.pt", {"recipe": recipe.model_dump_json(), "history": [asdict(entry) for entry in history], **state}
        )
        (recipe.out / "history.json").write_text(json.dumps([asdict(entry) for entry in history], indent=1), encoding="utf-8")
        shown = "  ".join(f"{name} {value:.4f}" for name, value in figures.items())
        tqdm.write(file=sys.stderr, s=f"epoch {epoch + 1:3d}/{recipe.schedule.epochs}  loss {loss:.4f}  {shown}")
    return history


def _run_epoch(
    recipe: Recipe,
    task: Task,
    network: nn.Module,
    averaged: AveragedModel,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    epoch: int,
) -> float:
    network.train()
    total = 0.0
    numbers = range(task.batches_per_epoch)
    with ThreadPoolExecutor(1) as ahead:
        waiting = ahead.submit(task.batch, epoch, 0)
        for index in tqdm(numbers, desc=f"epoch {epoch + 1}/{recipe.schedule.epochs}", leave=False, disable=None):
            images, masks = waiting.result()
            if index + 1 < task.batches_per_epoch:
                waiting = ahead.submit(task.batch, epoch, index + 1)
            image = torch.from_numpy(images)[:, None].contiguous(memory_format=torch.channels_last)
            truth = torch.from_numpy(masks).long()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=recipe.schedule.bfloat16):
                scores = network(image)
            loss = task.loss(scores, truth)
            if not torch.isfinite(loss):
                raise TrainingError(
                    f"epoch {epoch + 1}, batch {index}: loss is {loss.item()}; expected a number: lower schedule.rate"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            averaged.update_parameters(network)
            total += loss.item()
    return total / task.batches_per_epoch


def _resume(recipe: Recipe, parts: dict[str, Any]) -> list[Epoch]:
    path = recipe.out / "last.pt"
    if not path.exists():
        return []
    state = torch.load(path, weights_only=True)
    if state["recipe"] != recipe.model_dump_json():
        raise TrainingError(f"{path}: belongs to another recipe; expected the same one: name another `out`, or remove the folder")
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return [Epoch(**entry) for entry in state["history"]]


def _save(path: Path, state: object) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)
