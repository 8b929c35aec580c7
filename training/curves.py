"""Training curves as a picture."""

from __future__ import annotations

from pathlib import Path

import matplotlib

from training.trainer import Epoch

matplotlib.use("Agg")
from matplotlib import pyplot


def save_curves(history: list[Epoch], judged_by: str, path: Path) -> None:
    """Loss, and every validation figure, over the epochs; the best checkpoint is marked."""
    epochs = [entry.epoch + 1 for entry in history]
    best = max(history, key=lambda entry: entry.figures[judged_by])
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    left.plot(epochs, [entry.loss for entry in history], color="black")
    left.set(xlabel="epoch", ylabel="training loss", yscale="log", title="Loss")
    for name in history[0].figures:
        bold = name == judged_by
        right.plot(epochs, [entry.figures[name] for entry in history], label=name, linewidth=2.2 if bold else 1.0)
    right.axvline(best.epoch + 1, color="grey", linestyle=":", label=f"best: {best.figures[judged_by]:.4f}")
    right.set(xlabel="epoch", ylim=(0, 1), title="Validation")
    right.legend(fontsize=8, loc="lower right")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
