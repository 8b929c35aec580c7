"""A station file is held against the bundles and files that it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from toy_engines import write_cell_gate, write_gate, write_range_classifier, write_relative_segmenter, write_segmenter

from edge.bundle import open_bundle
from edge.cli import main
from edge.config import Tiling, parse_config
from edge.manifest import EngineInput
from edge.station import check_station
from edge.tile_plan import band_lines, gate_chunk_lines


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("bundles")
    return str(write_segmenter(folder / "toy-unet")), str(write_gate(folder / "toy-gate"))


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_cell_gate(tmp_path_factory.mktemp("cells") / "cell-gate"))


def faults_of(bundles: tuple[str, str], **keys: Any) -> list[str]:
    document = {"source": {"kind": "simulated"}, "bundle": bundles[0], "gate": bundles[1], "mode": "cascade"} | keys
    config = parse_config(document, "f")
    return check_station(config, open_bundle(config.bundle), open_bundle(config.gate) if config.gate else None)


def test_a_sound_station_has_no_faults(bundles: tuple[str, str]) -> None:
    assert faults_of(bundles) == []
    assert faults_of(bundles, mode="dense", gate=None) == []


def test_a_gate_of_cells_is_sound_in_a_cascade_and_a_fault_in_mode_tiles(bundles: tuple[str, str], cells: str) -> None:
    assert faults_of((bundles[0], cells)) == []
    assert faults_of((bundles[0], cells), mode="tiles") == [
        f"gate: got {cells}, which scores cells and not tiles; expected a gate for tiles, or mode: cascade"
    ]


def test_a_gate_of_cells_streams(bundles: tuple[str, str], tmp_path: Path) -> None:
    still = str(write_cell_gate(tmp_path / "still", streaming=None))
    assert faults_of((bundles[0], still)) == [
        f"gate: got {still}, which scores cells and holds no stream: expected it to be exported again, or tiles"
    ]


def test_cells_that_the_segmenter_s_stride_does_not_divide_are_a_fault(
    bundles: tuple[str, str], cells: str, tmp_path: Path
) -> None:
    coarse = str(write_segmenter(tmp_path / "coarse", stride=16, halo=0))
    assert faults_of((coarse, cells)) == [
        f"gate: got {cells} with cells of 8 x 8 px; expected multiples of 16, the stride of {coarse}"
    ]
    assert faults_of((coarse, bundles[1])) == []


def test_bands_hold_whole_looks_of_the_gate(bundles: tuple[str, str], cells: str) -> None:
    assert faults_of(bundles, tiling={"band_lines": 96}) == []
    assert faults_of((bundles[0], cells), tiling={"band_lines": 40}) == []
    assert faults_of(bundles, tiling={"band_lines": 40}) == [
        f"tiling.band_lines: got 40; expected a multiple of 32, the fewest lines that {bundles[1]} looks at"
    ]
    assert faults_of((bundles[0], cells), tiling={"band_lines": 36}) == [
        f"tiling.band_lines: got 36; expected a multiple of 8, the fewest lines that {cells} looks at"
    ]
    for mode in ("dense", "tiles"):
        assert faults_of(bundles, mode=mode, tiling={"band_lines": 256}) == [
            f"tiling.band_lines: got 256, and mode {mode}; expected mode: cascade, or none"
        ]


def test_a_band_is_256_lines_or_the_next_multiple_and_chunks_of_the_gate_divide_it(bundles: tuple[str, str], cells: str) -> None:
    tiles, mapped = (open_bundle(name).manifest for name in (bundles[1], cells))
    assert [band_lines(Tiling(), tiles), band_lines(Tiling(), mapped)] == [256, 256]
    tall = tiles.model_copy(update={"input": EngineInput(tile_height=100, tile_width=32)})
    assert band_lines(Tiling(), tall) == 300
    assert band_lines(Tiling(band_lines=400), tall) == 400
    # of the gate's own lines, half as many as the strip's: 64, then the next below that 160 / 2 divides by, at least its stride
    assert [gate_chunk_lines(64, band, mapped) for band in (256, 160, 8)] == [32, 20, 4]
    assert gate_chunk_lines(1, 256, mapped) == 4
    assert gate_chunk_lines(4096, 256, mapped) == 128


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
        f"bundle: got {gate}, a classifier; expected a segmenter, or mode: tiles",
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


@pytest.fixture(scope="module")
def tiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Bundles that run on tiles."""
    folder = tmp_path_factory.mktemp("tiled")
    steps = [{"kind": "clahe", "clip_limit": 10.0}, {"kind": "resize"}]
    return {
        "prepared": str(write_relative_segmenter(folder / "prepared", preparation=steps, strip_tile=[48, 200])),
        "whole": str(write_relative_segmenter(folder / "whole", whole_tile="encoder.se.pool (GlobalAveragePool)")),
        "halved": str(write_relative_segmenter(folder / "halved", input={"tile_height": 32, "tile_width": 32, "reduce": 2})),
        "classifier": str(write_range_classifier(folder / "classifier")),
        "resizing gate": str(write_gate(folder / "gate", preparation=[{"kind": "resize"}])),
        "probable": str(write_relative_segmenter(folder / "probable", head="probabilities", pixel_threshold=0.6)),
        "mask": str(write_segmenter(folder / "mask", head="mask")),
    }


