from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from foreign_networks import TILE, save_exported, save_onnx, save_torchscript, segmenter

from edge.bundle import open_bundle
from edge.cli import main

torch.set_num_threads(1)
ROOT = Path(__file__).parents[2]
UNET = ("--arch", "steel-unet", "--classes", "background,dark,bright")
GATE = ("--arch", "steel-gate")
QUICK = ("--threads", "1", "--speed-s", "0")


def arguments(folder: Path, checkpoint: str, *more: str) -> list[str]:
    data = ["--calibration", str(folder / "images"), "--masks", str(folder / "masks"), *QUICK]
    return ["export", str(folder / checkpoint), *data, *more]


def export(folder: Path, checkpoint: str, *more: str) -> int:
    return main(arguments(folder, checkpoint, *more))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of an error."""
    error = capsys.readouterr().err
    assert error.startswith("rust-edge: ")
    assert len(error.splitlines()) == 1
    return error.removeprefix("rust-edge: ").rstrip("\n")


def test_a_checkpoint_becomes_a_bundle_and_the_summary_says_what_it_is(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "unet"
    assert export(folder, "unet.pt", *UNET, "--out", str(out), "--explain") == 0
    shown = capsys.readouterr().out
    assert "stem.0/Conv" in shown
    assert "scores trail the newest line by 90 lines" in shown
    assert "receptive radius" in shown
    assert f"--bundle {out}" in shown
    assert open_bundle(out).manifest.precision == "fp32"


def test_machines_get_the_report(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gate"
    flags = [*GATE, "--precision", "int8", "--max-drop", "100", "--out", str(out), "--json"]
    assert export(folder, "gate.pt", *flags) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["summary"]["precision"] == "int8"
    assert report["summary"]["gate threshold"] == open_bundle(out).manifest.gate.score  # type: ignore[union-attr]


def test_architectures_are_listed_without_a_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--list"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 120
    assert main(["export", "--list", "--json"]) == 0
    listed = [entry["name"] for entry in json.loads(capsys.readouterr().out)]
    assert {"steel-unet", "steel-gate", "rust-cnn", "pits-unetpp", "any-segmenter", "any-classifier"} <= set(listed)
    assert all(f"\n{name} " in f"\n{shown}" for name in listed)


def test_a_recipe_does_the_same_from_whatever_directory(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "Förderband 1"
    shutil.copytree(folder, place)
    recipe = (
        "checkpoint: gate.pt\narch: steel-gate\ncalibration: images\nmasks: masks\nspeed_s: 0\nthreads: 1\nout: 'neue & gute/b'\n"
    )
    (place / "my gate.yaml").write_text(recipe)
    monkeypatch.chdir(place)
    assert main(["export", "my gate.yaml", "--head", "logits", "--set", "recall=0.9"]) == 0
    assert "use it: --gate 'neue & gute/b'" in capsys.readouterr().out
    assert open_bundle(place / "neue & gute" / "b").manifest.gate is not None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["network.onnx", "network.ts", "network.pt2"])
def test_anybodys_network_becomes_a_bundle_with_what_its_file_says_of_it(name: str, folder: Path, tmp_path: Path) -> None:
    said = {"names": '["background", "dark", "bright"]', "mean": "[0.0]", "std": "[1.0]"}
    network, path = segmenter(ending="softmax"), tmp_path / name
    flags: list[str] = []
    if name.endswith(".onnx"):
        save_onnx(network, path, metadata=said)
    elif name.endswith(".ts"):
        save_torchscript(network, path, json.dumps({"class_names": ["background", "dark", "bright"], "mean": [0], "std": [1]}))
        flags = ["--tile", f"{TILE}x{TILE}"]
    else:
        save_exported(network, path)
        flags = ["--classes", "background,dark,bright", "--mean", "0", "--deviation", "255"]
    out = tmp_path / "bundle"
    data = ["--calibration", str(folder / "images"), "--masks", str(folder / "masks"), *QUICK]
    assert main(["export", str(path), "--arch", "any-segmenter", *data, *flags, "--out", str(out)]) == 0
    manifest = open_bundle(out).manifest
    assert (manifest.classes, manifest.activation) == (("background", "dark", "bright"), "softmax")
    assert (manifest.stride, manifest.streaming is not None) == (2, True)
    assert manifest.input.tile_height == TILE + 2 * manifest.halo


@pytest.mark.data
def test_a_shipped_engine_becomes_an_int8_bundle(shared_data: Path, tmp_path: Path) -> None:
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
        for path in sorted((shared_data / "neu_seg" / "train" / kind).iterdir())[::900]:
            shutil.copy(path, tmp_path / kind / path.name)
    engine = ROOT / "edge" / "bundles" / "steel-unet-fp32" / "model.onnx"
    flags = ["--arch", "any-segmenter", "--classes", "background,inclusion,patches,scratches", "--tile", "64x64"]
    data = ["--calibration", str(tmp_path / "images"), "--masks", str(tmp_path / "masks"), *QUICK]
    out = tmp_path / "again"
    assert main(["export", str(engine), *flags, *data, "--precision", "int8", "--max-drop", "20", "--out", str(out)]) == 0
    manifest = open_bundle(out).manifest
    assert manifest.streaming is not None
    assert manifest.quality["mean_iou"] > manifest.quality["mean_iou_float"] - 0.05 > 0.6


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        ([], 2, "export: got no --arch, --out; expected CHECKPOINT --arch NAME --calibration DIR --out BUNDLE"),
        (["--arch", "steel-unet"], 2, "export: got no --out"),
        (["--arch", "resnet", "--out", "OUT"], 1, "no architecture 'resnet'; expected one of steel-unet, steel-gate"),
        (["--arch", "steel-gate", "--out", "OUT"], 1, "it would fit --arch steel-unet"),
        (["--arch", "steel-unet", "--out", "OUT"], 1, "the network tells 3 classes apart, got 4 names"),
        (["--arch", "steel-unet", "--classes", "a,b", "--out", "OUT"], 1, "the network tells 3 classes apart, got 2 names"),
        (["--arch", "steel-gate", "--recall", "2", "--out", "OUT"], 2, "--recall: got '2'; expected at most 1"),
        (["--arch", "steel-unet", "--precision", "int4", "--out", "OUT"], 2, "--precision: got 'int4'; expected 'fp32', 'fp16'"),
        (["--arch", "steel-unet", "--labels", "folders", "--out", "OUT"], 2, "got masks and labels; expected one of them"),
        (["--arch", "steel-unet", "--tile", "wide", "--out", "OUT"], 2, "--tile: got 'wide'; expected height and width"),
        (["--arch", "steel-unet", "--tile", "100x100", "--out", "OUT"], 2, "--tile: got 100x100; expected multiples of 16"),
        (["--arch", "steel-unet", "--clean", "dark", "--out", "OUT"], 2, "--clean: got dark, but steel-unet is a segmenter"),
        (["--arch", "steel-unet", "--weights", "w.h5", "--out", "OUT"], 1, "--weights goes with a model.json of Keras"),
        (["--arch", "steel-unet", "--qat", "absent.yaml", "--out", "OUT"], 2, "absent.yaml: cannot be read"),
        (["--arch", "steel-unet", "--set", "precison=int8", "--out", "OUT"], 2, "precison: unknown key; expected precision"),
        (["--arch", "any-segmenter", "--out", "OUT"], 1, "holds weights of PyTorch alone"),
        ([*UNET, "--pixel-threshold", "0.6", "--out", "OUT"], 2, "steel-unet answers a softmax"),
        ([*UNET, "--out", "/proc/bundle"], 1, "/proc/bundle: cannot be written"),
        ([*UNET, "--out", "OUT/../../.."], 1, "is not a bundle, and is not replaced"),
        ([*UNET, "--out", f"OUT{'x' * 250}"], 1, "cannot be written (File name too long)"),
    ],
)
def test_a_wrong_call_is_one_line_and_leaves_nothing(
    flags: list[str], code: int, message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [flag.replace("OUT", str(tmp_path / "out")) for flag in flags]
    assert export(folder, "unet.pt", *flags) == code
    assert message in told(capsys)
    assert names(tmp_path) == []


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, created: Path) -> None:
        self.created = created

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.created),)


def damaged_checkpoints(folder: Path, place: Path) -> Iterator[tuple[Path, str]]:
    sound = (folder / "unet.pt").read_bytes()
    for name, content, message in (
        ("half.pt", sound[: len(sound) // 2], "damaged: an archive whose end is missing"),
        ("empty.pt", b"", "damaged: the file is empty"),
        ("noise.pt", bytes(range(128, 256)) * 9, "damaged or no checkpoint"),
        ("page.pt", b"<!doctype html><title>404</title>", "is a web page: the download failed"),
        ("image.pt", (folder / "images" / "0.png").read_bytes(), "is a PNG image"),
        ("malicious.pt", pickle.dumps(Malicious(place / "created"), 2), "and loading that runs code in the file"),
    ):
        (place / name).write_bytes(content)
        yield place / name, message
    yield place / "absent.pt", "cannot be read (No such file or directory)"
    yield place, "is a folder without saved_model.pb"


def test_a_checkpoint_that_is_none_is_one_line_and_runs_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--calibration", str(folder / "images"), "--out", str(tmp_path / "out")]
    for path, message in damaged_checkpoints(folder, tmp_path):
        assert main(["export", str(path), "--arch", "steel-unet", *data]) == 1
        assert message in told(capsys)
    assert not {"created", "out"} & set(names(tmp_path))


def test_images_that_cannot_be_used_are_one_line_that_names_them(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*more: str) -> str:
        checkpoint = ["export", str(folder / "unet.pt"), *UNET, *QUICK]
        assert main([*checkpoint, "--calibration", str(tmp_path / "images"), *more, "--out", str(tmp_path / "out")]) in (1, 4)
        return told(capsys)

    assert "images: no such folder" in refused()
    shutil.copytree(folder / "images", tmp_path / "images")
    assert "nowhere: no such folder" in refused("--masks", str(tmp_path / "nowhere"))
    shutil.copytree(folder / "masks", tmp_path / "masks")
    masks = ("--masks", str(tmp_path / "masks"))
    cv2.imwrite(str(tmp_path / "masks" / "3.png"), np.full((96, 96), 255, np.uint8))
    assert "3.png: got mask value 255; expected 0 to 2" in refused(*masks)
    cv2.imwrite(str(tmp_path / "masks" / "3.png"), np.zeros((96, 90), np.uint8))
    assert "3.png: got a mask of 90 x 96 px; expected 96 x 96" in refused(*masks)
    (tmp_path / "masks" / "3.png").unlink()
    assert "3.png: no mask, or several" in refused(*masks)
    whole = (tmp_path / "images" / "3.png").read_bytes()
    (tmp_path / "images" / "3.png").write_bytes(whole[: len(whole) // 2])
    assert "3.png: truncated" in refused()
    assert names(tmp_path) == ["images", "masks"]


SIGNALLED = """
import signal, sys
from export import bundle
real = bundle._verify
def signalled(written, out):
    print(*sorted(path.name for path in written.iterdir()))
    signal.raise_signal(int(sys.argv[1]))
    real(written, out)
