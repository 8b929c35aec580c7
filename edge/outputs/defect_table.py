"""The table of defects: one row per closed defect, for a spreadsheet."""

from __future__ import annotations

import csv
import io
from typing import BinaryIO

from edge.events import DefectData

COLUMNS = (
    "defect_id",
    "class",
    "confidence_mean",
    "confidence_peak",
    "area_mm2",
    "area_px",
    "line_start",
    "line_stop",
    "column_start",
    "column_stop",
    "centroid_along_mm",
    "centroid_across_mm",
    "length_mm",
    "width_mm",
    "aspect_ratio",
    "orientation_deg",
    "ending",
)


class DefectTable:
    """CSV (RFC 4180, UTF-8, header row) of closed defects in the order they were closed.

    Lengths in mm from the strip's first line and the camera's first column; boxes in px, half-open.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        self._rows = csv.writer(self._text)
        self._rows.writerow(COLUMNS)

    def add(self, defect: DefectData) -> None:
        """Write one closed defect."""
        box = defect.box_px
        self._rows.writerow(
            [
                defect.defect_id,
                defect.class_name,
                f"{defect.confidence_mean:.4f}",
                f"{defect.confidence_peak:.4f}",
                f"{defect.area_mm2:.4f}",
                defect.area_px,
                box.line_start,
                box.line_stop,
                box.column_start,
                box.column_stop,
                f"{defect.centroid_mm.along:.4f}",
                f"{defect.centroid_mm.across:.4f}",
                f"{defect.length_mm:.4f}",
                f"{defect.width_mm:.4f}",
                f"{defect.aspect_ratio:.3f}",
                f"{defect.orientation_deg:.2f}",
                defect.ending,
            ]
        )

    def finish(self) -> None:
        """Hand the bytes on; the file stays open."""
        self._text.detach()
