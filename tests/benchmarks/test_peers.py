"""The comparison with other tilers: its arithmetic, and that every peer given enough halo finds what the dense network finds."""

from __future__ import annotations

import json
from importlib import import_module

import numpy as np
import pytest

from benchmarks.peers_bench import page, ratios
from benchmarks.peers_bench.agreement import agreement, dense_reference
from benchmarks.peers_bench.engines import Engine
from benchmarks.peers_bench.gate import TILE, TileGate, passed, tile_scores
from benchmarks.peers_bench.line_up import Piecewise
from benchmarks.peers_bench.network import prototype_unet, seed_unet, steel_unet
from benchmarks.peers_bench.plot import Bar, draw
from benchmarks.peers_bench.rounds import Entry, run_section
from benchmarks.peers_bench.slicing import Slicing, core_slicing, framed, pieces, regions, unframed
from benchmarks.peers_bench.strips import Strip, clean_share, planted_found, sparse_strip
from benchmarks.peers_bench.systems.seed_loop import SeedLoop
from benchmarks.peers_bench.systems.station import StationPipeline, StationSegmenter
from edge.bundle import open_bundle
from edge.config import Scale, SimulatedDefects
from edge.engines import dense_halo
from edge.scores import Bytes
from edge.sources.steel_strip import SteelStrip
from export.errors import ExportError

CORE = (128, 128)


@pytest.fixture(scope="module")
def bundle():
    return open_bundle("steel-unet-fp32")


@pytest.fixture(scope="module")
def network(bundle):
    import torch

    torch.set_num_threads(1)
    return steel_unet(bundle.model_path)


@pytest.fixture(scope="module")
def strip() -> Bytes:
    """Simulated steel full of defects, a few cores large."""
    often = SimulatedDefects(rust_every_mm=20, pit_every_mm=20, inclusion_every_mm=20, scratch_every_mm=60)
    lines = SteelStrip(1024, 3, often, Scale()).lines(512, 192)
    return np.ascontiguousarray(lines[:, 320:640])


@pytest.fixture(scope="module")
def dense(network, bundle, strip) -> Bytes:
    mask = dense_reference(network, strip, dense_halo(bundle))
    assert len(regions(mask, mask, 8)) >= 3
    return mask


def test_torch_answers_as_the_engine_file_that_its_weights_come_from(bundle, network):
    widths = [
        block[0].out_channels for block in (network.stem, network.encoder_4[0], network.encoder_8[0], network.encoder_16[0])
    ]
    assert widths == sorted(widths)
    assert sum(weights.numel() for weights in network.parameters()) == bundle.manifest.parameters


def test_weights_of_another_network_are_refused():
    with pytest.raises(ExportError, match="not those of SteelUNet"):
        steel_unet(open_bundle("steel-gate-fp32").model_path)


def test_the_seed_systems_networks_have_the_widths_that_they_are_named_by():
    assert [down.conv[0].out_channels for down in seed_unet().downs] == [64, 128, 256, 512]
    assert [down.conv[0].out_channels for down in prototype_unet().downs] == [16, 32, 64, 128]
    assert seed_unet().bottleneck.conv[0].out_channels == 1024


def test_the_dense_reference_does_not_depend_on_its_slabs(network, bundle, strip, dense, monkeypatch):
    monkeypatch.setattr("benchmarks.peers_bench.agreement._SLAB_LINES", 64)
    assert np.mean(dense_reference(network, strip, dense_halo(bundle)) != dense) < 1e-4


def test_the_station_finds_what_the_dense_network_finds(strip, dense):
    station = StationSegmenter("rust-edge", "", {"bundle": "steel-unet-fp32"}, "ort", 1, strip.shape[1])
    station.run(strip)
    assert np.mean(station.mask(station.run(strip), strip) != dense) < 1e-4
    station.close()


def test_a_pipeline_gives_the_masks_of_its_segmenter_in_every_round(strip, dense):
    station = StationPipeline("rust-edge", "", {"bundle": "steel-unet-fp32"}, "ort", 1)
    for _ in range(2):
        station.prepare(strip)
        assert np.mean(station.mask(station.run(strip), strip) != dense) < 1e-4
    station.close()


def test_the_seed_loop_with_the_whole_halo_finds_what_the_dense_network_finds(network, bundle, strip, dense):
    loop = SeedLoop(network, slicing=core_slicing(CORE, dense_halo(bundle)))
    assert np.mean(loop.mask(loop.run(strip), strip) != dense) < 1e-4


