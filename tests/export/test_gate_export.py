"""A gate that scores cells, from its checkpoint to a bundle: how it sees a strip, where its threshold comes from."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from small_checkpoints import TILE_GATE, gate_data, random_gate, random_tile_gate, steel_image
from torch import nn

from calibration.gate_recall import ScoredMap
from edge.bundle import check_golden, open_bundle
from edge.errors import RustEdgeError, SessionError
from edge.manifest import Manifest
from edge.sessions import Session, StreamingSession
from edge.sessions.ort import OrtSession, OrtStreamingSession
from export.cell_form import CellForm
from export.checkpoints import checkpoint_of
from export.errors import ExportError
from export.exporter import Exported, ExportOptions, export_bundle
from export.gate_quality import GateReading, choose_threshold, measure_gate
from export.networks import find_architecture
from export.networks.gate import SteelGate
from export.parity import verify_stream
from export.passes.streaming import format_table, stream
from export.radius import Reach, measure_reach
from export.samples import ExportData, Labelled
from export.to_onnx import to_onnx, with_input_size

GATE = find_architecture("steel-gate")
REAL = [steel_image(seed, 200, 136, blobs=2 * (seed % 2)) for seed in range(8)]
SIMULATED = [steel_image(seed, 256, 320, blobs=3) for seed in range(50, 53)]


def data(simulated: list[Labelled] = SIMULATED) -> ExportData:
    return ExportData([image for image, _ in REAL[:4]], REAL, simulated=simulated)


def export(network: nn.Module, out: Path, shown: ExportData | None = None, **options: object) -> Exported:
    chosen = ExportOptions(threads=1, **options)  # type: ignore[arg-type]
    return export_bundle(checkpoint_of(network, "gate.pt"), GATE, shown or data(), out, chosen)


@pytest.fixture(scope="module")
def network() -> SteelGate:
    """A narrow gate that a few steps have taught to tell defects from steel."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    gate = SteelGate(widths=(8, 8, 16)).train()
    optimizer = torch.optim.Adam(gate.parameters(), 1e-2)
    for step in range(40):
        images, masks = zip(*(steel_image(1000 + step * 8 + index, 128, 128) for index in range(8)), strict=True)
        truth = torch.from_numpy(np.stack(masks) > 0).float()[:, None]
        logits = gate(torch.from_numpy(np.stack([halved(image) for image in images]))[:, None])
        loss = nn.functional.binary_cross_entropy_with_logits(logits, nn.functional.max_pool2d(truth, 32))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return gate.eval()


