"""Peak memory of the daemon over a short and a long strip: it must not grow with the strip.

    python benchmarks/memory.py [--metres 10 1000] [--width 512]

Each length is a daemon of its own, in a process of its own, as a cascade, with an outbox and a JSONL file.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from edge.config import parse_config
from edge.daemon import Daemon

MM_PER_LINE = 0.25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metres", type=float, nargs="+", default=[10.0, 1000.0])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        _one(arguments.metres[0], arguments.width)
        return
    print(f"{'strip':>10s}{'lines':>12s}{'defects':>10s}{'peak MiB':>10s}")
    for metres in arguments.metres:
        command = [sys.executable, __file__, "--one", "--metres", str(metres), "--width", str(arguments.width)]
        figures = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        print(f"{metres:8.0f} m{figures['lines']:12d}{figures['defects']:10d}{figures['peak_mib']:10.1f}", flush=True)


def _one(metres: float, width: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        document = {
            "source": {"kind": "simulated", "width": width, "lines": round(metres * 1000 / MM_PER_LINE)},
            "scale": {"mm_per_line": MM_PER_LINE},
            "mode": "cascade",
            "gate": "steel-gate-int8",
            "filters": {"strip_edges": {"background_below": 40}},
            "outbox": {"path": f"{folder}/outbox.db"},
            "sinks": {"jsonl": f"{folder}/events.jsonl"},
        }
        with Daemon(parse_config(document, "benchmark"), "benchmark", "bench") as daemon:
            summary = daemon.run()
        # before the events are read: they do grow with the strip
        peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with (Path(folder) / "events.jsonl").open(encoding="utf-8") as events:
            closed = sum('"type":"io.rust-edge.defect.closed.v1"' in event for event in events)
    print(json.dumps({"lines": summary.coverage.total, "defects": closed, "peak_mib": peak_kib / 1024}))


if __name__ == "__main__":
    main()
