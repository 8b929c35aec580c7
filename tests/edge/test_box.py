"""What is kept of a box: written by a bench, found by whoever asks for `chunk_lines: auto`."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
from stations import station, write_strip

from edge import box
from edge.box import FALLBACK_LINES, BoxKey, ChunkHeight, box_files, chunk_lines_for, keep_chunk_height, own_box_file, read_box
from edge.config import parse_config
from edge.engines import Engines, config_hash
from edge.errors import ConfigError
from edge.frame import Frame

KEY = BoxKey("a" * 64, "ort", 4096, 2)


def choice(key: BoxKey, chunk_lines: int) -> ChunkHeight:
    at = datetime(2026, 1, 2, tzinfo=timezone.utc)
    return ChunkHeight(**asdict(key), chunk_lines=chunk_lines, latency_budget_ms=200.0, measured_at=at)


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This box's file, and no other is looked at."""
    path = tmp_path / "kept" / "box.yaml"
    monkeypatch.setenv(box.VARIABLE, str(path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user"))
    monkeypatch.setattr(box, "SYSTEM_FILE", tmp_path / "system" / "box.yaml")
    return path


def test_auto_takes_what_was_kept_for_the_same_bundle_backend_width_and_threads(file: Path) -> None:
    keep_chunk_height(file, choice(KEY, 128))
    assert chunk_lines_for("auto", KEY) == 128
    for changes in ({"bundle_sha256": "b" * 64}, {"backend": "openvino"}, {"width_px": 2048}, {"threads": 1}):
        assert chunk_lines_for("auto", replace(KEY, **changes)) == FALLBACK_LINES


def test_a_number_in_the_station_file_stands_whatever_is_kept(file: Path) -> None:
    keep_chunk_height(file, choice(KEY, 128))
    assert chunk_lines_for(32, KEY) == 32


def test_a_later_choice_replaces_the_one_for_the_same_and_leaves_the_others(file: Path) -> None:
    other = replace(KEY, width_px=2048)
    for key, lines in ((KEY, 128), (other, 32), (KEY, 256)):
        keep_chunk_height(file, choice(key, lines))
    assert chunk_lines_for("auto", KEY) == 256
    assert chunk_lines_for("auto", other) == 32
    assert len(read_box(file).chunk_heights) == 2


def test_without_a_file_auto_is_the_fallback_and_says_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert chunk_lines_for("auto", KEY) == FALLBACK_LINES
    assert "rust-edge bench --only chunks" in caplog.text


def test_the_named_file_comes_before_the_user_s_and_the_user_s_before_the_system_s(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = tmp_path / "user" / "rust-edge" / "box.yaml"
    assert box_files() == (file, users, box.SYSTEM_FILE)
    for lines, path in ((16, box.SYSTEM_FILE), (32, users), (128, file)):
        keep_chunk_height(path, choice(KEY, lines))
        assert chunk_lines_for("auto", KEY) == lines
    monkeypatch.delenv(box.VARIABLE)
    assert chunk_lines_for("auto", KEY) == 32


def test_root_keeps_for_the_whole_box_and_a_user_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(box.VARIABLE)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert own_box_file() == box.SYSTEM_FILE
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert own_box_file() == tmp_path / "user" / "rust-edge" / "box.yaml"


@pytest.mark.parametrize("content", ["chunk_heights: 3", "- 1", "a: [", "format: other", "chunk_heights: [{chunk_lines: 0}]"])
def test_a_file_that_is_none_of_a_box_is_refused_by_name(file: Path, content: str) -> None:
    file.parent.mkdir()
    file.write_text(content)
    with pytest.raises(ConfigError, match=r"box\.yaml.*measure again, or remove it"):
        chunk_lines_for("auto", KEY)


def test_a_station_with_auto_runs_at_the_kept_height_and_finds_the_same(tmp_path: Path, file: Path) -> None:
    strip = write_strip(tmp_path / "strip", lines=700)
    document = station(tmp_path, session={"threads": 1, "backend": "ort"})

    def rows(chunk_lines: object) -> np.ndarray:
        with Engines(parse_config({**document, "chunk_lines": chunk_lines}, "test"), "test") as engines:
            pipeline = engines.pipeline(strip.shape[1], "s1")
            found = [pipeline.push(Frame(strip, 0, 0)), pipeline.finish()]
            lines.append(engines.chunk_lines(strip.shape[1]))
            keys.append(engines.box_key(strip.shape[1]))
            return np.concatenate([row.mask for findings in found for row in findings.rows])

    lines: list[int] = []
    keys: list[BoxKey] = []
    expected = rows(64)
    keep_chunk_height(file, choice(keys[0], 128))
    assert np.array_equal(rows("auto"), expected)
    assert lines == [64, 128]


def test_auto_is_no_other_station_to_a_strip_that_was_left_unfinished(tmp_path: Path) -> None:
    document = station(tmp_path, source={"kind": "simulated"})
    hashes = {config_hash(parse_config({**document, "chunk_lines": lines}, "test")) for lines in (64, "auto")}
    assert len(hashes) == 1
