"""A recipe carried out: checkpoint, architecture and images read, the bundle exported, the device's engine built where asked."""

from __future__ import annotations

import dataclasses
from typing import Any

from edge.errors import ConfigError
from export.bundle import Existing, check_target
from export.checkpoints import Hints, ModuleContent, StateContent, read_checkpoint
from export.exporter import export_bundle
from export.fine_tuning import load_fine_tuning
from export.job import Exported, ExportOptions
from export.networks import Architecture, find_architecture, settle
from export.networks.grey_input import Normalisation
from export.recipe import ExportRecipe
from export.samples import ExportData, read_classified, read_folder
from export.tensorrt_build import build_for_device
from export.tile_form import form_of

_ANY_VALUE = 256
"""Classes of a mask that a gate is measured with: any value above 0 is a defect, so the masks of any segmenter serve it."""


def run_recipe(recipe: ExportRecipe) -> tuple[Exported, list[str]]:
    """Export, and say what else there is to know. Raises RustEdgeError."""
    existing = Existing.REPLACE if recipe.force else Existing.KEEP
    check_target(recipe.out, existing)  # before minutes are spent on reading
    architecture = find_architecture(recipe.arch)
    fine_tuning = load_fine_tuning(recipe.qat) if recipe.qat else None
    checkpoint = read_checkpoint(recipe.checkpoint, weights=recipe.weights, trust=recipe.trust_checkpoint)
    if isinstance(checkpoint.content, StateContent | ModuleContent):
        architecture = settle(architecture, checkpoint.state, recipe.classes or checkpoint.hints.classes or ())
    architecture = complete(architecture, checkpoint.hints, recipe)
    options = ExportOptions(
        precision=recipe.precision,
        clean=recipe.clean,
        max_drop=recipe.max_drop,
        recall=recipe.recall,
        defect_px=recipe.defect_px,
        head=recipe.head,
        fine_tuning=fine_tuning,
        speed_s=recipe.speed_s,
        threads=recipe.threads,
        existing=existing,
    )
    exported = export_bundle(checkpoint, architecture, read_data(recipe, architecture), recipe.out, options)
    notes = list(exported.warnings)
    if recipe.target == "tensorrt":
        notes.append(build_for_device(exported.bundle).said)
    return exported, notes


def complete(architecture: Architecture, hints: Hints, recipe: ExportRecipe) -> Architecture:
    """The architecture with what the recipe says, else what the checkpoint holds, in place of its own.

    Raises ConfigError naming the flag for what nobody says.
    """
    changes: dict[str, Any] = {}
    open_ended = architecture.framework == "any" or not architecture.classes
    classes = recipe.classes or hints.classes or architecture.classes
    if not classes:
        raise ConfigError(f"--classes: got none, and {recipe.checkpoint} names none; expected the names of its classes in order")
    changes["classes"] = classes
    if recipe.tile or (open_ended and hints.tile):
        changes["tile"] = recipe.tile or hints.tile
    elif open_ended and 0 in architecture.tile:
        raise ConfigError(f"--tile: got none, and {recipe.checkpoint} takes any size; expected height and width, such as 256x256")
    if recipe.mean is not None and recipe.deviation is not None:
        changes["normalisation"] = Normalisation(recipe.mean, recipe.deviation)
    elif hints.normalisation is not None and (architecture.normalisation is not None or open_ended):
        changes["normalisation"] = hints.normalisation
    elif architecture.framework == "any" and architecture.normalisation is None:
        raise ConfigError(
            f"--mean, --deviation: got none, and {recipe.checkpoint} does not say how its images were normalised; "
            "expected grey levels, one a channel, such as --mean 0 --deviation 255 for pixels / 255"
        )
    for key in ("strip_tile", "preparation", "pixel_threshold", "gate_threshold"):
        if (value := getattr(recipe, key)) is not None:
            changes[key] = value
    return dataclasses.replace(architecture, **changes)


def read_data(recipe: ExportRecipe, architecture: Architecture) -> ExportData:
    """The recipe's images and labels. Raises ExportError naming file and folder."""
    if recipe.labels is not None:
        if architecture.kind != "classifier":
            raise ConfigError(f"--labels: got {recipe.labels}, but {architecture.name} is a segmenter; expected --masks DIR")
        table = None if recipe.labels == "folders" else recipe.labels
        return read_classified(recipe.calibration, table, architecture.classes)
    mask_classes = _ANY_VALUE if architecture.kind == "classifier" else len(architecture.classes)
    return read_folder(recipe.calibration, recipe.masks, mask_classes, whole=form_of(architecture).strip is None)
