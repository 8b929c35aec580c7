"""Who competes on which strip, with which options: the whole comparison, declared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch import nn

from benchmarks.peers_bench.engines import TITLES, Engine, Runtime, open_engines
from benchmarks.peers_bench.gate import TILE, TileGate
from benchmarks.peers_bench.network import prototype_unet, seed_unet, steel_unet
from benchmarks.peers_bench.rounds import Entry
from benchmarks.peers_bench.slicing import Slicing, core_slicing, pieces
from benchmarks.peers_bench.strips import Strip
from benchmarks.peers_bench.systems import Peer
from edge.bundle import open_bundle
from edge.engines import dense_halo
from edge.frame import Lines
from edge.scores import Bytes
from export.networks.pits_unet import PitsUNet

OVERLAP = 32
"""Margin of a slice behind the gate: the seed loop's 32 px at each side, a multiple of the network's stride."""
LATENCY_LINES = 64
"""The latency budget: a mask is wanted for every so many lines."""
SEED_TILES, PROTOTYPE_TILES = 3, 12
"""Tiles that the dear networks are timed on."""
INT8_RUNTIMES: tuple[Runtime, ...] = ("openvino", "ort")
DETECTION_ENGINES: tuple[tuple[Runtime, str], ...] = (("ort", "fp32"), ("ort", "int8"), ("openvino", "int8"))


@dataclass(frozen=True)
class Bench:
    """What the competitors are made with. bundles: segmenter and gate by precision. threads: at least 1."""

    threads: int
    unets: dict[str, str]
    gate_bundle: str

    @cached_property
    def network(self) -> nn.Module:
        """The shipped network in torch."""
        return steel_unet(open_bundle(self.unets["fp32"]).model_path)

    @cached_property
    def halo(self) -> int:
        """The receptive radius, up to the stride."""
        return dense_halo(open_bundle(self.unets["fp32"]))

    @cached_property
    def engine(self) -> Callable[[Runtime, str, int], Engine]:
        """Makes engines."""
        return open_engines(self.unets, self.threads, lambda: self.network)

    def gate(self, runtime: Runtime) -> TileGate:
        """The gate in front of a tiler, in the runtime of its network; torch has none of its own: OpenVINO's, the fastest."""
        return TileGate(self.gate_bundle, "ort" if runtime == "ort" else "openvino", self.threads)


def dense_entries(bench: Bench, strip: Strip) -> list[Entry]:
    """Every line is inspected."""
    width = strip.lines.shape[1]
    entries = []
    for runtime in INT8_RUNTIMES:
        for lines in (256, 64):
            how = f"line-streaming, chunks of {lines} lines"
            entries.append(_ours(bench, f"ours/stream-{lines}/{runtime}", how, {"chunk_lines": lines}, runtime, "int8", width))
        options = {"dense": "slabs", "chunk_lines": 256}
        entries.append(_ours(bench, f"ours/slabs-256/{runtime}", "slabs of 256 lines", options, runtime, "int8", width))
        entries.append(_whole(bench, f"ours/pipeline/{runtime}", {"chunk_lines": 256}, runtime))
    entries.append(
        _ours(
            bench, "ours/stream-256/ort-fp32", "line-streaming, chunks of 256 lines", {"chunk_lines": 256}, "ort", "fp32", width
        )
    )
    entries.append(_seed(bench, "seed/same", "seed loop"))
    entries += [
        Entry(
            f"peer/monai/{runtime}-{precision}", "peer", _monai(bench, runtime, precision), "MONAI", _engine(runtime, precision)
        )
        for runtime, precision in (("torch", "fp32"), ("openvino", "int8"))
    ]
    for runtime, precision in DETECTION_ENGINES:
        engine = _engine(runtime, precision)
        entries.append(Entry(f"peer/sahi/{runtime}-{precision}", "peer", _sahi(bench, runtime, precision), "SAHI", engine))
        entries.append(
            Entry(
                f"peer/supervision/{runtime}-{precision}", "peer", _supervision(bench, runtime, precision), "supervision", engine
            )
        )
    entries.append(
        Entry("peer/model_api/openvino-int8", "peer", _model_api(bench, None, gated=False), "Model API Tiler", "OpenVINO INT8")
    )
    return entries


def other_network_entries() -> list[Entry]:
    """The seed loop with networks of its own, for their speed alone."""
    return [_seed_sample(seed_unet, "seed/own", "seed loop, its own U-Net (64-128-256-512, 1024)", SEED_TILES)]


