"""TorchScript archives. Their language has no way out but a few operators that touch files: those are looked for first."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import torch

from export.checkpoints.archives import extra_hints, read_members, repacked
from export.checkpoints.checkpoint import Hints, ModuleContent, OneAnswer
from export.checkpoints.reasons import first_line
from export.checkpoints.torch_files import quiet
from export.checkpoints.weights import check_finite
from export.errors import ExportError

_REACHES_OUT: Final = re.compile(
    r"\b(from_file|save|write_file|read_file)\s*\(|\bops\.(?!(?:aten|prim|prims|quantized|torchvision)\.)(\w+)\."
    r"|__torch__\.torch\.classes\.(\w+)"
)
"""Operators that open files (aten::from_file maps one and makes it, aten::save writes one), and those of other libraries."""


def read_torchscript(path: Path, trust: bool) -> tuple[ModuleContent, Hints]:
    """Read a network of torch.jit.save. Raises ExportError."""
    members = read_members(path)
    if not trust:
        _refuse_reaching_out(path, {name: content for name, content in members.items() if "/code/" in name})
    try:
        with quiet():
            module = torch.jit.load(repacked(members), map_location="cpu").float().eval()  # type: ignore[no-untyped-call]
        arguments = module.forward.schema.arguments[1:]
    except Exception as error:  # whatever the archive's own code raises while it is set up
        raise ExportError(f"{path}: damaged TorchScript archive ({first_line(error)}); export it again") from error
    needed = [argument.name for argument in arguments if not argument.has_default_value()]
    if len(needed) != 1:
        raise ExportError(f"{path}: its network takes {', '.join(needed) or 'nothing'}; expected one image")
    check_finite(dict(module.state_dict()), str(path))
    return ModuleContent(OneAnswer(module)), extra_hints(members)


def _refuse_reaching_out(path: Path, code: dict[str, bytes]) -> None:
    for name, content in code.items():
        found = _REACHES_OUT.search(content.decode("utf-8", "replace")) if name.endswith(".py") else None
        if found:
            raise ExportError(
                f"{path}: its code goes beyond tensors ({found.group(0).strip()} in {name.partition('/code/')[2]}); loading and "
                "running it could touch files; say --trust-checkpoint if you trust whoever made the file"
            )
