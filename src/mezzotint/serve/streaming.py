"""Streaming: bodies as they come, server-sent events, and clients that go away.

Events follow the WHATWG text/event-stream format: ``id``, ``event`` and one
``data`` line of JSON. A comment every few seconds keeps proxies from closing a
quiet connection.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import orjson
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from mezzotint.serve.config import Limits
from mezzotint.serve.errors import BodyTooSlow, ClientGone, Malformed, TooLarge, UnsupportedMedia

__all__ = ["BoundedBody", "EventStream", "last_event_id", "sse", "until_gone"]

_KEEP_ALIVE_S = 10.0
_LINGER_S = 5.0  # in which a client may finish sending what is not read any more


def sse(data: Any, *, event: str | None = None, id_: int | None = None) -> bytes:
    """Write one event; ``data`` is JSON unless it is text already."""
    lines: list[bytes] = []
    if id_ is not None:
        lines.append(b"id: %d" % id_)
    if event is not None:
        lines.append(b"event: " + event.encode())
    body = data.encode() if isinstance(data, str) else orjson.dumps(data)
    lines.append(b"data: " + body)
    return b"\n".join(lines) + b"\n\n"


def last_event_id(http: Request) -> int:
    """Return the id of the last event the client has seen, 0 if none.

    Raises:
        Malformed: If the header is not a whole number.
    """
    text = http.headers.get("last-event-id", "").strip()
    if not text:
        return 0
    if not text.isdecimal() or len(text) > 18:
        raise Malformed(f"Last-Event-ID must be a whole number, got {text[:40]!r}")
    return int(text)


async def until_gone(receive: Receive) -> None:
    """Return when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream:
    """An answer of server-sent events; closing it early closes the iterator.

    Args:
        events: Encoded events.
        headers: Further headers.
        closed: Called once it is over, however it ended.
    """

    def __init__(
        self,
        events: AsyncIterator[bytes],
        headers: dict[str, str] | None = None,
        *,
        closed: Callable[[], None] = lambda: None,
    ) -> None:
        self._events = events
        self._closed = closed
        self._headers = {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-store",
            "x-accel-buffering": "no",
            **(headers or {}),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until they end or the client goes away."""
        try:
            await self._send(receive, send)
        finally:
            self._closed()

    async def _send(self, receive: Receive, send: Send) -> None:
        """Send until the events end or the client is gone."""
        raw = [(k.encode(), v.encode()) for k, v in self._headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw})
        gone = asyncio.ensure_future(until_gone(receive))
        following: asyncio.Future[bytes] | None = None
        try:
            while True:
                if following is None:
                    following = asyncio.ensure_future(anext(self._events))
                done, _ = await asyncio.wait(
                    {gone, following},
                    timeout=_KEEP_ALIVE_S,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if gone in done:
                    raise ClientGone("the client closed the event stream")
                body = b": keep-alive\n\n"
                if following in done:
                    try:
                        body = following.result()
                    except StopAsyncIteration:
                        break
                    finally:
                        following = None
                await send({"type": "http.response.body", "body": body, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            gone.cancel()
            if following is not None:
                following.cancel()
                with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration):
                    await following
            close = getattr(self._events, "aclose", None)
            if close is not None:
                await close()


class BoundedBody:
    """Bounds the bytes and the seconds of a request body.

    Args:
        receive: Where the body comes from.
        limits: How large it may be, and how long it may take.
        headers: Of the request, names in lower case.
    """

    def __init__(self, receive: Receive, limits: Limits, headers: Mapping[str, str]) -> None:
        self._receive = receive
        self._most = limits.body_bytes
        self._seconds = limits.body_s
        self._until = time.monotonic() + limits.body_s
        self._bytes = 0
        length = headers.get("content-length", "")
        self._declared = int(length) if length.isdecimal() else 0
        self._coding = headers.get("content-encoding", "").strip().lower()
        self._waits_to_be_asked = "expect" in headers
        has_body = self._declared > 0 or "transfer-encoding" in headers
        self.is_ambiguous = "content-length" in headers and "transfer-encoding" in headers
        self.is_complete = not has_body

    def check(self) -> None:
        """Refuse what cannot be read, or where its end is unsure.

        Raises:
            Malformed: If its length is told in two ways.
            UnsupportedMedia: If it is compressed.
        """
        if self.is_ambiguous:
            raise Malformed("Content-Length and Transfer-Encoding cannot both be given")
        if not self.is_complete and self._coding not in ("", "identity"):
            raise UnsupportedMedia(
                f"the body must come as it is, got Content-Encoding {self._coding[:40]}"
            )

    async def discard(self) -> None:
        """Read on for a while without keeping anything.

        A connection that is closed while bytes of a body are on their way is reset, which
        takes the answer from a client that has not read it yet.
        """
        if self.is_complete or self.is_ambiguous or (self._waits_to_be_asked and not self._bytes):
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                while (await self._receive()).get("more_body", False):
                    pass

    def allow(self, most: int) -> None:
        """Let the body have up to ``most`` bytes, in as much more time; nothing of it came yet."""
        factor = max(1.0, most / self._most)
        self._most = most
        self._until += self._seconds * (factor - 1)
        self._seconds *= factor

    async def __call__(self) -> Message:
        """Receive the next message.

        Raises:
            TooLarge: If the body is longer than allowed, or says it will be.
            BodyTooSlow: If the client takes too long to send it.
        """
        if max(self._declared, self._bytes) > self._most:
            raise TooLarge(
                f"the body is too large: at most {self._most} bytes",
                field="body",
                value=max(self._declared, self._bytes),
                allowed=f"at most {self._most} bytes",
            )
        if self.is_complete:
            return await self._receive()
        try:
            async with asyncio.timeout(max(0.0, self._until - time.monotonic())):
                message = await self._receive()
        except TimeoutError:
            raise BodyTooSlow(f"the body did not arrive within {self._seconds:g} s") from None
        self._bytes += len(message.get("body", b""))
        if self._bytes > self._most:
            return await self()
        if not message.get("more_body", False):
            self.is_complete = True
        return message
