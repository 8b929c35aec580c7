"""A recipe carried out: checkpoint, architecture and images read, the bundle exported, the device's engine built where asked."""

from __future__ import annotations

import dataclasses
import time
from typing import Any, Final

from onnx import TensorProto

from calibration.gate_recall import SMALLEST_PX
from edge.errors import ConfigError
from edge.manifest import Resize
from export.bundle import Existing, check_target
from export.checkpoints import Checkpoint, ModuleContent, OnnxContent, StateContent, read_checkpoint
from export.errors import ExportError
from export.exporter import export_network
from export.fine_tuning import load_fine_tuning
from export.gate_quality import count_truth
from export.job import Exported, ExportOptions
from export.loading import check_framework, load_trained
from export.networks import Architecture, find_architecture, settle
from export.networks.grey_input import Normalisation
from export.passes.image_input import find_image_input
from export.recipe import ExportRecipe, flag_of
from export.samples import DEFECT_PX, ExportData, defective_tiles, read_classified, read_folder
from export.tensorrt_build import build_for_device
from export.tile_form import form_of
from export.triton import MODEL_REPOSITORY, check_model_repository, told_of_model, write_model

_ANY_VALUE = 256
"""Classes of a mask that a gate is measured with: any value above 0 is a defect, so the masks of any segmenter serve it."""

_MEANINGLESS: Final = {
    "segmenter": ("labels", "clean", "gate_threshold", "recall", "defect_px", "simulated"),
    "classifier": ("pixel_threshold", "simulated"),
    "gate of cells": ("pixel_threshold", "labels", "strip_tile", "preparation"),
}
"""Keys that mean nothing to a kind of network."""


def run_recipe(recipe: ExportRecipe) -> tuple[Exported, list[str]]:
    """Export, and say what else there is to know. Raises RustEdgeError."""
    begun = time.perf_counter()
    existing = Existing.REPLACE if recipe.force else Existing.KEEP
    check_target(recipe.out, existing)  # before minutes are spent on reading
    repository = recipe.model_repository or MODEL_REPOSITORY
    if recipe.target == "triton":
        check_model_repository(repository, recipe.out.name, existing)
    architecture = find_architecture(recipe.arch)
    check_kind(recipe, architecture)
    fine_tuning = load_fine_tuning(recipe.qat) if recipe.qat else None
    checkpoint = read_checkpoint(recipe.checkpoint, weights=recipe.weights, trust=recipe.trust_checkpoint)
    check_framework(checkpoint, architecture)
    if isinstance(checkpoint.content, StateContent | ModuleContent):
        architecture = _settled(architecture, checkpoint, recipe)
    architecture = complete(architecture, checkpoint, recipe)
    options = ExportOptions(
        precision=recipe.precision,
        max_drop=recipe.max_drop,
        recall=recipe.recall,
        defect_px=recipe.defect_px,
        head=recipe.head,
        fine_tuning=fine_tuning,
        speed_s=recipe.speed_s,
        threads=recipe.threads,
        existing=existing,
    )
    network = load_trained(checkpoint, architecture, clean=recipe.clean)
    if recipe.pixel_threshold is not None and network.architecture.activation == "softmax":
        raise ConfigError(
            f"--pixel-threshold: got {recipe.pixel_threshold}, but {architecture.name} answers a softmax: a pixel is of its "
            "likeliest class; leave it out"
        )
    exported = export_network(network, read_data(recipe, architecture), recipe.out, options, begun)
    notes = list(exported.warnings)
    if recipe.target == "tensorrt":
        notes.append(build_for_device(exported.bundle).said)
    if recipe.target == "triton":
        notes.append(told_of_model(exported.bundle, write_model(exported.bundle, repository, existing)))
    return exported, notes


def check_kind(recipe: ExportRecipe, architecture: Architecture) -> None:
    """Raise ConfigError where a recipe says what means nothing to this kind of network."""
    kind = architecture.kind if architecture.cell is None else "gate of cells"
    for key in _MEANINGLESS[kind]:
        if (value := getattr(recipe, key)) != ExportRecipe.model_fields[key].default:
            instead = "expected --masks DIR" if key == "labels" else "leave it out"
            raise ConfigError(f"{flag_of(key)}: got {value}, but {architecture.name} is a {kind}; {instead}")
    if recipe.head == "mask" and architecture.kind == "classifier":
        raise ConfigError(f"--head: got mask, but {architecture.name} is a classifier; expected logits or probabilities")
    if architecture.cell is not None and recipe.masks is None:
        raise ConfigError(
            f"--masks: got none, but {architecture.name} is a gate of cells; expected masks of its images (--masks DIR): its "
            "threshold is chosen on them"
        )
    if architecture.kind == "classifier" and recipe.masks is None and recipe.labels is None:
        raise ConfigError(
            f"--labels, --masks: got neither, but {architecture.name} is a classifier; expected the classes of its images "
            "(--labels folders, --labels FILE.csv) or masks (--masks DIR): its quality is measured on them"
        )


