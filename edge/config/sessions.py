"""What engines run on: the keys of `session`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from edge.config.section import Section

BackendName = Literal["tensorrt", "openvino", "ort", "kserve"]
Backends = Annotated[
    Annotated[Literal["auto", "tensorrt", "openvino", "ort", "kserve"], Tag("one")]
    | Annotated[tuple[BackendName, ...], Field(min_length=1), Tag("several")],
    Discriminator(lambda value: "several" if isinstance(value, list | tuple) else "one"),
]


AUTO: Final[tuple[BackendName, ...]] = ("tensorrt", "openvino", "ort")
"""What `backend: auto` tries, the fastest first; on x86 OpenVINO takes two thirds of ONNX Runtime's time for an INT8 U-Net."""


class Tls(Section):
    """TLS towards a server."""

    ca: Path | None = Field(None, description="Certificate authority; none: the system's.")
    certificate: Path | None = None
    key: Path | None = None

    @model_validator(mode="after")
    def _paired(self) -> Tls:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key go together: expected both or neither")
        return self


def _is_address(value: str) -> str:
    # gRPC takes a port beyond 65535 for the one that its last 16 bits say
    found = re.fullmatch(r"(?:[^\s/:\[\]]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})", value)
    if found is None or not 0 < int(found[1]) < 2**16:
        raise ValueError("expected host:port of a gRPC service, such as inference:8001")
    return value


def _is_number(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("expected 0 or 1, which of the two it is")
    return value


Address = Annotated[str, AfterValidator(_is_address)]


class Kserve(Section):
    """An inference server that speaks the Open Inference Protocol v2 by gRPC: Triton, OpenVINO Model Server, KServe, MLServer."""

    url: Address = Field(description="host:port of its gRPC service; Triton's is 8001.")
    model: str | None = Field(None, min_length=1, description="Name that it serves the bundle by; none: the bundle's own.")
    version: str | None = Field(None, min_length=1, description="Version of the model; none: the one that the server takes.")
    deadline_ms: float = Field(2000.0, gt=0, description="An answer that is not there by then is late.")
    retries: int = Field(
        2, ge=0, le=100, description="How often a call is tried again that the server was away, late or full for."
    )
    max_batch: int = Field(16, ge=1, le=4096, description="Tiles in one call; more go in several. No more than the server takes.")
    ask_again_max_s: float = Field(
        30.0, gt=0, description="Longest pause between two attempts to reach a server that was away, while another backend runs."
    )
    tls: Tls | None = Field(None, description="none: in clear text.")


class SessionOptions(Section):
    """How engines run."""

    backend: Backends = Field(
        "auto",
        description="auto: TensorRT, else OpenVINO, else ONNX Runtime, whichever is there and answers the bundle's golden tiles; "
        "one of tensorrt, openvino, ort, kserve, which then has to do; or a list of them, the first that does.",
    )
    threads: int = Field(0, ge=0, le=256, description="Threads inside one inference; 0: as many as there are cores.")
    precision: Literal["f32", "bf16"] = Field(
        "f32", description="Of float operators; bundles are verified in f32. bf16: OpenVINO, on processors that have it."
    )
    device: int = Field(0, ge=0, le=63, description="GPU of backend tensorrt, as NVIDIA's driver counts them.")
    dla: Annotated[int | None, BeforeValidator(_is_number)] = Field(
        None,
        ge=0,
        le=1,
        description="Deep learning accelerator of a Jetson that takes the layers it can from the GPU, 0 or 1; none: the GPU all.",
    )
    workspace_mib: int = Field(
        1024, ge=16, le=65536, description="GPU memory that TensorRT may use as scratch for one layer, when it builds an engine."
    )
    cache: Path | None = Field(
        None, description="Folder for compiled engines; none: beside the bundle, or the user's cache where that is read-only."
    )

    gate_backend: Backends | None = Field(
        None, description="As `backend`, for the gate: it can stay here while a server runs the bundle; none: the same."
    )
    kserve: Kserve | None = Field(None, description="The server of backend kserve.")

    @property
    def backends(self) -> tuple[BackendName, ...]:
        """Those that are tried, in order."""
        return _listed(self.backend)

    @property
    def of_gate(self) -> SessionOptions:
        """The same for the gate: on its own backend where one is named, and by its own name on a server."""
        changes: dict[str, Any] = {"backend": self.gate_backend or self.backend, "gate_backend": None}
        if self.kserve is not None:
            changes["kserve"] = self.kserve.model_copy(update={"model": None, "version": None})
        return self.model_copy(update=changes)

    @model_validator(mode="after")
    def _computable(self) -> SessionOptions:
        if self.dla is not None and "tensorrt" not in (*self.backends, *self.of_gate.backends):
            raise ValueError(f"dla: got {self.dla}, and backend {', '.join(self.backends)} uses none; expected tensorrt, or none")
        for key, names in {"backend": self.backends, "gate_backend": self.of_gate.backends}.items():
            told = f"{key} {', '.join(names)}"
            if self.precision == "bf16" and "openvino" not in names:
                raise ValueError(f"precision: got bf16, and {told} computes floats in f32 alone; expected f32, or openvino")
            if repeated := [name for name in names if names.count(name) > 1]:
                raise ValueError(f"{key}: got {repeated[0]} twice; expected each one once")
            if self.kserve is None and "kserve" in names:
                raise ValueError(f"kserve: got none, and {told}; expected kserve: {{url: host:8001}}")
        return self


def _listed(backend: Literal["auto"] | BackendName | tuple[BackendName, ...]) -> tuple[BackendName, ...]:
    if backend == "auto":
        return AUTO
    return (backend,) if isinstance(backend, str) else backend
