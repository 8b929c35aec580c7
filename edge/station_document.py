"""A station file as keys and values, before anything is judged: read, with overrides on top and the environment filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from edge.errors import ConfigError

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def read_document(path: Path) -> dict[str, Any]:
    """The keys and values of a station file, not yet validated. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); expected a station file such as configs/demo.yaml") from error
    try:
        document = yaml.load(text, _UniqueKeys)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise ConfigError(f"{path}{where}: not YAML: {error.problem}; expected `key: value` lines") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        got = "an empty file" if document is None else type(document).__name__
        raise ConfigError(f"{path}: got {got}; expected keys and values, such as configs/demo.yaml")
    return document


class _UniqueKeys(yaml.SafeLoader):
    """A key that stands twice in one section is a fault: YAML would let the second one win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str):
                if key in seen:
                    raise yaml.MarkedYAMLError(problem=f"key {key} stands twice", problem_mark=key_node.start_mark)
                seen.add(key)
        return super().construct_mapping(node, deep)


def copy_apart(node: Any) -> Any:
    """A copy in which every place has its own value: what YAML's aliases share is not changed here and there at once."""
    if isinstance(node, dict):
        return {key: copy_apart(value) for key, value in node.items()}
    return [copy_apart(value) for value in node] if isinstance(node, list) else node


def apply_override(document: dict[str, Any], override: str, faults: list[str]) -> None:
    """Set `key.path=value` in a parsed document; what cannot be set is added to `faults`. In a list keys are numbers from 0."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        faults.append(f"--set {override}: expected key.path=value")
        return
    *parents, leaf = key.strip().split(".")
    node: Any = document
    try:
        for part in parents:
            node = _section_at(node, part)
        _put(node, leaf, _parsed(text))
    except LookupError as error:
        faults.append(f"--set {override}: {error.args[0]}")


def _section_at(node: Any, part: str) -> Any:
    """What stands at a key, made a section where nothing does. Raises LookupError where no key can be below it."""
    if isinstance(node, list):
        child = node[_place(node, part)]
    else:
        child = node.setdefault(part, {})
        if child is None:
            child = node[part] = {}
    if not isinstance(child, dict | list):
        raise LookupError(f"{part} is a value, not a section")
    return child


def _put(node: Any, leaf: str, value: Any) -> None:
    node[_place(node, leaf) if isinstance(node, list) else leaf] = value


def _place(node: list[Any], part: str) -> int:
    if not part.isdecimal() or int(part) >= len(node):
        told = f"a list of {len(node)}; expected a place from 0 to {len(node) - 1}" if node else "an empty list"
        raise LookupError(f"got {part} in {told}")
    return int(part)


def _parsed(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def expand_variables(node: Any, variables: Mapping[str, str], faults: list[str], where: str = "") -> Any:
    """A document with `${NAME}` in its texts replaced; a name that is not set is added to `faults`. where: key path of `node`."""
    if isinstance(node, dict):
        return {key: expand_variables(value, variables, faults, f"{where}.{key}".lstrip(".")) for key, value in node.items()}
    if isinstance(node, list):
        return [expand_variables(value, variables, faults, f"{where}.{index}".lstrip(".")) for index, value in enumerate(node)]
    if not isinstance(node, str):
        return node
    for name in _VARIABLE.findall(node):
        if name not in variables:
            faults.append(f"{where}: got ${{{name}}}, which the environment does not hold; expected it to be set")
    return _VARIABLE.sub(lambda match: variables.get(match.group(1), ""), node)
