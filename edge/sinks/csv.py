"""Closed defects in a file: one row each, over all strips, for a spreadsheet or a database's import."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from edge.errors import OutboxError
from edge.events import DefectClosed, OutgoingEvent
from edge.sinks.append_file import AppendFile

_CLOSED = str(DefectClosed.model_fields["type"].default)
_COLUMNS: dict[str, Callable[[DefectClosed], object]] = {
    "strip_id": lambda event: event.subject,
    "defect_id": lambda event: event.data.defect_id,
    "class": lambda event: event.data.class_name,
    "captured_at": lambda event: event.data.captured_at.isoformat(),
    "ending": lambda event: event.data.ending,
    "merged_into": lambda event: event.data.merged_into,
    "confidence_mean": lambda event: event.data.confidence_mean,
    "confidence_peak": lambda event: event.data.confidence_peak,
    "gate_score": lambda event: event.data.gate_score,
    "area_mm2": lambda event: event.data.area_mm2,
    "area_px": lambda event: event.data.area_px,
    "line_start": lambda event: event.data.box_px.line_start,
    "line_stop": lambda event: event.data.box_px.line_stop,
    "column_start": lambda event: event.data.box_px.column_start,
    "column_stop": lambda event: event.data.box_px.column_stop,
    "along_start_mm": lambda event: event.data.box_mm.along_start,
    "along_stop_mm": lambda event: event.data.box_mm.along_stop,
    "across_start_mm": lambda event: event.data.box_mm.across_start,
    "across_stop_mm": lambda event: event.data.box_mm.across_stop,
    "centroid_along_mm": lambda event: event.data.centroid_mm.along,
    "centroid_across_mm": lambda event: event.data.centroid_mm.across,
    "length_mm": lambda event: event.data.length_mm,
    "width_mm": lambda event: event.data.width_mm,
    "aspect_ratio": lambda event: event.data.aspect_ratio,
    "orientation_deg": lambda event: event.data.orientation_deg,
    "fragments": lambda event: event.data.fragments,
    "latency_ms": lambda event: event.data.latency_ms,
    "engine_hash": lambda event: event.data.engine_hash,
    "config_hash": lambda event: event.data.config_hash,
    "event_id": lambda event: event.id,
}
HEADER = tuple(_COLUMNS)


class CsvSink:
    """RFC 4180 with a header row, UTF-8; what the events say, unrounded. Empty where a value is null.

    Raises OutboxError where the file cannot be written or has another header.
    """

    def __init__(self, path: Path) -> None:
        self._file = AppendFile(path, lambda line: len(next(csv.reader([line.decode(errors="replace")]))) == len(HEADER))
        header = _row(HEADER)
        found = self._file.first_line()
        if not found:
            self._file.append(header)
        elif found != header.rstrip(b"\r\n"):
            self._file.close()
            raise OutboxError(
                f"{path}: got a file that begins {found[:80].decode(errors='replace')!r}; "
                "expected the header of rust-edge's table of defects, or a path where no file is yet"
            )

    def emit(self, events: Sequence[OutgoingEvent]) -> None:
        """Append a row for each closed defect among the events."""
        closed = [DefectClosed.model_validate_json(event.payload) for event in events if event.type == _CLOSED]
        if closed:
            self._file.append(b"".join(_row([cell(event) for cell in _COLUMNS.values()]) for event in closed))

    def flush(self) -> None:
        """Wait until the disk has them."""
        self._file.sync()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> CsvSink:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _row(cells: Sequence[object]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerow(cells)
    return text.getvalue().encode()
