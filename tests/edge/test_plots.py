from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edge.pages.plots import WIDTH, Bars, Curves, Histogram, Plot, Series, Steps, describe, numbers, render, ticks

NAN = float("nan")
PAIR = Bars(
    "IoU by class",
    "against masks",
    "intersection over union",
    ("background", "pit <deep>"),
    (Series("FP32", (0.8, 0.4)), Series("INT8", (0.6, NAN))),
    ("−20.00", ""),
)
LOSSES = Steps("Loss", "by group", "points lost", ("all in INT8", "+ stem", "+ head"), (2.0, 1.0, 0.25), limit=0.5, chosen=2)
SHARES = Histogram("Differences", "of scores", "difference", (0.0, 1e-3, 0.1, math.inf), (Series("INT8", (0.99, 0.01, 0.0)),))
LATENCY = Curves(
    "Latency",
    "to a subscriber",
    "load, %",
    "ms",
    (50.0, 80.0, 95.0),
    (Series("p50", (10.0, 20.0, 30.0)), Series("p99", (40.0, NAN, 60.0))),
    limit=80.0,
)
PLOTS: dict[str, Plot] = {"bars": PAIR, "steps": LOSSES, "histogram": SHARES, "curves": LATENCY}


def marks(plot: Plot, kind: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(render(plot)).iter(kind))


def bars(plot: Plot) -> dict[str, tuple[float, float]]:
    """x and width of each bar, by what it says when pointed at."""
    titled = [mark for mark in marks(plot, "rect") if mark.find("title") is not None]
    return {mark.find("title").text: (float(mark.get("x")), float(mark.get("width"))) for mark in titled}


@pytest.mark.parametrize("plot", PLOTS.values(), ids=PLOTS)
def test_a_plot_is_well_formed_and_says_itself_in_words(plot):
    root = ElementTree.fromstring(render(plot))
    assert root.get("role") == "img"
    assert root.get("aria-label") == describe(plot)
    assert plot.title in describe(plot)
    assert len(render(plot)) < 4000


@pytest.mark.parametrize("plot", PLOTS.values(), ids=PLOTS)
def test_colours_come_from_the_page_alone(plot):
    for mark in ElementTree.fromstring(render(plot)).iter():
        assert not {"fill", "stroke", "style"} & set(mark.keys())


def test_words_hold_every_value():
    assert describe(PAIR) == (
        "IoU by class: background FP32 0.8, INT8 0.6 intersection over union; pit <deep> FP32 0.4, INT8 – intersection over union"
    )
    assert describe(LOSSES).startswith("Loss, at most 0.5 allowed: all in INT8 2 points lost; + stem 1 points lost;")
    assert describe(SHARES) == "Differences: from 0 to 10⁻³ INT8 0.99; from 10⁻³ to 0.1 INT8 0.01; from 0.1 on INT8 0"


def test_a_bar_is_as_long_as_its_value_and_a_missing_value_has_none():
    found = bars(PAIR)
    assert set(found) == {"background, FP32: 0.8", "background, INT8: 0.6", "pit <deep>, FP32: 0.4"}
    assert found["background, FP32: 0.8"][1] == pytest.approx(2 * found["pit <deep>, FP32: 0.4"][1], abs=0.2)
    assert len({x for x, _ in found.values()}) == 1


def test_what_is_below_zero_grows_to_the_other_side():
    found = bars(Bars("gain", "", "points", ("worse", "better"), (Series("", (-1.0, 2.0)),)))
    (left, short), (right, long) = found["worse: -1"], found["better: 2"]
    assert left + short == pytest.approx(right, abs=0.2)
    assert long == pytest.approx(2 * short, abs=0.3)


def test_a_lone_series_has_no_legend():
    assert not [text for text in marks(Bars("a", "", "u", ("x",), (Series("only", (1.0,)),)), "text") if text.text == "only"]
    assert [text.text for text in marks(PAIR, "text") if text.text in ("FP32", "INT8")] == ["FP32", "INT8"]


def test_a_long_legend_goes_on_in_the_next_line():
    names = ("source and ONNX", "tiles and stream", "float and INT8", "ONNX Runtime and OpenVINO")
    plot = Histogram("d", "", "u", (0.0, 1.0), tuple(Series(name, (1.0,)) for name in names))
    places = [(float(t.get("x")), float(t.get("y"))) for t in marks(plot, "text") if t.text in names]
    assert len({y for _, y in places}) == 2
    assert all(x + 6 * len(name) < WIDTH for (x, _), name in zip(places, names, strict=True))
    top = max(y for _, y in places)
    assert all(float(bar.get("y")) > top for bar in marks(plot, "rect") if bar.find("title") is not None)


def test_steps_are_joined_in_order_and_the_chosen_one_stands_out():
    circles = marks(LOSSES, "circle")
    assert [float(circle.get("r")) for circle in circles] == [3.2, 3.2, 5.0]
    (line,) = marks(LOSSES, "polyline")
    places = [f"{float(c.get('cx')):.1f},{float(c.get('cy')):.1f}" for c in circles]
    assert line.get("points").split() == places
    bold = [text.text for text in marks(LOSSES, "text") if "b" in text.get("class").split()]
    assert bold == ["+ head", "0.25"]


def test_the_limit_is_drawn_where_its_value_lies():
    (limit,) = (line for line in marks(LOSSES, "line") if line.get("class") == "lim")
    places = [float(circle.get("cx")) for circle in marks(LOSSES, "circle")]
    assert places[2] < float(limit.get("x1")) < places[1]
    without = Steps("Loss", "", "points", ("a", "b"), (1.0, 0.5))
    assert not [line for line in marks(without, "line") if line.get("class") == "lim"]


