"""One connection to a broker, driven by one thread; and what its faults mean in words.

Callbacks of paho run inside `open`, `step` and `publish`, in the thread that calls these: nothing here needs a lock.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from paho.mqtt.client import Client, MQTTv5, MQTTv311
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edge.config import Mqtt, Tls
from edge.errors import BrokerError

BAD_PASSWORD = frozenset({4, 5, 134, 135})
"""CONNACK reasons that concern user and password. Source: MQTT 3.1.1, table 3.1; MQTT 5.0, table 3-1."""
_HOSTNAME_MISMATCH = 62
"""OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH; 64 is the same for an IP address. Source: openssl/x509_vfy.h."""
_ADDRESS_MISMATCH = 64
_PACKET_OVERHEAD = 32
"""Bytes of a PUBLISH beside topic and payload: fixed header 5, lengths 2 + 2, properties 1; rounded up."""


class BrokerConnectionError(BrokerError):
    """A connection that could not be made, or ended. `reason` is short and the same each time, for counting."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """The broker's answer to a message."""

    mid: int
    code: int
    reason: str
    refused: bool


def tls_context(tls: Tls) -> ssl.SSLContext:
    """What the station trusts and shows. Raises BrokerError naming the file that cannot be used."""
    try:
        context = ssl.create_default_context(cafile=str(tls.ca) if tls.ca else None)
    except (OSError, ssl.SSLError) as error:
        raise BrokerError(f"tls.ca: got {tls.ca}, which cannot be used ({error}); expected a PEM file of certificates") from error
    if tls.certificate and tls.key:
        try:
            context.load_cert_chain(tls.certificate, tls.key)
        except (OSError, ssl.SSLError) as error:
            raise BrokerError(
                f"tls.certificate, tls.key: got {tls.certificate} and {tls.key}, which cannot be used ({error}); "
                "expected a PEM certificate and its unencrypted key"
            ) from error
    return context


def new_client(config: Mqtt, client_id: str, tls: ssl.SSLContext | None, reconnects: bool = False) -> Client:
    """A client that starts without a session, with the station's credentials. reconnects: paho's own loop does it."""
    five = config.version == "5"
    client = Client(
        CallbackAPIVersion.VERSION2,
        client_id=client_id,
        clean_session=None if five else True,
        protocol=MQTTv5 if five else MQTTv311,
        reconnect_on_failure=reconnects,
    )
    client.max_inflight_messages = 0  # no limit of its own: the window is kept by whoever publishes
    if config.username is not None:
        client.username_pw_set(config.username, config.password)
    if tls is not None:
        client.tls_set_context(tls)
    return client


