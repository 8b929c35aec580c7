"""Stations in mode tiles, from the file to the events, through `rust-edge inspect`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from toy_engines import (
    range_logits,
    relative_logits,
    steel,
    write_gate,
    write_range_classifier,
    write_relative_segmenter,
)

from edge.cli import main
from edge.defects import Ending
from edge.events import DefectClosed, parse_event

EVERYTHING = {"default": {"min_area_mm2": 0.0}, "merge": {"along_mm": 0, "across_mm": 0}, "fixed_columns": {"over_mm": None}}


class Bench:
    """A strip in a folder, and stations that inspect it."""

    def __init__(self, folder: Path, strip: np.ndarray, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys
        assert cv2.imwrite(str(folder / "strip.png"), strip)

    def inspect(self, *overrides: str, **keys: Any) -> tuple[dict[str, Any], np.ndarray, list[Any]]:
        """Summary, mask and closed defects."""
        document = {"mode": "tiles", "filters": EVERYTHING, "session": {"threads": 1}, **keys}
        station = self.folder / "station.yaml"
        station.write_text(yaml.safe_dump(document))
        mask, events = self.folder / "mask.png", self.folder / "events.jsonl"
        told = [word for override in overrides for word in ("--set", override)]
        arguments = ["inspect", str(self.folder / "strip.png"), "-c", str(station), "--mask", str(mask), "--events", str(events)]
        assert main([*arguments, "--json", *told]) == 0
        summary = json.loads(self._capsys.readouterr().out)
        closed = [event.data for line in events.read_text().splitlines() if isinstance(event := parse_event(line), DefectClosed)]
        return summary, cv2.imread(str(mask), cv2.IMREAD_UNCHANGED), closed


def test_slices_of_224_every_100_px_are_one_mask_and_regions_join_over_their_seams(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_relative_segmenter(tmp_path / "pits", (224, 224), whole_tile="pool")
    strip = steel(700, 460, (90, 90, 140, 150, 230), (640, 420, 60, 40, 230))
    bench = Bench(tmp_path, strip, capsys)
    tiling = {"step_lines": 100, "step_columns": 100, "merge": "union"}
    summary, mask, closed = bench.inspect(bundle=str(tmp_path / "pits"), tiling=tiling)
    np.testing.assert_array_equal(mask, strip == 230)
    assert [(d.box_px.line_start, d.box_px.line_stop, d.box_px.column_start, d.box_px.column_stop) for d in closed] == [
        (90, 230, 90, 240),
        (640, 700, 420, 460),
    ]
    assert summary["coverage"] == {"inspected": 700, "gated": 0, "lost": 0, "shed": 0, "total": 700}
    again = bench.inspect("source.frame_lines=37", "tiling.batch=3", bundle=str(tmp_path / "pits"), tiling=tiling)
    np.testing.assert_array_equal(again[1], mask)
    assert [d.defect_id for d in again[2]] == [d.defect_id for d in closed]


def test_rows_of_tiles_that_the_gate_stops_count_as_gated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A gate that resizes 256 x 1600 px to 32 x 32 lets tiles through from 0.01 on."""
    write_relative_segmenter(tmp_path / "unet", (64, 64), preparation=[{"kind": "resize"}], strip_tile=[256, 1600])
    stated = {"score": 0.01, "recall": 1.0, "passed_clean": 0.1}
    write_gate(tmp_path / "gate", preparation=[{"kind": "resize", "method": "area"}], gate=stated)
    strip = np.concatenate([steel(256, 1600), steel(256, 1600, (40, 300, 120, 400, 240)), steel(100, 1600)])
    bench = Bench(tmp_path, strip, capsys)
    keys = {"bundle": str(tmp_path / "unet"), "gate": str(tmp_path / "gate")}
    summary, mask, closed = bench.inspect(**keys)
    assert summary["coverage"] == {"inspected": 256, "gated": 356, "lost": 0, "shed": 0, "total": 612}
    small = cv2.resize(strip[256:512], (64, 64))
    told = (relative_logits(small)[0] >= 0).astype(np.uint8)
    np.testing.assert_array_equal(mask[256:512], cv2.resize(told, (1600, 256), interpolation=cv2.INTER_NEAREST))
    assert not mask[:256].any()
    assert not mask[512:].any()
    (defect,) = closed
    assert defect.gate_score == pytest.approx(1.0)
    all_seen, _, _ = bench.inspect("tiling.gate_threshold=0.0", **keys)
    assert all_seen["coverage"]["inspected"] == 612