def test_a_histogram_is_logarithmic_and_shows_what_is_rare():
    heights = [float(rect.get("height")) for rect in marks(SHARES, "rect")]
    assert len(heights) == 2
    rare = Histogram("d", "", "u", (0.0, 1.0, 2.0, 3.0), (Series("", (1.0, 1e-3, 1e-6)),))
    tall, middle, low = (float(rect.get("height")) for rect in marks(rare, "rect"))
    assert tall - middle == pytest.approx(middle - low, abs=1.1)
    assert low >= 1.0


def test_a_long_name_keeps_its_ends_and_is_told_in_full():
    name = "encoder.model.blocks.4.2.conv_pwl to decoder.blocks.x_0_4"
    (label,) = (text for text in marks(Bars("a", "", "u", (name,), (Series("", (1.0,)),)), "text") if "…" in (text.text or ""))
    assert label.text.startswith("encoder.mode")
    assert label.text.endswith("blocks.x_0_4")
    assert label.find("title").text == name


def test_machines_get_the_numbers_and_no_nan():
    assert numbers(PAIR) == {
        "unit": "intersection over union",
        "rows": [{"label": "background", "FP32": 0.8, "INT8": 0.6}, {"label": "pit <deep>", "FP32": 0.4, "INT8": None}],
    }
    assert numbers(LOSSES)["rows"][1] == {"label": "+ stem", "value": 1.0}
    assert numbers(SHARES) == {"unit": "difference", "edges": [0.0, 1e-3, 0.1, None], "shares": {"INT8": [0.99, 0.01, 0.0]}}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Bars("b", "", "u", ("x", "y"), (Series("s", (1.0,)),)), "b: got 1 of s, expected a value for each of 2 labels"),
        (lambda: Bars("b", "", "u", ("x",), (Series("s", (1.0,)),), ("r", "r")), "b: got 2 remarks"),
        (lambda: Bars("b", "", "u", (), ()), "b: got nothing to draw"),
        (lambda: Steps("s", "", "u", ("x",), ()), "s: got 0 of the values"),
        (lambda: Histogram("h", "", "u", (0.0, 1.0), (Series("s", (1.0, 2.0)),)), "h: got 2 of s"),
    ],
)
def test_values_that_do_not_fit_their_labels_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


VALUES = st.one_of(st.floats(-1e6, 1e6), st.just(NAN))


@given(st.lists(st.tuples(st.text("ab<&é\"'", min_size=1, max_size=40), VALUES, VALUES), min_size=1, max_size=12))
def test_any_labels_and_values_give_a_drawing_that_stays_in_its_frame(rows):
    labels, first, second = zip(*rows, strict=True)
    plot = Bars("t", "", "u", labels, (Series("a", first), Series("b", second)))
    steps = Steps("t", "", "u", labels, first, limit=1.0, chosen=0)
    for drawn in (plot, steps):
        root = ElementTree.fromstring(render(drawn))
        height = float(root.get("viewBox").split()[3])
        for mark in (*root.iter("rect"), *root.iter("circle")):
            x, y = float(mark.get("x", mark.get("cx"))), float(mark.get("y", mark.get("cy")))
            assert -0.1 <= x <= x + float(mark.get("width", 0)) <= WIDTH + 1
            assert 0 <= y <= y + float(mark.get("height", 0)) <= height


@given(st.floats(-1e6, 0), st.floats(0, 1e6))
def test_ticks_are_round_even_and_inside_with_zero_among_them(low, high):
    assume(high - low > 1e-6)
    found = ticks(low, high)
    slack = 1e-6 * (high - low)
    assert all(low - slack <= tick <= high + slack for tick in found)
    assert 0.0 in found
    assert 2 <= len(found) <= 12


def points(plot: Plot) -> dict[str, tuple[float, float]]:
    """x and y of each point of a curve, by what it says when pointed at."""
    return {mark.find("title").text: (float(mark.get("cx")), float(mark.get("cy"))) for mark in marks(plot, "circle")}


def test_a_curve_has_a_point_for_every_value_and_higher_values_lie_higher():
    found = points(LATENCY)
    assert set(found) == {f"p50 at {x}: {y} ms" for x, y in ((50, 10), (80, 20), (95, 30))} | {
        "p99 at 50: 40 ms",
        "p99 at 95: 60 ms",
    }
    (x50, low), (x80, high) = found["p50 at 50: 10 ms"], found["p50 at 80: 20 ms"]
    assert high < low
    assert (x80 - x50) / (found["p50 at 95: 30 ms"][0] - x50) == pytest.approx(30 / 45, abs=0.01)


def test_a_missing_value_breaks_its_curve():
    lines = [len(mark.get("points").split()) for mark in marks(LATENCY, "polyline")]
    assert lines == [3, 1, 1]


def test_doublings_stand_evenly_on_a_logarithmic_scale():
    plot = Curves("c", "", "lines", "ms", (16.0, 32.0, 64.0), (Series("", (3.0, 2.0, 1.0)),), scale="logarithmic")
    first, second, third = (x for x, _ in points(plot).values())
    assert second - first == pytest.approx(third - second, abs=0.2)


def test_places_out_of_order_are_refused():
    with pytest.raises(ValueError, match="expected rising ones"):
        Curves("c", "", "x", "y", (2.0, 1.0), (Series("", (1.0, 1.0)),))
    with pytest.raises(ValueError, match="expected above 0"):
        Curves("c", "", "x", "y", (0.0, 1.0), (Series("", (1.0, 1.0)),), scale="logarithmic")
