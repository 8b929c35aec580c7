"""TensorRT on a GPU: a bundle's tiles, crops and slabs, as host arrays or on the device."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Final

import numpy as np

from edge.bundle import Bundle, check_golden
from edge.cuda.device import CudaDevice
from edge.errors import BundleError, SessionError
from edge.sessions import Batch, Scores, Steps
from edge.sessions.on_device import Lane
from edge.sessions.trt.build import BuildOptions
from edge.sessions.trt.engine import TrtEngine, free_quietly, load_engine
from edge.sessions.trt.lanes import Side
from edge.sessions.trt.shapes import BUCKETS, IMAGE, Profile, Shape, ShapeRange, bucket_of, pieces, tile_profile

_log = logging.getLogger(__name__)
_SCORE_TYPES: Final = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(np.uint8))


class TrtSession:
    """A bundle's engine for tiles of any batch size; implements `edge.sessions.Session` and `on_device.DeviceSession`.

    trt: TensorRT's module. device: lent until the session closes. folder: where built engines are kept, None: nowhere.
    An engine is built for a range of shapes (`trt.shapes`): of batches of the bundle's tile when the session opens, and of crops
    and slabs that are larger when one is first prepared or asked for, which takes minutes once on a box; that one has to answer
    the golden tiles, too.
    Each shape has an execution context a bucket of tiles, on either of two streams; parts of a large batch take the two by turns,
    so that one is copied while the other is computed. Buckets whose scores differ from the largest one's by a bit are left out.
    For one thread at a time. Scores come in a buffer that the next call reuses.
    Raises SessionError where the engine cannot be built or loaded, is not one uint8 image in, one tensor of scores out, or where
    a later one answers otherwise than it should.
    """

    backend = "tensorrt"
    steps: Steps | None = None

    def __init__(
        self,
        trt: ModuleType,
        device: AbstractContextManager[CudaDevice],
        bundle: Bundle,
        folder: Path | None,
        options: BuildOptions,
    ) -> None:
        self._trt, self._bundle, self._folder, self._options = trt, bundle, folder, options
        self._sides: tuple[Side, ...] = ()
        self._engines: list[TrtEngine] = []
        self._by_bucket: dict[tuple[int, int], dict[int, TrtEngine]] = {}
        self._scores: Scores | None = None
        with ExitStack() as opening:
            self.device = opening.enter_context(device)
            opening.callback(self._close)
            with self.device.active():
                self._sides = (Side(self.device), Side(self.device))
                size = bundle.manifest.input
                self._engine((1, 1, size.tile_height, size.tile_width))
            self._opened = opening.pop_all()

    def __enter__(self) -> TrtSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._opened.close()

    def infer(self, batch: Batch) -> Scores:
        """Scores (n, ...) of a batch (n, 1, h, w) uint8, float32, or uint8 of a mask head; valid until the next call.

        Raises SessionError.
        """
        shape = self._sound(batch.dtype, batch.shape)
        with self._working():
            engines = self._prepared(shape)
            parts = [_Part(where, engines[size], (size, *shape[1:])) for where, size in pieces(len(batch), tuple(engines))]
            if len(parts) > 1:
                return self._by_turns(batch, parts)
            self._sides[0].start(parts[0].engine, parts[0].shape, batch)
            scores = self._sides[0].finish(parts[0].engine, parts[0].shape, len(batch))
            if scores.dtype != np.float16:
                return scores
            declared = self._buffer(scores)
            declared[:] = scores
            return declared

    def prepare(self, shape: tuple[int, int, int, int]) -> None:
        """Builds the engine of such batches where there is none, and readies the contexts of all their buckets.

        Raises SessionError.
        """
        self._sound(np.dtype(np.uint8), shape)
        with self._working():
            self._prepared(shape)

    def buckets(self, shape: tuple[int, int, int, int]) -> Sequence[int]:
        """Sizes of batches that score such tiles alike, every bit, rising; the largest may be below shape[0].

        Raises SessionError.
        """
        self._sound(np.dtype(np.uint8), shape)
        with self._working():
            return tuple(self._prepared(shape))

    def lanes(self, shape: tuple[int, int, int, int]) -> tuple[Lane, Lane]:
        """The two lanes of a shape, made by the first call. Raises SessionError."""
        self._sound(np.dtype(np.uint8), shape)
        with self._working():
            engine = self._engine(shape)
            first, second = self._sides
            return first.lane(engine, shape), second.lane(engine, shape)

    def _by_turns(self, batch: Batch, parts: list[_Part]) -> Scores:
        """Scores of a batch in several parts: while one is computed, the one before is copied out and the next one in."""
        scores: Scores | None = None
        for turn in range(len(parts) + len(self._sides)):
            side = self._sides[turn % len(self._sides)]
            if turn >= len(self._sides):
                done = parts[turn - len(self._sides)]
                answer = side.finish(done.engine, done.shape, done.where.stop - done.where.start)
                if scores is None:
                    scores = self._buffer(answer, len(batch))
                scores[done.where] = answer
            if turn < len(parts):
                side.start(parts[turn].engine, parts[turn].shape, batch[parts[turn].where])
        assert scores is not None  # there are several parts
        return scores

    @contextmanager
    def _working(self) -> Iterator[None]:
        """On the device; after an error nothing is left on the way."""
        with self.device.active():
            try:
                yield
            except SessionError:
                for side in self._sides:
                    side.drain()
                raise

    def _prepared(self, shape: Shape) -> dict[int, TrtEngine]:
        """Engines by bucket, rising, for batches of such tiles, with contexts that are ready."""
        tiles, _, height, width = shape
        have = self._by_bucket.get((height, width))
        if have is None:
            have = self._by_bucket[height, width] = {}
        # however many come, the engine is the one for a tile alone: its range does not hang on the station's batch
        most = self._engine((1, 1, height, width)).profile[IMAGE].largest[0] if self._options.dla is None else BUCKETS[-1]
        largest = min(bucket_of(tiles), most)
        if have and max(have) >= largest:
            return have
        wanted = {bucket: self._engine((bucket, 1, height, width)) for bucket in BUCKETS if bucket <= largest}
        for bucket, engine in reversed(wanted.items()):
            for side in self._sides:
                side.reserve(engine, (bucket, 1, height, width))
        self._by_bucket[height, width] = alike = self._alike(wanted, height, width)
        return alike

    def _alike(self, engines: dict[int, TrtEngine], height: int, width: int) -> dict[int, TrtEngine]:
        """The buckets that score tiles as the largest does, every bit: kernels may sum in another order for another batch."""
        tiles = np.random.default_rng(0).integers(0, 256, (max(engines), 1, height, width), dtype=np.uint8)
        answers: dict[int, Scores] = {}
        if len(engines) == 1:
            return engines
        for bucket, engine in engines.items():
            shape = (bucket, 1, height, width)
            self._sides[0].start(engine, shape, tiles[:bucket])
            answers[bucket] = self._sides[0].finish(engine, shape, bucket).copy()
        largest = answers[max(engines)]
        alike = {bucket: engines[bucket] for bucket in engines if answers[bucket].tobytes() == largest[:bucket].tobytes()}
        if left_out := [str(bucket) for bucket in engines if bucket not in alike]:
            told = f"{self._bundle.manifest.name}: {height} x {width} px in batches of {', '.join(left_out)} are scored otherwise"
            _log.warning("%s than in batches of %d; they are filled up to larger ones", told, max(engines))
        return alike

    def _engine(self, shape: Shape) -> TrtEngine:
        """The first of the engines so far whose range holds a shape, else one for a range that does."""
        for engine in self._engines:
            if engine.profile[IMAGE].holds(shape):
                return engine
        profile = tile_profile(self._bundle, shape) if self._options.dla is None else {IMAGE: ShapeRange.of(*shape)}
        engine = load_engine(self._trt, self.device, self._bundle, profile, self._folder, self._options)
        try:
            self._require_sound(engine, profile)
        except BaseException:
            for side in self._sides:
                side.forget(engine)
            free_quietly(engine)
            raise
        self._engines.append(engine)
        return engine

    def _require_sound(self, engine: TrtEngine, profile: Profile) -> None:
        """Raises SessionError where an engine is not one image in and scores out, or a later one answers otherwise."""
        images = [tensor for tensor in engine.tensors if tensor.is_input]
        others = [tensor for tensor in engine.tensors if not tensor.is_input]
        fits = len(images) == len(others) == 1 and images[0].name == IMAGE and images[0].dtype == np.uint8
        if not fits or others[0].dtype not in _SCORE_TYPES:
            got = ", ".join(f"{tensor.name} {tensor.dtype}" for tensor in engine.tensors)
            raise SessionError(f"{engine.where}: got {got}; expected one uint8 {IMAGE} and one float or uint8 tensor of scores")
        size = self._bundle.manifest.input
        tile: Shape = (profile[IMAGE].smallest[0], 1, size.tile_height, size.tile_width)
        if not self._engines or not profile[IMAGE].holds(tile):
            return  # who opens the session asks the first engine
        try:
            check_golden(self._bundle, _TilesOf(engine, self._sides[0], tile))
        except BundleError as error:
            # the bundle is sound, as its first engine has shown: it is this box that cannot run it
            raise SessionError(f"an engine for other sizes: {error}") from error

    def _sound(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Shape:
        """The shape of a batch. Raises SessionError where the bundle takes no such one."""
        if dtype != np.uint8 or len(shape) != 4:
            raise SessionError(f"{self._bundle.manifest.name}: got a batch {dtype} {shape}, expected uint8 (n, 1, h, w)")
        batch: Shape = (shape[0], shape[1], shape[2], shape[3])
        tile_profile(self._bundle, batch)
        return batch

    def _buffer(self, answer: Scores, tiles: int | None = None) -> Scores:
        """Room for the scores of so many tiles, None: as many as the answer's, in the last buffer where that is large enough."""
        tiles, row = tiles or len(answer), answer.shape[1:]
        if self._scores is None or self._scores.shape[1:] != row or len(self._scores) < tiles:
            self._scores = np.empty((tiles, *row), np.float32 if answer.dtype == np.float16 else answer.dtype)
        return self._scores[:tiles]

    def _close(self) -> None:
        with contextlib.suppress(SessionError), self.device.active():
            free_quietly(*self._sides, *self._engines)


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a batch, with the engine and the shape that it is filled up to."""

    where: slice
    engine: TrtEngine
    shape: Shape


class _TilesOf:
    """One engine alone, asked tile by tile; implements what `check_golden` wants of a session."""

    backend = TrtSession.backend
    steps: Steps | None = None

    def __init__(self, engine: TrtEngine, side: Side, shape: Shape) -> None:
        self._engine, self._side, self._shape = engine, side, shape

    def infer(self, batch: Batch) -> Scores:
        """Scores of tiles of the engine's input size."""
        self._side.reserve(self._engine, self._shape)
        answers = []
        for tile in batch:
            self._side.start(self._engine, self._shape, tile[None])
            answers.append(self._side.finish(self._engine, self._shape, 1).copy())
        scores: Scores = np.concatenate(answers)
        return scores

    def prepare(self, shape: tuple[int, int, int, int]) -> None:
        """Nothing: it has one shape."""

    def __enter__(self) -> _TilesOf:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass
