"""Plots of a report, as SVG inside its page.

Drawn here rather than by matplotlib: four kinds are all there is, each some 3 kB where matplotlib's are 10 to 25 kB of a file
that is part of every bundle. And these take their colours from the page, so that one drawing serves light and dark screens and
print; every mark says its value when pointed at, and every plot says itself in words for who cannot see it.
"""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

WIDTH = 560
"""Of a drawing, in its own units, as are all lengths here; the page stretches it."""
_ROW, _GAP = 15, 9
"""Height of one bar, and between the groups of bars."""
_LEGEND_LINE = 18
_LETTER = 6.9
"""Mean width of a letter of 12 units in a sans-serif font: enough to keep labels apart, not to set type."""
_SHADES = 4
"""Colours that the page has for series."""
_PLACES_NAMED = 8
_LONGEST = 26
"""Letters of a label; longer ones lose their middle."""


@dataclass(frozen=True, slots=True)
class Series:
    """Values by the plot's labels; nan where there is none."""

    name: str
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Bars:
    """Horizontal bars, a group for each label and in it one for each series, the first of them the reference.

    unit: of the values, `points`. remarks: a word behind each group, such as the factor between its bars.
    """

    title: str
    note: str
    unit: str
    labels: tuple[str, ...]
    series: tuple[Series, ...]
    remarks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_lengths(self.title, self.labels, self.series)
        if self.remarks and len(self.remarks) != len(self.labels):
            raise ValueError(f"{self.title}: got {len(self.remarks)} remarks, expected one for each of {len(self.labels)} labels")


@dataclass(frozen=True, slots=True)
class Steps:
    """A value that changes from step to step, each named, top to bottom. limit: of the value; chosen: index of a step."""

    title: str
    note: str
    unit: str
    labels: tuple[str, ...]
    values: tuple[float, ...]
    limit: float | None = None
    chosen: int | None = None

    def __post_init__(self) -> None:
        _check_lengths(self.title, self.labels, (Series("", self.values),))


@dataclass(frozen=True, slots=True)
class Histogram:
    """Shares of values between edges, on a logarithmic scale: what is rare is what matters.

    edges: one more than a series has values.
    """

    title: str
    note: str
    unit: str
    edges: tuple[float, ...]
    series: tuple[Series, ...]

    def __post_init__(self) -> None:
        _check_lengths(self.title, self.edges[1:], self.series)


@dataclass(frozen=True, slots=True)
class Curves:
    """Values over a quantity, a curve for each series, the first of them the reference; nan leaves a gap.

    places: of the quantity, rising; quantity: its name and unit, `load, % of capacity`. scale: of the quantity; a
    logarithmic one wants places above 0. limit: of the values.
    """

    title: str
    note: str
    quantity: str
    unit: str
    places: tuple[float, ...]
    series: tuple[Series, ...]
    scale: Literal["linear", "logarithmic"] = "linear"
    limit: float | None = None

    def __post_init__(self) -> None:
        _check_lengths(self.title, self.places, self.series)
        if any(later <= earlier for earlier, later in itertools.pairwise(self.places)):
            raise ValueError(f"{self.title}: got places {self.places}, expected rising ones")
        if self.scale == "logarithmic" and self.places[0] <= 0:
            raise ValueError(f"{self.title}: got place {self.places[0]}, expected above 0 on a logarithmic scale")


Plot = Bars | Steps | Histogram | Curves


def render(plot: Plot) -> str:
    """A plot as an SVG element, with its values in words."""
    match plot:
        case Bars():
            height, marks = _bars(plot)
        case Steps():
            height, marks = _steps(plot)
        case Histogram():
            height, marks = _histogram(plot)
        case Curves():
            height, marks = _curves(plot)
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{html.escape(describe(plot))}">{"".join(marks)}</svg>'


def describe(plot: Plot) -> str:
    """The plot in words, values included."""
    if isinstance(plot, Steps):
        limit = "" if plot.limit is None else f", at most {short(plot.limit)} allowed"
        return f"{plot.title}{limit}: " + _in_words(plot.labels, (Series("", plot.values),), plot.unit)
    if isinstance(plot, Curves):
        limit = "" if plot.limit is None else f", at most {short(plot.limit)} allowed"
        places = [f"at {short(place)}" for place in plot.places]
        return f"{plot.title} by {plot.quantity}{limit}: " + _in_words(places, plot.series, plot.unit)
    labels = _bins(plot.edges) if isinstance(plot, Histogram) else plot.labels
    return f"{plot.title}: " + _in_words(labels, plot.series, "" if isinstance(plot, Histogram) else plot.unit)


