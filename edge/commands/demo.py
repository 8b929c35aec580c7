"""`rust-edge demo`: the whole line on one box, with known truth: camera, engines, broker, a subscriber, a score card."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.broker import EmbeddedBroker
from edge.commands.subscribe import describe
from edge.config import SimulatedSource, StationConfig, parse_config
from edge.daemon import Daemon
from edge.errors import ConfigError, StageError
from edge.events import DefectClosed, DefectOpened, HealthData, LensAlerted, parse_event
from edge.latency import LatencyHistogram
from edge.ledger import Coverage
from edge.scorecard import MIN_AREA_MM2, ScoreCard, score
from edge.sources.steel_strip import SteelStrip

if TYPE_CHECKING:
    from edge.commands.arguments import Subparsers

WIDTH = 4096
LINE_RATE_HZ = 2000.0
SEED = 20
ARRIVAL_S = 10.0
"""How long the last events may take from the end of the strip to the subscriber."""


def register(subparsers: Subparsers) -> None:
    """Add the command to `rust-edge`."""
    parser = subparsers.add_parser(
        "demo",
        help="embedded broker, simulated strip with known defects, alerts as a subscriber gets them, a score card",
        description="Inspect a simulated strip at camera pace and hold the alerts that a separate MQTT subscriber receives "
        "against what was planted. Exit code 0: every defect above the stated size was found and every event arrived.",
    )
    parser.add_argument("--seconds", type=float, default=20.0, metavar="S", help="length of the strip in time (default: 20)")
    parser.add_argument(
        "--line-rate-hz", type=float, default=LINE_RATE_HZ, metavar="HZ", help=f"camera pace (default: {LINE_RATE_HZ:.0f})"
    )
    parser.add_argument("--seed", type=int, default=SEED, help="another strip")
    parser.add_argument("--json", action="store_true", help="print the score card for machines, and nothing else")
    parser.set_defaults(handler=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    if not 1 <= arguments.seconds <= 3600 or not 1 <= arguments.line_rate_hz <= 200_000:
        raise ConfigError(
            f"--seconds {arguments.seconds:g} --line-rate-hz {arguments.line_rate_hz:g}: expected 1 to 3600 s, 1 to 200000 Hz"
        )
    with tempfile.TemporaryDirectory(prefix="rust-edge-demo-") as folder, EmbeddedBroker() as broker:
        config = parse_config(_station(arguments, Path(folder), broker.port), "rust-edge demo")
        show = _Display(quiet=arguments.json)
        show.say(
            f"A line camera of {WIDTH} px at {arguments.line_rate_hz:.0f} lines/s for {arguments.seconds:.0f} s, "
            f"a gate and a U-Net, a broker on port {broker.port}; alerts as a separate MQTT subscriber receives them:"
        )
        with _Subscriber(broker.port, show) as subscriber:
            with Daemon(config, "rust-edge demo", "demo-strip", show.health, observe_every_s=0.5) as daemon:
                began_s = time.perf_counter()
                summary = daemon.run()
                took_s = time.perf_counter() - began_s
            written = [
                json.loads(line)["id"] for line in (Path(folder) / "events.jsonl").read_text(encoding="utf-8").splitlines()
            ]
            subscriber.wait_for(set(written), ARRIVAL_S)
        return _report(arguments, config, summary.coverage, took_s, written, subscriber, show)


def _station(arguments: argparse.Namespace, folder: Path, port: int) -> dict[str, Any]:
    return {
        "site": "demo",
        "line": "line-1",
        "camera": "camera-1",
        "source": {
            "kind": "simulated",
            "width": WIDTH,
            "line_rate_hz": arguments.line_rate_hz,
            "lines": round(arguments.line_rate_hz * arguments.seconds),
            "seed": arguments.seed,
        },
        "bundle": "steel-unet-int8",
        "gate": "steel-gate-int8",
        "mode": "cascade",
        "filters": {"strip_edges": {"background_below": 40}},
        "outbox": {"path": str(folder / "outbox.db")},
        "sinks": {"mqtt": {"host": "127.0.0.1", "port": port}, "jsonl": str(folder / "events.jsonl")},
    }


class _Display:
    """Alerts as lines, and below them one live line that is written over on a terminal."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._terminal = sys.stdout.isatty()
        self._lock = threading.Lock()
        self._last_live_s = 0.0

    def say(self, text: str) -> None:
        """One line that stays."""
        if not self._quiet:
            with self._lock:
                print(("\r\x1b[K" if self._terminal else "") + text, flush=True)

    def health(self, health: HealthData) -> None:
        """The live line; where it cannot be written over, one in five seconds."""
        now_s = time.monotonic()
        if self._quiet or health.coverage is None or (not self._terminal and now_s - self._last_live_s < 5.0):
            return
        self._last_live_s = now_s
        seen = health.coverage.inspected + health.coverage.gated
        text = (
            f"{health.metres:7.2f} m  {health.lines_per_s:6.0f} lines/s  {health.megapixels_per_s:6.1f} MPix/s  "
            f"queue {health.queue_frames}/{health.queue_capacity_frames}  "
            f"coverage {seen / health.coverage.total if health.coverage.total else 1:.1%}  open {health.open_defects}"
        )
        with self._lock:
            print(f"\r\x1b[K{text}" if self._terminal else text, end="" if self._terminal else "\n", flush=True)


