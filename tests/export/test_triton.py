"""`--target triton`: what is written for Triton, and that nothing else is touched."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from foreign_networks import save_onnx, segmenter
from toy_engines import write_cell_gate, write_gate, write_segmenter
from triton_server import PYTHON, needs_triton

from edge.bundle import Bundle, open_bundle
from edge.cli import main
from edge.errors import BundleError
from edge.sessions.ort import OrtSession
from export.bundle import Existing
from export.errors import ExportError
from export.triton import check_model_repository, write_model


@pytest.fixture
def toy(tmp_path: Path) -> Bundle:
    return open_bundle(write_segmenter(tmp_path / "toy"))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_model_is_a_config_and_one_version(toy: Bundle, tmp_path: Path) -> None:
    place = write_model(toy, tmp_path / "deep" / "models")
    assert place == tmp_path / "deep" / "models" / "toy"
    assert sorted(files(place)) == ["1/model.onnx", "config.pbtxt"]
    assert [path.name for path in place.parent.iterdir()] == ["toy"]


def test_a_network_of_any_size_is_served_for_any_and_answers_the_same(tmp_path: Path) -> None:
    bundle = open_bundle("steel-gate-int8")
    place = write_model(bundle, tmp_path)
    (image,) = onnx.load(place / "1" / "model.onnx").graph.input
    assert [size.dim_value for size in image.type.tensor_type.shape.dim] == [0, 1, 0, 0]
    tile = np.random.default_rng(1).integers(0, 256, (1, 1, 64, 96), dtype=np.uint8)
    with OrtSession(place / "1" / "model.onnx", 1) as written, OrtSession(bundle.model_path, 1) as shipped:
        np.testing.assert_array_equal(written.infer(tile), shipped.infer(tile))


def test_a_network_that_looks_at_a_whole_tile_is_served_as_it_is(tmp_path: Path) -> None:
    bundle = open_bundle(write_segmenter(tmp_path / "whole", whole_tile="ReduceMax"))
    place = write_model(bundle, tmp_path / "models")
    assert (place / "1" / "model.onnx").read_bytes() == onnx.load(bundle.model_path).SerializeToString(deterministic=True)


def test_a_model_of_ours_is_replaced_only_when_asked(toy: Bundle, tmp_path: Path) -> None:
    models = tmp_path / "models"
    place = write_model(toy, models)
    before = files(place)
    (place / "1" / "left").write_text("over")
    with pytest.raises(ExportError, match=r"toy: exists; expected a new model: .*--force"):
        write_model(toy, models)
    write_model(toy, models, Existing.REPLACE)
    assert files(place) == before


@pytest.mark.parametrize("there", ["config.pbtxt", "notes.txt", "file"])
def test_another_thing_is_never_replaced(toy: Bundle, tmp_path: Path, there: str) -> None:
    place = tmp_path / "models" / "toy"
    place.parent.mkdir()
    if there == "file":
        place.write_text("somebody's")
    else:
        place.mkdir()
        (place / there).write_text('name: "toy"')
    with pytest.raises(ExportError, match="is no model that rust-edge wrote, and is not replaced"):
        write_model(toy, place.parent, Existing.REPLACE)
    with pytest.raises(ExportError, match="is no model that rust-edge wrote, and is not replaced"):
        check_model_repository(place.parent, "toy", Existing.REPLACE)
    assert place.read_text() == "somebody's" if there == "file" else files(place) == {there: b'name: "toy"'}


def test_a_bundle_that_answers_otherwise_leaves_nothing_behind(toy: Bundle, tmp_path: Path) -> None:
    golden = dict(np.load(toy.path / "golden.npz"))
    np.savez(toy.path / "golden.npz", **(golden | {"scores": golden["scores"] + golden["scores"].max()}))
    with pytest.raises(BundleError, match="golden tiles otherwise"):
        write_model(toy, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_a_repository_that_cannot_be_made_is_told(toy: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="cannot be written"):
        write_model(toy, tmp_path / "file" / "models")


def test_the_command_writes_the_model_of_a_bundle_that_is_there(
    toy: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", str(toy.path), "--target", "triton", "--model-repository", str(tmp_path / "models")]
    assert main(command) == 0
    assert capsys.readouterr().out == (
        f"model for Triton: {tmp_path / 'models' / 'toy'}; serve it: tritonserver --model-repository={tmp_path / 'models'}; "
        "an answer is 12 bytes a pixel, with --head mask 2\n"
    )
    assert main(command) == 1
    assert "give --force to replace it" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0
    assert main([*command, "--arch", "unet"]) == 2
    assert "got --arch" in capsys.readouterr().err
    assert main(["export", "steel-unet-int9", "--target", "triton", "--model-repository", str(tmp_path / "models")]) == 3
    assert "steel-unet-int9: no such bundle; expected" in capsys.readouterr().err


def test_a_repository_without_the_target_is_a_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needed = ["--arch", "unet", "--calibration", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(["export", "unet.pt", *needed, "--model-repository", "models"]) == 2
    assert "got a model_repository, and target onnx; expected target triton, or none" in capsys.readouterr().err


_PARSE = """
import json, sys
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2
config = text_format.Parse(open(sys.argv[1]).read(), model_config_pb2.ModelConfig())
print(json.dumps(json_format.MessageToDict(config, preserving_proto_field_name=True)))
"""


@needs_triton
@pytest.mark.parametrize(
    ("write", "dims"),
    [(write_segmenter, ["3", "-1", "-1"]), (write_gate, ["1"]), (write_cell_gate, ["1", "-1", "-1"])],
)
def test_triton_s_own_message_reads_the_config(write, dims: list[str], tmp_path: Path) -> None:
    place = write_model(open_bundle(write(tmp_path / "bundle")), tmp_path / "models")
    done = subprocess.run([str(PYTHON), "-c", _PARSE, str(place / "config.pbtxt")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    config = json.loads(done.stdout)
    image = ["1", "32", "32"] if write is write_gate else ["1", "-1", "-1"]
    assert (config["name"], config["platform"], config["max_batch_size"]) == ("bundle", "onnxruntime_onnx", 16)
    assert config["input"] == [{"name": "image", "data_type": "TYPE_UINT8", "dims": image}]
    assert config["output"] == [{"name": "scores", "data_type": "TYPE_FP32", "dims": dims}]
    assert config["dynamic_batching"] == {"preferred_batch_size": [8, 16], "max_queue_delay_microseconds": "1000"}
    # protobuf leaves out what is the default: KIND_AUTO
    assert config["instance_group"] == [{"count": 1}]
    assert [warm["batch_size"] for warm in config["model_warmup"]] == [1, 8, 16]
    for warm in config["model_warmup"]:
        assert warm["inputs"] == {"image": {"data_type": "TYPE_UINT8", "dims": ["1", "32", "32"], "zero_data": True}}


@pytest.mark.filterwarnings("ignore")
def test_an_export_writes_the_model_after_the_bundle(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = {"names": '["background", "dark", "bright"]', "mean": "[0.0]", "std": "[1.0]"}
    save_onnx(segmenter(ending="softmax"), tmp_path / "network.onnx", metadata=said)
    data = ["--calibration", str(folder / "images"), "--masks", str(folder / "masks"), "--speed-s", "0", "--threads", "1"]
    flags = [*data, "--head", "mask", "--target", "triton", "--model-repository", str(tmp_path / "models")]
    named = ["--arch", "any-segmenter", *flags, "--out", str(tmp_path / "coil")]
    assert main(["export", str(tmp_path / "network.onnx"), *named]) == 0
    assert f"model for Triton: {tmp_path / 'models' / 'coil'}; serve it: " in capsys.readouterr().out
    config = (tmp_path / "models" / "coil" / "config.pbtxt").read_text()
    assert f"of bundle coil, manifest {open_bundle(tmp_path / 'coil').sha256}" in config
    assert 'output [\n  { name: "scores" data_type: TYPE_UINT8 dims: [ 2, -1, -1 ] }\n]' in config


def test_a_place_that_is_taken_is_told_before_anything_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "models" / "coil").mkdir(parents=True)
    flags = ["--arch", "steel-unet", "--calibration", str(tmp_path), "--target", "triton", "--out", str(tmp_path / "coil")]
    assert main(["export", "gone.pt", *flags, "--model-repository", str(tmp_path / "models"), "--force"]) == 1
    assert "is no model that rust-edge wrote" in capsys.readouterr().err
    assert not (tmp_path / "coil").exists()
