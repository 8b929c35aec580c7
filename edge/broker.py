"""A broker inside a wheel (rumqttd through `iotcore`), for a first run and for benches. In memory only: not for a plant.

Needs the extra `demo`. It speaks MQTT 5 and 3.1.1 on two ports of the loopback interface.
"""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path
from types import TracebackType

from edge.errors import BrokerError

_START_ATTEMPTS = 5
_LISTENER = """
[{version}.1]
name = "{version}"
listen = "127.0.0.1:{port}"
next_connection_delay_ms = 1
[{version}.1.connections]
connection_timeout_ms = 5000
max_payload_size = 4194304
max_inflight_count = 1000
dynamic_filters = true
"""
_ROUTER = """
id = 0
[router]
id = 0
max_connections = 100
max_outgoing_packet_count = 1000
max_segment_size = 104857600
max_segment_count = 10
"""


class EmbeddedBroker:
    """Listens while the context is open. port: MQTT 5; port_311: MQTT 3.1.1; both free ones of 127.0.0.1.

    Raises BrokerError where `iotcore` is missing or does not start.
    """

    host = "127.0.0.1"
    port: int
    port_311: int

    def __enter__(self) -> EmbeddedBroker:
        try:
            from iotcore import Broker
        except ImportError as error:
            raise BrokerError(
                f"the embedded broker cannot be loaded ({error}); expected the extra: pip install 'rust-edge[demo]'"
            ) from error
        self._folder = tempfile.TemporaryDirectory(prefix="rust-edge-broker-")
        try:
            for attempt in range(_START_ATTEMPTS):
                self.port, self.port_311 = _free_ports()
                settings = Path(self._folder.name) / "broker.toml"
                listeners = (_LISTENER.format(version=v, port=p) for v, p in (("v5", self.port), ("v4", self.port_311)))
                settings.write_text(_ROUTER + "".join(listeners), encoding="utf-8")
                self._broker = Broker(config_path=str(settings))
                try:
                    self._broker.start()
                    return self
                except (OSError, RuntimeError) as error:
                    # Another process may have taken a port between our asking for it and the broker's opening it.
                    if attempt == _START_ATTEMPTS - 1:
                        raise BrokerError(f"the embedded broker does not start: {error}; name a broker of your own") from error
        except BaseException:
            self._folder.cleanup()
            raise
        raise AssertionError("unreachable")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._broker.stop()
        self._folder.cleanup()


def _free_ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]
