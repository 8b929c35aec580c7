"""`rust-edge calibrate`: from recorded images and from a station, whole files or none, one clear line where it cannot."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from sensors import SCALE, sensor

from calibration.command import register
from edge.errors import ConfigError, RustEdgeError
from edge.radiometry import read_flat_field

SENSOR: dict[str, Any] = {"dark_grey": 8.0, "prnu_percent": 2.0, "read_noise_e": 40.0, "full_well_e": 12000.0}
BAD = {"dead_columns": (20,), "hot_columns": (40,)}


def calibrate(*words: Any) -> int:
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers())
    args = parser.parse_args(["calibrate", *map(str, words)])
    return int(args.handler(args))


@pytest.fixture
def station(tmp_path: Path) -> Path:
    document = {
        "camera": "top",
        "scale": {"mm_per_line": SCALE.mm_per_line, "mm_per_column": SCALE.mm_per_column},
        "source": {
            "kind": "simulated",
            "width": 256,
            "sensor": {**SENSOR, "dead_columns": [20], "hot_columns": [40], "pitch_mm": 2.0},
        },
    }
    path = tmp_path / "station.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.fixture(params=["uint8", "uint16"])
def recorded(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Folders dark, and levels of light 1 to 4, each of two images, of 8 bits or of 16."""
    factor = 257 if request.param == "uint16" else 1
    levels = {"dark": ("dark", 1.0), "1": ("bright", 0.3), "2": ("bright", 0.6), "3": ("bright", 0.9), "4": ("bright", 1.2)}
    for index, (name, (scene, light)) in enumerate(levels.items()):
        lines = sensor(256, scene=scene, light=light, **SENSOR, **BAD).lines(1000 * index, 400).astype(request.param) * factor
        (tmp_path / name).mkdir()
        for part in (0, 1):
            assert cv2.imwrite(str(tmp_path / name / f"{part}.png"), lines[200 * part : 200 * part + 200])
    return tmp_path


