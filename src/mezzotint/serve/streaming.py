"""Streaming: server-sent events, and watching for clients that go away.

Events follow the WHATWG text/event-stream format: ``id``, ``event`` and one
``data`` line of JSON. A comment every few seconds keeps proxies from closing a
quiet connection.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from mezzotint.serve.errors import ClientGone, Malformed

__all__ = ["EventStream", "last_event_id", "sse", "until_gone"]

_KEEP_ALIVE_S = 10.0


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