def numbers(plot: Plot) -> dict[str, object]:
    """The plot for machines: rows by label; what is no number is None."""
    if isinstance(plot, Steps):
        rows = [{"label": label, "value": _finite(value)} for label, value in zip(plot.labels, plot.values, strict=True)]
        return {"unit": plot.unit, "rows": rows, "limit": plot.limit, "chosen": plot.chosen}
    if isinstance(plot, Histogram):
        edges = [_finite(edge) for edge in plot.edges]
        return {"unit": plot.unit, "edges": edges, "shares": {of.name: [_finite(v) for v in of.values] for of in plot.series}}
    if isinstance(plot, Curves):
        curves = {of.name or "value": [_finite(value) for value in of.values] for of in plot.series}
        return {"quantity": plot.quantity, "unit": plot.unit, "places": list(plot.places), "limit": plot.limit, "curves": curves}
    rows = [
        {"label": label, **{of.name or "value": _finite(of.values[index]) for of in plot.series}}
        for index, label in enumerate(plot.labels)
    ]
    return {"unit": plot.unit, "rows": rows}


def short(value: float) -> str:
    """A number as a label wants it.

    >>> [short(value) for value in (0.98765, 12.3456, 1234.0, 1234567.0, -0.25, 0.0, 1e-7, float("nan"))]
    ['0.988', '12.3', '1234', '1234567', '-0.25', '0', '1e-07', '–']
    """
    if not math.isfinite(value):
        return "–"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers (1, 2, 5 times a power of ten) from low to high, about as many as wanted.

    >>> ticks(0.0, 1.0)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    >>> ticks(-0.3, 2.1)
    [0.0, 0.5, 1.0, 1.5, 2.0]
    """
    rough = (high - low) / wanted
    if not rough > 0:  # a difference may be too small for its fifth to be a number
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((factor * power for factor in (1, 2, 5, 10)), key=lambda candidate: abs(candidate - rough))
    return [round(index * step, 12) for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _bars(plot: Bars) -> tuple[float, list[str]]:
    left = _label_width(plot.labels)
    right = 8 + _LETTER * max((len(remark) for remark in plot.remarks), default=0)
    span = _span([value for of in plot.series for value in of.values])
    # a value stands behind its bar, so the longest bar ends that much before the remarks
    scale = _scale(span, left, WIDTH - right - 46)
    group = _ROW * len(plot.series) + _GAP
    top = _legend_height(plot.series)
    bottom = top + group * len(plot.labels)
    marks = [*_legend(plot.series), *_grid(span, scale, top, bottom, plot.unit)]
    for index, label in enumerate(plot.labels):
        y = top + group * index + _GAP / 2
        middle = y + _ROW * len(plot.series) / 2
        marks.append(_label(label, left - 8, middle + 4))
        for row, of in enumerate(plot.series):
            value = of.values[index]
            told = f"{label}, {of.name}: {short(value)}" if of.name else f"{label}: {short(value)}"
            if math.isfinite(value):
                ends = sorted((scale(0.0), scale(value)))
                shade = _shade(row, len(plot.series))
                box = f'x="{ends[0]:.1f}" y="{y + _ROW * row:.1f}" width="{max(ends[1] - ends[0], 0.8):.1f}" height="{_ROW - 2}"'
                marks.append(f'<rect class="{shade}" {box}><title>{html.escape(told)}</title></rect>')
            marks.append(
                _text(short(value), max(scale(0.0), scale(value) if math.isfinite(value) else 0) + 4, y + _ROW * row + 11, "v")
            )
        if plot.remarks:
            marks.append(_text(plot.remarks[index], WIDTH - 2, middle + 4, "r e"))
    return bottom + 34, marks


def _steps(plot: Steps) -> tuple[float, list[str]]:
    left = _label_width(plot.labels)
    span = _span([*plot.values, *([plot.limit] if plot.limit is not None else [])])
    scale = _scale(span, left, WIDTH - 62)
    pitch, top = _ROW + 4, 22.0 if plot.limit is not None else 6.0
    bottom = top + pitch * len(plot.labels)
    marks = _grid(span, scale, top, bottom, plot.unit)
    if plot.limit is not None:
        x = scale(plot.limit)
        marks.append(f'<line class="lim" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 4:.1f}" y2="{bottom:.1f}"/>')
        marks.append(_text(f"allowed: {short(plot.limit)}", x, top - 8, "lt m"))
    places = [(scale(value), top + pitch * (index + 0.5)) for index, value in enumerate(plot.values) if math.isfinite(value)]
    marks.append(f'<polyline class="ln" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>')
    for index, (label, value) in enumerate(zip(plot.labels, plot.values, strict=True)):
        y = top + pitch * (index + 0.5)
        marks.append(_label(label, left - 8, y + 4, "b" if index == plot.chosen else ""))
        if math.isfinite(value):
            told = html.escape(f"{label}: {short(value)} {plot.unit}")
            size = 5 if index == plot.chosen else 3.2
            marks.append(f'<circle class="s1" cx="{scale(value):.1f}" cy="{y:.1f}" r="{size}"><title>{told}</title></circle>')
        marks.append(_text(short(value), WIDTH - 2, y + 4, "v e b" if index == plot.chosen else "v e"))
    return bottom + 34, marks


def _histogram(plot: Histogram) -> tuple[float, list[str]]:
    shares = [value for of in plot.series for value in of.values if value > 0]
    decades = max(1, math.ceil(-math.log10(min(shares)) - 1e-9)) if shares else 1
    top, left, right = _legend_height(plot.series) + 4, 58.0, WIDTH - 12.0
    height = 150.0
    bottom = top + height

    def level(share: float) -> float:
        return bottom - height * max(0.0, 1 + math.log10(share) / decades)

    marks = list(_legend(plot.series))
    every = -(-decades // 4)
    for decade in range(0, decades + 1, every):
        y = bottom - height * (1 - decade / decades)
        marks.append(f'<line class="g" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        marks.append(_text(_percent(10.0**-decade), left - 6, y + 4, "t e"))
    pitch = (right - left) / (len(plot.edges) - 1)
    width = (pitch - 4) / len(plot.series)
    for index, bin_name in enumerate(_bins(plot.edges)):
        x = left + pitch * index
        for row, of in enumerate(plot.series):
            if not of.values[index] > 0:
                continue
            y = min(level(of.values[index]), bottom - 1)
            box = f'x="{x + 2 + width * row:.1f}" y="{y:.1f}" width="{width - 0.6:.1f}" height="{bottom - y:.1f}"'
            told = html.escape(f"{of.name}: {_percent(of.values[index])} {bin_name}")
            marks.append(f'<rect class="{_shade(row, len(plot.series))}" {box}><title>{told}</title></rect>')
    for index, edge in enumerate(plot.edges):
        if math.isfinite(edge):
            marks.append(_text(_power(edge), left + pitch * index, bottom + 15, "v m"))
    marks.append(f'<line class="ax" x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    marks.append(_text(plot.unit, (left + right) / 2, bottom + 32, "t m"))
    return bottom + 38, marks


def _curves(plot: Curves) -> tuple[float, list[str]]:
    top, left, right = _legend_height(plot.series) + 26, 52.0, WIDTH - 14.0
    height = 170.0
    bottom = top + height
    span = _span([value for of in plot.series for value in of.values] + ([] if plot.limit is None else [plot.limit]))

    def level(value: float) -> float:
        return bottom - height * (value - span[0]) / (span[1] - span[0])

    def position(place: float) -> float:
        first, last, at = (math.log(p) if plot.scale == "logarithmic" else p for p in (plot.places[0], plot.places[-1], place))
        return (left + right) / 2 if last == first else left + 8 + (right - left - 16) * (at - first) / (last - first)

    marks = list(_legend(plot.series))
    for tick in ticks(*span):
        kind = "ax" if tick == 0 else "g"
        marks.append(f'<line class="{kind}" x1="{left}" x2="{right}" y1="{level(tick):.1f}" y2="{level(tick):.1f}"/>')
        marks.append(_text(short(tick), left - 6, level(tick) + 4, "t e"))
    if plot.limit is not None:
        y = level(plot.limit)
        marks.append(f'<line class="lim" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        marks.append(_text(f"allowed: {short(plot.limit)}", right, y - 4, "lt e"))
    # a label for every place where they are few, else round ones: labels must not run into each other
    few = plot.scale == "logarithmic" or len(plot.places) <= _PLACES_NAMED
    taken = -math.inf
    for place in plot.places if few else ticks(plot.places[0], plot.places[-1]):
        x, name = position(place), short(place)
        if x - _LETTER * len(name) / 2 > taken:
            marks.append(_text(name, x, bottom + 15, "t m"))
            taken = x + _LETTER * len(name) / 2 + 4
    for row, of in enumerate(plot.series):
        shade = _shade(row, len(plot.series))
        for stretch in _unbroken(plot.places, of.values):
            points = " ".join(f"{position(place):.1f},{level(value):.1f}" for place, value in stretch)
            marks.append(f'<polyline class="c{shade[1:]}" points="{points}"/>')
        for place, value in zip(plot.places, of.values, strict=True):
            if math.isfinite(value):
                told = html.escape(f"{of.name} at {short(place)}: {short(value)} {plot.unit}".strip())
                at = f'cx="{position(place):.1f}" cy="{level(value):.1f}"'
                marks.append(f'<circle class="{shade}" {at} r="3"><title>{told}</title></circle>')
    marks.append(_text(plot.unit, 2, top - 14, "t"))
    marks.append(_text(plot.quantity, (left + right) / 2, bottom + 31, "t m"))
    return bottom + 38, marks


def _unbroken(places: Sequence[float], values: Sequence[float]) -> Iterator[list[tuple[float, float]]]:
    """Stretches of a curve between its gaps."""
    for known, group in itertools.groupby(zip(places, values, strict=True), lambda point: math.isfinite(point[1])):
        if known:
            yield list(group)


def _grid(span: tuple[float, float], scale: Callable[[float], float], top: float, bottom: float, unit: str) -> list[str]:
    marks = []
    for tick in ticks(*span):
        x = scale(tick)
        kind = "ax" if tick == 0 else "g"
        marks.append(f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>')
        marks.append(_text(short(tick), x, bottom + 14, "t m"))
    return [*marks, _text(unit, (scale(span[0]) + scale(span[1])) / 2, bottom + 29, "t m")]


def _legend(series: Sequence[Series]) -> Iterator[str]:
    if len(series) > 1:
        for row, (of, (x, line)) in enumerate(zip(series, _legend_places(series), strict=True)):
            y = _LEGEND_LINE * line
            yield f'<rect class="{_shade(row, len(series))}" x="{x:.1f}" y="{y + 2:.0f}" width="11" height="11"/>'
            yield _text(of.name, x + 16, y + 12, "t")


def _legend_places(series: Sequence[Series]) -> list[tuple[float, int]]:
    """x and line of each entry: as many on a line as fit."""
    places: list[tuple[float, int]] = []
    x, line = 2.0, 0
    for of in series:
        length = 32 + _LETTER * len(of.name)
        if places and x + length > WIDTH:
            x, line = 2.0, line + 1
        places.append((x, line))
        x += length
    return places


def _legend_height(series: Sequence[Series]) -> float:
    return 6.0 + _LEGEND_LINE * (1 + _legend_places(series)[-1][1]) if len(series) > 1 else 4.0


def _shade(row: int, rows: int) -> str:
    """The reference is grey, what it is compared with coloured."""
    return f"s{row % _SHADES if rows > 1 else 1}"


def _span(values: Sequence[float]) -> tuple[float, float]:
    """Zero and all values, and something even where they are all zero."""
    known = [value for value in values if math.isfinite(value)]
    low, high = min([0.0, *known]), max([0.0, *known])
    return (low, high) if high > low else (0.0, 1.0)


def _scale(span: tuple[float, float], left: float, right: float) -> Callable[[float], float]:
    return lambda value: left + (value - span[0]) / (span[1] - span[0]) * (right - left)


def _label_width(labels: Sequence[str]) -> float:
    return 14 + _LETTER * max((min(len(label), _LONGEST) for label in labels), default=0)


def _label(label: str, x: float, y: float, kind: str = "") -> str:
    half = _LONGEST // 2
    shown = label if len(label) <= _LONGEST else f"{label[: half - 1]}…{label[-half:]}"
    return _text(shown, x, y, f"e {kind}".strip(), label if shown != label else "")


def _text(content: str, x: float, y: float, kind: str, told: str = "") -> str:
    title = f"<title>{html.escape(told)}</title>" if told else ""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{html.escape(content)}{title}</text>'


def _in_words(labels: Sequence[str], series: Sequence[Series], unit: str) -> str:
    return "; ".join(
        f"{label} " + ", ".join(f"{of.name} {short(of.values[index])}".strip() for of in series) + (f" {unit}" if unit else "")
        for index, label in enumerate(labels)
    )


def _bins(edges: Sequence[float]) -> list[str]:
    return [
        f"from {_power(low)}" + (f" to {_power(high)}" if math.isfinite(high) else " on")
        for low, high in itertools.pairwise(edges)
    ]


def _power(value: float) -> str:
    """Powers of ten below a hundredth as such: 10⁻⁵, 3·10⁻³."""
    if value == 0 or value >= 0.01:
        return f"{value:g}"
    exponent = math.floor(math.log10(value) + 1e-9)
    factor = value / 10.0**exponent
    power = "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return power if abs(factor - 1) < 1e-6 else f"{factor:g}·{power}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %" if share >= 1e-5 else f"{share:.0e}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _check_lengths(title: str, labels: Sequence[object], series: Sequence[Series]) -> None:
    wrong = [f"{len(of.values)} of {of.name or 'the values'}" for of in series if len(of.values) != len(labels)]
    if wrong or not labels or not series:
        raise ValueError(
            f"{title}: got {', '.join(wrong) or 'nothing to draw'}, expected a value for each of {len(labels)} labels"
        )
