"""A small server of the Open Inference Protocol v2 by real gRPC, in the test's process, that serves a bundle well or badly."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np

from edge.bundle import Bundle
from edge.config import Kserve
from edge.sessions.kserve.messages import SERVICE, message
from edge.sessions.ort import OrtSession

DATATYPES = {"float32": "FP32", "float16": "FP16", "uint8": "UINT8", "int64": "INT64"}
METHODS = ("ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata", "ModelConfig", "ModelInfer")


class InferenceServer:
    """Serves a bundle by its name, on a port that it keeps over `stop` and `start`. A context manager.

    answer: what becomes of the scores before they go out. before: called with the gRPC context and the number of the inference,
    from 1 on, before it. metadata: changes it before it goes out. calls: how often each method was called.
    most_tiles: of one inference, as Triton says; None: a server that does not say.
    """

    def __init__(self, bundle: Bundle, credentials: grpc.ServerCredentials | None = None) -> None:
        self._bundle, self._credentials = bundle, credentials
        self._session = OrtSession(bundle.model_path, threads=1)
        self._lock = threading.Lock()
        self.live = self.ready = self.model_ready = True
        self.calls: Counter[str] = Counter()
        self.answer: Callable[[np.ndarray], np.ndarray] = lambda scores: scores
        self.answered: Callable[[Any], Any] = lambda response: response
        self.before: Callable[[grpc.ServicerContext, int], None] = lambda context, number: None
        self.metadata: Callable[[Any], None] = lambda told: None
        self.batches: list[int] = []
        self.most_tiles: int | None = None
        self.port = 0

    def __enter__(self) -> InferenceServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.port}"

    def options(self, **keys: Any) -> Kserve:
        return Kserve(url=self.url, **keys)

    def start(self) -> None:
        self._server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        handlers = {name: self._handler(name) for name in METHODS}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        address = f"127.0.0.1:{self.port}"
        if self._credentials is None:
            self.port = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, self._credentials)
        self._server.start()

    def stop(self) -> None:
        """At once: calls that are under way fail."""
        self._server.stop(grace=None).wait()

    def _handler(self, name: str) -> grpc.RpcMethodHandler:
        def counted(request: Any, context: grpc.ServicerContext) -> Any:
            self.calls[name] += 1
            return getattr(self, f"_{name}")(request, context)

        return grpc.unary_unary_rpc_method_handler(
            counted,
            request_deserializer=message(f"{name}Request").FromString,
            response_serializer=message(f"{name}Response").SerializeToString,
        )

    def _ServerLive(self, request: Any, context: Any) -> Any:  # noqa: N802
        return message("ServerLiveResponse")(live=self.live)

    def _ServerReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return message("ServerReadyResponse")(ready=self.ready)

    def _ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        return message("ServerMetadataResponse")(name="toy", version="1.2")

    def _ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.name != self._bundle.manifest.name:
            context.abort(grpc.StatusCode.NOT_FOUND, f"unknown model {request.name}")
        return message("ModelReadyResponse")(ready=self.model_ready)

    def _ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        scores = self._session.infer(self._bundle.golden().patches[:1, None])
        told = message("ModelMetadataResponse")(name=request.name, platform="toy")
        told.inputs.add(name="image", datatype="UINT8", shape=(-1, 1, -1, -1))
        told.outputs.add(
            name="scores", datatype=DATATYPES[str(scores.dtype)], shape=(-1, scores.shape[1], *[-1] * (scores.ndim - 2))
        )
        self.metadata(told)
        return told

    def _ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        if self.most_tiles is None:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "no such method")
        return message("ModelConfigResponse")(config={"max_batch_size": self.most_tiles})

    def _ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.before(context, self.calls["ModelInfer"])
        (image,), (raw,) = request.inputs, request.raw_input_contents
        tiles = np.frombuffer(raw, np.uint8).reshape(tuple(image.shape))
        with self._lock:
            self.batches.append(len(tiles))
            scores = self.answer(self._session.infer(tiles).copy())
        response = message("ModelInferResponse")(raw_output_contents=[scores.tobytes()])
        response.outputs.add(name=request.outputs[0].name, datatype=DATATYPES[str(scores.dtype)], shape=scores.shape)
        return self.answered(response)
