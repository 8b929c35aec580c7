"""`rust-edge train`: the reference trainer of the shipped networks."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def register(subparsers: Any) -> None:
    """Add the command to `rust-edge`."""
    parser = subparsers.add_parser(
        "train",
        help="train a reference network from a recipe",
        description="Train a reference network: seeded, resumable (call it again), best checkpoint by validation.",
    )
    parser.add_argument("recipe", type=Path, metavar="RECIPE.yaml")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY.PATH=VALUE", help="change a value of the recipe"
    )
    parser.add_argument("--json", action="store_true", help="print the figures for machines")
    parser.set_defaults(handler=_train)


def _train(arguments: argparse.Namespace) -> int:
    # torch and matplotlib take seconds to import: only once this command really runs
    from training.curves import save_curves
    from training.gate_task import gate_task
    from training.recipe import load_recipe
    from training.segmenter_task import segmenter_task
    from training.trainer import train

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    task = segmenter_task(recipe) if recipe.arch == "steel-unet" else gate_task(recipe)
    history = train(recipe, task)
    save_curves(history, task.judged_by, recipe.out / "curves.png")
    best = max(history, key=lambda entry: entry.figures[task.judged_by])
    figures = {"epoch": best.epoch + 1, **best.figures}
    if task.measure is not None:
        figures |= task.measure(recipe.out / "best.pt")
    (recipe.out / "figures.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")
    if arguments.json:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{name:24s} {value:.4f}" for name, value in figures.items()))
        print(
            f"best checkpoint: {recipe.out / 'best.pt'}; next: rust-edge export {recipe.out / 'best.pt'} --arch {recipe.arch} ..."
        )
    return 0
