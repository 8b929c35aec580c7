"""Everything that `rust-edge inspect` writes about a strip: all of it at the strip's end, or nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from edge.errors import ConfigError
from edge.events import DefectClosed, StripEvent, payload_of
from edge.frame import Lines
from edge.outputs.contour_table import ContourTable, CsvTables, Tables, fractions_path
from edge.outputs.defect_table import DefectTable
from edge.outputs.image_masks import ImageMasks, StripImage
from edge.outputs.image_runs import ImageRuns
from edge.outputs.output_file import OutputFile
from edge.outputs.overlay import Overlay
from edge.outputs.png import PngWriter, beyond_opencv
from edge.segmenters import MaskRows

_FRACTIONS = "--contours (fractions)"  # the file that comes with it


@dataclass(frozen=True, slots=True)
class OutputPaths:
    """Where to write what; None: not wanted. The fields are named as the command's arguments.

    Raises ConfigError where a name does not say what to write, or what writes it is not installed.
    """

    events: Path | None = None
    mask: Path | None = None
    overlay: Path | None = None
    csv: Path | None = None
    rle: Path | None = None
    contours: Path | None = None

    def __post_init__(self) -> None:
        if self.contours is not None:
            fractions_path(self.contours)

    def named(self) -> dict[str, Path]:
        """Argument -> path of those that are wanted."""
        paths = {f"--{field.name}": getattr(self, field.name) for field in fields(self)}
        paths[_FRACTIONS] = fractions_path(self.contours) if self.contours is not None else None
        return {argument: path for argument, path in paths.items() if path is not None}


class StripOutputs:
    """Takes finished rows and events of one strip in order. A context manager: opened before the work, so that a path that
    cannot be written is a fault at once (ConfigError); what was asked for is there after a clean exit, and not before.

    width: columns of the strip. classes: of the segmentation bundle. images: what the strip is put together from.
    """

    def __init__(self, paths: OutputPaths, width: int, classes: Sequence[str], images: Sequence[StripImage]) -> None:
        self._paths = paths
        self._width = width
        self._next_line = 0
        _refuse_twice(paths)
        self._files: dict[str, OutputFile] = {}
        with ExitStack() as undo:
            for name, path in paths.named().items():
                output = self._files[name] = OutputFile(path, name)
                undo.callback(output.discard)  # harmless once it is committed
            files = {name: output.file for name, output in self._files.items()}
            self._events = files.get("--events")
            self._mask = PngWriter(files["--mask"], width, 1) if paths.mask else None
            self._overlay: Overlay | None = None
            if paths.overlay:
                self._overlay = Overlay(files["--overlay"], paths.overlay.resolve().parent, classes, width)
                undo.callback(self._overlay.close)
            self._table = DefectTable(files["--csv"]) if paths.csv else None
            self._images = ImageMasks(images) if paths.rle or paths.contours else None
            self._runs = ImageRuns(files["--rle"], len(classes)) if paths.rle else None
            self._contours: ContourTable | None = None
            if paths.contours:
                tables = _tables(files, paths.contours)
                undo.callback(tables.close)
                self._contours = ContourTable(tables, classes, len(images))
            self._undo = undo.pop_all()

    def on_rows(self, rows: MaskRows, lines: Lines) -> None:
        """Finished rows and the grey lines they belong to, (h, width) uint8 each. Lines never received are left black."""
        lost = rows.first_line - self._next_line
        if lost:
            self._append(np.zeros((lost, self._width), np.uint8), np.zeros((lost, self._width), np.uint8))
        self._append(rows.mask, lines)
        self._next_line = rows.line_stop

    def on_events(self, events: Sequence[StripEvent]) -> None:
        """Events in the order in which a station would publish them."""
        for event in events:
            if self._events:
                self._events.write(payload_of(event) + b"\n")
            # A merged defect's pixels belong to the one that took it over.
            if isinstance(event, DefectClosed) and event.data.ending != "merged":
                if self._table:
                    self._table.add(event.data)
                if self._overlay:
                    self._overlay.add(event.data)

    def notes(self) -> list[str]:
        """What a user of the files should know."""
        images = [path for path in (self._paths.mask, self._paths.overlay) if path]
        if not beyond_opencv(self._next_line, self._width):
            return []
        return [
            f"{path}: {self._next_line} x {self._width} px; OpenCV reads it once OPENCV_IO_MAX_IMAGE_HEIGHT and "
            "OPENCV_IO_MAX_IMAGE_PIXELS allow that"
            for path in images
        ]

    def _append(self, mask: Lines, lines: Lines) -> None:
        if self._mask:
            self._mask.write(mask)
        if self._overlay:
            self._overlay.rows(mask, lines)
        for name, whole in self._images.push(mask) if self._images else ():
            for table in (self._runs, self._contours):
                if table:
                    table.add(name, whole)

    def __enter__(self) -> StripOutputs:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._undo:
            if kind is None:
                for part in (self._mask, self._overlay, self._table, self._images, self._runs, self._contours):
                    if part:
                        part.finish()
                for output in self._files.values():
                    output.commit()


def _refuse_twice(paths: OutputPaths) -> None:
    seen: dict[Path, str] = {}
    for argument, path in paths.named().items():
        other = seen.setdefault(path.resolve(), argument)
        if other != argument:
            raise ConfigError(f"{argument}: got {path}, which {other} writes too; expected two different files")


def _tables(files: Mapping[str, BinaryIO], contours: Path) -> Tables:
    if _FRACTIONS in files:
        return CsvTables(files["--contours"], files[_FRACTIONS])
    from edge.outputs.workbook import WorkbookTables  # XlsxWriter is an extra

    return WorkbookTables(files["--contours"], contours.resolve().parent)
