"""When the rows of a run are finished, span by span; that spans find the same rows is shown with the segmenters."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edge.segmenters.spans import Spans, last_lines
from edge.window import StripWindow


@given(step=st.integers(1, 12), before=st.integers(0, 20), lag=st.integers(0, 20))
def test_rows_before_a_multiple_of_the_step_are_finished_when_the_settling_lines_are_there(step, before, lag):
    spans = Spans(step=step, before=before, after=step - before, delay=before + lag)
    window = StripWindow(1, spans.capacity)
    window.start(0)
    spans.start(0, window)
    finished, wanted = 0, {}
    for line in range(12 * step + 60):
        window.append(np.zeros((1, 1), np.uint8))
        while (span := spans.ready()) is not None:
            finished = max(finished, spans.rows(span)[1])
            spans.advance()
        wanted |= {row: line + 1 for row in range(0, finished + 1, step) if row not in wanted}
    far = [row for row in wanted if row > before + step]
    assert far
    assert {wanted[row] - row for row in far} == {spans.settling_lines}
    assert spans.settling_lines >= lag


def test_fed_so_that_a_chunk_ends_with_the_rows_of_its_step_nothing_waits_for_the_next_one():
    assert Spans(step=64, before=160, after=-96, delay=256).settling_lines == 96
    assert Spans(step=64, before=128, after=-64, delay=224).settling_lines == 128


def test_the_last_lines_of_a_context_are_those_that_there_are():
    context = np.arange(6, dtype=np.uint8).reshape(3, 2)
    assert last_lines(context, 2).tolist() == [[2, 3], [4, 5]]
    assert last_lines(context, 9).tolist() == context.tolist()
    assert len(last_lines(context, 0)) == len(last_lines(None, 9)) == 0
