"""Files of torch.save: tensors and plain values are read; anything else is code, and runs only where the user trusts it."""

from __future__ import annotations

import argparse
import collections
import contextlib
import datetime
import pathlib
import pickle
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from export.checkpoints.checkpoint import Hints, ModuleContent, OneAnswer, StateContent
from export.checkpoints.hints import KEYS, hints_of
from export.checkpoints.reasons import first_line
from export.checkpoints.weights import check_finite, find_modules, find_state
from export.errors import ExportError

_FAULTS: Final = (
    RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError, OSError, AssertionError, MemoryError,
    ImportError, OverflowError, UnicodeError, NotImplementedError,
)  # fmt: skip
"""What torch.load raises on damaged files."""


class _Settings(dict[str, object]):
    """Stands in for the dict classes of training frameworks: holds what was in them, and does nothing."""

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.update({str(name): value for name, value in state.items()})


def _scalars() -> list[Any]:
    reconstruct: Any = np.empty(0).__reduce__()[0]
    scalar: Any = np.float64(0).__reduce__()[0]
    kinds = {type(np.dtype(code)) for code in "efdbhilqBHILQ?US"}
    named = [
        (function, f"numpy.{package}.multiarray.{function.__name__}")
        for function in (reconstruct, scalar)
        for package in ("core", "_core")
    ]
    return [np.ndarray, np.dtype, *kinds, *named]


_HARMLESS: Final[list[Any]] = [
    *_scalars(),
    argparse.Namespace,
    collections.defaultdict,
    dict,
    list,
    *((pathlib.PurePosixPath, f"pathlib.{name}") for name in ("PosixPath", "PurePosixPath")),
    *((pathlib.PureWindowsPath, f"pathlib.{name}") for name in ("WindowsPath", "PureWindowsPath")),
    *((pathlib.PurePosixPath, f"pathlib._local.{name}") for name in ("PosixPath", "PurePosixPath")),
    datetime.datetime,
    datetime.date,
    datetime.timedelta,
    (_Settings, "lightning.fabric.utilities.data.AttributeDict"),
    (_Settings, "lightning_fabric.utilities.data.AttributeDict"),
    (_Settings, "pytorch_lightning.utilities.parsing.AttributeDict"),
    (_Settings, "easydict.EasyDict"),
    (_Settings, "addict.addict.Dict"),
]
"""What training scripts keep beside weights and what can do nothing when it is made: figures, paths, settings."""


def read_saved(path: Path, trust: bool) -> tuple[StateContent | ModuleContent, Hints]:
    """Read a file of torch.save: a state dict, or one within a dict; with trust also a pickled network.

    Raises ExportError.
    """
    document = _load_trusted(path) if trust else _load_plain(path)
    network = next(find_modules(document), None)
    if network is not None:
        return _module(path, network)
    try:
        state, key = find_state(document, str(path))
    except (RuntimeError, MemoryError) as error:  # shapes that no memory holds
        raise ExportError(f"{path}: damaged: {first_line(error)}; copy it again") from error
    return StateContent(state, key), hints_of(document) if isinstance(document, dict) and key else Hints()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """torch warns of old formats and of its own plans: nothing that the user of an exporter can act on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _load_plain(path: Path) -> object:
    try:
        with quiet(), torch.serialization.safe_globals(_HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.findall(r"GLOBAL (\S+)", str(error)) or re.findall(r"Unsupported \w+ \S+", str(error))
        if not asked:
            raise ExportError(
                f"{path}: damaged, or not written by torch.save ({first_line(error)}); copy it again, or save it so"
            ) from error
        raise ExportError(
            f"{path}: holds more than weights ({asked[0].strip()}), and loading that runs code in the file; save the weights "
            "alone, torch.save(model.state_dict(), ...), or say --trust-checkpoint if you trust whoever made the file"
        ) from error
    except _FAULTS as error:
        raise ExportError(f"{path}: damaged or no PyTorch checkpoint ({first_line(error)}); copy it again") from error


def _load_trusted(path: Path) -> object:
    try:
        with quiet():
            return torch.load(path, map_location="cpu", weights_only=False)
    except ModuleNotFoundError as error:
        raise ExportError(
            f"{path}: its network is a class of {error.name}, which is not installed; install it, or save the weights alone "
            "where it is: torch.save(model.state_dict(), ...)"
        ) from error
    except AttributeError as error:
        raise ExportError(
            f"{path}: its network is of a class that is not to be found here ({first_line(error)}); make it importable "
            "(PYTHONPATH), or save the weights alone: torch.save(model.state_dict(), ...)"
        ) from error
    except Exception as error:  # code of the file's own ran, and may have raised anything
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ExportError(f"{path}: damaged, or not written by torch.save ({reason}); copy it again, or save it so") from error


def _module(path: Path, network: nn.Module) -> tuple[ModuleContent, Hints]:
    while isinstance(inner := getattr(network, "_orig_mod", None) or getattr(network, "module", None), nn.Module):
        network = inner
    try:
        network = network.float().eval()
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        raise ExportError(
            f"{path}: its network does not go with torch {torch.__version__} ({first_line(error)}); save the weights alone "
            "with the version that it was made with: torch.save(model.state_dict(), ...)"
        ) from error
    check_finite(dict(network.state_dict()), str(path))
    said = {key: value for key in KEYS if isinstance(value := getattr(network, key, None), str | int | dict | list | tuple)}
    return ModuleContent(OneAnswer(network)), hints_of(said)
