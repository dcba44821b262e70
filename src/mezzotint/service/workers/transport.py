"""Transport: messages as MessagePack over a socket, each behind its length.

The length is an unsigned 64-bit number, big-endian.
"""

import asyncio
import contextlib
import struct
from collections.abc import Mapping
from typing import Any, TypeVar, cast

import msgspec

__all__ = [
    "MAX_MESSAGE_BYTES",
    "encode",
    "pack",
    "read_message",
    "send_message",
    "unpack",
]

T = TypeVar("T")
MAX_MESSAGE_BYTES = 2 << 30
_BUFFER_BYTES = 1 << 18
_GONE = (ConnectionError, RuntimeError)  # uvloop's word for a closed connection is the latter
_decoders: dict[Any, "msgspec.msgpack.Decoder[Any]"] = {}


def _plain(value: Any) -> Any:
    """Write a mapping that is no dictionary."""
    if isinstance(value, Mapping):
        return dict(cast("Mapping[Any, Any]", value))
    raise TypeError(f"{type(value).__name__} cannot be sent")


_encoder = msgspec.msgpack.Encoder(enc_hook=_plain)


def encode(message: Any) -> bytes:
    """Return a message without its length.

    Raises:
        TypeError: If something in it is no plain data.
    """
    return _encoder.encode(message)


def pack(message: Any) -> bytearray:
    """Return a message behind its length.

    Raises:
        TypeError: If something in it is no plain data.
    """
    buffer = bytearray(8)
    _encoder.encode_into(message, buffer, 8)
    struct.pack_into(">Q", buffer, 0, len(buffer) - 8)
    return buffer


def unpack(body: bytes | memoryview, kind: type[T] | Any) -> T:
    """Read a message without its length.

    Args:
        body: MessagePack.
        kind: The type, or union of types, that it has to be.

    Raises:
        ValueError: If it is something else, or broken (msgspec's own errors are such).
    """
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    try:
        return decoder.decode(body)
    except RecursionError:
        raise ValueError("a message is nested too deeply") from None


async def read_message(
    reader: asyncio.StreamReader, kind: type[T] | Any, most: int = MAX_MESSAGE_BYTES
) -> T:
    """Read one message.

    Args:
        reader: The socket's.
        kind: The type, or union of types, that it has to be.
        most: Bytes that a message may have.

    Raises:
        asyncio.IncompleteReadError: If the other side is gone.
        ValueError: If it is too long, broken, or of another type.
    """
    (size,) = struct.unpack(">Q", await reader.readexactly(8))
    if size > most:
        raise ValueError(f"a message of {size} bytes is too long, at most {most}")
    return unpack(await reader.readexactly(size), kind)


async def send_message(writer: asyncio.StreamWriter, message: Any) -> None:
    """Write one message; waits where the other side is slow to read.

    Nothing is raised if the other side is gone: whoever reads from it hears of that.
    """
    data = pack(message)
    with contextlib.suppress(*_GONE):
        if not writer.transport.is_closing():
            writer.write(data)
        if writer.transport.get_write_buffer_size() > _BUFFER_BYTES:
            await writer.drain()
