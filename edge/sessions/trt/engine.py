"""An engine on the GPU, and its execution contexts: one shape each, warmed up, recorded as a CUDA graph and replayed.

Source: NVIDIA TensorRT Python API, IRuntime, ICudaEngine, IExecutionContext, 8.6.1, 10.3, 10.13.3, 11.1
and TensorRT for RTX 1.7; what a version lacks is looked for.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np

from edge.bundle import MODEL, Bundle
from edge.cuda.device import CudaDevice, DeviceMemory, Graph, Stream
from edge.errors import SessionError
from edge.sessions.gpu import Gpu
from edge.sessions.trt.build import BuildOptions, obtain_engine, renew_engine
from edge.sessions.trt.library import Listener, listener, numpy_type
from edge.sessions.trt.shapes import Profile

_log = logging.getLogger(__name__)
_GRAPHS_KEPT: Final = 2
"""Of a context: one at the addresses that batches of the host pass through, one at those of a lane."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output. dtype: float32, float16, int8 or uint8."""

    name: str
    dtype: np.dtype[Any]
    is_input: bool


class TrtEngine:
    """A loaded engine of one profile. where: names it in errors; capturable: until a CUDA graph of it could not be made."""

    def __init__(self, trt: ModuleType, loaded: _Loaded, profile: Profile, where: str) -> None:
        self.trt, self.profile, self.where = trt, profile, where
        # the runtime has to outlive what it has loaded
        self._runtime, self.engine = loaded.runtime, loaded.engine
        self.said: Listener = listener(trt)
        self.capturable = True
        self._of_rtx = _rtx_configuration(trt, self.engine)
        names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        self.tensors = tuple(self._tensor(name) for name in names)

    def close(self) -> None:
        """Forget the engine; its contexts are closed before."""
        self._of_rtx = None
        self.engine = None
        self._runtime = None

    def context(self) -> Any:
        """A new execution context, whose scratch memory is given to it: one piece a stream serves all shapes. None: refused."""
        if self._of_rtx is not None:
            return self.engine.create_execution_context(self._of_rtx)
        strategies = getattr(self.trt, "ExecutionContextAllocationStrategy", None)
        if strategies is None:
            return self.engine.create_execution_context_without_device_memory()
        return self.engine.create_execution_context(strategies.USER_MANAGED)

    def failed(self, what: str) -> SessionError:
        """With TensorRT's last word."""
        return SessionError(f"{self.where}: TensorRT {self.trt.__version__} {what}: {self.said.last}")

    def _tensor(self, name: str) -> Tensor:
        kind = self.engine.get_tensor_dtype(name)
        dtype = numpy_type(kind)
        if dtype is None or self.engine.get_tensor_location(name) != self.trt.TensorLocation.DEVICE:
            raise SessionError(
                f"{self.where}: got {name} as {kind.name}, expected FLOAT, HALF, INT8 or UINT8 on the device; "
                "export the bundle again"
            )
        return Tensor(name, dtype, self.engine.get_tensor_mode(name) == self.trt.TensorIOMode.INPUT)


def load_engine(
    trt: ModuleType,
    device: CudaDevice,
    bundle: Bundle,
    profile: Profile,
    folder: Path | None,
    options: BuildOptions,
    *,
    file: str = MODEL,
) -> TrtEngine:
    """A bundle's engine for a range of shapes: kept or built, and where TensorRT does not load what was kept, built again.

    Inside `device.active()`. Raises SessionError.
    """
    gpu, where = Gpu(device.properties.name, device.properties.compute), str(bundle.path / file)
    obtained = obtain_engine(trt, gpu, bundle, [profile], folder, file=file, options=options)
    loaded = _load(trt, obtained.content, options)
    if loaded.engine is None and obtained.built is None:
        reason = f"{obtained.path} cannot be loaded ({loaded.why})"
        _log.warning("%s and is built again", reason)
        obtained = renew_engine(trt, gpu, bundle, [profile], folder, reason, file=file, options=options)
        loaded = _load(trt, obtained.content, options)
    if loaded.engine is None:
        raise SessionError(f"{where}: TensorRT {trt.__version__} does not load the engine that it has built: {loaded.why}")
    return TrtEngine(trt, loaded, profile, where)


class Scratch:
    """Memory in which the contexts of one stream compute, one after the other."""

    def __init__(self, device: CudaDevice, stream: Stream) -> None:
        self._device, self._stream = device, stream
        self._memory: DeviceMemory | None = None

    @property
    def memory(self) -> DeviceMemory:
        """As much as the greatest context wants; at another address once that grows."""
        if self._memory is None:
            self._memory = self._device.allocate(1)
        return self._memory

    def reserve(self, nbytes: int) -> None:
        """Make it so large. Raises SessionError, and is then as it was."""
        if self._memory is not None and self._memory.nbytes >= nbytes:
            return
        larger = self._device.allocate(max(nbytes, 1))
        self._stream.synchronize()
        self.free()
        self._memory = larger

    def free(self) -> None:
        """Give it back."""
        if self._memory is not None:
            self._memory.free()
            self._memory = None


