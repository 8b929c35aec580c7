"""Delivery over one connection: outbox rows to messages, acknowledgements to deleted rows.

An acknowledged event is deleted once the broker has answered something that was sent *after* that acknowledgement came.
mosquitto acknowledges first and stores at the end of the same round of its loop: killed in between, it lost one
acknowledged event in about every third kill, also with the shipped settings (measured, mosquitto 2.0.11). Its answer to
a later message says that the round is over. Until then the row stays, and a new connection sends it again: a duplicate,
which its id tells, instead of a loss. Traffic proves itself; when it ends, the next `health` or the farewell proves the rest.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass
from typing import Literal

from edge.events import PublisherHealth, payload_of
from edge.reporting import status_event
from edge.sinks.mqtt_client import Acknowledgement, BrokerConnectionError, Connection
from edge.sinks.outbox import Outbox, WaitingEvent
from edge.topics import Channel, Topics

_log = logging.getLogger(__name__)

NO_MATCHING_SUBSCRIBERS = 16
PACKET_TOO_LARGE = 149
"""Both: MQTT 5.0, section 2.4, reason codes."""
ACKNOWLEDGE_TIMEOUT_S = 60.0
"""A broker that answers pings but acknowledges nothing for so long gets a new connection."""
_ANNOUNCE_EVERY_S = 10.0
"""While the outbox overflows, its count goes out at most so often."""
_RESERVED = 2
"""Of the window, for a status and a health, so that these never exceed what the broker takes."""


class DeliveryCounters:
    """Counters since the publisher's start, over all connections; the publisher's thread writes, any thread reads."""

    def __init__(self) -> None:
        self.connected = False
        self.connections = 0
        self.sent = 0
        self.acknowledged = 0
        self.no_matching_subscribers = 0
        self._reasons: Counter[str] = Counter()
        self._lock = threading.Lock()

    def count(self, reason: str) -> None:
        """Count a refusal or a fault."""
        with self._lock:
            self._reasons[reason] += 1

    def snapshot(self) -> PublisherHealth:
        """The counters as they are published."""
        with self._lock:
            reasons = dict(self._reasons)
        return PublisherHealth(
            connected=self.connected,
            connections=self.connections,
            sent=self.sent,
            acknowledged=self.acknowledged,
            no_matching_subscribers=self.no_matching_subscribers,
            reasons=reasons,
        )


def status_payload(topics: Topics, state: Literal["online", "offline"], reason: str, outbox: Outbox | None = None) -> bytes:
    """A status for the retained topic; without `outbox` (a last will is written beforehand) it says nothing of events."""
    waiting, dropped = (outbox.depth(), outbox.dropped()) if outbox else (None, None)
    return payload_of(status_event(topics.source, state, reason, time.time_ns(), waiting, dropped))


@dataclass(frozen=True, slots=True)
class _Sent:
    """A message under way. order: counts up over all messages of the connection; event: None for status and health."""

    order: int
    event: WaitingEvent | None


class Delivery:
    """Publishes what waits, in order, with a bounded number of messages under way. Lives as long as its connection."""

    def __init__(self, connection: Connection, outbox: Outbox, topics: Topics, counters: DeliveryCounters) -> None:
        self._connection = connection
        self._outbox = outbox
        self._topics = topics
        self._counters = counters
        self._order = 0
        self._in_flight: dict[int, _Sent] = {}
        self._unproven: deque[tuple[int, int]] = deque()  # (seq, messages sent when it was acknowledged)
        self._last_seq = 0
        self._heard_s = time.monotonic()
        self._announced: dict[str, int] = {}
        self._announced_s = 0.0

    @property
    def idle(self) -> bool:
        """Nothing is under way, and what still waits is acknowledged."""
        return not self._in_flight and self._outbox.depth() <= len(self._unproven)

    def announce(self, state: Literal["online", "offline"], reason: str) -> None:
        """Publish the retained status."""
        self._announced, self._announced_s = self._outbox.dropped(), time.monotonic()
        payload = status_payload(self._topics, state, reason, self._outbox)
        self._send(self._topics.topic(Channel.STATUS), payload, retain=True)

    def send_health(self, payload: bytes) -> None:
        """Publish counters; they are not sent again over another connection."""
        self._send(self._topics.topic(Channel.HEALTH), payload)

    def round(self, timeout_s: float, woken: socket.socket | None = None) -> None:
        """Fill the window, wait for the network, remove what the broker has. Raises BrokerConnectionError, OutboxError."""
        self._fill()
        try:
            self._connection.step(timeout_s, woken)
        finally:
            # Also of a connection that has just ended: what it proved need not be sent again.
            self._settle(self._connection.answers())
        if self._announced != self._outbox.dropped() and time.monotonic() - self._announced_s > _ANNOUNCE_EVERY_S:
            self.announce("online", "the outbox gave up events for want of room, or since they were too old or too large")

    def farewell(self, reason: str, timeout_s: float) -> None:
        """Publish `offline` and disconnect, so that the will is not published. Raises BrokerConnectionError, OutboxError."""
        self.announce("offline", reason)
        until_s = time.monotonic() + timeout_s
        while self._in_flight and (left_s := until_s - time.monotonic()) > 0:
            self._connection.step(left_s)
            self._settle(self._connection.answers())
        self._connection.disconnect()

    def _send(self, topic: str, payload: bytes, event: WaitingEvent | None = None, retain: bool = False) -> None:
        if not self._in_flight:
            self._heard_s = time.monotonic()
        self._order += 1
        self._in_flight[self._connection.publish(topic, payload, retain)] = _Sent(self._order, event)

    def _fill(self) -> None:
        room = max(1, self._connection.window - _RESERVED) - len(self._in_flight)
        if room <= 0:
            return
        for waiting in self._outbox.pending(self._last_seq, room):
            self._last_seq = waiting.seq
            topic = self._topic(waiting)
            if self._connection.fits(topic, waiting.event.payload):
                self._send(topic, waiting.event.payload, waiting)
                self._counters.sent += 1
            else:
                self._give_up(waiting)

    def _settle(self, answers: list[Acknowledgement]) -> None:
        refusal: BrokerConnectionError | None = None
        proven: list[int] = []
        for answer in answers:
            self._heard_s = time.monotonic()
            sent = self._in_flight.pop(answer.mid, None)
            if sent is None:
                continue
            while self._unproven and self._unproven[0][1] < sent.order:
                proven.append(self._unproven.popleft()[0])
            if not answer.refused:
                self._acknowledged(sent, answer)
            elif answer.code == PACKET_TOO_LARGE and sent.event is not None:
                self._give_up(sent.event)
            else:
                refusal = refusal or self._refused(sent, answer)
        if proven:
            self._outbox.acknowledge(proven)
        if refusal is not None:
            raise refusal
        if self._in_flight and time.monotonic() - self._heard_s > ACKNOWLEDGE_TIMEOUT_S:
            raise BrokerConnectionError(
                "publish: no acknowledgement",
                f"the broker acknowledged nothing for {ACKNOWLEDGE_TIMEOUT_S:.0f} s: connecting anew",
            )

    def _acknowledged(self, sent: _Sent, answer: Acknowledgement) -> None:
        if sent.event is not None:
            self._unproven.append((sent.event.seq, self._order))
            self._counters.acknowledged += 1
            self._counters.no_matching_subscribers += answer.code == NO_MATCHING_SUBSCRIBERS

    def _refused(self, sent: _Sent, answer: Acknowledgement) -> BrokerConnectionError | None:
        """What is to be done about a refusal: events wait for a new connection; status and health are not worth it."""
        reason = f"publish: {answer.reason.lower()}"
        if sent.event is None:
            self._counters.count(reason)
            _log.error("the broker refuses status or health of %s: %s", self._topics.source, answer.reason)
            return None
        return BrokerConnectionError(
            reason,
            f"the broker refuses events on {self._topic(sent.event)}: {answer.reason}; "
            "expected this user to be allowed to write there",
        )

    def _give_up(self, waiting: WaitingEvent) -> None:
        """A packet that the broker never takes would hold up all that wait behind it."""
        self._outbox.drop(waiting.seq)
        self._counters.count("publish: packet too large")
        size = len(waiting.event.payload)
        _log.error("event %s (%d bytes) is larger than the broker takes: given up", waiting.event.event_id, size)

    def _topic(self, waiting: WaitingEvent) -> str:
        return f"{self._topics.root}{self._topics.source}/{waiting.event.topic_suffix}"
