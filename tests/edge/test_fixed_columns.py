from __future__ import annotations

import json

import numpy as np
import pytest

from edge.tracking.blocks import BLOCK_LINES
from edge.tracking.fixed_columns import FixedColumns

WIDTH = 203
OVER = 64 * 16  # one block a segment


def watch(watcher: FixedColumns, blocks: range, columns_of) -> list[tuple[int, int, int]]:
    """Blocks of lines whose alarmed columns are `columns_of(line)`, a slice or None."""
    alerts = []
    for block in blocks:
        layers = np.zeros((BLOCK_LINES, WIDTH), np.uint8)
        for row in range(BLOCK_LINES):
            columns = columns_of(block * BLOCK_LINES + row)
            if columns is not None:
                layers[row, columns] = 1
        watcher.add(*np.nonzero(layers))
        alerts += watcher.advance((block + 1) * BLOCK_LINES)
    return alerts


def test_dirt_raises_one_alert_once_it_has_lasted_the_share_of_the_distance():
    alerts = watch(FixedColumns(WIDTH, OVER, 0.8), range(40), lambda line: slice(100, 110))
    # 0.8 of 16 segments are reached with the 13th.
    assert alerts == [(13 * 64, 96, 112)]


def test_dirt_on_the_last_columns_ends_with_the_line():
    watcher = FixedColumns(WIDTH, OVER, 0.8)
    assert watch(watcher, range(20), lambda line: slice(201, 203)) == [(13 * 64, 200, 203)]
    columns = watcher.columns()
    assert columns is not None
    assert np.flatnonzero(columns).tolist() == [200, 201, 202]


def test_a_flickering_rim_belongs_to_its_dirt():
    alerts = watch(FixedColumns(WIDTH, OVER, 0.8), range(20), lambda line: slice(104, 110 + (line % 2) * 6))
    assert alerts == [(13 * 64, 104, 120)]


def test_two_pieces_of_dirt_raise_two_alerts():
    def columns(line):
        return np.r_[16:20, 100:104]

    assert [alert[1:] for alert in watch(FixedColumns(WIDTH, OVER, 0.8), range(20), columns)] == [(16, 24), (96, 104)]


def test_a_scratch_that_wanders_over_three_bins_is_no_dirt():
    def columns(line):
        start = 100 + round(12 * np.sin(line / 300))
        return slice(start, start + 3)

    assert watch(FixedColumns(WIDTH, OVER, 0.8), range(100), columns) == []


def test_lines_are_counted_and_not_pixels():
    # Half the lines, however wide: under the share of 0.8.
    assert watch(FixedColumns(WIDTH, OVER, 0.8), range(40), lambda line: slice(96, 112) if line % 2 else None) == []


def test_an_alert_clears_when_the_share_falls_below_half_and_can_come_again():
    watcher = FixedColumns(WIDTH, OVER, 0.8)
    watch(watcher, range(20), lambda line: slice(100, 110))
    # Half of 0.8 of 16 segments is 6.4: 7 dirty segments in the window keep it, 6 do not.
    watch(watcher, range(20, 29), lambda line: None)
    assert watcher.columns() is not None
    watch(watcher, range(29, 30), lambda line: None)
    assert watcher.columns() is None
    assert len(watch(watcher, range(30, 60), lambda line: slice(100, 110))) == 1


def test_lost_lines_count_as_not_alarmed():
    watcher = FixedColumns(WIDTH, OVER, 0.8)
    watch(watcher, range(12), lambda line: slice(100, 110))
    assert watcher.advance(1_000_000 * 64) == []
    assert watch(watcher, range(1_000_000, 1_000_012), lambda line: slice(100, 110)) == []
    assert len(watch(watcher, range(1_000_012, 1_000_013), lambda line: slice(100, 110))) == 1


@pytest.mark.parametrize(("over", "segment"), [(1, 64), (1024, 64), (1025, 128), (80_000, 5056)])
def test_the_distance_watched_is_rounded_up_to_segments_of_whole_blocks(over, segment):
    watcher = FixedColumns(WIDTH, over, 0.8)
    assert watcher.segment_lines == segment
    assert watcher.window_lines == 16 * segment >= over


def test_a_restored_watcher_goes_on_as_if_unbroken():
    for stop in range(1, 20):
        watcher = FixedColumns(WIDTH, OVER, 0.8)
        before = watch(watcher, range(stop), lambda line: slice(100, 110))
        restored = FixedColumns(WIDTH, OVER, 0.8)
        restored.restore(json.loads(json.dumps(watcher.state())))
        assert before + watch(restored, range(stop, 20), lambda line: slice(100, 110)) == [(13 * 64, 96, 112)]
