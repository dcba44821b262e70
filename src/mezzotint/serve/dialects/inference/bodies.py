"""Bodies of the open inference protocol: which pictures are asked for, and the answer.

One row of every input tensor is one request; outputs are JSON or binary data.
"""

import struct
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import orjson
from starlette.responses import Response

from mezzotint.bounds import Range
from mezzotint.errors import InvalidField, InvalidRequest
from mezzotint.plain import Checked, field_types, is_dict
from mezzotint.request import GenerationRequest
from mezzotint.serve.dialects.inference.binary import (
    DATATYPES,
    HEADER_LENGTH,
    check_datatype,
    count_values,
    pack_bytes,
    tensors_of,
)
from mezzotint.serve.dialects.torchserve_requests import (
    PARAMETERS,
    parameter_schemas,
    plain_picture,
    typed,
)
from mezzotint.serve.schema import foreign, object_schema
from mezzotint.serve.wire import CONTENT_TYPES, Body, json_response, read_fields
from mezzotint.types import ImageInput, ImageOutput

__all__ = ["TENSORS", "V2", "Asked", "answer", "read_asked"]

TENSORS: Mapping[str, list[dict[str, Any]]] = {
    "inputs": [
        {"name": "prompt", "datatype": "BYTES", "shape": [-1]},
        {"name": "seed", "datatype": "UINT64", "shape": [-1]},
    ],
    "outputs": [
        {"name": "image", "datatype": "BYTES", "shape": [-1]},
        {"name": "seed", "datatype": "UINT64", "shape": [-1]},
    ],
}
_WEEK_US = 7 * 86400 * 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class _OutputParameters(Checked):
    """How one output is answered.

    Args:
        binary_data: As binary data rather than as JSON; if absent, as
            ``binary_data_output`` says.
    """

    binary_data: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _WantedOutput(Checked):
    """One output that is asked for.

    Args:
        name: Its name.
        parameters: How it is answered.
    """

    name: Literal["image", "seed"]
    parameters: _OutputParameters = _OutputParameters()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outputs(Checked):
    """Which outputs are asked for.

    Args:
        outputs: In this order; all of them if there are none.
    """

    outputs: tuple[_WantedOutput, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Common(Checked):
    """Parameters of the protocol, beside those of a picture.

    Args:
        binary_data_output: Whether outputs are binary data where they do not say so.
        timeout: Microseconds after which the pictures are of no use, as ``deadline_s``.
    """

    binary_data_output: bool = False
    timeout: Annotated[int, Range(1, _WEEK_US, "microseconds")] | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """What a body of the protocol asks for.

    Args:
        id: The caller's own name of the request, "" for none.
        rows: Parameters of each request.
        outputs: Whether an output is answered as binary data, by its name and in the
            order in which they are answered.
    """

    id: str
    rows: tuple[Mapping[str, Any], ...]
    outputs: Mapping[str, bool]


def read_asked(body: Mapping[str, Any]) -> Asked:
    """Read what a body asks for: one row of every input tensor is one request.

    Raises:
        InvalidRequest: If something in it is wrong.
    """
    tensors = tensors_of(body)
    asked = body.get("parameters")
    given: object = {} if asked is None else asked
    if not is_dict(given):
        raise InvalidField("parameters must be an object", field="parameters")
    ours, common = read_fields(_Common, given, "parameters")
    if ours.timeout is not None:
        if "deadline_s" in common:
            raise InvalidRequest("timeout and deadline_s say the same: give one", field="timeout")
        common["deadline_s"] = ours.timeout / 1e6
    wanted, _ = read_fields(_Outputs, {"outputs": body.get("outputs")})
    names = [one.name for one in wanted.outputs]
    if len(set(names)) < len(names):
        raise InvalidRequest("outputs names an output twice", field="outputs")
    as_binary = bool(ours.binary_data_output)
    outputs: dict[str, bool] = dict.fromkeys(("image", "seed"), as_binary)
    if wanted.outputs:
        outputs = {
            one.name: as_binary
            if one.parameters.binary_data is None
            else one.parameters.binary_data
            for one in wanted.outputs
        }
    name = body.get("id")
    if not isinstance(name, str | None):
        raise InvalidField(f"id must be a text, got {type(name).__name__}", field="id")
    return Asked(name or "", tuple(_rows(tensors, common)), outputs)


def _rows(tensors: Sequence[Mapping[str, Any]], common: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Turn named tensors into one set of parameters for each row."""
    columns: dict[str, list[Any]] = {}
    for position, tensor in enumerate(tensors):
        where = f"inputs[{position}]"
        name, data = tensor["name"], tensor.get("data")
        if not isinstance(data, list) or not data:
            raise InvalidField(f"{where}.data must be a list with values", field=f"{where}.data")
        if name in columns or name in common:
            raise InvalidRequest(f"{name} is given twice", field=where)
        values = _flat(name, typing.cast("list[Any]", data))
        if "datatype" in tensor:
            check_datatype(tensor["datatype"], where)
        if "shape" in tensor and (count := count_values(tensor["shape"], where)) != len(values):
            raise InvalidRequest(
                f"{where}.data must have {count} values, as its shape says, got {len(values)}",
                field=f"{where}.shape",
            )
        columns[name] = [_said(name, v) if isinstance(v, bytes) else v for v in values]
    lengths = {name: len(data) for name, data in columns.items()}
    rows = max(lengths.values())
    if any(length not in (1, rows) for length in lengths.values()):
        raise InvalidRequest(f"inputs must have one length, got {lengths}", field="inputs")
    return [
        {**common, **{n: d[k] if len(d) > 1 else d[0] for n, d in columns.items()}}
        for k in range(rows)
    ]


def _flat(name: str, data: list[Any]) -> list[Any]:
    """Return the values of a tensor of shape [n] or [1, n]; those of lists have shape [n]."""
    has_lists = typing.get_origin(field_types(GenerationRequest).get(name)) is tuple
    if len(data) == 1 and isinstance(data[0], list) and data[0] and not has_lists:
        return typing.cast("list[Any]", data[0])
    return data


def _said(name: str, value: bytes) -> Any:
    """Return what an element of a BYTES tensor says: a picture, a text, or JSON."""
    is_picture = ImageInput in typing.get_args(field_types(GenerationRequest).get(name))
    if is_picture and value and not value.isascii():
        return ImageInput(value)
    try:
        return typed({name: value.decode("utf-8")})[name]
    except UnicodeDecodeError:
        raise InvalidField(f"{name} must be a text in UTF-8", field=name) from None


def answer(message: Mapping[str, Any], asked: Asked, images: Sequence[ImageOutput]) -> Response:
    """Answer with the outputs that were asked for.

    Args:
        message: What stands before the outputs.
        asked: Which outputs, and how.
        images: The pictures.
    """
    outputs: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for name, is_binary in asked.outputs.items():
        output, blob = _output(name, images, is_binary=is_binary)
        outputs.append(output)
        blobs.append(blob)
    body = {**message, "outputs": outputs}
    if not any(asked.outputs.values()):
        return json_response(body)
    head = orjson.dumps(body)
    return Response(
        head + b"".join(blobs),
        headers={HEADER_LENGTH: str(len(head))},
        media_type="application/octet-stream",
    )


def _output(
    name: str, images: Sequence[ImageOutput], *, is_binary: bool
) -> tuple[dict[str, Any], bytes]:
    """Return one output, and its binary data ("" if it is JSON)."""
    output: dict[str, Any] = {"name": name, "shape": [len(images)]}
    if name == "image":
        kind = CONTENT_TYPES[images[0].format] if is_binary else "base64"
        output |= {
            "datatype": "BYTES",
            "parameters": {"content_type": kind, "format": images[0].format},
        }
        blob = pack_bytes([i.data for i in images]) if is_binary else b""
        data = None if is_binary else [plain_picture(i)["b64"] for i in images]
    else:
        output |= {"datatype": "UINT64"}
        data = [i.seed for i in images]
        blob = struct.pack(f"<{len(data)}Q", *data) if is_binary else b""
    if is_binary:
        output["parameters"] = {**output.get("parameters", {}), "binary_data_size": len(blob)}
    else:
        output["data"] = data
    return output, blob


def _v2(limits: Mapping[str, int]) -> dict[str, Any]:
    """Return the schema of a body of the open inference protocol."""
    schemas = parameter_schemas(limits)
    tensors = [_tensor(name, schema) for name, schema in schemas.items()]
    common = foreign(object_schema(_Common, limits))["properties"]
    parameters = {
        "type": "object",
        "properties": {**schemas, **common},
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "inputs": {"type": "array", "minItems": 1, "items": {"anyOf": tensors}},
            "parameters": {"anyOf": [parameters, {"type": "null"}]},
            **foreign(object_schema(_Outputs, limits))["properties"],
        },
    }


def _tensor(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of the tensor of one parameter."""
    values = {"type": "array", "minItems": 1, "items": schema}
    shapes = [values]
    if schema.get("type") != "array":
        shapes.append({"type": "array", "minItems": 1, "maxItems": 1, "items": values})
    return {
        "type": "object",
        "required": ["name", "data"],
        "properties": {
            "name": {"const": name},
            "data": {"anyOf": shapes},
            "datatype": {"enum": list(DATATYPES)},
            "shape": {
                "type": "array",
                "maxItems": 8,
                "items": {"type": "integer", "minimum": 0, "maximum": 1 << 62},
            },
        },
    }


V2 = Body("KServeV2", _v2, (PARAMETERS,))
