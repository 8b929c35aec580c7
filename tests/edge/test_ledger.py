from __future__ import annotations

from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.ledger import Coverage, CoverageLedger

KINDS = ("inspected", "gated", "lost", "shed")
steps = st.lists(st.tuples(st.integers(0, 50), st.sampled_from(KINDS)), max_size=20)


@given(steps)
def test_every_line_is_exactly_one_kind_and_their_sum_is_the_length(parts):
    ledger, truth = CoverageLedger(), dict.fromkeys(KINDS, 0)
    for lines, kind in parts:
        ledger.add(ledger.line_stop + lines, kind)
        truth[kind] += lines
    assert asdict(ledger.coverage()) == truth
    assert ledger.coverage().total == ledger.line_stop == sum(truth.values())


@given(steps, st.integers(0, 1000))
def test_settled_at_a_line_it_counts_the_lines_below_it_and_nothing_else(parts, line):
    ledger, kinds = CoverageLedger(), []
    for lines, kind in parts:
        ledger.add(ledger.line_stop + lines, kind)
        kinds += [kind] * lines
    line = min(line, len(kinds))
    settled = ledger.settle(line)
    assert asdict(settled) == {kind: kinds[:line].count(kind) for kind in KINDS}
    assert asdict(ledger.coverage()) == {kind: kinds.count(kind) for kind in KINDS}


def test_a_ledger_taken_up_again_goes_on_where_it_was_settled():
    ledger = CoverageLedger(Coverage(inspected=60, lost=4))
    ledger.add(100, "inspected")
    assert ledger.coverage() == Coverage(inspected=96, lost=4)


def test_a_step_back_is_refused():
    ledger = CoverageLedger(Coverage(inspected=10))
    with pytest.raises(ValueError, match="stands at line 10, got 9"):
        ledger.add(9, "inspected")