def exact_entries(bench: Bench, strip: Strip) -> list[Entry]:
    """Peers whose slices have the receptive radius around them: their error is then ours."""
    cut = core_slicing((TILE, TILE), bench.halo, smallest_px=1)
    how, options, width = "line-streaming, chunks of 256 lines", {"chunk_lines": 256}, strip.lines.shape[1]
    return [
        *(_ours(bench, f"ours/exact/{runtime}", how, options, runtime, "int8", width) for runtime in INT8_RUNTIMES),
        Entry("exact/monai", "peer", _monai(bench, "openvino", "int8", cut), "MONAI", "OpenVINO INT8"),
        Entry("exact/sahi", "peer", _sahi(bench, "openvino", "int8", cut), "SAHI", "OpenVINO INT8"),
        Entry("exact/supervision", "peer", _supervision(bench, "openvino", "int8", cut), "supervision", "OpenVINO INT8"),
        Entry("exact/model_api", "peer", _model_api(bench, cut, gated=False), "Model API Tiler", "OpenVINO INT8"),
    ]


def latency_entries(bench: Bench, strip: Strip) -> list[Entry]:
    """A mask for every 64 lines: peers get them with the halo around, as one slice as wide as the strip, their cheapest."""
    width = strip.lines.shape[1]
    entries = []
    for runtime in INT8_RUNTIMES:
        how = f"line-streaming, chunks of {LATENCY_LINES} lines"
        options = {"chunk_lines": LATENCY_LINES}
        entries.append(_ours(bench, f"ours/latency/{runtime}", how, options, runtime, "int8", width))
        for title, make in (("SAHI", _sahi), ("supervision", _supervision)):
            # pieces come with their halo: nothing is reflected, only thrown away
            slice_ = Slicing((LATENCY_LINES + 2 * bench.halo, width + 2 * bench.halo), (0, 0), 0, bench.halo, 1)
            entries.append(
                Entry(
                    f"latency/{title}/{runtime}",
                    "peer",
                    _piecewise(bench, make(bench, runtime, "int8", slice_)),
                    title,
                    _engine(runtime, "int8"),
                )
            )
    return entries


def sparse_entries(bench: Bench, strip: Strip, seeds: bool) -> list[Entry]:
    """Most tiles are clean: the gate decides who is looked at, ours and everybody's."""
    width = strip.lines.shape[1]
    recommended = core_slicing((TILE, TILE), OVERLAP, kept=OVERLAP)
    exact = core_slicing((TILE, TILE), bench.halo, smallest_px=1)
    cascade = {"mode": "cascade", "gate": bench.gate_bundle}
    narrow = {**cascade, "tiling": {"halo": OVERLAP}}
    entries = []
    for runtime in INT8_RUNTIMES:
        entries.append(_ours(bench, f"ours/cascade/{runtime}", "cascade", cascade, runtime, "int8", width))
        how = f"cascade, {OVERLAP} px of halo"
        entries.append(_ours(bench, f"ours/cascade-{OVERLAP}/{runtime}", how, narrow, runtime, "int8", width))
        entries.append(_whole(bench, f"ours/cascade-pipeline/{runtime}", cascade, runtime))
    # what the cascade is held against: the same INT8 engine looking at everything
    entries.append(
        _ours(bench, "ours/dense", "line-streaming, chunks of 256 lines", {"chunk_lines": 256}, "openvino", "int8", width)
    )
    for title, make in (("SAHI", _sahi), ("supervision", _supervision), ("MONAI", _monai)):
        for kind, cut in (("gated", recommended), ("gated-exact", exact)):
            entries.append(Entry(f"{kind}/{title}", "peer", make(bench, "openvino", "int8", cut, True), title, "OpenVINO INT8"))
    for title, make in (("SAHI", _sahi), ("supervision", _supervision)):
        of_ort = make(bench, "ort", "int8", recommended, True)
        entries.append(Entry(f"gated/{title}/ort", "peer", of_ort, title, "ONNX Runtime INT8"))
    entries.append(
        Entry("gated/model_api", "peer", _model_api(bench, recommended, gated=True), "Model API Tiler", "OpenVINO INT8")
    )
    if seeds:
        entries.append(_seed(bench, "seed/gated", "seed loop", recommended, gated=True))
        entries.append(
            _seed_sample(prototype_unet, "seed/prototype", "seed loop, a U-Net of base width 16 (16 to 256)", PROTOTYPE_TILES)
        )
    return entries


def alarmed_share(bench: Bench, strip: Strip) -> float:
    """Of the strip's 256 px tiles, those that the gate in front of a peer lets through."""
    gate = bench.gate("ort")
    try:
        return float(gate.alarms(strip.lines).mean())
    finally:
        gate.close()


