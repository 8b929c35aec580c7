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

from edge.pages.page import Fact, Section, Value, render_page
from edge.pages.plots import Plot, numbers
from export.quality import WorstImage

REPORT_HTML, REPORT_JSON = "report.html", "report.json"

PALETTE = ((0, 0, 0), (60, 60, 230), (60, 200, 60), (230, 140, 40), (40, 200, 230), (200, 60, 200), (200, 200, 60))
"""Blue, green, red of classes by index; further ones begin again after the background."""

SHOWN_SIDES = (240, 192, 144, 96, 64)
"""Longest side of a picture, px: the first at which it takes no more than PICTURE_BYTES. The report is part of the bundle."""

PICTURE_BYTES = 9_000
"""Nine pictures of that, in base64, leave a third of 150 kB to everything else."""


@dataclass(frozen=True, slots=True)
class Report:
    """summary: the figures by name; worst: images with the most wrong pixels, shown as image, truth and mask.

    about: a sentence under the title. facts: what stands at the top. classes: names of the colours in the pictures.
    """

    name: str
    summary: dict[str, Value]
    sections: tuple[Section, ...]
    worst: tuple[WorstImage, ...] = ()
    plots: tuple[Plot, ...] = ()
    facts: tuple[Fact, ...] = ()
    about: str = ""
    classes: tuple[str, ...] = ()


def render_json(report: Report) -> str:
    """The report for machines; numbers that are none (nan) become null."""
    document = {
        "name": report.name,
        "summary": {name: _number(value) for name, value in report.summary.items()},
        "sections": {
            section.title: [dict(zip(section.head, map(_number, row), strict=True)) for row in section.rows]
            for section in report.sections
        },
        "plots": {plot.title: numbers(plot) for plot in report.plots},
    }
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def render_html(report: Report) -> str:
    """The report as one self-contained page, for light and dark screens and for paper."""
    figures = Section("All figures", "", ("figure", "value"), tuple(report.summary.items()))
    return render_page(
        report.name,
        report.about,
        report.facts,
        report.plots,
        (*report.sections, figures),
        pictures=_pictures(report),
        complete=REPORT_JSON,
    )


def format_text(report: Report) -> str:
    """The summary as aligned text for a terminal."""
    width = max(map(len, report.summary), default=0)
    return "\n".join(f"{name:<{width}}  {_shown(value)}" for name, value in report.summary.items())


def _pictures(report: Report) -> str:
    """The worst images, under a heading and the key of their colours."""
    if not report.worst:
        return ""
    key = "".join(_key(index, name) for index, name in enumerate(report.classes))
    worst = "".join(map(_worst, report.worst))
    told = "Those with the most wrong pixels: image, truth, and what the engine says."
    return f'<h2>Worst images</h2><p>{told}</p><p>{key}</p><div class="worst">{worst}</div>'


def _worst(worst: WorstImage) -> str:
    panels = "".join(
        f'<div><img alt="{name}" src="{source}">{name}</div>'
        for name, source in (
            ("image", _picture(worst.image, None)),
            ("truth", _picture(worst.truth, _COLOURS)),
            ("engine", _picture(worst.mask, _COLOURS)),
        )
    )
    return f'<figure><div class="panels">{panels}</div><figcaption>{worst.wrong:.1%} wrong</figcaption></figure>'


def _picture(pixels: npt.NDArray[np.uint8], colours: npt.NDArray[np.uint8] | None) -> str:
    """Address of a picture in itself. colours: by class index, of a mask; an image has none."""
    content = b""
    for side in SHOWN_SIDES:
        factor = min(1.0, side / max(pixels.shape))
        size = [max(1, round(extent * factor)) for extent in pixels.shape[::-1]]
        # classes have no mean
        small = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if colours is None else cv2.INTER_NEAREST))
        if colours is None:
            content = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 75])[1].tobytes()
        else:
            content = cv2.imencode(".png", colours[small], [cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes()
        if len(content) <= PICTURE_BYTES:
            break
    kind = "jpeg" if colours is None else "png"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _key(index: int, name: str) -> str:
    blue, green, red = _colour(index)
    return f'<span class="key"><i style="background:rgb({red},{green},{blue})"></i>{html.escape(name)}</span>'


def _colour(index: int) -> tuple[int, int, int]:
    return PALETTE[index if index < len(PALETTE) else 1 + (index - 1) % (len(PALETTE) - 1)]


_COLOURS = np.array([_colour(index) for index in range(256)], np.uint8)


def _shown(value: Value) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _number(value: Value) -> Value | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value