def test_neighbouring_tiles_of_one_class_are_one_defect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_range_classifier(tmp_path / "classifier", (16, 16), preparation=[{"kind": "resize"}], strip_tile=[40, 50])
    strip = steel(240, 300)
    strip[40:120, 100:200] = 255
    strip[160:200, 0:50] = 3
    _, mask, closed = Bench(tmp_path, strip, capsys).inspect(bundle=str(tmp_path / "classifier"))
    boxes = {d.class_name: d.box_px for d in closed}
    assert {name: (b.line_start, b.line_stop, b.column_start, b.column_stop) for name, b in boxes.items()} == {
        "light": (40, 120, 100, 200),
        "gloomy": (160, 200, 0, 50),
    }
    np.testing.assert_array_equal(mask, (strip == 255) * np.uint8(1) + (strip == 3) * np.uint8(2))
    logits = range_logits(np.full((1, 1), 255))
    probability = np.exp(logits[1]) / np.exp(logits).sum()
    assert {d.class_name: d.confidence_peak for d in closed}["light"] == pytest.approx(probability, abs=0.003)
    assert {d.ending for d in closed} == {Ending.COMPLETE.value}


def test_what_a_low_score_calls_defective_reaches_the_events(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of tiles called defective from 0.01 on most are below a half: the tracker's usual threshold must not take them back."""
    write_range_classifier(tmp_path / "classifier", (32, 32))
    strip = steel(96, 96, (32, 32, 32, 32, 144))
    bench = Bench(tmp_path, strip, capsys)
    probability = np.exp(range_logits(np.full((1, 1), 144)))[1:].sum()
    assert 0.05 < probability < 0.3
    assert bench.inspect(bundle=str(tmp_path / "classifier"))[2] == []
    _, _, closed = bench.inspect("tiling.gate_threshold=0.05", bundle=str(tmp_path / "classifier"))
    assert [d.area_px for d in closed] == [32 * 32]
    strict, _, _ = bench.inspect(
        "tiling.gate_threshold=0.05", "filters.default.low=0.4", "filters.default.high=0.4", bundle=str(tmp_path / "classifier")
    )
    assert strict["defects"] == {}


@pytest.mark.parametrize("level", [0.2, 0.9])
def test_a_level_below_a_half_reaches_the_events_too(tmp_path: Path, capsys: pytest.CaptureFixture[str], level: float) -> None:
    write_relative_segmenter(tmp_path / "unet", (64, 64), whole_tile="pool")
    strip = np.tile(np.array([100, 106, 112, 130], np.uint8).repeat(16), (64, 1))
    logits = relative_logits(strip)[0]
    expected = 1 / (1 + np.exp(-logits.astype(np.float64))) >= level
    assert expected.any()
    assert not expected.all()
    keys = {"bundle": str(tmp_path / "unet"), "tiling": {"pixel_threshold": level}}
    _, mask, closed = Bench(tmp_path, strip, capsys).inspect(**keys)
    np.testing.assert_array_equal(mask, expected)
    assert sum(defect.area_px for defect in closed) == expected.sum()


@pytest.mark.parametrize("mode", ["cascade", "dense", "tiles"])
def test_every_mode_reads_probabilities_too(tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str) -> None:
    """Crops of one size and one range of grey: an engine that answers with logits, and one with probabilities."""
    strip = steel(128, 128, (40, 40, 20, 30, 220), (100, 0, 4, 4, 30))
    bench = Bench(tmp_path, strip, capsys)
    write_gate(tmp_path / "gate")
    masks = []
    for head in ("logits", "probabilities"):
        write_relative_segmenter(tmp_path / head, defects=2, head=head, pixel_threshold=0.7)
        keys = {"bundle": str(tmp_path / head), "gate": str(tmp_path / "gate"), "mode": mode, "dense": "slabs"}
        masks.append(bench.inspect(**keys)[1])
    np.testing.assert_array_equal(*masks)
    assert {1, 2} <= set(masks[0].ravel())
