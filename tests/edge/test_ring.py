from __future__ import annotations

import threading

import numpy as np
import pytest

from edge.frame import Frame
from edge.ring import FrameRing


def frame(first_line: int, lines: int = 4, grey: int = 7) -> Frame:
    return Frame(np.full((lines, 8), grey, np.uint8), first_line, 1_000 + first_line)


def take(ring: FrameRing) -> tuple[int, int, int]:
    item = ring.take(0.0)
    assert item is not None
    ring.release(item)
    return item.frame.first_line, item.shed_lines, int(item.frame.lines[0, 0])


def test_frames_come_out_in_the_order_they_went_in_and_as_they_were():
    ring = FrameRing(3, 4, 8)
    for index in range(3):
        assert ring.put(frame(4 * index, grey=index))
    assert [take(ring) for _ in range(3)] == [(0, 0, 0), (4, 0, 1), (8, 0, 2)]


def test_a_kept_frame_does_not_change_when_the_source_reuses_its_buffer():
    ring, lines = FrameRing(2, 4, 8), np.zeros((4, 8), np.uint8)
    ring.put(Frame(lines, 0, 0))
    lines[:] = 255
    assert take(ring)[2] == 0


def test_a_full_ring_sheds_what_is_offered_until_half_of_it_is_free_and_says_how_many_lines():
    ring = FrameRing(4, 4, 8)
    for index in range(6):
        assert ring.offer(frame(4 * index))
    assert take(ring)[0] == 0
    assert ring.offer(frame(24))  # one slot of four is free: still shedding
    assert take(ring)[0] == 4
    assert ring.offer(frame(28))  # two are: kept again
    assert [take(ring)[:2] for _ in range(3)] == [(8, 0), (12, 0), (28, 12)]


def test_lines_shed_after_the_last_kept_frame_are_known_at_the_end():
    ring = FrameRing(2, 4, 8)
    for index in range(5):
        ring.offer(frame(4 * index))
    assert ring.shed_at_end() == 12


def test_put_waits_for_room_and_close_lets_it_go_without_keeping_the_frame():
    ring, answers = FrameRing(1, 4, 8), []
    assert ring.put(frame(0))
    waiting = threading.Thread(target=lambda: answers.append(ring.put(frame(4))))
    waiting.start()
    ring.close()
    waiting.join(5)
    assert answers == [False]
    assert not ring.drained
    assert take(ring)[0] == 0
    assert ring.drained


def test_put_goes_on_as_soon_as_a_frame_was_taken():
    ring, answers = FrameRing(1, 4, 8), []
    ring.put(frame(0))
    waiting = threading.Thread(target=lambda: answers.append(ring.put(frame(4))))
    waiting.start()
    assert take(ring)[0] == 0
    waiting.join(5)
    assert answers == [True]
    assert take(ring)[0] == 4


def test_nothing_to_take_is_none_after_the_timeout_and_once_closed():
    ring = FrameRing(1, 4, 8)
    assert ring.take(0.0) is None
    ring.close()
    assert ring.take(None) is None


@pytest.mark.parametrize("lines", [np.zeros((5, 8), np.uint8), np.zeros((4, 9), np.uint8)])
def test_a_frame_that_does_not_fit_is_refused(lines):
    with pytest.raises(ValueError, match="expected at most 4 x 8"):
        FrameRing(2, 4, 8).put(Frame(lines, 0, 0))


def test_a_frame_that_is_not_released_keeps_its_memory_whatever_comes_after_it():
    ring = FrameRing(2, 4, 8)
    ring.put(frame(0, grey=1))
    held = ring.take()
    ring.put(frame(4, grey=2))
    assert ring.offer(frame(8, grey=3))
    assert take(ring) == (4, 0, 2)
    assert ring.offer(frame(12, grey=4))
    assert (held.frame.lines == 1).all()
    assert take(ring) == (12, 4, 4)
