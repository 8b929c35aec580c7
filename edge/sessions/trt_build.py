"""TensorRT's builder: a bundle's ONNX file to an engine for the GPU of this box.

One path through the builder for TensorRT 8.6 (JetPack 5 and 6.0), 10, 11 and TensorRT for RTX, whose Python modules share their
names: what a version lacks is looked for, never concluded from a version number. `trt` is the module itself, so that this file
imports without it. Precision lies in the ONNX file; only a builder that types weakly (8.6) has to be told that it may use it.

Source: NVIDIA TensorRT Python API; the bindings of its open-source releases 8.6.1, 10.3, 10.13.3, 11.1.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from edge.bundle import MODEL, Bundle, file_sha256
from edge.engine_cache import EngineKey, cache_path, read_engine, write_engine
from edge.errors import SessionError
from edge.manifest import Manifest
from edge.sessions.gpu import Gpu

_log = logging.getLogger(__name__)
_IMAGE = "image"
_BATCHES = (1, 4, 8, 16)
"""Tiles of one inference: one shape each, so that a context has nothing left to decide when it runs."""

_WEAKLY_TYPED = {"fp16": "FP16", "int8": "INT8"}
"""Flags by which a weakly typed builder is allowed what the file's types and Q/DQ ask for."""

Progress = Callable[[str, int, int], None]
"""Told the name of the builder's phase, its steps done, and how many it has."""


@dataclass(frozen=True, slots=True)
class ShapeRange:
    """Sizes that an input may take: smallest, the one to be fast at, largest."""

    smallest: tuple[int, ...]
    usual: tuple[int, ...]
    largest: tuple[int, ...]

    def __post_init__(self) -> None:
        ordered = zip(self.smallest, self.usual, self.largest, strict=True)
        if any(not 0 < small <= usual <= large for small, usual, large in ordered):
            raise ValueError(f"sizes grow from smallest to largest, got {self.smallest}, {self.usual}, {self.largest}")

    @staticmethod
    def of(*shape: int) -> ShapeRange:
        """One shape and no other."""
        return ShapeRange(shape, shape, shape)


Profile = Mapping[str, ShapeRange]
"""Range of every input with free sizes, by its name."""


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """workspace_mib: scratch memory that a layer may take; a Jetson's GPU shares its memory with everything else.

    optimization_level: TensorRT's, 0 to 5: time of the build against speed of the engine.
    tf32: let float32 layers multiply with 10 bits of mantissa: off, since what is to be faster is exported as fp16 or int8.
    """

    workspace_mib: int = 1024
    optimization_level: int = 3
    tf32: bool = False


@dataclass(frozen=True, slots=True)
class DeviceEngine:
    """An engine ready to be loaded. path: where it is kept; None: it cannot be. built: why it was built; None: it was kept."""

    content: bytes
    path: Path | None
    built: str | None


def tile_profiles(manifest: Manifest, batches: Sequence[int] = _BATCHES) -> tuple[Profile, ...]:
    """Of `model.onnx`: a profile per batch size."""
    size = manifest.input
    return tuple({_IMAGE: ShapeRange.of(batch, 1, size.tile_height, size.tile_width)} for batch in batches)