class Piecewise:
    """A tiler that gets a strip in pieces of so many lines, each with its halo around it: what a latency budget makes of it."""

    def __init__(self, peer: Peer, halo: int, lines: int) -> None:
        self._peer, self._halo, self._lines = peer, halo, lines
        self.name, self.engine, self.precision = peer.name, peer.engine, peer.precision
        self.how = f"pieces of {lines} lines with {halo} px of halo around, as wide as the strip"

    def prepare(self, strip: Lines) -> None:
        """Nothing."""

    def run(self, strip: Lines) -> list[tuple[Any, Lines]]:
        """The answer to every piece."""
        return [(self._peer.run(piece), piece) for piece in self._pieces(strip)]

    def mask(self, answer: list[tuple[Any, Lines]], strip: Lines) -> Bytes:
        """The pieces' masks, one below the other."""
        halo = self._halo
        parts = [self._peer.mask(one, piece)[halo:-halo, halo:-halo] for one, piece in answer]
        return np.concatenate(parts)[: len(strip)]

    def close(self) -> None:
        """Give back what the tiler holds."""
        self._peer.close()

    def _pieces(self, strip: Lines) -> Iterator[Lines]:
        return pieces(strip, self._halo, self._lines)


def _piecewise(bench: Bench, make: Callable[[], Peer]) -> Callable[[], Peer]:
    return lambda: Piecewise(make(), bench.halo, LATENCY_LINES)


def _engine(runtime: Runtime, precision: str) -> str:
    return f"{TITLES[runtime]} {precision.upper()}"


def _ours(bench: Bench, key: str, how: str, options: dict[str, Any], runtime: Runtime, precision: str, width: int) -> Entry:
    def make() -> Peer:
        from benchmarks.peers_bench.systems.station import StationSegmenter

        return StationSegmenter("rust-edge", how, {"bundle": bench.unets[precision], **options}, runtime, bench.threads, width)

    return Entry(key, "ours", make, "rust-edge", _engine(runtime, precision))


def _whole(bench: Bench, key: str, options: dict[str, Any], runtime: Runtime) -> Entry:
    def make() -> Peer:
        from benchmarks.peers_bench.systems.station import StationPipeline

        how = "the whole pipeline to events, " + ("cascade" if "gate" in options else "line-streaming, chunks of 256 lines")
        return StationPipeline("rust-edge", how, {"bundle": bench.unets["int8"], **options}, runtime, bench.threads)

    return Entry(key, "ours", make, "rust-edge", _engine(runtime, "int8"))


def _seed(bench: Bench, key: str, name: str, cut: Slicing | None = None, gated: bool = False) -> Entry:
    def make() -> Peer:
        from benchmarks.peers_bench.systems.seed_loop import LOOP, SeedLoop

        return SeedLoop(bench.network, name, cut or LOOP, gate=bench.gate("openvino") if gated else None)

    return Entry(key, "seed", make, name, "torch eager FP32")


def _seed_sample(network: Callable[[], PitsUNet], key: str, name: str, tiles: int) -> Entry:
    def make() -> Peer:
        from benchmarks.peers_bench.systems import seed_loop

        module = network()
        classes = seed_loop.above_half if module.final_conv.out_channels == 1 else seed_loop.classes_of_logits
        return seed_loop.SeedLoop(module, name, prepared=seed_loop.grey_unit, classes=classes, sample=tiles)

    return Entry(key, "seed", make, name, "torch eager FP32", lambda peer, strip: peer.inspected(strip.lines), whole=False)


def _monai(bench: Bench, runtime: Runtime, precision: str, cut: Slicing | None = None, gated: bool = False) -> Callable[[], Peer]:
    def make() -> Peer:
        from benchmarks.peers_bench.systems.monai_windows import WINDOWS, MonaiWindows

        return MonaiWindows(bench.engine(runtime, precision, 1), cut or WINDOWS, bench.gate(runtime) if gated else None)

    return make


def _sahi(bench: Bench, runtime: Runtime, precision: str, cut: Slicing | None = None, gated: bool = False) -> Callable[[], Peer]:
    def make() -> Peer:
        from benchmarks.peers_bench.systems.sahi_slices import SLICES, SahiSlices

        return SahiSlices(bench.engine(runtime, precision, 1), cut or SLICES, bench.gate(runtime) if gated else None)

    return make


def _supervision(
    bench: Bench, runtime: Runtime, precision: str, cut: Slicing | None = None, gated: bool = False
) -> Callable[[], Peer]:
    def make() -> Peer:
        from benchmarks.peers_bench.systems.supervision_slices import SLICES, SupervisionSlices

        # a single slice has nothing to share among workers
        workers = 1 if cut is not None and not cut.border else bench.threads
        engine = bench.engine(runtime, precision, workers)
        return SupervisionSlices(engine, cut or SLICES, bench.gate(runtime) if gated else None, workers)

    return make


def _model_api(bench: Bench, cut: Slicing | None, gated: bool) -> Callable[[], Peer]:
    def make() -> Peer:
        from benchmarks.peers_bench.systems.model_api_tiles import TILES, ModelApiTiles

        bundle = open_bundle(bench.unets["int8"])
        return ModelApiTiles(bundle, bench.threads, cut or TILES, bench.gate("openvino") if gated else None)

    return make
