"""Quantization-aware fine-tuning: a network that loses too much in INT8 learns to live with its rounding.

The float network teaches: its INT8 simulation is to answer the calibration images as it does. That needs no labels; where there
are some, they can have a say as well. What comes out is the network that went in with other weights, which is exported and
quantized as any other, and the ranges that the weights were trained for: calibrating anew would widen those again.

Source: Hinton et al., arXiv:1503.02531 (distillation); Esser et al., arXiv:1902.08153 (ranges trained with the weights).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx
import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from calibration.activations import (
    ActivationRange,
    ActivationStatistics,
    CalibrationError,
    RangeMethod,
    activation_ranges,
    collect,
)
from edge.errors import ConfigError
from edge.sessions import Batch
from export.errors import ExportError
from export.fake_quantization import SimulatedInt8
from export.quantize import quantize, tensors_to_observe
from export.to_onnx import to_onnx, with_input_size

Activation = Literal["softmax", "sigmoid"]
Truth = npt.NDArray[np.uint8]
"""Class indices, (n, h, w) of a segmenter, (n,) of a classifier."""


class FineTuning(BaseModel):
    """The recipe that `--qat` names; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(12, ge=1)
    batch: int = Field(8, ge=1)
    crop: int | None = Field(
        None,
        ge=16,
        description="Larger images are cut to this side, px, anew in every epoch; none: never. A multiple of the stride.",
    )
    rate: float = Field(
        0.001, gt=0, le=0.1, description="Adam's first step, as a share of a channel's largest weight; falls to 0 along a cosine."
    )
    range_rate: float = Field(
        0.05, ge=0, le=0.5, description="The same for activation ranges, as a share of a range; 0: they stay."
    )
    label_weight: float = Field(0.0, ge=0, description="Of the cross-entropy with masks or labels; the float network weighs 1.")
    flips: bool = Field(True, description="Mirror images at random, lines and columns each.")
    seed: int = 0


def load_fine_tuning(path: Path) -> FineTuning:
    """Read and validate a recipe. Raises ConfigError naming every fault."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict):
            raise ConfigError(f"{path}: expected keys and values at the top, got {type(document).__name__}")
        return FineTuning.model_validate(document)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); expected a recipe such as configs/export/qat.yaml") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    except ValidationError as error:
        named = ((".".join(map(str, fault["loc"])) or "(top)", fault) for fault in error.errors())
        raise ConfigError("\n".join(f"{path}: {key}: got {fault['input']!r}; {fault['msg']}" for key, fault in named)) from error


@dataclass(frozen=True, slots=True, eq=False)
class FineTuned:
    """A network trained for INT8.

    network: as it was given, with other weights. ranges: that it was trained with, by tensor of its graph: for `quantize`.
    losses: mean over each epoch; what the network would have lost without training is about the first.
    """

    network: nn.Module
    ranges: dict[str, ActivationRange]
    losses: tuple[float, ...]


def fine_tune(
    network: nn.Module,
    tiles: Sequence[Batch],
    recipe: FineTuning,
    activation: Activation,
    *,
    method: RangeMethod = RangeMethod.PERCENTILE_99_9,
    truth: Sequence[Truth] | None = None,
    float_layers: Collection[str] = (),
    threads: int = 0,
) -> FineTuned:
    """Train a network so that its INT8 engine answers as the float network does now; the network given stays as it is.

    network: uint8 (n, 1, h, w) -> logits. tiles: calibration images, (n, 1, h, w) each, of one size or of several.
    method: of the ranges to begin with. truth: of the tiles, for `recipe.label_weight`. float_layers: names of graph nodes that
    stay float. threads: of ONNX Runtime while it calibrates; training takes torch's.
    Raises ExportError where a network cannot be trained this way, CalibrationError where the tiles give no ranges.
    """
    _check(network, tiles, recipe, truth)
    teacher, student = _copies(network)
    probe = _probe(tiles, recipe)
    model = to_onnx(student, *probe.shape[2:])
    observed = tensors_to_observe(model, float_layers)
    statistics = _observe(model, observed, tiles, probe.shape[2:], threads)
    ranges = activation_ranges(statistics, method)
    simulated = SimulatedInt8(student, model, quantize(model, ranges, float_layers), probe, observed)
    losses = _train(simulated, teacher, _Examples(tiles, truth), recipe, activation)
    limits = simulated.limits()
    trained = {name: ActivationRange(limits.get(name, ranges[name].limit), ranges[name].non_negative) for name in observed}
    return FineTuned(simulated.write_back(), trained, losses)


def _probe(tiles: Sequence[Batch], recipe: FineTuning) -> Batch:
    """The most varied tile, cut as the recipe says: by what the network makes of it its layers are recognised."""
    chosen = max((tile for batch in tiles for tile in batch), key=np.std)
    rows, columns = (min(side, recipe.crop or side) for side in chosen.shape[1:])
    return np.ascontiguousarray(chosen[None, :, :rows, :columns])


def _observe(
    model: onnx.ModelProto, tensors: Collection[str], tiles: Sequence[Batch], size: tuple[int, ...], threads: int
) -> dict[str, ActivationStatistics]:
    """Statistics over all tiles; where they are not all of the graph's own size, its input is freed."""
    if all(batch.shape[2:] == size for batch in tiles):
        return collect(model, tensors, tiles, threads)
    try:
        return collect(with_input_size(model, "height", "width"), tensors, tiles, threads)
    except CalibrationError:
        raise
    except Exception as error:  # ONNX Runtime's errors have no root in common but this one
        raise ExportError(
            f"the network does not take images of several sizes ({' '.join(str(error).split())[:200]}); "
            "expected tiles of one size, and a recipe without crop"
        ) from error


