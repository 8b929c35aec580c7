"""The flat field as the device applies it: bit for bit what the GPU's kernel computes, whole files or one clear error."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from brightness import BrightnessSegmenter
from hypothesis import given, settings
from hypothesis import strategies as st
from stations import events_in, station, told, write_strip
from twins import flat_field as kernel

from edge import config
from edge.config import Filters, Scale, parse_config, parse_file, stations_of
from edge.daemon import Daemon
from edge.engines import Engines, config_hash
from edge.errors import ConfigError
from edge.frame import Frame
from edge.pipeline import Pipeline
from edge.radiometry import (
    OFFSET_LIMIT,
    Correction,
    FlatField,
    Interval,
    Provenance,
    Validity,
    correct,
    flat_field_bytes,
    neighbours_of,
    read_flat_field,
    write_flat_field,
)
from edge.reporting import StripContext
from edge.station import check_station
from edge.tracking.filters import resolve_rules
from edge.tracking.tracker import DefectTracker

PROVENANCE = Provenance(
    camera="top",
    made_at=datetime(2026, 11, 21, tzinfo=timezone.utc),
    version="0.1.0",
    dark_lines=1000,
    bright_lines=1000,
    level=150.0,
    noise_grey=0.1,
)
EVERY_LEVEL = np.arange(256, dtype=np.uint8)


def field(dark: Any, gain: Any, interpolated: tuple[int, ...] = ()) -> FlatField:
    return FlatField(np.array(dark, np.uint16), np.array(gain, np.uint16), interpolated, PROVENANCE, Validity())


def some_field(width: int, seed: int = 0, interpolated: tuple[int, ...] = ()) -> FlatField:
    rng = np.random.default_rng(seed)
    return field(rng.integers(0, 3000, width), rng.integers(2500, 9000, width), interpolated)


def by_the_kernel(flat: FlatField, lines: np.ndarray) -> np.ndarray:
    """The numpy twin of edge/cuda/kernels.cu's `flat_field`, over memory of its own."""
    memory = [lines.ravel(), np.zeros(lines.size, np.uint8), flat.dark.view(np.uint8), flat.gain.view(np.uint8)]
    kernel(lambda address, nbytes: memory[address][:nbytes], 0, 1, len(lines), lines.shape[1], 0, len(lines), 2, 3)
    return memory[1].reshape(lines.shape)


