"""Messages of the gRPC services: field names, types and numbers as the protocols publish them.

They are described here and built when a listener starts, in a pool of descriptors of our
own: Triton's client has other descriptions of the package ``inference`` in the pool that
all of a process shares. What is nested elsewhere stands side by side here, since names of
messages do not cross the wire.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

__all__ = ["MESSAGES", "message"]

_Fields = tuple[str, ...]

_OPEN_INFERENCE: Mapping[str, _Fields] = {
    "ServerLiveRequest": (),
    "ServerLiveResponse": ("bool live 1",),
    "ServerReadyRequest": (),
    "ServerReadyResponse": ("bool ready 1",),
    "ModelReadyRequest": ("string name 1", "string version 2"),
    "ModelReadyResponse": ("bool ready 1",),
    "ServerMetadataRequest": (),
    "ServerMetadataResponse": ("string name 1", "string version 2", "repeated string extensions 3"),
    "ModelMetadataRequest": ("string name 1", "string version 2"),
    "TensorMetadata": ("string name 1", "string datatype 2", "repeated int64 shape 3"),
    "ModelMetadataResponse": (
        "string name 1", "repeated string versions 2", "string platform 3",
        "repeated TensorMetadata inputs 4", "repeated TensorMetadata outputs 5",
    ),
    "InferParameter": (
        "choice bool bool_param 1", "choice int64 int64_param 2", "choice string string_param 3",
        "choice double double_param 4", "choice uint64 uint64_param 5",
    ),
    "InferTensorContents": (
        "repeated bool bool_contents 1", "repeated int32 int_contents 2",
        "repeated int64 int64_contents 3", "repeated uint32 uint_contents 4",
        "repeated uint64 uint64_contents 5", "repeated float fp32_contents 6",
        "repeated double fp64_contents 7", "repeated bytes bytes_contents 8",
    ),
    "InferInputTensor": (
        "string name 1", "string datatype 2", "repeated int64 shape 3",
        "map InferParameter parameters 4", "InferTensorContents contents 5",
    ),
    "InferRequestedOutputTensor": ("string name 1", "map InferParameter parameters 2"),
    "ModelInferRequest": (
        "string model_name 1", "string model_version 2", "string id 3",
        "map InferParameter parameters 4", "repeated InferInputTensor inputs 5",
        "repeated InferRequestedOutputTensor outputs 6", "repeated bytes raw_input_contents 7",
    ),
    "InferOutputTensor": (
        "string name 1", "string datatype 2", "repeated int64 shape 3",
        "map InferParameter parameters 4", "InferTensorContents contents 5",
    ),
    "ModelInferResponse": (
        "string model_name 1", "string model_version 2", "string id 3",
        "map InferParameter parameters 4", "repeated InferOutputTensor outputs 5",
        "repeated bytes raw_output_contents 6",
    ),
}  # fmt: skip
_TORCHSERVE: Mapping[str, _Fields] = {
    "Empty": (),
    "TorchServeHealthResponse": ("string health 1",),
    "PredictionsRequest": ("string model_name 1", "string model_version 2", "map bytes input 3"),
    "PredictionResponse": ("bytes prediction 1",),
    "ManagementResponse": ("string msg 1",),
    "DescribeModelRequest": ("string model_name 1", "string model_version 2", "bool customized 3"),
    "ListModelsRequest": ("int32 limit 1", "int32 next_page_token 2"),
    "RegisterModelRequest": (
        "int32 batch_size 1", "string handler 2", "int32 initial_workers 3",
        "int32 max_batch_delay 4", "string model_name 5", "int32 response_timeout 6",
        "string runtime 7", "bool synchronous 8", "string url 9", "bool s3_sse_kms 10",
    ),
    "ScaleWorkerRequest": (
        "string model_name 1", "string model_version 2", "int32 max_worker 3",
        "int32 min_worker 4", "int32 number_gpu 5", "bool synchronous 6", "int32 timeout 7",
    ),
    "SetDefaultRequest": ("string model_name 1", "string model_version 2"),
    "UnregisterModelRequest": ("string model_name 1", "string model_version 2"),
}  # fmt: skip
MESSAGES: Mapping[str, Mapping[str, _Fields]] = {
    "inference": _OPEN_INFERENCE,
    "torchserve": _TORCHSERVE,
}
"""Package -> message -> fields: ``[repeated | map | choice] TYPE NAME NUMBER``; keys of a map
are texts, and of the fields that are a choice one is there at most."""

_Proto = descriptor_pb2.FieldDescriptorProto
_SCALARS: Mapping[str, Any] = {
    "double": _Proto.TYPE_DOUBLE,
    "float": _Proto.TYPE_FLOAT,
    "int32": _Proto.TYPE_INT32,
    "int64": _Proto.TYPE_INT64,
    "uint32": _Proto.TYPE_UINT32,
    "uint64": _Proto.TYPE_UINT64,
    "bool": _Proto.TYPE_BOOL,
    "string": _Proto.TYPE_STRING,
    "bytes": _Proto.TYPE_BYTES,
}


def message(name: str) -> Any:
    """Return the class of a message.

    Args:
        name: With its package, e.g. ``inference.ModelInferRequest``.
    """
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(name))


@functools.cache
def _pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    for package, messages in MESSAGES.items():
        file = descriptor_pb2.FileDescriptorProto(
            name=f"{package}.proto", package=package, syntax="proto3"
        )
        for name, fields in messages.items():
            made = file.message_type.add(name=name)
            for field in fields:
                _add_field(made, field, f".{package}")
        pool.AddSerializedFile(file.SerializeToString())
    return pool


def _add_field(made: Any, text: str, package: str) -> None:
    """Add one field to a message.

    Args:
        made: The description of the message.
        text: The field, as in :data:`MESSAGES`.
        package: Its package, after a dot.
    """
    found = re.fullmatch(r"(?:(repeated|map|choice) )?(\w+) (\w+) (\d+)", text)
    assert found is not None, text  # noqa: S101 - our own table
    label, kind, name, number = found.groups()
    is_many = label in ("repeated", "map")
    field = made.field.add(
        name=name,
        number=int(number),
        label=_Proto.LABEL_REPEATED if is_many else _Proto.LABEL_OPTIONAL,
    )
    if label == "choice":
        if not made.oneof_decl:
            made.oneof_decl.add(name="choice")
        field.oneof_index = 0
    if label == "map":
        entry = made.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        _add_field(entry, "string key 1", package)
        _add_field(entry, f"{kind} value 2", package)
        field.type, field.type_name = _Proto.TYPE_MESSAGE, f"{package}.{made.name}.{entry.name}"
    elif kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type, field.type_name = _Proto.TYPE_MESSAGE, f"{package}.{kind}"
