"""The two streams of a TensorRT session, and what works on them: contexts, their scratch memory, staging, and lanes."""

from __future__ import annotations

import contextlib
from math import prod

import numpy as np

from edge.cuda.device import CudaDevice, DeviceMemory, Stream
from edge.errors import SessionError
from edge.sessions import Batch, Scores
from edge.sessions.trt.engine import Scratch, Tensor, TrtContext, TrtEngine, free_quietly
from edge.sessions.trt.shapes import IMAGE, Shape
from edge.sessions.trt.staging import Staging, open_staging


class LaneMemory:
    """What the lanes of one stream read and write by turns: as large as the largest of them wants. Inside `device.active()`."""

    def __init__(self, device: CudaDevice, stream: Stream) -> None:
        self._device, self._stream = device, stream
        self._held: list[DeviceMemory] = []

    @property
    def images(self) -> DeviceMemory:
        """Pixels."""
        return self._held[0]

    @property
    def scores(self) -> DeviceMemory:
        """Answers."""
        return self._held[1]

    def reserve(self, *nbytes: int) -> None:
        """Hold so many bytes of images and scores at least; addresses may change. Raises SessionError."""
        if all(held.nbytes >= wanted for held, wanted in zip(self._held, nbytes, strict=False)) and self._held:
            return
        before, larger = self._held, list[DeviceMemory]()
        try:
            for index, wanted in enumerate(nbytes):
                larger.append(self._device.allocate(max(wanted, before[index].nbytes if before else 0)))
            self._stream.synchronize()
        except SessionError:
            free_quietly(*larger)
            raise
        self._held = larger
        free_quietly(*before)

    def free(self) -> None:
        """Give it back."""
        for held in self._held:
            held.free()


class TrtLane:
    """An engine at one shape; implements `edge.sessions.on_device.Lane`.

    Lanes of other shapes on the same stream share its memory, and are computed one after the other.
    """

    def __init__(self, memory: LaneMemory, context: TrtContext, stream: Stream, shape: Shape, scores: Tensor) -> None:
        self.shape, self.scores_shape, self.dtype = shape, context.shapes[scores.name], scores.dtype
        self.stream, self._context, self._memory, self._answer = stream, context, memory, scores.name
        memory.reserve(prod(shape), prod(self.scores_shape) * self.dtype.itemsize)

    @property
    def input(self) -> DeviceMemory:
        """Where the pixels go."""
        return self._memory.images

    @property
    def scores(self) -> DeviceMemory:
        """Where the scores are."""
        return self._memory.scores

    def get_ready(self) -> None:
        """Record what `run` puts on the stream, where that is not recorded already. Raises SessionError."""
        self._context.get_ready(self._addresses())

    def run(self) -> None:
        """Put the inference of all n on the stream. Raises SessionError."""
        self._context.run(self._addresses())

    def _addresses(self) -> dict[str, int]:
        return {IMAGE: self.input.address, self._answer: self.scores.address}


class Side:
    """One stream: what it computes, it computes in order. Inside `device.active()`; methods raise SessionError."""

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self.stream = device.stream()
        self._scratch = Scratch(device, self.stream)
        self._staging: Staging | None = None
        self._contexts: dict[tuple[TrtEngine, Shape], TrtContext] = {}
        self._staged: dict[tuple[TrtEngine, Shape], None] = {}
        self._lanes: dict[tuple[TrtEngine, Shape], TrtLane] = {}
        self._of_lanes = LaneMemory(device, self.stream)

    def lane(self, engine: TrtEngine, shape: Shape) -> TrtLane:
        """The lane of a shape, made by the first call."""
        if (engine, shape) not in self._lanes:
            context = self._context(engine, shape)
            self._lanes[engine, shape] = TrtLane(self._of_lanes, context, self.stream, shape, scores_of(engine))
            self.get_ready()
        return self._lanes[engine, shape]

    def reserve(self, engine: TrtEngine, shape: Shape) -> None:
        """A context of a shape, and staging that holds it; what was ready before is ready again."""
        if (engine, shape) in self._staged:
            return
        context, scores = self._context(engine, shape), scores_of(engine)
        self._enlarge(prod(shape), prod(context.shapes[scores.name]) * scores.dtype.itemsize)
        self._staged[engine, shape] = None
        self.get_ready()

    def start(self, engine: TrtEngine, shape: Shape, tiles: Batch) -> None:
        """Put tiles, filled up to a reserved shape, on their way: copy in, inference, copy out."""
        staging = self._open_staging()
        np.copyto(staging.images[: tiles.size].reshape(tiles.shape), tiles)
        staging.send(tiles.size)
        self._contexts[engine, shape].run(self._addresses(engine))
        staging.fetch(self._answer(engine, shape, len(tiles)).nbytes)

    def finish(self, engine: TrtEngine, shape: Shape, tiles: int) -> Scores:
        """Wait for the scores of so many tiles; valid until the next start."""
        self.stream.synchronize()
        return self._answer(engine, shape, tiles)

    def forget(self, engine: TrtEngine) -> None:
        """Give back what was made for an engine that is not used after all."""
        self.drain()
        for of in [key for key in self._contexts if key[0] is engine]:
            self._staged.pop(of, None)
            free_quietly(self._contexts.pop(of))

    def drain(self) -> None:
        """Leave nothing on the way, after an error."""
        with contextlib.suppress(SessionError):
            self.stream.synchronize()

    def get_ready(self) -> None:
        """Record all contexts anew whose scratch memory or staging has moved."""
        for engine, shape in self._staged:
            self._contexts[engine, shape].get_ready(self._addresses(engine))
        for lane in self._lanes.values():
            lane.get_ready()

    def close(self) -> None:
        """Give all of it back."""
        self.drain()
        free_quietly(*self._contexts.values(), self._of_lanes, self._scratch)
        if self._staging is not None:
            free_quietly(self._staging)

    def _context(self, engine: TrtEngine, shape: Shape) -> TrtContext:
        if (engine, shape) not in self._contexts:
            made = TrtContext(self._device, engine, {IMAGE: shape}, self.stream, self._scratch)
            self._contexts[engine, shape] = made
        return self._contexts[engine, shape]

    def _enlarge(self, images: int, scores: int) -> None:
        """Staging of so many bytes at least."""
        before = self._staging
        if before is not None:
            if before.images.nbytes >= images and before.scores.nbytes >= scores:
                return
            images, scores = max(before.images.nbytes, images), max(before.scores.nbytes, scores)
            self.stream.synchronize()
        self._staging = open_staging(self._device, self.stream, images, scores)
        if before is not None:
            before.free()

    def _open_staging(self) -> Staging:
        assert self._staging is not None  # what is started was reserved
        return self._staging

    def _answer(self, engine: TrtEngine, shape: Shape, tiles: int) -> Scores:
        """The first scores in the staging, as their type and shape."""
        scores = scores_of(engine)
        row = self._contexts[engine, shape].shapes[scores.name][1:]
        nbytes = tiles * prod(row) * scores.dtype.itemsize
        answer: Scores = self._open_staging().scores[:nbytes].view(scores.dtype).reshape(tiles, *row)
        return answer

    def _addresses(self, engine: TrtEngine) -> dict[str, int]:
        staging = self._open_staging()
        return {IMAGE: staging.input_address, scores_of(engine).name: staging.scores_address}


def scores_of(engine: TrtEngine) -> Tensor:
    """The output of an engine for tiles."""
    return next(tensor for tensor in engine.tensors if not tensor.is_input)
