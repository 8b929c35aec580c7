"""The runtime's part of TensorRT's module, as a version has it: it executes engines by ONNX Runtime on a strict device.

What the real one refuses is refused, with its words in the log; what it lets pass and answers with rubbish raises Misuse.
Source: NVIDIA's open-source bindings, python/src/infer/pyCore.cpp and pyFoundationalTypes.cpp of the releases 8.6.1, 10.3.0,
10.13.3 and 11.1; of TensorRT for RTX the names of its wheel 1.7.
"""

from __future__ import annotations

import enum
import weakref
from math import prod
from types import ModuleType

import numpy as np
import onnxruntime
from strict_device import Misuse, StrictDevice
from tensorrt_plans import Plan, read_plan

_TYPES = {
    1: ("FLOAT", np.float32),
    10: ("HALF", np.float16),
    3: ("INT8", np.int8),
    2: ("UINT8", np.uint8),
    7: ("INT64", np.int64),
}
_ALIGNMENT = 256


def add_runtime(module: ModuleType, device: StrictDevice, *, uncapturable: bool, uneven: float, off: float) -> None:
    """Put Runtime and what it needs into the module.

    uncapturable: engines have a layer that a CUDA graph cannot hold. uneven: added to the scores of an odd batch; off: to all.
    """
    version = module.__version__
    rtx, old = "rtx" in module.__name__, version.startswith("8")
    oldest_sizes = version.startswith(("8", "10"))
    Severity = module.ILogger.Severity  # noqa: N806 - a class

    later = [] if old else ["BF16", "INT64"]
    module.DataType = enum.Enum("DataType", ["FLOAT", "HALF", "INT8", "INT32", "BOOL", "UINT8", *later])
    module.TensorLocation = enum.Enum("TensorLocation", ["DEVICE", "HOST"])
    module.TensorIOMode = enum.Enum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])
    if not old:
        module.ExecutionContextAllocationStrategy = enum.Enum(
            "ExecutionContextAllocationStrategy", ["STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED"]
        )
    if rtx:
        module.DynamicShapesKernelSpecializationStrategy = enum.Enum(
            "DynamicShapesKernelSpecializationStrategy", ["LAZY", "EAGER", "NONE"]
        )

    class Context:
        __slots__ = (
            "_addresses",
            "_engine",
            "_profile",
            "_scratch",
            "_shapes",
            "_warm",
        )

        def __init__(self, engine: Engine) -> None:
            self._engine = engine
            self._profile, self._scratch, self._warm = None, None, False
            self._shapes, self._addresses = {}, {}

        def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
            if profile_index >= len(self._engine._profiles):
                return self._refuse(f"Error Code 3: profile {profile_index} of {len(self._engine._profiles)}")
            used = profile_index in self._engine._profiles_used
            if old and used and "PROFILE_SHARING_0806" not in self._engine._plan.asked["previews"]:
                return self._refuse(f"Error Code 3: profile {profile_index} has been chosen for another IExecutionContext")
            self._engine._profiles_used.add(profile_index)
            self._profile = profile_index
            device.enqueue(stream_handle, lambda: None)
            return True

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            sizes = None if self._profile is None else self._engine._profiles[self._profile].get(name)
            if sizes is None:
                return self._refuse(f"Error Code 3: no input {name} in the profile")
            small, _, large = sizes
            if len(shape) != len(small) or any(not a <= got <= b for a, got, b in zip(small, shape, large, strict=True)):
                return self._refuse(f"Error Code 3: {name} {shape} is not in range {small} to {large}")
            self._shapes[name], self._warm = tuple(shape), False
            return True

        def infer_shapes(self) -> list[str]:
            missing = [name for name in self._engine._inputs if name not in self._shapes]
            if not missing:
                try:
                    self._engine._output_shapes(self._shapes)
                except Exception as error:
                    self._refuse(f"Error Code 7: shapes do not fit ({error})")
                    raise RuntimeError("shape inference failed") from error
            return missing

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            if name in self._engine._inputs:
                return self._shapes.get(name, self._engine.get_tensor_shape(name))
            return self._engine._output_shapes(self._shapes)[name]

        def set_tensor_address(self, name: str, memory: int) -> bool:
            if name not in self._engine._tensors or memory % _ALIGNMENT:
                return self._refuse(f"Error Code 3: no tensor {name}, or its address {memory:#x} is not aligned")
            self._addresses[name] = memory
            return True

        def execute_async_v3(self, stream_handle: int) -> bool:
            engine = self._engine
            missing = [name for name in engine._tensors if name not in self._addresses]
            if missing or self._profile is None or self.infer_shapes():
                return self._refuse(f"Error Code 3: Internal Error (no address, shape or profile: {missing})")
            captured = device.captures
            if captured and rtx and not self.is_stream_capturable(stream_handle):
                raise Misuse("a capture of what the context has said cannot be captured")
            if captured and (uncapturable or not self._warm):
                return self._refuse("Error Code 1: Cuda Runtime (operation not permitted when stream is capturing)")
            address, nbytes = self._scratch or (0, 0)
            if nbytes < engine._scratch_bytes(self._shapes):
                raise Misuse(f"scratch memory of {nbytes} bytes; expected {engine._scratch_bytes(self._shapes)}")
            self._warm = True
            shapes = {**self._shapes, **engine._output_shapes(self._shapes)}
            places = dict(self._addresses)

            def work() -> None:
                device.view(address, nbytes)[:] = 0xEE
                views = {
                    name: device.view(places[name], prod(shapes[name]) * dtype.itemsize).view(dtype).reshape(shapes[name])
                    for name, dtype in engine._tensors.items()
                }
                outputs = list(engine._outputs)
                feed = {name: views[name].copy() for name in engine._inputs}
                for name, answer in zip(outputs, engine._session.run(outputs, feed), strict=True):
                    views[name][:] = answer + answer.dtype.type(off + len(answer) % 2 * uneven)

            device.enqueue(stream_handle, work)
            return True

        if old:

            @property
            def device_memory(self) -> int:
                return self._scratch[0]

            @device_memory.setter
            def device_memory(self, memory: int) -> None:
                self._scratch = memory, self._engine.device_memory_size

        else:

            def set_device_memory(self, memory: int, size: int) -> None:
                self._scratch = memory, size

            def update_device_memory_size_for_shapes(self) -> int:
                return self._engine._scratch_bytes(self._shapes)

        if rtx:

            def is_stream_capturable(self, stream: int) -> bool:
                return not uncapturable and "REQUIRE_USER_ALLOCATION" in self._engine._plan.asked["beside"]

        def _refuse(self, why: str) -> bool:
            self._engine._logger.log(Severity.ERROR, why)
            return False

    class RuntimeCache:
        __slots__ = ()

    class RuntimeConfig:
        __slots__ = ("_cache", "_strategy", "dynamic_shapes_kernel_specialization_strategy")

        def __init__(self) -> None:
            self._strategy, self._cache, self.dynamic_shapes_kernel_specialization_strategy = None, None, None

        def create_runtime_cache(self) -> RuntimeCache:
            return RuntimeCache()

        def set_runtime_cache(self, cache: RuntimeCache) -> bool:
            self._cache = cache
            return True

        def set_execution_context_allocation_strategy(self, strategy: enum.Enum) -> None:
            self._strategy = strategy

    class Engine:
        __slots__ = (
            "_inputs",
            "_known",
            "_logger",
            "_outputs",
            "_plan",
            "_profiles",
            "_profiles_used",
            "_runtime",
            "_session",
            "_tensors",
        )

        def __init__(self, plan: Plan, logger: object, runtime: Runtime) -> None:
            self._plan, self._logger, self._profiles_used, self._known = plan, logger, set(), {}
            self._runtime = weakref.ref(runtime)
            self._profiles = plan.asked["profiles"]
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.log_severity_level = 1, 4
            self._session = onnxruntime.InferenceSession(plan.model.SerializeToString(), options, ["CPUExecutionProvider"])
            self._inputs = {value.name: value for value in plan.model.graph.input}
            self._outputs = {value.name: value for value in plan.model.graph.output}
            values = {**self._inputs, **self._outputs}
            self._tensors = {name: np.dtype(_TYPES[value.type.tensor_type.elem_type][1]) for name, value in values.items()}

        @property
        def num_io_tensors(self) -> int:
            return len(self._tensors)

        @property
        def num_optimization_profiles(self) -> int:
            return len(self._profiles)

        def get_tensor_name(self, index: int) -> str:
            return list(self._tensors)[index]

        def get_tensor_mode(self, name: str) -> enum.Enum:
            return module.TensorIOMode.INPUT if name in self._inputs else module.TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name: str) -> enum.Enum:
            value = self._inputs.get(name) or self._outputs[name]
            return module.DataType[_TYPES[value.type.tensor_type.elem_type][0]]

        def get_tensor_location(self, name: str) -> enum.Enum:
            return module.TensorLocation.DEVICE

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            value = self._inputs.get(name) or self._outputs[name]
            return tuple(d.dim_value or -1 for d in value.type.tensor_type.shape.dim)

        if oldest_sizes:

            @property
            def device_memory_size(self) -> int:
                return self._largest()

            def create_execution_context_without_device_memory(self) -> Context:
                return self._context()

        if not old:

            @property
            def device_memory_size_v2(self) -> int:
                return self._largest()

        if rtx:

            def create_runtime_config(self) -> RuntimeConfig:
                return RuntimeConfig()

            def create_execution_context(self, runtime_config: RuntimeConfig) -> Context:
                self._require_managed(runtime_config._strategy)
                chosen = runtime_config.dynamic_shapes_kernel_specialization_strategy
                if runtime_config._cache is None:
                    raise Misuse("kernels compiled for each context anew")
                if chosen is not module.DynamicShapesKernelSpecializationStrategy.EAGER:
                    raise Misuse(f"kernels of a shape may change while it runs: {chosen}")
                return self._context()

        elif old:

            def create_execution_context(self) -> Context:
                raise Misuse("a context with scratch memory of its own for the largest shape")

        else:

            def create_execution_context(self, strategy: enum.Enum) -> Context:
                self._require_managed(strategy)
                return self._context()

        def _require_managed(self, strategy: enum.Enum) -> None:
            if strategy is not module.ExecutionContextAllocationStrategy.USER_MANAGED:
                raise Misuse(f"a context with scratch memory of its own: {strategy}")

        def _context(self) -> Context:
            device.event()  # outside of active() that is a misuse
            if self._runtime() is None:
                raise Misuse("a context of an engine whose runtime is gone")
            return Context(self)

        def _largest(self) -> int:
            return max(self._scratch_bytes({n: s[2] for n, s in profile.items()}) for profile in self._profiles)

        def _scratch_bytes(self, shapes: dict) -> int:
            return 3 * sum(prod(shape) for shape in shapes.values())

        def _output_shapes(self, shapes: dict) -> dict[str, tuple[int, ...]]:
            """Of a run over zeros, once for each set of shapes."""
            key = tuple(sorted(shapes.items()))
            if key not in self._known:
                feed = {name: np.zeros(shape, self._tensors[name]) for name, shape in shapes.items()}
                self._known[key] = [answer.shape for answer in self._session.run(list(self._outputs), feed)]
            return dict(zip(self._outputs, self._known[key], strict=True))

    class Runtime:
        __slots__ = ("DLA_core", "__weakref__", "_logger")

        def __init__(self, logger: object) -> None:
            self._logger, self.DLA_core = logger, -1

        def deserialize_cuda_engine(self, serialized: bytes) -> Engine | None:
            device.event()
            plan = read_plan(bytes(serialized))
            if plan is None:
                return self._refuse("Error Code 1: Serialization (magic tag or checksum does not match)")
            if (plan.module, plan.version) != (module.__name__, version):
                return self._refuse(f"Error Code 6: the engine plan is of version {plan.version}, expected {version}")
            here = (device.properties.name, device.properties.compute)
            if plan.gpu != here:
                return self._refuse(f"Error Code 6: the engine was generated on {plan.gpu[0]}, this is {here[0]}")
            if plan.asked["dla"] is not None and self.DLA_core != plan.asked["dla"]:
                return self._refuse(f"Error Code 3: the engine is for DLA {plan.asked['dla']}, the runtime for {self.DLA_core}")
            return Engine(plan, self._logger, self)

        def _refuse(self, why: str) -> None:
            self._logger.log(Severity.ERROR, why)

    module.Runtime = Runtime
