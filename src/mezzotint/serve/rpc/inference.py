"""The open inference protocol over gRPC: its messages, as bodies of ``/v2`` and back."""

import math
import struct
from collections.abc import Mapping
from typing import Any

import orjson

from mezzotint.errors import InvalidField, InvalidRequest
from mezzotint.serve.dialects.inference.binary import HEADER_LENGTH, pack_bytes
from mezzotint.serve.dialects.torchserve_requests import typed
from mezzotint.serve.rpc.exchange import Answer, Call, model_path
from mezzotint.serve.rpc.messages import message

__all__ = ["METHODS", "infer_body", "infer_response"]

_ROOT = "/v2/models/"


async def server_live(call: Call, request: Any) -> Any:
    """Tell whether the server lives."""
    answer = await call.ask("GET", "/v2/health/live")
    return message("inference.ServerLiveResponse")(live=answer.json()["live"])


async def server_ready(call: Call, request: Any) -> Any:
    """Tell whether the server is ready."""
    answer = await call.ask("GET", "/v2/health/ready", also=(503,))
    return message("inference.ServerReadyResponse")(ready=answer.json()["ready"])


async def server_metadata(call: Call, request: Any) -> Any:
    """Return the server's metadata."""
    told = (await call.ask("GET", "/v2")).json()
    return message("inference.ServerMetadataResponse")(
        name=told["name"], version=told["version"], extensions=told["extensions"]
    )


async def model_ready(call: Call, request: Any) -> Any:
    """Tell whether a model is ready."""
    path = model_path(_ROOT, request.name, request.version, "/versions/")
    answer = await call.ask("GET", path + "/ready", also=(503,))
    return message("inference.ModelReadyResponse")(ready=bool(answer.json().get("ready")))


async def model_metadata(call: Call, request: Any) -> Any:
    """Return a model's metadata."""
    path = model_path(_ROOT, request.name, request.version, "/versions/")
    return message("inference.ModelMetadataResponse")(**(await call.ask("GET", path)).json())


async def model_infer(call: Call, request: Any) -> Any:
    """Make pictures."""
    path = model_path(_ROOT, request.model_name, request.model_version, "/versions/")
    head, rest = infer_body(request)
    answer = await call.ask(
        "POST",
        path + "/infer",
        headers={HEADER_LENGTH: str(len(head)), "content-type": "application/octet-stream"},
        body=head + rest,
    )
    return infer_response(answer)


def infer_body(request: Any) -> tuple[bytes, bytes]:
    """Return the JSON and the binary data that a ``ModelInferRequest`` is at the HTTP door.

    Raises:
        InvalidRequest: If it has contents twice, or a number that is none.
    """
    raw = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        raise InvalidRequest(
            f"raw_input_contents has {len(raw)} entries for {len(request.inputs)} inputs",
            field="raw_input_contents",
        )
    inputs: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for position, tensor in enumerate(request.inputs):
        where = f"inputs[{position}]"
        one: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype}
        one |= {"shape": list(tensor.shape), "parameters": {}}
        if raw and tensor.HasField("contents"):
            raise InvalidRequest(f"{where} has contents and raw contents", field=where)
        if raw:
            blob = raw[position]
        else:
            one["data"], blob = _contents(tensor, where)
        if blob is not None:
            one.pop("data", None)
            one["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        inputs.append(one)
    body = {
        "id": request.id,
        "inputs": inputs,
        "parameters": {**_parameters(request.parameters), "binary_data_output": True},
        "outputs": [
            {"name": one.name, "parameters": {**_parameters(one.parameters), "binary_data": True}}
            for one in request.outputs
        ],
    }
    return orjson.dumps(body), b"".join(blobs)


def _contents(tensor: Any, where: str) -> tuple[list[Any], bytes | None]:
    """Return the values of a tensor as JSON, or as binary data where that says more.

    Raises:
        InvalidRequest: If it has values of two types.
    """
    given = [(field.name, list(values)) for field, values in tensor.contents.ListFields()]
    if len(given) > 1:
        names = " and ".join(name for name, _ in given)
        raise InvalidRequest(f"{where}.contents must be of one type, got {names}", field=where)
    if not given:
        return [], None
    name, values = given[0]
    if name == "bytes_contents":
        return [], pack_bytes(values)
    if name in ("fp32_contents", "fp64_contents") and tensor.datatype in ("FP32", "FP64"):
        letter = "f" if tensor.datatype == "FP32" else "d"
        return [], struct.pack(f"<{len(values)}{letter}", *values)
    if any(isinstance(v, float) and not math.isfinite(v) for v in values):
        raise InvalidField(f"{where} must have finite numbers", field=where)
    return values, None


def _parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters as JSON; texts that hold numbers or objects are read.

    Raises:
        InvalidField: If a number is none.
    """
    values: dict[str, Any] = {}
    for name, parameter in given.items():
        which = parameter.WhichOneof("choice")
        value = getattr(parameter, which) if which else None
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidField(f"{name} must be a finite number, got {value}", field=name)
        values[name] = typed({name: value})[name]
    return values


def infer_response(answer: Answer) -> Any:
    """Return the ``ModelInferResponse`` that the HTTP door's answer is."""
    length = int(answer.headers[HEADER_LENGTH.lower()])
    head, rest = orjson.loads(answer.body[:length]), answer.body[length:]
    response = message("inference.ModelInferResponse")(
        model_name=head["model_name"], model_version=head["model_version"], id=head["id"]
    )
    begin = 0
    for output in head["outputs"]:
        parameters = output["parameters"]
        size = parameters.pop("binary_data_size")
        response.raw_output_contents.append(rest[begin : begin + size])
        begin += size
        made = response.outputs.add(
            name=output["name"], datatype=output["datatype"], shape=output["shape"]
        )
        for name, value in parameters.items():
            made.parameters[name].string_param = value
    return response


METHODS: Mapping[str, tuple[Any, str, str]] = {
    name: (function, f"inference.{name}Request", f"inference.{name}Response")
    for name, function in (
        ("ServerLive", server_live),
        ("ServerReady", server_ready),
        ("ServerMetadata", server_metadata),
        ("ModelReady", model_ready),
        ("ModelMetadata", model_metadata),
        ("ModelInfer", model_infer),
    )
}
"""Method -> what carries it out, its request and its response."""
