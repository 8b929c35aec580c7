"""SAHI: get_sliced_prediction with a DetectionModel whose objects are the connected regions of a slice's mask."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import cv2
import numpy as np
from sahi.models.base import DetectionModel
from sahi.postprocess.combine import GreedyNMMPostprocess
from sahi.predict import get_prediction, get_sliced_prediction
from sahi.prediction import ObjectPrediction
from sahi.utils.cv import get_coco_segmentation_from_bool_mask

from benchmarks.peers_bench.engines import Engine
from benchmarks.peers_bench.gate import TileGate, passed
from benchmarks.peers_bench.slicing import Slicing, core, framed, regions, unframed
from benchmarks.peers_bench.systems import Credit
from edge.frame import Lines
from edge.scores import Bytes

CREDIT = Credit("SAHI", version("sahi"), "MIT", "https://obss.github.io/sahi/predict/")
SLICES = Slicing((512, 512), (102, 102))
"""Overlap of a fifth, as its documentation has it."""
_MATCH = 0.5
"""Its default: GREEDYNMM merges what overlaps by half of the smaller one."""
_NEVER = 1.01


class SahiSlices:
    """Slices with its recommended overlap, merged by GREEDYNMM over IOS, its defaults; no pass over the whole image besides.

    It holds masks as polygons: their holes are filled where two of them merge, and regions too thin for three corners go.
    Behind a gate: get_prediction of each alarmed slice with its shift, and the same merging.
    """

    name = "SAHI"

    def __init__(self, engine: Engine, slicing: Slicing = SLICES, gate: TileGate | None = None) -> None:
        self.engine, self.precision = engine.title, engine.precision
        self._slicing, self._gate = slicing, gate
        self._model = _RegionModel(engine, slicing)
        self.how = f"{slicing.described()}, GREEDYNMM over IOS"
        # cores do not overlap: nothing is to be merged, and nothing may be
        self._match = _NEVER if slicing.margin else _MATCH

    def prepare(self, strip: Lines) -> None:
        """Nothing."""

    def run(self, strip: Lines) -> list[ObjectPrediction]:
        """Objects of the framed strip."""
        image = framed(strip, self._slicing)
        if self._gate is not None:
            return self._behind_gate(image, strip)
        (height, width), (down, across) = self._slicing.tile, self._slicing.overlap
        result = get_sliced_prediction(
            image,
            self._model,
            slice_height=height,
            slice_width=width,
            # it rounds the product down to whole pixels
            overlap_height_ratio=(down + 0.5) / height,
            overlap_width_ratio=(across + 0.5) / width,
            perform_standard_pred=False,
            postprocess_match_threshold=self._match,
            verbose=0,
        )
        return result.object_prediction_list

    def mask(self, answer: list[ObjectPrediction], strip: Lines) -> Bytes:
        """Objects drawn, surer ones last."""
        mask = np.zeros(framed(strip, self._slicing).shape, np.uint8)
        for found in sorted(answer, key=lambda found: found.score.value):
            polygons = [np.array(polygon).reshape(-1, 2).round().astype(np.int32) for polygon in found.mask.segmentation]
            cv2.fillPoly(mask, polygons, found.category.id)
        return unframed(mask, self._slicing, strip.shape)

    def close(self) -> None:
        """Give the engine back."""
        self._model.engine.close()

    def _behind_gate(self, image: Bytes, strip: Lines) -> list[ObjectPrediction]:
        assert self._gate is not None
        alarms = self._gate.alarms(strip)
        found: list[ObjectPrediction] = []
        (height, width), step = self._slicing.tile, self._slicing.step
        for row, column in np.argwhere(alarms).tolist():
            top, left = row * step[0], column * step[1]
            assert passed(alarms, top, left)
            result = get_prediction(
                image[top : top + height, left : left + width],
                self._model,
                shift_amount=[left, top],
                full_shape=list(image.shape),
            )
            found += [one.get_shifted_object_prediction() for one in result.object_prediction_list]
        merge = GreedyNMMPostprocess(match_threshold=self._match, match_metric="IOS", class_agnostic=False)
        return merge(found) if len(found) > 1 else found


class _RegionModel(DetectionModel):
    """Connected regions of the class mask as objects with masks."""

    def __init__(self, engine: Engine, slicing: Slicing) -> None:
        self.engine, self._cut = engine, slicing
        names = {str(index): name for index, name in enumerate(engine.manifest.classes)}
        super().__init__(model=engine, device="cpu", category_mapping=names)

    def set_model(self, model: Any, **_: Any) -> None:
        """The engine is all there is."""
        self.model = model

    def perform_inference(self, image: Bytes) -> None:
        """Class and confidence of a slice."""
        self._original_predictions = [core(plane, self._cut.margin) for plane in self.engine.classes(image)]

    def _create_object_prediction_list_from_original_predictions(
        self, shift_amount_list: Any = None, full_shape_list: Any = None
    ) -> None:
        shift = shift_amount_list[0] if isinstance(shift_amount_list[0], list) else shift_amount_list
        full = full_shape_list[0] if isinstance(full_shape_list[0], list) else full_shape_list
        assert self.category_mapping is not None
        found = []
        for region in regions(*self._original_predictions, self._cut.smallest_px):
            polygons = get_coco_segmentation_from_bool_mask(region.mask)
            if polygons:
                found.append(
                    ObjectPrediction(
                        segmentation=polygons,
                        category_id=region.kind,
                        category_name=self.category_mapping[str(region.kind)],
                        score=region.score,
                        shift_amount=[shift[0] + self._cut.margin + region.left, shift[1] + self._cut.margin + region.top],
                        full_shape=full,
                    )
                )
        self._object_prediction_list_per_image = [found]
