"""Everything that `rust-edge inspect` writes about a strip: all of it at the strip's end, or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType

import numpy as np

from edge.errors import ConfigError
from edge.events import DefectClosed, StripEvent, payload_of
from edge.frame import Lines
from edge.outputs.defect_table import DefectTable
from edge.outputs.image_runs import ImageRuns, StripImage
from edge.outputs.output_file import OutputFile
from edge.outputs.overlay import Overlay
from edge.outputs.png import PngWriter, beyond_opencv
from edge.segmenters import MaskRows


@dataclass(frozen=True, slots=True)
class OutputPaths:
    """Where to write what; None: not wanted. The fields are named as the command's arguments."""

    events: Path | None = None
    mask: Path | None = None
    overlay: Path | None = None
    csv: Path | None = None
    rle: Path | None = None

    def named(self) -> dict[str, Path]:
        """Argument -> path of those that are wanted."""
        paths = {f"--{field.name}": getattr(self, field.name) for field in fields(self)}
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
            self._undo = undo.pop_all()
        files = {name: output.file for name, output in self._files.items()}
        self._events = files.get("--events")
        self._mask = PngWriter(files["--mask"], width, 1) if paths.mask else None
        self._overlay = Overlay(files["--overlay"], paths.overlay.resolve().parent, classes, width) if paths.overlay else None
        self._table = DefectTable(files["--csv"]) if paths.csv else None
        self._runs = ImageRuns(files["--rle"], images, len(classes)) if paths.rle else None

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
        if self._runs:
            self._runs.rows(mask)

    def __enter__(self) -> StripOutputs:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._undo:
            if kind is None:
                for part in (self._mask, self._overlay, self._table, self._runs):
                    if part:
                        part.finish()
                for output in self._files.values():
                    output.commit()
            if self._overlay:
                self._overlay.close()


def _refuse_twice(paths: OutputPaths) -> None:
    seen: dict[Path, str] = {}
    for argument, path in paths.named().items():
        other = seen.setdefault(path.resolve(), argument)
        if other != argument:
            raise ConfigError(f"{argument}: got {path}, which {other} writes too; expected two different files")