def complete(architecture: Architecture, checkpoint: Checkpoint, recipe: ExportRecipe) -> Architecture:
    """The architecture with what the recipe says, else what the checkpoint holds, in place of its own.

    Raises ConfigError naming the flag for what nobody says, and for what cannot be.
    """
    hints, origin = checkpoint.hints, checkpoint.origin
    open_ended = architecture.framework == "any" or not architecture.classes
    classes = recipe.classes or hints.classes or architecture.classes
    if not classes:
        raise ConfigError(f"--classes: got none, and {origin} names none; expected the names of its classes in order")
    changes: dict[str, Any] = {"classes": classes, "normalisation": _normalisation(architecture, checkpoint, recipe, open_ended)}
    if recipe.tile or (open_ended and hints.tile):
        changes["tile"] = recipe.tile or hints.tile
    elif 0 in architecture.tile:
        raise ConfigError(f"--tile: got none, and {origin} takes any size; expected height and width, such as 256x256")
    for key in ("strip_tile", "preparation", "pixel_threshold", "gate_threshold"):
        if (value := getattr(recipe, key)) is not None:
            changes[key] = value
    completed = dataclasses.replace(architecture, **changes)
    if recipe.gate_threshold is not None and len(classes) != 2:
        raise ConfigError(
            f"--gate-threshold: got {recipe.gate_threshold}, but of {len(classes)} classes the likeliest counts; leave it out"
        )
    if recipe.clean is not None and recipe.clean not in classes:
        raise ConfigError(f"--clean: got {recipe.clean}; expected one of the classes, {', '.join(classes)}")
    return _with_strip_tile(completed, recipe)


def _settled(architecture: Architecture, checkpoint: Checkpoint, recipe: ExportRecipe) -> Architecture:
    try:
        return settle(architecture, checkpoint.state, recipe.classes or checkpoint.hints.classes or ())
    except ExportError as error:
        raise ExportError(f"{checkpoint.origin}: does not fit {architecture.name}: {error}") from error


def _normalisation(
    architecture: Architecture, checkpoint: Checkpoint, recipe: ExportRecipe, open_ended: bool
) -> Normalisation | None:
    """None: part of the network itself."""
    own = architecture.normalisation is None and architecture.framework != "any" and not open_ended
    takes_bytes = _takes_bytes(checkpoint)
    if recipe.mean is not None and recipe.deviation is not None:
        if own or takes_bytes:
            itself = f"{checkpoint.origin} takes bytes and" if takes_bytes else architecture.name
            raise ConfigError(f"--mean, --deviation: got some, but {itself} normalises by itself; leave them out")
        return Normalisation(recipe.mean, recipe.deviation)
    if own or takes_bytes:
        return None
    found = checkpoint.hints.normalisation or architecture.normalisation
    if found is None:
        raise ConfigError(
            f"--mean, --deviation: got none, and {checkpoint.origin} does not say how its images were normalised; expected grey "
            "levels, one a channel: --mean 0 --deviation 255 for pixels / 255, --mean 0 --deviation 1 for pixels as they are"
        )
    return found


def _takes_bytes(checkpoint: Checkpoint) -> bool:
    """Whether a graph takes images as they come, and normalises by itself."""
    image = find_image_input(checkpoint.content.model) if isinstance(checkpoint.content, OnnxContent) else None
    return image is not None and image.kind == TensorProto.UINT8


def _with_strip_tile(architecture: Architecture, recipe: ExportRecipe) -> Architecture:
    """With a resize for tiles of another size than the engine's. Raises ConfigError where tiles cannot become the engine's."""
    reduce, stride = architecture.reduce, architecture.stride
    if stride and any(side % stride for side in architecture.tile):
        got = "x".join(map(str, architecture.tile))
        raise ConfigError(f"--tile: got {got}; expected multiples of {stride}, the stride of {architecture.name}")
    strip = architecture.strip_tile
    if strip is None or strip == tuple(side * reduce for side in architecture.tile):
        return architecture
    if any(side % reduce for side in strip):
        got = "x".join(map(str, strip))
        raise ConfigError(
            f"--strip-tile: got {got}; expected multiples of {reduce}: {architecture.name} averages {reduce}x{reduce} pixels"
        )
    if any(isinstance(step, Resize) for step in architecture.preparation):
        return architecture
    if recipe.preparation is not None:
        raise ConfigError("strip_tile: got another size than the tile's, and a preparation without a resize; expected one")
    return dataclasses.replace(architecture, preparation=(*architecture.preparation, Resize(method="linear")))


def read_data(recipe: ExportRecipe, architecture: Architecture) -> ExportData:
    """The recipe's images and labels. Raises ExportError naming file and folder."""
    if recipe.labels is not None:
        table = None if recipe.labels == "folders" else recipe.labels
        return read_classified(recipe.calibration, table, architecture.classes, clean=recipe.clean)
    form, names = form_of(architecture), architecture.classes
    whole, cell = form.strip is None, form.strip or (1, 1)
    if architecture.kind == "segmenter":
        return read_folder(recipe.calibration, recipe.masks, len(names), whole=whole, cell=cell, class_names=names)
    if architecture.cell is not None:
        data = read_folder(recipe.calibration, recipe.masks, _ANY_VALUE, cell=cell, simulated=recipe.simulated)
        smallest_px = recipe.defect_px or SMALLEST_PX
        regions, clean = count_truth([*data.validation, *data.simulated], architecture.cell * architecture.reduce, smallest_px)
        if not regions or not clean:
            raise ConfigError(
                f"--masks: got {regions} regions of {smallest_px} defect pixels or more and {clean} clean cells in "
                f"{recipe.masks}; expected some of both: a gate's threshold is where they part (--defect-px)"
            )
        return data
    if len(names) > 2:
        raise ConfigError(
            f"--masks: got {recipe.masks}, but {architecture.name} tells {len(names)} classes apart, and masks say only where "
            "defects are; expected --labels"
        )
    data = read_folder(recipe.calibration, recipe.masks, _ANY_VALUE, whole=whole, cell=cell)
    defect_px = recipe.defect_px or DEFECT_PX
    defective = defective_tiles([mask for _, mask in data.validation], form, defect_px)
    if defective.all() or not defective.any():
        shown = f"{'all' if defective.all() else 'none'} of {len(defective)} tiles with {defect_px} defect pixels or more"
        raise ConfigError(
            f"--masks: got {shown} in {recipe.masks}; expected some, and some without: a gate's threshold is where they part "
            "(--defect-px)"
        )
    return data
