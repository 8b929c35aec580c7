"""When an event may leave the outbox, as a property over any order of answers; real brokers are in tests/faults."""

import socket
from pathlib import Path

import pytest
from event_samples import TOPICS, event
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.sinks.mqtt_client import Acknowledgement, BrokerConnectionError
from edge.sinks.mqtt_delivery import Delivery, DeliveryCounters
from edge.sinks.outbox import Outbox
from edge.topics import Channel


class ScriptedConnection:
    """A connection whose broker answers when, and what, the test says."""

    window = 4

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes]] = []
        self.ready: list[Acknowledgement] = []

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> int:
        self.sent.append((topic, payload))
        return len(self.sent)

    def fits(self, topic: str, payload: bytes) -> bool:
        return True

    def step(self, timeout_s: float, woken: socket.socket | None = None) -> None:
        pass

    def answers(self) -> list[Acknowledgement]:
        taken, self.ready = self.ready, []
        return taken

    def acknowledge(self, mid: int, code: int = 0) -> None:
        self.ready.append(Acknowledgement(mid, code, "Success" if code < 128 else "Not authorized", code >= 128))


def numbers_in(outbox: Outbox) -> set[str]:
    return {waiting.event.event_id for waiting in outbox.pending(limit=1000)}


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12))
@settings(max_examples=15, deadline=None)
def test_an_event_stays_until_something_sent_after_its_acknowledgement_is_answered(
    tmp_path_factory: pytest.TempPathFactory, choices: list[int]
) -> None:
    with Outbox(tmp_path_factory.mktemp("proof") / "outbox.db") as outbox:
        events = [event(number) for number in range(20)]
        outbox.commit(events)
        connection = ScriptedConnection()
        delivery = Delivery(connection, outbox, TOPICS, DeliveryCounters())  # type: ignore[arg-type]
        delivery.round(0)
        waiting = list(range(1, len(connection.sent) + 1))
        acknowledged_at: dict[int, int] = {}  # message -> how many had been sent by then
        stored: set[int] = set()
        for choice in choices:
            mid = waiting.pop(choice % len(waiting))
            stored |= {earlier for earlier, sent in acknowledged_at.items() if mid > sent}
            acknowledged_at[mid] = len(connection.sent)
            connection.acknowledge(mid)
            delivery.round(0)  # settles the answer
            gone = {one.event_id for one in events} - numbers_in(outbox)
            assert gone == {events[mid - 1].event_id for mid in stored}
            sent = len(connection.sent)
            delivery.round(0)  # fills the window again
            waiting += range(sent + 1, len(connection.sent) + 1)


def test_the_window_is_never_exceeded_and_order_is_that_of_the_outbox(tmp_path: Path) -> None:
    with Outbox(tmp_path / "outbox.db") as outbox:
        events = [event(number) for number in range(30)]
        outbox.commit(events)
        connection = ScriptedConnection()
        delivery = Delivery(connection, outbox, TOPICS, DeliveryCounters())  # type: ignore[arg-type]
        delivery.announce("online", "connected")
        answered = 0
        while answered < 31:
            delivery.round(0)
            assert len(connection.sent) - answered <= connection.window
            answered += 1
            connection.acknowledge(answered)
    assert connection.sent[1:] == [(TOPICS.topic(Channel.DEFECT), one.payload) for one in events]


def test_a_refused_event_stays_and_ends_the_connection_while_what_was_proven_goes(tmp_path: Path) -> None:
    with Outbox(tmp_path / "outbox.db") as outbox:
        outbox.commit([event(number) for number in range(4)])
        connection = ScriptedConnection()
        delivery = Delivery(connection, outbox, TOPICS, DeliveryCounters())  # type: ignore[arg-type]
        delivery.round(0)
        connection.acknowledge(1)
        delivery.round(0)
        delivery.round(0)
        connection.acknowledge(3, code=135)
        with pytest.raises(BrokerConnectionError, match="Not authorized"):
            delivery.round(0)
        assert numbers_in(outbox) == {event(number).event_id for number in (1, 2, 3)}


def test_nobody_listening_is_delivered_and_counted(tmp_path: Path) -> None:
    with Outbox(tmp_path / "outbox.db") as outbox:
        outbox.commit([event(0)])
        connection, counters = ScriptedConnection(), DeliveryCounters()
        delivery = Delivery(connection, outbox, TOPICS, counters)  # type: ignore[arg-type]
        delivery.round(0)
        connection.acknowledge(1, code=16)
        delivery.round(0)
        assert delivery.idle
        assert (counters.acknowledged, counters.no_matching_subscribers) == (1, 1)
