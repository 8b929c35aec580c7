"""The seed systems' loop and the tilers that users know, against the station: the same weights, strips, machine and run.

    make bench-peers [ARGS='--quick']        in an environment of its own, .venv-peers
    python benchmarks/peers.py [--quick] [--strip IMAGE] [--rounds N] [--only dense exact latency clean-95]

Everybody takes a turn in every round; first with one thread, then with all cores, in a process each whose allocator keeps
freed memory. Figures go to benchmarks/results/, and unless --quick to docs/peers.md with its plots.
`--render FILE` writes the page again from the figures of an earlier run.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.peers_bench.page import plots, render  # noqa: E402

SECTIONS = ("dense", "exact", "latency", "clean-90", "clean-95", "clean-99", "recall")
QUICK = ("dense", "latency", "clean-95")
RECALL_STRIPS = 16
IMAGE = ROOT.parent / "shared" / "data" / "strips" / "neu_dense.png"
PACKAGES = ("torch", "onnxruntime", "openvino", "numpy", "opencv-python-headless")
SYSTEMS = ("seed_loop", "monai_windows", "sahi_slices", "supervision_slices", "model_api_tiles")
WIDTH = 2048
LATENCY_LINES = 2048
KEPT_BYTES = str(1 << 32)
"""What glibc may keep of freed memory."""
POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def main() -> None:
    arguments = _arguments()
    if arguments.worker:
        _work(arguments)
        return
    if arguments.render:
        _write_page(json.loads(arguments.render.read_text(encoding="utf-8")))
        return
    began = datetime.datetime.now(datetime.timezone.utc)
    load_before = os.getloadavg()[0]
    cores = len(os.sched_getaffinity(0))
    runs = {}
    for name, threads in (("one_thread", 1), ("all_cores", cores)):
        if name in arguments.runs and not (name == "all_cores" and cores == 1 and "one_thread" in runs):
            runs[name] = _run_worker(threads, with_agreement=not runs)
    results = {
        "date": began.date().isoformat(),
        "minutes": round((datetime.datetime.now(datetime.timezone.utc) - began).total_seconds() / 60, 1),
        "command": "make bench-peers" + (f" ARGS='{' '.join(sys.argv[1:])}'" if sys.argv[1:] else ""),
        "commit": _commit(),
        "machine": _machine(cores),
        "load": [load_before, os.getloadavg()[0]],
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "credits": _credits(),
        "rounds": arguments.rounds,
        "strips": {section: facts for run in runs.values() for section, facts in run.pop("strips").items()},
        "runs": runs,
    }
    folder = ROOT / "benchmarks" / "results"
    folder.mkdir(exist_ok=True)
    name = "-".join(filter(None, (results["date"], _slug(results["machine"]), "quick" if arguments.quick else "")))
    path = arguments.json or folder / f"{name}.json"
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(render(results))
    print(f"figures: {path}", file=sys.stderr)
    if not arguments.quick and not arguments.json:
        _write_page(results)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short strips, a round, no page: a minute or two, for a first look")
    parser.add_argument("--rounds", type=int, help="default: 3; quick: 1")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="parts of the comparison; default: all, quick: the main ones")
    parser.add_argument("--runs", nargs="+", choices=("one_thread", "all_cores"), help="default: both; quick: one_thread")
    parser.add_argument("--strip", type=Path, default=IMAGE if IMAGE.is_file() else None, help="image of the dense strip")
    parser.add_argument("--unet", default="steel-unet", help="bundles NAME-fp32 and NAME-int8, shipped or as paths")
    parser.add_argument("--gate", default="steel-gate-int8", help="the gate's bundle")
    parser.add_argument("--json", type=Path, help="write the figures there, and no page")
    parser.add_argument("--render", type=Path, metavar="FILE", help="only write the page, from the figures of an earlier run")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--speed-only", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.rounds = arguments.rounds or (1 if arguments.quick else 3)
    arguments.only = arguments.only or (QUICK if arguments.quick else SECTIONS)
    arguments.runs = arguments.runs or (("one_thread",) if arguments.quick else ("one_thread", "all_cores"))
    return arguments


def _run_worker(threads: int, *, with_agreement: bool) -> dict[str, Any]:
    """The comparison with so many threads, in a process whose allocator and thread pools are set before it begins."""
    environment = os.environ | dict.fromkeys(POOLS, str(threads))
    environment |= {"MALLOC_MMAP_THRESHOLD_": KEPT_BYTES, "MALLOC_TRIM_THRESHOLD_": KEPT_BYTES}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.json"
        command = [sys.executable, __file__, *sys.argv[1:], "--worker", str(file), "--threads", str(threads)]
        subprocess.run([*command, *([] if with_agreement else ["--speed-only"])], env=environment, check=True)
        run: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return run


def _work(arguments: argparse.Namespace) -> None:
    import cv2
    import torch

    from benchmarks.peers_bench import line_up
    from benchmarks.peers_bench.agreement import dense_reference
    from benchmarks.peers_bench.recall import cascade_recall
    from benchmarks.peers_bench.rounds import run_section
    from benchmarks.peers_bench.strips import Strip, dense_strip, sparse_strip

    cv2.setNumThreads(arguments.threads)
    torch.set_num_threads(arguments.threads)
    quick = arguments.quick
    unets = {precision: f"{arguments.unet}-{precision}" for precision in ("fp32", "int8")}
    bench = line_up.Bench(arguments.threads, unets, arguments.gate)
    dense = dense_strip(arguments.strip, 1024 if quick else 3072, WIDTH)
    sparse_lines = 2048 if quick else 8192
    records: list[dict[str, Any]] = []
    absent: list[dict[str, str]] = []
    strips: dict[str, Any] = {}
    recall = None
    for section in arguments.only:
        if section == "recall":
            if not arguments.speed_only:
                some = (sparse_strip(0.95, sparse_lines, WIDTH, seed) for seed in range(100, 100 + RECALL_STRIPS))
                options = {"bundle": unets["int8"], "chunk_lines": 256}
                recall = cascade_recall(some, options, options | {"mode": "cascade", "gate": arguments.gate}, arguments.threads)
            continue
        if section.startswith("clean-"):
            strip = sparse_strip(int(section[6:]) / 100, sparse_lines, WIDTH, seed=20)
            entries = line_up.sparse_entries(bench, strip, seeds=section == "clean-95")
        elif section == "latency":
            strip = Strip(dense.name, dense.lines[:LATENCY_LINES])
            entries = line_up.latency_entries(bench, strip)
        else:
            strip = dense
            entries = line_up.exact_entries(bench, strip) if section == "exact" else line_up.dense_entries(bench, strip)
            entries += line_up.other_network_entries() if section == "dense" else []
        facts: dict[str, Any] = {"name": strip.name, "lines": strip.lines.shape[0], "columns": strip.lines.shape[1]}
        if strip.clean is not None:
            facts |= {"clean": strip.clean, "alarmed": line_up.alarmed_share(bench, strip)}
        strips[section] = facts
        reference = None if arguments.speed_only else dense_reference(bench.network, strip.lines, bench.halo)
        found, missing = run_section(section, strip, entries, arguments.rounds, reference)
        records += found
        absent += missing
    run = {"threads": arguments.threads, "strips": strips, "records": records, "absent": absent, "recall": recall}
    arguments.worker.write_text(json.dumps(run), encoding="utf-8")


def _write_page(results: dict[str, Any]) -> None:
    images = ROOT / "docs" / "images"
    images.mkdir(exist_ok=True)
    for name, svg in plots(results).items():
        (images / name).write_text(svg, encoding="utf-8")
    page = ROOT / "docs" / "peers.md"
    page.write_text(render(results), encoding="utf-8")
    print(f"page: {page}", file=sys.stderr)


def _credits() -> list[dict[str, str]]:
    """Of the systems that are installed."""
    found = []
    for name in SYSTEMS:
        try:
            found.append(asdict(import_module(f"benchmarks.peers_bench.systems.{name}").CREDIT))
        except ImportError as error:
            print(f"{name} is left out: {error}; `make bench-peers` installs it", file=sys.stderr)
    return found


def _machine(cores: int) -> dict[str, Any]:
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", info.read_text(encoding="utf-8"), re.MULTILINE) if info.is_file() else []
    return {
        "processor": " ".join((names[0] if names else platform.processor() or platform.machine()).split()),
        "cores": cores,
        "memory_gib": round(memory_bytes / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _slug(machine: dict[str, Any]) -> str:
    return re.sub(r"[^a-z0-9]+", "-", f"{machine['processor']} {machine['cores']} cores".lower()).strip("-")


def _commit() -> str:
    try:
        found = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


if __name__ == "__main__":
    main()
