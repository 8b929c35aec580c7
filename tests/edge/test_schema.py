import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from event_samples import CAPTURED_NS, context, story, strip_frame

from edge import schema
from edge.defects import LensAlert
from edge.events import HealthData, outgoing, payload_of
from edge.reporting import health_event, lens_event, status_event
from edge.topics import Channel

DOCS = Path(__file__).parent.parent.parent / "docs"


def samples() -> list[dict[str, Any]]:
    lens = lens_event(context(), LensAlert("lens-1", 10, 14, 20_000.0, 4000), CAPTURED_NS)
    status = status_event("/linz/line3/top", "offline", "connection lost", CAPTURED_NS)
    health = health_event("/linz/line3/top", HealthData(uptime_s=3.0), CAPTURED_NS)
    payloads = [one.payload for one in [*story(1), *strip_frame(), outgoing(lens)]] + [payload_of(status), payload_of(health)]
    return [json.loads(payload) for payload in payloads]


def short_type(document: dict[str, Any]) -> str:
    return str(document["type"]).removeprefix("io.rust-edge.")


def test_the_documents_in_docs_are_those_of_the_models() -> None:
    assert schema.stale(DOCS) == [], "write them anew: python -m edge.schema docs"


def test_a_changed_and_a_missing_document_are_told(tmp_path: Path) -> None:
    schema.write(tmp_path)
    assert schema.stale(tmp_path) == []
    (tmp_path / "schema" / "defect.v1.json").write_text("{}")
    (tmp_path / "asyncapi.yaml").unlink()
    assert sorted(schema.stale(tmp_path)) == ["asyncapi.yaml", "schema/defect.v1.json"]


@pytest.mark.parametrize("document", samples(), ids=short_type)
def test_an_event_is_valid_by_the_schemas_of_its_type_and_of_its_dataschema(document: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="the package jsonschema is not installed")
    by_type = json.loads((DOCS / "schema" / f"{short_type(document)}.event.json").read_text())
    by_data = json.loads((DOCS / "schema" / f"{document['dataschema'].rpartition(':')[2]}.json").read_text())
    assert by_data["$id"] == document["dataschema"]
    validator = jsonschema.validators.validator_for(by_type)
    validator.check_schema(by_type)
    validator.check_schema(by_data)
    validator(by_type).validate(document)
    validator(by_data).validate(document["data"])


def test_a_wrong_event_is_invalid_by_its_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="the package jsonschema is not installed")
    document = samples()[0]
    document["data"]["confidence_peak"] = 1.5
    validator = jsonschema.Draft202012Validator(json.loads((DOCS / "schema" / f"{short_type(document)}.event.json").read_text()))
    assert [error.json_path for error in validator.iter_errors(document)] == ["$.data.confidence_peak"]


def test_the_asyncapi_document_names_every_channel_and_each_event_once() -> None:
    document = yaml.safe_load((DOCS / "asyncapi.yaml").read_text())
    assert document["asyncapi"].startswith("3.")
    assert {name: channel["address"] for name, channel in document["channels"].items()} == {
        channel.value: f"{{root}}/{{site}}/{{line}}/{{camera}}/{channel.value}" for channel in Channel
    }
    sent = [message for channel in document["channels"].values() for message in channel["messages"]]
    assert sorted(sent) == sorted(document["components"]["messages"])
    assert {message["name"] for message in document["components"]["messages"].values()} == {one["type"] for one in samples()}


def test_every_reference_of_the_asyncapi_document_leads_somewhere() -> None:
    document = yaml.safe_load((DOCS / "asyncapi.yaml").read_text())
    found = list(references(document))
    assert found
    for reference in found:
        node = document
        for part in reference.removeprefix("#/").split("/"):
            assert part in node, reference
            node = node[part]


def references(node: Any) -> Any:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for child in node.values():
            yield from references(child)
    elif isinstance(node, list):
        for child in node:
            yield from references(child)