# every grey level with gains and dark signals that 16 bits hold, the largest products that a flat field may have among them
@given(seed=st.integers(0, 2**32 - 1), brim=st.booleans())
@settings(max_examples=40, deadline=None)
def test_correction_is_the_gpu_kernels_bit_for_bit(seed: int, brim: bool) -> None:
    rng = np.random.default_rng(seed)
    gain = rng.integers(0, 65536, 512)
    largest = np.minimum(65535, (OFFSET_LIMIT - 1) // np.maximum(gain, 1))
    dark = largest if brim else (rng.random(512) * (largest + 1)).astype(np.int64)
    flat = field(dark, gain)
    raw = np.repeat(EVERY_LEVEL[:, None], 512, axis=1)
    assert np.array_equal(correct(flat, raw), by_the_kernel(flat, raw))


def test_a_half_is_rounded_up_and_white_stays_white() -> None:
    flat = field([0, 128, 256, 0], [4096, 4096, 2048, 65535])
    raw = np.array([[7, 7, 8, 200], [0, 0, 0, 0], [255, 255, 255, 255]], np.uint8)
    assert correct(flat, raw).tolist() == [[7, 7, 4, 255], [0, 0, 0, 0], [255, 255, 127, 255]]


@given(height=st.integers(1, 200), cut=st.integers(0, 200), width=st.sampled_from([1, 63, 64, 4097, 65536]))
@settings(max_examples=20, deadline=None)
def test_a_line_does_not_depend_on_the_lines_it_comes_with(height: int, cut: int, width: int) -> None:
    height, cut = min(height, 200_000 // width + 2), min(cut, height)
    raw = np.random.default_rng(width).integers(0, 256, (height, width), np.uint8)
    correction = Correction(some_field(width, interpolated=(0, 2, 3) if width > 4 else ()))
    whole = correction(raw)
    assert np.array_equal(whole, np.concatenate([correction(raw[:cut]), correction(raw[cut:])]))


def test_lines_of_any_layout_are_corrected_and_stay_as_they_are() -> None:
    flat = some_field(96, interpolated=(5,))
    raw = np.random.default_rng(1).integers(0, 256, (40, 192), np.uint8)
    views = {"every second column": raw[:, ::2], "upside down": raw[::-1, :96], "a part": raw[3:7, 40:136]}
    for view in views.values():
        before = view.copy()
        assert np.array_equal(correct(flat, view), by_the_kernel_and_neighbours(flat, np.ascontiguousarray(view)))
        assert np.array_equal(view, before)
    frozen = raw[:, :96].copy()
    frozen.setflags(write=False)
    assert np.array_equal(correct(flat, frozen), correct(flat, raw[:, :96]))


def test_lines_may_be_corrected_where_they_are() -> None:
    flat = some_field(300, interpolated=(0, 7, 8, 299))
    raw = np.random.default_rng(1).integers(0, 256, (90, 300), np.uint8)
    expected = correct(flat, raw)
    assert correct(flat, raw, out=raw) is raw
    assert np.array_equal(raw, expected)


def by_the_kernel_and_neighbours(flat: FlatField, lines: np.ndarray) -> np.ndarray:
    """The definition at the head of edge/radiometry.py, pixel by pixel."""
    grey = by_the_kernel(flat, lines).astype(int)
    made = grey.copy()
    good = [column for column in range(flat.width) if column not in flat.interpolated]
    for c in flat.interpolated:
        l, r = max((x for x in good if x < c), default=None), min((x for x in good if x > c), default=None)  # noqa: E741
        if l is None or r is None:
            made[:, c] = grey[:, r if l is None else l]
        else:
            made[:, c] = ((r - c) * grey[:, l] + (c - l) * grey[:, r] + (r - l) // 2) // (r - l)
    return made.astype(np.uint8)


@given(
    width=st.integers(2, 40).flatmap(
        lambda width: st.tuples(st.just(width), st.sets(st.integers(0, width - 1), min_size=1, max_size=width - 1))
    )
)
@settings(max_examples=60, deadline=None)
def test_bad_columns_are_made_of_their_nearest_good_neighbours(width: tuple[int, set[int]]) -> None:
    columns, bad = width
    flat = some_field(columns, columns, tuple(sorted(bad)))
    raw = np.random.default_rng(columns).integers(0, 256, (9, columns), np.uint8)
    assert np.array_equal(correct(flat, raw), by_the_kernel_and_neighbours(flat, raw))


def test_neighbours_are_listed_for_who_computes_them_elsewhere() -> None:
    left, right = neighbours_of([0, 3, 4, 7], 8)
    assert (left.tolist(), right.tolist()) == ([1, 2, 2, 6], [1, 5, 5, 6])


@pytest.mark.parametrize(
    ("dark", "gain", "interpolated", "fault"),
    [
        ([0], [4096, 4096], (), r"got dark \(1,\) and gain \(2,\)"),
        ([0, 0], [4096, 4096], (1, 0), "expected rising ones from 0 to 1"),
        ([0, 0], [4096, 4096], (2,), "expected rising ones from 0 to 1"),
        ([0, 0], [4096, 4096], (0, 1), "expected at least one good one"),
        ([65535, 0], [65535, 0], (), "4096 grey levels; expected less than 2048"),
    ],
)
def test_a_flat_field_that_cannot_be_is_refused(dark: list[int], gain: list[int], interpolated: Any, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        field(dark, gain, interpolated)


def test_a_file_read_back_is_the_flat_field_that_was_written(tmp_path: Path) -> None:
    flat = FlatField(
        np.array([0, 700, 65535], np.uint16),
        np.array([4096, 1, 8000], np.uint16),
        (1,),
        PROVENANCE,
        Validity(exposure_us=Interval(low=20, high=40)),
    )
    write_flat_field(tmp_path / "ff.json", flat, "--out")
    read = read_flat_field(tmp_path / "ff.json")
    assert (read.dark.tolist(), read.gain.tolist(), read.interpolated) == ([0, 700, 65535], [4096, 1, 8000], (1,))
    assert (read.provenance, read.validity, read.sha256) == (flat.provenance, flat.validity, flat.sha256)


def test_a_file_that_was_only_formatted_anew_is_still_whole(tmp_path: Path) -> None:
    flat = some_field(10)
    (tmp_path / "ff.json").write_text(json.dumps(json.loads(flat_field_bytes(flat)), indent=3, sort_keys=True))
    assert read_flat_field(tmp_path / "ff.json").sha256 == flat.sha256


def changed(**changes: Any) -> bytes:
    return json.dumps(json.loads(flat_field_bytes(some_field(10))) | changes).encode()


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "is no flat field, or damaged"),
        (b"\xff\xfe", "is no flat field, or damaged"),
        (b"[1, 2]", "is no flat field; expected a file that"),
        (b'{"format": "rust-edge-noise"}', "is no flat field; expected a file that"),
        (flat_field_bytes(some_field(10))[:-40], "is no flat field, or damaged"),
        (changed(format_version=2), "has version 2, expected 1"),
        (changed(gain_4096ths=[4096] * 10), "is damaged: its sha256 is"),
        (changed(sha256=None), "is damaged: its sha256 is"),
    ],
)
def test_a_damaged_or_foreign_file_is_one_clear_error(tmp_path: Path, content: bytes, fault: str) -> None:
    (tmp_path / "ff.json").write_bytes(content)
    with pytest.raises(ConfigError, match=fault) as caught:
        read_flat_field(tmp_path / "ff.json")
    assert str(caught.value).startswith(f"flat_field: {tmp_path / 'ff.json'}: ")
    assert "\n" not in str(caught.value)


def sealed(**changes: Any) -> bytes:
    """A file whose checksum is right, and whose content is not."""
    import hashlib

    content = json.loads(flat_field_bytes(some_field(10))) | changes
    del content["sha256"]
    told = hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    return json.dumps(content | {"sha256": told}).encode()


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"dark_256ths": [0] * 9}, "got 9 values from 0 to 0; expected 10 from 0 to 65535"),
        ({"gain_4096ths": [70000] * 10}, "from 70000 to 70000; expected 10 from 0 to 65535"),
        ({"interpolated_columns": [4, 4]}, "expected rising ones"),
        ({"width": 0}, "width: "),
        ({"provenance": {}}, "provenance.camera: "),
        ({"more": 1}, "more: "),
    ],
)
def test_a_file_of_impossible_values_is_refused_even_where_its_checksum_is_right(
    tmp_path: Path, changes: dict[str, Any], fault: str
) -> None:
    (tmp_path / "ff.json").write_bytes(sealed(**changes))
    with pytest.raises(ConfigError, match=fault):
        read_flat_field(tmp_path / "ff.json")


