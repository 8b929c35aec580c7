"""A subscriber of a test: what it received, in order."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

from paho.mqtt.client import Client, MQTTMessage, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties


class Inbox:
    """Subscribes with a session that outlives its connections and the broker. `messages` in the order of arrival."""

    def __init__(
        self, port: int, topic: str = "#", client_id: str = "inbox", username: str | None = None, password: str = ""
    ) -> None:
        self.messages: list[MQTTMessage] = []
        self._topic = topic
        self._subscribed = threading.Event()
        self._client = Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=MQTTv5)
        if username is not None:
            self._client.username_pw_set(username, password)
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = lambda client, *_: client.subscribe(topic, qos=1)
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = lambda client, data, message: self.messages.append(message)
        session = Properties(PacketTypes.CONNECT)
        session.SessionExpiryInterval = 3600
        self._client.connect("127.0.0.1", port, keepalive=10, clean_start=False, properties=session)

    def __enter__(self) -> Inbox:
        self._client.loop_start()
        assert self._subscribed.wait(10), "the inbox could not subscribe"
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def documents(self, channel: str) -> list[dict[str, Any]]:
        return [json.loads(m.payload) for m in list(self.messages) if m.topic.endswith(f"/{channel}")]

    def ids(self, channel: str = "defect") -> list[str]:
        return [document["id"] for document in self.documents(channel)]

    def states(self) -> list[str]:
        return [document["data"]["state"] for document in self.documents("status")]


def until(condition: Callable[[], bool], what: str, timeout_s: float = 90.0) -> None:
    """Wait for something that has to happen; how soon is not asserted."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"never happened: {what}"
        time.sleep(0.01)


def first_of_each(ids: list[str]) -> list[str]:
    """Duplicates dropped, as a subscriber does it."""
    return list(dict.fromkeys(ids))
