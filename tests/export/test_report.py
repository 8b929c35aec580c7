from __future__ import annotations

import json

import numpy as np

from export.quality import WorstImage
from export.report import Report, Section, format_text, render_html, render_json

REPORT = Report(
    "steel <1>",
    {"mean_iou": 0.87654321, "images": 12, "missing": float("nan")},
    (Section("Halo", "how <much>", ("halo", "changed"), ((0, 0.5), (16, 0.25), (32, 0.0)), bar="changed"),),
    (WorstImage(0.25, np.zeros((300, 200), np.uint8), np.ones((300, 200), np.uint8), np.full((300, 200), 9, np.uint8)),),
)


def test_machines_get_tables_as_rows_and_no_nan() -> None:
    document = json.loads(render_json(REPORT))
    assert document["summary"] == {"mean_iou": 0.87654321, "images": 12, "missing": None}
    assert document["sections"]["Halo"][1] == {"halo": 16, "changed": 0.25}


def test_the_page_is_self_contained_and_escapes_what_it_shows() -> None:
    page = render_html(REPORT)
    assert "steel &lt;1&gt;" in page
    assert "how &lt;much&gt;" in page
    assert 'src="data:image/jpeg;base64,' in page
    assert "25.0% wrong" in page
    assert page.count("http") == page.count("<script") == 0
    assert len(page) < 30_000


def test_a_bar_is_as_long_as_its_value_is_large() -> None:
    assert [f"width:{width}em" in render_html(REPORT) for width in ("12.00", "6.00", "0.00")] == [True, True, True]


def test_the_summary_is_aligned_for_a_terminal() -> None:
    assert format_text(REPORT).splitlines()[:2] == ["mean_iou  0.876543", "images    12"]