@pytest.fixture(scope="module", params=["fp32", "int8"])
def gate(network: SteelGate, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(network, tmp_path_factory.mktemp("gate") / request.param, precision=request.param, max_drop=100.0)


@pytest.fixture(params=["ort", "openvino"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "openvino":
        pytest.importorskip("openvino")
    return str(request.param)


def session_of(backend: str, path: Path) -> Session:
    if backend == "ort":
        return OrtSession(path, threads=1)
    from edge.sessions.ov import OvSession

    return OvSession(path, threads=1)


def stream_of(backend: str, exported: Exported, width: int, lines: int) -> StreamingSession:
    path, streaming = exported.bundle.stream_path, exported.bundle.manifest.streaming
    assert path is not None
    assert streaming is not None
    if backend == "ort":
        return OrtStreamingSession(path, streaming, width, lines, threads=1)
    from edge.sessions.ov import OvStreamingSession

    return OvStreamingSession(path, streaming, width, lines, threads=1)


def halved(image: np.ndarray) -> np.ndarray:
    """Averages of 2x2 pixels, rounded half up, as cv2.INTER_AREA makes them."""
    return ((image.reshape(image.shape[0] // 2, 2, -1, 2).astype(np.int32).sum(axis=(1, 3)) + 2) // 4).astype(np.uint8)


def plain_map(session: Session, image: np.ndarray) -> np.ndarray:
    """Probability of a defect per cell of 32x32 px, step by step: reflected around, averaged, asked, cut out."""
    rows, columns = (-(-side // 32) for side in image.shape)
    padded = np.pad(
        image, [(128, 128 + 32 * cells - side) for side, cells in zip(image.shape, (rows, columns), strict=True)], "reflect"
    )
    logits = session.infer(halved(padded)[None, None])[0, 0, 4 : 4 + rows, 4 : 4 + columns].astype(np.float64)
    return (1 / (1 + np.exp(-logits))).astype(np.float32)


def plain_regions(mask: np.ndarray) -> Iterator[set[tuple[int, int]]]:
    """The cells of each region of at least 8 px."""
    whole = np.pad(mask, [(0, -side % 32) for side in mask.shape], "reflect")
    count, labels = cv2.connectedComponents((whole > 0).astype(np.uint8), connectivity=8)
    for number in range(1, count):
        places = np.argwhere(labels == number)
        if len(places) >= 8:
            yield {(line // 32, column // 32) for line, column in places.tolist()}


def test_a_gates_bundle_opens_on_a_station_and_either_runtime_answers_as_verified(gate: Exported, backend: str) -> None:
    bundle = open_bundle(gate.bundle.path)
    assert set(bundle.manifest.files) == {"model.onnx", "stream.onnx", "golden.npz", "report.html", "report.json"}
    with session_of(backend, bundle.model_path) as session:
        assert check_golden(bundle, session).labels == 16 * 16 * 16
    golden = bundle.golden()
    assert (golden.patches.shape, golden.scores.shape, golden.labels.shape) == (
        (16, 128, 128),
        (16, 1, 16, 16),
        (16, 16, 16),
    )


def test_its_manifest_says_how_it_sees_a_strip(gate: Exported) -> None:
    manifest = gate.bundle.manifest
    assert (manifest.kind, manifest.cell, manifest.input.reduce, manifest.stride) == ("classifier", 16, 2, 16)
    # 4x4/2, then 3x3 at strides 2, 4, 8, 8, 16, 16: 1 + 2 + 4 + 8 + 8 + 16 + 16 px beyond the cell's own
    assert (manifest.radius, manifest.halo) == (55, 64)
    assert manifest.input.tile_height == manifest.input.tile_width == 128 + 2 * 64
    assert manifest.streaming is not None
    assert (manifest.streaming.cell, manifest.streaming.lag_lines) == (16, 48)


def test_the_streaming_pass_derives_the_radius_that_is_measured() -> None:
    model = to_onnx(random_gate(), 128, 128)
    assert measure_reach(model, 16) == Reach(16, 55)
    assert stream(model, 16).reach_lines == 55


def test_its_stream_is_explained(gate: Exported) -> None:
    assert gate.streamed is not None
    assert "scores of cells of 16 x 16 pixels trail the newest line by 48 lines" in format_table(gate.streamed)


@pytest.mark.parametrize(("chunk_lines", "lines", "columns"), [(16, 96, 80), (48, 208, 144), (160, 208, 48), (256, 80, 64)])
def test_lines_in_chunks_of_any_height_give_the_scores_of_one_inference(
    gate: Exported, backend: str, chunk_lines: int, lines: int, columns: int
) -> None:
    """A run is reflected by the halo at its four sides, in front of its first line and beyond its last one."""
    halo, lag = 64, 48
    strip = np.random.default_rng(lines).integers(0, 256, (lines, columns), np.uint8)
    around = np.pad(strip, halo, mode="reflect")
    steps = -(-(len(around) + lag) // chunk_lines)
    fed = np.pad(around, ((0, steps * chunk_lines - len(around)), (0, 0)))
    with stream_of(backend, gate, around.shape[1], chunk_lines) as running:
        parts = [running.step(chunk[None, None]).copy() for chunk in fed.reshape(steps, chunk_lines, -1)]
        assert running.lag_lines == lag
    streamed = np.concatenate(parts, axis=2)
    with session_of(backend, gate.bundle.model_path) as session:
        whole = session.infer(around[None, None])
    first = (halo + lag) // 16  # row r of all parts is the cell at line 16 r - lag of what was fed
    inside = streamed[:, :, first : first + lines // 16, 4:-4], whole[:, :, 4:-4, 4:-4]
    if gate.bundle.manifest.precision == "int8":
        np.testing.assert_array_equal(*inside)
    else:  # float kernels add up otherwise for another shape
        np.testing.assert_allclose(*inside, atol=1e-4 * np.ptp(whole))


def test_a_stream_of_other_cells_than_the_manifest_says_is_refused(gate: Exported, backend: str) -> None:
    bundle = gate.bundle
    assert bundle.manifest.streaming is not None
    wrong = bundle.manifest.model_copy(update={"streaming": bundle.manifest.streaming.model_copy(update={"cell": 8})})
    described = dataclasses.replace(gate, bundle=dataclasses.replace(bundle, manifest=wrong))
    with pytest.raises(SessionError, match=r"for a chunk \(1, 1, 32, 64\), expected float32 or uint8, 4 x 8 of them"):
        stream_of(backend, described, 64, 32)
    with pytest.raises(SessionError, match="got chunks of 24 lines and 64 columns, expected multiples of 16"):
        stream_of(backend, gate, 64, 24)


def test_a_cell_depends_on_the_halo_around_it_alone(gate: Exported, backend: str) -> None:
    image = np.random.default_rng(1).integers(0, 256, (1, 1, 384, 320), np.uint8)
    other = image.copy()
    other[:, :, :112] = other[:, :, 272:] = other[:, :, :, :80] = other[:, :, :, 240:] = 0
    with session_of(backend, gate.bundle.model_path) as session:
        scores, changed = (session.infer(shown)[:, :, 11:13, 9:11].copy() for shown in (image, other))
    np.testing.assert_allclose(changed, scores, atol=0 if gate.bundle.manifest.precision == "int8" else 1e-4 * np.ptp(scores))


def test_the_threshold_is_the_highest_that_finds_every_region_on_real_and_on_simulated_steel(gate: Exported) -> None:
    manifest = gate.bundle.manifest
    assert manifest.gate is not None
    weakest = {}
    with OrtSession(gate.bundle.model_path, threads=1) as session:
        for kind, images in (("real", REAL), ("simulated", SIMULATED)):
            peaks = [
                max(scores[cell] for cell in region)
                for image, mask in images
                for scores in [plain_map(session, image)]
                for region in plain_regions(mask)
            ]
            weakest[kind] = min(peaks)
            assert manifest.quality[f"regions_{kind}"] == len(peaks)
            assert manifest.quality[f"region_recall_{kind}"] == 1.0
    assert manifest.gate.recall == 1.0
    assert min(weakest.values()) - 2e-6 < manifest.gate.score <= min(weakest.values())


def test_figures_are_told_by_kind_of_steel_and_of_the_float_engine_too(gate: Exported) -> None:
    manifest = gate.bundle.manifest
    assert manifest.gate is not None
    wanted = {
        f"{figure}{kind}{engine}"
        for figure in ("region_recall", "defect_pixels_covered", "clean_cells_alarmed")
        for kind in ("", "_real", "_simulated")
        for engine in ("", "_float")
    }
    assert wanted <= set(manifest.quality)
    quality = manifest.quality
    both = quality["clean_cells_real"] + quality["clean_cells_simulated"]
    assert quality["clean_cells"] == both
    alarmed = sum(quality[f"clean_cells_alarmed_{kind}"] * quality[f"clean_cells_{kind}"] for kind in ("real", "simulated"))
    assert manifest.gate.passed_clean == pytest.approx(alarmed / both)
    # it was taught what defects look like: most of the clean steel is left alone
    assert manifest.gate.passed_clean < 0.5
    report = json.loads((gate.bundle.path / "report.json").read_text())
    rows = {(row["engine"], row["steel"]): row for row in report["sections"]["Quality"]}
    assert set(rows) == {(engine, steel) for engine in (manifest.precision, "float") for steel in ("all", "real", "simulated")}
    assert rows[manifest.precision, "real"]["clean alarmed"] == quality["clean_cells_alarmed_real"]
    choices = report["sections"]["Choice of the threshold"]
    assert [row["recall"] for row in choices] == [0.95, 0.98, 0.99, 0.995, 0.999, 1.0]
    assert choices[-1]["threshold"] == manifest.gate.score
    # a higher recall wants a lower threshold, which alarms more clean steel
    for name, sign in (("threshold", -1), ("clean alarmed, real", 1), ("clean alarmed, simulated", 1)):
        assert all(sign * (after[name] - before[name]) >= 0 for before, after in itertools.pairwise(choices))
    compared = {row["compared"] for row in report["sections"]["Agreement"]}
    assert {"source and ONNX", "tiles and stream"} <= compared


def test_an_int8_gate_has_the_threshold_of_its_own_answers_and_integers_for_its_state(gate: Exported) -> None:
    manifest = gate.bundle.manifest
    assert manifest.gate is not None
    assert manifest.streaming is not None
    own = manifest.gate.score != manifest.quality["threshold_float"]
    kept = {state.dtype for state in manifest.streaming.states}
    assert (own, kept) == ((True, {"int8"}) if manifest.precision == "int8" else (False, {"float32"}))


def test_with_images_alone_there_is_one_kind_of_steel(network: SteelGate, tmp_path: Path) -> None:
    quality = export(network, tmp_path / "gate", data([])).bundle.manifest.quality
    assert "region_recall_real" in quality
    assert not any("simulated" in name for name in quality)


def test_probabilities_stream_as_well(network: SteelGate, tmp_path: Path, backend: str) -> None:
    exported = export(network, tmp_path / "gate", head="probabilities")
    assert exported.bundle.manifest.head == "probabilities"
    with stream_of(backend, exported, 64, 32) as running:
        scores = running.step(np.zeros((1, 1, 32, 64), np.uint8))
    assert scores.shape == (1, 1, 2, 4)
    assert 0.0 <= scores.min() <= scores.max() <= 1.0


def test_steel_without_a_clean_cell_or_without_a_defect_gives_no_threshold(network: SteelGate, tmp_path: Path) -> None:
    image, mask = REAL[0]
    with pytest.raises(RustEdgeError, match="1 defects and no clean cell"):
        export(network, tmp_path / "gate", ExportData([image], [(image, np.ones_like(mask))]))
    with pytest.raises(RustEdgeError, match="no defect of at least 8 px"):
        export(network, tmp_path / "gate", ExportData([image], [(image, np.zeros_like(mask))]))
    with pytest.raises(ExportError, match=r"steel-gate needs labelled images \(--masks\)"):
        export(network, tmp_path / "gate", ExportData([image]))
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_answers_for_whole_tiles_is_no_gate_of_cells(tmp_path: Path) -> None:
    cells = dataclasses.replace(TILE_GATE, cell=16)
    with pytest.raises(ExportError, match="answers one score to a tile of 128x128, tile-gate scores cells of 16x16"):
        export_bundle(checkpoint_of(random_tile_gate(), "gate.pt"), cells, gate_data(), tmp_path / "gate")
    other = dataclasses.replace(GATE, cell=8)
    with pytest.raises(ExportError, match="answers 8x8 to a tile of 128x128, steel-gate scores cells of 8x8"):
        export_bundle(checkpoint_of(random_gate(), "gate.pt"), other, gate_data(), tmp_path / "gate")


def test_a_stream_with_another_lag_is_found_out() -> None:
    model = with_input_size(to_onnx(random_gate(), 128, 128), "height", "width")
    streamed = stream(model, 16)
    from edge.manifest import Streaming

    streaming = Streaming(lag_lines=streamed.lag_lines + 16, cell=16, states=streamed.states)
    strip = np.random.default_rng(0).integers(0, 256, (256, 192), np.uint8)

    def open_stream(width: int, lines: int) -> OrtStreamingSession:
        return OrtStreamingSession(streamed.model.SerializeToString(), streaming, width, lines, threads=1)

    with (
        OrtSession(model.SerializeToString(), threads=1) as session,
        pytest.raises(ExportError, match="the streaming graph differs from the tile graph"),
    ):
        verify_stream(open_stream, session, streaming, 64, strip, "sigmoid")


def one_region(score: float, clean: float) -> ScoredMap:
    """Two cells of 8 px, one of which is all defect."""
    mask = np.zeros((8, 24), np.uint8)
    mask[:, :8] = 1
    return ScoredMap(np.array([[score, clean, clean]], np.float32), mask, 8)


@pytest.mark.parametrize(
    ("real", "simulated", "threshold"),
    [([0.9, 0.5], [0.8, 0.6], 0.8), ([0.9, 0.5], [0.3, 0.2], 0.3), ([0.4, 0.1], [0.8, 0.6], 0.4), ([0.4, 0.1], [], 0.4)],
)
def test_the_recall_is_kept_on_each_kind_of_steel_by_itself(real: list[float], simulated: list[float], threshold: float) -> None:
    maps = {name: [one_region(score, 0.0) for score in scores] for name, scores in (("real", real), ("simulated", simulated))}
    chosen = choose_threshold(maps, 0.5, 8)
    assert np.float32(threshold) - 1e-6 <= chosen <= np.float32(threshold)


class Constant:
    """A session that gives every cell the same logit."""

    backend, steps = "constant", None

    def __init__(self, logit: float) -> None:
        self._logit = logit

    def infer(self, batch: np.ndarray) -> np.ndarray:
        return np.full((len(batch), 1, batch.shape[2] // 16, batch.shape[3] // 16), self._logit, np.float32)


def test_a_loss_counts_both_missed_regions_and_alarmed_steel_at_the_float_engines_threshold() -> None:
    reading = GateReading(CellForm(16, 2, Reach(16, 55)), "sigmoid", recall=1.0)
    steels = {"real": REAL}
    above, below = (measure_gate(Constant(logit), steels, reading, held_at=0.5) for logit in (2.0, -2.0))  # type: ignore[arg-type]
    assert (above.held.recall, above.held.alarmed_clean, above.judged) == (1.0, 1.0, 0.0)
    assert (below.held.recall, below.held.alarmed_clean, below.judged) == (0.0, 0.0, 0.0)
    # at a threshold of its own it still finds everything, and alarms everything
    assert (below.threshold.recall, below.threshold.passed_clean) == (1.0, 1.0)


def test_a_fixed_threshold_is_stored_as_it_is() -> None:
    reading = GateReading(CellForm(16, 2, Reach(16, 55)), "sigmoid", recall=1.0, fixed=0.75)
    quality = measure_gate(Constant(2.0), {"real": REAL}, reading)  # type: ignore[arg-type]
    assert (quality.threshold.score, quality.threshold.recall) == (0.75, 1.0)


def test_the_manifest_of_a_gate_of_cells_survives_being_written(gate: Exported) -> None:
    manifest = gate.bundle.manifest
    assert Manifest.model_validate(manifest.model_dump(mode="json")) == manifest
