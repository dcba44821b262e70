"""Binary data of tensors, byte by byte."""

import json
import struct

import pytest
from starlette.requests import Request
from tests.serving import open_door

from mezzotint.errors import InvalidField, InvalidRequest
from mezzotint.serve.dialects.inference.binary import (
    HEADER_LENGTH,
    pack_bytes,
    read_inference,
    unpack,
)
from mezzotint.serve.errors import Malformed, TooLarge, UnsupportedMedia


@pytest.mark.parametrize(
    ("datatype", "data", "values"),
    [
        ("BOOL", b"\x00\x01", [False, True]),
        ("UINT8", b"\xff\x01", [255, 1]),
        ("INT8", b"\xff\x01", [-1, 1]),
        ("UINT16", b"\x01\x00\x00\x01", [1, 256]),
        ("INT16", b"\xfe\xff\x00\x01", [-2, 256]),
        ("UINT32", b"\x01\x00\x00\x00\x00\x00\x00\x80", [1, 1 << 31]),
        ("INT32", b"\x01\x00\x00\x00\x00\x00\x00\x80", [1, -(1 << 31)]),
        ("UINT64", b"\x07" + bytes(7) + b"\xff" * 8, [7, (1 << 64) - 1]),
        ("INT64", b"\x07" + bytes(7) + b"\xff" * 8, [7, -1]),
        ("FP16", b"\x00\x3c\x00\xc0", [1.0, -2.0]),
        ("BF16", b"\x80\x3f\x00\xc0", [1.0, -2.0]),
        ("FP32", struct.pack("<2f", 7.5, -0.25), [7.5, -0.25]),
        ("FP64", struct.pack("<2d", 0.1, 1e300), [0.1, 1e300]),
        ("BYTES", b"\x01\x00\x00\x00a\x00\x00\x00\x00", [b"a", b""]),
    ],
)
def test_values_of_each_type(datatype, data, values):
    assert unpack(data, datatype, [2], "inputs[0]") == values
    assert unpack(data, datatype, [1, 2], "inputs[0]") == values


def test_bytes_are_packed_as_they_are_unpacked():
    values = [b"", b"a", b"\x00" * 300]
    packed = pack_bytes(values)
    assert packed[:9] == b"\0\0\0\0\x01\0\0\0a"
    assert unpack(packed, "BYTES", [3], "x") == values


@pytest.mark.parametrize(
    ("data", "datatype", "shape", "message"),
    [
        (b"abc", "FP32", [1], "must have 4 bytes: FP32 of shape \\[1\\], got 3"),
        (b"abcd", "COMPLEX", [1], "datatype must be one of BYTES, BOOL"),
        (b"abcd", ["FP32"], [1], "datatype must be one of"),
        (b"abcd", "FP32", None, "shape must be a list of sizes"),
        (b"abcd", "FP32", [-1], "shape must be a list of sizes"),
        (b"abcd", "FP32", [True], "shape must be a list of sizes"),
        (b"abcd", "FP32", [1] * 9, "more than 8 dimensions"),
        (b"\x05\0\0\0abc", "BYTES", [1], "element 0 has a length of 5 bytes and is cut short"),
        (b"\x01\0", "BYTES", [1], "is cut short"),
        (b"\x00\0\0\0" * 3, "BYTES", [2], "must have 2 elements, got more"),
        (b"\x00\0\0\0", "BYTES", [2], "must have 2 elements, got 1"),
    ],
)
def test_bytes_that_do_not_fit_are_refused(data, datatype, shape, message):
    with pytest.raises(InvalidField, match=message):
        unpack(data, datatype, shape, "inputs[0]")


def test_a_tensor_of_many_values_is_refused_before_they_are_made():
    with pytest.raises(TooLarge, match="has 1099511627776 values, at most 65536"):
        unpack(b"", "UINT8", [1 << 20, 1 << 20], "inputs[0]")


def request(body: bytes, **headers: str) -> Request:
    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    named = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
    return Request({"type": "http", "method": "POST", "headers": named}, receive)


def written(tensors, rest: bytes, *, length: str | None = None) -> Request:
    head = json.dumps({"inputs": tensors}).encode()
    said = str(len(head)) if length is None else length
    return request(head + rest, **{HEADER_LENGTH.lower(): said})


def tensor(size, **more):
    return {"name": "seed", "datatype": "UINT8", "shape": [1],
            "parameters": {"binary_data_size": size}, **more}  # fmt: skip


@pytest.mark.anyio
async def test_tensors_take_their_bytes_in_order():
    body = await read_inference(
        written([tensor(1), {"name": "b", "data": [5]}, tensor(1)], b"\1\2")
    )
    assert [one["data"] for one in body["inputs"]] == [[1], [5], [2]]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("tensors", "rest", "length", "message"),
    [
        ([tensor(1)], b"", None, r"inputs\[0\] has 1 bytes of binary data, got 0"),
        ([tensor(1)], b"ab", None, "1 bytes of binary data belong to no tensor"),
        ([tensor(-1)], b"", None, "binary_data_size must be a number of bytes, got -1"),
        ([tensor(True)], b"a", None, "binary_data_size must be a number of bytes, got True"),
        ([tensor(1, data=[1])], b"a", None, "has data as JSON and as binary data"),
        ([tensor(1)], b"a", "100000", "must be how many of the .* bytes are JSON, got '100000'"),
        ([tensor(1)], b"a", "-1", "are JSON, got '-1'"),
        ([tensor(1)], b"a", "1_0", "are JSON, got '1_0'"),
        ([tensor(1)], b"a", "3", "not JSON"),
    ],
)
async def test_sizes_that_do_not_add_up_are_refused(tensors, rest, length, message):
    with pytest.raises((Malformed, InvalidRequest), match=message):
        await read_inference(written(tensors, rest, length=length))


@pytest.mark.anyio
async def test_compressed_bodies_and_other_types_are_refused():
    with pytest.raises(UnsupportedMedia, match="got Content-Encoding gzip"):
        await read_inference(request(b"{}", content_encoding="gzip"))
    with pytest.raises(UnsupportedMedia, match="got image/png"):
        await read_inference(
            request(b"{}", inference_header_content_length="2", content_type="image/png")
        )


def test_a_fault_is_a_400_that_names_the_tensor():
    with open_door() as door:
        head = json.dumps({"inputs": [tensor(9)]}).encode()
        answer = door.http.post(
            "/v2/models/plate/infer", content=head, headers={HEADER_LENGTH: str(len(head))}
        )
    assert (answer.status_code, answer.json()["type"]) == (400, "BadRequestException")
    assert answer.json()["error"].startswith("inputs[0] has 9 bytes of binary data, got 0")
