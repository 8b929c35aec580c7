"""OpenVINO on the CPU: the files that ONNX Runtime runs, float and INT8, tiles and streams; the faster of the two on x86."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal

import numpy as np
import onnx

from edge.errors import SessionError
from edge.manifest import Streaming
from edge.sessions import Batch, Scores, Steps
from edge.sessions.ov_rewrite import rewrite_for_openvino

try:
    import openvino
    from openvino.passes import MakeStateful, Manager
except ImportError as error:
    raise SessionError(
        f"OpenVINO cannot be loaded ({error}); install rust-edge[openvino], or choose another session.backend"
    ) from error

_OLDEST: Final = (2026, 4)
"""Versions from 2025.0 to 2026.3 gave other scores for INT8 streams than for one inference over the strip."""
if tuple(int(number) for number in openvino.__version__.split("-")[0].split(".")[:2]) < _OLDEST:
    raise SessionError(
        f"OpenVINO {openvino.__version__.split('-')[0]} is installed, expected {_OLDEST[0]}.{_OLDEST[1]} or newer: "
        "older ones misread INT8 streams; install rust-edge[openvino]"
    )

FloatPrecision = Literal["f32", "bf16", "f16"]
"""What float operators compute in; those on integers stay as they are. A bundle's scores were verified in f32."""

_PIECES: Final = (16, 4, 1)
_PIECE_PIXELS: Final = 1 << 16
"""A batch goes through in pieces of so many tiles, more than one only while they have at most so many pixels together. An engine
compiled for one shape is 7 % faster than one for any, so only few shapes may occur; and larger pieces gain nothing: one thread
took 0.122, 0.097, 0.089, 0.088 ms a tile of 64x64 in pieces of 1, 4, 16, 64, and 17.0, 17.3 ms one of 448x448 in 1, 4."""

_ENGINES_KEPT: Final = 12
"""Shapes of one session that stay compiled: three pieces of the crop, of the golden tile, of the slab, and of one size more."""

_REASON_LENGTH: Final = 400

_DTYPES: Final[dict[str, np.dtype[Any]]] = {"f32": np.dtype(np.float32), "u8": np.dtype(np.uint8)}


@dataclass(frozen=True, slots=True)
class _Engine:
    """The model compiled for one shape of its input. row: shape of one tile's scores."""

    request: openvino.InferRequest
    row: tuple[int, ...]


class OvSession:
    """An engine for tiles of any batch size; implements `edge.sessions.Session`.

    engine: path of the ONNX file, or its bytes. threads: of one inference; 0: one per core. cache: folder where compiled
    engines are kept from one start to the next; None: compiled at every start.
    Scores come in a buffer that the next call reuses. A shape's first inference takes longer: the engine is compiled for it.
    Raises SessionError where the file is broken or is not one uint8 image in, one tensor of scores out: float32, or uint8
    where the engine has a mask head.
    """

    backend = "openvino"
    steps: Steps | None = None

    def __init__(
        self, engine: bytes | Path, threads: int = 0, *, precision: FloatPrecision = "f32", cache: Path | None = None
    ) -> None:
        self._where, self._model = _read(engine)
        self._options = _options(threads, precision, cache)
        inputs, outputs = self._model.inputs, self._model.outputs
        if len(inputs) != 1 or _element(inputs[0]) != "u8" or len(_sizes(inputs[0])) != 4:
            raise SessionError(f"{self._where}: got inputs {_described(inputs)}, expected one uint8 image (n, c, h, w)")
        if len(outputs) != 1 or _element(outputs[0]) not in _DTYPES:
            raise SessionError(f"{self._where}: got outputs {_described(outputs)}, expected one float32 or uint8 tensor")
        self._declared = ", ".join(["n", *_sizes(inputs[0])[1:]])
        self._dtype = _DTYPES[_element(outputs[0])]
        self._engines: OrderedDict[tuple[int, ...], _Engine] = OrderedDict()
        self._scores: Scores | None = None

    def __enter__(self) -> OvSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._engines.clear()
        del self._model

    def infer(self, batch: Batch) -> Scores:
        """Scores (n, ...) of a batch (n, c, h, w) uint8; valid until the next call. Raises SessionError."""
        if batch.dtype != np.uint8 or batch.ndim != 4 or 0 in batch.shape:
            raise self._misfit(batch)
        tiles = np.require(batch, requirements=["C", "W"])  # OpenVINO reads such an array where it lies
        parts = _pieces(tiles.shape)
        engines = [self._engine((part.stop - part.start, *tiles.shape[1:]), batch) for part in parts]
        scores = self._buffer(len(tiles), engines[0].row)
        for part, engine in zip(parts, engines, strict=True):
            engine.request.set_input_tensor(openvino.Tensor(tiles[part], shared_memory=True))
            engine.request.set_output_tensor(openvino.Tensor(scores[part], shared_memory=True))
            _run(engine.request, self._where)
        return scores

    def _buffer(self, tiles: int, row: tuple[int, ...]) -> Scores:
        """Room for the scores of so many tiles, in the last buffer where that is large enough."""
        if self._scores is None or self._scores.shape[1:] != row or len(self._scores) < tiles:
            self._scores = np.empty((tiles, *row), self._dtype)
        return self._scores[:tiles]

    def _engine(self, shape: tuple[int, ...], batch: Batch) -> _Engine:
        """The engine for one shape, compiled where it is not among those used last. batch: named where it does not fit."""
        engine = self._engines.pop(shape, None)
        if engine is None:
            try:
                self._model.reshape(list(shape))
            except RuntimeError as error:
                raise self._misfit(batch) from error
            compiled = _compile(self._model, self._options, self._where)
            count, *row = compiled.output(0).shape
            if count != shape[0] or (len(row) == 3 and tuple(row[1:]) != shape[2:]):
                raise self._misfit(batch)  # an operator holds on to the size that the engine was exported with
            engine = _Engine(compiled.create_infer_request(), tuple(row))
        self._engines[shape] = engine
        if len(self._engines) > _ENGINES_KEPT:
            self._engines.popitem(last=False)
        return engine

    def _misfit(self, batch: Batch) -> SessionError:
        return SessionError(f"{self._where}: got a batch {batch.dtype} {batch.shape}, expected uint8 ({self._declared})")


