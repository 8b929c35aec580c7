"""`rust-edge inspect`: images as one strip; its files say what was put into the images."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from toy_engines import steel, write_gate, write_segmenter

from edge.cli import main
from edge.commands.inspect import strip_id_of
from edge.events import DefectClosed, StripFinished, StripStarted, parse_event
from edge.outputs.defect_table import COLUMNS
from edge.tracking.rle import decode_columns

DARK, BRIGHT = 20, 240
FIRST = steel(90, 150, (20, 30, 8, 40, DARK), (70, 100, 20, 10, BRIGHT))
SECOND = steel(61, 150, (0, 100, 9, 10, BRIGHT), (40, 3, 12, 12, DARK))
TRUTH = np.concatenate([FIRST, SECOND])
MASK = (TRUTH == DARK) * np.uint8(1) + (TRUTH == BRIGHT) * np.uint8(2)


@dataclass(frozen=True)
class Bench:
    """A folder with two images, a toy segmenter and a toy gate."""

    path: Path

    def inspect(self, *arguments: str, code: int = 0) -> None:
        words = ["inspect", str(self.path / "images"), "--bundle", str(self.path / "unet"), *arguments]
        assert main(words) == code

    def out(self, name: str) -> str:
        return str(self.path / "out" / name)


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engines")
    write_segmenter(folder / "unet")
    write_gate(folder / "gate")
    return folder


@pytest.fixture
def bench(tmp_path: Path, engines: Path) -> Bench:
    for name in ("unet", "gate"):
        (tmp_path / name).symlink_to(engines / name)
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.png"), FIRST)
    cv2.imwrite(str(tmp_path / "images" / "b.png"), SECOND)
    return Bench(tmp_path)


def rows_of(path: str) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def events_of(path: str) -> list[Any]:
    return [parse_event(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def test_mask_is_the_class_of_every_pixel_of_the_strip(bench: Bench) -> None:
    bench.inspect("--mask", bench.out("m.png"))
    assert np.array_equal(cv2.imread(bench.out("m.png"), cv2.IMREAD_UNCHANGED), MASK)


def test_the_table_has_a_row_for_each_defect_joined_over_images(bench: Bench) -> None:
    bench.inspect("--csv", bench.out("d.csv"))
    rows = rows_of(bench.out("d.csv"))
    assert tuple(rows[0]) == COLUMNS
    boxes = {tuple(int(row[key]) for key in ("line_start", "line_stop", "column_start", "column_stop")): row for row in rows}
    assert sorted(boxes) == [(20, 28, 30, 70), (70, 99, 100, 110), (130, 142, 3, 15)]
    joined = boxes[(70, 99, 100, 110)]
    assert (joined["class"], joined["area_px"], joined["area_mm2"], joined["ending"]) == ("bright", "290", "18.1250", "complete")
    # the middle of lines 70 to 99 and columns 100 to 110, at 0.25 mm a pixel
    assert float(joined["centroid_along_mm"]) == pytest.approx(84.5 * 0.25)
    assert float(joined["centroid_across_mm"]) == pytest.approx(105 * 0.25)


def test_runs_give_each_image_its_own_mask_back(bench: Bench) -> None:
    bench.inspect("--rle", bench.out("r.csv"))
    rows = rows_of(bench.out("r.csv"))
    assert list(rows[0]) == ["ImageId", "EncodedPixels", "ClassId"]
    for name, mask in (("a.png", MASK[:90]), ("b.png", MASK[90:])):
        decoded = np.zeros_like(mask)
        for row in rows:
            if row["ImageId"] == name:
                decoded[decode_columns(row["EncodedPixels"], *mask.shape)] = int(row["ClassId"])
        assert np.array_equal(decoded, mask)


def test_overlay_shows_grey_steel_tinted_defects_and_frames(bench: Bench) -> None:
    bench.inspect("--overlay", bench.out("o.png"))
    overlay = cv2.imread(bench.out("o.png"), cv2.IMREAD_COLOR)
    assert overlay.shape == (*MASK.shape, 3)
    assert (overlay[30:50] == 128).all()  # clean steel stays as it is
    inside_dark, inside_bright = overlay[24, 50].astype(int), overlay[85, 105].astype(int)
    assert np.ptp(inside_dark) > 20
    assert not np.array_equal(inside_dark, inside_bright)
    frame = overlay[142, 3:15]  # the line below the last defect's box
    assert (frame == frame[0]).all()
    assert np.ptp(frame[0].astype(int)) > 20


def test_events_are_those_of_a_station(bench: Bench) -> None:
    bench.inspect("--events", bench.out("e.jsonl"))
    events = events_of(bench.out("e.jsonl"))
    assert isinstance(events[0], StripStarted)
    assert isinstance(events[-1], StripFinished)
    assert {event.subject for event in events} == {"images"}
    assert sum(isinstance(event, DefectClosed) for event in events) == 3
    assert events[-1].data.coverage.inspected == events[-1].data.coverage.total == len(MASK)


def test_a_cascade_finds_the_same_where_the_gate_lets_through(bench: Bench) -> None:
    bench.inspect("--mask", bench.out("dense.png"))
    bench.inspect("--mask", bench.out("cascade.png"), "--gate", str(bench.path / "gate"))
    assert Path(bench.out("dense.png")).read_bytes() == Path(bench.out("cascade.png")).read_bytes()


@pytest.mark.parametrize("cascade", [False, True])
def test_all_files_are_the_same_bytes_however_the_lines_are_cut(bench: Bench, cascade: bool) -> None:
    found = []
    for cut in (1, 37, 4096):
        names = ["m.png", "o.png", "d.csv", "r.csv", "c.csv"]
        files = [bench.out(f"{cut}-{name}") for name in names]
        gate = ["--gate", str(bench.path / "gate")] if cascade else []
        arguments = [
            word for pair in zip(("--mask", "--overlay", "--csv", "--rle", "--contours"), files, strict=True) for word in pair
        ]
        bench.inspect(*arguments, *gate, "--set", f"source.frame_lines={cut}", "--set", f"tiling.batch={cut % 5 + 1}")
        found.append([Path(file).read_bytes() for file in [*files, bench.out(f"{cut}-c.fractions.csv")]])
    assert found[0] == found[1] == found[2]


def test_summary_counts_defects_and_lines(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.inspect("--json", "--strip-id", "coil-7")
    summary = json.loads(capsys.readouterr().out)
    assert summary["strip_id"] == "coil-7"
    assert (summary["images"], summary["lines"], summary["width_px"]) == (2, 151, 150)
    assert summary["defects"] == {"dark": 2, "bright": 1}
    assert summary["coverage"]["total"] == summary["coverage"]["inspected"] == 151


def test_a_station_gives_rules_and_engines_but_no_sinks(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    station = bench.path / "station.yaml"
    document = {
        "source": {"kind": "simulated", "frame_lines": 7},
        "bundle": str(bench.path / "unet"),
        "filters": {"classes": {"dark": {"ignore": True}}},
        "sinks": {"jsonl": str(bench.path / "never.jsonl"), "mqtt": {"password": "${NOT_SET_ANYWHERE}"}},
    }
    station.write_text(yaml.safe_dump(document))
    assert main(["inspect", str(bench.path / "images"), "-c", str(station), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["defects"] == {"bright": 1}
    assert not (bench.path / "never.jsonl").exists()


def test_of_a_station_with_several_cameras_one_is_named(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    station = bench.path / "station.yaml"
    document = {
        "bundle": str(bench.path / "unet"),
        "filters": {"classes": {"dark": {"ignore": True}}},
        "sinks": {"jsonl": str(bench.path / "never.jsonl"), "mqtt": {"password": "${NOT_SET_ANYWHERE}"}},
        "cameras": [
            {"camera": "top", "source": {"kind": "simulated"}},
            {"camera": "bottom", "source": {"kind": "simulated"}, "filters": {"classes": {"dark": {"ignore": False}}}},
        ],
    }
    station.write_text(yaml.safe_dump(document))
    words = ["inspect", str(bench.path / "images"), "-c", str(station), "--json", "--set", "source.frame_lines=11"]
    found = {}
    for camera in ("top", "bottom"):
        assert main([*words, "--camera", camera]) == 0
        found[camera] = json.loads(capsys.readouterr().out)["defects"]
    assert found == {"top": {"bright": 1}, "bottom": {"dark": 2, "bright": 1}}
    assert main([*words, "--camera", "top", "--set", "cameras.0.filters.classes.dark.ignore=false"]) == 0
    assert json.loads(capsys.readouterr().out)["defects"] == found["bottom"]
    assert main(words) == 2
    assert capsys.readouterr().err == f"rust-edge: {station}: cameras: got 2; expected --camera with one of top, bottom\n"
    assert main([*words, "--camera", "left"]) == 2
    assert capsys.readouterr().err == f"rust-edge: {station}: --camera: got left; expected one of top, bottom\n"
    assert main(["inspect", str(bench.path / "images"), "--camera", "top"]) == 2
    assert "--camera: got top, and no station file" in capsys.readouterr().err
    assert not (bench.path / "never.jsonl").exists()


def test_what_this_run_writes_is_never_its_input(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    mask = str(bench.path / "images" / "mask.png")
    for _ in range(2):
        bench.inspect("--mask", mask, "--json")
        assert json.loads(capsys.readouterr().out)["images"] == 2


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--mask", "{out}/f.png", "--overlay", "{out}/f.png"], 2, "--overlay: got {out}/f.png, which --mask writes too"),
        (["--csv", "{path}/images"], 2, "--csv: got {path}/images, which is to be inspected"),
        (["--contours", "{out}/f.txt"], 2, "--contours: got {out}/f.txt; expected a name that ends in .csv or .xlsx"),
        (
            ["--contours", "{out}/f.csv", "--rle", "{out}/f.fractions.csv"],
            2,
            "--contours (fractions): got {out}/f.fractions.csv, which --rle writes too",
        ),
        (["--csv", "{path}/gate"], 2, "--csv: got {path}/gate, which is no file"),
        (["--csv", "{path}/images/a.png/d.csv"], 2, "--csv: got {path}/images/a.png/d.csv, which cannot be written"),
        (["--set", "tiling.batch=0"], 2, "command line: tiling.batch: got 0; expected at least 1"),
        (["--set", "source.loop=true"], 2, "command line: source: got one without an end"),
        (["--set", "chunk_lines=30"], 2, "command line: chunk_lines: got 30; expected a multiple of 4"),
        (["--bundle", "{path}/none"], 3, "{path}/none: no such bundle"),
        (["--gate", "{path}/unet"], 2, "command line: gate: got {path}/unet, a segmenter; expected a classifier"),
    ],
)
def test_faults_are_told_before_any_work(
    bench: Bench, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, told: str
) -> None:
    places = {"path": bench.path, "out": bench.path / "out"}
    bench.inspect(*[argument.format(**places) for argument in arguments], code=code)
    error = capsys.readouterr().err
    assert error.startswith(f"rust-edge: {told.format(**places)}")
    assert error.count("\n") == 1


@pytest.mark.parametrize("fault", ["width", "truncated"])
def test_an_image_that_does_not_belong_leaves_nothing_half_written(
    bench: Bench, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    last = bench.path / "images" / "c.png"
    cv2.imwrite(str(last), steel(40, 140 if fault == "width" else 150))
    if fault == "truncated":
        last.write_bytes(last.read_bytes()[:-40])
    old = Path(bench.out("m.png"))
    old.parent.mkdir()
    old.write_bytes(b"old")
    tables = ["--contours", bench.out("c.xlsx"), "--rle", bench.out("r.csv")]
    bench.inspect(
        "--mask", bench.out("m.png"), "--events", bench.out("e.jsonl"), "--overlay", bench.out("o.png"), *tables, code=4
    )
    assert str(last) in capsys.readouterr().err
    assert [path.name for path in old.parent.iterdir()] == ["m.png"]
    assert old.read_bytes() == b"old"


def test_no_image_is_told_so(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(bench.path / "nowhere.png")]) != 0
    assert "nowhere.png: does not exist; expected an image or a folder of images" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["strip.png", "Bänder (1).tif", "...", "x" * 200 + ".bmp"])
def test_a_strip_id_is_made_of_any_name(name: str) -> None:
    strip_id = strip_id_of(Path(name))
    assert 0 < len(strip_id) <= 64
    assert set(strip_id) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
    assert strip_id[0].isalnum()