bundle._verify = signalled
from edge.cli import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_while_a_bundle_is_written_leaves_what_was_there(
    number: signal.Signals, code: int, folder: Path, tmp_path: Path
) -> None:
    # in a process of its own: a signal is the whole process's, and libraries that other tests load handle some themselves
    call = arguments(folder, "gate.pt", *GATE, "--out", str(tmp_path / "new" / "gate"))
    command = [sys.executable, "-c", SIGNALLED, str(int(number)), *call]
    left = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert left.returncode == code
    assert "manifest.yaml" in left.stdout
    assert left.stderr == "rust-edge: export: stopped before its end; nothing half-written is left\n"
    assert names(tmp_path) == []


KILLED = """
import os, signal, sys
from export import bundle
bundle._put = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
from edge.cli import main
main(sys.argv[1:])
"""


def test_what_a_killed_export_leaves_disturbs_nobody_and_is_cleared_by_the_next_one(folder: Path, tmp_path: Path) -> None:
    call = arguments(folder, "gate.pt", *GATE, "--out", str(tmp_path / "gate"))
    killed = subprocess.run([sys.executable, "-c", KILLED, *call], cwd=ROOT, capture_output=True, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = names(tmp_path)
    assert left.startswith(".gate.partial-")
    assert main(call) == 0
    assert names(tmp_path) == ["gate"]


FULL = """
import resource, sys
from export import bundle
real = bundle._write_files
def write(*parts):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    real(*parts)  # as on a disk that is full: writing on fails
bundle._write_files = write
from edge.cli import main
sys.exit(main(sys.argv[2:]))
"""


def test_a_disk_that_is_full_halfway_keeps_the_old_bundle(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "gate"
    assert export(folder, "gate.pt", *GATE, "--out", str(out)) == 0
    before = open_bundle(out).sha256
    for size in (0, 20_000):
        call = arguments(folder, "gate.pt", *GATE, "--recall", "0.5", "--out", str(out), "--force")
        command = [sys.executable, "-c", FULL, str(size), *call]
        full = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
        assert full.returncode == 1
        assert full.stderr == f"rust-edge: {out}: cannot be written (File too large); make room or name another folder\n"
        assert names(tmp_path) == ["gate"]
        assert open_bundle(out).sha256 == before


SMALL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
from edge.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_full_folder_for_temporary_files_is_named(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-B", "-c", SMALL, *arguments(folder, "gate.pt", *GATE, "--out", str(tmp_path / "out"))]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    full = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert full.returncode == 1
    assert full.stderr == (
        f"rust-edge: {tmp_path}: cannot be written (File too large); make room, or name another folder (TMPDIR)\n"
    )
    assert not (tmp_path / "out").exists()


def test_the_shipped_files_are_no_quantized_input(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = ROOT / "edge" / "bundles" / "steel-unet-int8" / "model.onnx"
    assert any(node.op_type == "QuantizeLinear" for node in onnx.load(engine).graph.node)
    flags = ["--arch", "any-segmenter", "--classes", "a,b,c,d", "--calibration", str(folder / "images")]
    assert main(["export", str(engine), *flags, "--out", str(tmp_path / "out")]) == 1
    assert "the graph is already quantized; export from the float network" in told(capsys)
