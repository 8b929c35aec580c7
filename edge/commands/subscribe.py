"""`rust-edge subscribe`: print alerts as they arrive from a broker, one line each, for people or as JSON lines.

For people without the counters of `health`; JSON lines are the messages as they came.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.config import Mqtt, Tls
from edge.events import (
    DefectClosed,
    DefectOpened,
    DefectUpdated,
    Envelope,
    Health,
    LensAlerted,
    Status,
    StripFinished,
    StripStarted,
    parse_event,
)

if TYPE_CHECKING:
    from edge.commands.arguments import Subparsers

PASSWORD_VARIABLE = "MQTT_PASSWORD"
_REMEMBERED_IDS = 100_000
"""Duplicates come after a restart or a lost acknowledgement, close to the first: this many ids back are told."""


def register(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = subparsers.add_parser("subscribe", help="print alerts as they arrive from a broker", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=1883)
    parser.add_argument("--topic", default="rust-edge/#", help="filter, such as rust-edge/linz/+/+/defect (default: %(default)s)")
    parser.add_argument("--mqtt", dest="version", choices=("5", "3.1.1"), default="5", help="version of the protocol")
    parser.add_argument("--username", help=f"the password comes from the environment: {PASSWORD_VARIABLE}")
    parser.add_argument("--tls", action="store_true", help="TLS with the system's certificate authorities")
    parser.add_argument("--tls-ca", type=Path, metavar="FILE", help="TLS with this certificate authority")
    parser.add_argument("--tls-cert", type=Path, metavar="FILE", help="client certificate")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="its key")
    parser.add_argument("--count", type=int, metavar="N", help="leave after so many messages")
    parser.add_argument("--json", action="store_true", help="the messages as they are, one a line")
    parser.set_defaults(handler=_subscribe)


def _subscribe(args: argparse.Namespace) -> int:
    # Here, not above: paho is needed by this command alone, and `describe` by others.
    from edge.sinks.mqtt_subscription import Subscription

    done = threading.Event()
    printer = _Printer(args.json, args.count, done)
    with Subscription(_broker(args), args.topic, printer.show):
        # Not on stdout: whoever reads the messages there can wait for this line before it publishes.
        print(f"subscribed to {args.topic} at {args.host}:{args.port}", file=sys.stderr, flush=True)
        # The system may hand SIGINT to the network's thread: a wait without end would not wake up for it.
        while not done.wait(timeout=0.5):
            pass
    return 0


def _broker(args: argparse.Namespace) -> Mqtt:
    from pydantic import ValidationError

    from edge.errors import ConfigError

    try:
        tls = None
        if args.tls or args.tls_ca or args.tls_cert:
            tls = Tls(ca=args.tls_ca, certificate=args.tls_cert, key=args.tls_key)
        password = os.environ.get(PASSWORD_VARIABLE)
        return Mqtt(host=args.host, port=args.port, version=args.version, username=args.username, password=password, tls=tls)
    except ValidationError as error:
        faults = [
            f"{fault['loc'][-1] if fault['loc'] else 'tls'}: got {fault['input']!r}; {fault['msg']}" for fault in error.errors()
        ]
        raise ConfigError("\n".join(faults)) from error


class _Printer:
    """Prints messages and counts them; called from the subscription's thread."""

    def __init__(self, as_json: bool, count: int | None, done: threading.Event) -> None:
        self._as_json = as_json
        self._left = count
        self._done = done
        self._seen: OrderedDict[tuple[str, str], None] = OrderedDict()

    def show(self, topic: str, payload: bytes) -> None:
        if self._done.is_set():
            return
        line = payload.decode(errors="replace") if self._as_json else self._line(topic, payload)
        if line is None:
            return
        print(line, flush=True)
        if self._left is not None:
            self._left -= 1
            if self._left <= 0:
                self._done.set()

    def _line(self, topic: str, payload: bytes) -> str | None:
        try:
            event = parse_event(payload)
        except ValueError:
            return f"{topic}: not an event of rust-edge ({len(payload)} bytes)"
        if isinstance(event, Health):
            return None
        key = (event.source, event.id)
        again = " (again)" if key in self._seen else ""
        self._seen[key] = None
        if len(self._seen) > _REMEMBERED_IDS:
            self._seen.popitem(last=False)
        return describe(event) + again


def describe(event: Envelope) -> str:
    """An event in one line for people: time, source, what, where in mm."""
    return f"{event.time:%H:%M:%S}.{event.time.microsecond // 1000:03d} {event.source} {_said(event)}"


def _said(event: Any) -> str:
    if isinstance(event, DefectOpened | DefectUpdated | DefectClosed):
        return _said_of_defect(event)
    if isinstance(event, LensAlerted):
        alert = event.data
        return (
            f"{event.subject} LENS: columns {alert.column_start}-{alert.column_stop} alarmed over {alert.over_mm / 1000:.1f} m, "
            "no longer judged: clean the lens or the window"
        )
    if isinstance(event, StripStarted):
        return f"{event.subject} strip started: {event.data.width_px} px, {event.data.mode}, {event.data.bundle}"
    if isinstance(event, StripFinished):
        summary = event.data
        counts = ", ".join(f"{count} {name}" for name, count in sorted(summary.defects.items()) if count) or "no defects"
        share = (summary.coverage.inspected + summary.coverage.gated) / summary.lines if summary.lines else 1.0
        how = "interrupted" if summary.interrupted else "finished"
        return f"{event.subject} strip {how}: {summary.length_mm / 1000:.2f} m, {counts}; {share:.2%} looked at"
    if isinstance(event, Status):
        return f"{event.data.state}: {event.data.reason}"
    if isinstance(event, Health):
        counters = event.data
        return f"{counters.lines_per_s:.0f} lines/s, {counters.megapixels_per_s:.1f} MPix/s, queue {counters.queue_frames}"
    raise AssertionError(type(event))


def _said_of_defect(event: DefectOpened | DefectUpdated | DefectClosed) -> str:
    defect = event.data
    done = event.type.split(".")[-2]
    ending = f" ({defect.ending.replace('_', ' ')})" if defect.ending and defect.ending != "complete" else ""
    return (
        f"{event.subject} {done:<7} {defect.class_name:<10} at {defect.centroid_mm.along / 1000:9.3f} m, "
        f"{defect.centroid_mm.across:7.1f} mm across: {defect.length_mm:.1f} x {defect.width_mm:.1f} mm, "
        f"{defect.area_mm2:.1f} mm2, confidence {defect.confidence_peak:.2f}, {defect.latency_ms:.0f} ms{ending}"
    )
