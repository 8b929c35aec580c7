"""Bars on a logarithmic scale as a file of their own, light and dark: speeds that lie two powers of ten apart."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

_WIDTH, _ROW, _BAR = 900, 24, 15
_LABEL, _VALUE = 400, 70
_COLOURS = {"ours": "#0969da", "peer": "#9aa4ae", "seed": "#bf8700"}
_STYLE = """<style>
text{font:13px system-ui,sans-serif;fill:#1f2328}.t{fill:#59636e}.g{stroke:#d1d9e0}.h{font-weight:600;font-size:15px}
@media (prefers-color-scheme:dark){text{fill:#e6edf3}.t{fill:#9198a1}.g{stroke:#3d444d}}
</style>"""
_NAMES = {"ours": "rust-edge", "peer": "tilers", "seed": "the seed systems' loop"}


@dataclass(frozen=True, slots=True)
class Bar:
    """label: at the left; role: ours, peer or seed."""

    label: str
    value: float
    role: str


def draw(title: str, unit: str, bars: Sequence[Bar]) -> str:
    """SVG text; bars in the order given. A value's place is its logarithm: each line of the grid is twice the one before."""
    low = math.floor(math.log2(min(bar.value for bar in bars))) - 1
    high = math.ceil(math.log2(max(bar.value for bar in bars)))
    top, bottom = 62, 62 + _ROW * len(bars)
    scale = (_WIDTH - _LABEL - _VALUE) / (high - low)
    told = f"{title}: " + "; ".join(f"{bar.label} {bar.value:.3g} {unit}" for bar in bars)
    marks = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {bottom + 34}" role="img"',
        f'aria-label="{html.escape(told)}">',
        _STYLE,
        f'<text class="h" x="0" y="16">{html.escape(title)}</text>',
    ]
    x = 0.0
    for role in dict.fromkeys(bar.role for bar in bars):
        marks.append(f'<rect x="{x:.0f}" y="28" width="12" height="12" fill="{_COLOURS[role]}"/>')
        marks.append(f'<text class="t" x="{x + 18:.0f}" y="39">{html.escape(_NAMES[role])}</text>')
        x += 40 + 8 * len(_NAMES[role])
    for power in range(low, high + 1):
        place = _LABEL + scale * (power - low)
        marks.append(f'<line class="g" x1="{place:.1f}" x2="{place:.1f}" y1="{top - 6}" y2="{bottom}"/>')
        marks.append(f'<text class="t" x="{place:.1f}" y="{bottom + 15}" text-anchor="middle">{2.0**power:g}</text>')
    marks.append(
        f'<text class="t" x="{(_LABEL + _WIDTH) / 2:.0f}" y="{bottom + 31}" text-anchor="middle">{html.escape(unit)}</text>'
    )
    for index, bar in enumerate(bars):
        y = top + _ROW * index
        length = scale * (math.log2(bar.value) - low)
        marks.append(f'<text x="{_LABEL - 8}" y="{y + 12}" text-anchor="end">{html.escape(bar.label)}</text>')
        marks.append(
            f'<rect x="{_LABEL}" y="{y}" width="{length:.1f}" height="{_BAR}" fill="{_COLOURS[bar.role]}">'
            f"<title>{html.escape(bar.label)}: {bar.value:.3g} {html.escape(unit)}</title></rect>"
        )
        marks.append(f'<text class="t" x="{_LABEL + length + 6:.1f}" y="{y + 12}">{bar.value:.3g}</text>')
    return "\n".join([*marks, "</svg>", ""])