def test_recorded_frames_become_a_flat_field_and_a_report(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--dark", recorded / "dark", "--bright", recorded / "3", "--camera-name", "left", "--exposure-us", 20, 40]
    out, html = recorded / "ff.json", recorded / "ff.html"
    assert calibrate("flat-field", *words, "--out", out, "--html", html, "--json") == 0
    flat = read_flat_field(out)
    figures = json.loads(capsys.readouterr().out)
    assert flat.interpolated == (20, 40)
    assert figures["sha256"] == flat.sha256
    assert figures["bad_columns"] == [{"column": 20, "reason": "dead"}, {"column": 40, "reason": "hot"}]
    assert flat.provenance.camera == "left"
    assert flat.provenance.images == ("0.png", "1.png", "0.png", "1.png")
    assert flat.validity.exposure_us is not None
    assert (flat.validity.exposure_us.low, flat.validity.exposure_us.high) == (20, 40)
    page = html.read_text()
    assert page.count("<svg") == 4
    assert "Flat field of left" in page


def test_a_station_with_a_simulated_camera_sets_its_scenes_by_itself(station: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = station.with_name("ff.json")
    assert calibrate("flat-field", "-c", station, "--lines", 300, "--out", out) == 0
    flat = read_flat_field(out)
    assert (flat.width, flat.interpolated, flat.provenance.camera) == (256, (20, 40), "top")
    assert "interpolated columns: 20 (dead), 40 (hot)" in capsys.readouterr().out


def test_noise_is_told_of_recorded_levels(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bright = [recorded / name for name in "1234"]
    words = ["--dark", recorded / "dark", "--bright", *bright, "--exposures", 3, 6, 9, 12]
    assert calibrate("noise", *words, "--out", recorded / "n.json", "--html", recorded / "n.html", "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    per_grey = 257 if figures["bits"] == 16 else 1
    assert figures["system_gain"] / per_grey == pytest.approx(255 / 12000, rel=0.05)
    assert figures["linearity_error"] < 0.01
    assert [one["column"] for one in figures["left_out"]] == [20, 40]
    assert json.loads((recorded / "n.json").read_text())["format"] == "rust-edge-noise"
    assert (recorded / "n.html").read_text().count("<svg") == 2


def test_noise_and_scale_are_told_of_a_station(station: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert calibrate("noise", "-c", station, "--lines", 200, "--levels", 12) == 0
    assert "saturation" in capsys.readouterr().out
    html = station.with_name("s.html")
    assert calibrate("scale", "-c", station, "--lines", 300, "--html", html, "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["mm_per_column"] == pytest.approx(SCALE.mm_per_column, rel=1e-3)
    assert figures["mm_per_line"] == pytest.approx(SCALE.mm_per_line, rel=1e-3)
    assert html.read_text().count("<svg") == 2


def test_scale_of_recorded_bars_and_of_an_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cv2.imwrite(str(tmp_path / "bars.png"), sensor(512, scene="target", pitch_mm=3.0, **SENSOR).lines(0, 200))
    (tmp_path / "counts.txt").write_text("\n".join(str(5 * line) for line in range(100)))
    words = ["--across", tmp_path / "bars.png", "--pitch-mm", 3, "--encoder", tmp_path / "counts.txt", "--mm-per-count", 0.06]
    assert calibrate("scale", *words) == 0
    told = capsys.readouterr().out
    assert "mm_per_column: 0.2" in told
    assert "mm_per_line of the encoder: 0.3" in told


def test_another_camera_is_asked_for_each_scene(
    recorded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recorded / "station.yaml"
    path.write_text(yaml.safe_dump({"source": {"kind": "folder", "path": str(recorded / "dark")}}))
    monkeypatch.setattr("sys.stdin", io.StringIO("\n\n"))
    with pytest.raises(RustEdgeError, match="bright: the target is 0 grey levels above dark"):
        calibrate("flat-field", "-c", path, "--lines", 400, "--out", recorded / "ff.json")
    asked = capsys.readouterr().err
    assert "cover the lens; then press Enter" in asked
    assert "uncover the lens" in asked
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    with pytest.raises(ConfigError, match="nobody answered"):
        calibrate("flat-field", "-c", path, "--lines", 400, "--out", recorded / "ff.json")
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    with pytest.raises(RustEdgeError, match="the source ended after 400 lines; expected 500"):
        calibrate("flat-field", "-c", path, "--lines", 500, "--out", recorded / "ff.json")
    assert not (recorded / "ff.json").exists()


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["flat-field", "--out", "ff.json"], "--dark: got none; expected images or folders, or -c"),
        (["flat-field", "--dark", "no", "--bright", "no", "--out", "ff.json"], "no: does not exist"),
        (["flat-field", "--dark", "a.png", "--bright", "b.png", "--out", "ff.json"], "--bright: got 40 columns, --dark has 50"),
        (
            ["flat-field", "--dark", "a.png", "b.png", "--bright", "b.png", "--out", "ff.json"],
            "b.png has 40 columns, a.png",
        ),
        (
            ["flat-field", "--dark", "a.png", "c.png", "--bright", "b.png", "--out", "ff.json"],
            "c.png has uint16 levels, a.png",
        ),
        (["flat-field", "--dark", "a.png", "--bright", "a.png", "--level", "300", "--out", "ff.json"], "--level: got 300"),
        (["flat-field", "--dark", "a.png", "-c", "s.yaml", "--out", "ff.json"], "got both recorded frames and -c"),
        (["flat-field", "-c", "s.yaml", "--lines", "0", "--out", "ff.json"], "--lines: got 0"),
        (["flat-field", "-c", "s.yaml", "--lines", "9999999", "--out", "ff.json"], "got 9999999 lines of 4096 columns; expected"),
        (["flat-field", "-c", "s.yaml", "--set", "source.sensor=null", "--out", "ff.json"], "source.sensor: got none"),
        (["flat-field", "--dark", "a.png", "--bright", "a.png", "--camera", "top", "--out", "ff.json"], "and no station file"),
        (
            ["flat-field", "--dark", "a.png", "--bright", "a.png", "--out", "a.png/ff.json"],
            "--out: got a.png/ff.json",
        ),
        (["noise", "--dark", "a.png"], "--bright: got none"),
        (["noise", "-c", "s.yaml", "--lines", "70", "--levels", "0"], "--levels: got 0"),
        (["scale"], "got no frames"),
        (["scale", "--across", "a.png"], "--pitch-mm: expected"),
        (["scale", "--across", "a.png", "--pitch-mm", "1", "--mm-per-line", "0"], "--mm-per-line: got 0"),
        (["scale", "--encoder", "a.png"], "--mm-per-count: expected"),
        (["scale", "--encoder", "a.png", "--mm-per-count", "1"], "--encoder: a.png: cannot be read"),
    ],
)
def test_what_cannot_be_is_one_clear_line_and_writes_nothing(
    words: list[str], fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, levels in {
        "a": np.zeros((70, 50), np.uint8),
        "b": np.zeros((70, 40), np.uint8),
        "c": np.zeros((9, 50), np.uint16),
    }.items():
        cv2.imwrite(f"{name}.png", levels)
    (tmp_path / "s.yaml").write_text("source: {kind: simulated, sensor: {}}")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(RustEdgeError) as caught:
        calibrate(*words)
    assert fault in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


def test_the_command_is_found_by_its_entry_point() -> None:
    pyproject = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert 'calibrate = "calibration.command:register"' in pyproject
