"""Messages of the Open Inference Protocol v2, as far as a client needs them, made without generated code.

Generated code runs with few versions of protobuf, and two copies of it in one process clash by name; messages that are described
in a pool of their own do neither. Fields that are left out here are skipped when read.

Source: KServe, Open Inference Protocol v2, `grpc_predict_v2.proto`; Triton's extension of it, `grpc_service.proto` (ModelConfig).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE: Final = "inference"
SERVICE: Final = f"{PACKAGE}.GRPCInferenceService"

_Fields = tuple[tuple[str, int, str], ...]
_TENSOR: Final[_Fields] = (("name", 1, "string"), ("datatype", 2, "string"), ("shape", 3, "int64*"))
_MODEL: Final[_Fields] = (("name", 1, "string"), ("version", 2, "string"))
_MESSAGES: Final[Mapping[str, _Fields]] = {
    "ServerLiveRequest": (),
    "ServerLiveResponse": (("live", 1, "bool"),),
    "ServerReadyRequest": (),
    "ServerReadyResponse": (("ready", 1, "bool"),),
    "ServerMetadataRequest": (),
    "ServerMetadataResponse": (("name", 1, "string"), ("version", 2, "string")),
    "ModelReadyRequest": _MODEL,
    "ModelReadyResponse": (("ready", 1, "bool"),),
    "ModelMetadataRequest": _MODEL,
    "ModelMetadataResponse": (
        ("name", 1, "string"),
        ("versions", 2, "string*"),
        ("platform", 3, "string"),
        ("inputs", 4, "Tensor*"),
        ("outputs", 5, "Tensor*"),
    ),
    "ModelInferRequest": (
        ("model_name", 1, "string"),
        ("model_version", 2, "string"),
        ("inputs", 5, "Tensor*"),
        ("outputs", 6, "Tensor*"),
        ("raw_input_contents", 7, "bytes*"),
    ),
    "ModelInferResponse": (
        ("model_name", 1, "string"),
        ("model_version", 2, "string"),
        ("outputs", 5, "Tensor*"),
        ("raw_output_contents", 6, "bytes*"),
    ),
    "ModelConfigRequest": _MODEL,
    "ModelConfigResponse": (("config", 1, "ModelConfig"),),
    "ModelConfig": (("max_batch_size", 4, "int64"),),
    # the protocol has a message of its own for tensors of metadata, of requests and of answers, alike in these fields
    "Tensor": _TENSOR,
}
"""Name, number and type of each field; a star: repeated."""
_TYPES: Final = {
    "string": descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
    "bytes": descriptor_pb2.FieldDescriptorProto.TYPE_BYTES,
    "bool": descriptor_pb2.FieldDescriptorProto.TYPE_BOOL,
    "int64": descriptor_pb2.FieldDescriptorProto.TYPE_INT64,
}


def _described() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="open_inference_protocol_v2.proto", package=PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, kind in fields:
            repeated, kind = kind.endswith("*"), kind.rstrip("*")
            described = message.field.add(name=field, number=number)
            described.label = described.LABEL_REPEATED if repeated else described.LABEL_OPTIONAL
            described.type = _TYPES.get(kind, described.TYPE_MESSAGE)
            if kind not in _TYPES:
                described.type_name = f".{PACKAGE}.{kind}"
    return file


_POOL: Final = descriptor_pool.DescriptorPool()
_POOL.AddSerializedFile(_described().SerializeToString())


def message(name: str) -> Any:
    """The class of a message of the protocol."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{PACKAGE}.{name}"))
