"""Link: messages over one socket, taken where they arrive.

What :mod:`mezzotint.service.workers.transport` writes, without a task that reads: all messages
that came in one piece are taken in the turn of the loop that received them, and none of them
wakes anything but what it is about.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from typing import Any, cast

from mezzotint.service.workers.transport import MAX_MESSAGE_BYTES, pack, unpack

__all__ = ["Link"]

_HEAD_BYTES = 8
_GONE = (ConnectionError, RuntimeError)  # uvloop's word for a closed connection is the latter


class Link(asyncio.Protocol):
    """One end of a connection between two processes; made by :meth:`over`.

    Messages that arrive before anybody follows or reads wait.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._take: Callable[[bytes | memoryview], None] | None = None
        self._more = asyncio.Event()  # something arrived, or nothing will
        self._room = asyncio.Event()
        self._room.set()
        self._ended: asyncio.Future[None] = self._loop.create_future()

    @classmethod
    async def over(cls, connection: socket.socket) -> "Link":
        """Return the link over a connected socket, which it closes in the end."""
        _, link = await asyncio.get_running_loop().create_connection(cls, sock=connection)
        return link

    async def read(self, kind: Any) -> Any:
        """Read one message of a type, or union of types.

        Raises:
            asyncio.IncompleteReadError: If the other side is gone.
            ValueError: If the message is too long, broken, or of another type.
        """
        while (size := _size(self._buffer)) is None or len(self._buffer) < _HEAD_BYTES + size:
            if self._ended.done():
                raise asyncio.IncompleteReadError(bytes(self._buffer), None)
            self._more.clear()
            await self._more.wait()
        end = _HEAD_BYTES + size
        body = bytes(self._buffer[_HEAD_BYTES:end])
        del self._buffer[:end]
        return unpack(body, kind)

    async def follow(self, kind: Any, take: Callable[[Any], None]) -> None:
        """Give every message to ``take`` as it comes; return when the other side is gone.

        Args:
            kind: The type, or union of types, that each has to be.
            take: Called in the loop; must not block.

        Raises:
            ValueError: If a message is too long, broken, or of another type.
            Exception: What ``take`` raised.
        """
        self._take = lambda body: take(unpack(body, kind))
        waiting, self._buffer = bytes(self._buffer), bytearray()
        self.data_received(waiting)
        await self._ended

    def post(self, message: Any) -> None:
        """Write one message without waiting.

        Nothing is raised if the other side is gone: whoever follows hears of that.
        """
        data = pack(message)
        transport = self._transport
        if transport is not None and not transport.is_closing():
            with contextlib.suppress(*_GONE):
                transport.write(data)

    async def send(self, message: Any) -> None:
        """Write one message; waits where the other side is slow to read."""
        self.post(message)
        await self._room.wait()

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's derive from nothing

    def data_received(self, data: bytes) -> None:
        """Take every message that is whole; keep the rest."""
        if self._take is None:
            self._buffer += data
            self._more.set()
            return
        try:
            if not self._buffer:  # mostly messages come whole: nothing is copied
                with memoryview(data) as view:
                    rest = self._deal(view)
                    self._buffer += view[rest:]
                return
            self._buffer += data
            size = _size(self._buffer)
            if size is None or len(self._buffer) < _HEAD_BYTES + size:
                return
            with memoryview(self._buffer) as view:
                rest = self._deal(view)
            del self._buffer[:rest]
        except Exception as error:  # the reader's to hear; nothing that follows can be read
            self._end(error)
            self.close()

    def _deal(self, view: memoryview) -> int:
        """Take the whole messages in a buffer; return how many bytes they had."""
        start, take = 0, self._take
        assert take is not None  # noqa: S101 - called where somebody follows
        while (size := _size(view[start : start + _HEAD_BYTES])) is not None:
            end = start + _HEAD_BYTES + size
            if end > len(view):
                break
            take(view[start + _HEAD_BYTES : end])
            start = end
        return start

    def pause_writing(self) -> None:
        """Let senders wait: the other side is slow."""
        self._room.clear()

    def resume_writing(self) -> None:
        """Let senders go on."""
        self._room.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let everybody go who waits."""
        self._end(None)

    def _end(self, error: Exception | None) -> None:
        """Note that no message will come any more, and why, if that is somebody's fault."""
        if not self._ended.done():
            if error is None:
                self._ended.set_result(None)
            else:
                self._ended.set_exception(error)
        self._more.set()
        self._room.set()


def _size(head: bytearray | memoryview) -> int | None:
    """Return the length of the message that a buffer begins with; None if that is not there.

    Raises:
        ValueError: If it is too long.
    """
    if len(head) < _HEAD_BYTES:
        return None
    (size,) = struct.unpack_from(">Q", head)
    if size > MAX_MESSAGE_BYTES:
        raise ValueError(f"a message of {size} bytes is too long, at most {MAX_MESSAGE_BYTES}")
    return size
