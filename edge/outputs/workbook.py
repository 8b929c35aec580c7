"""Contours and fractions as two sheets of an Excel workbook, by XlsxWriter (extra `xlsx`)."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import xlsxwriter  # type: ignore[import-untyped]
from xlsxwriter.exceptions import FileCreateError  # type: ignore[import-untyped]

from edge.outputs.contour_table import Cell

MAX_ROWS = 2**20
"""Rows of a sheet. Source: Microsoft, "Excel specifications and limits"."""
_COLUMN_WIDTH = 16  # characters: the longest heading of the contours, and most file names
_NUMBER_FORMATS = {"Aspect Ratio": "0.000", "Area": "0.0"}
_FRACTION_FORMAT = "0.00"


class WorkbookTables:
    """Sheets `Contours` and `Fractions`; a sheet that is full goes on in `Contours 2` and so on, under the same heading.

    Cells hold the numbers in full, shown with a few digits. Rows wait in a folder beside the file, so that memory does not
    grow with the strip. max_rows: of a sheet.
    """

    def __init__(self, file: BinaryIO, folder: Path, max_rows: int = MAX_ROWS) -> None:
        self._waiting = tempfile.TemporaryDirectory(prefix=".contours-", dir=folder)
        options = {"constant_memory": True, "tmpdir": self._waiting.name, "use_zip64": True}
        self._workbook = xlsxwriter.Workbook(file, options)
        # both first sheets are made at once: their order is that of the tabs
        self._contours = _Sheets(self._workbook, "Contours", max_rows)
        self._fractions = _Sheets(self._workbook, "Fractions", max_rows)

    def contour(self, row: Sequence[Cell]) -> None:
        """Append to the table of contours."""
        self._contours.append(row)

    def fraction(self, row: Sequence[Cell]) -> None:
        """Append to the table of fractions."""
        self._fractions.append(row)

    def finish(self) -> None:
        """Write the workbook."""
        try:
            self._workbook.close()
        except FileCreateError as error:  # XlsxWriter's wrapping of whatever the disk said
            raise OSError(f"the workbook cannot be written: {error}") from error

    def close(self) -> None:
        """Give the waiting rows' disk back."""
        self._waiting.cleanup()


class _Sheets:
    """One table on as many sheets as it needs."""

    def __init__(self, workbook: xlsxwriter.Workbook, name: str, max_rows: int) -> None:
        self._workbook, self._name, self._max_rows = workbook, name, max_rows
        self._bold = workbook.add_format({"bold": True})
        self._count = 0
        self._heading: Sequence[Cell] = ()
        self._formats: list[object] = []
        self._begin_sheet()

    def append(self, row: Sequence[Cell]) -> None:
        if not self._heading:
            self._heading = tuple(row)
            self._formats = [self._format(str(title)) for title in row]
            self._write_heading()
            return
        if self._next == self._max_rows:
            self._begin_sheet()
            self._write_heading()
        self._write(row, self._formats)

    def _begin_sheet(self) -> None:
        self._count += 1
        self._sheet = self._workbook.add_worksheet(self._name if self._count == 1 else f"{self._name} {self._count}")
        self._next = 0

    def _write_heading(self) -> None:
        self._sheet.freeze_panes(1, 0)
        for column, title in enumerate(self._heading):
            self._sheet.set_column(column, column, max(_COLUMN_WIDTH, len(str(title)) + 2))
        self._write(self._heading, [self._bold] * len(self._heading))

    def _write(self, row: Sequence[Cell], formats: Sequence[object]) -> None:
        for column, (value, shown) in enumerate(zip(row, formats, strict=True)):
            # `write` would take a file name that begins with = for a formula
            write = self._sheet.write_string if isinstance(value, str) else self._sheet.write_number
            if write(self._next, column, value, shown):
                raise ValueError(f"{value!r} does not fit a cell of {self._name}")
        self._next += 1

    def _format(self, title: str) -> object:
        shown = _FRACTION_FORMAT if title.endswith("(%)") else _NUMBER_FORMATS.get(title)
        return self._workbook.add_format({"num_format": shown}) if shown else None