def test_lines_of_another_width_are_refused() -> None:
    with pytest.raises(ConfigError, match="flat field has 4096 columns, the camera delivers 8192"):
        correct(some_field(4096), np.zeros((1, 8192), np.uint8))


def pipeline(flat: FlatField | None, width: int) -> Pipeline:
    rules = resolve_rules(Filters(), ("background", "bright", "dark"), {}, Scale())
    tracker = DefectTracker(rules, Scale(), ("background", "bright", "dark"), "s1")
    context = StripContext("/a/b/c", "s1", width, Scale(), "dense", "bundle", "e" * 64, None, None, "c" * 64)
    segmenter = BrightnessSegmenter(40, 24)
    return (
        Pipeline(segmenter, tracker, context, 64, corrected=Correction(flat))
        if flat
        else Pipeline(segmenter, tracker, context, 64)
    )


def findings(image: np.ndarray, cuts: list[int], flat: FlatField | None) -> tuple[list[tuple[Any, ...]], np.ndarray]:
    one = pipeline(flat, image.shape[1])
    stops = sorted({*cuts, len(image)})
    events, seen = [], []
    for first, stop in zip([0, *stops[:-1]], stops, strict=True):
        found = one.push(Frame(image[first:stop], first, 1_000_000_000 + stop))
        events += found.events
        seen += [one.judgement.lines_of(found.rows[-1])] if found.rows else []
    events += one.finish().events
    told = [(event.type, event.id, repr(event.data.model_dump(exclude={"latency_ms", "captured_at"}))) for event in events]
    return told, np.concatenate(seen)


