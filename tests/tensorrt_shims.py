"""TensorRT's Python module as four versions have it, for the builder's part: strict, so that a removed name is an AttributeError.

Names and values are those of NVIDIA's open-source bindings (python/src/infer/pyCore.cpp, parsers/pyOnnx.cpp of the releases). The
parser reads the ONNX file for real; the builder refuses what the real one refuses, and its engine tells how it was asked.
"""

from __future__ import annotations

import enum
import json
from pathlib import Path
from types import ModuleType

import onnx

VERSIONS = ("8.6.1.6", "10.3.0.30", "10.13.3.9", "11.1.0.106")

_CREATION = {
    "8": {"EXPLICIT_BATCH": 0, "EXPLICIT_PRECISION": 1},
    "10.3": {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1},
    "10.13": {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1, "PREFER_AOT_PYTHON_PLUGINS": 2, "PREFER_JIT_PYTHON_PLUGINS": 3},
    "11": {"STRONGLY_TYPED": 0, "PREFER_JIT_PYTHON_PLUGINS": 1, "PREFER_AOT_PYTHON_PLUGINS": 2},
}
_UNSUPPORTED = "NonMaxSuppressionOfTheFuture"


def tensorrt(version: str, without: tuple[str, ...] = (), refuses: str = _UNSUPPORTED) -> ModuleType:
    """The module of a version. without: creation flags that it has not after all; refuses: an operator that it does not know."""
    major = int(version.split(".")[0])
    weak = major < 11
    creation = next(flags for start, flags in reversed(_CREATION.items()) if version.startswith(start))
    flags = ["FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS"] if weak else []

    class Severity(enum.IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    class ILogger:
        __slots__ = ("__dict__",)

        def log(self, severity: Severity, message: str) -> None:
            raise NotImplementedError

    ILogger.Severity = Severity

    class ParserError:
        def __init__(self, index: int, node: onnx.NodeProto) -> None:
            self._index, self._node = index, node

        def node(self) -> int:
            return self._index

        def desc(self) -> str:
            return f"No importer registered for op: {self._node.op_type}"

        if major >= 10:

            def node_name(self) -> str:
                return self._node.name

            def node_operator(self) -> str:
                return self._node.op_type

    class Tensor:
        def __init__(self, value: onnx.ValueInfoProto) -> None:
            self.name = value.name
            self.shape = tuple(d.dim_value or -1 for d in value.type.tensor_type.shape.dim)

    class Network:
        __slots__ = ("_flags", "_model")

        def __init__(self, flags: int) -> None:
            self._flags, self._model = flags, None

        @property
        def num_inputs(self) -> int:
            return len(self._model.graph.input)

        def get_input(self, index: int) -> Tensor:
            return Tensor(self._model.graph.input[index])

        def _has(self, flag: str) -> bool:
            return bool(self._flags >> creation[flag] & 1) if flag in creation else False

    class OnnxParser:
        __slots__ = ("_errors", "_network")

        def __init__(self, network: Network, logger: ILogger) -> None:
            self._network, self._errors = network, []

        def parse(self, model: bytes, path: str | None = None) -> bool:
            return self._read(onnx.load_model_from_string(model))

        def parse_from_file(self, model: str) -> bool:
            return self._read(onnx.load(model))

        @property
        def num_errors(self) -> int:
            return len(self._errors)

        def get_error(self, index: int) -> ParserError:
            return self._errors[index]

        def _read(self, model: onnx.ModelProto) -> bool:
            assert major >= 10 or self._network._has("EXPLICIT_BATCH"), "this version parses networks of explicit batch alone"
            self._network._model = model
            self._errors = [ParserError(i, n) for i, n in enumerate(model.graph.node) if n.op_type == refuses]
            return not self._errors

    class Profile:
        __slots__ = ("_shapes",)

        def __init__(self) -> None:
            self._shapes = {}

        def set_shape(self, name: str, smallest: tuple, usual: tuple, largest: tuple) -> None:
            self._shapes[name] = (smallest, usual, largest)

    class Config:
        __slots__ = (
            "_flags",
            "_pools",
            "_profiles",
            "builder_optimization_level",
            *(["progress_monitor"] if major >= 10 else []),
        )

        def __init__(self) -> None:
            self._flags, self._pools, self._profiles, self.builder_optimization_level = {"TF32"}, {}, [], 3
            if major >= 10:
                self.progress_monitor = None

        def set_memory_pool_limit(self, pool: enum.IntEnum, size: int) -> None:
            self._pools[pool.name] = size

        def set_flag(self, flag: enum.IntEnum) -> None:
            self._flags.add(flag.name)

        def clear_flag(self, flag: enum.IntEnum) -> None:
            self._flags.discard(flag.name)

        def add_optimization_profile(self, profile: Profile) -> int:
            self._profiles.append(profile._shapes)
            return len(self._profiles) - 1

    class Builder:
        __slots__ = ("_logger",)

        def __init__(self, logger: ILogger) -> None:
            self._logger = logger

        def create_network(self, flags: int = 0) -> Network:
            return Network(flags)

        def create_builder_config(self) -> Config:
            return Config()

        def create_optimization_profile(self) -> Profile:
            return Profile()

        def build_serialized_network(self, network: Network, config: Config) -> bytearray | None:
            strong = major >= 11 or network._has("STRONGLY_TYPED")
            quantized = any(node.op_type == "QuantizeLinear" for node in network._model.graph.node)
            if strong and config._flags & set(flags):
                return self._refuse("API Usage Error (strongly typed networks take no precision flags)")
            if not strong and quantized and "INT8" not in config._flags:
                return self._refuse(
                    "Error Code 4: Int8 precision has been set for a layer but int8 is not configured in the builder"
                )
            monitor = config.progress_monitor if major >= 10 else None
            if monitor is not None:
                monitor.phase_start("Building engine", None, 3)
                for step in range(3):
                    if not monitor.step_complete("Building engine", step):
                        return self._refuse("Engine building was interrupted by the user")
                monitor.phase_finish("Building engine")
            asked = {
                "strongly_typed": strong,
                "flags": sorted(config._flags),
                "workspace": config._pools["WORKSPACE"],
                "optimization_level": config.builder_optimization_level,
                "profiles": config._profiles,
            }
            return bytearray(json.dumps(asked).encode())

        def _refuse(self, why: str) -> None:
            self._logger.log(Severity.WARNING, "this may take a while")
            self._logger.log(Severity.ERROR, why)
            self._logger.log(Severity.INFO, "[MemUsageChange] nothing to see")

    module = ModuleType("tensorrt")
    module.__version__ = version
    module.ILogger, module.OnnxParser, module.Builder = ILogger, OnnxParser, Builder
    module.NetworkDefinitionCreationFlag = enum.IntEnum(
        "NetworkDefinitionCreationFlag", {name: value for name, value in creation.items() if name not in without}
    )
    module.BuilderFlag = enum.IntEnum("BuilderFlag", [*flags, "TF32", "REFIT"], start=0)
    module.MemoryPoolType = enum.IntEnum("MemoryPoolType", ["WORKSPACE", "DLA_MANAGED_SRAM"], start=0)
    if major >= 10:

        class IProgressMonitor:
            pass

        module.IProgressMonitor = IProgressMonitor
    return module


def unsupported(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with one node of an operator that nobody has."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    changed.graph.node[3].op_type = _UNSUPPORTED
    return changed


def asked(engine: bytes) -> dict:
    """How the builder was asked for a shim's engine."""
    return json.loads(engine)


def file_of(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path
