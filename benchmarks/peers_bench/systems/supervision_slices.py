"""supervision: InferenceSlicer with a callback whose detections are the connected regions of a slice's mask."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import supervision

from benchmarks.peers_bench.engines import Engine
from benchmarks.peers_bench.gate import Alarms, TileGate, passed
from benchmarks.peers_bench.slicing import Region, Slicing, core, framed, regions, unframed
from benchmarks.peers_bench.systems import Credit
from edge.frame import Lines
from edge.scores import Bytes

CREDIT = Credit(
    "supervision", version("supervision"), "MIT", "https://supervision.roboflow.com/latest/detection/tools/inference_slicer/"
)
SLICES = Slicing((640, 640), (100, 100))
"""Its defaults."""


class SupervisionSlices:
    """Its default slices, merged by NMS (IOU 0.5, its default), masks compact as it recommends for many objects.

    workers: its threads; each takes a session of the engine. Behind a gate only alarmed slices are handed to the callback.
    """

    name = "supervision"

    def __init__(self, engine: Engine, slicing: Slicing = SLICES, gate: TileGate | None = None, workers: int = 1) -> None:
        self.engine, self.precision = engine.title, engine.precision
        self._engine, self._slicing, self._gate = engine, slicing, gate
        self.how = f"{slicing.described()}, NMS over IOU" + (f", {workers} workers" if workers > 1 else "")
        (height, width), (down, across) = slicing.tile, slicing.overlap
        self._slicer = _GatedSlicer(
            self._detections,
            slice_wh=(width, height),
            overlap_wh=(across, down),
            overlap_filter="none" if slicing.margin else "non_max_suppression",
            thread_workers=workers,
        )

    def prepare(self, strip: Lines) -> None:
        """Nothing."""

    def run(self, strip: Lines) -> supervision.Detections:
        """Detections of the framed strip."""
        image = framed(strip, self._slicing)
        self._slicer.alarms = self._gate.alarms(strip) if self._gate else None
        if self._slicer.alarms is not None and not self._slicer.alarms.any():
            return supervision.Detections.empty()
        return self._slicer(image)

    def mask(self, answer: supervision.Detections, strip: Lines) -> Bytes:
        """Detections drawn, surer ones last."""
        mask = np.zeros(framed(strip, self._slicing).shape, np.uint8)
        order = np.argsort(answer.confidence) if len(answer) else []
        for index in order:
            left, top = answer.mask.offsets[index]
            inside = answer.mask.crop(int(index))
            view = mask[top : top + inside.shape[0], left : left + inside.shape[1]]
            view[inside] = answer.class_id[index]
        return unframed(mask, self._slicing, strip.shape)

    def close(self) -> None:
        """Give the engine back."""
        self._engine.close()

    def _detections(self, image: Bytes) -> supervision.Detections:
        margin = self._slicing.margin
        mask, confidence = (core(plane, margin) for plane in self._engine.classes(image))
        found = regions(mask, confidence, self._slicing.smallest_px) if mask.any() else []
        if not found:
            return supervision.Detections.empty()
        boxes = np.array([_box(region, margin) for region in found], np.float32)
        parts = [
            supervision.CompactMask.from_dense(region.mask[None], _whole(region), region.mask.shape).with_offset(
                region.left + margin, region.top + margin, image.shape
            )
            for region in found
        ]
        return supervision.Detections(
            xyxy=boxes,
            mask=supervision.CompactMask.merge(parts),
            confidence=np.array([region.score for region in found], np.float32),
            class_id=np.array([region.kind for region in found]),
        )


class _GatedSlicer(supervision.InferenceSlicer):
    """An InferenceSlicer that leaves out slices which the gate stopped; it has no hook for that but its own list of offsets."""

    alarms: Alarms | None = None

    def _generate_offset(self, **sizes: Any) -> npt.NDArray[Any]:  # type: ignore[override]
        offsets = supervision.InferenceSlicer._generate_offset(**sizes)
        return offsets[[passed(self.alarms, int(top), int(left)) for left, top, _, _ in offsets]]


def _box(region: Region, margin: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom in the slice, the last two inclusive, as this library counts."""
    height, width = region.mask.shape
    return region.left + margin, region.top + margin, region.left + margin + width - 1, region.top + margin + height - 1


def _whole(region: Region) -> npt.NDArray[np.float32]:
    return np.array([[0, 0, region.mask.shape[1] - 1, region.mask.shape[0] - 1]], np.float32)
