"""A connection to an inference server: every call with a deadline, tried again where waiting may help, told in words where not.

The client is made of `grpcio` alone, with messages of its own (`edge.sessions.kserve.messages`). `tritonclient[grpc]` wants an
older protobuf than `onnx` brings, and NumPy extensions and an HTTP client that nothing here uses; grpcio is alive, and has wheels
for x86-64 and aarch64.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

from edge.config import Kserve, Tls
from edge.errors import SessionError

# what its core has to say goes to stderr in lines of its own, beside the one error that says the same in words
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
try:
    import grpc

    from edge.sessions.kserve.messages import SERVICE, message
except ImportError as error:
    raise SessionError(
        f"no gRPC ({error}); install rust-edge[kserve], or choose another session.backend: openvino, ort"
    ) from error

TRANSIENT: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED})
"""Away, late, full: what a moment may mend. Source: gRPC, status codes."""
FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 1.0
_NO_GRPC: Final = ("Failed parsing HTTP/2", "http1")
"""What gRPC's core says of a server that answers in other words than HTTP/2's, by its version."""
_NO_TLS: Final = ("handshake failed", "security handshaker")
"""The same of one without TLS or with another authority, and of files that are no certificates."""
_METHODS: Final = ("ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata", "ModelConfig", "ModelInfer")
_CHANNEL: Final = (
    # a slab of a wide strip is beyond the 4 MiB that gRPC takes by default
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # gRPC waits 1 s, then up to 120 s, before it connects again: all calls in between fail at once
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # its channels are shared in the process: a second session to a server that was away must not wait as the first has to
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass(frozen=True, slots=True)
class TensorType:
    """A tensor as a server describes it. datatype: as `UINT8`, `FP32`. shape: -1 where any size is taken."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.datatype} ({', '.join('any' if size < 0 else str(size) for size in self.shape)})"


