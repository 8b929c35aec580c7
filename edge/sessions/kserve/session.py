"""An inference server as a session: several stations share one GPU, and the server fills its batches from all of them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Final

import numpy as np

from edge.config import Kserve
from edge.errors import SessionError
from edge.manifest import Manifest
from edge.sessions import Batch, Scores, Steps
from edge.sessions.kserve.server import InferenceServer, TensorType

_DTYPES: Final[Mapping[str, np.dtype[Any]]] = {"FP32": np.dtype("<f4"), "UINT8": np.dtype("u1")}
"""Of scores: raw tensors are little-endian. Source: Open Inference Protocol v2, tensor data, raw representation."""


def server_software(options: Kserve) -> str:
    """Name and version of what serves. Raises SessionError where nobody does, or something else answers."""
    with InferenceServer(options) as server:
        return server.software()


class KserveSession:
    """A bundle's engine for tiles on a server; implements `edge.sessions.Session` for any number of threads.

    manifest: what the server's model has to be: one uint8 image (n, 1, h, w) in, one tensor of scores out.
    A batch of more tiles than `max_batch`, or than a Triton takes, goes in several calls.
    Raises SessionError, when made and in every call: nobody answers in time, another protocol, no such model, other tensors than
    the manifest's, an answer of another shape or type.
    """

    backend = "kserve"
    steps: Steps | None = None

    def __init__(self, options: Kserve, manifest: Manifest) -> None:
        self._manifest = manifest
        self._model, self._version = options.model or manifest.name, options.version or ""
        self._where = f"session.kserve.url {options.url}: model {self._model}"
        self._opened = ExitStack()
        with ExitStack() as opening:
            self._server = opening.enter_context(InferenceServer(options))
            self._server.software()
            inputs, outputs = self._server.tensors(self._model, self._version)
            self._input, self._output = self._checked(inputs, outputs)
            self._max_batch = min(options.max_batch, self._server.most_tiles(self._model, self._version) or options.max_batch)
            self._opened = opening.pop_all()

    def __enter__(self) -> KserveSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._opened.close()

    def infer(self, batch: Batch) -> Scores:
        """Scores (n, ...) of a batch (n, 1, h, w) uint8; not to be written to. Raises SessionError."""
        self._check_fits(batch.shape, batch.dtype)
        parts = [self._infer(batch[first : first + self._max_batch]) for first in range(0, len(batch), self._max_batch)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def prepare(self, shape: tuple[int, int, int, int]) -> None:
        """Have the server see one such tile; more would hold up other stations. Raises SessionError where it does not take it."""
        self.infer(np.zeros((1, *shape[1:]), np.uint8))

    def _infer(self, tiles: Batch) -> Scores:
        image = {"name": self._input.name, "datatype": "UINT8", "shape": tiles.shape}
        answer = self._server.call(
            "ModelInfer",
            model_name=self._model,
            model_version=self._version,
            inputs=[image],
            outputs=[{"name": self._output.name}],
            raw_input_contents=[tiles.tobytes()],
        )
        return self._scores(answer, self._shape(tiles.shape))

    def _scores(self, answer: Any, shape: tuple[int, ...]) -> Scores:
        """The scores of an answer, which has to be one raw tensor of what was asked for."""
        got = [TensorType(tensor.name, tensor.datatype, tuple(tensor.shape)) for tensor in answer.outputs]
        expected = TensorType(self._output.name, self._output.datatype, shape)
        if got != [expected]:
            told = ", ".join(map(str, got)) or "nothing"
            raise SessionError(f"{self._where}: got an answer {told}; expected {expected}: serve the bundle's own model.onnx")
        dtype = _DTYPES[expected.datatype]
        sizes, size = [len(raw) for raw in answer.raw_output_contents], int(np.prod(shape)) * dtype.itemsize
        if sizes != [size]:
            raise SessionError(f"{self._where}: got {sizes} bytes of raw tensors for {expected}; expected one of {size}")
        scores: Scores = np.frombuffer(answer.raw_output_contents[0], dtype).reshape(shape)
        return scores

    def _checked(self, inputs: list[TensorType], outputs: list[TensorType]) -> tuple[TensorType, TensorType]:
        """The image and the scores of the model. Raises SessionError where they are not those of the manifest."""
        size = self._manifest.input
        image = TensorType("image", "UINT8", (-1, 1, size.tile_height, size.tile_width))
        datatype = "UINT8" if self._manifest.head == "mask" else "FP32"
        scores = TensorType("scores", datatype, (-1, *self._shape((1, *image.shape[1:]))[1:]))
        for what, got, wanted in (("inputs", inputs, image), ("outputs", outputs, scores)):
            if len(got) != 1 or got[0].datatype != wanted.datatype or not _agree(got[0].shape, wanted.shape):
                told = ", ".join(map(str, got)) or "none"
                raise SessionError(
                    f"{self._where}: got {what} {told}; expected one {wanted.datatype} "
                    f"({', '.join('any' if side < 0 else str(side) for side in wanted.shape)}), as the manifest of "
                    f"{self._manifest.name} says: serve the bundle's own model.onnx"
                )
        return inputs[0], outputs[0]

    def _shape(self, tiles: tuple[int, ...]) -> tuple[int, ...]:
        """Of the scores of tiles (n, 1, h, w)."""
        manifest, (count, _, height, width) = self._manifest, tiles
        channels = 2 if manifest.head == "mask" else len(manifest.classes) - (manifest.activation == "sigmoid")
        if manifest.kind == "classifier" and manifest.cell is None:
            return count, channels
        cell = manifest.cell or 1
        return count, channels, height // cell, width // cell

    def _check_fits(self, shape: tuple[int, ...], dtype: np.dtype[np.uint8]) -> None:
        wanted = (-1, *self._input.shape[1:])
        if dtype != np.uint8 or len(shape) != 4 or 0 in shape or shape[1] != 1 or not _agree(wanted, shape):
            expected = TensorType("uint8", "", wanted)
            raise SessionError(f"{self._where}: got a batch {dtype} {shape}, expected {expected}")


def _agree(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two shapes are the same but where one of them is free."""
    return len(one) == len(other) and all(a == b or min(a, b) < 0 for a, b in zip(one, other, strict=True))
