from __future__ import annotations

import json
from pathlib import Path

import pytest
from toy_engines import write_gate, write_segmenter

from edge import bundle as bundle_module
from edge.cli import main


@pytest.fixture(autouse=True)
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(bundle_module, "SHIPPED", tmp_path / "shipped")
    write_gate(tmp_path / "shipped" / "steel-gate")
    return tmp_path / "shipped"


def test_shipped_and_given_bundles_are_shown_with_what_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = write_segmenter(tmp_path / "mine", quality={"mean_iou": 0.8712})
    assert main(["bundles", str(mine)]) == 0
    shown = capsys.readouterr().out
    assert "steel-gate: classifier, fp32" in shown
    assert "from 0.500000 on lets tiles through: 100.00% of the defective, 0.00% of the clean ones" in shown
    assert f"{mine}: segmenter, fp32" in shown
    assert "background, dark, bright" in shown
    assert "0.8712" in shown


def test_machines_get_the_whole_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = write_segmenter(tmp_path / "mine", quality={"mean_iou": 0.5})
    assert main(["bundles", "--json", str(mine)]) == 0
    gate, segmenter = json.loads(capsys.readouterr().out)
    assert (gate["name"], gate["manifest"]["kind"]) == ("steel-gate", "classifier")
    assert segmenter["manifest"]["quality"] == {"mean_iou": 0.5}
    assert segmenter["bytes"] == sum(file.stat().st_size for file in mine.iterdir())


def test_a_broken_bundle_does_not_hide_the_sound_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = write_segmenter(tmp_path / "broken")
    (broken / "model.onnx").write_bytes(b"")
    assert main(["bundles", str(broken)]) == 3
    captured = capsys.readouterr()
    assert "steel-gate: classifier" in captured.out
    assert "model.onnx was altered" in captured.err


def test_an_installation_without_bundles_says_so(shipped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in (shipped / "steel-gate").iterdir():
        file.unlink()
    assert main(["bundles"]) == 0
    assert "no bundles: none is shipped" in capsys.readouterr().out
