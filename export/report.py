"""What an export did and measured: one page to open in a browser, and the same for machines."""

from __future__ import annotations

import base64
import html
import json
import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from export.quality import WorstImage

REPORT_HTML, REPORT_JSON = "report.html", "report.json"
Value = str | int | float

PALETTE = ((0, 0, 0), (60, 60, 230), (60, 200, 60), (230, 140, 40), (40, 200, 230), (200, 60, 200), (200, 200, 60))
"""Blue, green, red of classes by index; further ones begin again after the background."""

SHOWN_SIDE = 144
"""Longest side of a picture, px: the report is part of the bundle and stays small."""

STYLE = (
    "body{font:15px/1.45 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse;margin:.6em 0}td,th{border-bottom:1px solid #ccc;padding:.2em .8em .2em 0;text-align:left}"
    "td.n{text-align:right;font-variant-numeric:tabular-nums}.bar{background:#c33;height:.6em}figure{margin:.6em 0}"
)


@dataclass(frozen=True, slots=True)
class Section:
    """A table of the report. note: what it says and how it was measured; bar: the column that is drawn as well, if any."""

    title: str
    note: str
    head: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    bar: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """summary: the figures by name; worst: images with the most wrong pixels, shown as image, truth and mask."""

    name: str
    summary: dict[str, Value]
    sections: tuple[Section, ...]
    worst: tuple[WorstImage, ...] = ()


def render_json(report: Report) -> str:
    """The report for machines; numbers that are none (nan) become null."""
    document = {
        "name": report.name,
        "summary": {name: _number(value) for name, value in report.summary.items()},
        "sections": {
            section.title: [dict(zip(section.head, map(_number, row), strict=True)) for row in section.rows]
            for section in report.sections
        },
    }
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def render_html(report: Report) -> str:
    """The report as one self-contained page."""
    title = html.escape(report.name)
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style><h1>{title}</h1>',
        _table(Section("", "", ("figure", "value"), tuple(report.summary.items()))),
    ]
    for section in report.sections:
        parts.append(f"<h2>{html.escape(section.title)}</h2><p>{html.escape(section.note)}</p>{_table(section)}")
    if report.worst:
        parts.append("<h2>Worst images</h2><p>Image, truth, and what the engine says; share of wrong pixels.</p>")
        parts += [_figure(worst) for worst in report.worst]
    return "\n".join(parts) + "\n"


def format_text(report: Report) -> str:
    """The summary as aligned text for a terminal."""
    width = max(map(len, report.summary), default=0)
    return "\n".join(f"{name:<{width}}  {_shown(value)}" for name, value in report.summary.items())


def _table(section: Section) -> str:
    bar = section.head.index(section.bar) if section.bar else None
    highest = max((abs(float(row[bar])) for row in section.rows), default=0.0) if bar is not None else 0.0
    head = "".join(f"<th>{html.escape(name)}</th>" for name in section.head)
    rows = []
    for row in section.rows:
        cells = "".join(
            f"<td>{html.escape(value)}</td>" if isinstance(value, str) else f'<td class="n">{_shown(value)}</td>' for value in row
        )
        if bar is not None and highest > 0:
            cells += f'<td><div class="bar" style="width:{12 * abs(float(row[bar])) / highest:.2f}em"></div></td>'
        rows.append(f"<tr>{cells}</tr>")
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _figure(worst: WorstImage) -> str:
    panels = np.hstack([cv2.cvtColor(worst.image, cv2.COLOR_GRAY2BGR), _coloured(worst.truth), _coloured(worst.mask)])
    factor = min(1.0, SHOWN_SIDE / max(worst.image.shape))
    small = cv2.resize(panels, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    _, jpeg = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 70])
    data = base64.b64encode(jpeg.tobytes()).decode()
    caption = f"<figcaption>{worst.wrong:.1%} wrong</figcaption>"
    return f'<figure><img alt="image, truth, mask" src="data:image/jpeg;base64,{data}">{caption}</figure>'


def _coloured(mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    colours = np.array([PALETTE[index if index < len(PALETTE) else 1 + (index - 1) % (len(PALETTE) - 1)] for index in range(256)])
    return np.asarray(colours, np.uint8)[mask]


def _shown(value: Value) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _number(value: Value) -> Value | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value
