"""What the gate costs in defects: the cascade against the dense path with the same engine, over many simulated strips."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from benchmarks.peers_bench.agreement import agreement
from benchmarks.peers_bench.engines import TITLES
from benchmarks.peers_bench.strips import Strip, planted_found
from benchmarks.peers_bench.systems.station import StationSegmenter
from edge.errors import RustEdgeError

_COUNTED = ("defects", "found", "extra", "planted", "planted_dense", "planted_cascade")


def cascade_recall(strips: Iterable[Strip], dense: dict[str, Any], cascade: dict[str, Any], threads: int) -> dict[str, Any]:
    """Sums over the strips, all of one width. dense, cascade: keys of the station files.

    defects: regions of one class of at least 8 px in the dense masks; found by the cascade; extra: the cascade's alone.
    planted: as large as the score card wants them; planted_dense, planted_cascade: found by either.
    """
    sums = dict.fromkeys(_COUNTED, 0)
    clean, tiles, count, opened = 0.0, 0, 0, None
    try:
        for strip in strips:
            opened = opened or _open(dense, cascade, threads, strip.lines.shape[1])
            masks = [station.mask(station.run(strip.lines), strip.lines) for station in opened]
            agreed = agreement(masks[1], masks[0])
            planted, by_dense = planted_found(strip, masks[0])
            by_cascade = planted_found(strip, masks[1])[1]
            added = (agreed.defects, agreed.found, agreed.extra, planted, by_dense, by_cascade)
            sums = {name: sums[name] + value for name, value in zip(_COUNTED, added, strict=True)}
            clean, count, tiles = clean + (strip.clean or 0.0), count + 1, tiles + strip.tiles
    finally:
        for station in opened or ():
            station.close()
    engine = opened[0].engine if opened else ""
    return {"strips": count, "tiles": tiles, "clean": clean / max(1, count), "engine": engine, **sums}


def _open(dense: dict[str, Any], cascade: dict[str, Any], threads: int, width: int) -> list[StationSegmenter]:
    """Both stations in the first runtime that is there."""
    failure: RustEdgeError | None = None
    for runtime in TITLES:
        if runtime != "torch":
            try:
                return [StationSegmenter("rust-edge", "", options, runtime, threads, width) for options in (dense, cascade)]
            except RustEdgeError as error:
                failure = error
    assert failure is not None
    raise failure