class Connection:
    """A connection and its messages under way. A context manager: leaving it without `disconnect` triggers the will.

    window: messages that may be under way, the smaller of `config.inflight` and the broker's own limit.
    """

    def __init__(self, config: Mqtt, client_id: str, tls: ssl.SSLContext | None, will: tuple[str, bytes]) -> None:
        self._config = config
        self._client = new_client(config, client_id, tls)
        self._client.will_set(will[0], will[1], qos=1, retain=True)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_publish = self._on_publish
        self._accepted = False
        self._fault: BrokerConnectionError | None = None
        self._answers: list[Acknowledgement] = []
        self.window = config.inflight
        self._largest_packet: int | None = None

    def open(self, timeout_s: float) -> None:
        """Connect and wait until the broker accepts. Raises BrokerConnectionError."""
        began_s = time.monotonic()
        self._client.connect_timeout = timeout_s
        try:
            self._client.connect(self._config.host, self._config.port, self._config.keepalive_s)
        except (OSError, ValueError) as error:
            raise explain_error(error, self._config) from error
        while not self._accepted:
            left_s = began_s + timeout_s - time.monotonic()
            if left_s <= 0:
                raise BrokerConnectionError(
                    "connect: no answer", f"{_name(self._config)} takes connections but does not answer; expected an MQTT broker"
                )
            self.step(left_s)

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> int:
        """Hand a message to the network at QoS 1; the id under which its acknowledgement comes. Never waits."""
        return self._client.publish(topic, payload, qos=1, retain=retain).mid

    def fits(self, topic: str, payload: bytes) -> bool:
        """Whether the broker takes a packet so large, as far as it told."""
        return self._largest_packet is None or len(topic) + len(payload) + _PACKET_OVERHEAD <= self._largest_packet

    def step(self, timeout_s: float, woken: socket.socket | None = None) -> None:
        """Wait for the network, or for `woken` to become readable, at most `timeout_s`; read and write what there is.

        Raises BrokerConnectionError when the connection is over; `answers` that came before are still there.
        """
        network: Any = self._client.socket()
        if network is not None:
            # Bytes that TLS has already decrypted do not make the socket readable.
            if isinstance(network, ssl.SSLSocket) and network.pending():
                timeout_s = 0.0
            writing = [network] if self._client.want_write() else []
            select.select([network] + ([woken] if woken else []), writing, [], timeout_s)
            self._client.loop_read()
            self._client.loop_write()
            self._client.loop_misc()
        if self._fault is not None:
            raise self._fault
        if self._client.socket() is None:
            raise self._lost("connection lost")

    def answers(self) -> list[Acknowledgement]:
        """Acknowledgements since the last call."""
        taken, self._answers = self._answers, []
        return taken

    def disconnect(self) -> None:
        """Say goodbye, so that the broker does not publish the will."""
        self._client.disconnect()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        network = self._client.socket()
        if network is not None:
            network.close()

    def _on_connect(self, client: Client, data: Any, flags: Any, reason: ReasonCode, properties: Properties | None) -> None:
        if reason.is_failure:
            self._fault = explain_refusal(reason, self._config)
            return
        self._accepted = True
        self.window = min(self.window, getattr(properties, "ReceiveMaximum", self.window))
        self._largest_packet = getattr(properties, "MaximumPacketSize", None)

    def _on_disconnect(self, client: Client, data: Any, flags: Any, reason: ReasonCode, properties: Properties | None) -> None:
        if self._fault is None:
            self._fault = self._lost(reason.getName().lower() if flags.is_disconnect_packet_from_server else "connection lost")

    def _on_publish(self, client: Client, data: Any, mid: int, reason: ReasonCode, properties: Properties | None) -> None:
        self._answers.append(Acknowledgement(mid, reason.value, reason.getName(), reason.is_failure))

    def _lost(self, how: str) -> BrokerConnectionError:
        if self._accepted:
            return BrokerConnectionError(f"disconnect: {how}", f"{_name(self._config)} is gone: {how}")
        hint = "; expected an MQTT broker there, with TLS" if self._config.tls else "; expected an MQTT broker there, without TLS"
        if self._config.tls:
            hint += ", and a client certificate in sinks.mqtt.tls if it asks for one"
        return BrokerConnectionError(
            "connect: closed before an answer", f"{_name(self._config)} closed the connection before it answered{hint}"
        )


def _name(config: Mqtt) -> str:
    return f"broker {config.host}:{config.port}"


def explain_refusal(reason: ReasonCode, config: Mqtt) -> BrokerConnectionError:
    """A broker that answers no."""
    said = reason.getName()
    advice = "look at the broker's settings"
    if reason.value in BAD_PASSWORD:
        user = f"username {config.username}" if config.username is not None else "no username"
        advice = f"got {user}; expected sinks.mqtt.username and password to be the broker's"
    elif "version" in said.lower():
        advice = f"got sinks.mqtt.version {config.version}; expected one that the broker speaks"
    return BrokerConnectionError(f"connect: {said.lower()}", f"{_name(config)} refuses this client: {said}; {advice}")


def explain_error(error: OSError | ValueError, config: Mqtt) -> BrokerConnectionError:
    """A connection that could not be made."""
    name = _name(config)
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in (_HOSTNAME_MISMATCH, _ADDRESS_MISMATCH):
            return BrokerConnectionError(
                "tls: name mismatch",
                f"{name} shows a certificate for another name ({error.verify_message}); "
                "expected sinks.mqtt.host to be a name in the broker's certificate",
            )
        return BrokerConnectionError(
            "tls: certificate not trusted",
            f"{name} shows a certificate that is not trusted ({error.verify_message}); "
            "expected sinks.mqtt.tls.ca to be the authority that signed it",
        )
    if isinstance(error, ssl.SSLError):
        return BrokerConnectionError("tls: handshake failed", f"{name}: no TLS ({error}); expected a port that speaks TLS")
    if isinstance(error, socket.gaierror):
        return BrokerConnectionError("connect: unknown host", f"{name}: {error.strerror}; expected sinks.mqtt.host to be known")
    if isinstance(error, ConnectionRefusedError):
        return BrokerConnectionError("connect: refused", f"{name}: connection refused; expected a broker to listen there")
    if isinstance(error, TimeoutError):
        return BrokerConnectionError("connect: timed out", f"{name} does not answer; expected sinks.mqtt.host to be reachable")
    hint = "; expected an MQTT broker that speaks TLS there" if config.tls else "; expected an MQTT broker there"
    return BrokerConnectionError("connect: failed", f"{name} cannot be reached: {error}{hint}")
