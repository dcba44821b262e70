"""Messages on a socket: their lengths, and what is refused."""

import asyncio
import types
from typing import Any

import pytest

from mezzotint.service.workers.transport import pack, read_message, unpack


def test_a_message_stands_behind_its_length():
    data = pack({"a": b"123"})
    assert int.from_bytes(data[:8], "big") == len(data) - 8
    # fixmap of 1, fixstr "a", bin 8 of 3 bytes, as MessagePack's specification has it
    assert bytes(data[8:]) == b"\x81\xa1a\xc4\x03123"


def test_byte_strings_travel_at_any_depth():
    head = {"a": b"1", "b": [{"c": b""}, b"2" * 300], "d": {"e": "text", "f": 2**64 - 1}}
    assert unpack(bytes(pack(head)[8:]), dict[str, Any]) == head


def test_a_mapping_is_sent_as_a_dictionary_and_an_object_is_not():
    assert unpack(bytes(pack(types.MappingProxyType({"a": 1}))[8:]), Any) == {"a": 1}
    with pytest.raises(TypeError, match="object cannot be sent"):
        pack({"a": object()})


@pytest.mark.parametrize("body", [b"", b"\xc4\x09ab", b"\x81", b"\x91" * 5000 + b"\xc0"])
def test_a_broken_message_is_refused(body):
    with pytest.raises(ValueError):
        unpack(body, Any)


def read(data, most):
    async def main():
        reader = asyncio.StreamReader()
        reader.feed_data(bytes(data))
        reader.feed_eof()
        return await read_message(reader, dict[str, Any], most)

    return asyncio.run(main())


def test_a_message_is_read_up_to_its_limit():
    data = pack({"a": 1})
    assert read(data, len(data) - 8) == {"a": 1}
    with pytest.raises(ValueError, match="too long, at most 3"):
        read(data, 3)
    with pytest.raises(asyncio.IncompleteReadError):
        read(data[:-1], 100)
