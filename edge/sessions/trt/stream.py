"""Line-streaming on a GPU: the state never leaves it, only new lines go up and scores come down."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager, ExitStack
from math import prod
from pathlib import Path
from types import ModuleType, TracebackType

import numpy as np

from edge.bundle import STREAM, Bundle
from edge.cuda.device import CudaDevice, DeviceMemory
from edge.errors import SessionError
from edge.manifest import Streaming
from edge.sessions import Batch, Scores, Steps
from edge.sessions.trt.build import BuildOptions
from edge.sessions.trt.engine import Scratch, Tensor, TrtContext, TrtEngine, free_quietly, load_engine
from edge.sessions.trt.shapes import IMAGE, Shape, stream_profile
from edge.sessions.trt.staging import Staging, open_staging


class StreamLane:
    """A streaming engine with memory of its own for chunk and scores; implements `edge.sessions.on_device.Lane`.

    The state lies in two sets of buffers: a step reads one and writes the other. Two contexts take turns, each with the graph of
    its direction, so that no address ever changes.
    """

    def __init__(self, device: CudaDevice, engine: TrtEngine, streaming: Streaming, shape: Shape, scores: Tensor) -> None:
        self.shape, self.dtype, self.stream = shape, scores.dtype, device.stream()
        self._device, self._turn = device, 0
        self._scratch = Scratch(device, self.stream)
        self._held: list[DeviceMemory] = []
        self._contexts: list[TrtContext] = []
        self._scores_name = scores.name
        with ExitStack() as making:
            making.callback(self.free)
            sizes = {name: size.largest for name, size in engine.profile.items()}
            for _ in range(2):
                self._contexts.append(TrtContext(device, engine, sizes, self.stream, self._scratch))
            self.scores_shape = self._contexts[0].shapes[scores.name]
            self.input = self._allocate(prod(shape))
            self.scores = self._allocate(prod(self.scores_shape) * self.dtype.itemsize)
            # where a file's states are given as such and such a type, TensorRT must not have made another of it
            types = {tensor.name: tensor.dtype for tensor in engine.tensors}
            self._states = tuple(
                {s.input: self._allocate(prod(sizes[s.input]) * types[s.input].itemsize) for s in streaming.states}
                for _ in range(2)
            )
            self._state_addresses = [
                {s.input: before[s.input].address for s in streaming.states}
                | {s.output: after[s.input].address for s in streaming.states}
                for before, after in (self._states, self._states[::-1])
            ]
            self.get_ready(self.input.address, self.scores.address)
            making.pop_all()

    def run(self) -> None:
        """Put the next step on the stream. Raises SessionError."""
        self.step(self.input.address, self.scores.address)

    def step(self, chunk: int, scores: int) -> None:
        """The same, with chunk and scores at other addresses."""
        self._contexts[self._turn].run(self._addresses(self._turn, chunk, scores))
        self._turn = 1 - self._turn

    def get_ready(self, chunk: int, scores: int) -> None:
        """Record a step in either direction at such addresses; the state rests then."""
        for turn, context in enumerate(self._contexts):
            context.get_ready(self._addresses(turn, chunk, scores))
        self.reset()

    def reset(self) -> None:
        """Put the state to rest: floats at 0.0, and integers, which lie around 0, at 0."""
        self._turn = 0
        # the other set is written before it is read
        for memory in self._states[0].values():
            self._device.fill(memory, 0, memory.nbytes, 0, self.stream)

    def free(self) -> None:
        """Give all of it back."""
        free_quietly(*self._contexts, *self._held, self._scratch)

    def _addresses(self, turn: int, chunk: int, scores: int) -> dict[str, int]:
        return {IMAGE: chunk, self._scores_name: scores, **self._state_addresses[turn]}

    def _allocate(self, nbytes: int) -> DeviceMemory:
        memory = self._device.allocate(nbytes)
        self._held.append(memory)
        return memory


class TrtStreamingSession:
    """A streaming engine at one width and chunk height; implements `StreamingSession` and `on_device.DeviceStream`.

    trt, device, folder, options: as of `TrtSession`. width: columns of the strip, a multiple of every state's stride and of the
    cell, as chunk_lines is. Scores come in a buffer that the next step reuses.
    Raises SessionError where the engine cannot be built or loaded, is not the one that the manifest describes, or width or height
    do not fit.
    """

    backend = "tensorrt"
    steps: Steps | None = None

    def __init__(
        self,
        trt: ModuleType,
        device: AbstractContextManager[CudaDevice],
        bundle: Bundle,
        folder: Path | None,
        width: int,
        chunk_lines: int,
        options: BuildOptions,
    ) -> None:
        path, streaming = bundle.streaming()
        self.chunk_lines, self.lag_lines = chunk_lines, streaming.lag_lines
        stride = max(streaming.cell, *(state.stride for state in streaming.states), 1)
        if width < stride or chunk_lines < stride or width % stride or chunk_lines % stride:
            raise SessionError(f"{path}: got chunks of {chunk_lines} lines and {width} columns, expected multiples of {stride}")
        self._shape: Shape = (1, 1, chunk_lines, width)
        self._staging: Staging | None = None
        self._engine: TrtEngine | None = None
        self._declared: Scores | None = None
        with ExitStack() as opening:
            self.device = opening.enter_context(device)
            opening.callback(self._close)
            with self.device.active():
                profile = stream_profile(bundle.manifest, width, chunk_lines)
                self._engine = load_engine(trt, self.device, bundle, profile, folder, options, file=STREAM)
                scores = _scores_beside_states(self._engine, streaming)
                self.lane = StreamLane(self.device, self._engine, streaming, self._shape, scores)
                size = tuple(side // streaming.cell for side in self._shape[2:])
                if len(self.lane.scores_shape) != 4 or self.lane.scores_shape[2:] != size:
                    raise SessionError(
                        f"{path}: got scores {self.lane.scores_shape} for a chunk {self._shape}, "
                        f"expected {size[0]} x {size[1]} of them; export the bundle again"
                    )
                self._staging = open_staging(self.device, self.lane.stream, self.lane.input.nbytes, self.lane.scores.nbytes)
                self.lane.get_ready(self._staging.input_address, self._staging.scores_address)
            if self.lane.dtype == np.float16:
                self._declared = np.zeros(self.lane.scores_shape, np.float32)
            self._opened = opening.pop_all()

    def __enter__(self) -> TrtStreamingSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._opened.close()

    def step(self, chunk: Batch) -> Scores:
        """chunk (1, 1, chunk_lines, width) uint8 -> scores (1, channels, chunk_lines / cell, width / cell).

        They are valid until the next step. Raises SessionError.
        """
        if chunk.dtype != np.uint8 or chunk.shape != self._shape:
            raise SessionError(f"{self._where()}: got a chunk {chunk.dtype} {chunk.shape}, expected uint8 {self._shape}")
        staging, lane = self._staging, self.lane
        assert staging is not None  # an open session has one
        with self.device.active():
            np.copyto(staging.images.reshape(self._shape), chunk)
            staging.send(staging.images.nbytes)
            lane.step(staging.input_address, staging.scores_address)
            staging.fetch(staging.scores.nbytes)
            lane.stream.synchronize()
        scores: Scores = staging.scores.view(lane.dtype).reshape(lane.scores_shape)
        if self._declared is None:
            return scores
        self._declared[:] = scores
        return self._declared

    def reset(self) -> None:
        """Forgets the lines fed so far. Raises SessionError."""
        with self.device.active():
            self.lane.reset()

    def _where(self) -> str:
        return self._engine.where if self._engine else "engine"

    def _close(self) -> None:
        with contextlib.suppress(SessionError), self.device.active():
            if (lane := getattr(self, "lane", None)) is not None:
                with contextlib.suppress(SessionError):
                    lane.stream.synchronize()
                free_quietly(lane)
            free_quietly(*(part for part in (self._staging, self._engine) if part is not None))


def _scores_beside_states(engine: TrtEngine, streaming: Streaming) -> Tensor:
    """The one output that is no state. Raises SessionError where inputs and outputs are not those of the manifest."""
    inputs = {tensor.name: tensor for tensor in engine.tensors if tensor.is_input}
    outputs = {tensor.name: tensor for tensor in engine.tensors if not tensor.is_input}
    pairs = [(inputs.pop(s.input, None), outputs.pop(s.output, None)) for s in streaming.states]
    paired = all(before and after and before.dtype == after.dtype for before, after in pairs)
    image = inputs.get(IMAGE)
    if not paired or len(inputs) != 1 or len(outputs) != 1 or image is None or image.dtype != np.uint8:
        got = ", ".join(f"{tensor.name} {tensor.dtype}" for tensor in engine.tensors)
        raise SessionError(
            f"{engine.where}: got {got}; expected a uint8 {IMAGE}, scores, and the {len(streaming.states)} states of the "
            "manifest; export the bundle again"
        )
    return outputs.popitem()[1]
