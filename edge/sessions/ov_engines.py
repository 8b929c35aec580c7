"""OpenVINO's compiled engines: one per shape, kept from one start to the next, and never used unless they are what was written.

OpenVINO's own cache (CACHE_DIR) tells weights, shapes, its version and the instruction set apart and takes a cut file for none,
but gives an engine compiled for bf16 to who asks for f32, and does not see a flipped bit in the weights. So engines are exported
and kept by `edge.engine_cache`: the precision is in their key, a hash in their sidecar.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import openvino

from edge.engine_cache import EngineKey, drop_outdated, engine_path, read_engine, write_engine
from edge.errors import SessionError
from edge.sessions.ov_core import core

_log = logging.getLogger(__name__)

_KEPT_ON_DISK: Final = 64
"""Engines of one bundle: a station's slab and chunk, its crops, the golden tiles, and those of some other settings."""
_REASON_LENGTH: Final = 400


@dataclass(frozen=True, slots=True)
class Compiler:
    """Compiles the shapes of one engine file, or takes what was compiled before.

    where: names the file in errors. sha256: of what OpenVINO was given to read. options: of OpenVINO, by name.
    folder: where engines are kept; None: nowhere. file: names them there, `model.onnx`.
    """

    where: str
    sha256: str
    options: Mapping[str, Any]
    folder: Path | None
    file: str

    def compile(self, model: openvino.Model) -> openvino.CompiledModel:
        """The engine of a model whose shapes are fixed. Raises SessionError; what goes wrong with keeping it is logged."""
        if self.folder is None:
            return self._compiled(model)
        key = self._key(model)
        path = engine_path(self.folder, self.file, key)
        kept = read_engine(path, key)
        if kept.content is not None:
            try:
                return core().import_model(io.BytesIO(kept.content), "CPU", dict(self.options))
            except RuntimeError as error:
                _log.warning("%s cannot be used (%s) and is compiled again", path, reason_of(error))
        compiled = self._compiled(model)
        try:
            write_engine(path, compiled.export_model().getvalue(), key)
            for dropped in drop_outdated(self.folder, key, _KEPT_ON_DISK):
                _log.info("%s: removed %s", self.folder, dropped)
        except (OSError, RuntimeError) as error:
            _log.warning("%s: a compiled engine cannot be kept (%s) and will be compiled again", self.folder, error)
        return compiled

    def _compiled(self, model: openvino.Model) -> openvino.CompiledModel:
        try:
            return core().compile_model(model, "CPU", dict(self.options))
        except RuntimeError as error:
            told = f"{self.where}: OpenVINO cannot compile it: {reason_of(error)}; export the bundle again"
            raise SessionError(told) from error

    def _key(self, model: openvino.Model) -> EngineKey:
        options = {name: value for name, value in self.options.items() if name != "INFERENCE_PRECISION_HINT"}
        return EngineKey(
            model_sha256=self.sha256,
            builder=f"openvino {openvino.__version__}",
            device=str(core().get_property("CPU", "FULL_DEVICE_NAME")),
            compute=" ".join(sorted(core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))),
            precision=str(self.options["INFERENCE_PRECISION_HINT"]),
            profiles=tuple(f"{port.any_name} {'x'.join(map(str, port.get_shape()))}" for port in model.inputs),
            options=tuple(f"{name}={value}" for name, value in sorted(options.items())),
        )


def sha256_of(model: bytes) -> str:
    """Names an engine file by what OpenVINO is given to read."""
    return hashlib.sha256(model).hexdigest()


def reason_of(error: Exception) -> str:
    """What an error says, without the places in OpenVINO's own sources and the advice for its developers."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = " ".join(line for line in lines if line and not line.startswith(("Exception from", "Check '", "To facilitate")))
    return told[:_REASON_LENGTH] or type(error).__name__
