from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import yaml
from toy_engines import write_cell_gate, write_gate, write_segmenter

from edge import bundle as bundle_module
from edge.bundle import Bundle, Golden, check_golden, compare_golden, file_sha256, open_bundle, shipped_bundles
from edge.errors import BundleError
from edge.sessions import Batch, Scores
from edge.sessions.ort import OrtSession


@pytest.fixture
def segmenter(tmp_path: Path) -> Path:
    return write_segmenter(tmp_path / "segmenter")


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    document = yaml.safe_load((folder / "manifest.yaml").read_text())
    change(document)
    (folder / "manifest.yaml").write_text(yaml.safe_dump(document))


def fault(folder: Path) -> str:
    with pytest.raises(BundleError) as caught:
        open_bundle(folder)
    return str(caught.value)


def test_a_sound_bundle_opens_and_answers_its_golden_tiles(segmenter: Path) -> None:
    bundle = open_bundle(segmenter)
    assert bundle.manifest.classes == ("background", "dark", "bright")
    assert bundle.stream_path is None
    with OrtSession(bundle.model_path, threads=1) as session:
        assert check_golden(bundle, session).changed == 0


def test_a_gate_answers_its_golden_tiles(tmp_path: Path) -> None:
    bundle = open_bundle(write_gate(tmp_path / "gate"))
    with OrtSession(bundle.model_path, threads=1) as session:
        assert check_golden(bundle, session).labels == 8


def test_a_gate_of_cells_answers_its_golden_tiles_cell_by_cell(tmp_path: Path) -> None:
    bundle = open_bundle(write_cell_gate(tmp_path / "gate"))
    with OrtSession(bundle.model_path, threads=1) as session:
        assert check_golden(bundle, session).labels == 8 * 8 * 8
        with pytest.raises(BundleError, match=r"with scores \(8, 1, 8, 7\), expected \(8, 1, 8, 8\)"):
            check_golden(bundle, Answering(session, lambda scores: scores[:, :, :, :7].copy()))
        with pytest.raises(BundleError, match="answers the golden tiles otherwise"):
            check_golden(bundle, Answering(session, lambda scores: scores[:, :, ::-1].copy()))


def test_a_bundle_is_named_in_events_by_its_manifest_which_names_every_file(segmenter: Path) -> None:
    assert open_bundle(segmenter).sha256 == file_sha256(segmenter / "manifest.yaml")


def test_a_missing_bundle_lists_the_shipped_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_module, "SHIPPED", tmp_path)
    write_segmenter(tmp_path / "steel-a")
    write_gate(tmp_path / "steel-b")
    assert shipped_bundles() == ["steel-a", "steel-b"]
    assert "absent: no such bundle" in fault(Path("absent"))
    assert fault(Path("absent")).endswith("steel-a, steel-b")


def test_a_shipped_name_opens_from_anywhere_and_a_folder_of_that_name_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_module, "SHIPPED", tmp_path / "shipped")
    shipped = write_segmenter(tmp_path / "shipped" / "steel-a")
    write_segmenter(tmp_path / "steel-a")
    monkeypatch.chdir(tmp_path)
    assert open_bundle("steel-a").path == shipped
    assert open_bundle("./steel-a").path.resolve() == (tmp_path / "steel-a").resolve()


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    assert "holds no manifest.yaml; expected a bundle written by `rust-edge export`" in fault(tmp_path)


@pytest.mark.parametrize("text", ["kind: [unclosed", "\x00\x01", "- a\n- list", "", "3"])
def test_a_manifest_that_is_no_mapping_is_one_clear_fault(segmenter: Path, text: str) -> None:
    (segmenter / "manifest.yaml").write_text(text)
    message = fault(segmenter)
    assert "manifest.yaml: " in message
    assert "export again" in message
    assert len(message.splitlines()) == 1


def test_all_faults_of_a_manifest_are_told_at_once_each_with_got_and_expected(segmenter: Path) -> None:
    def spoil(document: dict[str, Any]) -> None:
        document["stride"] = 0
        document["kind"] = "detector"
        document["input"]["tile_height"] = "tall"
        document["colour"] = "grey"
        del document["precision"]

    edit(segmenter, spoil)
    message = fault(segmenter)
    assert "stride: got 0; input should be greater than or equal to 1" in message
    assert "kind: got 'detector'; input should be 'segmenter' or 'classifier'" in message
    assert "input.tile_height: got 'tall'" in message
    assert "colour: unknown key, got 'grey'" in message
    assert "precision: missing" in message


