"""The runtimes that a tiler may be given, behind one interface: the bundle's own network, in torch, ONNX Runtime, OpenVINO.

Tilers get the sessions that the station runs, with the same rewriting at load, bound buffers and threads: what is compared is
what they do around them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from queue import SimpleQueue
from types import TracebackType
from typing import Literal

import numpy as np
import torch
from torch import nn

from edge.bundle import Bundle, open_bundle
from edge.engines import reading_of
from edge.manifest import Manifest
from edge.scores import Bytes
from edge.sessions import Batch, Scores, Session
from edge.sessions.ort import OrtSession

Runtime = Literal["torch", "ort", "openvino"]
TITLES: dict[Runtime, str] = {"openvino": "OpenVINO", "ort": "ONNX Runtime", "torch": "torch eager"}


class TorchSession:
    """A torch module as an `edge.sessions.Session`; eager, channels first, as it comes."""

    backend = "torch"
    steps = None

    def __init__(self, network: nn.Module) -> None:
        self._network = network

    def __enter__(self) -> TorchSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass

    def infer(self, batch: Batch) -> Scores:
        """Scores (n, channels, h, w) float32 of a batch (n, 1, h, w) uint8."""
        with torch.inference_mode():
            return self._network(torch.from_numpy(batch)).numpy()


class Engine:
    """A bundle's engine in one runtime, for several threads at once: each call takes one of `copies` sessions.

    threads: inside one inference.
    """

    def __init__(self, runtime: Runtime, bundle: Bundle, threads: int, copies: int = 1, network: nn.Module | None = None) -> None:
        self.runtime: Runtime = runtime
        self.manifest: Manifest = bundle.manifest
        self.precision = bundle.manifest.precision
        self._reading = reading_of(bundle.manifest)
        self._opened = ExitStack()
        self._free: SimpleQueue[Session] = SimpleQueue()
        for _ in range(copies):
            self._free.put(self._opened.enter_context(_session(runtime, bundle, threads, network)))

    @property
    def title(self) -> str:
        """As tables name it."""
        return f"{TITLES[self.runtime]} {self.precision.upper()}"

    def close(self) -> None:
        """Give the sessions back."""
        self._opened.close()

    def classes(self, tile: Bytes) -> tuple[Bytes, Bytes]:
        """Class and confidence, (h, w) uint8 each, of a tile (h, w) uint8."""
        with self._borrowed() as session:
            return self._reading.classes(session.infer(np.ascontiguousarray(tile)[None, None])[0])

    def scores(self, tiles: Batch) -> Scores:
        """Logits (n, channels, h, w) float32 of tiles (n, 1, h, w) uint8; valid until the next call."""
        with self._borrowed() as session:
            return session.infer(tiles)

    @contextmanager
    def _borrowed(self) -> Iterator[Session]:
        session = self._free.get()
        try:
            yield session
        finally:
            self._free.put(session)


def open_engines(
    bundles: dict[str, str], threads: int, network: Callable[[], nn.Module]
) -> Callable[[Runtime, str, int], Engine]:
    """What makes engines: (runtime, precision, copies) -> Engine, one thread each where there are several copies.

    bundles: by precision, a shipped name or a path each. network: makes the torch module.
    """
    opened = {precision: open_bundle(name) for precision, name in bundles.items()}
    module: list[nn.Module] = []

    def make(runtime: Runtime, precision: str, copies: int = 1) -> Engine:
        if runtime == "torch" and not module:
            module.append(network())
        return Engine(runtime, opened[precision], threads if copies == 1 else 1, copies, module[0] if module else None)

    return make


def _session(runtime: Runtime, bundle: Bundle, threads: int, network: nn.Module | None) -> Session:
    if runtime == "ort":
        return OrtSession(bundle.model_path, threads)
    if runtime == "openvino":
        from edge.sessions.ov import OvSession

        return OvSession(bundle.model_path, threads)
    assert network is not None
    return TorchSession(network)
