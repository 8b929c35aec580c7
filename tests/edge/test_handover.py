"""The queue between two threads: everything once and in order, never more than its capacity, and an end from either side."""

from __future__ import annotations

import threading

from edge.handover import Handover


def giving(handover: Handover[int], items: range, given: list[int]) -> threading.Thread:
    """A thread that hands the items over, and notes those that were taken from it."""

    def give() -> None:
        given.extend(item for item in items if handover.put(item))

    thread = threading.Thread(target=give)
    thread.start()
    return thread


def test_everything_is_taken_once_and_in_order_and_never_more_than_the_capacity_waits():
    handover, given, taken = Handover[int](3), [], []
    thread = giving(handover, range(500), given)
    while len(taken) < 500:
        items = handover.take_all(1.0)
        assert 0 < len(items) <= 3
        taken += items
    thread.join(5)
    assert taken == given == list(range(500))


def test_who_gives_waits_while_it_is_full():
    handover, given = Handover[int](2), []
    thread = giving(handover, range(3), given)
    thread.join(0.05)
    assert thread.is_alive()
    assert handover.take_all() == [0, 1]
    thread.join(5)
    assert not thread.is_alive()
    assert handover.take_all() == [2]


def test_closing_lets_a_waiting_giver_go_and_what_waits_can_still_be_taken():
    handover, given = Handover[int](1), []
    thread = giving(handover, range(3), given)
    handover.close()
    thread.join(5)
    assert not thread.is_alive()
    assert len(given) <= 1
    assert not handover.put(9)
    assert handover.drained == (not given)
    assert handover.take_all() == given
    assert handover.drained


def test_nothing_to_take_is_nothing_after_the_timeout_and_once_closed():
    handover = Handover[int](1)
    assert handover.take_all(0.0) == []
    assert not handover.drained
    handover.close()
    assert handover.take_all(None) == []
