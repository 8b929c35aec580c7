"""The published contract, made from the models of `edge.events`: JSON Schema of each event, and an AsyncAPI 3 document.

`python -m edge.schema docs` writes `docs/schema/*.json` and `docs/asyncapi.yaml`; `--check` only says what is stale.

Source: AsyncAPI 3.0.0; JSON Schema 2020-12; CloudEvents 1.0.2, MQTT protocol binding, structured content mode.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from edge.events import (
    DefectClosed,
    DefectData,
    DefectOpened,
    DefectUpdated,
    Envelope,
    Health,
    HealthData,
    LensAlerted,
    LensData,
    Status,
    StatusData,
    StripFinished,
    StripFinishedData,
    StripStarted,
    StripStartedData,
)
from edge.topics import Channel

DIALECT = "https://json-schema.org/draft/2020-12/schema"
DATA: tuple[type[BaseModel], ...] = (DefectData, LensData, StripStartedData, StripFinishedData, StatusData, HealthData)
EVENTS: tuple[type[Envelope], ...] = (
    DefectOpened,
    DefectUpdated,
    DefectClosed,
    LensAlerted,
    StripStarted,
    StripFinished,
    Status,
    Health,
)
_CHANNELS = {
    Channel.DEFECT: "Defects opened, updated and closed, in order per strip; and lens alerts among them. QoS 1.",
    Channel.STRIP: "The beginning and the summary of each strip, in order with its defects. QoS 1.",
    Channel.STATUS: "Whether the station is there. QoS 1, retained; `offline` also as the last will.",
    Channel.HEALTH: "Counters of the running station. QoS 1, not repeated after a lost connection.",
}
API_VERSION = "1.1.0"
"""Of the contract, not of the program: minor for added optional fields, major never (a changed event is a new type)."""


def documents() -> dict[str, str]:
    """All documents: path below `docs` -> text."""
    found = {"asyncapi.yaml": yaml.safe_dump(asyncapi(), sort_keys=False, allow_unicode=True, width=120)}
    for model in DATA:
        name = str(model.schema_name)  # type: ignore[attr-defined]
        found[f"schema/{name}.json"] = _text({"$id": f"urn:rust-edge:schema:{name}", **_schema(model)})
    for event in EVENTS:
        found[f"schema/{_short_type(event)}.event.json"] = _text(_schema(event))
    return found


def asyncapi() -> dict[str, Any]:
    """The AsyncAPI 3 document: what a station sends, on which topic."""
    _, schemas = models_json_schema([(event, "serialization") for event in EVENTS], ref_template="#/components/schemas/{model}")
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "rust-edge",
            "version": API_VERSION,
            "description": (
                "Events of a line-scan inspection station: CloudEvents 1.0 in structured JSON over MQTT. Delivered at least "
                "once: drop those whose `source` and `id` were seen before. Ignore fields that are not described here."
            ),
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": "application/cloudevents+json",
        "channels": {channel.value: _channel(channel) for channel in Channel},
        "operations": {f"send_{channel.value}": _operation(channel) for channel in Channel},
        "components": {
            "messages": {event.__name__: _message(event) for event in EVENTS},
            "schemas": schemas["$defs"],
        },
    }


def _channel(channel: Channel) -> dict[str, Any]:
    names = [event.__name__ for event in EVENTS if event.channel is channel]
    return {
        "address": f"{{root}}/{{site}}/{{line}}/{{camera}}/{channel.value}",
        "description": _CHANNELS[channel],
        "parameters": {
            "root": {"description": "sinks.mqtt.topic_root of the station file.", "default": "rust-edge"},
            "site": {"description": "site of the station file."},
            "line": {"description": "line of the station file."},
            "camera": {"description": "camera of the station file."},
        },
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in names},
    }


def _operation(channel: Channel) -> dict[str, Any]:
    return {
        "action": "send",
        "channel": {"$ref": f"#/channels/{channel.value}"},
        "bindings": {"mqtt": {"qos": 1, "retain": channel is Channel.STATUS, "bindingVersion": "0.2.0"}},
    }


def _message(event: type[Envelope]) -> dict[str, Any]:
    return {
        "name": event.model_fields["type"].default,
        "summary": (event.__doc__ or "").strip(),
        "contentType": "application/cloudevents+json",
        "payload": {"$ref": f"#/components/schemas/{event.__name__}"},
    }


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return {"$schema": DIALECT, **model.model_json_schema(mode="serialization")}


def _short_type(event: type[Envelope]) -> str:
    return str(event.model_fields["type"].default).removeprefix("io.rust-edge.")


def _text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def stale(folder: Path) -> list[str]:
    """Documents that are missing below `folder`, or differ from the models."""
    return [name for name, text in documents().items() if not _same(folder / name, text)]


def _same(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


def write(folder: Path) -> None:
    """Make the documents below `folder` those of the models."""
    for name, text in documents().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)


def main() -> int:
    """Write the documents, or say which are stale."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("docs"))
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a document is stale")
    arguments = parser.parse_args()
    if not arguments.check:
        write(arguments.folder)
        return 0
    for name in (found := stale(arguments.folder)):
        print(
            f"{arguments.folder / name}: stale; expected what `python -m edge.schema {arguments.folder}` writes", file=sys.stderr
        )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
