"""One page of figures to open in a browser: a few facts at the top, plots, tables; light and dark screens, and paper."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from edge.pages.plots import Plot, render

Value = str | int | float

ROWS_SHOWN = 60
"""Of a longer table the page shows the first ones; the file for machines has them all."""

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
.c0,.c1,.c2,.c3{fill:none;stroke-width:2;stroke-linejoin:round}.c0{stroke:var(--s0)}.c1{stroke:var(--s1)}.c2{stroke:var(--s2)}
.c3{stroke:var(--s3)}.lim{stroke:var(--bad);stroke-width:1.5;stroke-dasharray:4 3}
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
    """A table. note: what it says and how it was measured; bar: the column that is drawn as well, if any."""

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


def render_page(
    title: str,
    about: str,
    facts: Sequence[Fact],
    plots: Sequence[Plot],
    sections: Sequence[Section],
    *,
    pictures: str = "",
    complete: str = "the JSON file",
) -> str:
    """The page as HTML that needs nothing else. pictures: HTML between plots and tables; complete: where cut tables are whole."""
    return "\n".join(_parts(title, about, facts, plots, sections, pictures, complete)) + "\n"


def _parts(
    title: str,
    about: str,
    facts: Sequence[Fact],
    plots: Sequence[Plot],
    sections: Sequence[Section],
    pictures: str,
    complete: str,
) -> Iterator[str]:
    title = html.escape(title)
    yield '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    yield f"<title>{title}</title><style>{STYLE}</style></head><body>"
    yield f"<header><h1>{title}</h1><p>{html.escape(about)}</p></header>"
    if facts:
        yield f'<dl class="facts">{"".join(map(_fact, facts))}</dl>'
    if plots:
        yield f'<div class="plots">{"".join(map(_plot, plots))}</div>'
    if pictures:
        yield pictures
    for section in sections:
        note = f"<p>{html.escape(section.note)}</p>" if section.note else ""
        yield f"<h2>{html.escape(section.title)}</h2>{note}{_table(section, complete)}"
    yield "</body></html>"


def _fact(fact: Fact) -> str:
    remark = f"<dd>{html.escape(fact.remark)}</dd>" if fact.remark else ""
    return f'<div class="{fact.verdict}"><dt>{html.escape(fact.name)}</dt><dd>{html.escape(fact.value)}</dd>{remark}</div>'


def _plot(plot: Plot) -> str:
    caption = f"<figcaption><h3>{html.escape(plot.title)}</h3><p>{html.escape(plot.note)}</p></figcaption>"
    return f"<figure>{caption}{render(plot)}</figure>"


def _table(section: Section, complete: str) -> str:
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
    more = f"<p>and {hidden} more rows in {html.escape(complete)}</p>" if hidden > 0 else ""
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table>{more}</div>'


def _cell(value: int | float) -> str:
    """A number of a table: whole ones whole, others to four digits."""
    if isinstance(value, float) and not math.isfinite(value):
        return "–"
    return f"{value:.4g}" if isinstance(value, float) and abs(value) < 1000 else f"{value:,.0f}".replace(",", " ")