class OvStreamingSession:
    """A streaming engine at one width and chunk height; implements `edge.sessions.StreamingSession`.

    engine: path of `stream.onnx`, or its bytes; streaming: its part of the manifest; width: columns of the strip, a multiple
    of every state's stride, as chunk_lines is. threads, cache: as of `OvSession`.
    The state stays inside OpenVINO, in the layout of its kernels: handed in and out by two sets of buffers, a step took 1.2 to
    2.1 times as long. Scores come in a buffer that the next step reuses.
    Raises SessionError where the file is broken, is not the engine that `streaming` describes, or width or height do not fit.
    """

    backend = "openvino"
    steps: Steps | None = None

    def __init__(
        self,
        engine: bytes | Path,
        streaming: Streaming,
        width: int,
        chunk_lines: int,
        threads: int = 0,
        *,
        precision: FloatPrecision = "f32",
        cache: Path | None = None,
    ) -> None:
        self.chunk_lines, self.lag_lines = chunk_lines, streaming.lag_lines
        self._where, model = _read(engine)
        stride = max((state.stride for state in streaming.states), default=1)
        if width < stride or chunk_lines < stride or width % stride or chunk_lines % stride:
            raise SessionError(
                f"{self._where}: got chunks of {chunk_lines} lines and {width} columns, expected multiples of {stride}"
            )
        image = _image_beside_states(model, streaming, self._where)
        self._chunk: Batch = np.zeros((1, 1, chunk_lines, width), np.uint8)
        try:
            shapes = {state.input: [1, state.channels, state.rows, width // state.stride] for state in streaming.states}
            model.reshape({image: list(self._chunk.shape), **shapes})
            _keep_states(model, streaming)
        except RuntimeError as error:
            raise SessionError(
                f"{self._where}: its states are not those of the manifest: {_reason(error)}; export the bundle again"
            ) from error
        compiled = _compile(model, _options(threads, precision, cache), self._where)
        shape = tuple(compiled.output(0).shape)
        dtype = _DTYPES.get(_element(compiled.output(0)))
        if dtype is None or len(shape) != 4 or shape[2:] != self._chunk.shape[2:]:
            raise SessionError(
                f"{self._where}: got scores {_described(compiled.outputs)} for a chunk {self._chunk.shape}, "
                "expected float32 or uint8 at the chunk's size; export the bundle again"
            )
        self._scores: Scores = np.zeros(shape, dtype)
        self._request = compiled.create_infer_request()
        self._request.set_input_tensor(openvino.Tensor(self._chunk, shared_memory=True))
        self._request.set_output_tensor(openvino.Tensor(self._scores, shared_memory=True))

    def __enter__(self) -> OvStreamingSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        del self._request

    def step(self, chunk: Batch) -> Scores:
        """chunk (1, 1, chunk_lines, width) uint8 -> scores (1, channels, chunk_lines, width), valid until the next step.

        Raises SessionError.
        """
        if chunk.dtype != np.uint8 or chunk.shape != self._chunk.shape:
            raise SessionError(f"{self._where}: got a chunk {chunk.dtype} {chunk.shape}, expected uint8 {self._chunk.shape}")
        np.copyto(self._chunk, chunk)
        _run(self._request, self._where)
        return self._scores

    def reset(self) -> None:
        """Forgets the lines fed so far: every state rests at 0, which stands for 0.0 in all of them."""
        self._request.reset_state()


def _read(engine: bytes | Path) -> tuple[str, openvino.Model]:
    """What to call the engine in messages, and its model, rewritten for OpenVINO."""
    where = "engine" if isinstance(engine, bytes) else str(engine)
    try:
        # by its path, a file may keep its weights in the one beside it
        model = rewrite_for_openvino(onnx.load_model_from_string(engine) if isinstance(engine, bytes) else onnx.load(engine))
        return where, openvino.Core().read_model(model.SerializeToString())
    except OSError as error:
        raise SessionError(f"{where}: cannot be read: {error.strerror}; name a bundle that holds it") from error
    except Exception as error:  # protobuf's and OpenVINO's errors have no root in common but this one
        raise SessionError(f"{where}: OpenVINO cannot load it: {_reason(error)}; export the bundle again") from error


def _options(threads: int, precision: FloatPrecision, cache: Path | None) -> dict[str, Any]:
    options: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        # pinned, the threads of two sessions share the first core and leave the second one idle
        "ENABLE_CPU_PINNING": False,
    }
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    if cache is not None:
        options["CACHE_DIR"] = str(cache)
    return options


def _compile(model: openvino.Model, options: dict[str, Any], where: str) -> openvino.CompiledModel:
    try:
        return openvino.Core().compile_model(model, "CPU", options)
    except RuntimeError as error:
        raise SessionError(f"{where}: OpenVINO cannot compile it: {_reason(error)}; export the bundle again") from error


def _run(request: openvino.InferRequest, where: str) -> None:
    try:
        request.infer(share_inputs=True, share_outputs=True)
    except RuntimeError as error:
        raise SessionError(f"{where}: OpenVINO failed: {_reason(error)}") from error


def _pieces(shape: tuple[int, ...]) -> list[slice]:
    """How a batch (n, c, h, w) goes through: pieces of a few sizes that follow each other.

    >>> _pieces((6, 1, 64, 64))
    [slice(0, 4, None), slice(4, 5, None), slice(5, 6, None)]
    """
    parts: list[slice] = []
    first = 0
    while first < shape[0]:
        count = next(n for n in _PIECES if n == 1 or (n <= shape[0] - first and n * shape[2] * shape[3] <= _PIECE_PIXELS))
        parts.append(slice(first, first + count))
        first += count
    return parts


def _image_beside_states(model: openvino.Model, streaming: Streaming, where: str) -> str:
    """Name of the one input that is no state."""
    inputs: set[str] = {name for port in model.inputs for name in port.get_names()}
    outputs: set[str] = {name for port in model.outputs for name in port.get_names()}
    images = inputs - {state.input for state in streaming.states}
    scores = outputs - {state.output for state in streaming.states}
    complete = len(model.inputs) == len(model.outputs) == len(streaming.states) + 1
    if not complete or len(images) != 1 or len(scores) != 1:
        raise SessionError(
            f"{where}: got inputs {_described(model.inputs)} and outputs {_described(model.outputs)}, expected an image, "
            f"scores and the {len(streaming.states)} states of the manifest; export the bundle again"
        )
    return images.pop()


def _keep_states(model: openvino.Model, streaming: Streaming) -> None:
    """Turns the inputs and outputs that are states into variables inside the model."""
    manager = Manager()
    pairs = [(model.input(state.input).get_node(), model.output(state.output).get_node()) for state in streaming.states]
    manager.register_pass(MakeStateful(pairs))
    manager.run_passes(model)


def _element(port: Any) -> str:
    return str(port.get_element_type().get_type_name())


def _sizes(port: Any) -> list[str]:
    """Dimensions of an input or output; `?` stands for a free one."""
    return [str(size) for size in port.get_partial_shape()]


def _described(ports: list[Any]) -> str:
    return ", ".join(f"{port.any_name} {_element(port)} ({', '.join(_sizes(port))})" for port in ports) or "none"


def _reason(error: Exception) -> str:
    """What an error says, without the places in OpenVINO's own sources and the advice for its developers."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = " ".join(line for line in lines if line and not line.startswith(("Exception from", "Check '", "To facilitate")))
    return told[:_REASON_LENGTH] or type(error).__name__
