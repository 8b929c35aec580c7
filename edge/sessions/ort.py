"""ONNX Runtime on the CPU: one file for float and INT8 engines, tiles and streams."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from edge.errors import SessionError
from edge.manifest import Streaming
from edge.sessions import Batch, Scores, Steps
from edge.sessions.integer_scores import Answer, ScorePlanes, answering
from edge.sessions.ort_rewrite import rest_values, rewrite_for_cpu
from edge.sessions.ort_rows import states_with_channels_last

_PROVIDERS = ["CPUExecutionProvider"]
_SCORES = ("tensor(float)", "tensor(uint8)")
_DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(int8)": np.dtype(np.int8),
    "tensor(uint8)": np.dtype(np.uint8),
}


class OrtSession:
    """An engine for tiles of any batch size; implements `edge.sessions.Session`.

    engine: path of the ONNX file, or its bytes. threads: of one inference; 0: one per core. answer: what it is asked for; `steps`
    says whether it gives integers.
    Scores come in a buffer that the next call reuses.
    Raises SessionError where the file is broken or is not one uint8 image in, one tensor of scores out: float32, or uint8
    of a mask head.
    """

    backend = "ort"
    steps: Steps | None = None

    def __init__(self, engine: bytes | Path, threads: int = 0, *, answer: Answer = "scores") -> None:
        self._where, self._session, self._planes = _open(engine, threads, answer)
        self.steps = self._planes.steps
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or inputs[0].type != "tensor(uint8)" or len(inputs[0].shape) != 4:
            raise SessionError(f"{self._where}: got inputs {_described(inputs)}, expected one uint8 image (n, c, h, w)")
        if len(outputs) != 1 or outputs[0].type not in _SCORES:
            raise SessionError(f"{self._where}: got outputs {_described(outputs)}, expected one float32 or uint8 tensor")
        self._input, self._output = inputs[0], outputs[0]
        self._dtype = _DTYPES[outputs[0].type]
        self._scores: Scores | None = None
        self._shapes: dict[tuple[int, ...], tuple[int, ...]] = {}

    def __enter__(self) -> OrtSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        del self._session

    def infer(self, batch: Batch) -> Scores:
        """Scores (n, ...) float32 of a batch (n, c, h, w) uint8; valid until the next call. Raises SessionError."""
        _check_fits(batch, self._input, self._where)
        binding = self._session.io_binding()
        batch = np.ascontiguousarray(batch)
        binding.bind_input(self._input.name, "cpu", 0, np.uint8, batch.shape, batch.ctypes.data)
        scores = self._buffer(batch.shape)
        if scores is None:
            binding.bind_output(self._output.name, "cpu")
        else:
            binding.bind_output(self._output.name, "cpu", 0, self._dtype.type, scores.shape, scores.ctypes.data)
        _run(self._session, binding, self._where)
        if scores is None:
            scores = binding.copy_outputs_to_cpu()[0]
            self._scores, self._shapes[batch.shape[1:]] = scores, scores.shape[1:]
        return self._planes.of(scores)

    def prepare(self, shape: tuple[int, int, int, int]) -> None:
        """Nothing to compile: one session serves all shapes. Raises SessionError where such a batch does not fit."""
        _check_fits(np.broadcast_to(np.uint8(0), shape), self._input, self._where)

    def _buffer(self, shape: tuple[int, ...]) -> Scores | None:
        """Room for the answer to such a batch in the last buffer; None where it has to be made, or made larger."""
        row = self._shapes.get(shape[1:])
        if row is None or self._scores is None or self._scores.shape[1:] != row or len(self._scores) < shape[0]:
            return None
        return self._scores[: shape[0]]


class OrtStreamingSession:
    """A streaming engine at one width and chunk height; implements `edge.sessions.StreamingSession`.

    engine: path of `stream.onnx`, or its bytes; streaming: its part of the manifest; width: columns of the strip, a multiple
    of every state's stride and of the cell, as chunk_lines is. threads: of one step; 0: one per core.
    answer: as of `OrtSession`.
    The state lies in two sets of buffers: a step reads one and writes the other, nothing is copied between them. Scores come in
    a buffer that the next step reuses.
    Raises SessionError where the file is broken, is not the engine that `streaming` describes, or width or height do not fit.
    """

    backend = "ort"
    steps: Steps | None = None

    def __init__(
        self,
        engine: bytes | Path,
        streaming: Streaming,
        width: int,
        chunk_lines: int,
        threads: int = 0,
        *,
        answer: Answer = "scores",
    ) -> None:
        self.chunk_lines, self.lag_lines = chunk_lines, streaming.lag_lines
        self._where, self._session, self._planes = _open(engine, threads, answer, {state.output for state in streaming.states})
        self.steps = self._planes.steps
        stride = max((state.stride for state in streaming.states), default=1)
        stride = max(stride, streaming.cell)
        if width < stride or chunk_lines < stride or width % stride or chunk_lines % stride:
            raise SessionError(
                f"{self._where}: got chunks of {chunk_lines} lines and {width} columns, expected multiples of {stride}"
            )
        image, scores = self._image_and_scores(streaming)
        metadata = self._session.get_modelmeta().custom_metadata_map
        rests, last = rest_values(metadata), states_with_channels_last(metadata)
        types = {i.name: _DTYPES[i.type] for i in self._session.get_inputs()}
        shapes: dict[str, tuple[int, ...]] = {
            s.input: (1, s.rows, width // s.stride, s.channels) if s.input in last else (1, s.channels, s.rows, width // s.stride)
            for s in streaming.states
        }
        self._states = tuple({s.input: np.zeros(shapes[s.input], types[s.input]) for s in streaming.states} for _ in range(2))
        self._rests = {s.input: rests.get(s.input, 0) for s in streaming.states}
        self._chunk: Batch = np.zeros((1, 1, chunk_lines, width), np.uint8)
        self._scores = self._first_scores(streaming, image, scores)
        self._bindings = []
        for before, after in (self._states, self._states[::-1]):
            binding = self._session.io_binding()
            _bind_input(binding, image, self._chunk)
            _bind_output(binding, scores, self._scores)
            for state in streaming.states:
                _bind_input(binding, state.input, before[state.input])
                _bind_output(binding, state.output, after[state.input])
            self._bindings.append(binding)
        self._turn = 0
        self.reset()

    def __enter__(self) -> OrtStreamingSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        del self._bindings, self._session

    def step(self, chunk: Batch) -> Scores:
        """chunk (1, 1, chunk_lines, width) uint8 -> scores (1, channels, chunk_lines / cell, width / cell) float32.

        They are valid until the next step. Raises SessionError.
        """
        if chunk.dtype != np.uint8 or chunk.shape != self._chunk.shape:
            raise SessionError(f"{self._where}: got a chunk {chunk.dtype} {chunk.shape}, expected uint8 {self._chunk.shape}")
        np.copyto(self._chunk, chunk)
        _run(self._session, self._bindings[self._turn], self._where)
        self._turn = 1 - self._turn
        return self._planes.of(self._scores)

    def reset(self) -> None:
        """Forgets the lines fed so far: every state rests at 0.0."""
        self._turn = 0
        for name, state in self._states[0].items():
            state.fill(self._rests[name])

    def _image_and_scores(self, streaming: Streaming) -> tuple[str, str]:
        """Names of the one input and the one output that are no state."""
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        images = {i.name for i in inputs} - {s.input for s in streaming.states}
        scores = {o.name for o in outputs} - {s.output for s in streaming.states}
        complete = len(inputs) == len(outputs) == len(streaming.states) + 1
        if not complete or len(images) != 1 or len(scores) != 1 or any(i.type not in _DTYPES for i in inputs):
            raise SessionError(
                f"{self._where}: got inputs {_described(inputs)} and outputs {_described(outputs)}, expected an image, "
                f"scores and the {len(streaming.states)} states of the manifest; export the bundle again"
            )
        return images.pop(), scores.pop()

    def _first_scores(self, streaming: Streaming, image: str, scores: str) -> Scores:
        """The answer to one step from rest, whose array becomes the buffer: how many classes there are is the engine's to say."""
        binding = self._session.io_binding()
        _bind_input(binding, image, self._chunk)
        binding.bind_output(scores, "cpu")
        before, after = self._states
        for state in streaming.states:
            _bind_input(binding, state.input, before[state.input])
            _bind_output(binding, state.output, after[state.input])
        _run(self._session, binding, self._where)
        first: Scores = np.array(binding.copy_outputs_to_cpu()[0])
        size = tuple(side // streaming.cell for side in self._chunk.shape[2:])
        if first.ndim != 4 or first.dtype not in (np.float32, np.uint8) or self._planes.shape(first.shape)[2:] != size:
            raise SessionError(
                f"{self._where}: got scores {first.dtype} {first.shape} for a chunk {self._chunk.shape}, "
                f"expected float32 or uint8, {size[0]} x {size[1]} of them; export the bundle again"
            )
        return first


def _open(
    engine: bytes | Path, threads: int, answer: Answer, states: Collection[str] = ()
) -> tuple[str, ort.InferenceSession, ScorePlanes]:
    """What to call the engine in messages, a session of it, rewritten for the CPU, and what reads its answer."""
    where = "engine" if isinstance(engine, bytes) else str(engine)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    # Idle threads sleep: between chunks of a slow strip a spinning pool would burn the cores that the capture thread needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Patterns are kept for every shape ever seen; with free batch sizes and widths that is memory that only grows.
    options.enable_mem_pattern = False
    # session.x64quantprecision stays off: it turns all weights to uint8, on processors with VNNI too (2.4 times slower there), to
    # avoid products that saturate at 16 bits. The exporter's weights and the rewrite's activations are bounded so that none does.
    try:
        # by its path, a file may keep its weights in the one beside it
        model = rewrite_for_cpu(onnx.load_model_from_string(engine) if isinstance(engine, bytes) else onnx.load(engine))
        model, planes = answering(model, answer, states)
        return where, ort.InferenceSession(model.SerializeToString(), options, providers=_PROVIDERS), planes
    except OSError as error:
        raise SessionError(f"{where}: cannot be read: {error.strerror}; name a bundle that holds it") from error
    except Exception as error:  # protobuf's and ONNX Runtime's errors have no root in common but this one
        raise SessionError(f"{where}: ONNX Runtime cannot load it: {_first_line(error)}; export the bundle again") from error


def _run(session: ort.InferenceSession, binding: ort.IOBinding, where: str) -> None:
    try:
        session.run_with_iobinding(binding)
    except Exception as error:  # as in _open
        raise SessionError(f"{where}: ONNX Runtime failed: {_first_line(error)}") from error


def _bind_input(binding: ort.IOBinding, name: str, values: npt.NDArray[np.generic]) -> None:
    binding.bind_input(name, "cpu", 0, values.dtype.type, values.shape, values.ctypes.data)


def _bind_output(binding: ort.IOBinding, name: str, values: npt.NDArray[np.generic]) -> None:
    binding.bind_output(name, "cpu", 0, values.dtype.type, values.shape, values.ctypes.data)


def _check_fits(batch: Batch, wanted: ort.NodeArg, where: str) -> None:
    """Raises SessionError where a batch is not what the engine's input declares; names stand for free dimensions."""
    fixed = [size if isinstance(size, int) else None for size in wanted.shape]
    fits = batch.ndim == len(fixed) and all(
        got > 0 and want in (None, got) for got, want in zip(batch.shape, fixed, strict=False)
    )
    if batch.dtype != np.uint8 or not fits:
        expected = ", ".join(str(size) for size in wanted.shape)
        raise SessionError(f"{where}: got a batch {batch.dtype} {batch.shape}, expected uint8 ({expected})")


def _described(tensors: list[ort.NodeArg]) -> str:
    return ", ".join(f"{t.name} {t.type} {t.shape}" for t in tensors) or "none"


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