def tile_faults(bundle: str, gate: str | None = None, tiling: dict[str, Any] | None = None, **keys: Any) -> list[str]:
    return faults_of((bundle, ""), gate=gate, tiling=tiling or {}, **({"mode": "tiles"} | keys))


def test_what_prepares_or_looks_at_whole_tiles_runs_in_mode_tiles_alone(bundles: tuple[str, str], tiled: dict[str, str]) -> None:
    reasons = {
        "prepared": "prepares each tile by itself (clahe, resize)",
        "whole": "looks at a whole tile at once (encoder.se.pool (GlobalAveragePool))",
        "halved": "wants tiles averaged over 2 x 2 px",
    }
    for name, reason in reasons.items():
        assert tile_faults(tiled[name]) == []
        for mode, gate in (("dense", None), ("cascade", bundles[1])):
            expected = f"mode: got {mode}; {tiled[name]} {reason}: expected mode: tiles"
            assert expected in tile_faults(tiled[name], gate, mode=mode)
    assert tile_faults(tiled["classifier"]) == []
    assert tile_faults(bundles[0], tiled["resizing gate"], mode="cascade") == [
        f"gate: got {tiled['resizing gate']}, which prepares each tile by itself (resize); "
        "expected one that does not, or mode: tiles"
    ]


def test_a_tile_of_another_size_than_the_engine_s_needs_a_resize(tiled: dict[str, str]) -> None:
    size = {"tile_lines": 48, "tile_columns": 32}
    assert tile_faults(tiled["whole"], tiling=size) == [
        f"tiling.tile_lines: got 48; {tiled['whole']} has no resize step: expected 32, or none"
    ]
    assert tile_faults(tiled["halved"], tiling=size) == [
        f"tiling.tile_lines: got 48; {tiled['halved']} has no resize step: expected 64, or none",
        f"tiling.tile_columns: got 32; {tiled['halved']} has no resize step: expected 64, or none",
    ]
    assert tile_faults(tiled["prepared"], tiling=size) == []


def test_a_step_beyond_the_tile_is_a_fault(tiled: dict[str, str]) -> None:
    assert tile_faults(tiled["prepared"], tiling={"step_lines": 49, "step_columns": 200}) == [
        "tiling.step_lines: got 49; expected at most 48, a tile: what lies between two is not seen"
    ]


def test_cores_need_the_same_margin_at_both_sides(tiled: dict[str, str]) -> None:
    assert tile_faults(tiled["prepared"], tiling={"step_columns": 101}) == [
        "tiling.step_columns: got 101, and tiles of 200; merge core has the same margin at both sides: "
        "expected 100 or 102, or merge: union"
    ]
    assert tile_faults(tiled["prepared"], tiling={"step_columns": 101, "merge": "union"}) == []


def test_a_mask_has_no_mean_and_no_threshold(tiled: dict[str, str]) -> None:
    assert tile_faults(tiled["mask"], tiling={"merge": "mean", "pixel_threshold": 0.4}) == [
        f"tiling.pixel_threshold: got 0.4; {tiled['mask']} answers with classes that its engine has decided on: expected none",
        f"tiling.merge: got mean; {tiled['mask']} answers with classes, not probabilities: expected core or union",
    ]


def test_a_pixel_threshold_is_for_sigmoid_segmenters(bundles: tuple[str, str], tiled: dict[str, str]) -> None:
    tiling = {"pixel_threshold": 0.4}
    assert tile_faults(tiled["whole"], tiling=tiling) == []
    assert tile_faults(tiled["classifier"], tiling=tiling) == [
        f"tiling.pixel_threshold: got 0.4; {tiled['classifier']} is a classifier: expected tiling.gate_threshold"
    ]
    assert tile_faults(bundles[0], tiling=tiling, mode="dense", chunk_lines=32) == [
        f"tiling.pixel_threshold: got 0.4; {bundles[0]} has one probability for each class and the background, "
        "the highest counts: expected none"
    ]


def test_a_gate_of_tiles_takes_the_station_s_tiles(bundles: tuple[str, str], tiled: dict[str, str]) -> None:
    assert tile_faults(tiled["prepared"], tiled["resizing gate"]) == []
    assert tile_faults(tiled["whole"], bundles[1]) == []
    assert tile_faults(tiled["prepared"], bundles[1]) == [
        f"gate: got {bundles[1]}, whose tiles are 32 x 32 px, without a resize step; expected one for tiles of 48 x 200 px"
    ]
    silent = tiled["classifier"]
    assert tile_faults(tiled["whole"], silent) == [
        f"tiling.gate_threshold: got none, and {silent} states none; expected a value from 0 to 1"
    ]
    assert tile_faults(tiled["whole"], silent, {"gate_threshold": 0.01}) == []


def test_keys_that_a_mode_does_not_have_are_faults(bundles: tuple[str, str], tiled: dict[str, str]) -> None:
    assert tile_faults(tiled["whole"], tiling={"halo": 8, "gate_threshold": 0.5}) == [
        "tiling.halo: got 8, and mode tiles; expected none, and steps smaller than the tile",
        "tiling.gate_threshold: got 0.5, and no gate; expected a gate, or none",
    ]
    assert faults_of(bundles, tiling={"step_lines": 16, "merge": "union"}) == [
        "tiling.step_lines: got 16, and mode cascade; expected mode: tiles, or none",
        "tiling.merge: got union, and mode cascade; expected mode: tiles, or none",
    ]
    assert tile_faults(tiled["classifier"], tiling={"gate_threshold": 0.5}) == []


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
