"""A faulty station file is told all its faults at once: file, key path, what was got, what is expected."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from edge.cli import main
from edge.config import StationConfig, load_config, parse_config
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
        ({}, "source: missing; expected a section"),
        ({"source": {"kind": "laser"}}, "source.kind: got 'laser'; expected folder or simulated"),
        ({"source": {"width": 4096}}, "source.kind: missing; expected folder or simulated"),
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
        (
            SIMULATED | {"mode": "cascade"},
            "gate: got none; mode cascade needs one: expected steel-gate-int8 or a path",
        ),
    ],
)
def test_a_fault_names_file_key_got_and_expected(document: dict[str, Any], fault: str) -> None:
    assert faults_of(document) == [f"station.yaml: {fault}"]


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
        load_config(path)
    assert str(caught.value) == f"{path}: {fault}"


def test_a_file_that_is_no_yaml_is_told_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "station.yaml"
    path.write_text("site: a\nsource: {kind: simulated\n")
    with pytest.raises(ConfigError, match=r"station.yaml:3:1: not YAML: .*; expected `key: value` lines$"):
        load_config(path)


def test_a_key_that_stands_twice_is_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "station.yaml"
    path.write_text("source: {kind: simulated}\nsite: a\nsite: b\n")
    with pytest.raises(ConfigError, match=r"station.yaml:3:1: not YAML: key site stands twice"):
        load_config(path)


def test_a_file_that_is_missing_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.yaml: cannot be read \(.*No such file.*\); expected a station file"):
        load_config(tmp_path / "none.yaml")


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
    assert set(schema["properties"]) == set(StationConfig.model_fields)
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_a_station_file_that_is_shipped_parses(path: Path) -> None:
    load_config(path)


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
    missing = [f"| `{key}` | {default} |" for key, default in keys_of(StationConfig) if f"| `{key}` | {default} |" not in page]
    assert missing == []