def stream_profiles(manifest: Manifest, width: int, chunk_lines: int) -> tuple[Profile, ...]:
    """Of `stream.onnx`, for a strip of one width read in chunks of one height."""
    states = manifest.streaming.states if manifest.streaming else ()
    shapes = {state.input: ShapeRange.of(1, state.channels, state.rows, width // state.stride) for state in states}
    return ({_IMAGE: ShapeRange.of(1, 1, chunk_lines, width), **shapes},)


def obtain_engine(
    trt: ModuleType,
    gpu: Gpu,
    bundle: Bundle,
    profiles: Sequence[Profile],
    *,
    file: str = MODEL,
    options: BuildOptions = BuildOptions(),
    progress: Progress | None = None,
) -> DeviceEngine:
    """The engine of a bundle's file for this box: the one that is kept where it fits, else a new one, kept from then on.

    Raises SessionError where it cannot be built.
    """
    key = engine_key(trt, gpu, bundle, profiles, file=file, options=options)
    path = cache_path(bundle.path, file, key)
    cached = read_engine(path, key)
    if cached.content is not None:
        return DeviceEngine(cached.content, path, None)
    _log.info("building %s of %s for %s: %s", file, bundle.manifest.name, gpu.name, cached.reason)
    content = build(trt, bundle.path / file, profiles, bundle.manifest.precision, options=options, progress=progress)
    try:
        write_engine(path, content, key)
    except OSError as error:
        _log.warning("%s: the engine cannot be kept (%s) and will be built again at the next start", path.parent, error.strerror)
        return DeviceEngine(content, None, cached.reason)
    return DeviceEngine(content, path, cached.reason)


def engine_key(
    trt: ModuleType,
    gpu: Gpu,
    bundle: Bundle,
    profiles: Sequence[Profile],
    *,
    file: str = MODEL,
    options: BuildOptions = BuildOptions(),
) -> EngineKey:
    """The key under which an engine of a bundle's file is kept."""
    # the weights of stream.onnx may lie in model.onnx
    parts = [file_sha256(bundle.path / name) for name in dict.fromkeys((file, MODEL))]
    return EngineKey(
        model_sha256=parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest(),
        builder=f"{trt.__name__.removesuffix('_bindings')} {trt.__version__}",
        device=gpu.name,
        compute=gpu.compute,
        precision=bundle.manifest.precision,
        profiles=tuple(_written_out(profile) for profile in profiles),
        options=(
            f"workspace_mib={options.workspace_mib}",
            f"optimization_level={options.optimization_level}",
            f"tf32={options.tf32}",
        ),
    )


def build(
    trt: ModuleType,
    model: bytes | Path,
    profiles: Sequence[Profile],
    precision: str,
    *,
    options: BuildOptions = BuildOptions(),
    progress: Progress | None = None,
) -> bytes:
    """An engine of an ONNX file, serialized. May take minutes.

    model: path, where the weights may lie in another file, or the bytes. profiles: one or several; none where no size is free.
    precision: fp32, fp16 or int8, as the manifest says.
    Raises SessionError naming the node that the parser refuses, the input that has no shape, or what the builder logged last;
    whatever `progress` raises ends the build and comes out.
    """
    where = "engine" if isinstance(model, bytes) else str(model)
    logger = _listening_logger(trt)
    builder = trt.Builder(logger)
    kinds = trt.NetworkDefinitionCreationFlag
    strongly_typed = getattr(kinds, "STRONGLY_TYPED", None)
    # 8.6 alone needs EXPLICIT_BATCH; 11 has deprecated the other one too, being strongly typed always
    flag = getattr(kinds, "EXPLICIT_BATCH", None) if strongly_typed is None else strongly_typed
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse(model) if isinstance(model, bytes) else parser.parse_from_file(str(model))
    if not parsed:
        faults = "; ".join(_parser_error(parser.get_error(index)) for index in range(parser.num_errors))
        raise SessionError(
            f"{where}: TensorRT {trt.__version__} cannot read it: {faults or logger.last}; export the bundle again"
        )
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    config.builder_optimization_level = options.optimization_level
    if not options.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    allowed = getattr(trt.BuilderFlag, _WEAKLY_TYPED.get(precision, ""), None)
    if strongly_typed is None and allowed is not None:
        config.set_flag(allowed)
    _add_profiles(builder, config, network, profiles, where)
    watched = _watch(trt, config, progress)
    serialized = builder.build_serialized_network(network, config)
    if watched is not None and watched.interrupted is not None:
        raise watched.interrupted
    if serialized is None:
        raise SessionError(
            f"{where}: TensorRT {trt.__version__} builds no engine: {logger.last}; "
            "give it more workspace, or run the bundle on another backend"
        )
    return bytes(serialized)


def _add_profiles(builder: Any, config: Any, network: Any, profiles: Sequence[Profile], where: str) -> None:
    free = {
        tensor.name: tuple(tensor.shape)
        for index in range(network.num_inputs)
        if -1 in (tensor := network.get_input(index)).shape
    }
    if free and not profiles:
        raise SessionError(f"{where}: got no shapes for {', '.join(free)}; expected a profile, since their sizes are free")
    for profile in profiles:
        if missing := [name for name in free if name not in profile]:
            raise SessionError(f"{where}: got no shapes for {', '.join(missing)}; expected a range for every input of free size")
        made = builder.create_optimization_profile()
        for name, shape in free.items():
            sizes = profile[name]
            fits = len(sizes.usual) == len(shape) and all(
                want in (-1, small) and want in (-1, large)
                for want, small, large in zip(shape, sizes.smallest, sizes.largest, strict=True)
            )
            if not fits:
                raise SessionError(f"{where}: got shapes {_sizes(sizes)} for {name}, expected {_dimensions(shape)}")
            made.set_shape(name, sizes.smallest, sizes.usual, sizes.largest)
        if config.add_optimization_profile(made) < 0:
            raise SessionError(
                f"{where}: TensorRT refuses the shapes {_written_out(profile)}; expected sizes that fit each other"
            )


def _parser_error(error: Any) -> str:
    """One of the parser's errors; 8.6 knows a node's number, from 10 on its name."""
    named = getattr(error, "node_name", None)
    node = f"{named()} ({error.node_operator()})" if named is not None and named() else f"node {error.node()}"
    return f"{node}: {error.desc()}"


def _listening_logger(trt: ModuleType) -> Any:
    class Listener(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last = "it says no more"

        def log(self, severity: Any, message: str) -> None:
            # INTERNAL_ERROR 0, ERROR 1, WARNING 2, INFO 3, VERBOSE 4
            if int(severity) <= int(trt.ILogger.Severity.ERROR):
                self.last = message
            _log.log(logging.DEBUG if int(severity) > int(trt.ILogger.Severity.ERROR) else logging.ERROR, "%s", message)

    return Listener()


def _watch(trt: ModuleType, config: Any, progress: Progress | None) -> Any:
    """Hands on the builder's progress where it tells (from 10 on)."""
    if progress is None or not hasattr(trt, "IProgressMonitor"):
        return None
    tell: Progress = progress

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.interrupted: BaseException | None = None
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps
            self._tell(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._tell(phase_name, step + 1)
            return self.interrupted is None

        def phase_finish(self, phase_name: str) -> None:
            self._tell(phase_name, self._steps.get(phase_name, 0))

        def _tell(self, phase: str, done: int) -> None:
            if self.interrupted is not None:
                return
            try:
                tell(phase, done, self._steps.get(phase, 0))
            except BaseException as error:  # must not unwind through the builder, which is C++: it is told to stop instead
                self.interrupted = error

    monitor = Monitor()
    config.progress_monitor = monitor
    return monitor


def _written_out(profile: Profile) -> str:
    return ", ".join(f"{name} {_sizes(sizes)}" for name, sizes in sorted(profile.items()))


def _sizes(sizes: ShapeRange) -> str:
    distinct = dict.fromkeys((sizes.smallest, sizes.usual, sizes.largest))
    return " to ".join("x".join(map(str, shape)) for shape in distinct)


def _dimensions(shape: tuple[int, ...]) -> str:
    return "x".join("any" if size == -1 else str(size) for size in shape)
