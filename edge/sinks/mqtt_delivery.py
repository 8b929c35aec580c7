"""Delivery over one connection: outbox rows to messages, acknowledgements to deleted rows."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import Counter
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


class Delivery:
    """Publishes what waits, in order, with a bounded number of messages under way. Lives as long as its connection."""

    def __init__(self, connection: Connection, outbox: Outbox, topics: Topics, counters: DeliveryCounters) -> None:
        self._connection = connection
        self._outbox = outbox
        self._topics = topics
        self._counters = counters
        self._in_flight: dict[int, WaitingEvent] = {}
        self._status_in_flight: set[int] = set()
        self._last_sent = 0
        self._heard_s = time.monotonic()
        self._announced: dict[str, int] = {}
        self._announced_s = 0.0

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is under way."""
        return not self._in_flight and not self._status_in_flight and self._outbox.depth() == 0

    def announce(self, state: Literal["online", "offline"], reason: str) -> None:
        """Publish the retained status."""
        self._announced, self._announced_s = self._outbox.dropped(), time.monotonic()
        payload = status_payload(self._topics, state, reason, self._outbox)
        mid = self._connection.publish(self._topics.topic(Channel.STATUS), payload, retain=True)
        self._status_in_flight.add(mid)

    def send_health(self, payload: bytes) -> None:
        """Publish counters, once and without acknowledgement."""
        self._connection.publish(self._topics.topic(Channel.HEALTH), payload, qos=0)

    def round(self, timeout_s: float, woken: socket.socket | None = None) -> None:
        """Fill the window, wait for the network, remove what was acknowledged. Raises BrokerConnectionError, OutboxError."""
        self._fill()
        try:
            self._connection.step(timeout_s, woken)
        finally:
            # Also of a connection that has just ended: what it acknowledged need not be sent again.
            self._settle(self._connection.answers())
        if self._announced != self._outbox.dropped() and time.monotonic() - self._announced_s > _ANNOUNCE_EVERY_S:
            self.announce("online", "the outbox gave up events for want of room, or since they were too old or too large")

    def farewell(self, reason: str, timeout_s: float) -> None:
        """Publish `offline` and disconnect, so that the will is not published. Raises BrokerConnectionError."""
        self.announce("offline", reason)
        until_s = time.monotonic() + timeout_s
        while self._status_in_flight and (left_s := until_s - time.monotonic()) > 0:
            self._connection.step(left_s)
            self._settle(self._connection.answers())
        self._connection.disconnect()

    def _fill(self) -> None:
        room = self._connection.window - len(self._in_flight) - len(self._status_in_flight)
        if room <= 0:
            return
        if not self._in_flight:
            self._heard_s = time.monotonic()
        for waiting in self._outbox.pending(self._last_sent, room):
            self._last_sent = waiting.seq
            topic = f"{self._topics.root}{self._topics.source}/{waiting.event.topic_suffix}"
            if self._connection.fits(topic, waiting.event.payload):
                self._in_flight[self._connection.publish(topic, waiting.event.payload)] = waiting
                self._counters.sent += 1
            else:
                self._give_up(waiting)

    def _settle(self, answers: list[Acknowledgement]) -> None:
        delivered: list[int] = []
        refusal: BrokerConnectionError | None = None
        for answer in answers:
            self._heard_s = time.monotonic()
            waiting = self._in_flight.pop(answer.mid, None)
            if waiting is None:
                self._status_in_flight.discard(answer.mid)
                if answer.refused:
                    self._counters.count(f"publish: {answer.reason.lower()}")
                    _log.error("the broker refuses the status of %s: %s", self._topics.source, answer.reason)
            elif answer.code == PACKET_TOO_LARGE:
                self._give_up(waiting)
            elif answer.refused:
                refusal = refusal or self._refused(waiting, answer)
            else:
                delivered.append(waiting.seq)
                self._counters.no_matching_subscribers += answer.code == NO_MATCHING_SUBSCRIBERS
        if delivered:
            self._outbox.acknowledge(delivered)
            self._counters.acknowledged += len(delivered)
        if refusal is not None:
            raise refusal
        if self._in_flight and time.monotonic() - self._heard_s > ACKNOWLEDGE_TIMEOUT_S:
            raise BrokerConnectionError(
                "publish: no acknowledgement",
                f"the broker acknowledged nothing for {ACKNOWLEDGE_TIMEOUT_S:.0f} s; connecting anew",
            )

    def _refused(self, waiting: WaitingEvent, answer: Acknowledgement) -> BrokerConnectionError:
        topic = f"{self._topics.root}{self._topics.source}/{waiting.event.topic_suffix}"
        return BrokerConnectionError(
            f"publish: {answer.reason.lower()}",
            f"the broker refuses events on {topic}: {answer.reason}; expected this user to be allowed to write there",
        )

    def _give_up(self, waiting: WaitingEvent) -> None:
        """A packet that the broker never takes would hold up all that wait behind it."""
        self._outbox.drop(waiting.seq)
        self._counters.count("publish: packet too large")
        size = len(waiting.event.payload)
        _log.error("event %s (%d bytes) is larger than the broker takes: given up", waiting.event.event_id, size)
