"""timm and segmentation_models_pytorch beside a torch that torchvision was not compiled for.

torchvision's wheels are made for CUDA. Beside the CPU's torch their library does not load, and the import fails because it
describes operators that nobody has declared. The networks do not use them: here they are declared, and never called.
"""

from __future__ import annotations

import functools
import importlib.util
from types import ModuleType

import pytest
import torch

_OPERATORS = ("nms", "qnms")
_declared: list[torch.library.Library] = []
"""An operator lives as long as its library."""


@functools.cache
def library(name: str) -> ModuleType:
    """`timm` or `segmentation_models_pytorch`; skips where it is not installed."""
    for needed in ("torchvision", name):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"no {needed}: library networks need rust-edge[library]")
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        _declared.append(torch.library.Library("torchvision", "DEF"))
        for operator in _OPERATORS:
            _declared[0].define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module(name)