@pytest.mark.peers
@pytest.mark.parametrize(
    ("module", "system", "allowed"),
    [
        ("monai_windows", "MonaiWindows", 1e-4),
        ("supervision_slices", "SupervisionSlices", 1e-4),
        # polygons do not hold regions of one or two pixels' width
        ("sahi_slices", "SahiSlices", 2e-3),
    ],
)
def test_a_peer_with_the_whole_halo_finds_what_the_dense_network_finds(module, system, allowed, bundle, strip, dense):
    peer = _peer(module, system, Engine("ort", bundle, 1), core_slicing(CORE, dense_halo(bundle), smallest_px=1))
    assert np.mean(peer.mask(peer.run(strip), strip) != dense) < allowed
    peer.close()


@pytest.mark.peers
def test_model_api_with_the_whole_halo_finds_what_the_dense_network_finds(bundle, strip, dense):
    peer = _peer("model_api_tiles", "ModelApiTiles", bundle, 1, core_slicing(CORE, dense_halo(bundle)))
    assert np.mean(peer.mask(peer.run(strip), strip) != dense) < 1e-4


@pytest.mark.peers
@pytest.mark.parametrize(("module", "system"), [("supervision_slices", "SupervisionSlices"), ("sahi_slices", "SahiSlices")])
def test_pieces_with_their_halo_give_the_dense_mask(module, system, bundle, strip, dense):
    halo = dense_halo(bundle)
    whole = Slicing((64 + 2 * halo, strip.shape[1] + 2 * halo), (0, 0), margin=halo, smallest_px=1)
    peer = Piecewise(_peer(module, system, Engine("ort", bundle, 1), whole), halo, 64)
    assert np.mean(peer.mask(peer.run(strip), strip) != dense) < 2e-3
    peer.close()


@pytest.mark.peers
@pytest.mark.parametrize(
    ("module", "system"),
    [
        ("seed_loop", "SeedLoop"),
        ("monai_windows", "MonaiWindows"),
        ("supervision_slices", "SupervisionSlices"),
        ("sahi_slices", "SahiSlices"),
        ("model_api_tiles", "ModelApiTiles"),
    ],
)
def test_behind_the_gate_a_peer_has_the_dense_mask_on_alarmed_tiles_and_nothing_elsewhere(
    module, system, bundle, network, monkeypatch
):
    often = SimulatedDefects(rust_every_mm=30, pit_every_mm=30, inclusion_every_mm=30, scratch_every_mm=None)
    lines = np.ascontiguousarray(SteelStrip(1024, 3, often, Scale()).lines(512, TILE)[:, TILE : 3 * TILE])
    halo = dense_halo(bundle)
    reference = dense_reference(network, lines, halo)
    assert reference[:, :TILE].any()
    assert reference[:, TILE:].any()
    gate = TileGate("steel-gate-fp32", "ort", 1)
    monkeypatch.setattr(gate, "alarms", lambda strip: np.array([[True, False]]))
    cut = core_slicing((TILE, TILE), halo, smallest_px=1)
    made = {"seed_loop": (network,), "model_api_tiles": (bundle, 1)}.get(module) or (Engine("ort", bundle, 1),)
    options = {"slicing": cut, "gate": gate}
    peer = _peer(module, system, *made, **options)
    mask = peer.mask(peer.run(lines), lines)
    assert not mask[:, TILE:].any()
    assert np.mean(mask[:, :TILE] != reference[:, :TILE]) < 2e-3


def test_a_gate_is_asked_about_every_tile_and_what_the_last_ones_lack_is_reflected():
    gate = TileGate("steel-gate-int8", "ort", 1)
    steel = SteelStrip(2048, 1, SimulatedDefects(), Scale(), clean=True).lines(0, 300)[:, 512:1112]
    alarms = gate.alarms(np.ascontiguousarray(steel))
    gate.close()
    assert alarms.shape == (2, 3)
    assert passed(None, 0, 0)


def test_a_map_gate_s_verdict_of_a_tile_is_its_highest_cell():
    manifest = open_bundle("steel-gate-int8").manifest.model_copy(update={"activation": "sigmoid", "head": "logits"})
    cells = np.full((2, 1, 8, 8), -9.0, np.float32)
    cells[1, 0, 3, 7] = 0.0
    scores = tile_scores(cells, manifest)
    assert scores.shape == (2,)
    assert scores[1] == 0.5
    assert scores[0] < 0.001


def test_framed_strips_have_whole_slices_and_come_back_as_they_were():
    strip = np.random.default_rng(0).integers(0, 256, (100, 70), dtype=np.uint8)
    cut = core_slicing((32, 32), 8)
    image = framed(strip, cut)
    assert [(length - 16) % 32 for length in image.shape] == [0, 0]
    assert np.array_equal(unframed(image, cut, strip.shape), strip)
    assert cut.slices(image.shape) == 4 * 3


