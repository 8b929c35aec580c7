"""Sections of cameras behind a library, and of video: what a station file may say, and what is said of one that is wrong."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from edge.cli import main
from edge.config import parse_config
from edge.errors import ConfigError, SourceError
from edge.sources import open_source

BASLER = {"kind": "basler", "serial": "1"}
GENTL = {"kind": "gentl", "producer": "maker.cti"}


def _source_of(section: dict[str, Any]) -> Any:
    return parse_config({"source": section}, "station.yaml").source


@pytest.mark.parametrize(
    ("section", "fault"),
    [
        (BASLER | {"name": "top"}, "source: got serial and name; expected one of serial, name, or none of them"),
        (BASLER | {"trigger": "light"}, "source.trigger: got 'light'; expected 'free', 'encoder' or 'software'"),
        (
            BASLER | {"trigger_source": "Line1"},
            "source: trigger_source: got Line1, with trigger free; expected trigger encoder, or none",
        ),
        (
            BASLER | {"line_rate_hz": 10, "frame_lines": 100},
            "source: frozen_s: got 2, and a frame of 100 lines takes 10 s; expected at least 20, or fewer frame_lines",
        ),
        ({"kind": "gentl"}, "source.producer: missing; expected a value"),
        (GENTL | {"producer": 5}, "source.producer: got 5; expected a .cti file, or a list of them"),
        (GENTL | {"producer": []}, "source.producer: got []; expected a .cti file, or a list of them"),
        (
            GENTL | {"device": -1},
            "source.device: got -1; expected an id or a serial number in quotes, or a whole number from 0",
        ),
        ({"kind": "video", "path": 5}, "source.path: got 5; expected a path"),
        (
            {"kind": "video", "url": "rtsp://me:secret@host/a"},
            "source.url: got '***'; expected an address without a user: username and password have keys of their own",
        ),
    ],
)
def test_a_fault_is_said_once_with_key_value_and_what_is_expected(section: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError) as raised:
        _source_of(section)
    assert str(raised.value).splitlines() == [f"station.yaml: {fault}"]


def test_producers_are_one_or_a_list() -> None:
    assert _source_of(GENTL).producers == (Path("maker.cti"),)
    assert _source_of(GENTL | {"producer": ["a.cti", "b.cti"]}).producers == (Path("a.cti"), Path("b.cti"))
    assert [_source_of(GENTL | {"device": device}).device for device in ("7", 7)] == ["7", 7]


@pytest.mark.parametrize("cameras", [1, 2])
def test_show_masks_the_password_of_a_stream_and_is_the_same_station(
    cameras: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = "source: {kind: video, url: 'rtsp://host/a', username: me, password: secret}"
    text = source if cameras == 1 else f"cameras:\n- {{camera: top, {source}}}\n- {{camera: bottom, {source}}}\n"
    (tmp_path / "station.yaml").write_text(text)
    assert main(["config", "show", str(tmp_path / "station.yaml")]) == 0
    shown = capsys.readouterr().out
    assert shown.count("'***'") == cameras
    assert "secret" not in shown
    (tmp_path / "shown.yaml").write_text(shown)
    assert main(["config", "show", str(tmp_path / "shown.yaml")]) == 0
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize(("library", "section", "extra"), [("pypylon", BASLER, "basler"), ("harvesters", GENTL, "gentl")])
def test_a_library_that_is_missing_is_named_with_its_extra(
    library: str, section: dict[str, Any], extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"{library}.pylon", raising=False)
    monkeypatch.delitem(sys.modules, f"{library}.core", raising=False)
    with pytest.raises(SourceError, match=rf"source.kind {extra} needs {library}.*pip install 'rust-edge\[{extra}\]'"):
        open_source(_source_of(section))
