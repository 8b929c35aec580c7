"""OpenVINO on the CPU: the files that ONNX Runtime runs, float and INT8, tiles and streams; the faster of the two on x86."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal

import numpy as np
import onnx

from edge.errors import SessionError
from edge.manifest import Streaming, StreamState
from edge.sessions import Batch, Scores, Steps
from edge.sessions.integer_scores import Answer, ScorePlanes, answering
from edge.sessions.ov_rewrite import rewrite_for_openvino
from edge.sessions.ov_rows import join_rows_in_place

try:
    import openvino
    from openvino.passes import MakeStateful, Manager

    from edge.sessions.ov_core import core
    from edge.sessions.ov_engines import Compiler, reason_of, sha256_of
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
"""Shapes of one session that stay compiled, besides those prepared: three pieces of the golden tile, of the slab, of two sizes
more."""

_DTYPES: Final[dict[str, np.dtype[Any]]] = {"f32": np.dtype(np.float32), "u8": np.dtype(np.uint8)}


@dataclass(frozen=True, slots=True)
class _Engine:
    """The model compiled for one shape of its input. row: shape of what it answers to one tile."""

    request: openvino.InferRequest
    row: tuple[int, ...]


class OvSession:
    """An engine for tiles of any batch size; implements `edge.sessions.Session`.

    engine: path of the ONNX file, or its bytes. threads: of one inference; 0: one per core. cache: folder where compiled
    engines are kept from one start to the next; None: compiled at every start. answer: what it is asked for; `steps` says
    whether it gives integers.
    Scores come in a buffer that the next call reuses. A shape's first inference takes longer: the engine is compiled for it,
    unless it was prepared.
    Raises SessionError where the file is broken or is not one uint8 image in, one tensor of scores out: float32, or uint8
    where the engine has a mask head.
    """

    backend = "openvino"
    steps: Steps | None = None

    def __init__(
        self,
        engine: bytes | Path,
        threads: int = 0,
        *,
        precision: FloatPrecision = "f32",
        cache: Path | None = None,
        answer: Answer = "scores",
    ) -> None:
        self._where, self._model, sha256, self._planes = _read(engine, answer)
        self.steps = self._planes.steps
        self._compiler = Compiler(self._where, sha256, _options(threads, precision), cache, Path(self._where).name)
        inputs, outputs = self._model.inputs, self._model.outputs
        if len(inputs) != 1 or _element(inputs[0]) != "u8" or len(_sizes(inputs[0])) != 4:
            raise SessionError(f"{self._where}: got inputs {_described(inputs)}, expected one uint8 image (n, c, h, w)")
        if len(outputs) != 1 or _element(outputs[0]) not in _DTYPES:
            raise SessionError(f"{self._where}: got outputs {_described(outputs)}, expected one float32 or uint8 tensor")
        self._declared = ", ".join(["n", *_sizes(inputs[0])[1:]])
        self._dtype = _DTYPES[_element(outputs[0])]
        self._cell = _declared_cell(self._model, self._planes)
        self._prepared: dict[tuple[int, ...], _Engine] = {}
        self._engines: OrderedDict[tuple[int, ...], _Engine] = OrderedDict()
        self._scores: Scores | None = None

    def __enter__(self) -> OvSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._prepared.clear()
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
        return self._planes.of(scores)

    def prepare(self, shape: tuple[int, int, int, int]) -> None:
        """Compiles the engines that batches of up to shape[0] such tiles need, and keeps them. Raises SessionError."""
        tile = np.broadcast_to(np.uint8(0), shape)
        if 0 in shape:
            raise self._misfit(tile)
        for count in {part.stop - part.start for size in range(1, shape[0] + 1) for part in _pieces((size, *shape[1:]))}:
            piece = (count, *shape[1:])
            self._prepared[piece] = self._engine(piece, tile)
            self._engines.pop(piece, None)

    def _buffer(self, tiles: int, row: tuple[int, ...]) -> Scores:
        """Room for the scores of so many tiles, in the last buffer where that is large enough."""
        if self._scores is None or self._scores.shape[1:] != row or len(self._scores) < tiles:
            self._scores = np.empty((tiles, *row), self._dtype)
        return self._scores[:tiles]

    def _engine(self, shape: tuple[int, ...], batch: Batch) -> _Engine:
        """The engine for one shape, compiled where it is not among those used last. batch: named where it does not fit."""
        if shape in self._prepared:
            return self._prepared[shape]
        engine = self._engines.pop(shape, None)
        if engine is None:
            try:
                self._model.reshape(list(shape))
            except RuntimeError as error:
                raise self._misfit(batch) from error
            compiled = self._compiler.compile(self._model)
            count, *row = self._planes.shape(tuple(compiled.output(0).shape))
            if len(row) == 3 and self._cell is None:
                self._cell = _cell_between(shape[2:], tuple(row[1:]))
            if count != shape[0] or (len(row) == 3 and tuple(size * (self._cell or 0) for size in row[1:]) != shape[2:]):
                raise self._misfit(batch)  # an operator holds on to the size that the engine was exported with
            engine = _Engine(compiled.create_infer_request(), tuple(compiled.output(0).shape)[1:])
        self._engines[shape] = engine
        if len(self._engines) > _ENGINES_KEPT:
            self._engines.popitem(last=False)
        return engine

    def _misfit(self, batch: Batch) -> SessionError:
        return SessionError(f"{self._where}: got a batch {batch.dtype} {batch.shape}, expected uint8 ({self._declared})")


class OvStreamingSession:
    """A streaming engine at one width and chunk height; implements `edge.sessions.StreamingSession`.

    engine: path of `stream.onnx`, or its bytes; streaming: its part of the manifest; width: columns of the strip, a multiple
    of every state's stride and of the cell, as chunk_lines is. threads, cache, answer: as of `OvSession`.
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
        answer: Answer = "scores",
    ) -> None:
        self.chunk_lines, self.lag_lines = chunk_lines, streaming.lag_lines
        stride = max((state.stride for state in streaming.states), default=1)
        stride = max(stride, streaming.cell)
        if width < stride or chunk_lines < stride or width % stride or chunk_lines % stride:
            raise SessionError(
                f"{_name(engine)}: got chunks of {chunk_lines} lines and {width} columns, expected multiples of {stride}"
            )
        self._where, model, sha256, self._planes = _read(engine, answer, streaming.states, chunk_lines)
        self.steps = self._planes.steps
        image = _image_beside_states(model, streaming, self._where)
        self._chunk: Batch = np.zeros((1, 1, chunk_lines, width), np.uint8)
        try:
            shapes = {state.input: _state_shape(model, state, width) for state in streaming.states}
            model.reshape({image: list(self._chunk.shape), **shapes})
            _keep_states(model, streaming)
        except RuntimeError as error:
            raise SessionError(
                f"{self._where}: its states are not those of the manifest: {reason_of(error)}; export the bundle again"
            ) from error
        compiler = Compiler(self._where, sha256, _options(threads, precision), cache, Path(self._where).name)
        compiled = compiler.compile(model)
        shape = tuple(compiled.output(0).shape)
        dtype = _DTYPES.get(_element(compiled.output(0)))
        size = tuple(side // streaming.cell for side in self._chunk.shape[2:])
        if dtype is None or len(shape) != 4 or self._planes.shape(shape)[2:] != size:
            raise SessionError(
                f"{self._where}: got scores {_described(compiled.outputs)} for a chunk {self._chunk.shape}, "
                f"expected float32 or uint8, {size[0]} x {size[1]} of them; export the bundle again"
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
        """chunk (1, 1, chunk_lines, width) uint8 -> scores (1, channels, chunk_lines / cell, width / cell).

        They are valid until the next step. Raises SessionError.
        """
        if chunk.dtype != np.uint8 or chunk.shape != self._chunk.shape:
            raise SessionError(f"{self._where}: got a chunk {chunk.dtype} {chunk.shape}, expected uint8 {self._chunk.shape}")
        np.copyto(self._chunk, chunk)
        _run(self._request, self._where)
        return self._planes.of(self._scores)

    def reset(self) -> None:
        """Forgets the lines fed so far: every state rests at 0, which stands for 0.0 in all of them."""
        self._request.reset_state()


def version() -> str:
    """OpenVINO's, as `2026.4.1`."""
    return str(openvino.__version__).split("-")[0]


def device() -> str:
    """The processor and what it computes in fast, as OpenVINO has it."""
    able = sorted(core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    return f"{core().get_property('CPU', 'FULL_DEVICE_NAME')} ({', '.join(able)})"


def require_precision(precision: FloatPrecision) -> None:
    """Raises SessionError where this processor would compute in another one."""
    if precision == "bf16" and "BF16" not in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise SessionError(f"session.precision: got bf16, which this processor does not compute in: {device()}; expected f32")


def _read(
    engine: bytes | Path, answer: Answer, states: Sequence[StreamState] = (), chunk_lines: int = 0
) -> tuple[str, openvino.Model, str, ScorePlanes]:
    """What to call the engine in messages, its model, rewritten for OpenVINO, the sha256 of that, and what reads its answer."""
    where = _name(engine)
    try:
        # by its path, a file may keep its weights in the one beside it
        model = rewrite_for_openvino(onnx.load_model_from_string(engine) if isinstance(engine, bytes) else onnx.load(engine))
        model, planes = answering(model, answer, {state.output for state in states})
        content = join_rows_in_place(model, states, chunk_lines).SerializeToString()
        return where, core().read_model(content), sha256_of(content), planes
    except OSError as error:
        raise SessionError(f"{where}: cannot be read: {error.strerror}; name a bundle that holds it") from error
    except Exception as error:  # protobuf's and OpenVINO's errors have no root in common but this one
        raise SessionError(f"{where}: OpenVINO cannot load it: {reason_of(error)}; export the bundle again") from error


def _name(engine: bytes | Path) -> str:
    return "engine" if isinstance(engine, bytes) else str(engine)


def _options(threads: int, precision: FloatPrecision) -> dict[str, Any]:
    options: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        # pinned, the threads of two sessions share the first core and leave the second one idle
        "ENABLE_CPU_PINNING": False,
    }
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    return options


def _run(request: openvino.InferRequest, where: str) -> None:
    try:
        request.infer(share_inputs=True, share_outputs=True)
    except RuntimeError as error:
        raise SessionError(f"{where}: OpenVINO failed: {reason_of(error)}") from error


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


def _state_shape(model: openvino.Model, state: StreamState, width: int) -> list[int]:
    """Sizes of a state in channel planes, or as flat rows where those are joined in place."""
    columns = width // state.stride
    if len(model.input(state.input).get_partial_shape()) == 3:
        return [1, state.rows, columns * state.channels]
    return [1, state.channels, state.rows, columns]


def _keep_states(model: openvino.Model, streaming: Streaming) -> None:
    """Turns the inputs and outputs that are states into variables inside the model."""
    manager = Manager()
    pairs = [(model.input(state.input).get_node(), model.output(state.output).get_node()) for state in streaming.states]
    manager.register_pass(MakeStateful(pairs))
    manager.run_passes(model)


def _declared_cell(model: openvino.Model, planes: ScorePlanes) -> int | None:
    """Pixels a side per score, as the file has it; None where sizes are open, or scores are of whole tiles."""
    image, answer = model.input(0).get_partial_shape(), model.output(0).get_partial_shape()
    sizes = [*list(image)[2:], *list(answer)[1:]] if answer.rank.is_static else []
    if len(sizes) != 5 or any(size.is_dynamic for size in sizes):
        return None
    height, width, *scores = (size.get_length() for size in sizes)
    return _cell_between((height, width), planes.shape((1, *scores))[2:])


def _cell_between(image: tuple[int, ...], scores: tuple[int, ...]) -> int | None:
    """Pixels a side per score; None where that is not one whole number."""
    cells = {divmod(side, count) for side, count in zip(image, scores, strict=True)}
    cell, rest = cells.pop()
    return cell if not cells and not rest else None


def _element(port: Any) -> str:
    return str(port.get_element_type().get_type_name())


def _sizes(port: Any) -> list[str]:
    """Dimensions of an input or output; `?` stands for a free one."""
    return [str(size) for size in port.get_partial_shape()]


def _described(ports: list[Any]) -> str:
    return ", ".join(f"{port.any_name} {_element(port)} ({', '.join(_sizes(port))})" for port in ports) or "none"
