"""Time: everybody takes a turn in every round, medians over the rounds; the processor's time and the clock's."""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.peers_bench.agreement import agreement
from benchmarks.peers_bench.strips import Strip, planted_found
from benchmarks.peers_bench.systems import Absent, Peer
from edge.errors import RustEdgeError
from edge.scores import Bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """One competitor on one strip.

    key: what ratios call it by. role: ours, peer or seed. make: opens it. share: of the strip that a run inspects, where it
    is timed on a sample. whole: its answer is a mask of this network's classes, to be held against the reference.
    """

    key: str
    role: str
    make: Callable[[], Peer]
    title: str
    engine: str
    share: Callable[[Peer, Strip], float] = lambda peer, strip: 1.0
    whole: bool = True


def run_section(
    section: str, strip: Strip, entries: Sequence[Entry], rounds: int, reference: Bytes | None
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Figures of every entry, and those that cannot run here. reference: None leaves agreement out."""
    opened: list[tuple[Entry, Peer]] = []
    absent: list[dict[str, str]] = []
    records: dict[str, dict[str, Any]] = {}
    for entry in entries:
        try:
            opened.append((entry, entry.make()))
        except (ImportError, RustEdgeError) as error:
            absent.append(asdict(Absent(entry.title, entry.engine, " ".join(str(error).split()))))
    try:
        for entry, peer in opened:
            _say(f"{section}: {peer.name}, {peer.engine}, {peer.how}")
            records[entry.key] = _first(section, strip, entry, peer, reference)
        times: dict[str, list[tuple[float, float]]] = {entry.key: [] for entry, _ in opened}
        for turn in range(rounds):
            _say(f"{section}: round {turn + 1} of {rounds}")
            for entry, peer in opened:
                times[entry.key].append(timed(peer, strip)[1:])
    finally:
        for _, peer in opened:
            peer.close()
    for key, found in times.items():
        cpu_s, wall_s = (statistics.median(each) for each in zip(*found, strict=True))
        pixels = records[key]["megapixels"]
        records[key] |= {
            "cpu_s": [round(cpu, 4) for cpu, _ in found],
            "wall_s": [round(wall, 4) for _, wall in found],
            "mpx_per_cpu_s": pixels / cpu_s,
            "mpx_per_s": pixels / wall_s,
        }
    return list(records.values()), absent


def timed(peer: Peer, strip: Strip) -> tuple[Any, float, float]:
    """Its answer, seconds of the processor, seconds of the clock."""
    peer.prepare(strip.lines)
    gc.collect()
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    answer = peer.run(strip.lines)
    return answer, time.process_time() - cpu_s, time.perf_counter() - wall_s


def _first(section: str, strip: Strip, entry: Entry, peer: Peer, reference: Bytes | None) -> dict[str, Any]:
    """The warm-up, and what came of it."""
    answer, _, _ = timed(peer, strip)
    record: dict[str, Any] = {
        "section": section,
        "key": entry.key,
        "role": entry.role,
        "strip": strip.name,
        "name": peer.name,
        "engine": peer.engine,
        "precision": peer.precision,
        "how": peer.how,
        "megapixels": strip.megapixels * entry.share(peer, strip),
    }
    if reference is not None and entry.whole:
        mask = peer.mask(answer, strip.lines)
        found = agreement(mask, reference)
        record |= asdict(found) | {"recall": found.recall}
        if strip.truth is not None:
            record["planted"], record["planted_found"] = planted_found(strip, mask)
    return record


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