class _Subscriber:
    """A process of its own that subscribes like any other, and what it received. A context manager."""

    def __init__(self, port: int, show: _Display) -> None:
        self._port, self._show = port, show
        self.received: dict[str, tuple[dict[str, Any], int]] = {}
        self._changed = threading.Condition()

    def __enter__(self) -> _Subscriber:
        command = [sys.executable, "-m", "edge.cli", "subscribe", "--host", "127.0.0.1", "--port", str(self._port), "--json"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        if not self._process.stderr.readline().startswith("subscribed"):
            raise StageError(f"the subscriber did not start: {self._process.stderr.read()}")
        self._reader = threading.Thread(target=self._read, name="subscriber-output", daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(timeout=10)
        self._reader.join(timeout=10)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            received_ns = time.time_ns()
            event = json.loads(line)
            with self._changed:
                self.received.setdefault(event["id"], (event, received_ns))
                self._changed.notify_all()
            parsed = parse_event(line)
            if isinstance(parsed, DefectOpened | DefectClosed | LensAlerted):
                self._show.say(describe(parsed))

    def wait_for(self, ids: set[str], timeout_s: float) -> None:
        """Until all have arrived, or the time is up."""
        with self._changed:
            self._changed.wait_for(lambda: ids <= self.received.keys(), timeout_s)


def _report(
    arguments: argparse.Namespace,
    config: StationConfig,
    coverage: Coverage,
    took_s: float,
    written: list[str],
    subscriber: _Subscriber,
    show: _Display,
) -> int:
    source = config.source
    if not isinstance(source, SimulatedSource) or source.lines is None:
        raise StageError("the demo's camera has no end")
    strip = SteelStrip(source.width, source.seed, source.defects, config.scale)
    events = [parse_event(json.dumps(event)) for event, _ in subscriber.received.values()]
    closed = [event for event in events if isinstance(event, DefectClosed)]
    scale = config.scale
    card = score(strip.planted(0, source.lines), closed, source.lines, (scale.mm_per_line, scale.mm_per_column))
    latency = LatencyHistogram()
    for event, received_ns in subscriber.received.values():
        if event["type"].startswith("io.rust-edge.defect.opened"):
            latency.add((received_ns - _nanoseconds(event["data"]["captured_at"])) / 1e6)
    missing = [event_id for event_id in written if event_id not in subscriber.received]
    good = card.complete and not missing and coverage.total == source.lines
    figures = _figures(card, coverage, latency, took_s, source.width, len(set(written)), len(missing)) | {"passed": good}
    if arguments.json:
        print(json.dumps(figures, indent=1))
    else:
        show.say("\n" + _card(figures, card))
    return 0 if good else 1


def _nanoseconds(instant: str) -> int:
    return round(datetime.fromisoformat(instant.replace("Z", "+00:00")).timestamp() * 1e9)


def _figures(
    card: ScoreCard, coverage: Coverage, latency: LatencyHistogram, took_s: float, width: int, written: int, missing: int
) -> dict[str, Any]:
    errors = card.position_errors_mm
    return {
        "planted": card.planted,
        "found": card.found,
        "missed": len(card.missed),
        "below_minimum": card.small,
        "false_alarms": len(card.false_alarms),
        "position_error_mm_median": errors[len(errors) // 2] if errors else None,
        "position_error_mm_max": errors[-1] if errors else None,
        "coverage": {name: getattr(coverage, name) for name in ("inspected", "gated", "lost", "shed", "total")},
        "events_written": written,
        "events_missing": missing,
        "latency_ms_p50": latency.percentile(0.5),
        "latency_ms_p99": latency.percentile(0.99),
        "seconds": took_s,
        "lines_per_s": coverage.total / took_s,
        "megapixels_per_s": coverage.total * width / took_s / 1e6,
    }


def _card(figures: dict[str, Any], card: ScoreCard) -> str:
    def row(name: str, value: str) -> str:
        return f"  {name:34s} {value}"

    def number(key: str, unit: str) -> str:
        return "none" if figures[key] is None else f"{figures[key]:.1f} {unit}"

    coverage = figures["coverage"]
    kinds = ", ".join(f"{kind} {figures['found'].get(kind, 0)}/{count}" for kind, count in sorted(card.planted.items()))
    lines = [
        "Score card",
        row(
            f"defects planted (>= {MIN_AREA_MM2:g} mm2)", f"{sum(card.planted.values())} ({card.small} smaller ones not counted)"
        ),
        row("found", f"{sum(card.found.values())}  ({kinds})"),
        row("missed", str(figures["missed"])),
        row("false alarms", str(figures["false_alarms"])),
        row(
            "position error, median / largest",
            f"{number('position_error_mm_median', 'mm')} / {number('position_error_mm_max', 'mm')}",
        ),
        row("lines: inspected / gated", f"{coverage['inspected']} / {coverage['gated']}"),
        row("lines: lost / shed / all", f"{coverage['lost']} / {coverage['shed']} / {coverage['total']}"),
        row("events written / not arrived", f"{figures['events_written']} / {figures['events_missing']}"),
        row("latency to subscriber, p50 / p99", f"{number('latency_ms_p50', 'ms')} / {number('latency_ms_p99', 'ms')}"),
        row(
            "throughput",
            f"{figures['lines_per_s']:.0f} lines/s, {figures['megapixels_per_s']:.1f} MPix/s, {figures['seconds']:.1f} s",
        ),
    ]
    lines += [
        row(
            "  missed",
            f"{defect.kind.name.lower()} at {defect.centroid_along_mm / 1000:.3f} m, {defect.centroid_across_mm:.1f} mm, "
            f"{defect.area_mm2:.1f} mm2",
        )
        for defect in card.missed
    ]
    return "\n".join([*lines, "", "PASSED" if figures["passed"] else "FAILED"])