def test_a_newer_format_is_named_as_such_whatever_else_it_holds(segmenter: Path) -> None:
    edit(segmenter, lambda document: document.update(format_version=3, shape_of_things_to_come=True))
    message = fault(segmenter)
    assert "format version 3, this rust-edge reads up to 2: update rust-edge" in message
    assert "shape_of_things_to_come" not in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stride": 5}, "tile is 32x32, expected multiples of the stride 5"),
        ({"halo": 6}, "halo is 6, expected a multiple of the stride 4"),
        ({"halo": 16}, "tile is 32x32, expected more than twice the halo 16"),
        ({"thresholds": {"rust": {"low": 0.1, "high": 0.5}}}, "thresholds name 'rust', expected one of background, dark, bright"),
        ({"thresholds": {"dark": {"low": 0.6, "high": 0.5}}}, "low 0.6 is above high 0.5"),
    ],
)
def test_values_that_do_not_go_together_are_refused(segmenter: Path, change: dict[str, Any], message: str) -> None:
    edit(segmenter, lambda document: document.update(change))
    assert message in fault(segmenter)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "segmenter"}, "cell is 4, but a segmenter scores pixels; expected a classifier, or no cell"),
        ({"cell": 3}, "cell is 3, the stride 4, the tile 32x32; expected a divisor of these"),
        ({"cell": 2}, "the stream scores cells of 4 px, the engine of 2; expected the same"),
        ({"cell": None}, "the stream scores cells of 4 px, the engine of 1; expected the same"),
        ({"streaming": {"lag_lines": 6, "cell": 4, "states": []}}, "lag is 6 lines; expected a multiple of its cell, 4"),
    ],
)
def test_cells_that_fit_nothing_else_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    gate = write_cell_gate(tmp_path / "gate")
    edit(gate, lambda document: document.update(change))
    assert message in fault(gate)


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz"])
def test_an_altered_file_is_named_with_both_hashes(segmenter: Path, name: str) -> None:
    expected = file_sha256(segmenter / name)
    content = bytearray((segmenter / name).read_bytes())
    content[len(content) // 2] ^= 1
    (segmenter / name).write_bytes(content)
    assert fault(segmenter) == (
        f"{segmenter}: {name} was altered: sha256 is {file_sha256(segmenter / name)[:12]}..., "
        f"expected {expected[:12]}...: copy the bundle again"
    )


def test_every_missing_and_altered_file_is_told_at_once(segmenter: Path) -> None:
    (segmenter / "model.onnx").unlink()
    (segmenter / "golden.npz").write_bytes(b"")
    message = fault(segmenter)
    assert "model.onnx cannot be read (No such file or directory); expected sha256" in message
    assert "golden.npz was altered" in message


def test_a_manifest_that_names_no_hash_of_an_engine_is_refused(segmenter: Path) -> None:
    edit(segmenter, lambda document: document["files"].pop("model.onnx"))
    assert "manifest.yaml names no model.onnx" in fault(segmenter)


@pytest.mark.parametrize("name", ["../segmenter/model.onnx", "/etc/hostname", "a/b"])
def test_a_manifest_names_only_files_of_its_bundle(segmenter: Path, name: str) -> None:
    edit(segmenter, lambda document: document["files"].update({name: "0" * 64}))
    assert f"names the file {name!r}, expected a name inside the bundle" in fault(segmenter)


class Answering:
    """A session whose answers were changed on the way."""

    steps = None

    def __init__(self, session: OrtSession, change: Callable[[Scores], Scores], backend: str = "changed") -> None:
        self._session, self._change, self.backend = session, change, backend

    def infer(self, batch: Batch) -> Scores:
        return self._change(self._session.infer(batch).copy())

    def __enter__(self) -> Answering:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def with_one_score_off(scores: Scores) -> Scores:
    scores[3, 1, 10, 10] += 0.05 * np.ptp(scores)
    return scores


def with_nan(scores: Scores) -> Scores:
    scores[0, 0, 0, 0] = np.nan
    return scores


@pytest.mark.parametrize(
    "change",
    [with_one_score_off, with_nan, lambda scores: scores[::-1].copy(), lambda scores: scores * 1.5, np.zeros_like],
)
def test_an_engine_that_answers_otherwise_is_refused(segmenter: Path, change: Callable[[Scores], Scores]) -> None:
    bundle = open_bundle(segmenter)
    with OrtSession(bundle.model_path, threads=1) as session, pytest.raises(BundleError) as caught:
        check_golden(bundle, Answering(session, change))
    assert "changed answers the golden tiles otherwise than when the bundle was verified" in str(caught.value)


def test_an_engine_with_another_number_of_classes_is_refused(segmenter: Path) -> None:
    bundle = open_bundle(segmenter)
    with OrtSession(bundle.model_path, threads=1) as session, pytest.raises(BundleError, match="expected \\(8, 3"):
        check_golden(bundle, Answering(session, lambda scores: scores[:, :2].copy()))


def test_scores_within_the_tolerance_pass_and_only_undecided_labels_may_differ() -> None:
    scores = np.zeros((8, 2, 4, 4), np.float32)
    scores[:, 0], scores[:, 1] = -10.0, 10.0
    scores[0, :, 0, 0] = 0.01, 0.0
    golden = Golden(np.zeros((8, 4, 4), np.uint8), scores.astype(np.float16), scores.argmax(axis=1).astype(np.uint8), 1)
    nudged = scores.copy()
    nudged[:, 1] += 0.05
    answer = compare_golden(golden, nudged, "softmax", "logits")
    assert answer.max_difference == pytest.approx(0.05 / 20, rel=0.01)
    assert (answer.outliers, answer.changed) == (0.0, 0)
    flipped = scores.copy()
    flipped[7, :, 3, 3] = 10.0, -10.0
    assert compare_golden(golden, flipped, "softmax", "logits").changed == 1


def test_an_int8_engine_may_round_a_few_scores_otherwise_a_float_one_may_not(tmp_path: Path) -> None:
    int8 = open_bundle(write_segmenter(tmp_path / "int8", precision="int8"))
    fp32 = open_bundle(write_segmenter(tmp_path / "fp32"))
    for bundle in (int8, fp32):
        with OrtSession(bundle.model_path, threads=1) as session:
            changed = Answering(session, with_one_score_off)
            if bundle is int8:
                assert 0 < check_golden(bundle, changed).outliers < 1e-3
            else:
                with pytest.raises(BundleError, match="otherwise"):
                    check_golden(bundle, changed)


def answers_as_it_stands(bundle: Bundle) -> Scores:
    """ONNX Runtime's answer to the golden tiles by the file itself, not rewritten."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    engine = onnxruntime.InferenceSession(str(bundle.model_path), options, providers=["CPUExecutionProvider"])
    size = bundle.manifest.input
    scores: Scores = engine.run(None, {"image": bundle.golden().tiles(size.tile_height, size.tile_width)})[0]
    return scores


@pytest.mark.parametrize("name", ["steel-gate-int8", "steel-unet-int8"])
def test_a_shipped_int8_file_is_recognised_where_a_server_runs_it_as_it_stands(name: str) -> None:
    bundle = open_bundle(name)
    scores = answers_as_it_stands(bundle)
    with OrtSession(bundle.model_path, threads=1) as session:
        assert check_golden(bundle, Answering(session, lambda _: scores, "kserve")).changed == 0


@pytest.mark.parametrize("backend", ["ort", "openvino"])
def test_the_same_rounding_is_refused_of_an_engine_that_this_station_rewrites(backend: str) -> None:
    bundle = open_bundle("steel-unet-int8")
    scores = answers_as_it_stands(bundle)
    with OrtSession(bundle.model_path, threads=1) as session, pytest.raises(BundleError, match="otherwise"):
        check_golden(bundle, Answering(session, lambda _: scores, backend))


@pytest.mark.parametrize("backend", ["kserve", "tensorrt"])
def test_of_an_engine_elsewhere_a_twentieth_of_the_scores_is_too_much(backend: str) -> None:
    """No label differs: it is the scores alone that give it away."""
    bundle = open_bundle("steel-unet-int8")
    golden = bundle.golden()
    moved = 0.02 * float(np.ptp(golden.scores.astype(np.float32)))

    def one_class_up(scores: Scores) -> Scores:
        best = scores.argmax(axis=1)
        # a fifth of the lines, the pixels' own class of four: no label changes
        for channel in range(scores.shape[1]):
            scores[:, channel, ::5][best[:, ::5] == channel] += moved
        return scores

    with OrtSession(bundle.model_path, threads=1) as session, pytest.raises(BundleError, match=r" 0 of \d+ labels"):
        check_golden(bundle, Answering(session, one_class_up, backend))


def test_another_engine_of_the_same_network_is_none_that_was_verified() -> None:
    bundle, other = open_bundle("steel-unet-int8"), open_bundle("steel-unet-fp32")
    with OrtSession(other.model_path, threads=1) as session, pytest.raises(BundleError, match="otherwise"):
        check_golden(bundle, session)


def test_golden_tiles_are_patches_reflected_down_and_to_the_right() -> None:
    golden = Golden(np.array([[[1, 2], [3, 4]]], np.uint8), np.zeros((1, 1), np.float16), np.zeros(1, np.uint8), 1)
    assert golden.tiles(3, 4)[0, 0].tolist() == [[1, 2, 1, 2], [3, 4, 3, 4], [1, 2, 1, 2]]


@pytest.mark.parametrize(
    "replace",
    [
        lambda path: path.write_bytes(b"no archive"),
        lambda path: np.savez(path, patches=np.zeros((8, 4, 4), np.uint8)),
        lambda path: np.savez(
            path, patches=np.zeros((8, 4), np.float32), scores=np.zeros(8, np.float16), labels=np.zeros(8, np.uint8), step=1
        ),
    ],
)
def test_golden_tiles_that_are_none_are_refused(segmenter: Path, replace: Callable[[Path], object]) -> None:
    bundle = open_bundle(segmenter)
    replace(segmenter / "golden.npz")
    with pytest.raises(BundleError, match=r"golden\.npz: .*export again"):
        dataclasses.replace(bundle).golden()
