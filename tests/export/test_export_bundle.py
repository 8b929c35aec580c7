"""The whole way: a checkpoint to a bundle that a station opens."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from fragile_networks import SIDE, blobs_and_lines, made_fragile, taught
from small_checkpoints import CLASSES, TILE_GATE, gate_data, random_tile_gate, segmenter_data, steel_image, trained_unet

from edge.bundle import Bundle, check_golden, open_bundle
from edge.errors import BundleError, RustEdgeError
from edge.scores import classify
from edge.sessions.ort import OrtSession, OrtStreamingSession
from export import bundle as bundle_module
from export.bundle import Existing, check_target, share_weights
from export.checkpoints import Checkpoint, ModuleContent, checkpoint_of
from export.errors import ExportError
from export.exporter import Exported, ExportOptions, export_bundle
from export.fine_tuning import FineTuning
from export.networks import find_architecture
from export.samples import ExportData

UNET = find_architecture("steel-unet")


def export_unet(out: Path, **options: object) -> Exported:
    chosen = ExportOptions(classes=CLASSES, threads=1, **options)  # type: ignore[arg-type]
    return export_bundle(checkpoint_of(trained_unet(), "unet.pt"), UNET, segmenter_data(), out, chosen)


def export_gate(out: Path, data: ExportData | None = None, **options: object) -> Exported:
    chosen = ExportOptions(threads=1, **options)  # type: ignore[arg-type]
    return export_bundle(checkpoint_of(random_tile_gate(), "gate.pt"), TILE_GATE, data or gate_data(), out, chosen)


@pytest.fixture(scope="module", params=["fp32", "int8"])
def unet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export_unet(tmp_path_factory.mktemp("unet") / request.param, precision=request.param, max_drop=100.0)


@pytest.fixture(scope="module", params=["fp32", "int8"])
def gate(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export_gate(tmp_path_factory.mktemp("gate") / request.param, precision=request.param, max_drop=100.0)


def test_a_segmenters_bundle_opens_on_a_station_and_answers_as_verified(unet: Exported) -> None:
    bundle = open_bundle(unet.bundle.path)
    assert sorted(path.name for path in bundle.path.iterdir()) == sorted([*bundle.manifest.files, "manifest.yaml"])
    assert set(bundle.manifest.files) == {"model.onnx", "stream.onnx", "golden.npz", "report.html", "report.json"}
    with OrtSession(bundle.model_path, threads=1) as session:
        check_golden(bundle, session)
    assert len(bundle.golden().patches) >= 8


def test_its_manifest_says_what_was_measured(unet: Exported) -> None:
    manifest = unet.bundle.manifest
    assert (manifest.name, manifest.kind, manifest.classes) == (unet.bundle.path.name, "segmenter", CLASSES)
    assert (manifest.stride, manifest.radius) == (16, 100)
    # six small images cannot show that less than the whole radius would do
    assert manifest.halo == 112
    assert manifest.input.tile_height == manifest.input.tile_width == 256 + 2 * 112
    assert [share.halo for share in manifest.halo_shares] == list(range(0, 113, 16))
    assert manifest.halo_shares[-1].changed == 0
    assert set(manifest.thresholds) == {"dark", "bright"}
    assert manifest.quality["mean_iou"] > 0.5
    assert {"mean_iou_defects", "mean_iou_float", "iou_dark", "iou_background_float"} <= set(manifest.quality)
    assert manifest.source_checkpoint == checkpoint_of(trained_unet(), "unet.pt").sha256
    assert manifest.tools["torch"]


def test_its_tile_engine_has_a_static_tile_and_a_free_batch(unet: Exported) -> None:
    model = onnx.load(unet.bundle.model_path)
    side = unet.bundle.manifest.input.tile_height
    shape = model.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_value or d.dim_param for d in shape] == ["n", 1, side, side]
    assert (model.ir_version, model.opset_import[0].version) == (8, 17)


def test_its_streaming_engine_runs_at_any_width(unet: Exported) -> None:
    bundle = unet.bundle
    assert bundle.stream_path is not None
    assert bundle.manifest.streaming is not None
    for width in (16, 208):
        with OrtStreamingSession(bundle.stream_path, bundle.manifest.streaming, width, 32, threads=1) as stream:
            assert stream.step(np.zeros((1, 1, 32, width), np.uint8)).shape == (1, 3, 32, width)


def test_an_int8_bundle_is_a_third_of_the_float_one_or_less(tmp_path: Path) -> None:
    sizes = {p: export_gate(tmp_path / p, precision=p, max_drop=100.0).bundle.model_path.stat().st_size for p in ("fp32", "int8")}
    weights = 4 * sum(value.numel() for value in random_tile_gate().state_dict().values() if value.ndim == 4)
    assert sizes["fp32"] > weights
    assert sizes["fp32"] - sizes["int8"] > weights / 2


def test_the_report_holds_the_manifests_figures(unet: Exported) -> None:
    report = json.loads((unet.bundle.path / "report.json").read_text())
    assert report["summary"]["mean_iou"] == unet.bundle.manifest.quality["mean_iou"]
    assert [row["halo"] for row in report["sections"]["Halo"]] == [share.halo for share in unet.bundle.manifest.halo_shares]
    compared = {row["compared"]: row["max difference"] for row in report["sections"]["Agreement"]}
    assert compared["source and ONNX"] < 1e-4
    assert compared["tiles and stream"] < 0.01
    page = (unet.bundle.path / "report.html").read_text()
    assert "Receptive radius 100 px" in page
    assert "http" not in page
    assert str(Path.cwd()) not in page


def test_a_gates_bundle_has_its_threshold_from_labelled_tiles(gate: Exported) -> None:
    manifest = gate.bundle.manifest
    assert (manifest.kind, manifest.stride, manifest.radius, manifest.halo) == ("classifier", 16, 0, 0)
    assert (manifest.input.tile_height, manifest.input.reduce) == (128, 2)
    assert manifest.gate is not None
    assert manifest.gate.recall == 1.0
    assert manifest.quality["tiles_defective"] == manifest.quality["tiles_clean"] == 4
    assert gate.bundle.stream_path is None
    with OrtSession(gate.bundle.model_path, threads=1) as session:
        assert check_golden(gate.bundle, session).labels == 16


def test_the_same_checkpoint_and_images_give_the_same_bundle_bit_for_bit(tmp_path: Path) -> None:
    first, second = (export_gate(tmp_path / folder / "gate").bundle for folder in ("a", "b"))
    assert first.sha256 == second.sha256


def test_without_masks_a_segmenter_is_held_against_its_float_network(tmp_path: Path) -> None:
    data = ExportData([steel_image(seed)[0] for seed in range(3)])
    options = ExportOptions(classes=CLASSES, precision="int8", max_drop=100.0, threads=1)
    manifest = export_bundle(checkpoint_of(trained_unet(), ""), UNET, data, tmp_path / "unet", options).bundle.manifest
    assert set(manifest.quality) == {"agreement_iou", "images"}
    assert 0.5 < manifest.quality["agreement_iou"] < 1.0
    assert {threshold.high for threshold in manifest.thresholds.values()} == {0.5}


def test_a_gate_without_labelled_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"tile-gate needs labelled images \(--masks or --labels\)"):
        export_gate(tmp_path / "gate", ExportData(gate_data().calibration))
    assert list(tmp_path.iterdir()) == []


def test_a_gate_without_clean_tiles_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    defective = [labelled for labelled in gate_data().validation if labelled[1].any()]
    with pytest.raises(RustEdgeError, match="4 defective and 0 clean tiles"):
        export_gate(tmp_path / "gate", ExportData(gate_data().calibration, defective))
    assert list(tmp_path.iterdir()) == []


def test_a_loss_beyond_the_budget_is_refused_and_leaves_a_page_that_says_why(tmp_path: Path) -> None:
    data = ExportData([steel_image(seed)[0] for seed in range(2)])
    options = ExportOptions(classes=CLASSES, precision="int8", max_drop=0.0, threads=1)
    with pytest.raises(ExportError, match=r"INT8 loses .* points, expected at most 0\.00"):
        export_bundle(checkpoint_of(trained_unet(), ""), UNET, data, tmp_path / "unet", options)
    assert [path.name for path in tmp_path.iterdir()] == ["unet.refused.html"]
    export_bundle(checkpoint_of(trained_unet(), ""), UNET, data, tmp_path / "unet", ExportOptions(classes=CLASSES, threads=1))
    assert [path.name for path in tmp_path.iterdir()] == ["unet"]


def test_fine_tuning_is_tried_before_a_network_is_refused_and_the_page_says_what_it_gained(tmp_path: Path) -> None:
    images, masks = blobs_and_lines(64, seed=3)
    data = ExportData(list(blobs_and_lines(64, seed=5)[0][:, 0]), list(zip(images[:, 0], masks, strict=True)))
    architecture = dataclasses.replace(
        find_architecture("any-segmenter"), classes=("background", "blob", "line"), tile=(SIDE, SIDE)
    )
    checkpoint = Checkpoint("fragile.pt2", "0" * 64, ModuleContent(made_fragile(taught()).eval()))
    options = ExportOptions(precision="int8", max_drop=0.0, threads=1, fine_tuning=FineTuning(epochs=8))
    with pytest.raises(ExportError, match=r"INT8 loses .* points even after fine-tuning \(.* before\)"):
        export_bundle(checkpoint, architecture, data, tmp_path / "fragile", options)
    assert [path.name for path in tmp_path.iterdir()] == ["fragile.refused.html"]
    assert "fine_tuned" in (tmp_path / "fragile.refused.html").read_text()


@pytest.mark.parametrize("names", [("background", "dark"), ("background", "dark", "dark"), ("background", "", "dark")])
def test_class_names_must_be_one_each(names: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="expected"):
        export_bundle(checkpoint_of(trained_unet(), ""), UNET, segmenter_data(2), tmp_path / "unet", ExportOptions(classes=names))
    assert list(tmp_path.iterdir()) == []


class Interrupted(BaseException):
    """As KeyboardInterrupt, which pytest would take for itself."""


@pytest.mark.parametrize("where", ["render_html", "check_golden", "_put", "file_sha256"])
@pytest.mark.parametrize("error", [Interrupted, OSError, ExportError])
def test_a_fault_at_any_moment_of_writing_leaves_nothing(
    where: str, error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error("here")

    monkeypatch.setattr(bundle_module, where, fail)
    with pytest.raises(Interrupted if error is Interrupted else ExportError, match="here"):
        export_gate(tmp_path / "gate")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_stands_there_is_kept_unless_it_is_to_be_replaced(tmp_path: Path) -> None:
    before = export_gate(tmp_path / "gate", recall=0.5).bundle
    with pytest.raises(ExportError, match="gate: exists; expected a new folder"):
        export_gate(tmp_path / "gate")
    assert open_bundle(tmp_path / "gate").sha256 == before.sha256
    after = export_gate(tmp_path / "gate", defect_px=1, existing=Existing.REPLACE).bundle
    assert open_bundle(tmp_path / "gate").sha256 == after.sha256 != before.sha256
    assert [path.name for path in tmp_path.iterdir()] == ["gate"]


@pytest.mark.parametrize("at_once", [True, False])
def test_a_failing_replacement_keeps_what_was_there(at_once: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = export_gate(tmp_path / "gate").bundle
    real = bundle_module.os.rename

    def full(*_: object) -> bool:
        raise OSError(28, "No space left on device")

    def fail_the_second(source: Path, target: Path) -> None:
        if Path(target) == tmp_path / "gate" and ".partial-" in Path(source).name:
            full()
        real(source, target)

    monkeypatch.setattr(bundle_module, "_exchanged", full if at_once else lambda *_: False)
    monkeypatch.setattr(bundle_module.os, "rename", fail_the_second)
    with pytest.raises(ExportError, match=r"cannot be written \(No space left on device\); make room"):
        export_gate(tmp_path / "gate", existing=Existing.REPLACE)
    assert open_bundle(tmp_path / "gate").sha256 == before.sha256
    assert [path.name for path in tmp_path.iterdir()] == ["gate"]


def test_a_bundle_is_replaced_where_the_file_system_cannot_swap_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = export_gate(tmp_path / "gate", recall=0.5).bundle
    monkeypatch.setattr(bundle_module, "_exchanged", lambda *_: False)
    after = export_gate(tmp_path / "gate", defect_px=1, existing=Existing.REPLACE).bundle
    assert open_bundle(tmp_path / "gate").sha256 == after.sha256 != before.sha256
    assert [path.name for path in tmp_path.iterdir()] == ["gate"]


def test_a_bundle_that_a_killed_replacement_had_put_aside_comes_back(tmp_path: Path) -> None:
    before = export_gate(tmp_path / "gate").bundle
    aside = tmp_path / ".gate.partial-killed"
    aside.mkdir()
    (tmp_path / "gate").rename(aside / "replaced")
    with pytest.raises(ExportError, match="gate: exists"):
        check_target(tmp_path / "gate", Existing.KEEP)
    assert open_bundle(tmp_path / "gate").sha256 == before.sha256
    assert [path.name for path in tmp_path.iterdir()] == ["gate"]


def test_what_a_killed_export_has_left_is_cleared_and_what_one_at_work_holds_is_not(tmp_path: Path) -> None:
    for name in (".gate.partial-dead", ".other.partial-dead"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.onnx").write_bytes(b"half")
    with bundle_module._partial_folder(tmp_path / "gate") as alive:
        check_target(tmp_path / "gate", Existing.KEEP)
        assert {path.name for path in tmp_path.iterdir()} == {alive.name, ".other.partial-dead"}


def test_of_two_exports_to_one_place_the_first_one_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, made = bundle_module._put, []

    def after_another_one(*arguments: object) -> None:
        monkeypatch.setattr(bundle_module, "_put", real)
        made.append(export_gate(tmp_path / "gate", recall=0.5).bundle)
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(bundle_module, "_put", after_another_one)
    with pytest.raises(ExportError, match="was made by somebody else meanwhile"):
        export_gate(tmp_path / "gate")
    assert open_bundle(tmp_path / "gate").sha256 == made[0].sha256
    assert [path.name for path in tmp_path.iterdir()] == ["gate"]


def test_a_link_stays_a_link_and_what_it_points_at_is_replaced(tmp_path: Path) -> None:
    before = export_gate(tmp_path / "disk" / "gate", recall=0.5).bundle
    (tmp_path / "current").symlink_to(tmp_path / "disk" / "gate")
    export_gate(tmp_path / "current", defect_px=1, existing=Existing.REPLACE)
    assert (tmp_path / "current").is_symlink()
    assert open_bundle(tmp_path / "disk" / "gate").sha256 != before.sha256
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["gate"]


def test_an_empty_folder_is_replaced_only_if_it_is_to_be(tmp_path: Path) -> None:
    (tmp_path / "gate").mkdir()
    with pytest.raises(ExportError, match="gate: exists"):
        export_gate(tmp_path / "gate")
    assert open_bundle(export_gate(tmp_path / "gate", existing=Existing.REPLACE).bundle.path).manifest.kind == "classifier"


def test_folders_made_for_a_bundle_are_gone_after_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle_module, "_put", fail)
    with pytest.raises(ExportError, match="gate: cannot be written"):
        export_gate(tmp_path / "new" / "newer" / "gate")
    assert list(tmp_path.iterdir()) == []


def test_a_written_bundle_that_cannot_be_opened_is_named_by_its_own_name(tmp_path: Path) -> None:
    with pytest.raises(BundleError) as refused:
        bundle_module._verify(tmp_path, tmp_path / "gate")
    assert str(refused.value).startswith(f"{tmp_path / 'gate'}")


def test_a_folder_that_is_no_bundle_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("the only copy")
    with pytest.raises(ExportError, match="is not a bundle, and is not replaced"):
        export_gate(tmp_path / "precious", existing=Existing.REPLACE)
    assert (tmp_path / "precious" / "thesis.txt").exists()


def test_a_place_that_cannot_be_written_is_told_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="cannot be written"):
        export_gate(tmp_path / "file" / "gate")


@pytest.mark.parametrize(
    "options", [{"max_drop": -1.0}, {"max_drop": float("nan")}, {"recall": 0.0}, {"recall": 2.0}, {"defect_px": 0}]
)
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ExportError, match=next(iter(options))):
        ExportOptions(**options)  # type: ignore[arg-type]


def test_shared_weights_are_those_of_the_tile_engine_read_by_any_onnx_reader(unet: Exported, tmp_path: Path) -> None:
    bundle: Bundle = unet.bundle
    assert bundle.stream_path is not None
    whole = onnx.load(bundle.stream_path)
    content = bundle.model_path.read_bytes()
    shared = share_weights(whole, content)
    (tmp_path / "model.onnx").write_bytes(content)
    (tmp_path / "stream.onnx").write_bytes(shared.SerializeToString())
    large = [i.name for i in shared.graph.initializer if i.data_location == onnx.TensorProto.EXTERNAL]
    assert len(large) >= 6
    assert all(len(i.raw_data) < 1024 for i in shared.graph.initializer)
    again = onnx.load(tmp_path / "stream.onnx")
    assert {i.name: onnx.numpy_helper.to_array(i).tobytes() for i in again.graph.initializer} == {
        i.name: onnx.numpy_helper.to_array(i).tobytes() for i in whole.graph.initializer
    }
    session = ort.InferenceSession(tmp_path / "stream.onnx", providers=["CPUExecutionProvider"])
    assert len(session.get_inputs()) == 1 + len(bundle.manifest.streaming.states if bundle.manifest.streaming else ())


def test_golden_tiles_of_a_segmenter_stay_small(unet: Exported) -> None:
    assert (unet.bundle.path / "golden.npz").stat().st_size < 250_000


def test_golden_tiles_of_a_gate_stay_small(gate: Exported) -> None:
    assert (gate.bundle.path / "golden.npz").stat().st_size < 100_000


def test_an_engine_with_a_mask_head_gives_the_classes_of_the_one_with_logits(tmp_path: Path) -> None:
    logits, mask = (
        export_unet(tmp_path / head, precision="int8", max_drop=100.0, head=head).bundle for head in ("logits", "mask")
    )
    side = logits.manifest.input.tile_height
    tile = np.pad(steel_image(7, 64, 80)[0], ((0, side - 64), (0, side - 80)), mode="wrap")[None, None]
    with OrtSession(logits.model_path, threads=1) as session:
        expected = classify(session.infer(tile)[0], "softmax")
    with OrtSession(mask.model_path, threads=1) as session:
        got = session.infer(tile)[0]
    assert (got.dtype, mask.manifest.head) == (np.uint8, "mask")
    np.testing.assert_array_equal(got[0], expected[0])
    assert np.abs(got[1].astype(int) - expected[1]).max() <= 1
