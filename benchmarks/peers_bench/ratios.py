"""The ratios that the comparison is made for, from the figures of one run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Record = Mapping[str, Any]
CPU, WALL = "mpx_per_cpu_s", "mpx_per_s"


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ours over theirs. cpu: per CPU-second at one thread; wall: per second with all cores; None where that was not run."""

    title: str
    ours: Record
    theirs: Record
    cpu: float | None
    wall: float | None


@dataclass(frozen=True, slots=True)
class Asked:
    """A ratio that is wanted. ours, theirs: beginnings of keys in a section; of several records the fastest counts.

    same_engine: whether theirs must run the engine that ours does.
    """

    title: str
    section: str
    ours: str
    theirs: str
    same_engine: bool = True


def _asked() -> Iterator[Asked]:
    dense, seed, best_peer = "ours/stream-256/", "against the seed loop with", "against the best peer with the same engine"
    yield Asked(f"dense INT8, {seed} the same network", "dense", dense, "seed/same", same_engine=False)
    yield Asked(f"dense INT8, {seed} its own U-Net (64-128-256-512, 1024)", "dense", dense, "seed/own", same_engine=False)
    yield Asked(f"dense INT8, {best_peer}, overlap as they recommend", "dense", dense, "peer/")
    yield Asked(f"dense INT8, {best_peer}, its error as small as ours", "exact", "ours/exact/", "exact/")
    yield Asked(f"a mask for every 64 lines, {best_peer}, its error as small as ours", "latency", "ours/latency/", "latency/")
    for clean in (90, 95, 99):
        section, cascade = f"clean-{clean}", f"cascade at {clean} % clean"
        yield Asked(f"{cascade}, {seed} a U-Net of base width 16", section, "ours/cascade/", "seed/prototype", same_engine=False)
        yield Asked(f"{cascade}, {best_peer} and gate, overlap as they recommend", section, "ours/cascade/", "gated/")
        yield Asked(f"{cascade} and 32 px of halo, {best_peer} and gate, the same halo", section, "ours/cascade-32/", "gated/")
        yield Asked(f"{cascade}, {best_peer} and gate, its error as small as ours", section, "ours/cascade/", "gated-exact/")
    yield Asked("the whole pipeline, against its segmenter alone, dense", "dense", "ours/pipeline/", dense)
    yield Asked(
        "the whole pipeline, against its segmenter alone, cascade at 95 % clean",
        "clean-95",
        "ours/cascade-pipeline/",
        "ours/cascade/",
    )


def ratios(one_thread: Sequence[Record], all_cores: Sequence[Record]) -> list[Ratio]:
    """All that the records hold both sides of; shown is the pair of the run with one thread, where there is one."""
    found = []
    for asked in _asked():
        pair, together = matched(asked, one_thread, CPU), matched(asked, all_cores, WALL)
        shown = pair or together
        if shown is not None:
            cpu = pair[0][CPU] / pair[1][CPU] if pair else None
            wall = together[0][WALL] / together[1][WALL] if together else None
            found.append(Ratio(asked.title, *shown, cpu, wall))
    return found


def matched(asked: Asked, records: Sequence[Record], figure: str) -> tuple[Record, Record] | None:
    """Ours and theirs; None where either was not run. Of ours OpenVINO counts where it was run: the station takes it first."""
    mine = [record for record in records if record["section"] == asked.section]
    ours = [record for record in mine if record["key"].startswith(asked.ours)]
    ours.sort(key=lambda record: not record["engine"].startswith("OpenVINO"))
    if not ours:
        return None
    rivals = [
        record
        for record in mine
        if record["key"].startswith(asked.theirs) and (record["engine"] == ours[0]["engine"] or not asked.same_engine)
    ]
    return (ours[0], max(rivals, key=lambda record: record[figure])) if rivals else None
