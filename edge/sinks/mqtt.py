"""The publisher: takes events from the outbox to the broker, and out of the outbox once the broker has them.

One thread does it all: it connects, publishes, reads acknowledgements and deletes rows, so nothing is shared with the
rest of the daemon but the outbox and a few counters. paho's own queue is not used: each connection starts with a new
client, from the oldest event that is not acknowledged. So order holds over reconnects, and nothing waits in memory only.

Nothing that the broker does ends the inspection. What waiting may mend (gone, refused, a wrong password, a wrong name in
the certificate, a topic that is not allowed) is tried again without end, counted by its reason, and logged when it
begins and every ten minutes; events wait on disk.
"""

from __future__ import annotations

import contextlib
import logging
import random
import socket
import threading
import time
from types import TracebackType

from edge.config import Mqtt
from edge.errors import OutboxError
from edge.events import PublisherHealth
from edge.sinks.mqtt_client import BrokerConnectionError, Connection, tls_context
from edge.sinks.mqtt_delivery import Delivery, DeliveryCounters, status_payload
from edge.sinks.outbox import Outbox
from edge.topics import Channel, Topics

_log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.25
"""Doubled with every failed attempt up to `backoff_max_s`: a broker that restarts is found again within a second."""
STABLE_S = 5.0
"""A connection that lived this long resets the pause; one that breaks at once, again and again, does not."""
CONNECT_TIMEOUT_S = 5.0
REMIND_S = 600.0
_TICK_S = 1.0
_FAREWELL_S = 2.0


class MqttPublisher:
    """Publishes the outbox from a thread of its own, at QoS 1, at most `config.inflight` messages under way.

    Retained status: `online` at every connection and whenever the outbox had to give events up; `offline` at a clean
    stop and, by the last will, when the connection breaks. drain_s: how long `stop` goes on publishing what waits; the
    rest stays for the next start. failure: the error that ended the thread, such as a full disk; None while all is well.
    Raises BrokerError when made if the TLS files cannot be used.
    """

    def __init__(self, config: Mqtt, topics: Topics, outbox: Outbox, drain_s: float = 5.0) -> None:
        self._config = config
        self._topics = topics
        self._outbox = outbox
        self._drain_s = drain_s
        self._tls = tls_context(config.tls) if config.tls else None
        self._counters = DeliveryCounters()
        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)
        self._waker.setblocking(False)
        self._health: bytes | None = None
        self._stopping = threading.Event()
        self._stop_reason = ""
        self._stop_by_s = 0.0
        self._attempts = 0
        self._said, self._said_s = "", 0.0
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self.failure: BaseException | None = None

    def start(self) -> None:
        """Begin; returns at once, connected or not."""
        self._thread.start()

    def wake(self) -> None:
        """Say that the outbox has something new. Never waits."""
        with contextlib.suppress(OSError):  # Its buffer is full: it is going to wake anyway. Or it is closed.
            self._waker.send(b"\0")

    def publish_health(self, payload: bytes) -> None:
        """Send counters once there is a connection; a newer one replaces an older that was not sent yet."""
        self._health = payload
        self.wake()

    def stop(self, reason: str = "stopped") -> None:
        """Drain for at most `drain_s`, publish `offline` with the reason, disconnect. Harmless a second time."""
        if not self._stopping.is_set():
            self._stop_reason = reason
            self._stop_by_s = time.monotonic() + self._drain_s
            self._stopping.set()
            self.wake()
        if self._thread.ident is not None:
            # An attempt to connect that has begun, then the draining, then the farewell.
            self._thread.join(CONNECT_TIMEOUT_S + self._drain_s + _FAREWELL_S + _TICK_S)
        if not self._thread.is_alive():
            self._woken.close()
            self._waker.close()

    def counters(self) -> PublisherHealth:
        """Counters since the start."""
        return self._counters.snapshot()

    def __enter__(self) -> MqttPublisher:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop("stopped" if kind is None else f"failed: {kind.__name__}")

    def _run(self) -> None:
        try:
            while True:
                # Asked before the attempt: who stops while we pause gets one more, since the broker may be back.
                last = self._stopping.is_set()
                began_s = time.monotonic()
                try:
                    self._one_connection()
                    return
                except BrokerConnectionError as fault:
                    if time.monotonic() - began_s > CONNECT_TIMEOUT_S + STABLE_S:
                        self._attempts, self._said = 0, ""
                    self._tell(fault)
                if last:
                    return
                self._attempts += 1
                self._stopping.wait(self._pause_s())
        except OutboxError as error:
            self.failure = error
            _log.error("publisher stopped: %s", error)
        except BaseException as error:
            self.failure = error
            _log.exception("publisher died")

    def _one_connection(self) -> None:
        """Connect and deliver until we are to stop. Raises BrokerConnectionError when the connection ends before."""
        client_id = "-".join(("rust-edge", self._topics.site, self._topics.line, self._topics.camera))
        will = self._topics.topic(Channel.STATUS), status_payload(self._topics, "offline", "connection lost")
        with Connection(self._config, client_id, self._tls, will) as connection:
            connection.open(self._connect_timeout_s())
            try:
                self._counters.connected = True
                self._counters.connections += 1
                _log.info("connected to broker %s:%d", self._config.host, self._config.port)
                delivery = Delivery(connection, self._outbox, self._topics, self._counters)
                delivery.announce("online", "connected")
                while not (self._stopping.is_set() and (delivery.idle or time.monotonic() > self._stop_by_s)):
                    self._serve(delivery)
                delivery.farewell(self._stop_reason, _FAREWELL_S)
            finally:
                self._counters.connected = False

    def _serve(self, delivery: Delivery) -> None:
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(4096)
        health, self._health = self._health, None
        if health is not None:
            delivery.send_health(health)
        # Often enough for pings, and for a broker that has stopped to acknowledge.
        delivery.round(min(_TICK_S, self._config.keepalive_s / 2), self._woken)

    def _connect_timeout_s(self) -> float:
        if not self._stopping.is_set():
            return CONNECT_TIMEOUT_S
        return min(CONNECT_TIMEOUT_S, max(self._stop_by_s - time.monotonic(), 0.1))

    def _pause_s(self) -> float:
        longest = min(self._config.backoff_max_s, FIRST_PAUSE_S * 2.0 ** min(self._attempts - 1, 30))
        # Half of it at random, so that the stations of a plant do not all return to a restarted broker at once.
        return longest * random.uniform(0.5, 1.0)

    def _tell(self, fault: BrokerConnectionError) -> None:
        self._counters.count(fault.reason)
        now_s = time.monotonic()
        if fault.reason != self._said or now_s - self._said_s > REMIND_S:
            self._said, self._said_s = fault.reason, now_s
            _log.error("%s. %d events wait in %s; trying again", fault, self._outbox.depth(), self._outbox.path)