class _Examples:
    """Tiles one by one, and what is true of them."""

    def __init__(self, tiles: Sequence[Batch], truth: Sequence[Truth] | None) -> None:
        self.tiles = [torch.from_numpy(tile) for batch in tiles for tile in batch]
        self.truth = [torch.from_numpy(np.asarray(of)) for batch in truth for of in batch] if truth is not None else None

    def batches(self, recipe: FineTuning, chance: np.random.Generator) -> Iterator[tuple[Tensor, Tensor | None]]:
        """One epoch: every tile once, in batches of one size, cut and mirrored as the recipe says."""
        by_size: dict[tuple[int, ...], list[int]] = {}
        for index in chance.permutation(len(self.tiles)):
            size = tuple(min(side, recipe.crop or side) for side in self.tiles[index].shape[1:])
            by_size.setdefault(size, []).append(int(index))
        parts = [
            (size, indices[start : start + recipe.batch])
            for size, indices in by_size.items()
            for start in range(0, len(indices), recipe.batch)
        ]
        for number in chance.permutation(len(parts)):
            size, indices = parts[number]
            yield self._batch(size, indices, recipe.flips, chance)

    def _batch(
        self, size: tuple[int, ...], indices: list[int], flips: bool, chance: np.random.Generator
    ) -> tuple[Tensor, Tensor | None]:
        images, truths = [], []
        for index in indices:
            rows, columns = (
                slice(start, start + side)
                for side, whole in zip(size, self.tiles[index].shape[1:], strict=True)
                for start in [int(chance.integers(whole - side + 1))]
            )
            mirrored = [axis for axis in (-2, -1) if flips and chance.random() < 0.5]
            images.append(self.tiles[index][:, rows, columns].flip(mirrored))
            if self.truth is not None:
                truth = self.truth[index]
                truths.append(truth[rows, columns].flip(mirrored) if truth.ndim == 2 else truth)
        return torch.stack(images), torch.stack(truths).long() if truths else None


