"""TensorRT's builder: a bundle's ONNX file to an engine for the GPU of this box.

One path through the builder for TensorRT 8.6 (JetPack 6.0), 10, 11 and TensorRT for RTX, whose Python modules share their
names: what a version lacks is looked for, never concluded from a version number. `trt` is the module itself, so that this file
imports without it. Precision lies in the ONNX file; only a builder that types weakly (8.6) has to be told that it may use it.

Source: NVIDIA TensorRT Python API; the bindings of its open-source releases 8.6.1, 10.3, 10.13.3, 11.1.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import onnx
from onnx import TensorProto

from edge.bundle import MODEL, Bundle, file_sha256
from edge.engine_cache import EngineKey, engine_path, read_engine, write_engine
from edge.errors import SessionError
from edge.sessions.gpu import Gpu
from edge.sessions.ort_rewrite import free_height_and_width
from edge.sessions.trt.library import listener
from edge.sessions.trt.progress import Progress, build_progress
from edge.sessions.trt.shapes import Profile, runs_on_any_size

_log = logging.getLogger(__name__)

_WEAKLY_TYPED = {"fp16": "FP16", "int8": "INT8"}
"""Flags by which a weakly typed builder is allowed what the file's types and Q/DQ ask for."""
_FLAGS: Final = ("DISTRIBUTIVE_INDEPENDENCE", "REQUIRE_USER_ALLOCATION")
"""Where a builder has them: layers compute every tile of a batch by identical operations (10.12), and nothing allocates memory
while it runs, without which TensorRT for RTX cannot be captured."""
_PREVIEWS: Final = ("PROFILE_SHARING_0806", "RUNTIME_ACTIVATION_RESIZE_10_10")
"""Where a builder has them: several contexts on one profile (8.6; always so from 10 on), and scratch memory for the shape that a
context has instead of the largest one of its range."""
_RECIPE: Final = 2
"""Counts up when this file builds other engines of the same options."""


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """workspace_mib: scratch memory that a layer may take; a Jetson's GPU shares its memory with everything else.

    optimization_level: TensorRT's, 0 to 5: time of the build against speed of the engine.
    tf32: let float32 layers multiply with 10 bits of mantissa: off, since what is to be faster is exported as fp16 or int8.
    dla: a Jetson's deep learning accelerator that computes the layers which it can, the GPU the others; None: the GPU all.
    """

    workspace_mib: int = 1024
    optimization_level: int = 3
    tf32: bool = False
    dla: int | None = None


@dataclass(frozen=True, slots=True)
class DeviceEngine:
    """An engine ready to be loaded. path: where it is kept; None: it cannot be. built: why it was built; None: it was kept."""

    content: bytes
    path: Path | None
    built: str | None


def obtain_engine(
    trt: ModuleType,
    gpu: Gpu,
    bundle: Bundle,
    profiles: Sequence[Profile],
    folder: Path | None,
    *,
    file: str = MODEL,
    options: BuildOptions = BuildOptions(),
) -> DeviceEngine:
    """The engine of a bundle's file for this box: the one that is kept where it fits, else a new one, kept from then on.

    folder: where engines of the bundle are kept; None: nowhere. Raises SessionError where it cannot be built.
    """
    key = engine_key(trt, gpu, bundle, profiles, file=file, options=options)
    if folder is None:
        return renew_engine(trt, gpu, bundle, profiles, folder, "engines cannot be kept", file=file, options=options)
    path = engine_path(folder, file, key)
    cached = read_engine(path, key)
    if cached.content is not None:
        return DeviceEngine(cached.content, path, None)
    return renew_engine(trt, gpu, bundle, profiles, folder, cached.reason, file=file, options=options)


