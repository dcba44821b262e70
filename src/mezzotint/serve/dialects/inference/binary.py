"""Binary data of the open inference protocol: values of tensors behind a body's JSON.

``Inference-Header-Content-Length`` says where the JSON ends, ``binary_data_size`` how many
bytes a tensor has; the tensors' bytes follow each other. Numbers are little-endian; each
element of a BYTES tensor has its length before it, in four bytes.
"""

import math
import struct
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request

from mezzotint.errors import InvalidField, InvalidRequest
from mezzotint.plain import is_dict, is_list
from mezzotint.serve.errors import Malformed, TooLarge, UnsupportedMedia
from mezzotint.serve.wire import media_type, parse_json, read_json

__all__ = [
    "DATATYPES",
    "HEADER_LENGTH",
    "check_datatype",
    "count_values",
    "pack_bytes",
    "read_inference",
    "tensors_of",
    "unpack",
]

HEADER_LENGTH = "Inference-Header-Content-Length"
_FORMATS: Mapping[str, str] = {
    "BOOL": "?", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q",
    "INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q",
    "FP16": "e", "FP32": "f", "FP64": "d", "BF16": "H",
}  # fmt: skip
DATATYPES = ("BYTES", *_FORMATS)
"""Types of tensors that the protocol names."""
_MOST_ELEMENTS = 1 << 16
"""Of one tensor that comes as binary data: one byte of it can be a value of many bytes."""


async def read_inference(http: Request) -> dict[str, Any]:
    """Read a body of the protocol; the tensors' binary data is in their ``data`` then.

    Raises:
        UnsupportedMedia: If the body is compressed or has another content type.
        Malformed: If it is not what its header and its sizes say.
        InvalidRequest: If a tensor's binary data is not what its type and shape say.
    """
    coding = http.headers.get("content-encoding", "identity")
    if coding != "identity":
        raise UnsupportedMedia(f"the body must come as it is, got Content-Encoding {coding[:40]}")
    said = http.headers.get(HEADER_LENGTH)
    if said is None:
        return _attached(await read_json(http, untyped=True), b"")
    kind = media_type(http)
    if kind not in ("", "application/json", "application/octet-stream"):
        raise UnsupportedMedia(f"expected application/octet-stream, got {kind}")
    body = await http.body()
    if not (said.isascii() and said.isdecimal() and len(said) < 20 and int(said) <= len(body)):
        raise Malformed(
            f"{HEADER_LENGTH} must be how many of the {len(body)} bytes are JSON, got {said[:40]!r}"
        )
    message = parse_json(body[: int(said)])
    if not isinstance(message, dict):
        raise Malformed(f"the body must be a JSON object, got {type(message).__name__}")
    return _attached(typing.cast("dict[str, Any]", message), body[int(said) :])


def _attached(message: dict[str, Any], rest: bytes) -> dict[str, Any]:
    """Put binary data into the tensors that it belongs to.

    Raises:
        Malformed: If the sizes do not add up to it.
        InvalidRequest: If a tensor is not what its type and shape say.
    """
    begin = 0
    for position, tensor in enumerate(tensors_of(message)):
        where = f"inputs[{position}]"
        parameters = tensor.get("parameters")
        size = parameters.get("binary_data_size") if is_dict(parameters) else None
        if size is None:
            continue
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise InvalidField(
                f"{where}.parameters.binary_data_size must be a number of bytes, got {size!r:.40}",
                field=f"{where}.parameters.binary_data_size",
            )
        if "data" in tensor:
            raise InvalidRequest(f"{where} has data as JSON and as binary data", field=where)
        if size > len(rest) - begin:
            raise Malformed(
                f"{where} has {size} bytes of binary data, got {len(rest) - begin}; the "
                f"header {HEADER_LENGTH} says where they begin",
                field=where,
            )
        kind, shape = tensor.get("datatype"), tensor.get("shape")
        tensor["data"] = unpack(rest[begin : begin + size], kind, shape, where)
        begin += size
    if begin != len(rest):
        raise Malformed(f"{len(rest) - begin} bytes of binary data belong to no tensor")
    return message