def faulty(image: np.ndarray, flat: FlatField) -> np.ndarray:
    """The image as a camera would deliver it that the flat field makes right again, as far as whole levels allow."""
    raw = (image * 4096.0 / np.maximum(flat.gain, 1) * 1.0 + flat.dark / 256.0).round()
    return raw.clip(0, 255).astype(np.uint8)


@given(cuts=st.lists(st.integers(1, 399), max_size=8))
@settings(max_examples=15, deadline=None)
def test_findings_are_those_of_lines_that_were_corrected_before_however_they_are_cut(cuts: list[int]) -> None:
    flat = some_field(96, 4, (11, 50))
    image = np.full((400, 96), 120, np.uint8)
    image[60:90, 20:44] = 220
    image[200:330, 48:54] = 20
    raw = faulty(image, flat)
    expected, _ = findings(correct(flat, raw), [], None)
    got, _ = findings(raw, cuts, flat)
    assert got == expected
    assert sum(kind == "io.rust-edge.defect.closed.v1" for kind, *_ in got) == 2


def test_lines_before_a_resumed_strip_are_corrected_too() -> None:
    flat = some_field(96, 4)
    raw = faulty(np.full((300, 96), 120, np.uint8), flat)
    one = pipeline(flat, 96)
    from_line = one.segmentation.resume(200, 64)
    segmented = list(one.segmentation.push(Frame(raw[from_line:], from_line, 1)))
    seen = [part for step in segmented for part in (step.context, step.lines) if part is not None]
    assert from_line < 200
    assert np.array_equal(np.concatenate(seen), correct(flat, raw[from_line:]))


def write_station(folder: Path, flat: FlatField | None) -> dict[str, Any]:
    strip = write_strip(folder / "strip", lines=600, image_lines=200)
    if flat is None:
        return station(folder)
    import cv2

    for index, first in enumerate(range(0, 600, 200)):
        assert cv2.imwrite(str(folder / "strip" / f"{index:04d}.png"), faulty(strip, flat)[first : first + 200])
    write_flat_field(folder / "ff.json", flat, "test")
    return station(folder, flat_field=str(folder / "ff.json"))


def test_the_daemon_and_an_inspection_see_corrected_lines(tmp_path: Path) -> None:
    flat = some_field(128, 2, (64,))
    document = write_station(tmp_path, flat)
    with Daemon(parse_config(document, "test"), "test", "s1") as daemon:
        daemon.run()
    of_daemon = told(events_in(tmp_path / "events.jsonl"))
    inspected = parse_config({key: value for key, value in document.items() if key != "sinks"}, "test")
    with Engines(inspected, "test") as engines:
        assert isinstance(inspected.source, config.FolderSource)
        from edge.sources.folder import FolderSource

        with FolderSource(inspected.source) as source:
            one = engines.pipeline(source.width, "s1")
            frames = list(source.frames())
            raw = np.concatenate([frame.lines for frame in frames])
            rows = [lines for frame in frames for lines in one.push(frame).rows]
            one.finish()
            assert rows
            assert np.array_equal(one.judgement._image(500, 560), correct(flat, raw)[500:560])
    assert sum("defect.closed" in event["type"] for event in of_daemon.values()) > 5