def test_pieces_of_a_strip_hold_every_line_with_its_halo():
    strip = np.random.default_rng(0).integers(0, 256, (100, 40), dtype=np.uint8)
    found = list(pieces(strip, 16, 32))
    assert [piece.shape for piece in found] == [(64, 72)] * 4
    assert np.array_equal(np.concatenate([piece[16:-16, 16:-16] for piece in found])[:100], strip)


def test_regions_are_connected_pixels_of_one_class():
    mask = np.zeros((8, 12), np.uint8)
    mask[1:3, 1:5], mask[3, 5], mask[5:8, 8:12] = 1, 1, 2
    confidence = np.where(mask, 51, 0).astype(np.uint8)
    confidence[2, 2] = 255
    first, second = regions(mask, confidence, 1)
    assert (first.kind, first.left, first.top, first.mask.shape, int(first.mask.sum()), first.score) == (1, 1, 1, (3, 5), 9, 1.0)
    assert (second.kind, second.left, second.top, int(second.mask.sum()), second.score) == (2, 8, 5, 12, 0.2)
    assert [region.kind for region in regions(mask, confidence, 10)] == [2]


def test_a_defect_is_found_where_the_mask_has_its_class_and_extra_where_the_reference_has_none():
    reference = np.zeros((40, 40), np.uint8)
    reference[2:8, 2:8], reference[20:26, 2:8], reference[30, 30] = 1, 2, 1
    mask = np.zeros_like(reference)
    mask[7:9, 7:30], mask[20:26, 2:8], mask[30:36, 20:26] = 1, 1, 2
    found = agreement(mask, reference)
    assert (found.defects, found.found, found.extra) == (2, 1, 2)
    assert found.recall == 0.5
    same = agreement(reference, reference)
    assert (same.iou, same.changed, same.found, same.extra) == (1.0, 0.0, 2, 0)


def test_a_class_that_only_one_of_two_masks_has_counts_against_their_agreement():
    reference, mask = np.zeros((10, 10), np.uint8), np.zeros((10, 10), np.uint8)
    mask[:5] = 1
    found = agreement(mask, reference)
    assert (found.iou, found.changed) == (0.25, 0.5)


def test_sparse_strips_are_as_clean_as_asked_and_know_their_truth():
    strip = sparse_strip(0.9, 2048, 1024, seed=5)
    assert strip.tiles == 32
    assert abs(strip.clean - 0.9) <= 2 / 32
    assert strip.clean == clean_share(strip.truth)
    wanted, met = planted_found(strip, strip.truth)
    assert met == wanted > 0
    assert planted_found(strip, np.zeros_like(strip.truth))[1] == 0


def test_a_sample_of_tiles_stands_for_its_share_of_the_strip():
    loop = SeedLoop(prototype_unet(), slicing=Slicing((64, 64), (16, 16)), sample=3)
    strip = np.zeros((64, 48 * 5 + 16), np.uint8)
    assert loop.inspected(strip) == 3 / 5


def test_every_tile_of_the_loop_lies_on_the_strip_and_together_they_cover_it(network):
    loop = SeedLoop(network, slicing=Slicing((64, 64), (16, 16)))
    covered = np.zeros((100, 170), bool)
    for top, left in loop._places(covered.shape):
        assert top + 64 <= 100
        assert left + 64 <= 170
        covered[top : top + 64, left : left + 64] = True
    assert covered.all()


def _record(section: str, key: str, speed: float, engine: str = "OpenVINO INT8", **more: object) -> dict[str, object]:
    facts = {"section": section, "key": key, "role": key.partition("/")[0].replace("gated", "peer"), "strip": "s", "name": key}
    speeds = {"mpx_per_cpu_s": speed, "mpx_per_s": 2 * speed}
    return {**facts, "engine": engine, "precision": "int8", "how": "so", "megapixels": 1.0, **speeds, **more}


DENSE = [
    _record("dense", "ours/stream-256/ort", 5.0, "ONNX Runtime INT8"),
    _record("dense", "ours/stream-256/openvino", 6.0),
    _record("dense", "peer/a", 2.0),
    _record("dense", "peer/b", 3.0),
    _record("dense", "peer/c", 4.0, "ONNX Runtime INT8"),
    _record("dense", "seed/same", 1.0, "torch eager FP32"),
]


def test_the_best_peer_is_the_fastest_with_the_same_engine():
    found = {ratio.title.partition(", ")[2]: ratio for ratio in ratios.ratios(DENSE, [])}
    best = found["against the best peer with the same engine, overlap as they recommend"]
    assert (best.theirs["key"], best.cpu, best.wall) == ("peer/b", 2.0, None)
    assert found["against the seed loop with the same network"].cpu == 6.0