def tensors_of(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the input tensors of a message.

    Raises:
        InvalidField: If there are none, or one has no name.
    """
    inputs = message.get("inputs")
    if not is_list(inputs) or not inputs:
        raise InvalidField("inputs must be a list of tensors", field="inputs")
    for position, tensor in enumerate(inputs):
        where = f"inputs[{position}]"
        if not is_dict(tensor) or not isinstance(tensor.get("name"), str):
            raise InvalidField(f"{where} must be an object with a name", field=where)
    return inputs


def count_values(shape: Any, where: str) -> int:
    """Return how many values a tensor of a shape has.

    Raises:
        InvalidField: If it is not a list of at most eight sizes.
    """
    if not is_list(shape) or not all(
        isinstance(n, int) and not isinstance(n, bool) and 0 <= n <= 1 << 62 for n in shape
    ):
        raise InvalidField(f"{where}.shape must be a list of sizes", field=f"{where}.shape")
    if len(shape) > 8:
        raise InvalidField(f"{where}.shape has more than 8 dimensions", field=f"{where}.shape")
    return math.prod(typing.cast("list[int]", shape))


def check_datatype(datatype: Any, where: str) -> None:
    """Refuse what the protocol does not name.

    Raises:
        InvalidField: If it does not.
    """
    if datatype not in DATATYPES:
        raise InvalidField(
            f"{where}.datatype must be one of {', '.join(DATATYPES)}, got {str(datatype)[:40]!r}",
            field=f"{where}.datatype",
        )


def unpack(data: bytes, datatype: Any, shape: Any, where: str) -> list[Any]:
    """Return the values of a tensor that came as binary data, flat.

    Args:
        data: Its bytes.
        datatype: Name of the type of each value.
        shape: Sizes of its dimensions.
        where: Where the tensor stands, for messages.

    Returns:
        Numbers, truths, or bytes.

    Raises:
        InvalidField: If the type or the shape is none, or the bytes do not fit them.
        TooLarge: If it has more values than any request has.
    """
    count = count_values(shape, where)
    if count > _MOST_ELEMENTS:
        raise TooLarge(
            f"{where} has {count} values, at most {_MOST_ELEMENTS} as binary data",
            field=f"{where}.shape",
            value=count,
            allowed=f"at most {_MOST_ELEMENTS}",
        )
    if datatype == "BYTES":
        return _unpack_bytes(data, count, where)
    check_datatype(datatype, where)
    letter = _FORMATS[datatype]
    expected = count * struct.calcsize(f"<{letter}")
    if len(data) != expected:
        raise InvalidField(
            f"{where} must have {expected} bytes: {datatype} of shape {shape}, got {len(data)}",
            field=where,
        )
    values = struct.unpack(f"<{count}{letter}", data)
    if datatype == "BF16":  # the upper half of an FP32
        return list(
            struct.unpack(f"<{count}f", struct.pack(f"<{count}I", *(v << 16 for v in values)))
        )
    return list(values)


def _unpack_bytes(data: bytes, count: int, where: str) -> list[bytes]:
    """Return the elements of a BYTES tensor."""
    values: list[bytes] = []
    begin = 0
    while begin < len(data) and len(values) <= count:
        length = int.from_bytes(data[begin : begin + 4], "little")
        if begin + 4 + length > len(data):
            raise InvalidField(
                f"{where}: element {len(values)} has a length of {length} bytes and is cut short",
                field=where,
            )
        values.append(data[begin + 4 : begin + 4 + length])
        begin += 4 + length
    if len(values) != count:
        more = "more" if len(values) > count else len(values)
        raise InvalidField(f"{where} must have {count} elements, got {more}", field=where)
    return values


def pack_bytes(values: Sequence[bytes]) -> bytes:
    """Write the elements of a BYTES tensor as binary data."""
    return b"".join(struct.pack("<I", len(v)) + v for v in values)