def test_what_a_flat_field_holds_is_part_of_the_config_hash_and_where_it_lies_is_not(tmp_path: Path) -> None:
    document = station(tmp_path)
    document["source"] = {"kind": "simulated", "width": 128}
    one, other = some_field(128, 1), some_field(128, 2)
    for name, flat in {"a.json": one, "b.json": one, "c.json": other}.items():
        write_flat_field(tmp_path / name, flat, "test")

    def of(**changes: Any) -> str:
        return Engines(parse_config(document | changes, "test"), "test").config_hash

    assert of(flat_field=str(tmp_path / "a.json")) == of(flat_field=str(tmp_path / "b.json"))
    assert len({of(), of(flat_field=str(tmp_path / "a.json")), of(flat_field=str(tmp_path / "c.json"))}) == 3
    assert of() == config_hash(parse_config(document, "test"))


@pytest.mark.parametrize(
    ("name", "fault"), [("ff.json", "flat field has 64 columns, the camera delivers 128"), ("no.json", "cannot be read")]
)
def test_a_station_with_a_wrong_flat_field_is_refused_before_its_first_line(tmp_path: Path, name: str, fault: str) -> None:
    write_flat_field(tmp_path / "ff.json", some_field(64), "test")
    document = station(tmp_path, flat_field=str(tmp_path / name)) | {"source": {"kind": "simulated", "width": 128}}
    with pytest.raises(ConfigError, match=fault) as caught:
        Engines(parse_config(document, "test"), "station.yaml")
    assert str(caught.value).startswith("station.yaml: flat_field: ")


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ({"exposure_us": 30.0}, None),
        ({}, None),
        (
            {"exposure_us": 50.0},
            "flat_field: flat field holds for exposures from 20 to 40 us, source.exposure_us is 50",
        ),
        ({"width": 256}, "flat_field: flat field has 128 columns, the camera delivers 256; expected"),
    ],
)
def test_a_camera_that_is_set_otherwise_than_its_flat_field_was_made_for_is_told(
    tmp_path: Path, source: dict[str, Any], fault: str | None
) -> None:
    flat = some_field(128)
    held = FlatField(flat.dark, flat.gain, (), PROVENANCE, Validity(exposure_us=Interval(low=20, high=40)))
    write_flat_field(tmp_path / "ff.json", held, "test")
    document = {
        "source": {"kind": "gige", "address": "127.0.0.1", "width": 128, **source},
        "flat_field": str(tmp_path / "ff.json"),
    }
    faults = check_station(parse_config(document, "test"), None, None)
    assert len(faults) == (0 if fault is None else 1)
    assert fault is None or faults[0].startswith(fault)


def test_images_of_another_width_than_the_flat_field_are_refused(tmp_path: Path) -> None:
    document = write_station(tmp_path, None)
    write_flat_field(tmp_path / "ff.json", some_field(64), "test")
    with (
        Engines(parse_config(document | {"flat_field": str(tmp_path / "ff.json")}, "test"), "test") as engines,
        pytest.raises(ConfigError, match="flat field has 64 columns, the camera delivers 128"),
    ):
        engines.pipeline(128, "s1")


def test_each_of_several_cameras_has_a_flat_field_of_its_own(tmp_path: Path) -> None:
    source = {"kind": "simulated", "width": 128}
    document = {
        "cameras": [{"camera": "top", "source": source, "flat_field": "top.json"}, {"camera": "bottom", "source": source}]
    }
    assert [camera.flat_field for camera in stations_of(parse_file(document, "test"))] == [Path("top.json"), None]
    with pytest.raises(ConfigError, match=r"flat_field: got both.json beside cameras; expected none: each of them has its own"):
        parse_file(document | {"flat_field": "both.json"}, "test")
