"""What an export did and measured: one page to open in a browser, and the same for machines."""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from export.plots import Plot, numbers, render
from export.quality import WorstImage

REPORT_HTML, REPORT_JSON = "report.html", "report.json"
Value = str | int | float

PALETTE = ((0, 0, 0), (60, 60, 230), (60, 200, 60), (230, 140, 40), (40, 200, 230), (200, 60, 200), (200, 200, 60))
"""Blue, green, red of classes by index; further ones begin again after the background."""

SHOWN_SIDES = (240, 192, 144, 96, 64)
"""Longest side of a picture, px: the first at which it takes no more than PICTURE_BYTES. The report is part of the bundle."""

PICTURE_BYTES = 9_000
"""Nine pictures of that, in base64, leave a third of 150 kB to everything else."""

ROWS_SHOWN = 60
"""Of a longer table the page shows the first ones; report.json has them all."""

STYLE = """
:root{color-scheme:light dark;--ink:#1f2328;--soft:#59636e;--line:#d1d9e0;--back:#fff;--panel:#f6f8fa;--s0:#9aa4ae;--s1:#0969da;
--s2:#bf8700;--s3:#1a7f37;--good:#1a7f37;--bad:#cf222e}
@media (prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9198a1;--line:#3d444d;--back:#0d1117;--panel:#151b23;--s0:#6e7781;
--s1:#4493f8;--s2:#d29922;--s3:#3fb950;--good:#3fb950;--bad:#f85149}}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif;color:var(--ink);background:var(--back);max-width:76rem;
margin:0 auto;padding:2rem 1.25rem 4rem}
h1{font-size:1.7rem;margin:0;line-height:1.2}h2{font-size:1.15rem;margin:2.4rem 0 .3rem}h3{font-size:1rem;margin:0}
p{margin:.2rem 0 .6rem;color:var(--soft);max-width:60rem}header p{font-size:1.02rem}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(11.5rem,1fr));gap:.75rem;margin:1.4rem 0 0}
.facts div{border:1px solid var(--line);border-radius:.5rem;padding:.7rem .9rem;background:var(--panel);border-left-width:.3rem}
.facts .good{border-left-color:var(--good)}.facts .bad{border-left-color:var(--bad)}
dt{color:var(--soft);font-size:.85rem}dd{margin:0;font-size:1.35rem;font-weight:600;font-variant-numeric:tabular-nums}
dd+dd{font-size:.85rem;font-weight:400;color:var(--soft)}
.plots{columns:27rem 2;column-gap:1rem;margin:1rem 0 0}
figure{margin:0}.plots figure{border:1px solid var(--line);border-radius:.5rem;padding:.9rem 1rem .5rem;
margin-bottom:1rem;break-inside:avoid}
.plots p{font-size:.87rem;margin-bottom:.7rem}svg{width:100%;height:auto;display:block;overflow:visible}
text{font:12px system-ui,-apple-system,"Segoe UI",sans-serif;fill:var(--ink)}
.t{fill:var(--soft)}.v{font-size:11px;font-variant-numeric:tabular-nums;fill:var(--soft)}.r{font-weight:600}.b{font-weight:700;fill:var(--ink)}
.e{text-anchor:end}.m{text-anchor:middle}.s0{fill:var(--s0)}.s1{fill:var(--s1)}.s2{fill:var(--s2)}.s3{fill:var(--s3)}.lt{fill:var(--bad)}
.g{stroke:var(--line);stroke-width:.7}.ax{stroke:var(--soft);stroke-width:1}.ln{fill:none;stroke:var(--s1);stroke-width:1.5;opacity:.6}
.lim{stroke:var(--bad);stroke-width:1.5;stroke-dasharray:4 3}
.scroll{overflow-x:auto}table{border-collapse:collapse;margin:.4rem 0}
td,th{border-bottom:1px solid var(--line);padding:.22rem .9rem .22rem 0;text-align:left;vertical-align:top;white-space:nowrap}
th{font-size:.85rem;color:var(--soft);font-weight:500}td:first-child{white-space:normal}td.w{white-space:normal}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}.bar{background:var(--s1);height:.6em;margin-top:.45em}
.worst{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(22rem,100%),1fr));gap:1rem}
.worst .panels{display:grid;grid-template-columns:repeat(3,1fr);gap:4px;font-size:.8rem;color:var(--soft);text-align:center}
.worst img{width:100%;display:block;image-rendering:auto}figcaption{font-size:.87rem;color:var(--soft)}
.plots figcaption{color:inherit}.key{display:inline-flex;gap:.35rem;align-items:center;margin-right:1rem;font-size:.87rem}
.key i{width:.8rem;height:.8rem;border:1px solid var(--line)}
@media print{:root{color-scheme:light;--ink:#000;--soft:#444;--line:#bbb;--back:#fff;--panel:#fff;--s0:#999;--s1:#0550ae}
body{padding:0;font-size:10pt;max-width:none}.plots{columns:2}
figure,tr,.scroll,.facts div{break-inside:avoid}h2,h3{break-after:avoid}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""


@dataclass(frozen=True, slots=True)
class Section:
    """A table of the report. note: what it says and how it was measured; bar: the column that is drawn as well, if any."""

    title: str
    note: str
    head: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    bar: str | None = None


@dataclass(frozen=True, slots=True)
class Fact:
    """One of the few figures that a reader came for. remark: what it is to be held against; verdict: whether it is as wanted."""

    name: str
    value: str
    remark: str = ""
    verdict: Literal["good", "bad", ""] = ""


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
    return "\n".join(_page(report)) + "\n"


def format_text(report: Report) -> str:
    """The summary as aligned text for a terminal."""
    width = max(map(len, report.summary), default=0)
    return "\n".join(f"{name:<{width}}  {_shown(value)}" for name, value in report.summary.items())


def _page(report: Report) -> Iterator[str]:
    title = html.escape(report.name)
    yield '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    yield f"<title>{title}</title><style>{STYLE}</style></head><body>"
    yield f"<header><h1>{title}</h1><p>{html.escape(report.about)}</p></header>"
    if report.facts:
        yield f'<dl class="facts">{"".join(map(_fact, report.facts))}</dl>'
    if report.plots:
        yield f'<div class="plots">{"".join(map(_plot, report.plots))}</div>'
    if report.worst:
        yield "<h2>Worst images</h2><p>Those with the most wrong pixels: image, truth, and what the engine says.</p>"
        yield f"<p>{''.join(_key(index, name) for index, name in enumerate(report.classes))}</p>"
        yield f'<div class="worst">{"".join(map(_worst, report.worst))}</div>'
    for section in report.sections:
        yield f"<h2>{html.escape(section.title)}</h2><p>{html.escape(section.note)}</p>{_table(section)}"
    yield f"<h2>All figures</h2>{_table(Section('', '', ('figure', 'value'), tuple(report.summary.items())))}"
    yield "</body></html>"


def _fact(fact: Fact) -> str:
    remark = f"<dd>{html.escape(fact.remark)}</dd>" if fact.remark else ""
    return f'<div class="{fact.verdict}"><dt>{html.escape(fact.name)}</dt><dd>{html.escape(fact.value)}</dd>{remark}</div>'


def _plot(plot: Plot) -> str:
    caption = f"<figcaption><h3>{html.escape(plot.title)}</h3><p>{html.escape(plot.note)}</p></figcaption>"
    return f"<figure>{caption}{render(plot)}</figure>"


def _table(section: Section) -> str:
    if not section.rows:
        return ""
    bar = section.head.index(section.bar) if section.bar else None
    highest = max((abs(float(row[bar])) for row in section.rows), default=0.0) if bar is not None else 0.0
    numeric = [all(not isinstance(row[column], str) for row in section.rows) for column in range(len(section.head))]
    head = "".join(
        f"<th{' class=n' if number else ''}>{html.escape(name)}</th>" for name, number in zip(section.head, numeric, strict=True)
    )
    rows = []
    for row in section.rows[:ROWS_SHOWN]:
        cells = "".join(
            f"<td>{html.escape(value)}</td>" if isinstance(value, str) else f'<td class="n">{_cell(value)}</td>' for value in row
        )
        if bar is not None and highest > 0:
            cells += f'<td><div class="bar" style="width:{12 * abs(float(row[bar])) / highest:.2f}em"></div></td>'
        rows.append(f"<tr>{cells}</tr>")
    hidden = len(section.rows) - ROWS_SHOWN
    more = f"<p>and {hidden} more rows in {REPORT_JSON}</p>" if hidden > 0 else ""
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table>{more}</div>'


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


def _cell(value: int | float) -> str:
    """A number of a table: whole ones whole, others to four digits."""
    if isinstance(value, float) and not math.isfinite(value):
        return "–"
    return f"{value:.4g}" if isinstance(value, float) and abs(value) < 1000 else f"{value:,.0f}".replace(",", " ")


def _shown(value: Value) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _number(value: Value) -> Value | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value
