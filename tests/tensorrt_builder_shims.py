"""The builder's and parser's part of TensorRT's module, as a version has it: see `tensorrt_shims`."""

from __future__ import annotations

import enum
from types import ModuleType

import onnx
from tensorrt_plans import Plan, write_plan

_CREATION = {
    "8": {"EXPLICIT_BATCH": 0, "EXPLICIT_PRECISION": 1},
    "10.3": {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1},
    "10.13": {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1, "PREFER_AOT_PYTHON_PLUGINS": 2, "PREFER_JIT_PYTHON_PLUGINS": 3},
    "11": {"STRONGLY_TYPED": 0, "PREFER_JIT_PYTHON_PLUGINS": 1, "PREFER_AOT_PYTHON_PLUGINS": 2},
    "1.": {"STRONGLY_TYPED": 0},
}
_PREVIEWS = {
    "8": ["FASTER_DYNAMIC_SHAPES_0805", "DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805", "PROFILE_SHARING_0806"],
    "10.3": ["PROFILE_SHARING_0806", "ALIASED_PLUGIN_IO_10_03"],
    "10.13": ["PROFILE_SHARING_0806", "ALIASED_PLUGIN_IO_10_03", "RUNTIME_ACTIVATION_RESIZE_10_10"],
    "11": ["ALIASED_PLUGIN_IO_10_03", "RUNTIME_ACTIVATION_RESIZE_10_10"],
    "1.": ["ALIASED_PLUGIN_IO_10_03", "RUNTIME_ACTIVATION_RESIZE_10_10"],
}
UNSUPPORTED = "NonMaxSuppressionOfTheFuture"


def add_builder(
    module: ModuleType, *, without: tuple[str, ...], refuses: str, gpu: tuple[str, str], dla_cores: int, dla_layers: int
) -> None:
    """Put Builder, OnnxParser and what they need into the module. gpu: name and capability that engines are built for."""
    version = module.__version__
    major = int(version.split(".")[0])
    major = 11 if major == 1 else major  # TensorRT for RTX counts anew
    weak = major < 11
    creation = _of(_CREATION, version)
    flags = ["FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS"] if weak else []
    independence = [] if version.startswith(("8", "10.3")) else ["DISTRIBUTIVE_INDEPENDENCE"]
    independence += ["REQUIRE_USER_ALLOCATION"] if version.startswith("1.") else []
    Severity = module.ILogger.Severity  # noqa: N806 - a class

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

        @property
        def num_layers(self) -> int:
            return len(self._model.graph.node)

        def get_layer(self, index: int) -> onnx.NodeProto:
            return self._model.graph.node[index]

        def _has(self, flag: str) -> bool:
            return bool(self._flags >> creation[flag] & 1) if flag in creation else False

    class OnnxParser:
        __slots__ = ("_errors", "_network")

        def __init__(self, network: Network, logger: object) -> None:
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
            "_previews",
            "DLA_core",
            "builder_optimization_level",
            "default_device_type",
            *(["progress_monitor"] if major >= 10 else []),
        )

        def __init__(self) -> None:
            self._flags, self._pools, self._profiles, self.builder_optimization_level = {"TF32"}, {}, [], 3
            self._previews, self.default_device_type, self.DLA_core = set(), module.DeviceType.GPU, -1
            if major >= 10:
                self.progress_monitor = None

        def set_memory_pool_limit(self, pool: enum.IntEnum, size: int) -> None:
            self._pools[pool.name] = size

        def set_flag(self, flag: enum.IntEnum) -> None:
            self._flags.add(flag.name)

        def clear_flag(self, flag: enum.IntEnum) -> None:
            self._flags.discard(flag.name)

        def set_preview_feature(self, feature: enum.IntEnum, enabled: bool) -> None:
            assert isinstance(feature, module.PreviewFeature)
            assert enabled
            self._previews.add(feature.name)

        def can_run_on_DLA(self, layer: onnx.NodeProto) -> bool:  # noqa: N802 - TensorRT's name
            return dla_layers > 0

        def add_optimization_profile(self, profile: Profile) -> int:
            self._profiles.append(profile._shapes)
            return len(self._profiles) - 1

    class Builder:
        __slots__ = ("_logger",)

        def __init__(self, logger: object) -> None:
            self._logger = logger

        @property
        def num_DLA_cores(self) -> int:  # noqa: N802 - TensorRT's name
            return dla_cores

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
            on_dla = config.default_device_type == module.DeviceType.DLA
            fixed = all(len({tuple(size) for size in sizes}) == 1 for profile in config._profiles for sizes in profile.values())
            if on_dla and not fixed:
                return self._refuse("Error Code 2: dynamic shapes are not supported on DLA")
            if on_dla and "GPU_FALLBACK" not in config._flags:
                return self._refuse("Error Code 4: layers cannot run on DLA and GPU fallback is off")
            monitor = config.progress_monitor if major >= 10 else None
            if monitor is not None:
                monitor.phase_start("Building engine", None, 3)
                for step in range(3):
                    if not monitor.step_complete("Building engine", step):
                        return self._refuse("Engine building was interrupted by the user")
                monitor.phase_finish("Building engine")
            asked = {
                "strongly_typed": strong,
                "flags": sorted(config._flags - set(independence)),
                "beside": sorted(config._flags & set(independence)),
                "workspace": config._pools["WORKSPACE"],
                "optimization_level": config.builder_optimization_level,
                "profiles": config._profiles,
                "previews": sorted(config._previews),
                "dla": config.DLA_core if on_dla else None,
            }
            return bytearray(write_plan(Plan(module.__name__, version, gpu, asked, network._model)))

        def _refuse(self, why: str) -> None:
            self._logger.log(Severity.WARNING, "this may take a while")
            self._logger.log(Severity.ERROR, why)
            self._logger.log(Severity.INFO, "[MemUsageChange] nothing to see")

    module.OnnxParser, module.Builder = OnnxParser, Builder
    module.NetworkDefinitionCreationFlag = enum.IntEnum(
        "NetworkDefinitionCreationFlag", {name: value for name, value in creation.items() if name not in without}
    )
    module.BuilderFlag = enum.IntEnum("BuilderFlag", [*flags, "TF32", "REFIT", "GPU_FALLBACK", *independence], start=0)
    module.PreviewFeature = enum.IntEnum("PreviewFeature", _of(_PREVIEWS, version), start=0)
    module.DeviceType = enum.IntEnum("DeviceType", ["GPU", "DLA"], start=0)
    module.MemoryPoolType = enum.IntEnum("MemoryPoolType", ["WORKSPACE", "DLA_MANAGED_SRAM"], start=0)
    if major >= 10:

        class IProgressMonitor:
            pass

        module.IProgressMonitor = IProgressMonitor


def _of(by_version: dict, version: str) -> object:
    return next(found for start, found in reversed(by_version.items()) if version.startswith(start))
