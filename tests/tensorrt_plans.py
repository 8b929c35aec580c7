"""Engines of the TensorRT shims: how the builder was asked, for which GPU, and the ONNX file, which the runtime runs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import onnx

_MAGIC = b"shim"


@dataclass(frozen=True)
class Plan:
    """gpu: name and capability. asked: what the builder was told."""

    module: str
    version: str
    gpu: tuple[str, str]
    asked: dict
    model: onnx.ModelProto


def write_plan(plan: Plan) -> bytes:
    header = json.dumps({"module": plan.module, "version": plan.version, "gpu": plan.gpu, "asked": plan.asked}).encode()
    body = len(header).to_bytes(4, "little") + header + plan.model.SerializeToString()
    return _MAGIC + hashlib.sha256(body).digest() + body


def read_plan(engine: bytes) -> Plan | None:
    """None: it is no engine, or not all of one."""
    digest, body = engine[4:36], engine[36:]
    if engine[:4] != _MAGIC or hashlib.sha256(body).digest() != digest:
        return None
    end = 4 + int.from_bytes(body[:4], "little")
    header = json.loads(body[4:end])
    model = onnx.load_model_from_string(body[end:])
    return Plan(header["module"], header["version"], tuple(header["gpu"]), header["asked"], model)


def asked(engine: bytes) -> dict:
    """How the builder was asked for a shim's engine."""
    plan = read_plan(engine)
    assert plan is not None
    return plan.asked
