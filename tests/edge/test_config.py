"""A faulty station file is told all its faults at once: file, key path, what was got, what is expected."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from edge.cli import main
from edge.config import Camera, StationConfig, StationFile, load_file, parse_config, parse_file, station_of, stations_of
from edge.errors import ConfigError

SIMULATED = {"source": {"kind": "simulated"}}
CONFIGS = Path(__file__).parents[2] / "configs"


def faults_of(document: dict[str, Any], *overrides: str, environment: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(document, "station.yaml", overrides, environment or {})
    assert caught.value.exit_code == 2
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("document", "fault"),
    [
        ({}, "source: missing; expected a section, or cameras"),
        (
            {"source": {"kind": "laser"}},
            "source.kind: got 'laser'; expected folder or simulated or gige or basler or gentl or video",
        ),
        ({"source": {"width": 4096}}, "source.kind: missing; expected folder or simulated or gige or basler or gentl or video"),
        ({"source": {"kind": "folder"}}, "source.path: missing; expected a value"),
        ({"source": {"kind": "folder", "path": 5}}, "source.path: got 5; expected a folder, an image, or a list of both"),
        ({"source": {"kind": "simulated", "widht": 9}}, "source.widht: unknown key, got 9; expected width"),
        (SIMULATED | {"moed": "dense"}, "moed: unknown key, got 'dense'; expected mode"),
        (SIMULATED | {"mode": "fast"}, "mode: got 'fast'; expected 'dense', 'cascade' or 'tiles'"),
        (SIMULATED | {"queue_frames": "many"}, "queue_frames: got 'many'; expected a whole number"),
        (SIMULATED | {"queue_frames": 2.5}, "queue_frames: got 2.5; expected a whole number"),
        (SIMULATED | {"queue_frames": 1}, "queue_frames: got 1; expected at least 2"),
        (SIMULATED | {"scale": {"mm_per_line": "wide"}}, "scale.mm_per_line: got 'wide'; expected a number"),
        (SIMULATED | {"scale": {"mm_per_line": 0}}, "scale.mm_per_line: got 0; expected more than 0.0"),
        (SIMULATED | {"scale": {"mm_per_line": float("nan")}}, "scale.mm_per_line: got nan; expected a finite number"),
        (SIMULATED | {"scale": None}, "scale: got None; expected a section of keys and values"),
        (SIMULATED | {"events": {"crop": "perhaps"}}, "events.crop: got 'perhaps'; expected true or false"),
        (SIMULATED | {"bundle": 7}, "bundle: got 7; expected text"),
        (SIMULATED | {"bundle": ""}, "bundle: got ''; expected text of at least 1 character(s)"),
        (
            SIMULATED | {"site": "mill/1"},
            "site: got 'mill/1'; expected letters, digits, dot, dash and underscore, at most 64, a letter or digit first",
        ),
        (SIMULATED | {"tiling": {"gate_threshold": 1.5}}, "tiling.gate_threshold: got 1.5; expected at most 1.0"),
        (
            SIMULATED | {"filters": {"classes": {"rust": {"high": 1.5}}}},
            "filters.classes.rust.high: got 1.5; expected at most 1.0",
        ),
        (
            SIMULATED | {"filters": {"default": {"low": 0.9, "high": 0.2}}},
            "filters.default: low 0.9 is above high 0.2: expected low <= high",
        ),
        (
            SIMULATED | {"sinks": {"mqtt": {"tls": {"key": "a.pem"}}}},
            "sinks.mqtt.tls: certificate and key go together: expected both or neither",
        ),
        (SIMULATED | {"session": {"backend": []}}, "session.backend: got []; expected a list of at least 1"),
        (
            SIMULATED | {"session": {"dla": True}},
            "session.dla: got True; expected 0 or 1, which of the two it is",
        ),
        (
            SIMULATED | {"mode": "cascade"},
            "gate: got none; mode cascade needs one: expected steel-gate-int8 or a path",
        ),
    ],
)
def test_a_fault_names_file_key_got_and_expected(document: dict[str, Any], fault: str) -> None:
    assert faults_of(document) == [f"station.yaml: {fault}"]


TOP, BOTTOM = SIMULATED | {"camera": "top"}, SIMULATED | {"camera": "bottom"}
TWO = {"cameras": [TOP, BOTTOM]}


@pytest.mark.parametrize(
    ("document", "faults"),
    [
        ({"cameras": []}, ["source: missing; expected a section, or cameras"]),
        ({"cameras": {"top": SIMULATED}}, [f"cameras: got { ({'top': SIMULATED})!r}; expected a list"]),
        ({"cameras": ["top"]}, ["cameras.0: got 'top'; expected a section of keys and values"]),
        (TWO | SIMULATED, ["source: got one beside cameras; expected one of the two"]),
        (TWO | {"camera": "top"}, ["camera: got 'top' beside cameras; expected none: each of them has a name of its own"]),
        (
            {"cameras": [TOP, BOTTOM, TOP, TOP]},
            [f"cameras.{index}.camera: got 'top', as cameras.0 has it; expected another name" for index in (2, 3)],
        ),
        (
            {"cameras": [SIMULATED, {"camera": "a b", "source": {"kind": "laser"}}, {"camera": "c"}]},
            [
                "cameras.0.camera: missing; expected a value",
                "cameras.1.camera: got 'a b'; expected letters, digits, dot, dash and underscore, at most 64, "
                "a letter or digit first",
                "cameras.1.source.kind: got 'laser'; expected folder or simulated or gige or basler or gentl or video",
                "cameras.2.source: missing; expected a section",
            ],
        ),
        (
            {"cameras": [TOP, {"camera": "b", "source": {"kind": "simulated", "widht": 9}, "mode": "dense", "queue_frames": 1}]},
            [
                "cameras.1.source.widht: unknown key, got 9; expected width",
                "cameras.1.queue_frames: got 1; expected at least 2",
                f"cameras.1.mode: unknown key, got 'dense'; expected one of {', '.join(sorted(Camera.model_fields))}",
            ],
        ),
        (
            TWO | {"mode": "cascade", "cameras": [TOP, BOTTOM | {"source": {"kind": "folder", "path": 5}}, TOP]},
            [
                "cameras.1.source.path: got 5; expected a folder, an image, or a list of both",
                "gate: got none; mode cascade needs one: expected steel-gate-int8 or a path",
                "cameras.2.camera: got 'top', as cameras.0 has it; expected another name",
            ],
        ),
        (
            # sound by itself, and not with what the station says
            {"filters": {"default": {"low": 0.9}}, "cameras": [TOP, BOTTOM | {"filters": {"default": {"high": 0.2}}}]},
            ["cameras.1.filters.default: low 0.9 is above high 0.2: expected low <= high"],
        ),
    ],
)
def test_a_fault_of_one_of_several_cameras_names_its_place(document: dict[str, Any], faults: list[str]) -> None:
    assert faults_of(document) == [f"station.yaml: {fault}" for fault in faults]


def test_what_a_camera_does_not_say_is_the_station_s_key_by_key() -> None:
    filters = {"merge": {"along_mm": 7.0}, "classes": {"rust": {"low": 0.3, "high": 0.6}}}
    own = {"merge": {"across_mm": 4.0}, "classes": {"rust": {"high": 0.9}, "pits": {"ignore": True}}}
    document = {
        "site": "mill",
        "scale": {"mm_per_line": 0.1, "mm_per_column": 0.2},
        "filters": filters,
        "queue_frames": 9,
        "cameras": [TOP, BOTTOM | {"scale": {"mm_per_column": 0.4}, "filters": own, "queue_frames": 5}],
    }
    top, bottom = stations_of(parse_file(document, "f"))
    common = {"site": "mill", "filters": filters, "queue_frames": 9, "scale": document["scale"]}
    files = {"outbox": {"path": "out/outbox-top.db"}}
    assert top == parse_config(common | TOP | files, "f")
    merged = {
        "scale": {"mm_per_line": 0.1, "mm_per_column": 0.4},
        "filters": {
            "merge": {"along_mm": 7.0, "across_mm": 4.0},
            "classes": {"rust": {"low": 0.3, "high": 0.9}, "pits": {"ignore": True}},
        },
        "queue_frames": 5,
    }
    assert bottom == parse_config(common | BOTTOM | merged | {"outbox": {"path": "out/outbox-bottom.db"}}, "f")


def test_each_camera_has_files_of_its_own() -> None:
    sinks = {"jsonl": "events/all.jsonl", "csv": "defects", "mqtt": {"host": "broker"}}
    stations = stations_of(parse_file(TWO | {"sinks": sinks, "outbox": {"path": "state/o.db", "max_mb": 3}}, "f"))
    assert [str(station.outbox.path) for station in stations] == ["state/o-top.db", "state/o-bottom.db"]
    assert [str(station.sinks.jsonl) for station in stations] == ["events/all-top.jsonl", "events/all-bottom.jsonl"]
    assert [str(station.sinks.csv) for station in stations] == ["defects-top", "defects-bottom"]
    assert {station.outbox.max_mb for station in stations} == {3}
    assert {station.sinks.mqtt.host for station in stations if station.sinks.mqtt} == {"broker"}
    (only,) = stations_of(parse_file(SIMULATED | {"sinks": sinks}, "f"))
    assert str(only.sinks.jsonl) == "events/all.jsonl"


def test_no_cameras_may_be_said_by_null() -> None:
    document = SIMULATED | {"camera": "top"}
    assert parse_file(document | {"cameras": None}, "f") == parse_file(document, "f")


def test_set_reaches_into_a_camera_by_its_place() -> None:
    file = parse_file(TWO, "f", ["cameras.1.source.frame_lines=37", "cameras.0.queue_frames=3", "cameras.0.camera=left"])
    assert [station.source.frame_lines for station in stations_of(file)] == [128, 37]
    assert [(station.camera, station.queue_frames) for station in stations_of(file)] == [("left", 3), ("bottom", 64)]
    assert faults_of(TWO, "cameras.2.camera=x", "cameras.top.camera=y", "cameras.0.camera.z=1") == [
        "station.yaml: --set cameras.2.camera=x: got 2 in a list of 2; expected a place from 0 to 1",
        "station.yaml: --set cameras.top.camera=y: got top in a list of 2; expected a place from 0 to 1",
        "station.yaml: --set cameras.0.camera.z=1: camera is a value, not a section",
    ]


def test_the_station_of_one_camera_is_asked_for_by_name_where_there_are_several() -> None:
    file = parse_file(TWO, "f")
    assert station_of(file, "f", "bottom").camera == "bottom"
    with pytest.raises(ConfigError, match=r"^f: cameras: got 2; expected --camera with one of top, bottom$"):
        station_of(file, "f")
    with pytest.raises(ConfigError, match=r"^f: --camera: got left; expected one of top, bottom$"):
        station_of(file, "f", "left")
    only = parse_file(TOP, "f")
    assert station_of(only, "f") == station_of(only, "f", "top") == parse_config(TOP, "f")
    with pytest.raises(ConfigError, match=r"^f: --camera: got left; expected top$"):
        station_of(only, "f", "left")
    assert station_of(parse_file({"cameras": [TOP]}, "f"), "f").camera == "top"


def test_show_of_several_cameras_tells_what_each_has_and_is_the_same_station(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "station.yaml"
    document = {"scale": {"mm_per_line": 0.1}, "cameras": [TOP, BOTTOM | {"scale": {"mm_per_column": 0.4}}]}
    path.write_text(yaml.safe_dump(document))
    assert main(["config", "show", str(path)]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert [camera["scale"] for camera in shown["cameras"]] == [
        {"mm_per_line": 0.1, "mm_per_column": 0.25},
        {"mm_per_line": 0.1, "mm_per_column": 0.4},
    ]
    assert shown["cameras"][0]["queue_frames"] == 64
    assert stations_of(parse_file(shown, "f")) == stations_of(parse_file(document, "f"))


def test_check_tells_what_the_disk_says_of_each_camera(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "station.yaml"
    gone = [{"camera": name, "source": {"kind": "folder", "path": f"none/{place}"}} for name, place in (("a", 1), ("b", 2))]
    own = {"filters": {"classes": {"moss": {"ignore": True}}}}
    rules = {"filters": {"classes": {"lichen": {"ignore": True}}}}
    path.write_text(yaml.safe_dump(rules | {"cameras": [gone[0], gone[1] | own], "chunk_lines": 7}))
    assert main(["config", "check", str(path)]) == 2
    told = [line.removeprefix(f"rust-edge: {path}: ").split(";")[0] for line in capsys.readouterr().err.splitlines()]
    assert told[0] == "cameras.0.source.path: got none/1, which does not exist"
    assert [line.split(": ")[0] for line in told] == [
        "cameras.0.source.path",
        "chunk_lines",
        "filters.classes.lichen",
        "cameras.1.source.path",
        "cameras.1.filters.classes.moss",
    ]


def test_all_faults_come_at_once_also_those_that_compare_keys() -> None:
    document = {
        "source": {"kind": "simulated", "frame_lines": 0},
        "mode": "cascade",
        "chunk_lines": "x",
        "filters": {"default": {"low": 0.9, "high": 0.2}, "merge": {"along": 1}},
    }
    told = faults_of(document, "tiling.batch=0", "nonsense")
    assert [line.split(": ")[1] for line in told] == [
        "--set nonsense",
        "source.frame_lines",
        "chunk_lines",
        "tiling.batch",
        "filters.default",
        "filters.merge.along",
        "gate",
    ]


def test_a_secret_comes_from_the_environment() -> None:
    document = SIMULATED | {"sinks": {"mqtt": {"password": "${MQTT_PASSWORD}"}}}
    config = parse_config(document, "f", environment={"MQTT_PASSWORD": "hunter2"})
    assert config.sinks.mqtt is not None
    assert config.sinks.mqtt.password == "hunter2"
    assert "hunter2" not in repr(config)


def test_a_secret_that_the_environment_lacks_is_a_fault() -> None:
    (told,) = faults_of(SIMULATED | {"sinks": {"mqtt": {"password": "${MQTT_PASSWORD}"}}})
    assert told == (
        "station.yaml: sinks.mqtt.password: got ${MQTT_PASSWORD}, which the environment does not hold; expected it to be set"
    )


def test_a_faulty_secret_is_not_printed() -> None:
    (told,) = faults_of(SIMULATED | {"sinks": {"mqtt": {"password": 4711}}})
    assert told == "station.yaml: sinks.mqtt.password: got '***'; expected text"


def test_set_goes_on_top_of_the_file_and_leaves_the_document_alone() -> None:
    document: dict[str, Any] = {"source": {"kind": "simulated", "width": 128}}
    config = parse_config(document, "f", ["source.width=256", "tiling.batch=3", "filters.classes.rust.ignore=true"])
    assert config.source.kind == "simulated"
    assert (config.source.width, config.tiling.batch, config.filters.classes["rust"].ignore) == (256, 3, True)
    assert document == {"source": {"kind": "simulated", "width": 128}}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "got an empty file; expected keys and values, such as configs/demo.yaml"),
        ("- a\n- b\n", "got list; expected keys and values, such as configs/demo.yaml"),
    ],
)
def test_a_file_without_keys_is_told_so(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "station.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_file(path)
    assert str(caught.value) == f"{path}: {fault}"


def test_a_file_that_is_no_yaml_is_told_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "station.yaml"
    path.write_text("site: a\nsource: {kind: simulated\n")
    with pytest.raises(ConfigError, match=r"station.yaml:3:1: not YAML: .*; expected `key: value` lines$"):
        load_file(path)


def test_a_key_that_stands_twice_is_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "station.yaml"
    path.write_text("source: {kind: simulated}\nsite: a\nsite: b\n")
    with pytest.raises(ConfigError, match=r"station.yaml:3:1: not YAML: key site stands twice"):
        load_file(path)


def test_a_file_that_is_missing_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.yaml: cannot be read \(.*No such file.*\); expected a station file"):
        load_file(tmp_path / "none.yaml")


@settings(max_examples=25)
@given(
    batch=st.integers(1, 256),
    threshold=st.none() | st.floats(0, 1),
    along=st.floats(0, 1e4),
    site=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True),
)
def test_what_a_config_says_of_itself_is_the_same_config(batch: int, threshold: float | None, along: float, site: str) -> None:
    document = {
        "site": site,
        "source": {"kind": "simulated"},
        "tiling": {"batch": batch, "gate_threshold": threshold},
        "filters": {"merge": {"along_mm": along}},
    }
    config = parse_config(document, "f")
    assert parse_config(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json"))), "f") == config


def test_show_fills_in_every_default_and_masks_secrets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MQTT_PASSWORD", "hunter2")
    path = tmp_path / "station.yaml"
    path.write_text("source: {kind: simulated}\nsinks: {mqtt: {password: '${MQTT_PASSWORD}'}}\n")
    assert main(["config", "show", str(path), "--set", "tiling.batch=5"]) == 0
    out = capsys.readouterr().out
    shown = yaml.safe_load(out)
    assert "hunter2" not in out
    assert shown["sinks"]["mqtt"]["password"] == "***"
    assert (shown["tiling"]["batch"], shown["chunk_lines"]) == (5, 64)


def test_schema_is_a_json_schema_of_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert set(schema["properties"]) == set(StationFile.model_fields)
    assert schema["additionalProperties"] is False
    for path in CONFIGS.glob("*.yaml"):
        jsonschema.validate(yaml.safe_load(path.read_text()), schema)
    for faulty in ({}, SIMULATED | TWO, TWO | {"camera": "top"}, {"cameras": [SIMULATED]}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(faulty, schema)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_a_station_file_that_is_shipped_parses(path: Path) -> None:
    assert stations_of(load_file(path))


def keys_of(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every key path of a model with its default as the documentation writes it."""
    for name, field in model.model_fields.items():
        inner = models_in(field.annotation)
        if f"{prefix}{name}" in ("source.kind", "filters.classes"):
            continue
        if inner:
            for each in inner:
                yield from keys_of(each, f"{prefix}{name}.")
        elif field.is_required():
            yield f"{prefix}{name}", "required"
        else:
            told = "none" if field.default is None else str(field.default)
            yield f"{prefix}{name}", f"`{told.lower() if isinstance(field.default, bool) else told}`"


def models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models_in(part)]


def test_every_key_and_its_default_are_documented() -> None:
    page = (CONFIGS.parent / "docs" / "configuration.md").read_text(encoding="utf-8")
    keys = [*keys_of(StationConfig), ("cameras", "`none`"), *((f"cameras.N.{key}", "") for key in Camera.model_fields)]
    missing = [f"| `{key}` | {default}" for key, default in keys if f"| `{key}` | {default}" not in page]
    assert missing == []