class TrtContext:
    """An execution context for one shape of each input, on one stream; inside `device.active()`.

    shapes: of the outputs, by name. Raises SessionError where the engine does not take the shapes of its inputs.
    """

    def __init__(
        self, device: CudaDevice, engine: TrtEngine, inputs: Mapping[str, tuple[int, ...]], stream: Stream, scratch: Scratch
    ) -> None:
        self._device, self._engine, self._stream, self._scratch = device, engine, stream, scratch
        self._graphs: dict[tuple[int, ...], Graph] = {}
        self._warm: tuple[int, ...] | None = None
        engine.said.forget()
        self._context = engine.context()
        if self._context is None:
            raise engine.failed("makes no execution context")
        if not self._context.set_optimization_profile_async(0, stream.handle):
            raise engine.failed("does not take its profile")
        for name, shape in inputs.items():
            if not self._context.set_input_shape(name, shape):
                raise engine.failed(f"does not take {name} {shape}")
        try:
            missing = self._context.infer_shapes()
        except RuntimeError as error:
            raise engine.failed(f"infers no shapes from {dict(inputs)}") from error
        if missing:
            raise engine.failed(f"wants shapes for {', '.join(missing)} too")
        self.shapes = {t.name: tuple(self._context.get_tensor_shape(t.name)) for t in engine.tensors if not t.is_input}
        if open_sizes := [f"{name} {shape}" for name, shape in self.shapes.items() if min(shape, default=1) < 1]:
            raise SessionError(f"{engine.where}: got {', '.join(open_sizes)} for {dict(inputs)}; expected sizes known beforehand")
        scratch.reserve(_scratch_bytes(engine.engine, self._context))

    def close(self) -> None:
        """Forget the context and its graphs."""
        for graph in self._graphs.values():
            graph.close()
        self._graphs.clear()
        self._context = None

    def get_ready(self, addresses: Mapping[str, int]) -> None:
        """Run once at these addresses, of every input and output, and record that: `run` then only replays it.

        What lies there is computed, and waited for. Raises SessionError.
        """
        place = self._place(addresses)
        if place in self._graphs or place == self._warm:
            return
        self._engine.said.forget()
        self._settle(addresses, place)
        self._enqueue()
        self._stream.synchronize()
        self._warm = place
        if self._engine.capturable:
            self._record(place)

    def run(self, addresses: Mapping[str, int]) -> None:
        """Put an inference on the stream. Raises SessionError."""
        self.get_ready(addresses)
        graph = self._graphs.get(self._place(addresses))
        if graph is None:
            self._enqueue()
        else:
            graph.launch(self._stream)

    def _place(self, addresses: Mapping[str, int]) -> tuple[int, ...]:
        return (self._scratch.memory.address, *addresses.values())

    def _settle(self, addresses: Mapping[str, int], place: tuple[int, ...]) -> None:
        """Tell TensorRT all addresses, and forget graphs of scratch memory that is no longer."""
        for old in [known for known in self._graphs if known[0] != place[0]]:
            self._graphs.pop(old).close()
        sized = getattr(self._context, "set_device_memory", None)
        if sized is not None:
            sized(self._scratch.memory.address, self._scratch.memory.nbytes)
        else:
            self._context.device_memory = self._scratch.memory.address
        for name, address in addresses.items():
            if not self._context.set_tensor_address(name, address):
                raise self._engine.failed(f"does not take an address for {name}")

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream.handle):
            raise self._engine.failed("does not run")

    def _record(self, place: tuple[int, ...]) -> None:
        # layers whose shapes the host decides, and some plugins, cannot be captured
        capturable = getattr(self._context, "is_stream_capturable", None)
        try:
            if capturable is not None and not capturable(self._stream.handle):
                raise self._engine.failed("has layers that cannot be captured")
            graph = self._device.capture(self._stream, self._enqueue)
        except SessionError as error:
            self._engine.capturable = False
            _log.warning("%s: runs without a CUDA graph, launch by launch: %s", self._engine.where, error)
            return
        while len(self._graphs) >= _GRAPHS_KEPT:
            self._graphs.pop(next(iter(self._graphs))).close()
        self._graphs[place] = graph


def free_quietly(*parts: Any) -> None:
    """Close and free what a session holds: a lost GPU does not give back anything, and needs no second error."""
    for part in parts:
        with contextlib.suppress(SessionError):
            part.free() if hasattr(part, "free") else part.close()


@dataclass(frozen=True, slots=True)
class _Loaded:
    """engine: None: TensorRT has refused it, with what it said."""

    runtime: Any
    engine: Any
    why: str


def _load(trt: ModuleType, content: bytes, options: BuildOptions) -> _Loaded:
    said = listener(trt)
    said.forget()
    try:
        runtime = trt.Runtime(said.logger)
    except TypeError:  # what the bindings raise where CUDA does not start
        return _Loaded(None, None, said.last)
    if options.dla is not None:
        runtime.DLA_core = options.dla
    engine = runtime.deserialize_cuda_engine(content)
    return _Loaded(runtime, engine, said.last)


def _rtx_configuration(trt: ModuleType, engine: Any) -> Any:
    """How TensorRT for RTX is to run an engine; None: another TensorRT.

    By default it changes a shape's kernels while it runs, as soon as better ones are compiled: scores would then depend on when
    they were asked. All are compiled before a shape runs, once for all contexts.
    """
    specialization = getattr(trt, "DynamicShapesKernelSpecializationStrategy", None)
    if specialization is None:
        return None
    config = engine.create_runtime_config()
    config.dynamic_shapes_kernel_specialization_strategy = specialization.EAGER
    config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    config.set_runtime_cache(config.create_runtime_cache())
    return config


def _scratch_bytes(engine: Any, context: Any) -> int:
    """That a context wants: for its shape where TensorRT tells, else for the largest of the range."""
    for_shape = getattr(context, "update_device_memory_size_for_shapes", None)
    if for_shape is not None:
        return int(for_shape())
    sized = getattr(engine, "device_memory_size_v2", None)
    return int(engine.device_memory_size if sized is None else sized)