def _train(
    simulated: SimulatedInt8, teacher: nn.Module, examples: _Examples, recipe: FineTuning, activation: Activation
) -> tuple[float, ...]:
    """Mean loss of every epoch. Raises ExportError where it is no number any more."""
    optimizer = torch.optim.Adam(
        [
            {"params": list(simulated.shares), "lr": recipe.rate},
            {"params": [limit for limit in simulated.log_limits if limit.requires_grad], "lr": recipe.range_rate},
        ]
    )
    chance = np.random.default_rng(recipe.seed)
    seen, in_all = 0, recipe.epochs * len(examples.tiles)
    losses = []
    with tqdm(total=in_all, desc="fine-tuning", unit="tile", leave=False, disable=None) as bar:
        for _ in range(recipe.epochs):
            total = 0.0
            for images, truth in examples.batches(recipe, chance):
                wanted = _taught(teacher, images)
                scores = simulated(images)
                loss = _divergence(scores, wanted, activation)
                if truth is not None and recipe.label_weight:
                    loss = loss + recipe.label_weight * _cross_entropy(scores, truth, activation)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                total += loss.item() * len(images)
                seen += len(images)
                bar.update(len(images))
                for group, rate in zip(optimizer.param_groups, (recipe.rate, recipe.range_rate), strict=True):
                    group["lr"] = rate * (1 + math.cos(math.pi * seen / in_all)) / 2
            losses.append(total / len(examples.tiles))
            bar.set_postfix(loss=f"{losses[-1]:.3g}")
            if not math.isfinite(losses[-1]):
                raise ExportError(f"fine-tuning diverged in epoch {len(losses)}; expected a finite loss: lower the recipe's rate")
    return tuple(losses)


def _taught(teacher: nn.Module, images: Tensor) -> Tensor:
    try:
        with torch.no_grad():
            wanted: Tensor = teacher(images)
    except RuntimeError as error:
        height, width = images.shape[2:]
        raise ExportError(
            f"the network does not take images of {height}x{width} ({' '.join(str(error).split())[:200]}); "
            "expected a recipe whose crop is a multiple of the network's stride, or none for a network of one size"
        ) from error
    return wanted


def _divergence(scores: Tensor, wanted: Tensor, activation: Activation) -> Tensor:
    """Mean Kullback-Leibler divergence, of the classes' distribution or of each class for itself; 0 where both agree."""
    if activation == "softmax":
        pair = functional.log_softmax(scores, dim=1), functional.log_softmax(wanted, dim=1)
        divergence: Tensor = functional.kl_div(*pair, reduction="none", log_target=True).sum(dim=1).mean()
        return divergence
    target = wanted.sigmoid()
    entropy = functional.binary_cross_entropy_with_logits(wanted, target)
    return functional.binary_cross_entropy_with_logits(scores, target) - entropy


def _cross_entropy(scores: Tensor, truth: Tensor, activation: Activation) -> Tensor:
    """truth: class indices; with a sigmoid channel i is class i + 1, and class 0 has none."""
    if activation == "softmax":
        return functional.cross_entropy(scores, truth)
    target = functional.one_hot(truth, scores.shape[1] + 1).movedim(-1, 1)[:, 1:]
    return functional.binary_cross_entropy_with_logits(scores, target.to(scores.dtype))


def _copies(network: nn.Module) -> tuple[nn.Module, nn.Module]:
    try:
        teacher, student = (copy.deepcopy(network).eval() for _ in range(2))
    except Exception as error:  # a module's own code runs in there
        raise ExportError(f"the network cannot be copied, and so not be fine-tuned: {error}; export without --qat") from error
    return teacher.requires_grad_(False), student.requires_grad_(False)


def _check(network: nn.Module, tiles: Sequence[Batch], recipe: FineTuning, truth: Sequence[Truth] | None) -> None:
    if any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
        raise ExportError(
            "a TorchScript network cannot be fine-tuned: it runs outside of Python; give the state dict it was made of and --arch"
        )
    if not tiles or any(batch.dtype != np.uint8 or batch.ndim != 4 for batch in tiles):
        got = ", ".join(f"{batch.dtype} {batch.shape}" for batch in tiles[:3]) or "none"
        raise ExportError(f"got calibration tiles {got}; expected uint8 (n, 1, h, w), some hundreds")
    if recipe.label_weight and truth is None:
        raise ExportError("the recipe's label_weight is above 0 and there are no masks or labels; give some, or leave it out")
    if truth is not None:
        wrong = [
            f"{of.shape} for {batch.shape}"
            for of, batch in zip(truth, tiles, strict=False)
            if of.shape not in ((len(batch), *batch.shape[2:]), (len(batch),))
        ]
        if wrong or len(truth) != len(tiles):
            raise ExportError(
                f"got truth of {', '.join(wrong[:3]) or len(truth)} batches, {len(tiles)} of tiles; expected as many"
            )
