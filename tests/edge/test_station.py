"""A station file is held against the bundles and files that it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from toy_engines import write_gate, write_segmenter

from edge.bundle import open_bundle
from edge.cli import main
from edge.config import parse_config
from edge.station import check_station


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("bundles")
    return str(write_segmenter(folder / "toy-unet")), str(write_gate(folder / "toy-gate"))


def faults_of(bundles: tuple[str, str], **keys: Any) -> list[str]:
    document = {"source": {"kind": "simulated"}, "bundle": bundles[0], "gate": bundles[1], "mode": "cascade"} | keys
    config = parse_config(document, "f")
    return check_station(config, open_bundle(config.bundle), open_bundle(config.gate) if config.gate else None)


def test_a_sound_station_has_no_faults(bundles: tuple[str, str]) -> None:
    assert faults_of(bundles) == []
    assert faults_of(bundles, mode="dense", gate=None) == []


def test_a_tile_smaller_than_twice_the_halo_is_a_fault(bundles: tuple[str, str]) -> None:
    assert faults_of(bundles, tiling={"halo": 20}) == [
        f"tiling.halo: got 20, but a tile of {bundles[1]} is 32 x 32 px, smaller than twice the halo; expected at most 16"
    ]
    assert faults_of(bundles, tiling={"halo": 16}) == []


def test_a_halo_that_the_stride_does_not_divide_is_a_fault(bundles: tuple[str, str]) -> None:
    assert faults_of(bundles, tiling={"halo": 6}) == ["tiling.halo: got 6; expected a multiple of 4, the bundle's stride"]


def test_chunks_that_the_stride_does_not_divide_are_a_fault(bundles: tuple[str, str]) -> None:
    assert faults_of(bundles, mode="dense", chunk_lines=30) == [
        "chunk_lines: got 30; expected a multiple of 4, the bundle's stride"
    ]


def test_a_class_that_the_bundle_does_not_know_is_a_fault(bundles: tuple[str, str]) -> None:
    (told,) = faults_of(bundles, filters={"classes": {"rust": {}}})
    assert told.startswith("filters.classes.rust: ")
    assert "dark, bright" in told


def test_a_low_threshold_above_the_bundles_high_one_is_a_fault(bundles: tuple[str, str], tmp_path: Path) -> None:
    strict = str(write_segmenter(tmp_path / "strict", thresholds={"dark": {"low": 0.5, "high": 0.7}}))
    (told,) = faults_of((strict, bundles[1]), filters={"classes": {"dark": {"low": 0.8}}})
    assert told.startswith("filters.classes.dark: low 0.8 is above high 0.7")


def test_gate_and_segmenter_in_each_others_place_are_faults(bundles: tuple[str, str]) -> None:
    segmenter, gate = bundles
    assert faults_of((gate, segmenter))[:2] == [
        f"bundle: got {gate}, a classifier; expected a segmenter",
        f"gate: got {segmenter}, a segmenter; expected a classifier",
    ]


def test_a_gate_without_a_threshold_needs_one_in_the_station(bundles: tuple[str, str], tmp_path: Path) -> None:
    silent = str(write_gate(tmp_path / "silent", gate=None))
    assert faults_of((bundles[0], silent)) == [
        f"tiling.gate_threshold: got none, and {silent} states none; expected a value from 0 to 1"
    ]
    assert faults_of((bundles[0], silent), tiling={"gate_threshold": 0.4}) == []


def test_streaming_by_name_of_a_network_that_cannot_is_a_fault_and_by_default_is_not(bundles: tuple[str, str]) -> None:
    assert faults_of(bundles, mode="dense") == []
    assert faults_of(bundles, mode="dense", dense="slabs") == []
    assert faults_of(bundles, mode="dense", dense="streaming") == [
        f"dense: got streaming; {bundles[0]} cannot stream: expected slabs"
    ]


def test_files_that_are_not_there_are_faults(bundles: tuple[str, str], tmp_path: Path) -> None:
    folder, ca = tmp_path / "images", tmp_path / "ca.pem"
    told = faults_of(
        bundles,
        source={"kind": "folder", "path": [str(tmp_path), str(folder)]},
        sinks={"mqtt": {"tls": {"ca": str(ca)}}},
    )
    assert told == [
        f"source.path: got {folder}, which does not exist; expected a folder of images, or an image",
        f"sinks.mqtt.tls.ca: got {ca}, which does not exist; expected a PEM file",
    ]


def test_check_tells_faults_of_file_bundles_and_combination_together(
    bundles: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    station = tmp_path / "station.yaml"
    document = {
        "source": {"kind": "simulated", "widht": 3},
        "bundle": bundles[0],
        "gate": "no-such-gate",
        "mode": "cascade",
        "tiling": {"halo": 6, "batch": 0},
    }
    station.write_text(yaml.safe_dump(document))
    assert main(["config", "check", str(station)]) == 2
    told = [line.removeprefix(f"rust-edge: {station}: ") for line in capsys.readouterr().err.splitlines()]
    assert [line.split(": ")[0] for line in told] == ["source.widht", "tiling.batch", "gate", "tiling.halo"]
    assert "no-such-gate: no such bundle; expected a folder written by `rust-edge export`" in told[2]


def test_check_says_of_a_sound_station_that_it_is(
    bundles: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    station = tmp_path / "station.yaml"
    station.write_text(yaml.safe_dump({"source": {"kind": "simulated"}, "bundle": bundles[0]}))
    assert main(["config", "check", str(station)]) == 0
    assert capsys.readouterr().out == f"{station}: sound\n"


def test_check_finds_an_altered_bundle(bundles: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    altered = write_segmenter(tmp_path / "altered")
    (altered / "model.onnx").write_bytes(b"other")
    station = tmp_path / "station.yaml"
    station.write_text(yaml.safe_dump({"source": {"kind": "simulated"}, "bundle": str(altered)}))
    assert main(["config", "check", str(station)]) == 2
    assert "model.onnx was altered: sha256 is" in capsys.readouterr().err
