from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np

from edge.pages.page import Fact, Section
from edge.pages.plots import Bars, Series
from export.quality import WorstImage
from export.report import Report, format_text, render_html, render_json

PLOT = Bars("Size & speed", "of <model>", "MB", ("model.onnx",), (Series("FP32", (3.0,)), Series("INT8", (float("nan"),))))
REPORT = Report(
    "steel <1>",
    {"mean_iou": 0.87654321, "images": 12, "missing": float("nan")},
    (Section("Halo", "how <much>", ("halo", "changed"), ((0, 0.5), (16, 0.25), (32, 0.0)), bar="changed"),),
    (WorstImage(0.25, np.zeros((300, 200), np.uint8), np.ones((300, 200), np.uint8), np.full((300, 200), 9, np.uint8)),),
    (PLOT,),
    (Fact("points lost", "0.11", "0.5 allowed", "good"),),
    "Segmenter for <things>.",
    ("background", "pit & rust"),
)


class Page(HTMLParser):
    """Tags in order, those left open, the addresses that the page names, and what pictures and drawings say instead."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.alternatives: list[str | None] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        named = dict(attributes)
        self.addresses += [named[key] or "" for key in ("src", "href", "data", "action") if key in named]
        if tag in ("img", "svg"):
            self.alternatives.append(named.get("alt" if tag == "img" else "aria-label"))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Closes itself."""


def test_machines_get_tables_as_rows_plots_as_numbers_and_no_nan() -> None:
    document = json.loads(render_json(REPORT))
    assert document["summary"] == {"mean_iou": 0.87654321, "images": 12, "missing": None}
    assert document["sections"]["Halo"][1] == {"halo": 16, "changed": 0.25}
    assert document["plots"]["Size & speed"]["rows"] == [{"label": "model.onnx", "FP32": 3.0, "INT8": None}]


def test_the_page_is_self_contained_and_escapes_what_it_shows() -> None:
    page = render_html(REPORT)
    assert "steel &lt;1&gt;" in page
    assert "how &lt;much&gt;" in page
    assert "Segmenter for &lt;things&gt;." in page
    assert "pit &amp; rust" in page
    assert 'src="data:image/jpeg;base64,' in page
    assert "25.0% wrong" in page
    assert page.count("http") == page.count("<script") == page.count("url(") == page.count("@import") == 0
    assert all(address.startswith("data:image/") for address in Page(page).addresses)
    assert len(page) < 30_000


def test_every_tag_is_closed_and_every_picture_has_words() -> None:
    page = Page(render_html(REPORT))
    assert page.open == []
    assert len(page.alternatives) == 4
    assert all(page.alternatives)


def test_light_dark_and_paper_have_their_own_colours() -> None:
    style = re.search(r"<style>(.*)</style>", render_html(REPORT), re.DOTALL).group(1)
    named = set(re.findall(r"var\((--\w+)\)", style))
    schemes = [style.split("@media")[0], *(part for part in style.split("@media")[1:])]
    light, dark, paper = (set(re.findall(r"(--\w+):", part)) for part in schemes)
    assert named <= light
    assert "prefers-color-scheme:dark" in schemes[1]
    assert dark == light
    assert "print" in schemes[2]
    assert {"--ink", "--back", "--s1"} <= paper <= light


def test_what_a_reader_came_for_stands_first() -> None:
    page = render_html(REPORT)
    order = [page.index(mark) for mark in ("points lost", "Size &amp; speed", "Worst images", "<h2>Halo", "<h2>All figures")]
    assert order == sorted(order)
    assert '<div class="good"><dt>points lost</dt><dd>0.11</dd><dd>0.5 allowed</dd></div>' in page


def test_a_bar_is_as_long_as_its_value_is_large() -> None:
    assert [f"width:{width}em" in render_html(REPORT) for width in ("12.00", "6.00", "0.00")] == [True, True, True]


def test_numbers_are_readable_and_nothing_is_no_nan() -> None:
    section = Section(
        "S", "", ("name", "value"), (("parts", 764928), ("small", 1.23456e-5), ("none", float("nan")), ("big", 5e6))
    )
    page = render_html(Report("r", {}, (section,)))
    assert [text in page for text in (">764 928<", ">1.235e-05<", ">–<", ">5 000 000<", "nan")] == [True, True, True, True, False]


def test_a_table_without_rows_is_its_note_alone() -> None:
    page = render_html(Report("r", {}, (Section("Streaming", "runs on tiles", ("operator", "node"), ()),)))
    assert "runs on tiles" in page
    assert "<th>operator" not in page


def test_a_long_table_is_cut_on_the_page_and_whole_for_machines() -> None:
    section = Section("Images", "", ("name",), tuple((f"tile {number}",) for number in range(500)))
    report = Report("r", {}, (section,))
    page = render_html(report)
    assert page.count("<td>tile ") == 60
    assert "and 440 more rows in report.json" in page
    assert len(json.loads(render_json(report))["sections"]["Images"]) == 500


def test_the_summary_is_aligned_for_a_terminal() -> None:
    assert format_text(REPORT).splitlines()[:2] == ["mean_iou  0.876543", "images    12"]
