"""A subscriber in a process of its own that notes when each event came: `python -m edge.bench.subscriber`.

It takes its broker as JSON on the first line of stdin, says `subscribed` on stdout, and when stdin ends, or says so, prints
what came. Nothing is printed or parsed before: that would delay the next message.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from types import TracebackType

from edge.config import Mqtt
from edge.errors import StageError

_QUIET_S = 0.5
_LONGEST_S = 5.0
_LEAVE_S = 20.0


@dataclass(frozen=True, slots=True)
class Arrival:
    """An event as it arrived. line_stop: of its defect's box, 0 where it is about none."""

    event_id: str
    type: str
    received_ns: int
    line_stop: int


class SubscriberProcess:
    """The other end of the broker, in a process of its own. A context manager: entered once the broker has confirmed it."""

    def __init__(self, mqtt: Mqtt) -> None:
        self._mqtt = mqtt

    def __enter__(self) -> SubscriberProcess:
        # of a session of its own: an interrupt on the terminal is for the bench, which then ends it
        self._process = subprocess.Popen(
            [sys.executable, "-m", "edge.bench.subscriber"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(self._mqtt.model_dump_json() + "\n")
        self._process.stdin.flush()
        if not self._process.stdout.readline().startswith("subscribed"):
            raise StageError("the bench's subscriber did not start: what it said stands above")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()

    def arrivals(self) -> list[Arrival]:
        """All that came, each event once, in the order of arrival; waits until nothing has come for a while. Once only."""
        told, _ = self._process.communicate(timeout=_LEAVE_S)
        return [Arrival(**json.loads(line)) for line in told.splitlines()]


def main() -> None:
    """Subscribe until stdin ends, then print the arrivals as lines of JSON."""
    from edge.sinks.mqtt_subscription import Subscription

    mqtt = Mqtt.model_validate_json(sys.stdin.readline())
    received: list[tuple[int, bytes]] = []
    with Subscription(mqtt, f"{mqtt.topic_root}/#", lambda topic, payload: received.append((time.time_ns(), payload))):
        print("subscribed", flush=True)
        sys.stdin.read()
        until_s = time.monotonic() + _LONGEST_S
        while time.monotonic() < until_s and received and time.time_ns() - received[-1][0] < _QUIET_S * 1e9:
            time.sleep(0.02)
    told: set[str] = set()
    for received_ns, payload in received:
        event = json.loads(payload)
        if event["id"] not in told:
            told.add(event["id"])
            line_stop = event["data"].get("box_px", {}).get("line_stop", 0)
            print(json.dumps(asdict(Arrival(event["id"], event["type"], received_ns, line_stop))))


if __name__ == "__main__":
    main()
