"""`.pt2` archives of torch.export. torch unpickles and evaluates parts of them without asking: those are checked first."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch
from torch import fx
from torch.export import ExportedProgram

from export.checkpoints.archives import Members, extra_hints, read_members, repacked
from export.checkpoints.checkpoint import Hints, ModuleContent, OneAnswer
from export.checkpoints.hints import merged
from export.checkpoints.reasons import first_line
from export.checkpoints.torch_files import quiet
from export.checkpoints.weights import check_finite
from export.errors import ExportError

_OPERATORS: Final = re.compile(
    r"torch\.ops\.(aten|prims|higher_order|torchvision)\.(?!from_file|save)\w+(\.\w+)?"
    r"|_operator\.(getitem|add|sub|mul|neg|pow|truediv|floordiv|mod|eq|ne|lt|le|gt|ge|and_|or_|not_)"
    r"|torch\.sym_\w+|math\.\w+"
)
"""What a graph's nodes may call; torch resolves any name under `torch`, `math` and `_operator`."""

_SIZE_WORDS: Final = frozenset((
    "Symbol", "positive", "nonnegative", "integer", "real", "precision", "Integer", "Rational", "Float", "Add", "Mul", "Pow",
    "Mod", "PythonMod", "FloorDiv", "CeilDiv", "CleanDiv", "IntTrueDiv", "FloatTrueDiv", "CeilToInt", "FloorToInt", "TruncToInt",
    "RoundToInt", "ToFloat", "Max", "Min", "Where", "Eq", "Ne", "Equality", "Unequality", "GreaterThan", "LessThan",
    "StrictGreaterThan", "StrictLessThan", "And", "Or", "Not", "true", "false", "True", "False",
))  # fmt: skip
"""Sizes are formulas of dimensions (`2*Symbol('s77')`), which torch hands to sympy, and sympy evaluates any Python."""

_IMPORTS: Final = frozenset(("__enum__", "default_factory_module"))
"""What a description of nested arguments names modules by, which torch imports."""

_RESHAPES: Final = (torch.ops.aten.view.default, torch.ops.aten.reshape.default, torch.ops.aten._unsafe_view.default)


def read_exported(path: Path, trust: bool) -> tuple[ModuleContent, Hints]:
    """Read a network of torch.export.save; its batch may be of any size, whatever size it was exported with.

    Raises ExportError.
    """
    members = read_members(path)
    if any("/data/aotinductor/" in f"/{name}" for name in members):
        raise ExportError(f"{path}: holds compiled code (AOTInductor) for one machine; save it with torch.export.save instead")
    if not trust:
        _refuse_code(path, members)
    try:
        with quiet():
            program = torch.export.load(repacked(members))
    except Exception as error:  # torch raises whatever its reader stumbles on
        raise ExportError(f"{path}: damaged, or of another version of torch ({first_line(error)}); export it again") from error
    image = _image_shape(path, program)
    _refuse_training(path, program)
    _free_batch(program, image[0])
    network = _plain(program)
    check_finite(dict(network.state_dict()), str(path))
    sizes = [size for size in image[2:] if isinstance(size, int)]
    tile = (sizes[0], sizes[1]) if len(sizes) == 2 and isinstance(image[1], int) and image[1] <= 4 else None
    return ModuleContent(OneAnswer(network)), merged(extra_hints(members), Hints(tile=tile))


def _plain(program: ExportedProgram) -> fx.GraphModule:
    """The network as any other: modules of torch.export refuse .eval(), which exporters call, and other sizes of the batch."""
    try:
        module: Any = program.module(check_guards=False)
    except TypeError:  # torch before 2.9 checks in a hook, which stays behind here
        module = program.module()
    return fx.GraphModule(module, module.graph).float()


def _image_shape(path: Path, program: ExportedProgram) -> tuple[Any, ...]:
    inputs = program.graph_signature.user_inputs
    values = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder" and node.name in inputs]
    shapes = [tuple(value.shape) if isinstance(value, torch.Tensor) else () for value in values]
    if len(shapes) != 1 or len(shapes[0]) != 4:
        got = ", ".join(f"{name} {list(map(str, shape))}" for name, shape in zip(map(str, inputs), shapes, strict=False))
        raise ExportError(f"{path}: its network takes {got or 'nothing'}; expected one image (n, c, h, w)")
    return shapes[0]


