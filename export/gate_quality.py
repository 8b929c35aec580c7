"""What a gate that scores cells is worth on labelled steel: defects that have an alarmed cell, clean cells that are alarmed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from calibration.gate_recall import SMALLEST_PX, GateRecall, ScoredMap, recall_at, region_peaks, threshold_for
from calibration.thresholds import SCORE_STEPS
from edge.errors import RustEdgeError
from edge.manifest import GateThreshold
from edge.scores import Activation
from edge.sessions import Session
from export.cell_form import CellForm, in_whole_cells
from export.samples import ExportData, Labelled

Steels = Mapping[str, Sequence[Labelled]]
"""Labelled images by the kind of steel that they show, `real` or `simulated`."""


RECALLS = (0.95, 0.98, 0.99, 0.995, 0.999, 1.0)
"""At which the report shows what a threshold costs: the last tenth of a per cent may hang on a few odd regions."""


@dataclass(frozen=True, slots=True)
class GateReading:
    """How a gate's scores are judged.

    recall: share of the regions of at least `smallest_px` defect pixels that a chosen threshold keeps, on each kind of steel
    by itself. fixed: the threshold that the gate's system has; None: chosen.
    """

    form: CellForm
    activation: Activation
    recall: float
    fixed: float | None = None
    smallest_px: int = SMALLEST_PX


@dataclass(frozen=True, slots=True)
class GateQuality:
    """Measured over whole images: at the engine's own threshold, all and by kind of steel; and at a threshold held fixed.

    held: at the float engine's threshold, the engine's own where there is none. choices: what other recalls would cost, by
    recall and kind of steel; empty where a threshold is held.
    """

    threshold: GateThreshold
    overall: GateRecall
    by_steel: Mapping[str, GateRecall]
    held: GateRecall
    choices: Mapping[float, Mapping[str, GateRecall]]

    @property
    def judged(self) -> float:
        """What a loss is counted in, 0 to 1: Youden's J at the held threshold, as of a gate that looks at tiles."""
        return self.held.recall - self.held.alarmed_clean


def steels_of(data: ExportData) -> Steels:
    """The labelled images of an export by kind, without kinds that it has none of."""
    kinds = {"real": data.validation, "simulated": data.simulated}
    return {name: images for name, images in kinds.items() if images}


def measure_gate(session: Session, steels: Steels, reading: GateReading, held_at: float | None = None) -> GateQuality:
    """Run a gate over labelled images.

    held_at: threshold at which to compare with the float engine; None: this engine's own.
    Raises RustEdgeError where the images show no defect, or no clean cell.
    """
    maps = {name: scored_maps(session, images, reading, name) for name, images in steels.items()}
    together = [scored for of_kind in maps.values() for scored in of_kind]
    score = reading.fixed if reading.fixed is not None else choose_threshold(maps, reading.recall, reading.smallest_px)
    overall = recall_at(together, score, reading.smallest_px)
    if math.isnan(overall.alarmed_clean):
        raise RustEdgeError(f"validation holds {overall.regions} defects and no clean cell; expected clean steel beside them")
    return GateQuality(
        threshold=GateThreshold(score=score, recall=overall.recall, passed_clean=overall.alarmed_clean),
        overall=overall,
        by_steel=_by_steel(maps, score, reading),
        held=overall if held_at is None else recall_at(together, held_at, reading.smallest_px),
        choices={
            recall: _by_steel(maps, choose_threshold(maps, recall, reading.smallest_px), reading)
            for recall in (RECALLS if held_at is None and overall.regions else ())
        },
    )


def _by_steel(maps: Mapping[str, Sequence[ScoredMap]], score: float, reading: GateReading) -> dict[str, GateRecall]:
    return {name: recall_at(of_kind, score, reading.smallest_px) for name, of_kind in maps.items()}


def scored_maps(session: Session, images: Sequence[Labelled], reading: GateReading, what: str = "validation") -> list[ScoredMap]:
    """A gate's probabilities over labelled images, cell by cell, with the truth."""
    form = reading.form
    maps = []
    for image, mask in tqdm(images, desc=what, leave=False, disable=None):
        scores = form.probabilities(session.infer(form.image(image))[0], image, reading.activation)
        maps.append(ScoredMap(scores, in_whole_cells(mask, form.strip_px), form.strip_px))
    return maps


def count_truth(images: Sequence[Labelled], strip_px: int, smallest_px: int) -> tuple[int, int]:
    """Regions of at least `smallest_px` defect pixels, and clean cells, that labelled images hold."""
    whole = [in_whole_cells(mask, strip_px) for _, mask in images]
    unscored = [ScoredMap(np.zeros([side // strip_px for side in mask.shape]), mask, strip_px) for mask in whole]
    held = recall_at(unscored, 0.0, smallest_px)
    return held.regions, held.clean_cells


def choose_threshold(maps: Mapping[str, Sequence[ScoredMap]], recall: float, smallest_px: int) -> float:
    """The highest threshold that keeps the recall on every kind of steel that has defects, as a manifest stores it.

    Raises RustEdgeError where none has.
    """
    defective = [of_kind for of_kind in maps.values() if any(region_peaks(scored, smallest_px).size for scored in of_kind)]
    kept = [threshold_for(of_kind, recall, smallest_px) for of_kind in defective or [[]]]
    # rounded down: rounded up, the weakest region would fall below it
    return math.floor(min(kept) * SCORE_STEPS) / SCORE_STEPS