class InferenceServer:
    """A server of the Open Inference Protocol v2. A context manager; any number of threads may call.

    Each call ends within `(retries + 1) * deadline_ms` and the pauses between the attempts, LONGEST_PAUSE_S each at most.
    Raises SessionError where TLS files cannot be read, and in every call: transient failures beyond the retries, others at once.
    """

    def __init__(self, options: Kserve) -> None:
        self.url = options.url
        self._deadline_s, self._retries = options.deadline_ms / 1000, options.retries
        credentials = _credentials(options.tls) if options.tls else None
        self._channel = (
            grpc.secure_channel(options.url, credentials, _CHANNEL)
            if credentials
            else grpc.insecure_channel(options.url, _CHANNEL)
        )
        self._closed = threading.Event()
        self._methods: dict[str, Callable[..., Any]] = {
            name: self._channel.unary_unary(
                f"/{SERVICE}/{name}",
                request_serializer=message(f"{name}Request").SerializeToString,
                response_deserializer=message(f"{name}Response").FromString,
            )
            for name in _METHODS
        }

    def __enter__(self) -> InferenceServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closed.set()
        self._channel.close()

    def software(self) -> str:
        """Name and version of what runs there, as `triton 2.51.0`; asked whether it is live before."""
        if not self.call("ServerLive").live:
            raise SessionError(f"{self._where}: the server says that it is not live; look at its log")
        told = self.call("ServerMetadata")
        return f"{told.name} {told.version}".strip() or "of an unknown name"

    def tensors(self, model: str, version: str) -> tuple[list[TensorType], list[TensorType]]:
        """Inputs and outputs of a model that is ready. version: empty: the server's choice. Raises SessionError."""
        named = f"model {model}" + (f" in version {version}" if version else "")
        expected = (
            f"expected {named} there: `rust-edge export --target triton` writes a repository of it; "
            "or name it in session.kserve.model"
        )
        try:
            ready = self.call("ModelReady", name=model, version=version).ready
        except SessionError as error:
            if _code_of(error) not in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT):
                raise
            raise SessionError(f"{error}; {expected}") from error
        if not ready:
            server = "is ready" if self.call("ServerReady").ready else "says that it is not ready either: look at its log"
            raise SessionError(f"{self._where}: {named} is not ready there, the server {server}; {expected}")
        told = self.call("ModelMetadata", name=model, version=version)
        return [_tensor_type(tensor) for tensor in told.inputs], [_tensor_type(tensor) for tensor in told.outputs]

    def most_tiles(self, model: str, version: str) -> int | None:
        """What a Triton takes of a model in one call; None: another server, which says nothing of that. Raises SessionError."""
        try:
            return self.call("ModelConfig", name=model, version=version).config.max_batch_size or None
        except SessionError as error:
            if _code_of(error) in (*TRANSIENT, None):
                raise
            return None

    def call(self, method: str, /, **fields: Any) -> Any:
        """The answer of a method of the protocol. Raises SessionError."""
        request = message(f"{method}Request")(**fields)
        for attempt in range(self._retries + 1):
            try:
                return self._methods[method](request, timeout=self._deadline_s)
            except ValueError as error:  # what gRPC says of a closed channel
                raise SessionError(f"{self._where}: {error}") from error
            except grpc.RpcError as error:
                last = error
            if last.code() not in TRANSIENT or attempt == self._retries or self._closed.wait(pause_s(attempt)):
                break
        raise SessionError(f"{self._where}: {self._told(method, last, attempt + 1)}") from last

    @property
    def _where(self) -> str:
        return f"session.kserve.url {self.url}"

    def _told(self, method: str, error: Any, attempts: int) -> str:
        code, details = error.code(), next(iter((error.details() or "").splitlines()), "")
        times = f" at {attempts} attempts" if attempts > 1 else ""
        if code == grpc.StatusCode.UNIMPLEMENTED:
            return (
                f"a server answers that has no {method} ({details}); expected the Open Inference Protocol v2 by gRPC: Triton, "
                "OpenVINO Model Server, KServe or MLServer"
            )
        if code == grpc.StatusCode.UNAVAILABLE and any(sign in details for sign in _NO_GRPC):
            return f"an HTTP server answers, or another one ({details}); expected the port of its gRPC service, Triton's is 8001"
        if code == grpc.StatusCode.UNAVAILABLE and any(sign in details for sign in _NO_TLS):
            return f"no TLS with who answers ({details}); expected a server with TLS there, and the files of session.kserve.tls"
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"{method} had no answer within {self._deadline_s * 1000:g} ms{times}; session.kserve.deadline_ms is how long"
        if code == grpc.StatusCode.UNAVAILABLE:
            return f"nobody answers {method}{times} ({details}); expected an inference server there, by gRPC"
        if code == grpc.StatusCode.INVALID_ARGUMENT and "batch-size" in details:
            return f"{method} failed: {details}; expected session.kserve.max_batch to be no more than that"
        return f"{method} failed{times}: {code.name}: {details}"


def pause_s(attempt: int) -> float:
    """How long to wait after a failed attempt, from 0 on; drawn by chance, so that stations do not come back all at once.

    Source: M. Brooker, "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015), full jitter.
    """
    return random.uniform(0.0, min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(attempt, 16)))


def _code_of(error: SessionError) -> Any:
    cause = error.__cause__
    return cause.code() if isinstance(cause, grpc.RpcError) else None


def _tensor_type(tensor: Any) -> TensorType:
    return TensorType(tensor.name, tensor.datatype, tuple(tensor.shape))


def _credentials(tls: Tls) -> Any:
    contents: list[bytes | None] = []
    for key, path in (("ca", tls.ca), ("key", tls.key), ("certificate", tls.certificate)):
        try:
            contents.append(path.read_bytes() if path else None)
        except OSError as error:
            raise SessionError(
                f"session.kserve.tls.{key}: {path} cannot be read ({error.strerror}); expected a PEM file"
            ) from error
    return grpc.ssl_channel_credentials(*contents)