def renew_engine(
    trt: ModuleType,
    gpu: Gpu,
    bundle: Bundle,
    profiles: Sequence[Profile],
    folder: Path | None,
    reason: str,
    *,
    file: str = MODEL,
    options: BuildOptions = BuildOptions(),
) -> DeviceEngine:
    """A new engine, in the place of the one that is kept. reason: why, for the log. Raises SessionError."""
    name = f"{file} of {bundle.manifest.name}"
    _log.info("building %s for %s, which may take minutes: %s", name, gpu.name, reason)
    with build_progress(name) as progress:
        content = build(
            trt, _readable(bundle, file), profiles, bundle.manifest.precision, options=options, progress=progress, where=name
        )
    if folder is None:
        return DeviceEngine(content, None, reason)
    key = engine_key(trt, gpu, bundle, profiles, file=file, options=options)
    path = engine_path(folder, file, key)
    try:
        write_engine(path, content, key)
    except OSError as error:
        _log.warning("%s: the engine cannot be kept (%s) and will be built again at the next start", folder, error.strerror)
        return DeviceEngine(content, None, reason)
    return DeviceEngine(content, path, reason)


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
            f"dla={options.dla}",
            f"recipe={_RECIPE}",
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
    where: str = "engine",
) -> bytes:
    """An engine of an ONNX file, serialized. May take minutes.

    model: path, where the weights may lie in another file, or the bytes. profiles: one or several; none where no size is free.
    precision: fp32, fp16 or int8, as the manifest says. where: names the bytes in errors.
    Raises SessionError naming the node that the parser refuses, the input that has no shape, integers that TensorRT would
    misread, or what the builder logged last; whatever `progress` raises ends the build and comes out.
    """
    where = where if isinstance(model, bytes) else str(model)
    _require_signed(onnx.load_model_from_string(model) if isinstance(model, bytes) else _graph_of(model), where)
    said = listener(trt)
    said.forget()
    try:
        builder = trt.Builder(said.logger)
    except TypeError as error:  # what the bindings raise where CUDA does not start
        raise SessionError(f"{where}: TensorRT {trt.__version__} does not start: {said.last}") from error
    kinds = trt.NetworkDefinitionCreationFlag
    strongly_typed = getattr(kinds, "STRONGLY_TYPED", None)
    # 8.6 alone needs EXPLICIT_BATCH; 11 has deprecated the other one too, being strongly typed always
    kind = getattr(kinds, "EXPLICIT_BATCH", None) if strongly_typed is None else strongly_typed
    network = builder.create_network(0 if kind is None else 1 << int(kind))
    parser = trt.OnnxParser(network, said.logger)
    parsed = parser.parse(model) if isinstance(model, bytes) else parser.parse_from_file(str(model))
    if not parsed:
        faults = "; ".join(_parser_error(parser.get_error(index)) for index in range(parser.num_errors))
        raise SessionError(f"{where}: TensorRT {trt.__version__} cannot read it: {faults or said.last}; export the bundle again")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    config.builder_optimization_level = options.optimization_level
    if not options.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    allowed = getattr(trt.BuilderFlag, _WEAKLY_TYPED.get(precision, ""), None)
    if strongly_typed is None and allowed is not None:
        config.set_flag(allowed)
    for name in _FLAGS:
        if (flag := getattr(trt.BuilderFlag, name, None)) is not None:
            config.set_flag(flag)
    for name in _PREVIEWS:
        if (feature := getattr(getattr(trt, "PreviewFeature", None), name, None)) is not None:
            config.set_preview_feature(feature, True)
    if options.dla is not None:
        _use_dla(trt, builder, config, network, options.dla, where)
    _add_profiles(builder, config, network, profiles, where)
    watched = _watch(trt, config, progress)
    serialized = builder.build_serialized_network(network, config)
    if watched is not None and watched.interrupted is not None:
        raise watched.interrupted
    if serialized is None:
        raise SessionError(
            f"{where}: TensorRT {trt.__version__} builds no engine: {said.last}; "
            "give it more workspace, or run the bundle on another backend"
        )
    return bytes(serialized)


def _readable(bundle: Bundle, file: str) -> bytes | Path:
    """What the parser is given: a file, or where it may run on any size, its content with height and width left free."""
    path = bundle.path / file
    if file != MODEL or not runs_on_any_size(bundle):
        return path
    model = onnx.load(path)
    free_height_and_width(model)
    return bytes(model.SerializeToString())


def _graph_of(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's errors and the system's have no root in common but this one
        raise SessionError(f"{path}: cannot be read: {' '.join(str(error).split())}; copy the bundle again") from error


def _require_signed(model: onnx.ModelProto, where: str) -> None:
    """TensorRT's parser takes UINT8 Q/DQ for INT8 with a warning, and the engine answers otherwise. Raises SessionError."""
    types = {constant.name: constant.data_type for constant in model.graph.initializer}
    types |= {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    constants = [node for node in model.graph.node if node.op_type == "Constant"]
    types |= {node.output[0]: value.t.data_type for node in constants for value in node.attribute if value.name == "value"}
    unsigned = [node.name or node.output[0] for node in model.graph.node if _is_unsigned(node, types)]
    if unsigned:
        raise SessionError(
            f"{where}: got UINT8 integers in {unsigned[0]} and {len(unsigned) - 1} more, which TensorRT takes for INT8; "
            "expected INT8 around 0: export the bundle again, or run it on another backend"
        )


def _is_unsigned(node: onnx.NodeProto, types: dict[str, int]) -> bool:
    """Source: ONNX operators QuantizeLinear-13, DequantizeLinear-13: uint8 unless the zero point says otherwise."""
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return False
    zero_point = node.input[2] if len(node.input) > 2 else ""
    if node.op_type == "QuantizeLinear":
        return not zero_point or types.get(zero_point) == TensorProto.UINT8
    return types.get(zero_point or node.input[0]) == TensorProto.UINT8


def _use_dla(trt: ModuleType, builder: Any, config: Any, network: Any, core: int, where: str) -> None:
    """Give a DLA the layers that it can compute. Raises SessionError where there is no such DLA, or it can compute none."""
    kind, fallback = getattr(getattr(trt, "DeviceType", None), "DLA", None), getattr(trt.BuilderFlag, "GPU_FALLBACK", None)
    cores = getattr(builder, "num_DLA_cores", 0)
    if kind is None or fallback is None or core >= cores:
        there = "none" if not cores or kind is None else f"{cores}"
        raise SessionError(f"session.dla: got {core}, and TensorRT {trt.__version__} finds {there} here; expected none")
    config.default_device_type, config.DLA_core = kind, core
    config.set_flag(fallback)
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    able = sum(bool(config.can_run_on_DLA(layer)) for layer in layers)
    if not able:
        raise SessionError(f"{where}: a DLA can compute none of its {len(layers)} layers; expected session.dla: none")
    _log.info("%s: DLA %d computes %d of %d layers, the GPU the others", where, core, able, len(layers))


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
                raise SessionError(f"{where}: got shapes {sizes} for {name}, expected {_dimensions(shape)}")
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
    return ", ".join(f"{name} {sizes}" for name, sizes in sorted(profile.items()))


def _dimensions(shape: tuple[int, ...]) -> str:
    return "x".join("any" if size == -1 else str(size) for size in shape)
