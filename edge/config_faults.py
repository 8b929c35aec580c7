"""Faults of a station file in the user's words: key path, what was got, what is expected."""

from __future__ import annotations

import difflib
import typing
from typing import Any

from pydantic import BaseModel

_EXPECTED = {
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "literal_error": "{expected}",
    "finite_number": "a finite number",
    "string_type": "text",
    "string_too_short": "text of at least {min_length} character(s)",
    "string_pattern_mismatch": "letters, digits, dot, dash and underscore, at most 64, a letter or digit first",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "path_type": "a path",
    "model_type": "a section of keys and values",
    "model_attributes_type": "a section of keys and values",
    "dict_type": "a section of keys and values",
    "tuple_type": "a list",
    "too_short": "a list of at least {min_length}",
}
"""What is expected instead, by pydantic's type of error; filled in from the error's context.

Source: https://docs.pydantic.dev/latest/errors/validation_errors/
"""

_EITHER: dict[tuple[str | int, ...], str] = {
    ("source", "path"): "a folder, an image, or a list of both",
    ("source", "producer"): "a .cti file, or a list of them",
    ("source", "device"): "an id or a serial number in quotes, or a whole number from 0",
}
"""What is expected of keys that take one kind of value or another: pydantic tells each kind apart."""


def explain(fault: Any, root: type[BaseModel]) -> str:
    """One line for one of `ValidationError.errors()`. root: the model that was validated."""
    path = key_path(fault)
    where = ".".join(str(key) for key in path)
    keys = path[len(_camera_of(path)) :]
    kind, got, context = fault["type"], fault["input"], fault.get("ctx", {})
    if keys[-1:] == ("password",) or kind == "secret_in_url":
        got = "***"  # a secret never reaches a terminal or a log
    if kind == "extra_forbidden":
        known = _known_keys(root, fault["loc"][:-1])
        near = difflib.get_close_matches(str(keys[-1]), known, 1)
        return f"{where}: unknown key, got {got!r}; expected {near[0] if near else 'one of ' + ', '.join(known)}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        kinds = [model.model_fields["kind"].default for model in _models_at(root, ("source",))]
        told = f"got {context['tag']!r}" if "tag" in context else "missing"
        return f"{where}: {told}; expected {' or '.join(kinds)}"
    if kind == "missing":
        return f"{where}: missing; expected {'a section' if keys == ('source',) else 'a value'}"
    if keys in _EITHER and (keys[1] != "path" or "folder" in fault["loc"]):
        return f"{where}: got {got!r}; expected {_EITHER[keys]}"
    if kind in _EXPECTED:
        return f"{where}: got {got!r}; expected {_EXPECTED[kind].format_map(context)}"
    message: str = fault["msg"].removeprefix("Value error, ")
    if not path:
        return message  # a rule over several keys of the top: it names them itself
    return (
        f"{where}: {message}"
        if isinstance(got, dict | BaseModel)
        else f"{where}: got {got!r}; {message[:1].lower()}{message[1:]}"
    )


def key_path(fault: Any) -> tuple[str | int, ...]:
    """Where the fault lies in the file: pydantic's location without its names for the members of a union."""
    whole = tuple(fault["loc"])
    camera = _camera_of(whole)
    location = whole[len(camera) :]
    if location[:1] == ("source",):
        location = ("source", *location[2:])  # the second part is the source's kind
        if location[:2] in _EITHER:
            location = location[:2]
        if fault["type"] in ("union_tag_invalid", "union_tag_not_found"):
            location = ("source", "kind")
    if location[:2] in (("session", "backend"), ("session", "gate_backend")) and len(location) > 2:
        location = (*location[:2], *location[3:])  # the third part says whether one was got or several
    return (*camera, *location[: 1 if location[:1] == ("chunk_lines",) else None])


def _camera_of(location: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """The part of a location that says which of several cameras it is about: `cameras.1`, or nothing."""
    return location[:2] if location[:1] == ("cameras",) else ()


def take_out(document: Any, fault: Any) -> bool:
    """Take a faulty value out of a document, or put a sound one in where one is missing, so that the rest can be judged.

    Changes `document`. False: nothing could be done.
    """
    path = key_path(fault)
    camera = _camera_of(path)
    if not path:
        return _take_out_rule(document, fault)
    if camera and _take_out_of_cameras(document, path):
        return True
    section = document["cameras"][camera[1]] if camera else document
    *parents, leaf = path[len(camera) :]
    if leaf == "source" or (parents == ["source"] and leaf in ("kind", "path", "producer", "url", "address", "serial", "name")):
        section["source"] = dict(_SOUND_SOURCE)
        return True
    for key in parents:
        section = section.get(key) if isinstance(section, dict) else None
    if isinstance(section, dict) and (*parents, leaf) == ("session", "kserve", "url"):
        section["url"] = "host:8001"  # it is required: taken out it would be a second fault
        return True
    if isinstance(section, dict) and leaf in section:
        del section[leaf]
        return True
    return False


_SOUND_SOURCE = {"kind": "folder", "path": "."}


def _take_out_rule(document: Any, fault: Any) -> bool:
    """The same for a rule that compares keys of the top."""
    kind, context = fault["type"], fault.get("ctx", {})
    if kind == "no_camera":
        document["source"] = dict(_SOUND_SOURCE)
    elif kind == "source_beside_cameras":
        del document["source"]
    elif kind == "camera_beside_cameras":
        del document["camera"]
    elif kind == "flat_field_beside_cameras":
        del document["flat_field"]
    elif kind == "camera_twice":
        document["cameras"][context["index"]]["camera"] = f"unnamed-{context['index']}"
    elif document.get("mode") == "cascade":
        document["mode"] = "dense"  # cascade needs a gate
    else:
        return False
    return True


def _take_out_of_cameras(document: Any, path: tuple[str | int, ...]) -> bool:
    """The same where the list, one of its entries, or a name is faulty: all of them are required. False: it is none of these."""
    if len(path) == 1:
        document["cameras"] = [{"camera": "unnamed", "source": dict(_SOUND_SOURCE)}]
    elif len(path) == 2:
        document["cameras"][path[1]] = {"camera": f"unnamed-{path[1]}", "source": dict(_SOUND_SOURCE)}
    elif path[2:] == ("camera",):
        document["cameras"][path[1]]["camera"] = f"unnamed-{path[1]}"
    else:
        return False
    return True


def _known_keys(root: type[BaseModel], location: tuple[str | int, ...]) -> list[str]:
    return sorted({key for model in _models_at(root, location) for key in model.model_fields})


def _models_at(root: type[BaseModel], location: tuple[str | int, ...]) -> list[type[BaseModel]]:
    models = [root]
    for key in location:
        fields = [model.model_fields[key] for model in models if isinstance(key, str) and key in model.model_fields]
        if fields:
            models = [inner for field in fields for inner in _models_in(field.annotation)]
        else:  # a class's name under `classes`, or the kind of a source
            models = [model for model in models if "kind" not in model.model_fields or model.model_fields["kind"].default == key]
    return models


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in _models_in(part)]
