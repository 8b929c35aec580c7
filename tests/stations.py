"""Stations of tests: a strip of PNG images, engines that are arithmetic, and the daemon as a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from toy_engines import steel, write_segmenter

WIDTH = 128


def write_strip(folder: Path, lines: int = 3000, image_lines: int = 250, seed: int = 3, width: int = WIDTH) -> np.ndarray:
    """A strip with a rectangle every few dozen lines, one streak of a thousand lines, cut into PNG images."""
    rng = np.random.default_rng(seed)
    patches = [
        (line, int(rng.integers(0, 90)), int(rng.integers(5, 40)), int(rng.integers(5, 20)), int(rng.choice([20, 230])))
        for line in range(20, lines - 60, 45)
    ]
    strip = steel(lines, width, *patches, (900, 112, 1000, 6, 240))
    folder.mkdir(parents=True, exist_ok=True)
    for index, first in enumerate(range(0, lines, image_lines)):
        assert cv2.imwrite(str(folder / f"{index:04d}.png"), strip[first : first + image_lines])
    return strip


def station(folder: Path, **changes: Any) -> dict[str, Any]:
    """A station document: toy engine, the strip in `folder/strip`, events to `folder/events.jsonl`."""
    if not (folder / "toy").exists():
        write_segmenter(folder / "toy")
    return {
        "site": "mill",
        "line": "one",
        "camera": "top",
        "bundle": str(folder / "toy"),
        "dense": "slabs",
        "chunk_lines": 64,
        "session": {"threads": 1},
        "source": {"kind": "folder", "path": str(folder / "strip"), "frame_lines": 50},
        "outbox": {"path": str(folder / "outbox.db")},
        "sinks": {"jsonl": str(folder / "events.jsonl")},
        **changes,
    }


def start_daemon(folder: Path, document: dict[str, Any], *arguments: str) -> subprocess.Popen[str]:
    """`rust-edge run` as a process of its own."""
    path = folder / "station.yaml"
    path.write_text(yaml.safe_dump(document))
    command = [sys.executable, "-m", "edge.cli", "run", "-c", str(path), *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def events_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def told(events: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What events say by id, without the clock; of repeated ids the first."""
    result: dict[str, dict[str, Any]] = {}
    for event in events:
        data = {key: value for key, value in event["data"].items() if key not in ("latency_ms", "captured_at")}
        result.setdefault(event["id"], {"type": event["type"], "subject": event["subject"], **data})
    return result
