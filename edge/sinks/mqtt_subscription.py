"""The other end: what a subscriber of the broker receives. For `rust-edge subscribe`, the demo and benches."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any
from uuid import uuid4

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.reasoncodes import ReasonCode

from edge.config import Mqtt
from edge.errors import BrokerError
from edge.sinks.mqtt_client import BrokerConnectionError, explain_error, explain_refusal, new_client, tls_context

_log = logging.getLogger(__name__)
_TIMEOUT_S = 10.0
_FIRST_PAUSE_S = 1
_LONGEST_PAUSE_S = 30


class Subscription:
    """Calls `received(topic, payload)` from a thread of its own for each message, at QoS 1, in the order of arrival.

    Entered once the broker has confirmed the subscription: what is published from then on arrives. A connection that is
    lost later is made again without end. Raises BrokerError where the broker cannot be reached or refuses.
    """

    def __init__(self, config: Mqtt, topic: str, received: Callable[[str, bytes], None]) -> None:
        self._config = config
        self._topic = topic
        self._received = received
        self._settled = threading.Event()
        self._refusal: BrokerError | None = None
        tls = tls_context(config.tls) if config.tls else None
        self._client = new_client(config, f"rust-edge-subscriber-{uuid4().hex[:12]}", tls, reconnects=True)
        self._client.reconnect_delay_set(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_disconnect = self._on_disconnect
        self._client.on_message = self._on_message

    def __enter__(self) -> Subscription:
        try:
            self._client.connect(self._config.host, self._config.port, self._config.keepalive_s)
        except (OSError, ValueError) as error:
            raise explain_error(error, self._config) from error
        self._client.loop_start()
        answered = self._settled.wait(_TIMEOUT_S)
        if self._refusal is None and answered:
            return self
        self.__exit__(None, None, None)
        raise self._refusal or BrokerConnectionError(
            "connect: no answer", f"{self._config.host}:{self._config.port} does not answer; expected an MQTT broker there"
        )

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _on_connect(self, client: Client, data: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        if reason.is_failure:
            self._settle(explain_refusal(reason, self._config))
        else:
            client.subscribe(self._topic, qos=1)

    def _on_subscribe(self, client: Client, data: Any, mid: int, reasons: list[ReasonCode], properties: Any) -> None:
        if reasons[0].is_failure:
            self._settle(BrokerError(f"the broker refuses the subscription to {self._topic}: {reasons[0].getName()}"))
        else:
            self._settle(None)

    def _on_disconnect(self, client: Client, data: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        # Before the first subscription, and after a refusal, something better is said than that the connection ended.
        if self._settled.is_set() and self._refusal is None and reason.is_failure:
            _log.warning("broker %s:%d is gone; trying again", self._config.host, self._config.port)

    def _on_message(self, client: Client, data: Any, message: MQTTMessage) -> None:
        self._received(message.topic, bytes(message.payload))

    def _settle(self, refusal: BrokerError | None) -> None:
        if not self._settled.is_set():
            self._refusal = refusal
            self._settled.set()
        elif refusal is not None:
            _log.error("%s", refusal)