def _refuse_training(path: Path, program: ExportedProgram) -> None:
    for node in program.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        for argument, value in zip(schema.arguments if schema else (), node.args, strict=False):
            if argument.name in ("training", "train") and value is True:
                raise ExportError(
                    f"{path}: was exported in training mode ({node.name}); call model.eval() before torch.export.export"
                )


def _free_batch(program: ExportedProgram, batch: Any) -> None:
    """Let reshapes take the batch as it comes: exporters trace numbers, and bake in the one that stands there."""
    graph = program.graph_module.graph
    for node in graph.nodes:
        value = node.meta.get("val")
        if node.op != "call_function" or node.target not in _RESHAPES or not isinstance(value, torch.Tensor):
            continue
        first, *rest = value.shape or (None,)
        if all(isinstance(size, int) for size in rest) and (not isinstance(first, int) or first == batch):
            node.args = (node.args[0], [-1, *rest])
    graph.eliminate_dead_code()
    program.graph_module.recompile()


def _refuse_code(path: Path, members: Members) -> None:
    fault = next(_faults(members), None)
    if fault:
        raise ExportError(
            f"{path}: {fault}, and loading that runs code in the file; say --trust-checkpoint if you trust whoever made the file"
        )


def _faults(members: Members) -> Iterator[str]:
    for name, content in members.items():
        file = name.rpartition("/")[2]
        if file.startswith(("custom_obj", "opaque_obj")):
            yield f"holds objects that are no tensors ({name})"
        elif file.endswith(".pt") or file == "serialized_state_dict.json" or file == "serialized_constants.json":
            yield from _pickle_faults(name, content)
        elif file.endswith("_config.json"):
            yield from _payload_faults(name, content, members)
        elif file.endswith(".json") and "/extra/" not in name:
            yield from _graph_faults(name, content)


def _pickle_faults(name: str, content: bytes) -> Iterator[str]:
    if not content:
        return
    try:
        with quiet():
            torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch would unpickle the rest of it after any error
        yield f"holds more than tensors in {name} ({first_line(error)})"


def _payload_faults(name: str, content: bytes, members: Members) -> Iterator[str]:
    document = _parsed(content)
    if document is None:
        yield f"{name} is no JSON"
    for entry in _dicts(document):
        if entry.get("use_pickle"):
            payload = f"{name.rpartition('/')[0]}/{entry.get('path_name')}"
            yield from _pickle_faults(payload, members.get(payload, b"\0"))


def _graph_faults(name: str, content: bytes) -> Iterator[str]:
    document = _parsed(content)
    if document is None:
        yield f"{name} is no JSON"
    for entry in _dicts(document):
        if entry.keys() & _IMPORTS:
            yield f"names Python modules to import in {name}"
        # a node has a target and inputs; what else has a target names a weight with it
        called = entry.get("target") if "inputs" in entry else entry.get("as_operator")
        if isinstance(called, str) and not _OPERATORS.fullmatch(called):
            yield f"calls {called[:80]} in {name}"
        formula = entry.get("expr_str")
        if isinstance(formula, str) and not _is_size(formula):
            yield f"states a size as {formula[:80]!r} in {name}"


def _is_size(formula: str) -> bool:
    unquoted = re.sub(r"'(?:[A-Za-z_]{1,6}\d+|[-+.\de]+)'", "0", formula)
    words = re.findall(r"[A-Za-z_]\w*", unquoted)
    known = all(word in _SIZE_WORDS or re.fullmatch(r"[a-z]{1,6}\d+", word) for word in words)
    return known and re.fullmatch(r"(?:\w|[-+*/(),<>=&|\s]|(?<=\d)\.(?=\d))*", unquoted) is not None


def _parsed(content: bytes | str) -> object:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _dicts(document: object) -> Iterator[dict[str, Any]]:
    """All dicts of a JSON document, at any depth, and of the documents that its texts hold."""
    waiting = [document]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield value
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
        elif isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
            waiting.append(_parsed(value))
