from __future__ import annotations

from collections.abc import Collection

import hypothesis.strategies as st
from hypothesis import given

from edge.fallback import MAX_STRETCHES, Fallback, FallbackLedger, Stretch

NONE = Fallback()
RUNS = st.lists(st.tuples(st.integers(1, 40), st.sampled_from([None, "ort", "openvino"])), max_size=30)


def lines_of(runs: list[tuple[int, str | None]]) -> list[str | None]:
    """Who finished each line."""
    return [backend for count, backend in runs for _ in range(count)]


def ledger_of(lines: list[str | None], first: int = 0, settled: Fallback = NONE, cuts: Collection[int] = ()) -> FallbackLedger:
    ledger, start = FallbackLedger(settled), first
    for line in range(first, len(lines)):
        if line + 1 == len(lines) or lines[line + 1] != lines[line] or line + 1 in cuts:
            ledger.add(start, line + 1, lines[line])
            start = line + 1
    return ledger


def test_lines_of_the_first_choice_are_not_noted() -> None:
    ledger = FallbackLedger()
    ledger.add(0, 100, None)
    assert ledger.all() == Fallback()


def test_neighbours_of_one_backend_are_one_stretch() -> None:
    ledger = FallbackLedger()
    for line in range(100, 200, 10):
        ledger.add(line, line + 10, "ort")
    ledger.add(200, 230, "openvino")
    ledger.add(240, 250, "openvino")
    assert ledger.all().stretches == (Stretch(100, 200, "ort"), Stretch(200, 230, "openvino"), Stretch(240, 250, "openvino"))
    assert ledger.all().lines == 140


@given(RUNS, st.sets(st.integers(1, 1000)))
def test_every_line_lies_in_the_stretch_of_who_finished_it_however_they_came(
    runs: list[tuple[int, str | None]], cuts: set[int]
) -> None:
    lines = lines_of(runs)
    found = ledger_of(lines, cuts=cuts).all()
    told: list[str | None] = [None] * len(lines)
    for stretch in found.stretches:
        told[stretch.line_start : stretch.line_stop] = [stretch.backend] * (stretch.line_stop - stretch.line_start)
    assert told == lines
    assert found.lines == sum(backend is not None for backend in lines)
    assert found == ledger_of(lines).all()


@given(RUNS, st.integers(0, 1000), st.integers(0, 1000))
def test_a_restart_at_any_line_ends_as_if_there_had_been_none(
    runs: list[tuple[int, str | None]], line: int, earlier: int
) -> None:
    lines = lines_of(runs)
    line = min(line, len(lines))
    ledger = ledger_of(lines)
    ledger.settle(min(earlier, line))
    kept = Fallback.parse(ledger.settle(line).as_json())
    assert kept == ledger_of(lines[:line]).all()
    assert ledger_of(lines, line, kept).all() == ledger_of(lines).all() == ledger.all()


def test_beyond_the_most_stretches_they_are_counted_and_their_lines_too() -> None:
    ledger = FallbackLedger()
    for index in range(MAX_STRETCHES + 7):
        ledger.add(10 * index, 10 * index + 5, "ort")
    found = ledger.all()
    assert (len(found.stretches), found.unlisted, found.lines) == (MAX_STRETCHES, 7, 5 * (MAX_STRETCHES + 7))
    assert str(found).endswith("0 to 4 by ort; 10 to 14 by ort; 20 to 24 by ort; and 68 more stretches")
    # the newest goes on though it is not listed
    ledger.add(10 * index + 5, 10 * index + 8, "ort")
    assert (ledger.all().unlisted, ledger.all().lines) == (7, found.lines + 3)