def test_without_openvino_ours_and_theirs_run_onnx_runtime():
    without = [record for record in DENSE if "OpenVINO" not in record["engine"]]
    found = {ratio.title.partition(", ")[2]: ratio for ratio in ratios.ratios(without, [])}
    best = found["against the best peer with the same engine, overlap as they recommend"]
    assert (best.ours["key"], best.theirs["key"], best.cpu) == ("ours/stream-256/ort", "peer/c", 1.25)


def test_behind_the_gate_the_seed_loop_is_not_taken_for_a_peer():
    records = [
        _record("clean-95", "ours/cascade/openvino", 60.0),
        _record("clean-95", "gated/a", 30.0),
        _record("clean-95", "seed/gated", 90.0, "OpenVINO INT8"),
        _record("clean-95", "seed/prototype", 0.5, "torch eager FP32"),
    ]
    found = {ratio.theirs["key"]: ratio.wall for ratio in ratios.ratios([], records)}
    assert found == {"gated/a": 2.0, "seed/prototype": 120.0}


def test_the_page_holds_whatever_was_measured():
    results = json.loads(json.dumps(_results()))
    text = page.render(results)
    assert "| dense INT8, against the seed loop with the same network | 6.0 | 6.0 |" in text
    assert "x with y: is not installed" in text
    assert "99.0%" in text
    assert all(line.count("|") == 10 for line in text.splitlines() if line.startswith("| peer/"))
    assert set(page.plots(results)) == {"peers-dense.svg"}
    results["runs"].pop("all_cores")
    assert "| dense INT8, against the seed loop with the same network | 6.0 |  |" in page.render(results)


def test_a_plot_names_every_bar_and_its_value():
    svg = draw("speed", "Mpx/s", [Bar("ours & co", 8.0, "ours"), Bar("theirs", 0.5, "peer")])
    assert "ours &amp; co" in svg
    assert ">8<" in svg
    assert ">0.5<" in svg


def test_everybody_takes_a_turn_and_who_cannot_run_is_named_with_the_reason(strip, dense):
    def absent() -> StationSegmenter:
        raise ImportError("no such library")

    entries = [
        Entry("ours/a", "ours", lambda: _Painter(dense), "a", "engine"),
        Entry("peer/b", "peer", absent, "b", "engine"),
    ]
    records, missing = run_section("dense", Strip("s", strip), entries, 3, dense)
    assert [record["key"] for record in records] == ["ours/a"]
    assert (records[0]["iou"], len(records[0]["cpu_s"])) == (1.0, 3)
    assert missing == [{"name": "b", "engine": "engine", "reason": "no such library"}]


class _Painter:
    """A system that knows the answer."""

    name, engine, precision, how = "painter", "engine", "fp32", "by heart"

    def __init__(self, answer: Bytes) -> None:
        self._answer = answer

    def prepare(self, strip: Bytes) -> None:
        pass

    def run(self, strip: Bytes) -> int:
        return sum(range(10_000))

    def mask(self, answer: int, strip: Bytes) -> Bytes:
        return self._answer

    def close(self) -> None:
        pass


def _peer(module: str, system: str, *arguments: object, **options: object):
    try:
        found = getattr(import_module(f"benchmarks.peers_bench.systems.{module}"), system)
    except ImportError as error:
        pytest.skip(f"{error}; `make bench-peers` installs it in an environment of its own")
    return found(*arguments, **options)


def _results() -> dict[str, object]:
    records = [
        dict(record) | {"iou": 0.99, "changed": 0.01, "defects": 9, "found": 8, "extra": 1, "recall": 8 / 9} for record in DENSE
    ]
    records[-1] = dict(DENSE[-1])
    run = {"records": records, "absent": [{"name": "x", "engine": "y", "reason": "is not installed"}]}
    recall = {"strips": 2, "tiles": 64, "clean": 0.95, "engine": "e", "defects": 100, "found": 99, "extra": 0}
    recall |= {"planted": 9, "planted_dense": 9, "planted_cascade": 8}
    return {
        "date": "2026-01-01",
        "command": "make bench-peers",
        "commit": "abc",
        "machine": {"processor": "p", "cores": 2, "memory_gib": 4, "system": "Linux", "python": "3.12"},
        "load": [0.0, 2.0],
        "versions": {"torch": "2.13.0"},
        "credits": [{"name": "MONAI", "version": "1.6", "licence": "Apache-2.0", "page": "https://docs.monai.io"}],
        "rounds": 3,
        "strips": {"dense": {"name": "s", "lines": 64, "columns": 64}},
        "runs": {"one_thread": run | {"recall": recall}, "all_cores": run},
    }
