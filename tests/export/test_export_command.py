from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest
import torch
from small_checkpoints import random_gate, steel_image, trained_unet

from edge.bundle import open_bundle
from edge.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints, and images with masks: every second one without a defect."""
    folder = tmp_path_factory.mktemp("export")
    torch.save({"model_state_dict": trained_unet().state_dict()}, folder / "unet.pt")
    torch.save(random_gate().state_dict(), folder / "gate.pt")
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for number in range(6):
        image, mask = steel_image(number, 96, 96, blobs=3 * (number % 2))
        cv2.imwrite(str(folder / "images" / f"{number}.png"), image)
        cv2.imwrite(str(folder / "masks" / f"{number}.png"), mask)
    return folder


def export(folder: Path, checkpoint: str, *more: str) -> int:
    data = ["--calibration", str(folder / "images"), "--masks", str(folder / "masks"), "--threads", "1"]
    return main(["export", str(folder / checkpoint), *data, *more])


def test_a_checkpoint_becomes_a_bundle_and_the_summary_says_what_it_is(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "unet"
    flags = ["--arch", "steel-unet", "--classes", "background,dark,bright", "--out", str(out), "--explain"]
    assert export(folder, "unet.pt", *flags) == 0
    shown = capsys.readouterr().out
    assert "stem.0/Conv" in shown
    assert "scores trail the newest line by 90 lines" in shown
    assert "receptive radius" in shown
    assert f"--bundle {out}" in shown
    assert open_bundle(out).manifest.precision == "fp32"


def test_machines_get_the_report(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gate"
    flags = ["--arch", "steel-gate", "--precision", "int8", "--max-drop", "100", "--out", str(out), "--json"]
    assert export(folder, "gate.pt", *flags) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["summary"]["precision"] == "int8"
    assert report["summary"]["gate threshold"] == open_bundle(out).manifest.gate.score  # type: ignore[union-attr]


def test_architectures_are_listed_without_a_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--list"]) == 0
    assert "steel-unet" in capsys.readouterr().out
    assert main(["export", "--list", "--json"]) == 0
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)] == ["steel-unet", "steel-gate"]


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        ([], 2, "got no --arch, --out"),
        (["--arch", "steel-unet"], 2, "got no --out"),
        (["--arch", "resnet", "--out", "OUT"], 1, "no architecture 'resnet'; expected one of steel-unet, steel-gate"),
        (["--arch", "steel-gate", "--out", "OUT"], 1, "it would fit --arch steel-unet"),
        (["--arch", "steel-unet", "--out", "OUT"], 1, "the network tells 3 classes apart, got 4 names"),
        (["--arch", "steel-unet", "--classes", "a,b", "--out", "OUT"], 1, "got mask value 2; expected 0 to 1"),
        (
            ["--arch", "steel-unet", "--recall", "2", "--out", "OUT"],
            2,
            "recall: got '2'; input should be less than or equal to 1",
        ),
    ],
)
def test_a_wrong_call_is_one_line_and_leaves_nothing(
    flags: list[str], code: int, message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [str(tmp_path / "out") if flag == "OUT" else flag for flag in flags]
    assert export(folder, "unet.pt", *flags) == code
    error = capsys.readouterr().err
    assert error.startswith("rust-edge: ")
    assert message in error
    assert len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
